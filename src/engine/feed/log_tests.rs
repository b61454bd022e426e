//! The log in memory, as its writer and its viewers use it.

use std::task::Waker;

use proptest::prelude::*;

use super::*;
use crate::run::Usage;

const AT: Timestamp = Timestamp::MAX;
const PLENTY: usize = 1 << 20;

fn delta(number: u64) -> Event {
    Event::MessageDelta { text: format!("t{number} ") }
}

/// A log of attempt 1, owned, whose events 1 to 3 are journaled.
fn owned(reserved: u64) -> Arc<RunLog> {
    let log = RunLog::new(RunId::from_uuid(uuid::Uuid::nil()), Tenant::default());
    let created =
        [Event::Created { agent: "a".into(), retry_of: None, steps_kept: 0, cut_off: Vec::new() }, Event::Queued {}];
    log.append(&Segment::encode(1, &created, AT), false);
    log.own(&Segment::encode(3, &[Event::Started { attempt: 1, node: "n".into() }], AT), reserved, None);
    log
}

/// The numbers that a cursor after `seen` finds in memory.
fn numbers(log: &RunLog, mut seen: u64) -> Vec<u64> {
    let slot = log.enter();
    log.watch();
    let mut numbers = Vec::new();
    while let Read::Frames(frames, last) = log.read(seen, slot, Waker::noop()) {
        let text = String::from_utf8(frames.to_vec()).unwrap();
        numbers.extend(text.lines().filter_map(|line| line.strip_prefix("id: ")).map(|id| id.parse::<u64>().unwrap()));
        seen = last;
    }
    log.leave(slot, true);
    numbers
}

#[test]
fn a_token_is_visible_at_once_and_journaled_later() {
    let log = owned(1_000);
    assert!(matches!(log.push(delta(1), AT, PLENTY), Pushed::Shown { first: true }));
    assert!(matches!(log.push(delta(2), AT, PLENTY), Pushed::Shown { first: false }));
    assert_eq!(numbers(&log, 0), [1, 2, 3, 4, 5]);
    let segment = log.take_unjournaled().unwrap();
    assert_eq!((segment.first_seq(), segment.last_seq()), (4, 5));
    assert_eq!(log.take_unjournaled(), None);
    assert!(matches!(log.push(delta(3), AT, PLENTY), Pushed::Shown { first: true }));
}

#[test]
fn nothing_beyond_the_reservation_is_shown() {
    let log = owned(5);
    assert!(matches!(log.push(delta(1), AT, PLENTY), Pushed::Shown { .. }));
    assert!(matches!(log.push(delta(2), AT, PLENTY), Pushed::Shown { .. }));
    assert!(matches!(log.push(delta(3), AT, PLENTY), Pushed::Full(_)));
    let journaled = log.take_unjournaled().unwrap().last_seq();
    log.reveal(journaled, journaled + 10, false, PLENTY);
    assert!(matches!(log.push(delta(3), AT, PLENTY), Pushed::Shown { .. }));
}

#[test]
fn a_held_event_is_invisible_until_its_commit_and_so_is_what_follows_it() {
    let log = owned(1_000);
    log.push(delta(1), AT, PLENTY);
    assert_eq!(log.hold(&[Event::StepCompleted { step: 1, usage: Usage::default(), total: Usage::default() }], AT), 5);
    log.push(delta(2), AT, PLENTY);
    assert_eq!(numbers(&log, 0), [1, 2, 3, 4]);
    let segment = log.take_unjournaled().unwrap();
    assert_eq!((segment.first_seq(), segment.last_seq()), (4, 6));
    assert_eq!(numbers(&log, 3), [4]);
    log.reveal(6, 1_006, false, PLENTY);
    assert_eq!(numbers(&log, 0), [1, 2, 3, 4, 5, 6]);
}

#[test]
fn a_retracted_event_was_never_there_and_its_number_is_free_again() {
    let log = owned(1_000);
    log.push(delta(1), AT, PLENTY);
    assert!(log.seal());
    log.hold(&[Event::Cancelled { usage: Usage::default() }], AT);
    log.take_unjournaled().unwrap();
    log.retract();
    assert_eq!(numbers(&log, 0), [1, 2, 3, 4]);
    assert_eq!(log.hold(&[Event::Queued {}], AT), 5);
    let segment = log.take_unjournaled().unwrap();
    assert_eq!((segment.first_seq(), segment.last_seq()), (4, 5), "what was taken before is journaled with it");
    log.reveal(5, 5, true, PLENTY);
    assert_eq!(numbers(&log, 0), [1, 2, 3, 4, 5]);
}

#[test]
fn a_sealed_log_takes_nothing_and_says_so_once() {
    let log = owned(1_000);
    assert!(log.seal());
    assert!(!log.seal());
    assert!(matches!(log.push(delta(1), AT, PLENTY), Pushed::Sealed));
}

#[test]
fn what_leaves_the_memory_is_read_from_the_store() {
    let log = owned(1_000_000);
    for number in 1..=100 {
        log.push(delta(number), AT, PLENTY);
        let journaled = log.take_unjournaled().unwrap().last_seq();
        log.reveal(journaled, journaled + 1_000, false, 1_000);
    }
    let slot = log.enter();
    log.watch();
    let Read::Stored { until } = log.read(0, slot, Waker::noop()) else { panic!("the memory is unbounded") };
    assert!(until > 50);
    assert_eq!(numbers(&log, until), (until + 1..=103).collect::<Vec<_>>());
}

#[test]
fn a_lost_attempt_leaves_nothing_in_memory_that_the_store_may_not_have() {
    let log = owned(1_000);
    log.push(delta(1), AT, PLENTY);
    log.disown(true);
    let slot = log.enter();
    log.watch();
    assert!(matches!(log.read(0, slot, Waker::noop()), Read::Stored { until: 4 }));
    assert!(matches!(log.read(4, slot, Waker::noop()), Read::Wait), "a viewer that saw it waits for what follows");
    log.append(&Segment::encode(1_001, &[Event::Queued {}], AT), false);
    assert_eq!(numbers(&log, 1_000), [1_001]);
    assert!(matches!(log.read(4, slot, Waker::noop()), Read::Stored { until: 1_000 }));
}

#[test]
fn events_that_come_out_of_order_leave_a_gap_that_the_store_fills() {
    let log = owned(1_000);
    log.disown(false);
    log.append(&Segment::encode(6, &[Event::Queued {}], AT), false);
    log.append(&Segment::encode(4, &[Event::Queued {}, Event::Queued {}], AT), false);
    let slot = log.enter();
    log.watch();
    assert!(matches!(log.read(3, slot, Waker::noop()), Read::Stored { until: 5 }));
    assert_eq!(numbers(&log, 5), [6]);
}

#[test]
fn only_the_last_viewer_of_a_run_that_wants_one_leaves_it_unwatched() {
    let log = owned(1_000);
    let (first, second, waiter) = (log.enter(), log.enter(), log.enter());
    log.watch();
    log.watch();
    assert_eq!(log.leave(first, true), Left { unwatched: false, deserted: false });
    log.cancel_unwatched();
    assert_eq!(log.leave(second, true), Left { unwatched: true, deserted: false });
    assert!(!log.is_watched());
    assert_eq!(log.leave(waiter, false), Left { unwatched: false, deserted: true });
}

#[tokio::test]
async fn an_agent_that_waits_for_room_goes_on_when_the_journal_has_caught_up() {
    let log = owned(1_000);
    assert!(matches!(log.push(delta(1), AT, 1), Pushed::Shown { .. }));
    assert!(matches!(log.push(delta(2), AT, 1), Pushed::Full(_)));
    let waits = tokio::spawn({
        let log = Arc::clone(&log);
        async move { log.room(1).await }
    });
    tokio::task::yield_now().await;
    assert!(!waits.is_finished());
    let journaled = log.take_unjournaled().unwrap().last_seq();
    log.reveal(journaled, 1_000, false, PLENTY);
    waits.await.unwrap();
}

proptest! {
    /// Whatever the writer does, what a viewer sees rises by one, and the journal gets each event once.
    #[test]
    fn viewers_and_journal_agree(steps in prop::collection::vec((0..6_u8, 1..4_usize), 1..200)) {
        let log = owned(1_000_000);
        let slot = log.enter();
    log.watch();
        let (mut seen, mut journal, mut said) = (3, 3, 0);
        for (step, times) in steps {
            match step {
                0..=2 => for _ in 0..times {
                    said += 1;
                    log.push(delta(said), AT, PLENTY);
                },
                3 | 4 => {
                    if step == 4 {
                        log.hold(&[Event::Queued {}], AT);
                        log.push(delta(said), AT, PLENTY);
                    }
                    if let Some(segment) = log.take_unjournaled() {
                        prop_assert_eq!(segment.first_seq(), journal + 1);
                        journal = segment.last_seq();
                        log.reveal(journal, journal + 1_000, false, times * 200);
                    }
                }
                _ => match log.read(seen, slot, Waker::noop()) {
                    Read::Frames(frames, last) => {
                        prop_assert!(last > seen);
                        let head = format!("id: {}\n", seen + 1);
                        prop_assert!(frames.starts_with(head.as_bytes()));
                        prop_assert_eq!(frames.windows(4).filter(|window| window == b"id: ").count() as u64, last - seen);
                        seen = last;
                    }
                    Read::Stored { until } => {
                        prop_assert!(until <= journal && until > seen);
                        seen = until;
                    }
                    Read::Wait => {}
                    Read::End(_) => prop_assert!(false, "nothing has ended"),
                },
            }
        }
    }
}
