//! What an operator does: queues, dead letters, the doctor, migration, switches for maintenance.

use serde_json::{Value, json};

use crate::harness::{Finished, Node, Options, assert_promise, eventually, finished_process, is_embedded, stack_env};

/// Runs `runcast queues` against the node.
async fn queues(node: &Node, args: &[&str]) -> Finished {
    let url = format!("http://{}", node.address());
    let mut all = vec!["queues"];
    all.extend(args);
    all.extend(["--url", &url]);
    finished_process(node.directory(), &all, &[]).await
}

fn failing(at: u64) -> Value {
    json!({"agent": "scripted", "input": "x", "max_attempts": 1,
        "params": {"tokens": 6, "step_tokens": 2, "fail_at": at}})
}

#[tokio::test]
async fn failed_runs_are_dead_letters_that_are_shown_requeued_and_purged() {
    let node = Node::start("").await;
    let mut letters = Vec::new();
    for at in [3, 4, 5] {
        let id = node.create(failing(at)).await;
        node.until(&id, &["failed"]).await;
        letters.push(id);
    }
    let depths = node.get("/v1/queues").await.json();
    assert_eq!((&depths["failed"], &depths["pending"], &depths["processing"]), (&json!(3), &json!(0), &json!(0)));
    let shown = queues(&node, &[]).await;
    assert!(shown.out.lines().any(|line| line.split_whitespace().eq(["failed", "3"])), "{shown:?}");
    let listed = queues(&node, &["dead"]).await;
    for id in &letters {
        assert!(listed.out.contains(id.as_str()), "{listed:?}");
    }
    assert!(listed.out.contains("scripted_transient: the script fails at token 3"), "{listed:?}");
    let one = queues(&node, &["show", &letters[0], "--json"]).await;
    let one: Value = serde_json::from_str(&one.out).expect("one object");
    assert_eq!((&one["source"], &one["run_id"]), (&json!("run"), &json!(letters[0])));
    let pages = node.get("/v1/queues/dead?limit=2").await.json();
    let rest = node.get(&format!("/v1/queues/dead?cursor={}", pages["next_cursor"].as_str().unwrap())).await.json();
    assert_eq!((pages["data"].as_array().unwrap().len(), rest["data"].as_array().unwrap().len()), (2, 1));

    // A new run, which goes on from the last finished step; the one that failed stays as it is.
    let requeued = queues(&node, &["requeue", &letters[0], "--json"]).await;
    let run: Value = serde_json::from_str(&requeued.out).unwrap_or_else(|error| panic!("{error}: {requeued:?}"));
    assert_eq!(run["retry_of"], json!(letters[0]));
    let again = run["id"].as_str().unwrap();
    node.until(again, &["failed"]).await;
    assert_promise(&node, again).await;
    let kinds: Vec<_> = node.events(again).await.into_iter().map(|event| event.kind).collect();
    assert!(!kinds.contains(&"step.completed".to_owned()), "the first step is not made again: {kinds:?}");
    assert_eq!(node.run(&letters[0]).await["status"], "failed");
    assert_eq!(queues(&node, &["show", &letters[0]]).await.code, Some(2), "its letter is gone");

    assert_eq!(queues(&node, &["purge", &letters[1]]).await.out, "removed 1\n");
    assert_eq!(queues(&node, &["purge", "--all"]).await.out, "removed 2\n");
    assert_eq!(node.get("/v1/queues").await.json()["failed"], 0);
    assert_eq!(node.run(&letters[2]).await["status"], "failed", "the runs stay");
    node.post(&format!("/v1/queues/dead/{}/requeue", letters[1])).await.assert_problem(404, "not_found");
}

#[tokio::test]
async fn the_depths_tell_what_waits_where() {
    let node = Node::start("worker.enabled = false").await;
    for priority in [0, -5, 7] {
        node.create(json!({"agent": "scripted", "input": "x", "priority": priority})).await;
    }
    node.create(json!({"agent": "scripted", "input": "x", "delay_ms": 600_000})).await;
    let depths = node.get("/v1/queues").await.json();
    let expected = json!({"pending": 2, "high_priority": 1, "processing": 0, "retry": 0, "scheduled": 1, "waiting": 0,
        "failed": 0, "tenants": [{"tenant": "default", "queued": 3, "running": 0}]});
    assert_eq!(depths, expected);
}

#[tokio::test]
async fn clients_are_turned_away_and_work_is_left_while_it_is_switched_off() {
    let mut node = Node::start("").await;
    let id = node.create(json!({"agent": "scripted", "input": "x", "delay_ms": 300})).await;
    node.kill9().await;
    let off = vec![("DISABLE_CONNECTIONS", "true".to_owned()), ("DISABLE_WORKERS", "true".to_owned())];
    node.restart_with(Options { env: off, ..Options::default() }).await;
    let refused = node.post_json("/v1/runs", &json!({"agent": "scripted", "input": "x"})).await;
    refused.assert_problem(503, "connections_disabled");
    assert!(refused.headers.contains_key("retry-after"), "{refused:?}");
    for open in ["/health", "/metrics", "/v1/nodes"] {
        assert_eq!(node.get(open).await.status, 200, "{open}");
    }
    node.kill9().await;
    let idle = vec![("DISABLE_WORKERS", "1".to_owned())];
    node.restart_with(Options { env: idle, ..Options::default() }).await;
    eventually("it is due, and queued", async || (node.run(&id).await["status"] == "queued").then_some(())).await;
    node.kill9().await;
    node.restart_with(Options::default()).await;
    assert_eq!(node.wait_final(&id).await["status"], "completed");
}

#[tokio::test]
async fn the_doctor_finds_nothing_wrong_where_nothing_is() {
    let node = Node::start("").await;
    let id = node.create(failing(1)).await;
    node.until(&id, &["failed"]).await;
    let env = stack_env(node.directory()).await;
    let env: Vec<_> = env.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let doctor = finished_process(node.directory(), &["doctor", "--data", "data"], &env).await;
    assert_eq!(doctor.code, Some(0), "{doctor:?}");
    assert!(!doctor.out.contains("WRONG"), "{doctor:?}");
    if is_embedded() {
        assert!(doctor.out.contains("in use by process"), "{doctor:?}");
    } else {
        for told in ["failed 1", "runcast queues dead", "schema", "clocks", "0 of 1024 runs"] {
            assert!(doctor.out.contains(told), "{told} is missing: {doctor:?}");
        }
    }
    let migrated = finished_process(node.directory(), &["migrate", "--data", "other"], &env).await;
    assert_eq!(migrated.code, Some(0), "{migrated:?}");
    assert!(migrated.out.contains("schema version") && migrated.out.contains("mode local"), "{migrated:?}");
}

#[tokio::test]
async fn the_doctor_says_what_cannot_be_reached_and_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let env = [
        ("REDIS_URL", "redis://:hush@127.0.0.1:1"),
        ("DATABASE_URL", "postgres://me:hush@127.0.0.1:1/db"),
        ("RUNCAST_POSTGRES_CONNECT_TIMEOUT", "500ms"),
    ];
    let doctor = finished_process(directory.path(), &["doctor"], &env).await;
    assert_eq!(doctor.code, Some(1), "{doctor:?}");
    for told in ["WRONG  store", "see that PostgreSQL is running", "WRONG  broker", "see that it is running"] {
        assert!(doctor.out.contains(told), "{told} is missing: {doctor:?}");
    }
    assert!(!format!("{doctor:?}").contains("hush"), "{doctor:?}");
}
