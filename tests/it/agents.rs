//! Agents that call tools: each call of a model or tool is made once and kept, whatever happens to the node.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};

use crate::harness::{
    Answer, Event, FakeModel, FakeTool, Node, Options, Reply, Script, WRITTEN, Wanted, assert_log, assert_promise,
    eventually, finished_process, id_of,
};
use crate::programs::assert_not_in_files;

/// The settings of the agent `helper`, on this provider, with the tool `act` at this endpoint.
fn config(model: &FakeModel, tool: &FakeTool, of_agent: &str, of_tool: &str) -> String {
    let (base_url, url) = (model.base_url(), tool.url());
    format!(
        "runs.backoff_base = \"10ms\"\n[providers.fake]\nbase_url = \"{base_url}\"\nprices = [\"small=1/2\"]\n\
         [tools.act]\nmethod = \"POST\"\nurl = \"{url}\"\nallow = [\"127.0.0.1\"]\n{of_tool}\n\
         [agents.helper]\nkind = \"model\"\nmodel = \"fake/small\"\ntools = [\"act\", \"ask\", \"complete\"]\n\
         max_attempts = 100\n{of_agent}\n"
    )
}

/// A model that wants one call after the other, so many of them, and then has done it.
async fn worker(calls: usize) -> FakeModel {
    FakeModel::by(move |body| {
        let returned = returned(body).len();
        if returned < calls { act(returned) } else { Script::Says("It is done.".to_owned()) }
    })
    .await
}

/// A call of `act` that says its number.
fn act(number: usize) -> Script {
    Script::Calls(vec![wanted("act", number, json!({"number": number}))])
}

fn wanted(tool: &'static str, number: usize, arguments: Value) -> Wanted {
    Wanted { id: format!("call-{number}"), tool, arguments }
}

/// What the model is shown of its calls.
fn returned(body: &Value) -> Vec<String> {
    let messages = body["messages"].as_array().map(Vec::as_slice).unwrap_or_default();
    let content = |message: &Value| message["content"].as_str().unwrap_or_default().to_owned();
    messages.iter().filter(|message| message["role"] == "tool").map(content).collect()
}

/// What the model was shown when it was asked last.
fn shown(model: &FakeModel) -> Vec<String> {
    returned(&model.requests().last().expect("a request").body)
}

async fn begin(node: &Node) -> String {
    node.create(json!({"agent": "helper", "input": "Do it."})).await
}

/// How many steps are finished.
fn finished(events: &[Event]) -> usize {
    events.iter().filter(|event| event.kind == "step.completed").count()
}

/// How often each step of a [`worker`] was made, the first being 1, as the servers have seen it.
fn made(model: &FakeModel, tool: &FakeTool) -> BTreeMap<usize, usize> {
    let mut made = BTreeMap::new();
    let asked = model.requests().into_iter().map(|request| 2 * returned(&request.body).len() + 1);
    let number = |call: &Value| call["number"].as_u64().and_then(|number| usize::try_from(number).ok());
    let called = tool.calls().into_iter().map(|call| 2 * number(&call.body).expect("a number") + 2);
    for step in asked.chain(called) {
        *made.entry(step).or_default() += 1;
    }
    made
}

/// When a node is killed, again and again.
#[derive(Clone, Copy, PartialEq)]
enum Kill {
    /// When a step is finished; the one behind it has no answer.
    Behind,
    /// When a step has come to its server; its answer is on its way, or is just being kept.
    Within,
}

/// A run of 21 steps whose node is killed at each of them: what was finished is not made again.
async fn killed_at_each_step(kill: Kill) {
    const CALLS: usize = 10;
    const STEPS: usize = 2 * CALLS + 1;
    // No step is answered that is further on than the one that is waited for.
    let answered = Arc::new(AtomicUsize::new(1));
    let (of_model, of_tool) = (Arc::clone(&answered), Arc::clone(&answered));
    let model = FakeModel::by(move |body| {
        let returned = returned(body).len();
        match returned {
            _ if 2 * returned + 1 > of_model.load(Ordering::SeqCst) => Script::Hang(0),
            CALLS => Script::Says("It is done.".to_owned()),
            _ => act(returned),
        }
    })
    .await;
    let tool = FakeTool::by(move |body| {
        let answers = body["number"].as_u64().expect("a number") * 2 + 2 <= of_tool.load(Ordering::SeqCst) as u64;
        if answers { Reply::Gives("done") } else { Reply::Hangs }
    })
    .await;
    let mut node = Node::start(config(&model, &tool, "", "")).await;
    let id = begin(&node).await;
    let (mut reached, mut kills, mut kept) = (0, 0, BTreeMap::new());
    while reached < STEPS - 1 {
        let next = async || {
            let steps = finished(&node.events(&id).await);
            let made = made(&model, &tool);
            let now = if kill == Kill::Behind { steps } else { made.len() };
            (now > reached).then_some((steps, made))
        };
        let (steps, now) = eventually("the next step", next).await;
        kept.extend(now.into_iter().filter(|(step, _)| *step <= steps));
        node.kill9().await;
        kills += 1;
        reached = if kill == Kill::Behind { steps } else { made(&model, &tool).len() };
        answered.store(reached + 1, Ordering::SeqCst);
        node.restart().await;
    }
    let run = node.wait_final(&id).await;
    assert_eq!((&run["status"], &run["output"]), (&json!("completed"), &json!("It is done.")), "{run}");
    assert_promise(&node, &id).await;
    assert!(kills == STEPS - 1 || kill == Kill::Within && kills >= CALLS, "{kills} kills");
    let made = made(&model, &tool);
    assert_eq!(made.keys().copied().collect::<Vec<_>>(), (1..=STEPS).collect::<Vec<_>>());
    assert!(made.values().all(|times| *times <= 2), "{made:?}");
    for (step, times) in kept {
        assert_eq!(made[&step], times, "step {step} was finished, and was made again: {made:?}");
    }
    assert_eq!(tool.keys().len(), CALLS, "each call has a key of its own, which stays: {:?}", tool.keys());
    assert_eq!(shown(&model), ["done"; CALLS]);
}

#[tokio::test]
async fn a_node_that_is_killed_behind_each_step_makes_none_of_them_again() {
    killed_at_each_step(Kill::Behind).await;
}

#[tokio::test]
async fn a_node_that_is_killed_within_each_step_makes_none_of_the_finished_ones_again() {
    killed_at_each_step(Kill::Within).await;
}

/// A run whose call hung when its node was killed. The node is there again.
async fn cut_off(policy: &str) -> (FakeModel, FakeTool, Node, String) {
    let (model, tool) = (worker(1).await, FakeTool::start([Reply::Hangs, Reply::Gives("done")]).await);
    let mut node = Node::start(config(&model, &tool, "", &format!("on_cut_off = \"{policy}\""))).await;
    let id = begin(&node).await;
    tool.until_called(1).await;
    node.kill9().await;
    eventually("the socket went with the node", async || (tool.open() == 0).then_some(())).await;
    node.restart().await;
    (model, tool, node, id)
}

/// Waits until the run asks a person; what its event says.
async fn asked(node: &Node, id: &str) -> Value {
    let run = node.until(id, &["waiting"]).await;
    let events = node.events(id).await;
    let last = events.last().expect("an event");
    assert_eq!((last.kind.as_str(), &last.data["for"]), ("run.waiting", &run["reason"]));
    last.data.clone()
}

async fn answer(node: &Node, id: &str, question: &Value, input: Value) -> Answer {
    let body = json!({"wait_id": question["wait_id"], "input": input});
    node.post_json(&format!("/v1/runs/{id}/resume"), &body).await
}

/// Waits until the run has completed as a model says it; the model was asked once before its call and once behind it.
async fn completed(node: &Node, id: &str, model: &FakeModel) {
    let run = node.wait_final(id).await;
    assert_eq!((&run["status"], &run["output"]), (&json!("completed"), &json!("It is done.")), "{run}");
    assert_promise(node, id).await;
    assert_eq!(model.requests().len(), 2);
}

#[tokio::test]
async fn a_call_that_was_cut_off_is_repeated_under_its_key() {
    let (model, tool, node, id) = cut_off("repeat").await;
    completed(&node, &id, &model).await;
    assert_eq!(tool.keys().into_values().collect::<Vec<_>>(), [2]);
    assert_eq!(shown(&model), ["done"]);
}

#[tokio::test]
async fn a_call_that_was_cut_off_and_must_not_be_repeated_is_told_to_the_model() {
    let (model, tool, node, id) = cut_off("fail").await;
    completed(&node, &id, &model).await;
    assert_eq!(tool.calls().len(), 1);
    assert!(shown(&model)[0].contains("nobody knows whether it was done"), "{:?}", shown(&model));
}

#[tokio::test]
async fn a_person_decides_about_a_call_that_was_cut_off() {
    for (input, times, told) in [(json!("yes"), 2, "done"), (json!("no"), 1, "it was not called again")] {
        let (model, tool, node, id) = cut_off("ask").await;
        let question = asked(&node, &id).await;
        assert_eq!((&question["for"], &question["prompt"]["tool"]), (&json!("approval"), &json!("act")), "{question}");
        assert_eq!(tool.calls().len(), 1);
        assert_eq!(answer(&node, &id, &question, input).await.status, 200);
        completed(&node, &id, &model).await;
        assert_eq!(tool.keys().into_values().collect::<Vec<_>>(), [times]);
        assert!(shown(&model)[0].contains(told), "{:?}", shown(&model));
    }
}

#[tokio::test]
async fn a_call_that_is_cut_off_once_more_is_asked_about_once_more() {
    let replies = [Reply::Hangs, Reply::Hangs, Reply::Gives("done")];
    let (model, tool) = (worker(1).await, FakeTool::start(replies).await);
    let mut node = Node::start(config(&model, &tool, "", "on_cut_off = \"ask\"\nneeds_approval = true")).await;
    let id = begin(&node).await;
    let mut questions = BTreeSet::new();
    for times in 1..=3 {
        let question = asked(&node, &id).await;
        assert_eq!(tool.calls().len(), times - 1, "nobody has allowed this call: {question}");
        assert!(questions.insert(question["wait_id"].to_string()), "{question}");
        assert_eq!(answer(&node, &id, &question, json!("yes")).await.status, 200);
        tool.until_called(times).await;
        if times < 3 {
            node.kill9().await;
            node.restart().await;
        }
    }
    completed(&node, &id, &model).await;
    assert_eq!(tool.keys().into_values().collect::<Vec<_>>(), [3]);
}

#[tokio::test]
async fn a_call_waits_for_its_approval_also_over_a_kill() {
    let (model, tool) = (worker(1).await, FakeTool::start([Reply::Gives("done")]).await);
    let mut node = Node::start(config(&model, &tool, "", "needs_approval = true")).await;
    let id = begin(&node).await;
    let question = asked(&node, &id).await;
    let prompt =
        json!({"question": "May act be called?", "call_id": "call-0", "tool": "act", "arguments": {"number": 0}});
    assert_eq!((&question["for"], &question["prompt"]), (&json!("approval"), &prompt));
    node.kill9().await;
    node.restart().await;
    assert_eq!(asked(&node, &id).await, question);
    assert_eq!((tool.calls().len(), model.requests().len()), (0, 1));
    let approved = json!({"approved": true});
    assert_eq!(answer(&node, &id, &question, approved.clone()).await.status, 200);
    let second = answer(&node, &id, &question, approved).await;
    assert_eq!(second.status, 409, "{second:?}");
    completed(&node, &id, &model).await;
    assert_eq!(tool.keys().into_values().collect::<Vec<_>>(), [1]);
}

#[tokio::test]
async fn a_refusal_is_told_to_the_model() {
    let (model, tool) = (worker(1).await, FakeTool::start([Reply::Gives("done")]).await);
    let node = Node::start(config(&model, &tool, "", "needs_approval = true")).await;
    let id = begin(&node).await;
    let question = asked(&node, &id).await;
    let refused = json!({"approved": false, "why": "too dear"});
    assert_eq!(answer(&node, &id, &question, refused).await.status, 200);
    completed(&node, &id, &model).await;
    assert!(tool.calls().is_empty());
    let told = &shown(&model)[0];
    assert!(told.contains("did not approve") && told.contains("too dear"), "{told}");
}

/// What steps, or a run, used: tokens read, tokens written, money.
fn usage(of: &Value) -> [u64; 3] {
    ["input_tokens", "output_tokens", "cost_micros"].map(|field| of[field].as_u64().unwrap_or(0))
}

fn sum(usages: impl IntoIterator<Item = [u64; 3]>) -> [u64; 3] {
    usages.into_iter().fold([0; 3], |sum, usage| std::array::from_fn(|index| sum[index] + usage[index]))
}

/// What the finished steps used.
fn used(events: &[Event]) -> [u64; 3] {
    sum(events.iter().filter(|event| event.kind == "step.completed").map(|event| usage(&event.data["usage"])))
}

#[tokio::test]
async fn each_bound_of_a_budget_ends_a_run() {
    for (of_agent, budget, outcome, calls) in [
        ("", json!({"tokens": 400}), "budget_tokens", 1..30),
        ("budget_tokens = 400", json!({"tokens": 100_000}), "budget_tokens", 1..30),
        ("budget_cost = 0.0006", json!(null), "budget_cost", 1..30),
        ("", json!({"cost_micros": 600}), "budget_cost", 1..30),
        ("budget_steps = 3", json!(null), "budget_steps", 1..2),
        ("", json!({"steps": 4}), "budget_steps", 2..3),
    ] {
        let (model, tool) = (worker(50).await, FakeTool::start([Reply::Gives("done")]).await);
        let node = Node::start(config(&model, &tool, of_agent, "")).await;
        let mut body = json!({"agent": "helper", "input": "Do it."});
        if !budget.is_null() {
            body["budget"] = budget;
        }
        let id = node.create(body).await;
        let run = node.wait_final(&id).await;
        assert_eq!((&run["status"], &run["outcome"]), (&json!("failed"), &json!(outcome)), "{of_agent}: {run}");
        assert_eq!(run["error"]["code"], "out_of_budget", "{run}");
        assert_promise(&node, &id).await;
        assert!(calls.contains(&tool.calls().len()), "{of_agent}: {} calls: {run}", tool.calls().len());
        let [read, written, cost] = usage(&run["usage"]);
        assert_eq!([read, written, cost], used(&node.events(&id).await), "{of_agent}: {run}");
        let asked = model.requests().len() as u64;
        assert_eq!([read, written, cost], [11, WRITTEN, 11 + 2 * WRITTEN].map(|each| each * asked), "{run}");
        let within = match outcome {
            "budget_tokens" => read + written <= 400,
            "budget_cost" => cost <= 600,
            _ => true,
        };
        assert!(within, "{run}");
    }
}

#[tokio::test]
async fn the_time_of_a_budget_ends_a_call() {
    for (of_agent, budget) in [("budget_time = \"300ms\"", json!({})), ("", json!({"time_ms": 300}))] {
        let (model, tool) = (worker(1).await, FakeTool::start([Reply::Hangs]).await);
        let node = Node::start(config(&model, &tool, of_agent, "")).await;
        let id = node.create(json!({"agent": "helper", "input": "Do it.", "budget": budget})).await;
        let run = node.wait_final(&id).await;
        assert_eq!((&run["status"], &run["outcome"]), (&json!("failed"), &json!("budget_time")), "{run}");
        assert_promise(&node, &id).await;
        eventually("the tool's socket is closed", async || (tool.open() == 0).then_some(())).await;
        assert_eq!(usage(&run["usage"]), used(&node.events(&id).await), "{run}");
    }
}

#[tokio::test]
async fn a_kill_while_the_model_talks_is_charged_as_what_the_call_had_reserved() {
    let model = FakeModel::start([Script::Hang(3), Script::Says("It is done.".to_owned())]).await;
    let tool = FakeTool::start([]).await;
    let mut node = Node::start(config(&model, &tool, "max_tokens = 50", "")).await;
    let id = begin(&node).await;
    node.until_said(&id, 3).await;
    node.kill9().await;
    node.restart().await;
    let run = node.wait_final(&id).await;
    assert_promise(&node, &id).await;
    let events = node.events(&id).await;
    let of = |kind: &str| events.iter().find(|event| event.kind == kind).expect("an event").data.clone();
    let reserved = usage(&of("step.started")["reserved"]);
    assert!(reserved[0] > 0 && reserved[1] == 50, "{reserved:?}");
    let retrying = of("run.retrying");
    assert_eq!((usage(&retrying["usage"]), &retrying["usage"]["estimated"]), (reserved, &json!(true)), "{retrying}");
    assert_eq!(usage(&run["usage"]), sum([reserved, used(&events)]), "{run}");
    assert_eq!(run["usage"]["estimated"], true, "{run}");
}

#[tokio::test]
async fn a_cancel_closes_the_socket_of_a_tool() {
    let (model, tool) = (worker(1).await, FakeTool::start([Reply::Hangs]).await);
    let node = Node::start(config(&model, &tool, "", "")).await;
    let id = begin(&node).await;
    tool.until_called(1).await;
    node.cancel(&id).await;
    let run = node.wait_final(&id).await;
    assert_eq!((&run["status"], usage(&run["usage"])), (&json!("cancelled"), used(&node.events(&id).await)), "{run}");
    assert_promise(&node, &id).await;
    eventually("the tool's socket is closed", async || (tool.open() == 0).then_some(())).await;
    assert_eq!((tool.calls().len(), model.requests().len()), (1, 1));
}

#[tokio::test]
async fn a_cancel_while_the_model_talks_charges_what_it_has_said() {
    let (model, tool) = (FakeModel::start([Script::Hang(3)]).await, FakeTool::start([]).await);
    let node = Node::start(config(&model, &tool, "", "")).await;
    let id = begin(&node).await;
    node.until_said(&id, 3).await;
    node.cancel(&id).await;
    let run = node.wait_final(&id).await;
    assert_promise(&node, &id).await;
    eventually("the model's socket is closed", async || (model.open() == 0).then_some(())).await;
    let reserved = node.events(&id).await.into_iter().find(|event| event.kind == "step.started").expect("a step");
    // A token is some four bytes; three of "t1 t2 t3 ".
    let [read, written, cost] = usage(&run["usage"]);
    assert_eq!((written, cost, &run["usage"]["estimated"]), (3, read + 6, &json!(true)), "{run}");
    assert!((1..=usage(&reserved.data["reserved"])[0]).contains(&read), "{run}");
}

#[tokio::test]
async fn a_model_ends_its_run_with_a_result() {
    let result = json!({"sum": 3, "of": [1, 2]});
    let script = Script::Calls(vec![wanted("complete", 0, json!({"result": result}))]);
    let (model, tool) = (FakeModel::start([script]).await, FakeTool::start([]).await);
    let node = Node::start(config(&model, &tool, "", "")).await;
    let id = begin(&node).await;
    let run = node.wait_final(&id).await;
    assert_eq!((&run["status"], &run["outcome"], &run["output"]), (&json!("completed"), &json!("finished"), &result));
    assert_log(&node.events(&id).await);
    assert_eq!(model.requests().len(), 1);
}

#[tokio::test]
async fn a_model_asks_a_person() {
    let ask = json!({"question": "Which one?", "options": ["red", "blue"]});
    let scripts = [Script::Calls(vec![wanted("ask", 0, ask)]), Script::Says("It is done.".to_owned())];
    let (model, tool) = (FakeModel::start(scripts).await, FakeTool::start([]).await);
    let mut node = Node::start(config(&model, &tool, "", "")).await;
    let id = begin(&node).await;
    let question = asked(&node, &id).await;
    assert_eq!((&question["for"], &question["prompt"]["question"]), (&json!("input"), &json!("Which one?")));
    assert_eq!(question["prompt"]["options"], json!(["red", "blue"]));
    node.kill9().await;
    node.restart().await;
    assert_eq!(answer(&node, &id, &question, json!("blue")).await.status, 200);
    completed(&node, &id, &model).await;
    assert_eq!(shown(&model), ["blue"]);
}

#[tokio::test]
async fn an_answer_that_does_not_follow_the_schema_is_asked_for_again() {
    let schema = r#"output_schema = '{"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}'"#;
    for (last, outcome) in [(r#"{"n": 7}"#, "finished"), (r#"{"n": "seven"}"#, "error")] {
        let scripts = ["seven", r#"{"n": null}"#, last].map(|text| Script::Says(text.to_owned()));
        let (model, tool) = (FakeModel::start(scripts).await, FakeTool::start([]).await);
        let node = Node::start(config(&model, &tool, schema, "")).await;
        let id = begin(&node).await;
        let run = node.wait_final(&id).await;
        assert_eq!(run["outcome"], outcome, "{run}");
        assert_log(&node.events(&id).await);
        let requests = model.requests();
        assert_eq!(requests.len(), 3);
        assert_eq!(requests[0].body["response_format"]["type"], "json_schema");
        let told = requests[2].body["messages"].as_array().unwrap().last().unwrap();
        assert!(told["content"].as_str().unwrap().contains("not what was asked for: /n: "), "{told}");
        match outcome {
            "finished" => assert_eq!(run["output"], json!({"n": 7})),
            _ => assert_eq!(run["error"]["code"], "invalid_output"),
        }
    }
}

#[tokio::test]
async fn a_plan_is_shown_carried_out_and_revised() {
    let task = |task: &str, status: &str| json!({"task": task, "status": status});
    let revised = json!([task("Look.", "done"), task("Ask.", "dropped"), task("Tell.", "active")]);
    let scripts = [
        Script::Says(r#"{"tasks": ["Look.", "Tell."]}"#.to_owned()),
        act(0),
        Script::Calls(vec![wanted("update_plan", 1, json!({"tasks": revised}))]),
        Script::Says("It is done.".to_owned()),
    ];
    let (model, tool) = (FakeModel::start(scripts).await, FakeTool::start([Reply::Gives("done")]).await);
    let mut node = Node::start(config(&model, &tool, "plan = true", "needs_approval = true")).await;
    let id = begin(&node).await;
    let question = asked(&node, &id).await;
    node.kill9().await;
    node.restart().await;
    answer(&node, &id, &question, json!(true)).await;
    let run = node.wait_final(&id).await;
    assert_eq!((&run["status"], &run["output"]), (&json!("completed"), &json!("It is done.")), "{run}");
    assert_promise(&node, &id).await;
    let events = node.events(&id).await;
    let plans: Vec<_> =
        events.iter().filter(|event| event.kind == "plan.updated").map(|event| &event.data["plan"]).collect();
    assert_eq!(plans, [&json!([task("Look.", "pending"), task("Tell.", "pending")]), &revised]);
    assert_eq!(model.requests().len(), 4, "the plan is not made again");
}

#[tokio::test]
async fn a_model_that_goes_round_in_circles_is_stopped() {
    let (model, tool) = (worker(50).await, FakeTool::start([Reply::Gives("done")]).await);
    let node = Node::start(config(&model, &tool, "max_steps = 6", "")).await;
    let id = begin(&node).await;
    let run = node.wait_final(&id).await;
    assert_eq!((&run["status"], &run["outcome"]), (&json!("completed"), &json!("max_steps")), "{run}");
    assert_promise(&node, &id).await;
    assert_eq!((model.requests().len(), tool.calls().len()), (3, 3));
}

#[tokio::test]
async fn calls_of_one_answer_are_made_at_once_where_that_is_allowed() {
    let calls = (0..3).map(|number| wanted("act", number, json!({"number": number}))).collect();
    let scripts = [Script::Calls(calls), Script::Says("It is done.".to_owned())];
    let (model, tool) = (FakeModel::start(scripts).await, FakeTool::start([Reply::Meets(3)]).await);
    let node = Node::start(config(&model, &tool, "parallel_tools = true", "")).await;
    let id = begin(&node).await;
    completed(&node, &id, &model).await;
    assert_eq!(tool.keys().into_values().collect::<Vec<_>>(), [1; 3]);
    assert_eq!(shown(&model), ["met"; 3]);
}

#[tokio::test]
async fn of_calls_at_once_only_those_are_repeated_that_were_cut_off() {
    let calls = (0..3).map(|number| wanted("act", number, json!({"number": number}))).collect();
    let scripts = [Script::Calls(calls), Script::Says("It is done.".to_owned())];
    let model = FakeModel::start(scripts).await;
    let mut first = true;
    let tool = FakeTool::by(move |body| {
        let hangs = body["number"] == 0 && std::mem::take(&mut first);
        if hangs { Reply::Hangs } else { Reply::Gives("done") }
    })
    .await;
    let mut node = Node::start(config(&model, &tool, "parallel_tools = true", "")).await;
    let id = begin(&node).await;
    let others = async || (finished(&node.events(&id).await) == 3).then_some(());
    eventually("the model's step and two calls are finished", others).await;
    node.kill9().await;
    node.restart().await;
    completed(&node, &id, &model).await;
    let mut times: Vec<_> = tool.keys().into_values().collect();
    times.sort_unstable();
    assert_eq!(times, [1, 1, 2]);
    assert_eq!(shown(&model), ["done"; 3]);
}

/// Waits until the run has ended as its fallback says it.
async fn fell_back(node: &Node, id: &str, output: &str) {
    let run = node.wait_final(id).await;
    assert_eq!((&run["status"], &run["outcome"]), (&json!("completed"), &json!("fallback")), "{run}");
    assert_eq!((&run["output"], &run["attempt"]), (&json!(output), &json!(1)), "{run}");
    assert_promise(node, id).await;
}

#[tokio::test]
async fn a_fallback_answers_where_the_provider_is_away_and_the_node_says_so() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = nobody.local_addr().unwrap();
    drop(nobody);
    let agent = |name: &str, model: &str| {
        format!(
            "[agents.{name}]\nkind = \"model\"\nmodel = \"{model}\"\nfallback_reply = \"Nobody is here: {{input}}\"\n"
        )
    };
    let node = Node::start(format!(
        "[providers.gone]\nbase_url = \"http://{address}/v1\"\n{}{}",
        agent("away", "gone/small"),
        agent("keyless", "openai/gpt-4o-mini"),
    ))
    .await;
    // That a key is missing is known before anybody asks.
    let fallbacks = node.get("/ready").await.json()["fallbacks"].clone();
    assert!(fallbacks["keyless"].is_string() && fallbacks["away"].is_null(), "{fallbacks}");
    for (name, why) in [("away", address.to_string()), ("keyless", "no key".to_owned())] {
        let id = node.create(json!({"agent": name, "input": "Help!"})).await;
        fell_back(&node, &id, "Nobody is here: Help!").await;
        let ready = node.get("/ready").await;
        assert_eq!(ready.status, 200, "{ready:?}");
        let fallbacks = &ready.json()["fallbacks"];
        assert!(fallbacks[name].as_str().is_some_and(|told| told.contains(&why)), "{fallbacks}");
        let logged = |event: &Event| event.kind == "log" && event.data["level"] == "warn";
        assert!(node.events(&id).await.iter().any(logged));
    }
}

#[tokio::test]
async fn what_a_model_has_said_before_its_fallback_answers_is_void() {
    let scripts = [Script::Cut(3), Script::Says("It is done.".to_owned())];
    let (model, tool) = (FakeModel::start(scripts).await, FakeTool::start([]).await);
    let node = Node::start(config(&model, &tool, "fallback_reply = \"Nobody is here.\"", "")).await;
    let id = begin(&node).await;
    fell_back(&node, &id, "Nobody is here.").await;
    assert!(node.get("/ready").await.json()["fallbacks"]["helper"].is_string());
    let id = begin(&node).await;
    assert_eq!(node.wait_final(&id).await["output"], "It is done.");
    assert_eq!(node.get("/ready").await.json()["fallbacks"], json!(null), "the model is there again");
}

#[tokio::test]
async fn a_run_that_has_begun_is_gone_on_with_and_no_fallback_answers() {
    let scripts = [act(0), Script::Refuse(503, "", "overloaded"), Script::Says("It is done.".to_owned())];
    let (model, tool) = (FakeModel::start(scripts).await, FakeTool::start([Reply::Gives("done")]).await);
    let node = Node::start(config(&model, &tool, "fallback_reply = \"Nobody is here.\"", "")).await;
    let id = begin(&node).await;
    let run = node.wait_final(&id).await;
    assert_eq!((&run["outcome"], &run["output"]), (&json!("finished"), &json!("It is done.")), "{run}");
    assert_promise(&node, &id).await;
    assert_eq!(tool.calls().len(), 1);
}

async fn retry(node: &Node, id: &str) -> String {
    let answer = node.post(&format!("/v1/runs/{id}/retry")).await;
    assert_eq!(answer.status, 202, "{answer:?}");
    assert_eq!(answer.json()["retry_of"], id);
    id_of(&answer.json())
}

#[tokio::test]
async fn a_retry_goes_on_behind_the_last_finished_step() {
    let scripts = [act(0), act(1), Script::Refuse(400, "", "no"), Script::Says("It is done.".to_owned())];
    let (model, tool) = (FakeModel::start(scripts).await, FakeTool::start([Reply::Gives("done")]).await);
    let node = Node::start(config(&model, &tool, "", "")).await;
    let failed = begin(&node).await;
    assert_eq!(node.wait_final(&failed).await["status"], "failed");
    let id = retry(&node, &failed).await;
    let run = node.wait_final(&id).await;
    assert_eq!((&run["status"], &run["output"]), (&json!("completed"), &json!("It is done.")), "{run}");
    assert_promise(&node, &id).await;
    assert_eq!(node.events(&id).await[0].data["steps_kept"], 4);
    assert_eq!((tool.calls().len(), model.requests().len()), (2, 4));
    assert_eq!(shown(&model), ["done"; 2]);
}

#[tokio::test]
async fn a_retry_knows_of_the_call_that_a_cancel_cut_off() {
    for (policy, times, told) in [("repeat", 2, "done"), ("fail", 1, "nobody knows whether it was done")] {
        let (model, tool) = (worker(1).await, FakeTool::start([Reply::Hangs, Reply::Gives("done")]).await);
        let node = Node::start(config(&model, &tool, "", &format!("on_cut_off = \"{policy}\""))).await;
        let cancelled = begin(&node).await;
        tool.until_called(1).await;
        node.cancel(&cancelled).await;
        assert_eq!(node.wait_final(&cancelled).await["status"], "cancelled");
        let id = retry(&node, &cancelled).await;
        completed(&node, &id, &model).await;
        assert_eq!(tool.keys().into_values().collect::<Vec<_>>(), [times], "{policy}");
        assert!(shown(&model)[0].contains(told), "{:?}", shown(&model));
    }
}

#[tokio::test]
async fn secrets_are_shown_nowhere_whatever_providers_and_tools_answer() {
    const KEY: &str = "canary-key-8c1b7e20";
    const TOKEN: &str = "canary-token-3fd94a61";
    let done = || Script::Says("It is done.".to_owned());
    let refusal = |status| Script::Refuse(status, "", "Incorrect API key provided: canary-key-8c1b7e20");
    // The secret without the word before it.
    let alone = Reply::Gives("you sent nothing but canary-token-3fd94a61");
    let scripts = [act(0), done(), act(0), done(), act(0), done(), refusal(401), refusal(400), refusal(503)];
    let tool = FakeTool::start([Reply::Echoes(200), Reply::Echoes(500), Reply::Echoes(500), alone]).await;
    let model = FakeModel::start(scripts).await;
    let secret = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(secret.path(), format!("{TOKEN}\n")).unwrap();
    let of_tool = format!("headers = [\"Authorization=Bearer file:{}\"]\nretries = 1", secret.path().display());
    let config = config(&model, &tool, "", &of_tool).replace("max_attempts = 100", "max_attempts = 2");
    let mut options = Options::from(config.replace("prices", "api_key = \"env:MY_KEY\"\nprices"));
    options.env = vec![("MY_KEY", KEY.to_owned()), ("RUNCAST_LOG_LEVEL", "trace".to_owned())];
    let node = Node::start(options).await;
    let mut shown = Vec::new();
    for (status, told, hidden) in [
        ("completed", "you sent POST /act", "authorization: ***"),
        ("completed", "you sent POST /act", "authorization: ***"),
        ("completed", "you sent nothing but ", "nothing but ***"),
        ("failed", "provider_rejected_key", "check the key"),
        ("failed", "provider_rejected", "Incorrect API key provided: [key]"),
        ("failed", "provider_unavailable", "Incorrect API key provided: [key]"),
    ] {
        let id = begin(&node).await;
        let run = node.wait_final(&id).await;
        assert_eq!(run["status"], status, "{run}");
        let events = node.get(&format!("/v1/runs/{id}/events?limit=200")).await.text();
        assert!(events.contains(told) && events.contains(hidden), "{told}: {events}");
        shown.extend([run.to_string(), events, node.get(&format!("/v1/runs/{id}/stream")).await.text()]);
    }
    let sent = tool.calls();
    assert!(sent.iter().all(|call| call.header("authorization") == Some(&format!("Bearer {TOKEN}"))), "{sent:?}");
    assert_eq!(model.requests()[0].header("authorization"), Some(&*format!("Bearer {KEY}")));
    let config = finished_process(node.directory(), &["config"], &[("MY_KEY", KEY)]).await;
    assert_eq!(config.code, Some(0), "{config:?}");
    for path in ["/metrics", "/ready", "/v1/agents", "/v1/models", "/v1/nodes", "/v1/runs", "/v1/dead-letters"] {
        shown.push(node.get(path).await.text());
    }
    shown.extend([node.log(), config.out, config.err]);
    let told: Vec<_> = model.requests().iter().map(|request| request.body.to_string()).collect();
    for canary in [KEY, TOKEN] {
        let found: Vec<_> = shown.iter().chain(&told).filter(|text| text.contains(canary)).collect();
        assert!(found.is_empty(), "{canary}: {found:?}");
        assert_not_in_files(node.directory(), canary);
    }
}

#[tokio::test]
async fn a_model_that_was_talked_into_it_reaches_nothing_but_its_endpoint() {
    const PLACES: [&str; 8] = [
        "http://169.254.169.254/latest/meta-data/",
        "file:///etc/passwd",
        "http://127.0.0.1/",
        "@169.254.169.254/",
        "//169.254.169.254/",
        "../../etc/passwd",
        "x?next=http://[::1]/#",
        "x HTTP/1.1\r\nhost: 169.254.169.254\r\n\r\n",
    ];
    let calls = |tool: &'static str| {
        let wants = |(number, place): (usize, &&str)| wanted(tool, number, json!({"place": place}));
        [Script::Calls(PLACES.iter().enumerate().map(wants).collect()), Script::Says("It is done.".to_owned())]
    };
    // What is allowed is the endpoint, and arguments are no more than parts of its path.
    let (model, tool) = (FakeModel::start(calls("act")).await, FakeTool::start([Reply::Gives("done")]).await);
    let url = tool.url();
    let parameters = r#"{"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]}"#;
    let of_tool = format!("parameters = '{parameters}'");
    let config = config(&model, &tool, "", &of_tool).replace(&url, &format!("{url}/{{place}}"));
    let node = Node::start(config).await;
    completed(&node, &begin(&node).await, &model).await;
    let requests = tool.calls();
    let reached = shown(&model).iter().filter(|told| *told == "done").count();
    assert!(requests.len() == reached && shown(&model).len() == PLACES.len(), "{:?}", shown(&model));
    for call in &requests {
        let (line, _) = call.head.split_once("\r\n").unwrap();
        let path = line.strip_prefix("POST /act/").and_then(|rest| rest.strip_suffix(" HTTP/1.1"));
        assert!(path.is_some_and(|path| !path.contains(['/', '?', ' ', '#'])), "{line}");
        assert_eq!(call.header("host"), Some(tool.address()), "{}", call.head);
    }
    // What is not allowed is not even connected to, wherever its name leads.
    let port = tool.address().rsplit(':').next().unwrap();
    let accepted = tool.accepted();
    for host in [format!("127.0.0.1:{port}"), format!("localhost:{port}"), "169.254.169.254".to_owned()] {
        let model = FakeModel::start(calls("inside")).await;
        let node = Node::start(format!(
            "[providers.fake]\nbase_url = \"{}\"\n[tools.inside]\nurl = \"https://{host}/{{place}}\"\n\
             {of_tool}\n\
             [agents.helper]\nkind = \"model\"\nmodel = \"fake/small\"\ntools = [\"inside\"]\n",
            model.base_url()
        ))
        .await;
        completed(&node, &begin(&node).await, &model).await;
        let told = shown(&model);
        assert_eq!(told.len(), PLACES.len());
        assert!(
            told.iter().all(|told| told.contains("tools.inside.allow") || told.contains("another path")),
            "{told:?}"
        );
    }
    assert_eq!(tool.accepted(), accepted);
}
