//! Schedules: made, changed, removed; and that each planned time makes one run, whatever happens to the node.

use std::collections::BTreeSet;

use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{Answer, Node, eventually, id_of};

/// Fires each second.
pub(crate) fn each_second() -> Value {
    json!({"cron": "* * * * * *", "agent": "scripted", "input": "tick", "params": {"tokens": 2}})
}

pub(crate) async fn create(node: &Node, body: &Value) -> Value {
    let answer = node.post_json("/v1/schedules", body).await;
    assert_eq!(answer.status, 201, "{answer:?}");
    answer.json()
}

async fn change(node: &Node, id: &str, body: Value) -> Answer {
    node.send(node.request(Method::PATCH, &format!("/v1/schedules/{id}")).json(&body)).await
}

async fn schedule(node: &Node, id: &str) -> Value {
    let answer = node.get(&format!("/v1/schedules/{id}")).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

/// The runs of the schedule, by the times they were planned for, in milliseconds.
pub(crate) async fn runs(node: &Node, schedule: &str) -> Vec<(u64, String)> {
    let page = node.get(&format!("/v1/runs?metadata.schedule_id={schedule}&limit=200")).await.json();
    let mut runs: Vec<_> = page["data"].as_array().expect("a page").iter().map(id_of).map(planned).collect();
    runs.sort();
    runs
}

/// A run with the time in its id.
fn planned(run: String) -> (u64, String) {
    let digits: String = run.chars().filter(char::is_ascii_hexdigit).take(12).collect();
    (u64::from_str_radix(&digits, 16).expect("a time"), run)
}

/// Waits until the schedule has made so many runs; all of them.
async fn until_made(node: &Node, schedule: &str, least: usize) -> Vec<(u64, String)> {
    eventually(&format!("{least} runs of a schedule"), async || {
        let runs = runs(node, schedule).await;
        (runs.len() >= least).then_some(runs)
    })
    .await
}

/// No planned time has made two runs.
pub(crate) fn assert_once(runs: &[(u64, String)]) {
    let times: BTreeSet<_> = runs.iter().map(|(at, _)| at).collect();
    assert_eq!(times.len(), runs.len(), "{runs:?}");
    assert!(times.iter().all(|at| *at % 1_000 == 0), "{runs:?}");
}

fn millis(time: &Value) -> u64 {
    let time: jiff::Timestamp = time.as_str().expect("a time").parse().expect("a time");
    u64::try_from(time.as_millisecond()).expect("a time of today")
}

#[tokio::test]
async fn a_schedule_is_created_listed_changed_and_removed() {
    let node = Node::start("").await;
    let body = json!({
        "cron": "30 2 29 2 *", "timezone": "Europe/Berlin", "missed": "skip", "agent": "scripted", "input": "x",
        "params": {"tokens": 3}, "priority": 4, "ttl_ms": 1_000, "timeout_ms": 2_000, "max_attempts": 2,
        "metadata": {"team": "red"},
    });
    let answer = node.post_json("/v1/schedules", &body).await;
    assert_eq!(answer.status, 201, "{answer:?}");
    let made = answer.json();
    let id = id_of(&made);
    assert_eq!(answer.header("location"), format!("/v1/schedules/{id}"));
    for (field, value) in body.as_object().unwrap() {
        assert_eq!(&made[field], value, "{field}");
    }
    assert_eq!((&made["enabled"], &made["last_run_id"], &made["last_at"]), (&json!(true), &json!(null), &json!(null)));
    let next = made["next"].as_array().unwrap();
    assert_eq!((next.len(), &next[0]), (3, &made["next_at"]));
    assert!(next.iter().all(|at| at.as_str().unwrap().contains("-02-29T01:30:00.000Z")), "{next:?}");
    assert_eq!(schedule(&node, &id).await, made);

    let second = id_of(&create(&node, &each_second()).await);
    let page = node.get("/v1/schedules?limit=1").await.json();
    assert_eq!((page["data"].as_array().unwrap().len(), id_of(&page["data"][0])), (1, second.clone()));
    let cursor = page["next_cursor"].as_str().expect("another page");
    let page = node.get(&format!("/v1/schedules?cursor={cursor}")).await.json();
    assert_eq!((page["data"].as_array().unwrap().len(), id_of(&page["data"][0])), (1, id.clone()));
    assert_eq!(page["next_cursor"], json!(null));

    let changed = change(&node, &id, json!({"enabled": false, "input": "y", "ttl_ms": null})).await.json();
    let expected = (&json!(false), &json!("y"), &json!(null), &json!(2_000), &json!(null), &json!([]));
    let (ttl, timeout) = (&changed["ttl_ms"], &changed["timeout_ms"]);
    assert_eq!((&changed["enabled"], &changed["input"], ttl, timeout, &changed["next_at"], &changed["next"]), expected);
    let changed = change(&node, &id, json!({"enabled": true, "cron": "0 0 1 1 *", "timezone": "UTC"})).await.json();
    assert!(changed["next_at"].as_str().unwrap().ends_with("-01-01T00:00:00.000Z"), "{changed}");
    for id in [&id, &second] {
        assert_eq!(node.delete(&format!("/v1/schedules/{id}")).await.status, 204);
        node.delete(&format!("/v1/schedules/{id}")).await.assert_problem(404, "not_found");
        node.get(&format!("/v1/schedules/{id}")).await.assert_problem(404, "not_found");
        change(&node, id, json!({"enabled": false})).await.assert_problem(404, "not_found");
    }
    assert_eq!(node.get("/v1/schedules").await.json()["data"], json!([]));
}

#[tokio::test]
async fn a_key_makes_the_creation_safe_to_repeat() {
    let node = Node::start("").await;
    let daily = json!({"cron": "@daily", "agent": "scripted", "input": "x"});
    let post = |body: Value| node.request(Method::POST, "/v1/schedules").header("idempotency-key", "k").json(&body);
    let first = node.send(post(daily.clone())).await;
    let again = node.send(post(daily)).await;
    assert_eq!((first.status.as_u16(), again.status.as_u16()), (201, 201));
    assert_eq!(first.json(), again.json());
    let other = node.send(post(json!({"cron": "@hourly", "agent": "scripted", "input": "x"}))).await;
    other.assert_problem(409, "idempotency_key_reused");
    assert_eq!(node.get("/v1/schedules").await.json()["data"].as_array().unwrap().len(), 1);
    // A run may have the same key.
    let run = node.request(Method::POST, "/v1/runs").header("idempotency-key", "k");
    assert_eq!(node.send(run.json(&json!({"agent": "scripted", "input": "x"}))).await.status, 202);
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_by_its_field() {
    let node = Node::start("").await;
    let valid = json!({"cron": "@daily", "agent": "scripted", "input": "x"});
    let id = id_of(&create(&node, &valid).await);
    for (field, value, code) in [
        ("cron", json!("61 * * * *"), "invalid_field"),
        ("cron", json!("0 0 30 2 *"), "invalid_field"),
        ("cron", json!(7), "invalid_field"),
        ("cron", Value::Null, "invalid_field"),
        ("timezone", json!("Mars/Base"), "invalid_field"),
        ("missed", json!("all"), "invalid_field"),
        ("missed", json!(1), "invalid_field"),
        ("enabled", Value::Null, "invalid_field"),
        ("agent", Value::Null, "invalid_field"),
        ("metadata", Value::Null, "invalid_field"),
        ("agent", json!("nobody"), "unknown_agent"),
        ("params", json!({"tokens": "many"}), "invalid_field"),
        ("priority", json!(1_000), "invalid_field"),
        ("max_attempts", json!(0), "invalid_field"),
        ("thread_id", json!("t"), "invalid_field"),
        ("delay_ms", json!(5), "invalid_field"),
        ("on_busy", json!("reject"), "invalid_field"),
    ] {
        let mut body = valid.clone();
        body[field] = value.clone();
        let changes = json!({field: value});
        for answer in [node.post_json("/v1/schedules", &body).await, change(&node, &id, changes).await] {
            answer.assert_problem(400, code);
            let named = answer.json()["field"].as_str().unwrap_or_default().to_owned();
            assert!(named.starts_with(field), "{field}: {answer:?}");
        }
    }
    let elsewhere = json!({"thread_id": uuid::Uuid::now_v7(), "on_busy": "reject"});
    let mut body = valid.clone();
    body.as_object_mut().unwrap().extend(elsewhere.as_object().unwrap().clone());
    node.post_json("/v1/schedules", &body).await.assert_problem(404, "not_found");
    change(&node, &id, elsewhere).await.assert_problem(404, "not_found");
    let thread = node.post_json("/v1/threads", &json!({})).await.json()["id"].clone();
    let changed = change(&node, &id, json!({"thread_id": thread, "on_busy": "reject"})).await;
    assert_eq!((changed.status.as_u16(), &changed.json()["thread_id"]), (200, &thread));
    change(&node, &id, json!({"thread_id": null})).await.assert_problem(400, "invalid_field");
    for missing in ["cron", "agent", "input"] {
        let mut body = valid.clone();
        body.as_object_mut().unwrap().remove(missing);
        let answer = node.post_json("/v1/schedules", &body).await;
        answer.assert_problem(400, "invalid_field");
        assert_eq!(answer.json()["field"], missing);
    }
    node.get("/v1/schedules/none").await.assert_problem(400, "invalid_field");
    node.get("/v1/schedules?limit=0").await.assert_problem(400, "invalid_field");
    node.get("/v1/schedules?cursor=!").await.assert_problem(400, "invalid_field");
    assert_eq!(node.get("/v1/schedules").await.json()["data"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn each_planned_time_makes_one_run() {
    let node = Node::start("").await;
    let id = id_of(&create(&node, &each_second()).await);
    until_made(&node, &id, 4).await;
    assert_eq!(change(&node, &id, json!({"enabled": false})).await.status, 200);
    let stopped = schedule(&node, &id).await;
    let made = runs(&node, &id).await;
    assert_once(&made);
    let times: Vec<_> = made.iter().map(|(at, _)| *at).collect();
    assert!(times.windows(2).all(|pair| pair[1] - pair[0] == 1_000), "none is left out: {times:?}");
    assert_eq!(stopped["last_run_id"], made.last().unwrap().1);
    assert_eq!(millis(&stopped["last_at"]), made.last().unwrap().0);
    for (_, run) in &made {
        let run = node.wait_final(run).await;
        assert_eq!((&run["status"], &run["input"]), (&json!("completed"), &json!("tick")));
        assert_eq!((&run["metadata"], &run["correlation_id"]), (&json!({"schedule_id": id}), &json!(id)));
    }
    // Longer than a firing would take, were there one: until another schedule has fired twice.
    let other = id_of(&create(&node, &each_second()).await);
    until_made(&node, &other, 2).await;
    assert_eq!(runs(&node, &id).await.len(), made.len());
}

#[tokio::test]
async fn kills_make_no_planned_time_fire_twice() {
    let mut node = Node::start("").await;
    let ids = [
        id_of(&create(&node, &each_second()).await),
        id_of(&create(&node, &each_second()).await),
        id_of(&create(&node, &each_second()).await),
    ];
    let mut made = 0;
    for _ in 0..4 {
        until_made(&node, &ids[0], made + 1).await;
        node.kill9().await;
        node.restart().await;
        made = runs(&node, &ids[0]).await.len();
    }
    for id in &ids {
        let runs = until_made(&node, id, made + 1).await;
        assert_once(&runs);
        // Shorter than the grace: each has its own.
        assert!(runs.windows(2).all(|pair| pair[1].0 - pair[0].0 == 1_000), "{runs:?}");
    }
}

#[tokio::test]
async fn a_pause_makes_one_run_or_none_as_the_schedule_says() {
    let mut node = Node::start("schedules.grace = \"1s\"").await;
    let mut skips = each_second();
    skips["missed"] = json!("skip");
    let (once, skips) = (id_of(&create(&node, &each_second()).await), id_of(&create(&node, &skips).await));
    let clock = || u64::try_from(std::time::UNIX_EPOCH.elapsed().expect("a clock").as_millis()).expect("a time");
    // Soon after a firing, so that the next one is not under way yet.
    let (planned, kept) = eventually("the next firings are some time away", async || {
        let next = async |id| millis(&schedule(&node, id).await["next_at"]);
        let (planned, kept) = (next(&once).await, next(&skips).await);
        (planned.min(kept) > clock() + 700).then_some((planned, kept))
    })
    .await;
    node.kill9().await;
    // Until several were missed.
    eventually("several firings were missed", async || (clock() > planned.max(kept) + 3_500).then_some(())).await;
    let restarted = clock();
    node.restart().await;
    let advanced = async |id: &str| {
        eventually("the schedule goes on", async || {
            let schedule = schedule(&node, id).await;
            (millis(&schedule["next_at"]) > restarted).then_some(())
        })
        .await;
    };
    advanced(&once).await;
    advanced(&skips).await;
    let missed = |runs: Vec<(u64, String)>, from: u64| {
        runs.into_iter().map(|(at, _)| at).filter(|at| (from..restarted).contains(at)).collect::<Vec<_>>()
    };
    let of_once = missed(runs(&node, &once).await, planned);
    assert!(of_once.len() == 1, "one run for all that was missed: {of_once:?}");
    assert_eq!(missed(runs(&node, &skips).await, kept), Vec::<u64>::new());
}
