//! Schedules, runs that are created again, and the removal of what is old.

use futures_util::future::join_all;
use serde_json::json;
use uuid::Uuid;

use super::Harness;
use super::kit::*;
use crate::run::{Command, Input, OnDisconnect, Retry, Spec, Status, Tenant, Timestamp};
use crate::schedule::{Missed, Request};
use crate::store::{Created, IdempotencyKey, NewRun, Schedule, ScheduleCreated, Store, TimerKey, TimerKind};

/// A schedule that leaves nothing at its default.
fn schedule(number: u128) -> Schedule {
    let request = Request {
        agent: "chat \"1\"".into(),
        input: Input::Text("ünï\0code".into()),
        params: json!({"model": "m", "list": [1, null]}).as_object().unwrap().clone(),
        priority: -7,
        ttl_ms: Some(5),
        timeout_ms: Some(6),
        max_attempts: Some(7),
        on_disconnect: OnDisconnect::Cancel,
        thread_id: None,
        on_busy: None,
        metadata: [("team".into(), "red".into())].into(),
    };
    Schedule {
        id: Uuid::from_u128(number),
        tenant: tenant(),
        cron: "*/5 * * * *".into(),
        timezone: "Europe/Berlin".into(),
        request,
        missed: Missed::Skip,
        enabled: true,
        next_at: Some(seconds(2_000)),
        number: 1,
        last_at: Some(seconds(500)),
        last_run: Some(id(9)),
        last_error: Some("no agent \"x\"".into()),
        created_at: now(),
    }
}

fn timer(number: u128, due: Timestamp, firing: u64) -> TimerKey {
    TimerKey { due, owner: Uuid::from_u128(number), kind: TimerKind::Schedule(firing) }
}

fn key(key: &str, body: u8) -> Option<IdempotencyKey> {
    let (key, valid_after) = (key.to_owned(), Timestamp::from_millis(0));
    Some(IdempotencyKey { route: "/schedules", key, fingerprint: [body; 32], valid_after })
}

async fn keep(store: &dyn Store, schedule: Schedule) {
    assert_eq!(store.create_schedule(schedule, None).await.unwrap(), ScheduleCreated::New);
}

pub(crate) async fn a_schedule_is_found_as_it_was_created_with_its_timer(harness: &mut dyn Harness) {
    let store = harness.store();
    let disabled = Schedule { enabled: false, ..schedule(2) };
    let never_again = Schedule { next_at: None, last_at: None, last_run: None, last_error: None, ..schedule(3) };
    for schedule in [schedule(1), disabled.clone(), never_again.clone()] {
        keep(&*store, schedule).await;
    }
    assert_eq!(timers(&*store).await, [timer(1, seconds(2_000), 1)]);
    let store = harness.restart().await;
    assert_eq!(store.schedule(Some(&tenant()), Uuid::from_u128(1)).await.unwrap(), Some(schedule(1)));
    assert_eq!(store.schedule(None, Uuid::from_u128(2)).await.unwrap(), Some(disabled));
    assert_eq!(store.schedule(None, Uuid::from_u128(3)).await.unwrap(), Some(never_again));
    assert_eq!(store.schedule(Some(&Tenant::new("acme")), Uuid::from_u128(1)).await.unwrap(), None);
    assert_eq!(store.schedule(None, Uuid::from_u128(4)).await.unwrap(), None);
    assert_eq!(timers(&*store).await, [timer(1, seconds(2_000), 1)]);
}

pub(crate) async fn schedules_are_listed_by_stable_pages(harness: &mut dyn Harness) {
    let store = harness.store();
    keep(&*store, Schedule { tenant: Tenant::new("acme"), ..schedule(9) }).await;
    for number in [2, 1, 3] {
        keep(&*store, schedule(number)).await;
    }
    let page = store.schedules(&tenant(), None, 2).await.unwrap();
    assert_eq!(page, [schedule(3), schedule(2)]);
    keep(&*store, schedule(4)).await;
    assert_eq!(store.schedules(&tenant(), Some(page[1].id), 9).await.unwrap(), [schedule(1)]);
}

pub(crate) async fn a_key_finds_the_schedule_of_the_first_request(harness: &mut dyn Harness) {
    let store = harness.store();
    assert_eq!(store.create_schedule(schedule(1), key("k", 1)).await.unwrap(), ScheduleCreated::New);
    let existing = ScheduleCreated::Existing(Box::new(schedule(1)));
    assert_eq!(store.create_schedule(schedule(2), key("k", 1)).await.unwrap(), existing);
    assert_eq!(store.create_schedule(schedule(2), key("k", 2)).await.unwrap(), ScheduleCreated::KeyReused);
    assert_eq!(store.schedule(None, Uuid::from_u128(2)).await.unwrap(), None);
    // Runs have keys of their own.
    assert_eq!(store.create(keyed(1, "k", 3)).await.unwrap(), Created::New);
    assert!(store.delete_schedule(&tenant(), Uuid::from_u128(1)).await.unwrap());
    assert_eq!(store.create_schedule(schedule(2), key("k", 2)).await.unwrap(), ScheduleCreated::New);
    let later = key("k", 7).map(|key| IdempotencyKey { valid_after: seconds(1_001), ..key });
    assert_eq!(store.create_schedule(schedule(3), later).await.unwrap(), ScheduleCreated::New, "it is forgotten");
}

pub(crate) async fn of_many_requests_with_one_key_one_creates_a_schedule(harness: &mut dyn Harness) {
    let store = harness.store();
    let created = join_all((1..=20).map(|number| store.create_schedule(schedule(number), key("k", 1)))).await;
    let new = created.iter().filter(|created| matches!(created, Ok(ScheduleCreated::New))).count();
    assert_eq!(new, 1, "{created:?}");
    assert_eq!(store.schedules(&tenant(), None, 99).await.unwrap().len(), 1);
    assert_eq!(timers(&*store).await.len(), 1);
}

pub(crate) async fn a_schedule_advances_once_for_each_number(harness: &mut dyn Harness) {
    let store = harness.store();
    keep(&*store, schedule(1)).await;
    let fired = Schedule {
        number: 2,
        next_at: Some(seconds(3_000)),
        last_at: Some(seconds(2_000)),
        last_run: Some(id(10)),
        last_error: None,
        ..schedule(1)
    };
    // Of several nodes one is the first.
    let advanced = join_all((0..8).map(|_| store.advance_schedule(fired.clone()))).await;
    assert_eq!(advanced.into_iter().filter(|advanced| *advanced.as_ref().unwrap()).count(), 1);
    assert_eq!(store.schedule(None, fired.id).await.unwrap().as_ref(), Some(&fired));
    assert_eq!(timers(&*store).await, [timer(1, seconds(3_000), 2)]);
    assert!(!store.advance_schedule(Schedule { number: 4, ..fired.clone() }).await.unwrap(), "one number is left out");

    let changed = Schedule {
        number: 3,
        cron: "@daily".into(),
        timezone: "UTC".into(),
        missed: Missed::RunOnce,
        enabled: false,
        next_at: None,
        request: Request { agent: "other".into(), ..fired.request.clone() },
        ..fired
    };
    assert!(store.advance_schedule(changed.clone()).await.unwrap());
    assert_eq!(store.schedule(None, changed.id).await.unwrap().as_ref(), Some(&changed));
    assert_eq!(timers(&*store).await, []);
    let again = Schedule { number: 4, enabled: true, next_at: Some(seconds(4_000)), ..changed };
    assert!(store.advance_schedule(again).await.unwrap());
    assert_eq!(timers(&*store).await, [timer(1, seconds(4_000), 4)]);
}

pub(crate) async fn a_deleted_schedule_leaves_nothing(harness: &mut dyn Harness) {
    let store = harness.store();
    keep(&*store, schedule(1)).await;
    keep(&*store, schedule(2)).await;
    assert!(!store.delete_schedule(&Tenant::new("acme"), Uuid::from_u128(1)).await.unwrap());
    assert!(store.delete_schedule(&tenant(), Uuid::from_u128(1)).await.unwrap());
    assert!(!store.delete_schedule(&tenant(), Uuid::from_u128(1)).await.unwrap());
    assert!(!store.advance_schedule(Schedule { number: 2, ..schedule(1) }).await.unwrap());
    assert_eq!(store.schedules(&tenant(), None, 9).await.unwrap(), [schedule(2)]);
    assert_eq!(timers(&*store).await, [timer(2, seconds(2_000), 1)]);
}

pub(crate) async fn a_run_that_is_there_already_is_found(harness: &mut dyn Harness) {
    let store = harness.store();
    let labelled = Spec { ttl_at: Some(seconds(5_000)), ..spec(1) };
    // Of several nodes one is the first; the others bring their own times.
    let created = join_all((0..8).map(|late| {
        let spec = Spec { created_at: seconds(1_000 + late), ..labelled.clone() };
        store.create(new_run(spec, None, 0))
    }))
    .await;
    let created: Vec<_> = created.into_iter().map(Result::unwrap).collect();
    assert_eq!(created.iter().filter(|created| **created == Created::New).count(), 1, "{created:?}");
    let stored = get(&*store, id(1)).await;
    for created in created.into_iter().filter(|created| *created != Created::New) {
        assert_eq!(created, Created::Existing(Box::new(stored.clone())));
    }
    assert_eq!((log(&*store, id(1)).await.len(), timers(&*store).await.len()), (2, 1), "nothing is there twice");
    assert_eq!(store.counts().await.unwrap()[&Status::Queued], 1);

    // Among others, while no more may wait, and when it has long ended.
    let again = || NewRun { max_waiting: 1, ..new_run(spec(1), None, 0) };
    let (first, other) = tokio::join!(store.create(again()), store.create(new_run(spec(2), None, 0)));
    assert!(matches!(first.unwrap(), Created::Existing(_)));
    assert_eq!(other.unwrap(), Created::New);
    let another = NewRun { max_waiting: 1, ..new_run(spec(3), None, 0) };
    assert_eq!(store.create(another).await.unwrap(), Created::TooManyWaiting);
    transition(&*store, id(1), Command::Cancel, now()).await;
    let Created::Existing(existing) = store.create(again()).await.unwrap() else { panic!("it is there") };
    assert_eq!(existing.run.status, Status::Cancelled);
    let keyed_again = NewRun { key: keyed(1, "k", 1).key, ..again() };
    assert!(matches!(store.create(keyed_again).await.unwrap(), Created::Existing(_)));
}

/// Lets a run end at a time, in a way.
async fn ended(store: &dyn Store, number: u64, status: Status, at: Timestamp) {
    match status {
        Status::Cancelled => {
            assert_eq!(store.create(keyed(number, &number.to_string(), 1)).await.unwrap(), Created::New);
            done(transition(store, id(number), Command::Cancel, at).await);
        }
        Status::Scheduled
        | Status::Queued
        | Status::Running
        | Status::Waiting
        | Status::Completed
        | Status::Failed
        | Status::Expired => {
            let mut owner = Owner::of_new(store, number).await;
            commit(store, owner.step()).await;
            let (attempt, usage) = (owner.run.attempt, USED);
            let command = if status == Status::Failed {
                let error = crate::run::RunError { code: "e".into(), message: "m".into() };
                let failure = crate::run::Failure { error, retry: Retry::Never, usage };
                Command::Fail { attempt, failure }
            } else {
                Command::Complete { attempt, output: json!("done"), outcome: "finished".into(), usage }
            };
            let context = crate::run::Context { now: at, next_seq: owner.run.last_seq + 1, busy: false, spent: None };
            let decision = owner.run.decide(&command, &context).unwrap();
            let end = owner.events(&decision.events, at);
            commit(store, end).await;
        }
    }
    assert_eq!(get(store, id(number)).await.run.finished_at, Some(at));
}

pub(crate) async fn runs_are_removed_when_they_ended_long_ago(harness: &mut dyn Harness) {
    let store = harness.store();
    // The oldest ends last.
    ended(&*store, 1, Status::Completed, seconds(4_000)).await;
    ended(&*store, 2, Status::Completed, seconds(2_000)).await;
    ended(&*store, 3, Status::Failed, seconds(1_500)).await;
    ended(&*store, 4, Status::Cancelled, seconds(1_800)).await;
    let running = Owner::of_new(&*store, 5).await;
    create(&*store, spec(6)).await;
    create_due(&*store, spec(7), Some(seconds(1_200))).await;
    assert_eq!(store.remove_finished(seconds(1_500), 9).await.unwrap(), [], "the very time is not before");

    let mut removed = Vec::new();
    loop {
        let batch = store.remove_finished(seconds(3_000), 2).await.unwrap();
        if batch.is_empty() {
            break;
        }
        assert!(batch.len() <= 2);
        removed.extend(batch);
    }
    assert_eq!(removed, [id(3), id(4), id(2)], "what ended first goes first");
    for number in [2, 3, 4] {
        assert_eq!(store.get(&tenant(), id(number)).await.unwrap(), None);
        assert_eq!(store.segments(id(number), 0, 1 << 20).await.unwrap(), []);
        assert_eq!(store.dead_letter(*id(number).as_uuid()).await.unwrap(), None);
    }
    assert_eq!(store.create(keyed(40, "4", 2)).await.unwrap(), Created::New, "the key went with its run");
    assert_eq!(get(&*store, id(1)).await.run.status, Status::Completed);
    assert_eq!(log(&*store, id(1)).await.len(), 5);
    assert_eq!(get(&*store, running.id()).await.run, running.run);
    assert_eq!((status(&*store, id(6)).await, status(&*store, id(7)).await), (Status::Queued, Status::Scheduled));
    assert_eq!(store.counts().await.unwrap()[&Status::Queued], 2);
}

pub(crate) async fn several_nodes_remove_each_run_once(harness: &mut dyn Harness) {
    let store = harness.store();
    for number in 1..=40 {
        ended(&*store, number, Status::Cancelled, seconds(1_000)).await;
    }
    let all = join_all((0..4).map(|_| async {
        let mut removed = Vec::new();
        for _ in 0..40 {
            removed.extend(store.remove_finished(seconds(2_000), 3).await.unwrap());
        }
        removed
    }))
    .await;
    let mut removed: Vec<_> = all.into_iter().flatten().collect();
    removed.sort_unstable();
    assert_eq!(removed, (1..=40).map(id).collect::<Vec<_>>());
}
