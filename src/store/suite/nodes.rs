//! What nodes need of a store that is not one run's: leases, how things stand, dead letters, agreement.

use std::sync::Arc;

use bytes::Bytes;
use uuid::Uuid;

use super::Harness;
use super::kit::*;
use crate::run::{Command, Retry, RunId, Spec, Status};
use crate::store::{Committed, DeadLetter, Depths, Discard, Head, Held, Limits, Proposal, Queued};

pub(crate) async fn an_owner_extends_what_is_still_its_own(harness: &mut dyn Harness) {
    let store = harness.store();
    let (first, second) = (Owner::of_new(&*store, 1).await, Owner::of_new(&*store, 2).await);
    let mut ended = Owner::of_new(&*store, 3).await;
    let mut later = Owner::of_new(&*store, 4).await;
    commit(&*store, ended.complete()).await;
    // The same node claims its run again: the earlier attempt is over all the same.
    commit(&*store, later.decide(&Command::Release { attempt: 1 })).await;
    let later = Owner::next(&*store).await;
    assert_eq!((later.id(), later.run.attempt), (id(4), 2));
    transition(&*store, second.id(), Command::Cancel, now()).await;

    let owned = [(first.id(), 1), (second.id(), 1), (ended.id(), 1), (id(4), 1), (id(4), 2), (id(99), 1)];
    let mut held = store.extend(&owned, LEASE).await.unwrap();
    held.sort_by_key(|held| held.run);
    let expected = [(first.id(), 1, false), (second.id(), 1, true), (id(4), 2, false)];
    let expected = expected.map(|(run, attempt, cancel_requested)| Held { run, attempt, cancel_requested });
    assert_eq!(held, expected);
    assert_eq!(store.extend(&[], LEASE).await.unwrap(), []);
    assert_eq!(get(&*store, first.id()).await.run, first.run, "nothing else changes");
}

pub(crate) async fn runs_of_a_claim_whose_answer_was_lost_are_let_go(harness: &mut dyn Harness) {
    let store = harness.store();
    let (live, mut lost) = (Owner::of_new(&*store, 1).await, Owner::of_new(&*store, 2).await);
    let cancelled = Owner::of_new(&*store, 3).await;
    transition(&*store, cancelled.id(), Command::Cancel, now()).await;
    create(&*store, spec(4)).await;
    assert_eq!(store.let_go_strays("another", &[], now(), 9).await.unwrap(), []);
    let gone = store.let_go_strays("node-1", &[live.id()], now(), 9).await.unwrap();
    assert_eq!(gone.len(), 2);
    let run = get(&*store, lost.id()).await.run;
    assert_eq!((run.status, run.attempt, run.failures, run.crashes), (Status::Queued, 1, 0, 0));
    assert_eq!(status(&*store, cancelled.id()).await, Status::Cancelled);
    assert_eq!(status(&*store, live.id()).await, Status::Running);
    assert_eq!(store.commit(lost.tokens(&["late"])).await.unwrap(), Committed::Fenced);
    assert_eq!(store.let_go_strays("node-1", &[live.id()], now(), 9).await.unwrap(), []);
}

pub(crate) async fn heads_tell_how_logs_stand(harness: &mut dyn Harness) {
    let store = harness.store();
    let mut owner = Owner::of_new(&*store, 1).await;
    commit(&*store, owner.tokens(&["a", "b"])).await;
    create(&*store, spec(2)).await;
    let mut heads = store.heads(&[id(2), id(7), id(1)]).await.unwrap();
    heads.sort_by_key(|head| head.run);
    let running = Head { run: id(1), last_seq: owner.run.last_seq, status: Status::Running };
    let queued = Head { run: id(2), last_seq: 2, status: Status::Queued };
    assert_eq!(heads, [running, queued]);
    assert_eq!(store.heads(&[]).await.unwrap(), []);
}

pub(crate) async fn queued_runs_are_counted_by_agent_and_version(harness: &mut dyn Harness) {
    let store = harness.store();
    for (number, agent, version) in [(1, "chat", "1"), (2, "chat", "2"), (3, "mail", "1"), (4, "chat", "2")] {
        create(&*store, Spec { agent: agent.into(), agent_version: version.into(), ..spec(number) }).await;
    }
    create_due(&*store, Spec { agent: "late".into(), ..spec(5) }, Some(seconds(2_000))).await;
    claim(&*store, 1).await;
    let queued =
        |agent: &str, version: &str, runs, free| Queued { agent: agent.into(), version: version.into(), runs, free };
    let found = async |limits| {
        let mut queued = store.queued(&Arc::new(limits)).await.unwrap();
        queued.sort();
        queued
    };
    let all = [queued("chat", "2", 2, 2), queued("mail", "1", 1, 1)];
    assert_eq!(found(Limits::default()).await, all);
    let limit = |name: &str, most| [(name.to_owned(), most)].into();
    // One of the agent's runs is running, of the first version.
    let agents = Limits { agents: limit("chat", 2), ..Limits::default() };
    assert_eq!(found(agents).await, [queued("chat", "2", 2, 1), queued("mail", "1", 1, 1)]);
    let tenants = Limits { tenants: limit(tenant().as_str(), 1), ..Limits::default() };
    assert_eq!(found(tenants).await, [queued("chat", "2", 2, 0), queued("mail", "1", 1, 0)]);
    let keyed = |number| Spec { agent: "mail".into(), concurrency_key: Some("k".into()), ..spec(number) };
    for number in [6, 7] {
        create(&*store, keyed(number)).await;
    }
    let keys = Limits { keys: limit("mail", 1), tenants: limit("nobody", 0), ..Limits::default() };
    assert_eq!(found(keys).await, [queued("chat", "2", 2, 2), queued("mail", "1", 3, 2)]);
}

pub(crate) async fn depths_tell_what_waits_where(harness: &mut dyn Harness) {
    let store = harness.store();
    assert_eq!(store.depths().await.unwrap(), Depths::default());
    let mut backing_off = Owner::of_new(&*store, 1).await;
    commit(&*store, backing_off.fail(after(60))).await;
    run_in(&*store, 2, Status::Failed).await;
    run_in(&*store, 3, Status::Running).await;
    for (number, priority) in [(4, 0), (5, -7), (6, 1)] {
        create(&*store, Spec { priority, ..spec(number) }).await;
    }
    create_due(&*store, spec(7), Some(seconds(2_000))).await;
    let expected =
        Depths { pending: 2, high_priority: 1, processing: 1, retry: 1, scheduled: 1, waiting: 0, failed: 1 };
    assert_eq!(store.depths().await.unwrap(), expected);
}

fn letter_of(run: RunId, reason: &str) -> DeadLetter {
    let (id, source, payload) = (*run.as_uuid(), "run".to_owned(), Bytes::new());
    DeadLetter { id, at: now(), source, run: Some(run), reason: reason.to_owned(), payload }
}

pub(crate) async fn a_failed_run_leaves_a_dead_letter(harness: &mut dyn Harness) {
    let store = harness.store();
    for (number, status) in (1..).zip([Status::Completed, Status::Cancelled, Status::Expired, Status::Failed]) {
        run_in(&*store, number, status).await;
    }
    let mut backing_off = Owner::of_new(&*store, 5).await;
    commit(&*store, backing_off.fail(after(60))).await;
    let letter = letter_of(id(4), "provider_error: it said \"no\"");
    assert_eq!(store.dead_letters(None, 9).await.unwrap(), std::slice::from_ref(&letter));
    assert_eq!(store.dead_letter(letter.id).await.unwrap().as_ref(), Some(&letter));
    store.delete(&tenant(), id(4)).await.unwrap();
    assert_eq!(store.dead_letter(letter.id).await.unwrap(), None, "it goes with its run");
}

pub(crate) async fn a_run_that_was_recovered_for_the_last_time_leaves_a_dead_letter(harness: &mut dyn Harness) {
    let store = harness.store();
    create(&*store, Spec { max_attempts: 1, ..spec(1) }).await;
    let owner = Owner::next(&*store).await;
    store.give_up(owner.id(), 1, now()).await.unwrap();
    assert_eq!(status(&*store, owner.id()).await, Status::Failed);
    let letters = store.dead_letters(None, 9).await.unwrap();
    assert_eq!(letters.len(), 1);
    assert!(letters[0].reason.starts_with("worker_lost: "), "{}", letters[0].reason);
}

pub(crate) async fn dead_letters_are_listed_by_pages_and_discarded(harness: &mut dyn Harness) {
    let store = harness.store();
    let letter = |number: u128, at| DeadLetter {
        id: Uuid::from_u128(number),
        at: seconds(at),
        source: "jobs:pending".to_owned(),
        run: None,
        reason: "no field agent".to_owned(),
        payload: Bytes::from_static(b"{\"a\":\0\xff}"),
    };
    let letters = [letter(9, 5), letter(1, 6), letter(2, 6), letter(3, 7)];
    for letter in letters.iter().rev() {
        store.bury(letter.clone()).await.unwrap();
    }
    store.bury(DeadLetter { reason: "another".to_owned(), ..letters[0].clone() }).await.unwrap();
    let first = store.dead_letters(None, 2).await.unwrap();
    assert_eq!(first, letters[..2], "the second of one id changes nothing");
    let after = (first[1].at, first[1].id);
    assert_eq!(store.dead_letters(Some(after), 9).await.unwrap(), letters[2..]);

    assert_eq!(store.discard(Discard::One(letters[1].id)).await.unwrap(), 1);
    assert_eq!(store.discard(Discard::One(letters[1].id)).await.unwrap(), 0);
    assert_eq!(store.dead_letters(None, 9).await.unwrap().len(), 3);
    let mut failed = Owner::of_new(&*store, 1).await;
    commit(&*store, failed.fail(Retry::Never)).await;
    assert_eq!(store.discard(Discard::All).await.unwrap(), 4);
    assert_eq!(store.dead_letters(None, 9).await.unwrap(), []);
    assert_eq!(status(&*store, id(1)).await, Status::Failed, "the runs stay");
}

pub(crate) async fn the_first_node_decides_what_is_agreed(harness: &mut dyn Harness) {
    let proposal = |mode: &str, namespace: &str| Proposal { mode: mode.to_owned(), namespace: namespace.to_owned() };
    let (first, other) = (proposal("production", "a"), proposal("local", "b"));
    let agreement = harness.store().agree(&first, false).await.unwrap();
    assert_eq!(agreement.agreed, first);
    assert_eq!(agreement.schema, agreement.known_schema);
    assert!(!agreement.store.is_nil());

    let store = harness.restart().await;
    let again = store.agree(&other, false).await.unwrap();
    assert_eq!((again.store, &again.agreed), (agreement.store, &first));
    assert!(again.clock >= agreement.clock);
    let adopted = store.agree(&other, true).await.unwrap();
    assert_eq!((adopted.store, &adopted.agreed), (agreement.store, &other));
    assert_eq!(store.agree(&first, false).await.unwrap().agreed, other);
}
