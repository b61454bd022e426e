//! Creating runs.

use serde_json::json;

use super::Harness;
use super::kit::*;
use crate::run::{Input, Message, OnDisconnect, Role, Spec, Status, Tenant, Timestamp, Webhook, WebhookEvent};
use crate::store::{Created, IdempotencyKey, NewRun, RunStore, StoreError, TimerKey, TimerKind};

/// A specification that leaves nothing at its default.
fn rich(number: u64) -> Spec {
    let message = |role, content: &str| Message { role, content: content.into() };
    Spec {
        tenant: Tenant::new("acme"),
        agent: "search \"all\"".into(),
        agent_version: "2.0-rc1".into(),
        input: Input::Messages(vec![message(Role::System, "be brief"), message(Role::User, "ünï\0code")]),
        params: json!({"model": "m", "nested": {"list": [1, -2.5, null, true]}}).as_object().unwrap().clone(),
        priority: -7,
        ttl_at: Some(seconds(5_000)),
        timeout_ms: 123_456_789,
        max_attempts: 9,
        on_disconnect: OnDisconnect::Cancel,
        metadata: [("team".into(), "red".into()), ("a.b\"c".into(), "".into())].into(),
        retry_of: Some(id(77)),
        concurrency_key: Some("key-1".into()),
        correlation_id: Some("corr-1".into()),
        webhook: Some(Webhook { url: "https://h.example/é?a=\"b\"".into(), events: vec![WebhookEvent::RunWaiting] }),
        created_at: Timestamp::from_millis(1_000_001),
        ..spec(number)
    }
}

pub(crate) async fn a_run_is_found_as_it_was_created(harness: &mut dyn Harness) {
    let store = harness.store();
    let new = new_run(rich(1), None, 0);
    assert_eq!(store.create(new.clone()).await.unwrap(), Created::New);
    let stored = store.get(&Tenant::new("acme"), id(1)).await.unwrap().unwrap();
    assert_eq!(stored.run, new.run);
    assert_eq!((stored.reserved_seq, stored.cancel_requested), (2, false));
    assert_eq!(store.segments(id(1), 0, 1).await.unwrap(), [new.segment]);
    assert_eq!(store.get(&tenant(), id(1)).await.unwrap(), None, "it is another tenant's");
    assert_eq!(store.get(&tenant(), id(2)).await.unwrap(), None);
}

pub(crate) async fn a_scheduled_run_is_found_as_it_was_created(harness: &mut dyn Harness) {
    let store = harness.store();
    let new = new_run(rich(1), Some(seconds(3_000)), 0);
    assert_eq!(store.create(new.clone()).await.unwrap(), Created::New);
    let stored = store.get(&Tenant::new("acme"), id(1)).await.unwrap().unwrap();
    assert_eq!((stored.run.status, &stored.run), (Status::Scheduled, &new.run));
    let expected = [
        TimerKey { due: seconds(3_000), owner: *id(1).as_uuid(), kind: TimerKind::Due(1) },
        TimerKey { due: seconds(5_000), owner: *id(1).as_uuid(), kind: TimerKind::Ttl },
    ];
    assert_eq!(timers(&*store).await, expected);
}

pub(crate) async fn a_key_finds_the_run_of_the_first_request(harness: &mut dyn Harness) {
    let store = harness.store();
    assert_eq!(store.create(keyed(1, "k", 1)).await.unwrap(), Created::New);
    let owner = Owner::next(&*store).await;
    let again = store.create(NewRun { max_waiting: 0, ..keyed(2, "k", 1) }).await.unwrap();
    let Created::Existing(existing) = again else { panic!("expected the first run, got {again:?}") };
    assert_eq!(existing.run, owner.run, "it is shown as it stands now");
    assert_eq!(store.get(&tenant(), id(2)).await.unwrap(), None);
}

pub(crate) async fn a_key_with_another_body_is_refused(harness: &mut dyn Harness) {
    let store = harness.store();
    assert_eq!(store.create(keyed(1, "k", 1)).await.unwrap(), Created::New);
    assert_eq!(store.create(keyed(2, "k", 2)).await.unwrap(), Created::KeyReused);
    assert_eq!(store.get(&tenant(), id(2)).await.unwrap(), None);
}

pub(crate) async fn keys_are_per_tenant_and_route(harness: &mut dyn Harness) {
    let store = harness.store();
    assert_eq!(store.create(keyed(1, "k", 1)).await.unwrap(), Created::New);
    let mut other_tenant = new_run(Spec { tenant: Tenant::new("acme"), ..spec(2) }, None, 0);
    other_tenant.key = keyed(2, "k", 2).key;
    assert_eq!(store.create(other_tenant).await.unwrap(), Created::New);
    let mut other_route = keyed(3, "k", 3);
    other_route.key = other_route.key.map(|key| IdempotencyKey { route: "/chat", ..key });
    assert_eq!(store.create(other_route).await.unwrap(), Created::New);
    assert_eq!(store.create(keyed(4, "K", 4)).await.unwrap(), Created::New);
}

pub(crate) async fn of_many_requests_with_one_key_one_creates_a_run(harness: &mut dyn Harness) {
    let store = harness.store();
    let requests = (1..=50).map(|number| store.create(keyed(number, "k", 1)));
    let outcomes = futures_util::future::join_all(requests).await;
    let (mut new, mut first) = (Vec::new(), Vec::new());
    for (number, outcome) in (1..).zip(outcomes) {
        match outcome.unwrap() {
            Created::New => new.push(id(number)),
            Created::Existing(existing) => first.push(existing.run.spec.id),
            other @ (Created::KeyReused | Created::TooManyWaiting | Created::TooManyOfTenant) => {
                panic!("unexpected {other:?}")
            }
        }
    }
    assert_eq!((new.len(), first.len()), (1, 49));
    assert!(first.iter().all(|id| *id == new[0]));
    assert_eq!(store.counts().await.unwrap()[&Status::Queued], 1);
}

pub(crate) async fn a_forgotten_key_is_free_again(harness: &mut dyn Harness) {
    let store = harness.store();
    let valid_after = |mut new: NewRun, time| {
        new.key = new.key.map(|key| IdempotencyKey { valid_after: time, ..key });
        new
    };
    // Kept at the time of the run's creation.
    assert_eq!(store.create(keyed(1, "k", 1)).await.unwrap(), Created::New);
    let still = store.create(valid_after(keyed(2, "k", 2), now())).await.unwrap();
    assert_eq!(still, Created::KeyReused);
    let later = Timestamp::from_millis(now().as_millis() + 1);
    assert_eq!(store.create(valid_after(keyed(2, "k", 2), later)).await.unwrap(), Created::New);
    assert!(matches!(store.create(keyed(3, "k", 2)).await.unwrap(), Created::Existing(_)), "run 2 has the key now");

    for number in 10..15 {
        assert_eq!(store.create(keyed(number, &number.to_string(), 1)).await.unwrap(), Created::New);
    }
    assert_eq!(store.forget_keys(now(), 100).await.unwrap(), 0);
    assert_eq!(store.forget_keys(later, 4).await.unwrap(), 4);
    assert_eq!(store.forget_keys(later, 100).await.unwrap(), 2);
    assert_eq!(store.create(keyed(20, "k", 3)).await.unwrap(), Created::New);
}

pub(crate) async fn no_more_runs_are_accepted_than_may_wait(harness: &mut dyn Harness) {
    let store = harness.store();
    let bounded = |number: u64| {
        // Scheduled runs wait, too.
        let due = number.is_multiple_of(2).then(|| seconds(2_000));
        NewRun { max_waiting: 3, ..new_run(spec(number), due, 0) }
    };
    let outcomes = futures_util::future::join_all((1..=10).map(|number| store.create(bounded(number)))).await;
    let outcomes: Vec<_> = outcomes.into_iter().map(Result::unwrap).collect();
    assert_eq!(outcomes.iter().filter(|outcome| **outcome == Created::New).count(), 3);
    assert_eq!(outcomes.iter().filter(|outcome| **outcome == Created::TooManyWaiting).count(), 7);
    assert_eq!(claim(&*store, 1).await.len(), 1);
    assert_eq!(store.create(bounded(11)).await.unwrap(), Created::New);
    assert_eq!(store.create(bounded(13)).await.unwrap(), Created::TooManyWaiting);
}

pub(crate) async fn one_bad_creation_in_a_burst_fails_alone(harness: &mut dyn Harness) {
    let store = harness.store();
    // Run 5 is to take over steps that are not there; its key must not be kept.
    let burst = (1..=9).map(|number| {
        let new = keyed(number, &format!("key {number}"), 1);
        let bad = || new_run(Spec { retry_of: Some(id(99)), ..spec(5) }, None, 4);
        store.create(if number == 5 { NewRun { key: new.key, ..bad() } } else { new })
    });
    let outcomes = futures_util::future::join_all(burst).await;
    for (number, outcome) in (1..).zip(outcomes) {
        match outcome {
            Ok(created) => assert!(number != 5 && created == Created::New, "{number}: {created:?}"),
            Err(error) => assert!(number == 5 && matches!(error, StoreError::Unavailable(_)), "{number}: {error}"),
        }
    }
    assert_eq!(store.counts().await.unwrap()[&Status::Queued], 8);
    assert_eq!(store.segments(id(5), 0, usize::MAX).await.unwrap(), []);
    assert_eq!(store.create(keyed(10, "key 5", 2)).await.unwrap(), Created::New);
    assert_eq!(claim(&*store, 100).await.len(), 9);
}

async fn with_three_steps(store: &dyn RunStore) {
    let mut owner = Owner::of_new(store, 1).await;
    for _ in 0..3 {
        let step = owner.step();
        commit(store, step).await;
    }
    let failed = owner.fail(crate::run::Retry::Never);
    commit(store, failed).await;
}

pub(crate) async fn a_retry_takes_over_the_finished_steps(harness: &mut dyn Harness) {
    let store = harness.store();
    with_three_steps(&*store).await;
    let retry = new_run(Spec { retry_of: Some(id(1)), ..spec(2) }, None, 2);
    assert_eq!(store.create(retry).await.unwrap(), Created::New);
    let claimed = claim(&*store, 1).await;
    assert_eq!(claimed[0].steps, [step_record(1), step_record(2)]);
    assert_eq!(claimed[0].run.steps, 2);
}

pub(crate) async fn a_retry_of_steps_that_are_gone_creates_nothing(harness: &mut dyn Harness) {
    let store = harness.store();
    with_three_steps(&*store).await;
    let retry = || new_run(Spec { retry_of: Some(id(1)), ..spec(2) }, None, 4);
    assert!(matches!(store.create(retry()).await, Err(StoreError::Unavailable(_))));
    assert_eq!(store.get(&tenant(), id(2)).await.unwrap(), None);
    assert_eq!(store.counts().await.unwrap()[&Status::Queued], 0);
}
