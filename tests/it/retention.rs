//! What ended long ago is removed, and what is asked of it then.

use reqwest::Method;
use serde_json::json;
use uuid::Uuid;

use crate::harness::{Node, eventually};

/// Keeps runs for so short that a test can wait for it.
const SHORT: &str = "retention.runs = \"1s\"\nretention.interval = \"100ms\"\nretention.batch = 3";

#[tokio::test]
async fn runs_are_removed_so_long_after_their_end_and_are_gone_then() {
    let node = Node::start(SHORT).await;
    let talking = json!({"agent": "scripted", "input": "x", "params": {"tokens": 40, "delay_ms": 50}});
    let long = node.create(talking).await;
    let mut short = Vec::new();
    for _ in 0..10 {
        short.push(node.create(json!({"agent": "scripted", "input": "x", "params": {"tokens": 3}})).await);
    }
    let failed = node
        .create(json!({"agent": "scripted", "input": "x", "max_attempts": 1, "params": {"tokens": 3, "fail_at": 1}}))
        .await;
    short.push(failed.clone());
    let mut viewer = node.stream(&long).await;
    let mut seen = viewer.through(|event| event.kind == "message.delta").await;
    for id in &short {
        let answer = eventually("the run is removed", async || {
            let answer = node.get(&format!("/v1/runs/{id}")).await;
            (answer.status != 200).then_some(answer)
        })
        .await;
        answer.assert_problem(410, "gone");
        for path in ["stream", "stream?after=5", "events", "wait"] {
            node.get(&format!("/v1/runs/{id}/{path}")).await.assert_problem(410, "gone");
        }
        node.cancel(id).await.assert_problem(410, "gone");
        node.post(&format!("/v1/runs/{id}/retry")).await.assert_problem(410, "gone");
        let answer = json!({"wait_id": "w1", "input": "x"});
        node.post_json(&format!("/v1/runs/{id}/resume"), &answer).await.assert_problem(410, "gone");
        node.delete(&format!("/v1/runs/{id}")).await.assert_problem(410, "gone");
    }
    node.get(&format!("/v1/queues/dead/{failed}")).await.assert_problem(404, "not_found");
    // It counts from the end: who runs for longer than that is kept, and seen to the end.
    seen.extend(viewer.rest().await);
    assert_eq!(seen.last().map(|event| event.kind.as_str()), Some("run.completed"));
    assert_eq!(node.stream_status(&long, seen.last().unwrap().seq).await, 204);
    node.get(&format!("/v1/runs/{}", Uuid::now_v7())).await.assert_problem(404, "not_found");
    eventually("the last run is removed, too", async || {
        node.get("/v1/runs").await.json()["data"].as_array().unwrap().is_empty().then_some(())
    })
    .await;
    node.get(&format!("/v1/runs/{long}/stream")).await.assert_problem(410, "gone");
    eventually("memory holds nothing of them", async || (node.metric("runcast_logs").await == 0.0).then_some(())).await;
}

#[tokio::test]
async fn a_key_is_free_again_with_its_run_and_without_retention_runs_stay() {
    let node = Node::start(SHORT).await;
    let kept = Node::start("retention.runs = \"0s\"\nretention.interval = \"100ms\"").await;
    let create = async |node: &Node, tokens: u64| {
        let body = json!({"agent": "scripted", "input": "x", "params": {"tokens": tokens}});
        let request = node.request(Method::POST, "/v1/runs").header("idempotency-key", "k").json(&body);
        node.send(request).await
    };
    assert_eq!(create(&kept, 1).await.status, 202);
    assert_eq!(create(&node, 1).await.status, 202);
    create(&node, 2).await.assert_problem(409, "idempotency_key_reused");
    eventually("the key is free", async || (create(&node, 2).await.status == 202).then_some(())).await;
    create(&kept, 2).await.assert_problem(409, "idempotency_key_reused");
    kept.get("/v1/runs/00000000-0000-7000-8000-000000000000").await.assert_problem(404, "not_found");
}
