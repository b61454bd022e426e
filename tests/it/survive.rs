//! Kills, restarts, shutdowns.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{
    Node, assert_log, assert_log_so_far, assert_promise, assert_seen, eventually, finished_process, id_of, is_embedded,
    soon,
};

/// A run of so many tokens with a pause before each.
fn talking(tokens: u64, delay_ms: u64) -> Value {
    json!({"agent": "scripted", "input": "x", "params": {"tokens": tokens, "delay_ms": delay_ms}})
}

#[tokio::test]
async fn a_kill_loses_no_run_and_ends_none_twice() {
    let mut node = Node::start("worker.concurrency = 2\nruns.backoff_base = \"4s\"").await;
    let failing = json!({"tokens": 3, "fail_at": 2});
    let backing_off =
        node.create(json!({"agent": "scripted", "input": "x", "max_attempts": 2, "params": failing})).await;
    node.until(&backing_off, &["scheduled"]).await;
    let mut delayed = talking(3, 0);
    delayed["delay_ms"] = json!(3_000);
    let delayed = node.create(delayed).await;
    let running = [node.create(talking(100, 20)).await, node.create(talking(100, 20)).await];
    for id in &running {
        node.until_said(id, 3).await;
    }
    let queued = [node.create(talking(3, 0)).await, node.create(talking(3, 0)).await, node.create(talking(3, 0)).await];
    let mut viewer = node.stream(&running[0]).await;
    let mut seen = viewer.through(|event| event.text() == "t6 ").await;
    let statuses = async |node: &Node| {
        let mut statuses = Vec::new();
        for id in [&backing_off, &delayed].into_iter().chain(&running).chain(&queued) {
            statuses.push(node.run(id).await["status"].as_str().unwrap().to_owned());
        }
        statuses
    };
    assert_eq!(
        statuses(&node).await,
        ["scheduled", "scheduled", "running", "running", "queued", "queued", "queued"],
        "the kill finds them like this"
    );
    node.kill9().await;
    seen.extend(viewer.rest_of_broken().await);
    let last = seen.last().unwrap().seq;
    node.restart().await;

    // The viewer comes back with the last number it has seen.
    seen.extend(node.stream_after(&running[0], last).await.rest().await);
    for id in &running {
        let run = node.wait_final(id).await;
        assert_eq!((&run["status"], &run["attempt"]), (&json!("completed"), &json!(2)));
        let log = assert_promise(&node, id).await;
        assert_eq!(log.retries, ["worker_lost"]);
    }
    assert_seen(&seen, &node.events(&running[0]).await);
    for id in queued.iter().chain([&delayed]) {
        let run = node.wait_final(id).await;
        assert_eq!((&run["status"], &run["attempt"]), (&json!("completed"), &json!(1)));
        assert_promise(&node, id).await;
    }
    let run = node.wait_final(&backing_off).await;
    assert_eq!((&run["status"], &run["outcome"]), (&json!("failed"), &json!("attempts_exhausted")));
    let log = assert_promise(&node, &backing_off).await;
    assert_eq!((log.attempts, log.retries), (vec![1, 2], vec!["transient_error".to_owned()]));
}

#[tokio::test]
async fn a_viewer_of_any_number_goes_on_after_a_kill() {
    let mut node = Node::start("").await;
    let id = node.create(talking(120, 10)).await;
    let mut viewer = node.stream(&id).await;
    let mut seen = viewer.through(|event| event.text() == "t20 ").await;
    node.kill9().await;
    seen.extend(viewer.rest_of_broken().await);
    node.restart().await;
    node.wait_final(&id).await;
    let log = node.events(&id).await;
    assert_eq!(assert_promise(&node, &id).await.attempts, [1, 2]);
    let restarted = log.iter().find(|event| event.kind == "run.retrying").unwrap().seq;
    // Every number that may have been shown to someone, also those that nobody saw.
    for after in 0..restarted + 3 {
        if after > seen.last().unwrap().seq + 30 && after < restarted - 2 {
            continue;
        }
        let expected: Vec<_> = log.iter().filter(|event| event.seq > after).cloned().collect();
        assert_eq!(node.stream_after(&id, after).await.rest().await, expected, "after {after}");
    }
}

#[tokio::test]
async fn a_run_whose_last_attempt_is_lost_fails_with_worker_lost() {
    let mut node = Node::start("").await;
    let mut body = talking(1_000, 10);
    body["max_attempts"] = json!(1);
    let id = node.create(body).await;
    let mut viewer = node.stream(&id).await;
    let mut seen = viewer.through(|event| event.text() == "t3 ").await;
    node.kill9().await;
    seen.extend(viewer.rest_of_broken().await);
    node.restart().await;
    let run = node.wait_final(&id).await;
    assert_eq!((&run["status"], &run["error"]["code"]), (&json!("failed"), &json!("worker_lost")));
    assert_eq!((&run["outcome"], &run["attempt"]), (&json!("attempts_exhausted"), &json!(1)));
    let rest = node.stream_after(&id, seen.last().unwrap().seq).await.rest().await;
    assert_eq!(rest.last().map(|event| event.kind.as_str()), Some("run.failed"));
    assert_promise(&node, &id).await;
}

#[tokio::test]
async fn a_poisonous_run_is_given_up_after_its_attempts_and_the_next_is_fine() {
    let mut node = Node::start("").await;
    let mut body = talking(1_000, 10);
    body["max_attempts"] = json!(2);
    let id = node.create(body).await;
    for attempt in 1..=2 {
        eventually("the next attempt runs", async || {
            let run = node.run(&id).await;
            (run["status"] == "running" && run["attempt"] == attempt).then_some(())
        })
        .await;
        node.kill9().await;
        node.restart().await;
    }
    let run = node.wait_final(&id).await;
    assert_eq!(
        (&run["status"], &run["error"]["code"], &run["attempt"]),
        (&json!("failed"), &json!("worker_lost"), &json!(2))
    );
    let other = node.create(talking(2, 0)).await;
    assert_eq!(node.wait_final(&other).await["status"], "completed");
    assert_promise(&node, &id).await;
}

#[tokio::test]
async fn a_cancel_that_was_accepted_is_kept_over_a_kill() {
    let mut node = Node::start("").await;
    for _ in 0..3 {
        let runs = join_all((0..20).map(|_| node.create(talking(2_000, 5)))).await;
        for id in &runs {
            node.until_said(id, 1).await;
        }
        // The kill comes with the first answers, while the others are on their way.
        let mut answers: FuturesUnordered<_> =
            runs.iter().map(async |id| (id, node.try_send(node.request(Method::POST, &cancel(id))).await)).collect();
        let mut accepted = Vec::new();
        while accepted.len() < 3 {
            let (id, answer) = soon("an answer", answers.next()).await.unwrap();
            let answer = answer.unwrap();
            assert!([200, 202].contains(&answer.status.as_u16()), "{answer:?}");
            accepted.push(id);
        }
        drop(answers);
        node.kill9().await;
        node.restart().await;
        for id in accepted {
            assert_eq!(node.wait_final(id).await["status"], "cancelled");
            assert_eq!(assert_promise(&node, id).await.attempts, [1], "it is not made again first");
        }
        for id in &runs {
            node.post(&cancel(id)).await;
            assert_eq!(node.wait_final(id).await["status"], "cancelled");
            assert_promise(&node, id).await;
        }
    }
}

/// The route that cancels a run.
fn cancel(id: &str) -> String {
    format!("/v1/runs/{id}/cancel")
}

/// A run for the rounds of kills, different each time.
fn any_run(dice: &mut StdRng) -> Value {
    let tokens = dice.random_range(0..60_u64);
    let mut params = json!({"tokens": tokens, "delay_ms": dice.random_range(0..12)});
    let mut body =
        json!({"agent": "scripted", "input": "x", "priority": dice.random_range(-2..=2), "max_attempts": 50});
    match dice.random_range(0..10) {
        0 => body["delay_ms"] = json!(dice.random_range(0..800)),
        1 => {
            params["fail_at"] = json!(dice.random_range(1..=tokens + 1));
            body["max_attempts"] = json!(3);
        }
        2 => {
            params["fail_at"] = json!(dice.random_range(1..=tokens + 1));
            params["error"] = json!("panic");
            body["max_attempts"] = json!(2);
        }
        3 => body["max_attempts"] = json!(1),
        _ => {}
    }
    body["params"] = params;
    body
}

#[tokio::test]
async fn kills_at_random_moments_break_no_promise() {
    let seed = 20_261_122;
    println!("seed {seed}");
    let mut dice = StdRng::seed_from_u64(seed);
    let mut node = Node::start("runs.backoff_base = \"50ms\"\nworker.concurrency = 8").await;
    let create = |node: &Node, key: &str, body: &Value| {
        node.request(Method::POST, "/v1/runs").json(body).header("idempotency-key", key)
    };
    let (mut wishes, mut accepted, mut cancelled) = (Vec::new(), BTreeMap::new(), BTreeSet::new());
    for round in 0..5 {
        for number in 0..20 {
            wishes.push((format!("{round}-{number}"), any_run(&mut dice)));
        }
        // The kill comes while runs are still being accepted, or some time after that.
        let mut in_time = dice.random_range(5..30);
        for (key, body) in &wishes {
            if in_time == 0 || accepted.contains_key(key) {
                continue;
            }
            in_time -= 1;
            let answer = node.send(create(&node, key, body)).await;
            assert_eq!(answer.status, 202, "{answer:?}");
            let id = id_of(&answer.json());
            if dice.random_range(0..8) == 0 {
                assert!(node.cancel(&id).await.status.is_success());
                cancelled.insert(id.clone());
            }
            accepted.insert(key.clone(), id);
        }
        let pending: Vec<_> = wishes.iter().filter(|(key, _)| !accepted.contains_key(key)).take(6).collect();
        let requests = pending.iter().map(|(key, body)| node.try_send(create(&node, key, body)));
        let unanswered = join_all(requests);
        let pause = Duration::from_millis(dice.random_range(0..250));
        if !is_embedded() {
            // A broker takes longer than memory to begin.
            let begun = async || (node.metric("runcast_attempts_started_total").await > 0.0).then_some(());
            eventually("something has begun", begun).await;
        }
        // Nobody hears the answers of these, accepted or not.
        tokio::time::timeout(pause, unanswered).await.map(drop).unwrap_or_default();
        node.kill9().await;
        node.restart().await;
    }
    // Whoever got no answer asks again, with the same key.
    for (key, body) in &wishes {
        let answer = node.send(create(&node, key, body)).await;
        assert_eq!(answer.status, 202, "{answer:?}");
        let id = id_of(&answer.json());
        assert_eq!(accepted.entry(key.clone()).or_insert_with(|| id.clone()), &id, "key {key}");
    }
    let mut lost = 0;
    for id in accepted.values() {
        let run = node.wait_final(id).await;
        let log = assert_promise(&node, id).await;
        lost += log.retries.iter().filter(|reason| *reason == "worker_lost").count();
        if cancelled.contains(id) {
            assert_ne!(run["status"], "failed", "cancelled or faster: {run}");
        }
    }
    let listed = node.get("/v1/runs?limit=200").await.json();
    assert_eq!(listed["data"].as_array().unwrap().len(), 100, "one run for each key");
    println!("{} runs over 5 kills, {lost} attempts lost and made again", accepted.len());
    assert!(lost > 0, "the kills hit nothing");
}

#[tokio::test]
async fn a_shutdown_accepts_nothing_new_and_lets_live_runs_end() {
    let mut node = Node::start("worker.concurrency = 1\nworker.drain_grace = \"1m\"").await;
    let id = node.create(talking(150, 20)).await;
    let mut viewer = node.stream(&id).await;
    let mut seen = viewer.through(|event| event.kind == "message.delta").await;
    let queued = node.create(talking(2, 0)).await;
    let mut queued_viewer = node.stream(&queued).await;
    node.sigterm();
    let refused = eventually("new runs are refused", async || {
        let answer = node.post_json("/v1/runs", &talking(1, 0)).await;
        (answer.status != 202).then_some(answer)
    })
    .await;
    refused.assert_problem(503, "draining");
    assert!(refused.header("retry-after").parse::<u32>().is_ok_and(|seconds| seconds > 0), "{refused:?}");
    let ready = node.get("/ready").await;
    assert_eq!((ready.status.as_u16(), &ready.json()["parts"]["node"]), (503, &json!("shutting down")));
    let health = node.get("/health").await;
    assert_eq!((health.status.as_u16(), &health.json()["status"]), (200, &json!("degraded")));
    assert_eq!(node.run(&id).await["status"], "running", "reads are answered");
    seen.extend(viewer.rest().await);
    assert_eq!(assert_log(&seen).ending.as_deref(), Some("run.completed"));
    let waiting = queued_viewer.rest().await;
    assert_eq!(assert_log_so_far(&waiting).attempts, [0_u64; 0], "what waits is not started any more");
    assert_eq!(node.wait_exit().await.code(), Some(0));
    node.restart().await;
    assert_eq!(node.wait_final(&queued).await["status"], "completed");
    assert_eq!(assert_promise(&node, &queued).await.attempts, [1]);
    assert_promise(&node, &id).await;
}

#[tokio::test]
async fn a_shutdown_whose_grace_is_over_releases_runs_at_no_charge() {
    for grace in ["0s", "300ms"] {
        let mut node = Node::start(format!("worker.drain_grace = \"{grace}\"")).await;
        let mut body = talking(4, 500);
        body["max_attempts"] = json!(1);
        let id = node.create(body).await;
        let mut viewer = node.stream(&id).await;
        let mut seen = viewer.through(|event| event.kind == "message.delta").await;
        let began = Instant::now();
        node.sigterm();
        let rest = viewer.rest().await;
        assert_eq!(rest.last().map(|event| event.kind.as_str()), Some("run.retrying"), "{rest:?}");
        seen.extend(rest);
        let log = assert_log_so_far(&seen);
        assert_eq!((log.retries, log.ending), (vec!["released".to_owned()], None));
        assert_eq!(node.wait_exit().await.code(), Some(0));
        assert!(began.elapsed() < Duration::from_secs(20), "after {:?}", began.elapsed());
        node.restart().await;
        seen.extend(node.stream_after(&id, seen.last().unwrap().seq).await.rest().await);
        let run = node.wait_final(&id).await;
        assert_eq!((&run["status"], &run["attempt"]), (&json!("completed"), &json!(2)));
        assert_eq!(seen, node.events(&id).await, "a shutdown in good order loses nothing");
        assert_promise(&node, &id).await;
    }
}

#[tokio::test]
async fn a_release_leaves_the_whole_budget_to_the_kills_that_follow() {
    let mut node = Node::start("worker.drain_grace = \"0s\"").await;
    let mut body = talking(100, 20);
    body["max_attempts"] = json!(2);
    let id = node.create(body).await;
    for _ in 0..2 {
        node.until(&id, &["running"]).await;
        node.sigterm();
        assert_eq!(node.wait_exit().await.code(), Some(0));
        node.restart().await;
    }
    node.until(&id, &["running"]).await;
    node.kill9().await;
    node.restart().await;
    let run = node.wait_final(&id).await;
    assert_eq!((&run["status"], &run["attempt"]), (&json!("completed"), &json!(4)), "{run}");
    assert_eq!(assert_promise(&node, &id).await.retries, ["released", "released", "worker_lost"]);
}

#[tokio::test]
async fn a_second_signal_hurries_the_shutdown() {
    let mut node = Node::start("worker.drain_grace = \"1h\"").await;
    let id = node.create(json!({"agent": "scripted", "input": "x", "params": {"tokens": 1, "hang_at": 1}})).await;
    node.until(&id, &["running"]).await;
    node.signal("INT");
    eventually("the node drains", async || (node.get("/ready").await.status == 503).then_some(())).await;
    assert!(node.runs());
    node.sigterm();
    assert_eq!(node.wait_exit().await.code(), Some(0));
    node.restart().await;
    eventually("it runs again", async || (node.run(&id).await["attempt"] == 2).then_some(())).await;
}

#[tokio::test]
async fn a_kill_during_the_shutdown_loses_nothing_either() {
    let mut node = Node::start("worker.drain_grace = \"1h\"").await;
    let id = node.create(talking(100, 20)).await;
    node.until_said(&id, 2).await;
    node.sigterm();
    eventually("the node drains", async || (node.get("/ready").await.status == 503).then_some(())).await;
    node.kill9().await;
    node.restart().await;
    assert_eq!(node.wait_final(&id).await["status"], "completed");
    assert_eq!(assert_promise(&node, &id).await.retries, ["worker_lost"]);
}

#[tokio::test]
async fn an_idle_node_stops_at_once_and_its_viewers_and_waiters_are_let_go() {
    let mut node = Node::start("worker.drain_grace = \"1h\"").await;
    let id = node.create(json!({"agent": "scripted", "input": "x", "delay_ms": 600_000})).await;
    let mut viewer = node.stream(&id).await;
    let wait = node.request(Method::GET, &format!("/v1/runs/{id}/wait?timeout_ms=600000"));
    let wait = node.send(wait);
    let stop = async {
        viewer.through(|event| event.kind == "run.scheduled").await;
        eventually("the waiter is there", async || (node.metric("runcast_viewers").await == 2.0).then_some(())).await;
        node.sigterm();
        viewer.rest().await
    };
    let (waited, rest) = tokio::join!(wait, stop);
    assert_eq!((waited.status.as_u16(), &waited.json()["status"]), (200, &json!("scheduled")));
    assert_eq!(rest, []);
    assert_eq!(node.wait_exit().await.code(), Some(0));
}

#[tokio::test]
async fn a_second_node_on_the_same_data_is_refused() {
    // Elsewhere it would be a second worker.
    if !is_embedded() {
        return;
    }
    let node = Node::start("").await;
    let second = finished_process(node.directory(), &["serve", "--listen", "127.0.0.1:0", "--data", "data"], &[]).await;
    assert_eq!(second.code, Some(1), "{second:?}");
    assert!(second.err.contains("in use by process") && second.err.contains("data"), "{second:?}");
    assert!(!second.out.contains("listens"), "{second:?}");
    let id = node.create(talking(2, 0)).await;
    assert_eq!(node.wait_final(&id).await["status"], "completed", "the first goes on");
}
