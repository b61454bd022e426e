//! The promise, as checks: what holds for every run whatever happened to its node.

use serde_json::Value;

use super::{Event, Node};

/// What a run's log says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Log {
    /// The attempts that began.
    pub(crate) attempts: Vec<u64>,
    /// The reasons of the attempts that were given up.
    pub(crate) retries: Vec<String>,
    /// The final event's type, if it is there.
    pub(crate) ending: Option<String>,
}

/// Checks the log of a run that has ended, from its first event on: numbers rise and are dense within each attempt,
/// attempts rise, and exactly one final event stands at the end.
#[track_caller]
pub(crate) fn assert_log(events: &[Event]) -> Log {
    let log = assert_log_so_far(events);
    assert!(log.ending.is_some(), "no final event: {}", tail(events));
    log
}

/// Checks the log of a run that may not have ended, from its first event on.
#[track_caller]
pub(crate) fn assert_log_so_far(events: &[Event]) -> Log {
    let mut log = Log { attempts: Vec::new(), retries: Vec::new(), ending: None };
    let (mut last, mut running) = (0, false);
    for (index, event) in events.iter().enumerate() {
        let seen = tail(&events[..=index]);
        assert_eq!(log.ending, None, "something follows the final event: {seen}");
        assert_eq!(index == 0, event.kind == "run.created", "run.created is the first event and no other: {seen}");
        let skips_to = event.data.get("skips_to").and_then(Value::as_u64);
        match skips_to {
            // A jump says so itself: numbers that a crash may have shown are not used again.
            Some(to) => assert!(to == event.seq && event.seq > last, "a jump to elsewhere: {seen}"),
            None => assert_eq!(event.seq, last + 1, "the log is not dense: {seen}"),
        }
        last = event.seq;
        match event.kind.as_str() {
            "run.started" => {
                let attempt = event.data["attempt"].as_u64().expect("an attempt");
                assert!(!running, "an attempt began within another: {seen}");
                assert_eq!(attempt, log.attempts.len() as u64 + 1, "attempts rise one by one: {seen}");
                assert!(event.data["node"].as_str().is_some_and(|node| !node.is_empty()), "{seen}");
                log.attempts.push(attempt);
                running = true;
            }
            "run.retrying" => {
                assert!(running, "an attempt was given up that was not there: {seen}");
                let void_after = event.data["void_after"].as_u64().expect("void_after");
                assert!(skips_to.is_some() && void_after < event.seq, "{seen}");
                log.retries.push(event.data["reason"].as_str().expect("a reason").to_owned());
                running = false;
            }
            "run.created" | "run.scheduled" | "run.queued" => {
                assert!(!running, "a running run does not wait: {seen}");
            }
            _ if event.is_final() => log.ending = Some(event.kind.clone()),
            _ => assert!(running, "an agent spoke outside of its attempt: {seen}"),
        }
    }
    log
}

/// Checks the promise for a run that has ended: its log is right, its stream, its pages and the run itself agree, and a
/// viewer that has seen the end is told so.
pub(crate) async fn assert_promise(node: &Node, id: &str) -> Log {
    let run = node.run(id).await;
    let events = node.events(id).await;
    let log = assert_log(&events);
    let streamed = node.stream(id).await.rest().await;
    assert_eq!(streamed, events, "the stream of run {id} is not its log");
    let last = events.last().expect("a final event");
    assert_eq!(log.ending.as_deref(), run["status"].as_str().map(|status| format!("run.{status}")).as_deref());
    assert_eq!(run["last_seq"], last.seq, "{run}");
    assert_eq!(run["attempt"], log.attempts.len(), "{run}");
    assert!(run["finished_at"].is_string(), "{run}");
    match last.kind.as_str() {
        "run.completed" => {
            assert_eq!(run["output"], last.data["output"]);
            assert_eq!(run["output"].as_str(), Some(said(&events).as_str()), "the answer is what was streamed");
        }
        "run.failed" => {
            assert_eq!((&run["error"]["code"], &run["outcome"]), (&last.data["code"], &last.data["outcome"]));
        }
        _ => assert_eq!(run["error"], Value::Null),
    }
    assert_eq!(node.stream_status(id, last.seq).await, 204, "the final number");
    log
}

/// What an attempt that was not given up has said.
pub(crate) fn said(events: &[Event]) -> String {
    let voided = events.iter().rev().find(|event| event.kind == "run.retrying").map_or(0, |event| event.seq);
    let deltas = events.iter().filter(|event| event.kind == "message.delta" && event.seq > voided);
    deltas.map(Event::text).collect()
}

/// The last events, short enough to be read.
fn tail(events: &[Event]) -> String {
    let shown = events.len().saturating_sub(12);
    let line = |event: &Event| format!("\n  {} {} {}", event.seq, event.kind, event.data);
    events[shown..].iter().map(line).collect()
}
