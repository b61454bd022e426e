//! The model agent, on a provider that does what its script says.

use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{FakeModel, Node, Script, assert_promise, eventually, said};

const NOW: Duration = Duration::ZERO;

/// A node on a provider with these scripts, whose backoff is short.
async fn node_on(scripts: impl IntoIterator<Item = Script>) -> (FakeModel, Node) {
    let model = FakeModel::start(scripts).await;
    let node = Node::start(model.config("runs.backoff_base = \"10ms\"")).await;
    (model, node)
}

async fn write(node: &Node) -> (String, Value) {
    let id = node.create(json!({"agent": "writer", "input": "Say something."})).await;
    let run = node.wait_final(&id).await;
    (id, run)
}

#[tokio::test]
async fn tokens_are_streamed_as_they_come_and_usage_is_counted() {
    let (model, node) = node_on([Script::Tokens(12, Duration::from_millis(60))]).await;
    let id = node.create(json!({"agent": "writer", "input": "Say something.", "params": {"max_tokens": 9}})).await;
    node.until_said(&id, 2).await;
    assert_eq!(node.run(&id).await["status"], "running", "the first tokens come before the last");
    let run = node.wait_final(&id).await;
    assert_eq!((&run["status"], &run["outcome"]), (&json!("completed"), &json!("finished")), "{run}");
    assert_eq!((&run["usage"]["input_tokens"], &run["usage"]["output_tokens"]), (&json!(11), &json!(12)));
    assert_promise(&node, &id).await;
    let events = node.events(&id).await;
    let deltas = events.iter().filter(|event| event.kind == "message.delta").count();
    assert_eq!((deltas, said(&events)), (12, (1..=12).map(|number| format!("t{number} ")).collect()));
    for kind in ["step.started", "message.completed", "step.completed"] {
        assert_eq!(events.iter().filter(|event| event.kind == kind).count(), 1, "{kind}");
    }
    let request = &model.requests()[0];
    assert!(request.head.starts_with("POST /v1/chat/completions "), "{}", request.head);
    assert!(
        request.head.to_lowercase().contains("authorization: bearer a key that nobody must see"),
        "{}",
        request.head
    );
    let body = &request.body;
    assert_eq!((&body["model"], &body["stream"], &body["temperature"]), (&json!("small"), &json!(true), &json!(0.5)));
    assert_eq!(body["max_tokens"], 9, "the run's own goes before the agent's");
    let messages = json!([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say something."}]);
    assert_eq!(body["messages"], messages);
}

#[tokio::test]
async fn a_rejected_key_fails_at_once_with_words_that_help() {
    let message = "Incorrect API key provided: a key that nobody must see";
    let (model, node) = node_on([Script::Refuse(401, "", message)]).await;
    let (id, run) = write(&node).await;
    assert_eq!((&run["status"], &run["attempt"], &run["outcome"]), (&json!("failed"), &json!(1), &json!("error")));
    let said = run["error"]["message"].as_str().unwrap();
    assert!(said.contains("401") && said.contains("providers.fake.api_key"), "{said}");
    assert!(!run.to_string().contains("nobody must see"), "{run}");
    assert!(!node.log().contains("nobody must see"));
    assert_eq!(model.requests().len(), 1);
    assert_promise(&node, &id).await;
}

#[tokio::test]
async fn what_would_be_refused_again_is_not_tried_again() {
    for (status, message) in [(400, "max_tokens is too large"), (404, "no such model"), (422, "no"), (403, "not you")] {
        let (model, node) = node_on([Script::Refuse(status, "", message)]).await;
        let (id, run) = write(&node).await;
        assert_eq!((&run["status"], &run["attempt"]), (&json!("failed"), &json!(1)), "{run}");
        let said = run["error"]["message"].as_str().unwrap();
        assert!(said.contains(&status.to_string()) && said.contains(message), "{said}");
        assert_eq!(model.requests().len(), 1);
        assert_promise(&node, &id).await;
    }
}

#[tokio::test]
async fn a_provider_that_asks_to_wait_is_given_that_time() {
    let (model, node) = node_on([Script::Refuse(429, "retry-after: 1\r\n", "slow down"), Script::Tokens(2, NOW)]).await;
    let (id, run) = write(&node).await;
    assert_eq!((&run["status"], &run["attempt"]), (&json!("completed"), &json!(2)), "{run}");
    let requests = model.requests();
    let waited = requests[1].at.duration_since(requests[0].at);
    assert!(waited >= Duration::from_millis(990), "after {waited:?}");
    assert_eq!(assert_promise(&node, &id).await.retries, ["transient_error"]);
}

#[tokio::test]
async fn a_provider_that_fails_now_and_then_is_tried_again() {
    for failing in [
        Script::Refuse(500, "", "oops"),
        Script::Refuse(503, "", "overloaded"),
        Script::Refuse(408, "", "too late"),
        Script::Cut(0),
        Script::Cut(3),
        Script::Rubbish(3),
    ] {
        let (model, node) = node_on([failing.clone(), Script::Tokens(5, NOW)]).await;
        let (id, run) = write(&node).await;
        assert_eq!((&run["status"], &run["attempt"]), (&json!("completed"), &json!(2)), "{failing:?}: {run}");
        assert_eq!(run["output"], "t1 t2 t3 t4 t5 ", "{failing:?}: what the first attempt has said is void");
        assert_eq!(assert_promise(&node, &id).await.retries, ["transient_error"]);
        assert_eq!(model.requests().len(), 2);
    }
}

#[tokio::test]
async fn a_provider_that_always_fails_is_given_up_after_the_attempts() {
    let (model, node) = node_on([Script::Cut(2)]).await;
    let (id, run) = write(&node).await;
    assert_eq!((&run["status"], &run["outcome"]), (&json!("failed"), &json!("attempts_exhausted")), "{run}");
    assert_eq!(model.requests().len(), 3);
    assert_eq!(assert_promise(&node, &id).await.attempts, [1, 2, 3]);
    eventually("no socket is left open", async || (model.open() == 0).then_some(())).await;
}

#[tokio::test]
async fn a_provider_that_is_not_there_is_named() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = nobody.local_addr().unwrap();
    drop(nobody);
    let node = Node::start(format!(
        "runs.backoff_base = \"10ms\"\n[providers.gone]\nbase_url = \"http://{address}/v1\"\n\
         [agents.writer]\nkind = \"model\"\nmodel = \"gone/small\"\n"
    ))
    .await;
    let (id, run) = write(&node).await;
    assert_eq!((&run["status"], &run["outcome"]), (&json!("failed"), &json!("attempts_exhausted")), "{run}");
    assert!(run["error"]["message"].as_str().unwrap().contains(&address.to_string()), "{run}");
    assert_promise(&node, &id).await;
}

#[tokio::test]
async fn a_provider_that_falls_silent_is_given_up_after_its_idle_timeout() {
    let (model, node) = node_on([Script::Hang(2), Script::Tokens(2, NOW)]).await;
    let (id, run) = write(&node).await;
    assert_eq!((&run["status"], &run["attempt"]), (&json!("completed"), &json!(2)), "{run}");
    assert_promise(&node, &id).await;
    eventually("the silent socket is closed", async || (model.open() <= 1).then_some(())).await;
}

#[tokio::test]
async fn a_kill_while_the_model_talks_makes_the_call_again() {
    let (model, mut node) = node_on([Script::Hang(3), Script::Tokens(4, NOW)]).await;
    let id = node.create(json!({"agent": "writer", "input": "x"})).await;
    node.until_said(&id, 3).await;
    node.kill9().await;
    eventually("the socket went with the node", async || (model.open() == 0).then_some(())).await;
    node.restart().await;
    let run = node.wait_final(&id).await;
    assert_eq!((&run["output"], &run["attempt"]), (&json!("t1 t2 t3 t4 "), &json!(2)));
    assert_promise(&node, &id).await;
}

#[tokio::test]
async fn a_shutdown_closes_the_models_sockets_and_the_run_goes_on_later() {
    let model = FakeModel::start([Script::Hang(3), Script::Tokens(4, NOW)]).await;
    let mut node = Node::start(model.config("worker.drain_grace = \"0s\"")).await;
    let id = node.create(json!({"agent": "writer", "input": "x", "max_attempts": 1})).await;
    node.until_said(&id, 3).await;
    node.sigterm();
    assert_eq!(node.wait_exit().await.code(), Some(0));
    node.restart().await;
    assert_eq!(node.wait_final(&id).await["output"], "t1 t2 t3 t4 ");
    assert_eq!(assert_promise(&node, &id).await.retries, ["released"]);
}
