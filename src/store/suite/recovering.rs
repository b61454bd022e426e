//! What a killed process leaves behind.

use super::Harness;
use super::kit::*;
use crate::run::{Command, Effect, Rejection, Spec, Status};
use crate::store::{Committed, RunFilter, Transition};

pub(crate) async fn everything_survives_a_restart(harness: &mut dyn Harness) {
    let store = harness.store();
    let statuses = Status::ALL.into_iter().filter(|status| *status != Status::Waiting && *status != Status::Queued);
    for (number, status) in (1..).zip(statuses) {
        run_in(&*store, number, status).await;
    }
    store.create(keyed(20, "k", 1)).await.unwrap();
    let mut expected = Vec::new();
    for number in 1..=20 {
        let stored = store.get(&tenant(), id(number)).await.unwrap();
        expected.push((stored, store.segments(id(number), 0, usize::MAX).await.unwrap()));
    }
    let (listed, timed) = (store.list(&tenant(), RunFilter::default(), 99).await.unwrap(), timers(&*store).await);
    let counted = store.counts().await.unwrap();
    assert_eq!((listed.len(), timed.len()), (7, 1));

    let store = harness.restart().await;
    for (number, expected) in (1..=20).zip(expected) {
        let stored = store.get(&tenant(), id(number)).await.unwrap();
        assert_eq!((stored, store.segments(id(number), 0, usize::MAX).await.unwrap()), expected);
    }
    assert_eq!(store.list(&tenant(), RunFilter::default(), 99).await.unwrap(), listed);
    assert_eq!((timers(&*store).await, store.counts().await.unwrap()), (timed, counted));
    assert!(matches!(store.create(keyed(21, "k", 1)).await.unwrap(), crate::store::Created::Existing(_)));
}

pub(crate) async fn a_run_without_owner_gets_another_attempt(harness: &mut dyn Harness) {
    let store = harness.store();
    let mut owner = Owner::of_new(&*store, 1).await;
    let (step, tokens) = (owner.step(), owner.tokens(&["half an"]));
    commit(&*store, step).await;
    commit(&*store, tokens).await;
    let shown_up_to = owner.reserved_seq;

    let store = harness.restart().await;
    assert_eq!(get(&*store, id(1)).await.run, owner.run, "nothing happens by itself");
    let recovered = store.recover(seconds(1_100), 10).await.unwrap();
    let [Transition::Done(changed)] = &recovered[..] else { panic!("{recovered:?}") };
    assert_eq!((changed.run.status, changed.run.crashes), (Status::Queued, 1));
    assert_eq!(changed.effects, [Effect::StopAgent, Effect::Wake]);
    assert_eq!(changed.segment.first_seq(), shown_up_to + 1);
    let retrying = changed.segment.events().next().unwrap();
    let data: serde_json::Value = serde_json::from_str(retrying.data).unwrap();
    assert_eq!(retrying.kind, "run.retrying");
    assert_eq!((&data["reason"], &data["skips_to"]), (&"worker_lost".into(), &(shown_up_to + 1).into()));
    let stored = get(&*store, id(1)).await;
    assert_eq!((&stored.run, stored.reserved_seq), (&changed.run, shown_up_to + 1));
    assert_eq!(store.recover(now(), 10).await.unwrap(), []);
    assert_eq!(store.commit(owner.tokens(&["late"])).await.unwrap(), Committed::Fenced);

    let claimed = claim(&*store, 1).await.pop().unwrap();
    assert_eq!((claimed.run.attempt, claimed.segment.first_seq()), (2, shown_up_to + 2));
    assert_eq!(claimed.steps, [step_record(1)]);
    let numbers: Vec<_> = log(&*store, id(1)).await.into_iter().map(|(seq, _)| seq).collect();
    assert_eq!(numbers, [1, 2, 3, 4, 5, shown_up_to + 1, shown_up_to + 2]);
}

pub(crate) async fn a_run_that_kills_its_workers_fails(harness: &mut dyn Harness) {
    let mut store = harness.store();
    create(&*store, Spec { max_attempts: 2, ..spec(1) }).await;
    for expected in [Status::Queued, Status::Failed] {
        assert_eq!(claim(&*store, 1).await.len(), 1);
        store = harness.restart().await;
        assert_eq!(store.recover(now(), 10).await.unwrap().len(), 1);
        assert_eq!(status(&*store, id(1)).await, expected);
    }
    let run = get(&*store, id(1)).await.run;
    assert_eq!(run.error.map(|error| error.code).as_deref(), Some("worker_lost"));
    assert_eq!(claim(&*store, 1).await.len(), 0);
}

pub(crate) async fn a_cancel_that_waited_is_carried_out(harness: &mut dyn Harness) {
    let store = harness.store();
    Owner::of_new(&*store, 1).await;
    transition(&*store, id(1), Command::Cancel, now()).await;
    let store = harness.restart().await;
    assert!(get(&*store, id(1)).await.cancel_requested);
    let recovered = store.recover(now(), 10).await.unwrap();
    let [Transition::Done(changed)] = &recovered[..] else { panic!("{recovered:?}") };
    assert_eq!(changed.run.status, Status::Cancelled);
    let stored = get(&*store, id(1)).await;
    assert_eq!((stored.run.status, stored.cancel_requested), (Status::Cancelled, false));
}

pub(crate) async fn runs_are_recovered_by_portions_and_once(harness: &mut dyn Harness) {
    let store = harness.store();
    for number in 1..=25 {
        create(&*store, spec(number)).await;
    }
    assert_eq!(claim(&*store, 25).await.len(), 25);
    let store = harness.restart().await;
    assert_eq!(store.counts().await.unwrap()[&Status::Running], 25);
    let at_once = futures_util::future::join_all((0..2).map(|_| store.recover(now(), 10))).await;
    assert_eq!(at_once.into_iter().map(|recovered| recovered.unwrap().len()).sum::<usize>(), 20);
    assert_eq!(store.recover(now(), 10).await.unwrap().len(), 5);
    assert_eq!(store.recover(now(), 10).await.unwrap(), []);
    assert_eq!(store.counts().await.unwrap()[&Status::Queued], 25);
}

pub(crate) async fn runs_claimed_after_the_start_are_left_alone(harness: &mut dyn Harness) {
    let store = harness.store();
    Owner::of_new(&*store, 1).await;
    create(&*store, spec(2)).await;
    let store = harness.restart().await;
    // Run 1 is given up and claimed again before anyone recovers; run 2 is claimed for the first time.
    done(store.give_up(id(1), 1, now()).await.unwrap());
    assert_eq!(claim(&*store, 2).await.len(), 2);
    assert_eq!(store.recover(now(), 10).await.unwrap(), []);
    for number in [1, 2] {
        assert_eq!(status(&*store, id(number)).await, Status::Running);
    }
}

pub(crate) async fn an_attempt_that_lost_its_owner_is_given_up(harness: &mut dyn Harness) {
    let store = harness.store();
    let mut owner = Owner::of_new(&*store, 1).await;
    for (attempt, number) in [(0, 1), (2, 1)] {
        let rejected = store.give_up(id(number), attempt, now()).await.unwrap();
        assert!(matches!(rejected, Transition::Rejected(_, Rejection::StaleAttempt { current: 1 })), "{rejected:?}");
    }
    assert_eq!(store.give_up(id(2), 1, now()).await.unwrap(), Transition::Missing);
    let changed = done(store.give_up(id(1), 1, now()).await.unwrap());
    assert_eq!((changed.run.status, changed.run.crashes), (Status::Queued, 1));
    assert_eq!(changed.segment.first_seq(), owner.reserved_seq + 1);
    assert_eq!(store.commit(owner.tokens(&["late"])).await.unwrap(), Committed::Fenced);
    let again = store.give_up(id(1), 1, now()).await.unwrap();
    assert!(matches!(again, Transition::Rejected(_, Rejection::NotNow(Status::Queued))), "{again:?}");

    // A cancel that waits is carried out, but only for the attempt that is running.
    Owner::next(&*store).await;
    transition(&*store, id(1), Command::Cancel, now()).await;
    let stale = store.give_up(id(1), 1, now()).await.unwrap();
    assert!(matches!(stale, Transition::Rejected(_, Rejection::StaleAttempt { current: 2 })), "{stale:?}");
    let changed = done(store.give_up(id(1), 2, now()).await.unwrap());
    assert_eq!(changed.run.status, Status::Cancelled);
}
