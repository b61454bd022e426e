//! The promise, as checks: what holds for every run whatever happened to its node.

use std::collections::{BTreeMap, BTreeSet};

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
    let (mut last, mut running, mut waiting) = (0, false, false);
    let (mut kept, mut begun, mut finished) = (0, BTreeSet::new(), BTreeSet::new());
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
        if index == 0 {
            kept = event.data["steps_kept"].as_u64().unwrap_or(0);
        }
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
            "step.started" => {
                let step = event.data["step"].as_u64().expect("a step");
                assert!(running && !finished.contains(&step), "a finished step began anew: {seen}");
                begun.insert(step);
            }
            "step.completed" => {
                let step = event.data["step"].as_u64().expect("a step");
                // An answer is a step, too.
                assert!((running || waiting) && step > kept && finished.insert(step), "a step was made twice: {seen}");
                // The number of a step that was cut off is used by no other.
                let known = |step: &u64| kept > 0 || begun.contains(step) || finished.contains(step);
                assert!((1..step).all(|step| known(&step)), "a step was left out: {seen}");
                waiting = false;
            }
            "run.waiting" => {
                assert!(running && event.data["wait_id"].is_string(), "{seen}");
                (running, waiting) = (false, true);
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

/// What the run has said, without what was declared void.
pub(crate) fn said(events: &[Event]) -> String {
    let retries: Vec<_> = events.iter().filter(|event| event.data.get("void_after").is_some()).collect();
    let void = |seq: u64| retries.iter().any(|retry| seq < retry.seq && retry.data["void_after"].as_u64() < Some(seq));
    let deltas = events.iter().filter(|event| event.kind == "message.delta" && !void(event.seq));
    deltas.map(Event::text).collect()
}

/// Checks that what a viewer has seen over crashes goes together with the log: it is a log itself, it has all that the
/// log has, and what it has beyond that lies within a tail that a crash took and that is void.
#[track_caller]
pub(crate) fn assert_seen(seen: &[Event], log: &[Event]) {
    assert_log(seen);
    let seen: BTreeMap<u64, &Event> = seen.iter().map(|event| (event.seq, event)).collect();
    let log: BTreeMap<u64, &Event> = log.iter().map(|event| (event.seq, event)).collect();
    for (seq, event) in &log {
        assert_eq!(seen.get(seq), Some(event), "number {seq}");
    }
    for (seq, event) in seen.iter().filter(|(seq, _)| !log.contains_key(seq)) {
        let next = log.range(seq..).next().map(|(_, event)| *event).expect("an event after a lost one");
        assert_eq!(next.data["skips_to"], next.seq, "number {seq} was lost and nothing says so: {event:?}, {next:?}");
        let void_after = next.data["void_after"].as_u64();
        assert!(void_after < Some(*seq), "number {seq} was lost and is not void: {next:?}");
    }
}

/// The last events, short enough to be read.
fn tail(events: &[Event]) -> String {
    let shown = events.len().saturating_sub(12);
    let line = |event: &Event| format!("\n  {} {} {}", event.seq, event.kind, event.data);
    events[shown..].iter().map(line).collect()
}
