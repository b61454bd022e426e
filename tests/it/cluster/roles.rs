//! API and workers apart: any viewer on any node sees the same log, and a cancel reaches whoever executes.

use std::time::Duration;

use serde_json::json;

use super::{Cluster, Kind, on_both_brokers};
use crate::harness::{Node, Options, assert_promise, eventually, finished_process};

async fn any_api_node_shows_what_any_worker_executes(kind: Kind) {
    let Some(cluster) = Cluster::start(kind, 2, 2).await else { return };
    let [first, second] = &cluster.apis[..] else { unreachable!() };
    let talking = json!({"agent": "scripted", "input": "x", "params": {"tokens": 60, "delay_ms": 5}});
    let id = first.create(talking).await;
    let mut before = first.stream(&id).await;
    let mut elsewhere = second.stream(&id).await;
    let mut seen = before.through(|event| event.text() == "t20 ").await;
    let mut during = second.stream(&id).await;
    let middle = seen.last().unwrap().seq;
    let mut from_there = second.stream_after(&id, middle).await;
    seen.extend(before.rest().await);
    assert_eq!(elsewhere.rest().await, seen);
    assert_eq!(during.rest().await, seen);
    assert_eq!(from_there.rest().await, seen[middle as usize..]);
    assert_eq!(second.stream(&id).await.rest().await, seen, "after the end");
    let run = second.wait_final(&id).await;
    let node = seen.iter().find(|event| event.kind == "run.started").unwrap().data["node"].clone();
    assert_eq!((&run["status"], run["node"].is_null() || run["node"] == node), (&json!("completed"), true));
    assert_promise(first, &id).await;
    assert_promise(second, &id).await;
    // A worker answers about itself alone.
    assert_eq!(cluster.workers[0].get("/v1/runs").await.status, 404);
    assert_eq!(cluster.workers[0].get("/health").await.status, 200);
}

async fn a_cancel_reaches_the_worker_that_executes(kind: Kind) {
    let Some(cluster) = Cluster::start(kind, 2, 1).await else { return };
    let [first, second] = &cluster.apis[..] else { unreachable!() };
    let hanging = json!({"agent": "scripted", "input": "x", "params": {"tokens": 1, "hang_at": 1}});
    let id = first.create(hanging.clone()).await;
    second.until(&id, &["running"]).await;
    let mut viewer = first.stream(&id).await;
    assert_eq!(second.cancel(&id).await.status, 202);
    assert_eq!(viewer.rest().await.last().unwrap().kind, "run.cancelled");
    assert_eq!(assert_promise(second, &id).await.attempts, [1]);
    // Its last viewer, on whichever node, is the one that counts.
    let mut watched = hanging;
    watched["on_disconnect"] = json!("cancel");
    let id = first.create(watched).await;
    let (here, there) = (first.stream(&id).await, second.stream(&id).await);
    drop(here);
    // Nothing may happen, for longer than the grace and the question to the other nodes take together.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(second.run(&id).await["status"], "running");
    drop(there);
    assert_eq!(second.wait_final(&id).await["status"], "cancelled");
}

async fn nodes_know_each_other_and_what_does_not_fit(kind: Kind) {
    let Some(cluster) = Cluster::start(kind, 1, 1).await else { return };
    let api = &cluster.apis[0];
    let nodes = eventually("both are seen, and have seen the store", async || {
        let nodes = api.get("/v1/nodes").await.json()["data"].as_array().unwrap().clone();
        let known = nodes.iter().filter(|node| node["fingerprint"]["store"].is_string());
        (known.count() == 2).then_some(nodes)
    })
    .await;
    let worker = nodes.iter().find(|node| node["role"] == "worker").unwrap();
    assert_eq!((&worker["disagreements"], &worker["agents"][0]["agent"]), (&json!([]), &json!("scripted")));
    assert_eq!(
        worker["fingerprint"]["store"],
        nodes.iter().find(|node| node["role"] == "api").unwrap()["fingerprint"]["store"]
    );

    let mut options = cluster.options("worker");
    options.env.push(("ENV_MODE", "production".to_owned()));
    let stranger = Node::start(options).await;
    let ready = eventually("it says what does not fit", async || {
        let ready = stranger.get("/ready").await;
        ready.json()["parts"]["agreement"].as_str().is_some_and(|text| text != "ok").then_some(ready)
    })
    .await;
    assert_eq!(ready.status, 503);
    let problem = ready.json()["parts"]["agreement"].as_str().unwrap().to_owned();
    assert!(problem.contains("mode: this node has production, the store was set up with local"), "{problem}");
    assert!(stranger.log().contains("mode: this node has production"), "{}", stranger.log());

    // A worker without a provider's key leaves its agent to others, and the API knows.
    let keyless = "[agents.writer]\nkind = \"model\"\nmodel = \"openai/gpt\"\n";
    let mut other = Node::start(cluster.options_with("api", keyless)).await;
    let _lacking = Node::start(cluster.options_with("worker", keyless)).await;
    let refused = eventually("what all lack is known", async || {
        let answer = other.post_json("/v1/runs", &json!({"agent": "writer", "input": "x"})).await;
        (answer.status == 503).then_some(answer)
    })
    .await;
    assert!(refused.assert_problem(503, "agent_unavailable").contains("provider openai has no key"));

    let env: Vec<_> = cluster.options("all").env;
    let env: Vec<_> = env.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let doctor = finished_process(other.directory(), &["doctor"], &env).await;
    assert!(doctor.out.contains("mode: this node has production") && doctor.code == Some(1), "{doctor:?}");
    assert!(!doctor.out.contains("hush"), "{doctor:?}");
    other.kill9().await;
}

async fn a_node_starts_without_its_services_and_finds_them(kind: Kind) {
    let Some(cluster) = Cluster::start(kind, 0, 0).await else { return };
    cluster.services.kill_broker();
    cluster.services.postgres.kill();
    let Options { config, env, .. } = cluster.options("all");
    let node = Node::start(Options { config, env, flags: Vec::new() }).await;
    assert_eq!(node.get("/health").await.status, 200);
    let ready = node.get("/ready").await;
    assert_eq!(ready.status, 503);
    let parts = ready.json()["parts"].clone();
    assert!(parts["store"] != "ok" && parts["broker"] != "ok", "{parts}");
    let body = json!({"agent": "scripted", "input": "hello there"});
    let refused = node.post_json("/v1/runs", &body).await;
    refused.assert_problem(503, "store_unavailable");
    assert!(refused.header("retry-after").parse::<u32>().is_ok_and(|seconds| seconds > 0), "{refused:?}");
    // With the store alone runs are accepted, and even executed.
    cluster.services.postgres.run().await;
    let id = eventually("runs are accepted", async || {
        let answer = node.post_json("/v1/runs", &body).await;
        (answer.status == 202).then(|| crate::harness::id_of(&answer.json()))
    })
    .await;
    assert_eq!(node.wait_final(&id).await["status"], "completed");
    cluster.services.run_broker().await;
    eventually("everything is there", async || (node.get("/ready").await.status == 200).then_some(())).await;
    let id = node.create(body).await;
    assert_eq!(node.wait_final(&id).await["status"], "completed");
    for secret in ["hush", "guest:guest"] {
        assert!(!node.log().contains(secret), "{}", node.log());
    }
}

on_both_brokers! {
    any_api_node_shows_what_any_worker_executes
    a_cancel_reaches_the_worker_that_executes
    nodes_know_each_other_and_what_does_not_fit
    a_node_starts_without_its_services_and_finds_them
}
