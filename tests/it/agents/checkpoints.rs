//! What is finished is kept, and what is cut off follows its policy, whatever happens to the node.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

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
