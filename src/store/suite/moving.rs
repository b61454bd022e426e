//! Transitions of runs that nobody executes, timers, and removal.

use futures_util::future::join_all;

use super::Harness;
use super::kit::*;
use crate::run::{Command, Effect, Rejection, Retry, Spec, Status, Tenant, Timer};
use crate::store::{Created, Deleted, RunFilter, TimerKey, TimerKind, Transition};

const FINAL: [Status; 4] = [Status::Completed, Status::Failed, Status::Cancelled, Status::Expired];

pub(crate) async fn a_run_that_waits_can_be_cancelled(harness: &mut dyn Harness) {
    let store = harness.store();
    for (number, status) in [(1, Status::Scheduled), (2, Status::Queued)] {
        let run = run_in(&*store, number, status).await;
        let changed = done(transition(&*store, id(number), Command::Cancel, now()).await);
        assert_eq!((changed.run.status, changed.run.finished_at), (Status::Cancelled, Some(now())));
        let disarm: Vec<_> = run.timer.map(Effect::Disarm).into_iter().collect();
        assert_eq!(changed.effects, disarm);
        assert_eq!(changed.segment.first_seq(), 3);
        let stored = get(&*store, id(number)).await;
        assert_eq!((stored.run, stored.reserved_seq), (changed.run, 3));
        assert_eq!(log(&*store, id(number)).await.pop(), Some((3, "run.cancelled".to_owned())));
    }
    assert_eq!(timers(&*store).await, []);
    assert_eq!(claim(&*store, 9).await.len(), 0);
}

pub(crate) async fn a_cancel_of_a_running_run_is_kept_for_its_owner(harness: &mut dyn Harness) {
    let store = harness.store();
    let owner = Owner::of_new(&*store, 1).await;
    let before = log(&*store, id(1)).await;
    for _ in 0..2 {
        let handed = transition(&*store, id(1), Command::Cancel, now()).await;
        let Transition::Handed(stored) = handed else { panic!("expected it to be handed over, got {handed:?}") };
        assert_eq!((stored.run, stored.cancel_requested), (owner.run.clone(), true));
    }
    assert!(get(&*store, id(1)).await.cancel_requested);
    assert_eq!(log(&*store, id(1)).await, before);
}

pub(crate) async fn what_is_asked_of_many_runs_at_once_is_answered_for_each(harness: &mut dyn Harness) {
    let store = harness.store();
    let owner = Owner::of_new(&*store, 1).await;
    for (number, status) in [(4, Status::Completed), (2, Status::Queued), (3, Status::Scheduled), (5, Status::Queued)] {
        run_in(&*store, number, status).await;
    }
    let (own, other) = (tenant(), Tenant::new("other"));
    let cancel = |number, tenant| store.transition(Some(tenant), id(number), Command::Cancel, now());
    let fire = store.transition(None, id(3), Command::Fire { timer: 9 }, now());
    let cancels =
        join_all([(1, &own), (2, &own), (2, &own), (4, &own), (5, &other), (6, &own)].map(|(n, t)| cancel(n, t)));
    let (fired, cancelled) = tokio::join!(fire, cancels);
    assert!(matches!(fired, Ok(Transition::Rejected(..))), "{fired:?}");
    let [handed, first, second, ended, foreign, missing] = &cancelled[..] else { panic!("{cancelled:?}") };
    assert!(matches!(handed, Ok(Transition::Handed(stored)) if stored.run == owner.run), "{handed:?}");
    let done = [first, second].into_iter().filter(|answer| matches!(answer, Ok(Transition::Done(_)))).count();
    let late = [first, second].into_iter().filter(|answer| matches!(answer, Ok(Transition::Rejected(..)))).count();
    assert_eq!((done, late), (1, 1), "{first:?} {second:?}");
    assert!(matches!(ended, Ok(Transition::Rejected(..))), "{ended:?}");
    for nothing in [foreign, missing] {
        assert!(matches!(nothing, Ok(Transition::Missing)), "{nothing:?}");
    }
    assert!(get(&*store, id(1)).await.cancel_requested);
    for (number, expected) in
        [(2, Status::Cancelled), (3, Status::Scheduled), (4, Status::Completed), (5, Status::Queued)]
    {
        assert_eq!(status(&*store, id(number)).await, expected, "run {number}");
    }
}

pub(crate) async fn every_other_command_to_a_running_run_is_rejected(harness: &mut dyn Harness) {
    let store = harness.store();
    let owner = Owner::of_new(&*store, 1).await;
    let commands = [
        Command::Expire,
        Command::Fire { timer: 1 },
        Command::Claim { node: "n".into() },
        Command::Crash { attempt: 1, cancel: false },
        Command::Release { attempt: 1 },
        Command::Timeout { attempt: 1 },
    ];
    for command in commands {
        let rejected = transition(&*store, id(1), command.clone(), now()).await;
        let Transition::Rejected(stored, rejection) = rejected else { panic!("{command:?}: {rejected:?}") };
        assert_eq!((stored.run, rejection), (owner.run.clone(), Rejection::NotNow(Status::Running)));
    }
    assert!(!get(&*store, id(1)).await.cancel_requested);
}

pub(crate) async fn nothing_moves_a_run_that_has_ended(harness: &mut dyn Harness) {
    let store = harness.store();
    for (number, status) in (1..).zip(FINAL) {
        let run = run_in(&*store, number, status).await;
        for command in [Command::Cancel, Command::Expire, Command::Fire { timer: 1 }] {
            let rejected = transition(&*store, id(number), command, seconds(9_000)).await;
            let Transition::Rejected(stored, rejection) = rejected else { panic!("{status}: {rejected:?}") };
            assert_eq!((&stored.run, rejection), (&run, Rejection::Final(status)), "with its output");
        }
        assert_eq!(get(&*store, id(number)).await.run, run);
    }
}

pub(crate) async fn a_run_that_is_not_there_is_missing(harness: &mut dyn Harness) {
    let store = harness.store();
    let run = create(&*store, spec(1)).await;
    assert_eq!(transition(&*store, id(2), Command::Cancel, now()).await, Transition::Missing);
    let other = Tenant::new("acme");
    let moved = store.transition(Some(&other), id(1), Command::Cancel, now()).await.unwrap();
    assert_eq!(moved, Transition::Missing, "it is another tenant's");
    assert_eq!(get(&*store, id(1)).await.run, run);
    let moved = store.transition(None, id(1), Command::Cancel, now()).await.unwrap();
    assert_eq!(done(moved).run.status, Status::Cancelled, "the system itself asks for no tenant");
}

pub(crate) async fn a_run_expires_with_all_its_timers(harness: &mut dyn Harness) {
    let store = harness.store();
    let spec_of = |number| Spec { ttl_at: Some(seconds(3_000)), ..spec(number) };
    create_due(&*store, spec_of(1), Some(seconds(4_000))).await;
    create(&*store, spec_of(2)).await;
    assert_eq!(timers(&*store).await.len(), 3);
    for number in [1, 2] {
        let early = transition(&*store, id(number), Command::Expire, seconds(2_999)).await;
        assert!(matches!(early, Transition::Rejected(_, Rejection::StaleTimer)), "{early:?}");
        let expired = done(transition(&*store, id(number), Command::Expire, seconds(3_000)).await);
        assert_eq!(expired.run.status, Status::Expired);
    }
    assert_eq!(timers(&*store).await, []);
}

pub(crate) async fn a_stale_timer_changes_nothing_and_can_be_dropped(harness: &mut dyn Harness) {
    let store = harness.store();
    let due = seconds(2_000);
    let run = create_due(&*store, spec(1), Some(due)).await;
    assert_eq!(run.timer, Some(Timer { due, id: 1 }));
    let timer = TimerKey { due, owner: *id(1).as_uuid(), kind: TimerKind::Due(1) };
    for (number, time) in [(1, seconds(1_999)), (2, due), (0, due)] {
        let stale = transition(&*store, id(1), Command::Fire { timer: number }, time).await;
        let Transition::Rejected(stored, Rejection::StaleTimer) = stale else { panic!("{number}: {stale:?}") };
        assert_eq!(stored.run, run);
    }
    assert_eq!(timers(&*store).await, [timer]);
    for other in [
        TimerKey { kind: TimerKind::Due(2), ..timer },
        TimerKey { kind: TimerKind::Ttl, ..timer },
        TimerKey { owner: *id(2).as_uuid(), ..timer },
        TimerKey { due: seconds(2_001), ..timer },
    ] {
        store.drop_timer(other).await.unwrap();
    }
    assert_eq!(timers(&*store).await, [timer]);
    store.drop_timer(timer).await.unwrap();
    store.drop_timer(timer).await.unwrap();
    assert_eq!(timers(&*store).await, []);
    // The run itself is as it was: it can still be fired.
    let fired = done(transition(&*store, id(1), Command::Fire { timer: 1 }, due).await);
    assert_eq!(fired.run.status, Status::Queued);
}

pub(crate) async fn timers_are_listed_in_order_and_by_pages(harness: &mut dyn Harness) {
    let store = harness.store();
    // Ties of all kinds: the same time for several runs, and both timers of one run at the same time.
    for number in (1..=20).rev() {
        let due = seconds(2_000 + i64::try_from(number).unwrap() / 4);
        create_due(&*store, Spec { ttl_at: Some(due), ..spec(number) }, Some(due)).await;
    }
    let all = timers(&*store).await;
    assert_eq!(all.len(), 40);
    assert!(all.is_sorted());
    for limit in [1, 7, 40, 41] {
        let (mut pages, mut after) = (Vec::new(), None);
        loop {
            let page = store.timers(seconds(9_000), after, limit).await.unwrap();
            assert!(page.len() <= limit);
            let Some(last) = page.last() else { break };
            assert!(after < Some(*last));
            after = Some(*last);
            pages.extend(page);
        }
        assert_eq!(pages, all, "{limit}");
    }
    let until = store.timers(seconds(2_001), None, 100).await.unwrap();
    assert_eq!(until, all.iter().filter(|timer| timer.due <= seconds(2_001)).copied().collect::<Vec<_>>());
    assert_eq!(until.len(), 14);
}

pub(crate) async fn a_deleted_run_leaves_nothing(harness: &mut dyn Harness) {
    let store = harness.store();
    for (number, status) in (1..).zip(FINAL) {
        run_in(&*store, number, status).await;
    }
    let mut new = keyed(10, "k", 1);
    new.run = new_run(Spec { ttl_at: Some(seconds(9_000)), ..spec(10) }, None, 0).run;
    assert_eq!(store.create(new).await.unwrap(), Created::New);
    let mut owner = Owner::next(&*store).await;
    let step = owner.step();
    commit(&*store, step).await;
    transition(&*store, id(10), Command::Cancel, now()).await;
    let cancel = owner.decide(&Command::Cancel);
    commit(&*store, cancel).await;

    let before = store.counts().await.unwrap();
    assert_eq!(store.delete(&Tenant::new("acme"), id(10)).await.unwrap(), Deleted::Missing);
    for number in [1, 2, 3, 4, 10] {
        assert_eq!(store.delete(&tenant(), id(number)).await.unwrap(), Deleted::Done);
        assert_eq!(store.delete(&tenant(), id(number)).await.unwrap(), Deleted::Missing);
        assert_eq!(store.get(&tenant(), id(number)).await.unwrap(), None);
        assert_eq!(store.segments(id(number), 0, usize::MAX).await.unwrap(), []);
    }
    assert_eq!(store.list(&tenant(), RunFilter::default(), 100).await.unwrap(), []);
    assert_eq!((timers(&*store).await, store.counts().await.unwrap()), (Vec::new(), before));
    // Neither its key, nor its steps, nor its cancel come back with a new run of the same id.
    assert_eq!(store.create(keyed(10, "k", 2)).await.unwrap(), Created::New);
    let again = claim(&*store, 1).await.pop().unwrap();
    assert_eq!((again.run.attempt, again.steps.len()), (1, 0));
    assert!(!get(&*store, id(10)).await.cancel_requested);
    let mut owner = Owner::from(again);
    let step = owner.step();
    commit(&*store, step).await;
    let complete = owner.complete();
    commit(&*store, complete).await;
}

pub(crate) async fn only_runs_that_have_ended_are_deleted(harness: &mut dyn Harness) {
    let store = harness.store();
    for (number, status) in [(1, Status::Running), (2, Status::Scheduled), (3, Status::Queued)] {
        let run = run_in(&*store, number, status).await;
        assert_eq!(store.delete(&tenant(), id(number)).await.unwrap(), Deleted::NotFinal(status));
        assert_eq!(get(&*store, id(number)).await.run, run);
    }
    assert_eq!(timers(&*store).await.len(), 1);
    let mut owner = Owner::next(&*store).await;
    let failed = owner.fail(Retry::Never);
    commit(&*store, failed).await;
    assert_eq!(store.delete(&tenant(), id(3)).await.unwrap(), Deleted::Done);
}
