//! Endpoints, and the outbox of what is to be told them.

use std::time::Duration;

use bytes::Bytes;
use uuid::Uuid;

use super::Harness;
use super::kit::*;
use super::threads::thread;
use crate::run::{Command, Retry, RunId, Spec, Status, Tenant, ThreadId, Webhook, WebhookEvent};
use crate::store::{
    DeadLetter, Deleted, Delivery, DeliveryFilter, DeliveryStatus, Due, Endpoint, EndpointCreated, EndpointPatch,
    IdempotencyKey, Redelivered, Rotated, Settled, Settlement, Store, ThreadDeleted, ThreadNews,
};

const MANY: u64 = 1_000;

fn endpoint_id(number: u128) -> Uuid {
    Uuid::from_u128(0xe000 + number)
}

/// An endpoint for all ends of runs.
pub(crate) fn endpoint(number: u128) -> Endpoint {
    Endpoint {
        id: endpoint_id(number),
        tenant: tenant(),
        url: format!("https://h{number}.example/hook?a=\"b\""),
        events: WebhookEvent::FINAL.to_vec(),
        agent: None,
        enabled: true,
        secret_version: 1,
        rotated_at: None,
        created_at: now(),
    }
}

async fn keep(store: &dyn Store, endpoint: Endpoint) {
    assert_eq!(store.create_endpoint(endpoint, None, MANY).await.unwrap(), EndpointCreated::New);
}

async fn claim_due(store: &dyn Store, lease: Duration) -> Vec<Due> {
    store.claim_deliveries(seconds(5_000), lease, 100).await.unwrap()
}

/// What is in the outbox, claimed for good.
async fn outbox(store: &dyn Store) -> Vec<(Option<Uuid>, WebhookEvent, Option<RunId>)> {
    let mut told: Vec<_> = claim_due(store, LEASE)
        .await
        .into_iter()
        .map(|due| (due.delivery.endpoint, due.delivery.event, due.delivery.run))
        .collect();
    told.sort();
    told
}

async fn settle(store: &dyn Store, due: &Due, settlement: Settlement) -> bool {
    let settled = Settled { id: due.delivery.id, claim: due.claim, settlement };
    store.settle_delivery(settled, seconds(6_000)).await.unwrap()
}

async fn all(store: &dyn Store) -> Vec<Delivery> {
    store.deliveries(&tenant(), DeliveryFilter::default(), 1_000).await.unwrap()
}

/// Completes run `number` for one endpoint, and claims the delivery.
async fn told(store: &dyn Store, number: u64) -> Due {
    let complete = Owner::of_new(store, number).await.complete();
    commit(store, complete).await;
    let mut due = claim_due(store, LEASE).await;
    assert_eq!(due.len(), 1);
    due.remove(0)
}

pub(crate) async fn every_end_of_a_run_is_told_once_whatever_brought_it(harness: &mut dyn Harness) {
    let store = harness.store();
    keep(&*store, endpoint(1)).await;
    // By its owner.
    let mut owner = Owner::of_new(&*store, 1).await;
    let tokens = owner.tokens(&["a"]);
    commit(&*store, tokens).await;
    let step = owner.step();
    commit(&*store, step).await;
    let complete = owner.complete();
    commit(&*store, complete.clone()).await;
    // The answer was lost: it is sent again.
    commit(&*store, complete).await;
    let mut owner = Owner::of_new(&*store, 2).await;
    commit(&*store, owner.fail(Retry::Never)).await;
    let mut owner = Owner::of_new(&*store, 3).await;
    transition(&*store, id(3), Command::Cancel, now()).await;
    let cancel = owner.decide(&Command::Cancel);
    commit(&*store, cancel).await;
    // By nobody's.
    run_in(&*store, 4, Status::Cancelled).await;
    run_in(&*store, 5, Status::Expired).await;
    // By the last crash of its owner.
    create(&*store, Spec { max_attempts: 1, ..spec(6) }).await;
    let owner = Owner::next(&*store).await;
    store.give_up(owner.id(), 1, now()).await.unwrap();
    // Not at all.
    let mut owner = Owner::of_new(&*store, 7).await;
    commit(&*store, owner.fail(after(60))).await;
    run_in(&*store, 8, Status::Scheduled).await;
    run_in(&*store, 9, Status::Running).await;
    run_in(&*store, 10, Status::Queued).await;

    let expected = [
        (WebhookEvent::RunCompleted, 1),
        (WebhookEvent::RunFailed, 2),
        (WebhookEvent::RunFailed, 6),
        (WebhookEvent::RunCancelled, 3),
        (WebhookEvent::RunCancelled, 4),
        (WebhookEvent::RunExpired, 5),
    ];
    let expected = expected.map(|(event, number)| (Some(endpoint_id(1)), event, Some(id(number))));
    assert_eq!(outbox(&*store).await, expected);
    for delivery in all(&*store).await {
        assert_eq!((delivery.at, delivery.status, delivery.attempts), (now(), DeliveryStatus::Pending, 0));
        assert_eq!((delivery.thread, delivery.data, delivery.settled_at), (None, None, None));
    }
}

pub(crate) async fn a_run_that_was_recovered_for_the_last_time_is_told(harness: &mut dyn Harness) {
    let store = harness.store();
    keep(&*store, endpoint(1)).await;
    create(&*store, Spec { max_attempts: 1, ..spec(1) }).await;
    Owner::next(&*store).await;
    let store = harness.restart().await;
    assert_eq!(store.recover(now(), 9).await.unwrap().len(), 1);
    assert_eq!(outbox(&*store).await, [(Some(endpoint_id(1)), WebhookEvent::RunFailed, Some(id(1)))]);
}

pub(crate) async fn only_who_wants_the_news_is_told_them(harness: &mut dyn Harness) {
    let store = harness.store();
    let events = |events: &[WebhookEvent]| events.to_vec();
    keep(&*store, endpoint(1)).await;
    keep(&*store, Endpoint { agent: Some("chat".into()), ..endpoint(2) }).await;
    keep(&*store, Endpoint { agent: Some("mail".into()), ..endpoint(3) }).await;
    keep(&*store, Endpoint { enabled: false, ..endpoint(4) }).await;
    keep(&*store, Endpoint { events: events(&[WebhookEvent::RunFailed]), ..endpoint(5) }).await;
    keep(&*store, Endpoint { tenant: Tenant::new("acme"), ..endpoint(6) }).await;
    let own = Webhook { url: "https://own.example".into(), events: events(&[WebhookEvent::RunCompleted]) };
    create(&*store, Spec { webhook: Some(own.clone()), ..spec(1) }).await;
    let complete = Owner::next(&*store).await.complete();
    commit(&*store, complete).await;
    create(&*store, Spec { webhook: Some(own.clone()), ..spec(2) }).await;
    let mut failing = Owner::next(&*store).await;
    assert_eq!(failing.run.spec.webhook.as_ref(), Some(&own), "the claim knows it");
    commit(&*store, failing.fail(Retry::Never)).await;

    let [one, two, five] = [1, 2, 5].map(|number| Some(endpoint_id(number)));
    let completed = (WebhookEvent::RunCompleted, Some(id(1)));
    let failed = (WebhookEvent::RunFailed, Some(id(2)));
    let of = |to, (event, run): (WebhookEvent, Option<RunId>)| (to, event, run);
    let expected = [
        of(None, completed),
        of(one, completed),
        of(one, failed),
        of(two, completed),
        of(two, failed),
        of(five, failed),
    ];
    assert_eq!(outbox(&*store).await, expected);
    assert_eq!(get(&*store, id(2)).await.run.spec.webhook, Some(own));
}

pub(crate) async fn news_of_a_thread_are_told_with_their_data(harness: &mut dyn Harness) {
    let store = harness.store();
    let handed_off = vec![WebhookEvent::ThreadHandedOff];
    keep(&*store, Endpoint { events: handed_off.clone(), ..endpoint(1) }).await;
    keep(&*store, Endpoint { events: handed_off, agent: Some("chat".into()), ..endpoint(2) }).await;
    keep(&*store, endpoint(3)).await;
    let news = ThreadNews {
        tenant: tenant(),
        thread: "t-1".into(),
        event: WebhookEvent::ThreadHandedOff,
        data: "{\"reason\":\"asked \\u0000\"}".into(),
        at: now(),
    };
    store.announce(news.clone()).await.unwrap();
    let due = claim_due(&*store, LEASE).await;
    assert_eq!(due.len(), 1);
    let Due { delivery, endpoint: to, .. } = &due[0];
    assert_eq!(to.as_ref().map(|to| to.id), Some(endpoint_id(1)));
    assert_eq!((&delivery.event, delivery.at), (&news.event, news.at));
    assert_eq!((delivery.run, &delivery.thread, &delivery.data), (None, &Some(news.thread), &Some(news.data)));
}

pub(crate) async fn a_delivery_is_its_claims_until_the_lease_ends(harness: &mut dyn Harness) {
    let store = harness.store();
    keep(&*store, endpoint(1)).await;
    for number in 1..=20 {
        let complete = Owner::of_new(&*store, number).await.complete();
        commit(&*store, complete).await;
    }
    // Many at once: nobody gets what another has.
    let claims = (0..10).map(|_| store.claim_deliveries(seconds(5_000), LEASE, 3));
    let claimed = futures_util::future::join_all(claims).await;
    let mut ids: Vec<_> = claimed.iter().flatten().flatten().map(|due| due.delivery.id).collect();
    ids.extend(claim_due(&*store, LEASE).await.iter().map(|due| due.delivery.id));
    ids.sort_unstable();
    let count = ids.len();
    ids.dedup();
    assert_eq!((ids.len(), count), (20, 20));

    let complete = Owner::of_new(&*store, 21).await.complete();
    commit(&*store, complete).await;
    let lost = claim_due(&*store, Duration::ZERO).await.remove(0);
    let again = claim_due(&*store, LEASE).await.remove(0);
    assert_eq!(again.delivery.id, lost.delivery.id, "the receiver knows it by its id");
    assert!(again.claim > lost.claim);
    assert_eq!(again.endpoint, Some(endpoint(1)));
    assert!(!settle(&*store, &lost, Settlement::Delivered(200)).await, "it is another claim's");
    assert!(settle(&*store, &again, Settlement::Delivered(204)).await);
    assert!(!settle(&*store, &again, Settlement::Delivered(204)).await, "it is settled");
    let delivery = all(&*store).await.into_iter().find(|delivery| delivery.id == lost.delivery.id).unwrap();
    assert_eq!((delivery.status, delivery.attempts, delivery.answer), (DeliveryStatus::Delivered, 1, Some(204)));
    assert_eq!((delivery.settled_at, delivery.error), (Some(seconds(6_000)), None));
    assert_eq!(claim_due(&*store, LEASE).await, []);
}

pub(crate) async fn a_delivery_that_failed_is_due_again_after_its_wait(harness: &mut dyn Harness) {
    let store = harness.store();
    keep(&*store, endpoint(1)).await;
    let due = told(&*store, 1).await;
    let retry = |after| Settlement::Retry { after, answer: Some(503), error: "it said \"no\"".into() };
    assert!(settle(&*store, &due, retry(Duration::ZERO)).await);
    let second = store.claim_deliveries(seconds(6_000), LEASE, 9).await.unwrap().remove(0);
    assert_eq!((second.delivery.id, second.delivery.attempts), (due.delivery.id, 1));
    assert_eq!((second.delivery.answer, second.delivery.error.as_deref()), (Some(503), Some("it said \"no\"")));
    // What was not sent charges nothing, and says nothing new.
    assert!(settle(&*store, &second, Settlement::Postponed(Duration::ZERO)).await);
    let third = store.claim_deliveries(seconds(6_000), LEASE, 9).await.unwrap().remove(0);
    assert_eq!((third.delivery.attempts, third.delivery.answer), (1, Some(503)));
    assert!(settle(&*store, &third, retry(Duration::from_secs(600))).await);
    assert_eq!(store.claim_deliveries(seconds(6_599), LEASE, 9).await.unwrap(), []);
    assert_eq!(all(&*store).await[0].attempts, 2);
}

pub(crate) async fn a_delivery_that_is_given_up_leaves_a_letter_and_can_be_sent_again(harness: &mut dyn Harness) {
    let store = harness.store();
    keep(&*store, endpoint(1)).await;
    let due = told(&*store, 1).await;
    let letter = DeadLetter {
        id: due.delivery.id,
        at: seconds(6_000),
        source: "webhook".into(),
        run: None,
        reason: "no".into(),
        payload: Bytes::from_static(b"{}"),
    };
    let dead = || Settlement::Dead {
        sent: true,
        answer: Some(500),
        error: "no".into(),
        letter: Some(Box::new(letter.clone())),
    };
    let stale = Due { claim: due.claim + 1, ..due.clone() };
    assert!(!settle(&*store, &stale, dead()).await);
    assert_eq!(store.dead_letters(None, 9).await.unwrap(), [], "nothing of a claim that is not");
    assert!(settle(&*store, &due, dead()).await);
    assert_eq!(store.dead_letters(None, 9).await.unwrap(), std::slice::from_ref(&letter));
    let delivery = &all(&*store).await[0];
    assert_eq!((delivery.status, delivery.attempts), (DeliveryStatus::Dead, 1));
    assert_eq!(claim_due(&*store, LEASE).await, []);

    let other = store.redeliver(&Tenant::new("acme"), due.delivery.id, seconds(7_000)).await.unwrap();
    assert_eq!(other, Redelivered::Missing);
    let again = store.redeliver(&tenant(), due.delivery.id, seconds(4_000)).await.unwrap();
    let Redelivered::Pending(delivery) = again else { panic!("{again:?}") };
    assert_eq!((delivery.status, delivery.attempts, delivery.answer), (DeliveryStatus::Pending, 0, None));
    assert_eq!((delivery.error.as_ref(), delivery.settled_at), (None, None));
    assert_eq!(store.dead_letters(None, 9).await.unwrap(), []);
    let claimed = claim_due(&*store, LEASE).await;
    assert_eq!(claimed[0].delivery.id, due.delivery.id);
    // One that waits stays as it is.
    let again = store.redeliver(&tenant(), due.delivery.id, seconds(7_000)).await.unwrap();
    assert!(matches!(again, Redelivered::Pending(_)), "{again:?}");
    assert!(settle(&*store, &claimed[0], Settlement::Delivered(200)).await, "the claim holds");
}

pub(crate) async fn endpoints_are_kept_changed_and_removed(harness: &mut dyn Harness) {
    let store = harness.store();
    let first = Endpoint { agent: Some("chat".into()), ..endpoint(1) };
    keep(&*store, first.clone()).await;
    keep(&*store, endpoint(2)).await;
    keep(&*store, Endpoint { tenant: Tenant::new("acme"), ..endpoint(3) }).await;
    let store = harness.restart().await;
    assert_eq!(store.endpoint(&tenant(), endpoint_id(1)).await.unwrap(), Some(first.clone()));
    assert_eq!(store.endpoints(&tenant(), None, 9).await.unwrap(), [first.clone(), endpoint(2)]);
    assert_eq!(store.endpoints(&tenant(), None, 1).await.unwrap(), std::slice::from_ref(&first));
    assert_eq!(store.endpoints(&tenant(), Some(endpoint_id(1)), 9).await.unwrap(), [endpoint(2)]);

    // Another tenant's are not there.
    let (three, patch) = (endpoint_id(3), EndpointPatch { enabled: Some(false), ..EndpointPatch::default() });
    assert_eq!(store.endpoint(&tenant(), three).await.unwrap(), None);
    assert_eq!(store.patch_endpoint(&tenant(), three, patch, now()).await.unwrap(), None);
    assert_eq!(store.rotate_endpoint(&tenant(), three, None, now()).await.unwrap(), Rotated::Missing);
    assert!(!store.delete_endpoint(&tenant(), three).await.unwrap());

    let patched = |patch| store.patch_endpoint(&first.tenant, endpoint_id(1), patch, now());
    assert_eq!(patched(EndpointPatch::default()).await.unwrap(), Some(first.clone()));
    let everything = EndpointPatch {
        url: Some("https://new.example".into()),
        events: Some(vec![WebhookEvent::RunWaiting]),
        agent: Some(None),
        enabled: Some(false),
        still_at: Some(first.url.clone()),
    };
    let elsewhere = EndpointPatch { still_at: Some("https://elsewhere.example".into()), ..everything.clone() };
    assert_eq!(patched(elsewhere).await.unwrap(), Some(first.clone()), "it has moved meanwhile");
    let expected = Endpoint {
        url: "https://new.example".into(),
        events: vec![WebhookEvent::RunWaiting],
        agent: None,
        enabled: false,
        ..first.clone()
    };
    assert_eq!(patched(everything).await.unwrap(), Some(expected.clone()));
    let mail = EndpointPatch { agent: Some(Some("mail".into())), ..EndpointPatch::default() };
    let expected = Endpoint { agent: Some("mail".into()), ..expected };
    assert_eq!(patched(mail).await.unwrap(), Some(expected.clone()));

    let rotated = store.rotate_endpoint(&tenant(), endpoint_id(1), None, seconds(2_000)).await.unwrap();
    let expected = Endpoint { secret_version: 2, rotated_at: Some(seconds(2_000)), ..expected };
    assert_eq!(rotated, Rotated::Done(expected));
    assert!(store.delete_endpoint(&tenant(), endpoint_id(1)).await.unwrap());
    assert!(!store.delete_endpoint(&tenant(), endpoint_id(1)).await.unwrap());
    assert_eq!(store.endpoints(&tenant(), None, 9).await.unwrap(), [endpoint(2)]);
}

pub(crate) async fn an_endpoint_is_created_once_for_its_key_and_not_too_many(harness: &mut dyn Harness) {
    let store = harness.store();
    let key =
        |body| IdempotencyKey { route: "endpoints", key: "k".into(), fingerprint: [body; 32], valid_after: seconds(0) };
    let create = |number, key, most| store.create_endpoint(endpoint(number), key, most);
    assert_eq!(create(1, Some(key(1)), 2).await.unwrap(), EndpointCreated::New);
    assert_eq!(create(2, Some(key(1)), 2).await.unwrap(), EndpointCreated::Existing(endpoint(1)));
    assert_eq!(create(3, Some(key(2)), 2).await.unwrap(), EndpointCreated::KeyReused);
    assert_eq!(create(4, None, 2).await.unwrap(), EndpointCreated::New);
    assert_eq!(create(5, None, 2).await.unwrap(), EndpointCreated::TooMany);
    assert_eq!(create(6, Some(key(1)), 2).await.unwrap(), EndpointCreated::Existing(endpoint(1)));
    let forgotten = IdempotencyKey { valid_after: seconds(1_001), ..key(1) };
    assert_eq!(create(7, Some(forgotten), 9).await.unwrap(), EndpointCreated::New);
    assert_eq!(create(8, Some(key(1)), 9).await.unwrap(), EndpointCreated::Existing(endpoint(7)));
    store.delete_endpoint(&tenant(), endpoint_id(7)).await.unwrap();
    assert_eq!(create(9, Some(key(3)), 9).await.unwrap(), EndpointCreated::New, "its key went with it");

    // Many at once count each other.
    let other = Tenant::new("acme");
    let many =
        (20..40).map(|number| store.create_endpoint(Endpoint { tenant: other.clone(), ..endpoint(number) }, None, 5));
    let created = futures_util::future::join_all(many).await;
    let new = created.iter().filter(|created| matches!(created, Ok(EndpointCreated::New))).count();
    assert_eq!((new, store.endpoints(&other, None, 99).await.unwrap().len()), (5, 5));
}

pub(crate) async fn a_secret_is_rotated_once_for_its_key(harness: &mut dyn Harness) {
    let store = harness.store();
    let key = |body, valid_after| {
        let (route, key, valid_after) = ("rotate", "k".to_owned(), seconds(valid_after));
        Some(IdempotencyKey { route, key, fingerprint: [body; 32], valid_after })
    };
    for number in [1, 2] {
        keep(&*store, endpoint(number)).await;
    }
    let owner = tenant();
    let rotate = |number, key, at| store.rotate_endpoint(&owner, endpoint_id(number), key, seconds(at));
    let version = |number, version, at| {
        let rotated_at = Some(seconds(at));
        Rotated::Done(Endpoint { secret_version: version, rotated_at, ..endpoint(number) })
    };
    assert_eq!(rotate(9, key(1, 0), 2_000).await.unwrap(), Rotated::Missing);
    assert_eq!(rotate(1, key(1, 0), 2_000).await.unwrap(), version(1, 2, 2_000), "what is not there keeps no key");
    assert_eq!(rotate(1, key(1, 0), 2_001).await.unwrap(), version(1, 2, 2_000));
    assert_eq!(rotate(2, key(2, 0), 2_002).await.unwrap(), Rotated::KeyReused);
    assert_eq!(rotate(2, None, 2_003).await.unwrap(), version(2, 2, 2_003), "it was left as it is");
    assert_eq!(rotate(1, None, 2_004).await.unwrap(), version(1, 3, 2_004));
    assert_eq!(rotate(1, key(1, 0), 2_005).await.unwrap(), version(1, 3, 2_004), "the secret that is in use");
    assert_eq!(rotate(1, key(1, 2_001), 2_006).await.unwrap(), version(1, 4, 2_006), "the key was forgotten");
    store.delete_endpoint(&tenant(), endpoint_id(1)).await.unwrap();
    assert_eq!(rotate(1, key(1, 0), 2_007).await.unwrap(), Rotated::Missing);
    assert_eq!(rotate(2, key(2, 0), 2_008).await.unwrap(), version(2, 3, 2_008), "its key went with it");

    // Many at once are one.
    let other = || Some(IdempotencyKey { key: "many".into(), ..key(3, 0).unwrap() });
    let many = futures_util::future::join_all((0..20).map(|_| rotate(2, other(), 2_009))).await;
    let once = version(2, 4, 2_009);
    assert!(many.iter().all(|rotated| rotated.as_ref().is_ok_and(|rotated| *rotated == once)), "{many:?}");
}

pub(crate) async fn a_disabled_endpoint_gets_nothing_more(harness: &mut dyn Harness) {
    let store = harness.store();
    for number in [1, 2] {
        keep(&*store, endpoint(number)).await;
    }
    let complete = Owner::of_new(&*store, 1).await.complete();
    commit(&*store, complete).await;
    let disabled = EndpointPatch { enabled: Some(false), ..EndpointPatch::default() };
    store.patch_endpoint(&tenant(), endpoint_id(1), disabled, seconds(3_000)).await.unwrap();
    let complete = Owner::of_new(&*store, 2).await.complete();
    commit(&*store, complete).await;
    let to_two = |number| (Some(endpoint_id(2)), WebhookEvent::RunCompleted, Some(id(number)));
    assert_eq!(outbox(&*store).await, [to_two(1), to_two(2)]);
    let filter = DeliveryFilter { status: Some(DeliveryStatus::Dead), ..DeliveryFilter::default() };
    let dead = store.deliveries(&tenant(), filter, 9).await.unwrap();
    assert_eq!(dead.len(), 1);
    assert_eq!((dead[0].endpoint, dead[0].settled_at), (Some(endpoint_id(1)), Some(seconds(3_000))));
    assert_eq!(store.redeliver(&tenant(), dead[0].id, now()).await.unwrap(), Redelivered::Disabled);
    assert_eq!(store.dead_letters(None, 9).await.unwrap(), [], "somebody wanted it so");
    // Its deliveries go with it.
    store.delete_endpoint(&tenant(), endpoint_id(1)).await.unwrap();
    assert!(all(&*store).await.iter().all(|delivery| delivery.endpoint == Some(endpoint_id(2))));
}

pub(crate) async fn deliveries_are_listed_by_pages_and_filters(harness: &mut dyn Harness) {
    let store = harness.store();
    for number in [1, 2] {
        keep(&*store, endpoint(number)).await;
    }
    keep(&*store, Endpoint { tenant: Tenant::new("acme"), ..endpoint(3) }).await;
    for number in 1..=4 {
        let complete = Owner::of_new(&*store, number).await.complete();
        commit(&*store, complete).await;
    }
    for due in claim_due(&*store, LEASE).await {
        if due.delivery.run == Some(id(1)) {
            settle(&*store, &due, Settlement::Delivered(200)).await;
        }
    }
    let whole = all(&*store).await;
    assert_eq!(whole.len(), 8);
    assert!(whole.is_sorted_by(|one, next| (one.at, one.id) > (next.at, next.id)));
    for limit in [1, 3, 8, 9] {
        let (mut pages, mut after) = (Vec::new(), None);
        loop {
            let filter = DeliveryFilter { after, ..DeliveryFilter::default() };
            let page = store.deliveries(&tenant(), filter, limit).await.unwrap();
            let Some(last) = page.last() else { break };
            after = Some((last.at, last.id));
            pages.extend(page);
        }
        assert_eq!(pages, whole, "{limit}");
    }
    for (endpoint, status) in [
        (Some(endpoint_id(1)), None),
        (None, Some(DeliveryStatus::Delivered)),
        (Some(endpoint_id(2)), Some(DeliveryStatus::Pending)),
        (Some(endpoint_id(3)), None),
    ] {
        let matches = |delivery: &&Delivery| {
            endpoint.is_none_or(|endpoint| delivery.endpoint == Some(endpoint))
                && status.is_none_or(|status| delivery.status == status)
        };
        let expected: Vec<_> = whole.iter().filter(matches).cloned().collect();
        let filter = DeliveryFilter { after: None, endpoint, status };
        assert_eq!(store.deliveries(&tenant(), filter, 99).await.unwrap(), expected);
    }
}

pub(crate) async fn deliveries_go_with_their_run_and_with_time(harness: &mut dyn Harness) {
    let store = harness.store();
    keep(&*store, endpoint(1)).await;
    let first = told(&*store, 1).await;
    assert!(settle(&*store, &first, given_up(&first)).await);
    assert_eq!(all(&*store).await[0].attempts, 0, "it was not sent");
    let second = told(&*store, 2).await;
    let third = told(&*store, 3).await;
    assert_eq!(store.delete(&tenant(), id(1)).await.unwrap(), Deleted::Done);
    assert_eq!(store.dead_letters(None, 9).await.unwrap(), [], "the letter went, too");
    assert_eq!(all(&*store).await.len(), 2);
    assert_eq!(store.delete(&tenant(), id(2)).await.unwrap(), Deleted::Done, "also while it is sent");
    assert!(!settle(&*store, &second, Settlement::Delivered(200)).await);

    assert_eq!(store.forget_deliveries(seconds(9_000), 9).await.unwrap(), 0, "it waits");
    assert!(settle(&*store, &third, Settlement::Delivered(200)).await);
    assert_eq!(store.forget_deliveries(seconds(6_000), 9).await.unwrap(), 0);
    assert_eq!(store.forget_deliveries(seconds(6_001), 9).await.unwrap(), 1);
    assert_eq!(all(&*store).await, []);
}

fn given_up(due: &Due) -> Settlement {
    let letter = DeadLetter {
        id: due.delivery.id,
        at: now(),
        source: "webhook".into(),
        run: None,
        reason: "no".into(),
        payload: Bytes::new(),
    };
    Settlement::Dead { sent: false, answer: None, error: "no".into(), letter: Some(Box::new(letter)) }
}

async fn tell_of(store: &dyn Store, thread: ThreadId) -> Due {
    let (tenant, event) = (tenant(), WebhookEvent::ThreadHandedOff);
    let news = ThreadNews { tenant, thread: thread.to_string(), event, data: "{}".into(), at: now() };
    store.announce(news).await.unwrap();
    let mut due = claim_due(store, LEASE).await;
    assert_eq!(due.len(), 1);
    due.remove(0)
}

pub(crate) async fn what_is_old_is_removed_once_it_is_told_with_its_deliveries_and_letters(harness: &mut dyn Harness) {
    let store = &*harness.store();
    let events = [&WebhookEvent::FINAL[..], &[WebhookEvent::ThreadHandedOff]].concat();
    keep(store, Endpoint { events, ..endpoint(1) }).await;
    let (long_ago, later) = (seconds(6_000), seconds(99_000));

    let run = told(store, 1).await;
    assert_eq!(store.remove_finished(later, 9).await.unwrap(), [], "it is still to be told");
    assert!(settle(store, &run, given_up(&run)).await);
    assert_eq!(store.remove_finished(later, 9).await.unwrap(), [id(1)]);
    assert_eq!((all(store).await, store.dead_letters(None, 9).await.unwrap()), (vec![], vec![]));

    let run = told(store, 2).await;
    assert!(settle(store, &run, given_up(&run)).await);
    assert_eq!(store.forget_deliveries(long_ago, 9).await.unwrap(), 0);
    assert_eq!(store.dead_letters(None, 9).await.unwrap().len(), 1);
    assert_eq!(store.forget_deliveries(later, 9).await.unwrap(), 1);
    assert_eq!(store.dead_letters(None, 9).await.unwrap(), []);

    let idle = thread(store, 1).await;
    let news = tell_of(store, idle).await;
    assert_eq!(store.delete_idle_threads(later, 9).await.unwrap(), [], "it is still to be told");
    assert!(settle(store, &news, given_up(&news)).await);
    assert_eq!(store.delete_idle_threads(later, 9).await.unwrap(), [idle]);
    assert_eq!((all(store).await, store.dead_letters(None, 9).await.unwrap()), (vec![], vec![]));

    let told = thread(store, 2).await;
    tell_of(store, told).await;
    assert_eq!(store.delete_thread(&tenant(), told).await.unwrap(), ThreadDeleted::Done(vec![]));
    assert_eq!(all(store).await, [], "whoever removes it by hand wants it gone");
}
