//! Cancelling, for real.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::harness::{DEADLINE, FakeModel, Node, Script, assert_log, assert_promise, eventually};

fn hanging() -> Value {
    json!({"agent": "scripted", "input": "x", "params": {"tokens": 3, "hang_at": 3}})
}

/// Cancels a run and checks what it leads to; says how many attempts it had begun.
async fn cancel(node: &Node, id: &str) -> usize {
    let mut viewer = node.stream(id).await;
    let answer = node.cancel(id).await;
    assert!([200, 202].contains(&answer.status.as_u16()), "{answer:?}");
    let run = node.wait_final(id).await;
    assert_eq!((&run["status"], &run["outcome"]), (&json!("cancelled"), &json!("cancelled")));
    assert_eq!((&run["due_at"], &run["reason"], &run["error"]), (&Value::Null, &Value::Null, &Value::Null));
    let seen = viewer.rest().await;
    assert_eq!(assert_log(&seen).ending.as_deref(), Some("run.cancelled"), "the viewer sees it");
    // Twice, and often, is no error.
    for _ in 0..3 {
        let again = node.cancel(id).await;
        assert_eq!((again.status.as_u16(), &again.json()["status"]), (200, &json!("cancelled")));
    }
    assert_eq!(node.events(id).await, seen);
    assert_promise(node, id).await.attempts.len()
}

#[tokio::test]
async fn a_queued_run_is_cancelled_at_once_and_never_starts() {
    let node = Node::start("worker.concurrency = 1").await;
    let blocking = node.create(hanging()).await;
    node.until(&blocking, &["running"]).await;
    let id = node.create(hanging()).await;
    assert_eq!(cancel(&node, &id).await, 0);
    node.cancel(&blocking).await;
    // Whatever was to start has started before a run that comes later.
    let later = node.create(json!({"agent": "scripted", "input": "x"})).await;
    node.wait_final(&later).await;
    assert_eq!(node.run(&id).await["attempt"], 0);
}

#[tokio::test]
async fn a_delayed_run_is_cancelled_and_its_timer_with_it() {
    let node = Node::start("").await;
    let id = node.create(json!({"agent": "scripted", "input": "x", "delay_ms": 1_000})).await;
    assert_eq!(cancel(&node, &id).await, 0);
    let later = node.create(json!({"agent": "scripted", "input": "x", "delay_ms": 1_000})).await;
    node.wait_final(&later).await;
    assert_eq!(node.run(&id).await["status"], "cancelled");
    assert_eq!(node.metric("runcast_stale_timers_total").await, 0.0, "the timer was disarmed");
}

#[tokio::test]
async fn a_running_run_is_cancelled() {
    let node = Node::start("").await;
    let id = node.create(hanging()).await;
    node.until_said(&id, 2).await;
    assert_eq!(cancel(&node, &id).await, 1);
    assert_eq!(node.metric("runcast_runs{status=\"running\"}").await, 0.0);
}

#[tokio::test]
async fn a_run_that_is_backing_off_is_cancelled() {
    let node = Node::start("runs.backoff_base = \"1m\"").await;
    let params = json!({"tokens": 2, "fail_at": 2});
    let id = node.create(json!({"agent": "scripted", "input": "x", "params": params})).await;
    let run = node.until(&id, &["scheduled"]).await;
    assert_eq!(run["reason"], "backoff");
    assert_eq!(cancel(&node, &id).await, 1);
}

#[tokio::test]
async fn cancelling_a_run_that_has_ended_is_no_error_and_changes_nothing() {
    let node = Node::start("").await;
    for (params, status) in
        [(json!({"tokens": 2}), "completed"), (json!({"tokens": 2, "fail_at": 1, "error": "permanent"}), "failed")]
    {
        let id = node.create(json!({"agent": "scripted", "input": "x", "params": params})).await;
        let before = node.wait_final(&id).await;
        let answer = node.cancel(&id).await;
        assert_eq!((answer.status.as_u16(), &answer.json()["status"]), (200, &json!(status)));
        assert_eq!(node.run(&id).await, before);
    }
}

#[tokio::test]
async fn a_run_can_be_cancelled_at_every_moment_of_its_start() {
    let node = Node::start("").await;
    let one = async |pause: u64| {
        let id = node.create(hanging()).await;
        tokio::time::sleep(Duration::from_micros(pause * 150)).await;
        let answer = node.cancel(&id).await;
        assert!([200, 202].contains(&answer.status.as_u16()), "{answer:?}");
        assert_eq!(node.wait_final(&id).await["status"], "cancelled");
        assert_promise(&node, &id).await;
    };
    for round in 0..8 {
        join_all((0..10).map(|number| one(round * 10 + number))).await;
    }
}

#[tokio::test]
async fn runs_that_start_together_can_be_cancelled_while_they_do() {
    let node = Node::start("").await;
    for round in 0..8_u64 {
        let mut body = hanging();
        body["delay_ms"] = json!(120);
        let runs = join_all((0..60).map(|_| node.create(body.clone()))).await;
        let started = node.stream(&runs[0]).await.through(|event| event.kind == "run.queued").await;
        assert_eq!(started.len(), 3);
        tokio::time::sleep(Duration::from_micros(round * 700)).await;
        let answers = join_all(runs.iter().map(|id| node.cancel(id))).await;
        assert!(answers.iter().all(|answer| [200, 202].contains(&answer.status.as_u16())), "{answers:?}");
        for id in &runs {
            assert_eq!(node.wait_final(id).await["status"], "cancelled");
            assert_promise(&node, id).await;
        }
    }
}

#[tokio::test]
async fn a_cancel_that_races_the_end_leaves_one_ending_on_which_all_agree() {
    let node = Node::start("").await;
    let one = async |number: u64| {
        let params = json!({"tokens": 12});
        let body = json!({"agent": "scripted", "input": "x", "params": params, "delay_ms": 60});
        let id = node.create(body).await;
        let mut live = node.stream(&id).await;
        let mut seen = live.through(|event| event.kind == "run.queued").await;
        let race = async {
            tokio::time::sleep(Duration::from_micros(number * 977 % 6_000)).await;
            node.cancel(&id).await
        };
        let (answer, rest) = tokio::join!(race, live.rest());
        assert!([200, 202].contains(&answer.status.as_u16()), "{answer:?}");
        seen.extend(rest);
        let run = node.wait_final(&id).await;
        let status = run["status"].as_str().unwrap().to_owned();
        assert!(["completed", "cancelled"].contains(&status.as_str()), "{run}");
        assert_eq!(assert_log(&seen).ending, Some(format!("run.{status}")), "run {id}: the live viewer");
        assert_eq!(node.events(&id).await, seen, "run {id}: the log is what was shown");
        assert_promise(&node, &id).await;
        if answer.json()["status"] == "completed" {
            assert_eq!(status, "completed");
        }
        status
    };
    let mut endings = Vec::new();
    for round in 0..10 {
        endings.extend(join_all((0..40).map(|number| one(round * 40 + number))).await);
    }
    let cancelled = endings.iter().filter(|status| *status == "cancelled").count();
    println!("{cancelled} of {} runs were cancelled, the others were faster", endings.len());
}

#[tokio::test]
async fn a_cancel_closes_the_models_socket() {
    let model = FakeModel::start([Script::Hang(3)]).await;
    let node = Node::start(model.config("")).await;
    let mut slowest = Duration::ZERO;
    for _ in 0..5 {
        let id = node.create(json!({"agent": "writer", "input": "Say much."})).await;
        node.until_said(&id, 3).await;
        assert_eq!(model.open(), 1);
        let began = tokio::time::Instant::now();
        node.cancel(&id).await;
        eventually("the model's socket is closed", async || (model.open() == 0).then_some(())).await;
        let took = model.closed_at().unwrap().duration_since(began);
        assert!(took < Duration::from_secs(1), "after {took:?}");
        slowest = slowest.max(took);
        assert_eq!(node.wait_final(&id).await["status"], "cancelled");
        assert_promise(&node, &id).await;
    }
    println!("the model's socket was closed within {slowest:?} of the cancel, at the most");
}

#[tokio::test]
async fn a_cancel_reaches_a_model_that_has_not_answered_yet() {
    let model = FakeModel::start([Script::Tokens(1, DEADLINE * 2)]).await;
    let node = Node::start(model.config("")).await;
    let id = node.create(json!({"agent": "writer", "input": "x"})).await;
    eventually("the model was asked", async || (model.requests().len() == 1).then_some(())).await;
    node.cancel(&id).await;
    eventually("the model's socket is closed", async || (model.open() == 0).then_some(())).await;
    assert_eq!(node.wait_final(&id).await["status"], "cancelled");
}

#[tokio::test]
async fn a_timeout_closes_the_models_socket_too() {
    let model = FakeModel::start([Script::Hang(1)]).await;
    let node = Node::start(model.config("")).await;
    let id = node.create(json!({"agent": "writer", "input": "x", "timeout_ms": 300})).await;
    let run = node.wait_final(&id).await;
    assert_eq!((&run["status"], &run["error"]["code"]), (&json!("failed"), &json!("timeout")));
    eventually("the model's socket is closed", async || (model.open() == 0).then_some(())).await;
}
