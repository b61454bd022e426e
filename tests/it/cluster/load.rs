//! Clients of a cluster that do not give up: they repeat requests under one key, and watch on at another node.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::harness::{Event, id_of, parse};

/// No fault lasts so long that a client would have to wait longer.
const PATIENCE: Duration = Duration::from_secs(900);

/// The base URLs of the nodes that clients may ask.
#[derive(Clone, Default)]
pub(crate) struct Targets(Arc<Mutex<Vec<String>>>);

impl Targets {
    pub(crate) fn set(&self, urls: Vec<String>) {
        *self.0.lock().expect("no panic") = urls;
    }

    fn any(&self) -> String {
        let urls = self.0.lock().expect("no panic");
        urls[rand::rng().random_range(0..urls.len())].clone()
    }
}

/// What came of the load: each accepted run, and what its viewer has seen.
pub(crate) struct Outcome {
    pub(crate) runs: BTreeMap<String, Vec<Event>>,
    pub(crate) cancelled: Vec<String>,
    /// How often a viewer had to come back.
    pub(crate) reconnections: u64,
}

/// Clients at work.
pub(crate) struct Load {
    stop: CancellationToken,
    task: JoinHandle<Outcome>,
}

impl Load {
    /// Creates runs, `pause` apart, and watches each until it has ended.
    pub(crate) fn start(targets: Targets, seed: u64, pause: Duration) -> Self {
        let stop = CancellationToken::new();
        let task = tokio::spawn(create_until(targets, seed, pause, stop.clone()));
        Self { stop, task }
    }

    /// Creates no more, and waits until every viewer has seen its run end.
    pub(crate) async fn finish(self) -> Outcome {
        self.stop.cancel();
        timeout(PATIENCE, self.task).await.expect("every run ends").expect("clients do not panic")
    }
}

async fn create_until(targets: Targets, seed: u64, pause: Duration, stop: CancellationToken) -> Outcome {
    let mut dice = StdRng::seed_from_u64(seed);
    let http = reqwest::Client::builder().no_proxy().read_timeout(Duration::from_secs(20)).build().expect("a client");
    let mut clients = JoinSet::new();
    let mut number = 0;
    while !stop.is_cancelled() {
        let (body, cancel) = (any_run(&mut dice), dice.random_range(0..10) == 0);
        number += 1;
        let key = format!("{seed}-{number}");
        clients.spawn(client(http.clone(), targets.clone(), key, body, cancel));
        stop.run_until_cancelled(tokio::time::sleep(pause)).await;
    }
    let mut outcome = Outcome { runs: BTreeMap::new(), cancelled: Vec::new(), reconnections: 0 };
    while let Some(done) = clients.join_next().await {
        let (id, seen, cancelled, reconnections) = done.expect("a client does not panic");
        outcome.reconnections += reconnections;
        outcome.cancelled.extend(cancelled.then(|| id.clone()));
        assert!(outcome.runs.insert(id, seen).is_none(), "two keys made one run");
    }
    outcome
}

/// A run of any kind, each different.
pub(crate) fn any_run(dice: &mut StdRng) -> Value {
    let tokens = dice.random_range(0..60_u64);
    let mut params = json!({"tokens": tokens, "delay_ms": dice.random_range(0..60)});
    let mut body =
        json!({"agent": "scripted", "input": "x", "priority": dice.random_range(-2..=2), "max_attempts": 50});
    match dice.random_range(0..10) {
        0 => body["delay_ms"] = json!(dice.random_range(0..1_500)),
        1 => {
            params["fail_at"] = json!(dice.random_range(1..=tokens + 1));
            body["max_attempts"] = json!(3);
        }
        2 => body["max_attempts"] = json!(1),
        3..7 => params["step_tokens"] = json!(dice.random_range(1..=20)),
        // So long that whatever happens hits some of them.
        7 | 8 => params = json!({"tokens": 60, "delay_ms": 100}),
        _ => {}
    }
    body["params"] = params;
    body
}

async fn client(
    http: reqwest::Client,
    targets: Targets,
    key: String,
    body: Value,
    cancel: bool,
) -> (String, Vec<Event>, bool, u64) {
    let id = created(&http, &targets, &key, &body).await;
    let watch = watched(&http, &targets, &id);
    let stop = async {
        if cancel {
            tokio::time::sleep(Duration::from_millis(300)).await;
            accepted(&http, &targets, &format!("/v1/runs/{id}/cancel")).await;
        }
    };
    let ((seen, reconnections), ()) = tokio::join!(watch, stop);
    (id, seen, cancel, reconnections)
}

/// Asks until the run is accepted; its id.
async fn created(http: &reqwest::Client, targets: &Targets, key: &str, body: &Value) -> String {
    let began = Instant::now();
    loop {
        let request = http.post(format!("{}/v1/runs", targets.any())).header("idempotency-key", key).json(body);
        if let Ok(answer) = request.timeout(Duration::from_secs(10)).send().await {
            let status = answer.status();
            match (status, answer.text().await) {
                (StatusCode::ACCEPTED, Ok(text)) => return id_of(&serde_json::from_str(&text).expect("a run")),
                (StatusCode::SERVICE_UNAVAILABLE, _) | (_, Err(_)) => {}
                (_, Ok(text)) => panic!("run {key} was refused with {status}: {text}"),
            }
        }
        assert!(began.elapsed() < PATIENCE, "run {key} is not accepted");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn accepted(http: &reqwest::Client, targets: &Targets, path: &str) {
    let began = Instant::now();
    loop {
        let answer = http.post(format!("{}{path}", targets.any())).timeout(Duration::from_secs(10)).send().await;
        if answer.is_ok_and(|answer| answer.status().is_success()) {
            return;
        }
        assert!(began.elapsed() < PATIENCE, "{path} is not accepted");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Everything that a viewer sees who comes back with the last number it has seen, and how often it had to.
async fn watched(http: &reqwest::Client, targets: &Targets, id: &str) -> (Vec<Event>, u64) {
    let began = Instant::now();
    let mut seen: Vec<Event> = Vec::new();
    let mut connections = 0;
    while !seen.last().is_some_and(Event::is_final) {
        connections += 1;
        let last = seen.last().map_or(0, |event| event.seq);
        let request = http.get(format!("{}/v1/runs/{id}/stream", targets.any())).header("last-event-id", last);
        match request.send().await {
            Ok(mut answer) if answer.status() == 200 => {
                let mut unread = Vec::new();
                while let Ok(Some(bytes)) = answer.chunk().await {
                    unread.extend_from_slice(&bytes);
                    if let Some(end) = unread.windows(2).rposition(|pair| pair == b"\n\n") {
                        let whole: Vec<u8> = unread.drain(..end + 2).collect();
                        seen.extend(parse(whole));
                    }
                }
            }
            // The node or its store are away, or on their way down.
            Ok(answer) if answer.status() == 503 => {}
            Ok(answer) => panic!("run {id} after {last}: {answer:?}"),
            Err(_) => {}
        }
        assert!(began.elapsed() < PATIENCE, "run {id} does not end; its viewer has seen {:?}", seen.last());
        if !seen.last().is_some_and(Event::is_final) {
            let pause = rand::rng().random_range(20..200);
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
    }
    (seen, connections - 1)
}
