//! Agents that call tools: each call of a model or tool is made once and kept, whatever happens to the node.

mod budgets;
mod checkpoints;
mod fallback;
mod hostile;
mod talk;
mod tools;

use serde_json::{Value, json};

use crate::harness::{
    Answer, Event, FakeModel, FakeTool, Node, Options, Reply, Script, WRITTEN, Wanted, assert_log, assert_promise,
    eventually, finished_process, id_of,
};

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
