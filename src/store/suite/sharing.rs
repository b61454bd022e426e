//! Fair order, and limits.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::future::join_all;

use super::Harness;
use super::kit::*;
use crate::run::{Command, Spec, Status, Tenant};
use crate::store::{Claimed, Created, Limits, NewRun, RunStore, Share, TenantDepths};

fn of(tenant: &str, number: u64) -> Spec {
    Spec { tenant: Tenant::new(tenant), ..spec(number) }
}

async fn create_weighted(store: &dyn RunStore, spec: Spec, weight: u32) {
    let share = Share { weight, max_waiting: None };
    assert_eq!(store.create(NewRun { share, ..new_run(spec, None, 0) }).await.unwrap(), Created::New);
}

fn tenants(claimed: &[Claimed]) -> Vec<&str> {
    claimed.iter().map(|claimed| claimed.run.spec.tenant.as_str()).collect()
}

fn numbers(claimed: &[Claimed]) -> Vec<u64> {
    claimed.iter().map(|claimed| claimed.run.spec.id.spread() as u64).collect()
}

fn limit(name: &str, most: u64) -> BTreeMap<String, u64> {
    BTreeMap::from([(name.to_owned(), most)])
}

async fn claim_within(store: &dyn RunStore, room: usize, limits: &Limits) -> Vec<Claimed> {
    store.claim(claim_of(room, &[("chat", "1")], limits.clone())).await.unwrap()
}

async fn finish(store: &dyn RunStore, claimed: Claimed) {
    let mut owner = Owner::from(claimed);
    commit(store, owner.complete()).await;
}

pub(crate) async fn a_flood_of_one_tenant_does_not_delay_another(harness: &mut dyn Harness) {
    let store = harness.store();
    for number in 1..=300 {
        create(&*store, of("flood", number)).await;
    }
    create(&*store, of("late", 301)).await;
    assert_eq!(tenants(&claim(&*store, 3).await), ["flood", "late", "flood"]);
    // In the middle as well as at the beginning, and each of several.
    claim(&*store, 100).await;
    for number in 302..=303 {
        create(&*store, of("late", number)).await;
        create(&*store, of("third", number + 10)).await;
    }
    let next = claim(&*store, 8).await;
    for tenant in ["late", "third"] {
        assert_eq!(tenants(&next).into_iter().filter(|of| *of == tenant).count(), 2, "{:?}", tenants(&next));
    }
    assert_eq!(claim(&*store, 500).await.len(), 300 + 5 - 3 - 100 - 8, "nobody is forgotten");
}

pub(crate) async fn tenants_are_served_by_their_weights(harness: &mut dyn Harness) {
    let store = harness.store();
    for number in 1..=80 {
        create_weighted(&*store, of("light", number), 1).await;
    }
    for number in 101..=180 {
        create_weighted(&*store, of("heavy", number), 3).await;
    }
    let mut served = Vec::new();
    for _ in 0..10 {
        let claimed = claim(&*store, 4).await;
        served.extend(tenants(&claimed).into_iter().map(str::to_owned));
        for claimed in claimed {
            finish(&*store, claimed).await;
        }
    }
    let heavy = served.iter().filter(|tenant| *tenant == "heavy").count();
    assert!((29..=31).contains(&heavy), "{heavy} of 40");
}

pub(crate) async fn runs_created_together_are_spread_as_well(harness: &mut dyn Harness) {
    let store = harness.store();
    // Whatever the store makes of them at once.
    let new = (1..=60).map(|number| new_run(of(if number <= 40 { "flood" } else { "other" }, number), None, 0));
    let created = join_all(new.map(|new| store.create(new))).await;
    assert!(created.iter().all(|created| matches!(created, Ok(Created::New))));
    let claimed = claim(&*store, 20).await;
    let others = tenants(&claimed).into_iter().filter(|tenant| *tenant == "other").count();
    assert!((9..=11).contains(&others), "{others} of 20");
}

pub(crate) async fn runs_whose_timers_fire_together_are_spread_as_well(harness: &mut dyn Harness) {
    let store = harness.store();
    for number in 1..=60 {
        create_due(&*store, of(if number <= 40 { "flood" } else { "other" }, number), Some(seconds(1_500))).await;
    }
    let fire = |number| store.transition(None, id(number), Command::Fire { timer: 1 }, seconds(1_500));
    for fired in join_all((1..=60).map(fire)).await {
        assert_eq!(done(fired.unwrap()).run.status, Status::Queued);
    }
    let claimed = claim(&*store, 20).await;
    let others = tenants(&claimed).into_iter().filter(|tenant| *tenant == "other").count();
    assert!((9..=11).contains(&others), "{others} of 20");
}

pub(crate) async fn priority_goes_before_fairness(harness: &mut dyn Harness) {
    let store = harness.store();
    for (number, tenant, priority) in [(1, "a", 0), (2, "a", 0), (3, "b", 0), (4, "a", 9), (5, "a", 9), (6, "b", -1)] {
        create(&*store, Spec { priority, ..of(tenant, number) }).await;
    }
    assert_eq!(numbers(&claim(&*store, 9).await), [4, 5, 1, 3, 2, 6]);
}

pub(crate) async fn agents_of_one_priority_take_turns(harness: &mut dyn Harness) {
    let store = harness.store();
    for number in 1..=20 {
        create(&*store, spec(number)).await;
    }
    for number in 21..=23 {
        create(&*store, Spec { agent: "mail".into(), ..spec(number) }).await;
    }
    let agents = [("chat", "1"), ("mail", "1")];
    let mut of_mail = claim_of(1, &agents, Limits::default());
    of_mail.turn = 1;
    assert_eq!(numbers(&store.claim(of_mail).await.unwrap()), [21]);
    assert_eq!(numbers(&claim_agents(&*store, 5, &agents).await), [1, 22, 2, 23, 3]);
}

pub(crate) async fn a_run_that_comes_back_keeps_its_place(harness: &mut dyn Harness) {
    let store = harness.store();
    for number in 1..=10 {
        create(&*store, of("a", number)).await;
        create(&*store, of("b", number + 10)).await;
    }
    let claimed = claim(&*store, 6).await;
    let back = claimed[3].run.spec.id.spread() as u64;
    let mut released = Owner::from(claimed[3].clone());
    commit(&*store, released.decide(&Command::Release { attempt: 1 })).await;
    let given_up = claimed[4].run.spec.id.spread() as u64;
    store.give_up(claimed[4].run.spec.id, 1, now()).await.unwrap();
    create(&*store, of("c", 30)).await;
    let mut next = numbers(&claim(&*store, 2).await);
    next.sort_unstable();
    let mut expected = [back, given_up];
    expected.sort_unstable();
    assert_eq!(next, expected);
}

pub(crate) async fn a_run_that_was_delayed_stands_in_line(harness: &mut dyn Harness) {
    let store = harness.store();
    create_due(&*store, of("late", 1), Some(seconds(1_500))).await;
    for number in 2..=20 {
        create(&*store, of("flood", number)).await;
    }
    claim(&*store, 5).await;
    let due = timers(&*store).await.pop().unwrap();
    let (run, command) = due.of_run().unwrap();
    done(store.transition(None, run, command, seconds(1_500)).await.unwrap());
    let next = claim(&*store, 3).await;
    assert!(tenants(&next).contains(&"late"), "{:?}", tenants(&next));

    // After a failure it goes first, also where the queue was empty meanwhile.
    let mut failed = Owner::from(next.into_iter().find(|claimed| claimed.run.spec.tenant.as_str() == "late").unwrap());
    commit(&*store, failed.fail(after(5))).await;
    while let Some(claimed) = claim(&*store, 1).await.pop() {
        finish(&*store, claimed).await;
    }
    for number in 31..=33 {
        create(&*store, of("flood", number)).await;
    }
    let due = timers(&*store).await.pop().unwrap();
    let (run, command) = due.of_run().unwrap();
    done(store.transition(None, run, command, seconds(3_000)).await.unwrap());
    assert_eq!(numbers(&claim(&*store, 1).await), [1]);
}

pub(crate) async fn the_order_survives_a_restart(harness: &mut dyn Harness) {
    let store = harness.store();
    for number in 1..=50 {
        create(&*store, of("flood", number)).await;
    }
    for claimed in claim(&*store, 10).await {
        finish(&*store, claimed).await;
    }
    let store = harness.restart().await;
    for number in 51..=60 {
        create(&*store, of("flood", number)).await;
    }
    create(&*store, of("late", 61)).await;
    let next = claim(&*store, 3).await;
    assert!(tenants(&next).contains(&"late"), "{:?}", tenants(&next));
    let rest = claim(&*store, 100).await;
    let of_flood = next.iter().chain(&rest).map(|claimed| claimed.run.spec.id.spread()).filter(|number| *number <= 60);
    assert!(of_flood.is_sorted(), "one tenant's runs stay in their order");
}

pub(crate) async fn a_limit_is_never_exceeded_and_always_used(harness: &mut dyn Harness) {
    let store = harness.store();
    for number in 1..=30 {
        create(&*store, of("acme", number)).await;
    }
    let limits = Limits { tenants: limit("acme", 3), ..Limits::default() };
    let mut running: Vec<Claimed> = Vec::new();
    let mut done = 0;
    while done < 30 {
        // As if by many nodes at once.
        let claims = (0..6).map(|_| claim_within(&*store, 2, &limits));
        running.extend(join_all(claims).await.into_iter().flatten());
        assert_eq!(running.len(), 3.min(30 - done), "after {done}");
        finish(&*store, running.remove(0)).await;
        done += 1;
    }
    assert_eq!(store.counts().await.unwrap()[&Status::Queued], 0);
}

pub(crate) async fn what_is_limited_is_passed_over(harness: &mut dyn Harness) {
    let store = harness.store();
    for number in 1..=40 {
        create(&*store, of("acme", number)).await;
    }
    for number in 41..=44 {
        create(&*store, of("other", number)).await;
    }
    let limits = Limits { tenants: limit("acme", 1), ..Limits::default() };
    let claimed = claim_within(&*store, 4, &limits).await;
    assert_eq!(tenants(&claimed).into_iter().filter(|tenant| *tenant == "acme").count(), 1);
    assert_eq!(numbers(&claimed), [1, 41, 42, 43]);
    assert_eq!(numbers(&claim_within(&*store, 4, &limits).await), [44]);
    assert_eq!(numbers(&claim_within(&*store, 4, &limits).await), Vec::<u64>::new());
    finish(&*store, claimed.into_iter().next().unwrap()).await;
    assert_eq!(numbers(&claim_within(&*store, 4, &limits).await), [2]);
    // Without the limit there is nothing in the way.
    assert_eq!(claim(&*store, 50).await.len(), 38);
}

pub(crate) async fn agents_and_keys_have_limits(harness: &mut dyn Harness) {
    let store = harness.store();
    for (number, agent, key) in [
        (1, "chat", Some("k")),
        (2, "chat", Some("k")),
        (3, "chat", Some("l")),
        (4, "chat", None),
        (5, "mail", Some("k")),
        (6, "mail", Some("k")),
        (7, "mail", None),
    ] {
        let concurrency_key = key.map(str::to_owned);
        create(&*store, Spec { agent: agent.into(), concurrency_key, ..spec(number) }).await;
    }
    let limits = Limits { agents: limit("mail", 2), keys: limit("chat", 1), ..Limits::default() };
    let claim = async |room| {
        let mut claimed = store.claim(claim_of(room, &[("chat", "1"), ("mail", "1")], limits.clone())).await.unwrap();
        claimed.sort_by_key(|claimed| claimed.run.spec.id);
        claimed
    };
    let mut claimed = claim(9).await;
    assert_eq!(numbers(&claimed), [1, 3, 4, 5, 6]);
    assert_eq!(claimed[0].run.spec.concurrency_key.as_deref(), Some("k"));
    assert_eq!(numbers(&claim(9).await), Vec::<u64>::new());
    // What ends without ever having run makes no room; what leaves in any other way does.
    let (first, mail) = (claimed.remove(0), claimed.pop().unwrap());
    transition(&*store, id(7), Command::Cancel, now()).await;
    assert_eq!(numbers(&claim(9).await), Vec::<u64>::new());
    let mut failed = Owner::from(first);
    commit(&*store, failed.fail(after(60))).await;
    assert_eq!(numbers(&claim(9).await), [2]);
    create(&*store, Spec { agent: "mail".into(), ..spec(8) }).await;
    store.give_up(mail.run.spec.id, 1, now()).await.unwrap();
    assert_eq!(claim(9).await.len(), 1);
}

pub(crate) async fn limits_count_what_runs_after_a_restart(harness: &mut dyn Harness) {
    let store = harness.store();
    for number in 1..=6 {
        create(&*store, Spec { concurrency_key: Some("k".into()), ..of("acme", number) }).await;
    }
    let limits = Limits { tenants: limit("acme", 4), keys: limit("chat", 2), ..Limits::default() };
    assert_eq!(claim_within(&*store, 9, &limits).await.len(), 2);
    let store = harness.restart().await;
    assert_eq!(claim_within(&*store, 9, &limits).await.len(), 0, "nobody has given them up yet");
    while !store.recover(now(), 9).await.unwrap().is_empty() {}
    let again = claim_within(&*store, 9, &limits).await;
    assert_eq!(numbers(&again), [1, 2], "and they go first");
}

pub(crate) async fn a_tenant_has_a_bound_of_its_own(harness: &mut dyn Harness) {
    let store = harness.store();
    let bounded = |number, due| {
        let share = Share { weight: 1, max_waiting: Some(3) };
        NewRun { share, ..new_run(of("acme", number), due, 0) }
    };
    let due = [None, Some(seconds(2_000))];
    let mut outcomes = Vec::new();
    for number in 1..=5 {
        outcomes.push(store.create(bounded(number, due[number as usize % 2])).await.unwrap());
    }
    let refused = outcomes.iter().filter(|outcome| **outcome == Created::TooManyOfTenant).count();
    assert_eq!(refused, 2, "{outcomes:?}");
    create(&*store, of("other", 10)).await;
    // What is claimed waits no more.
    let claimed = claim(&*store, 1).await.pop().unwrap();
    assert_eq!(claimed.run.spec.tenant.as_str(), "acme");
    assert_eq!(store.create(bounded(6, None)).await.unwrap(), Created::New);
    assert_eq!(store.create(bounded(7, None)).await.unwrap(), Created::TooManyOfTenant);
    // A repeated request is found all the same.
    let keyed = |number| NewRun { share: bounded(number, None).share, ..keyed(number, "k", 1) };
    assert_eq!(store.create(keyed(20)).await.unwrap(), Created::New);
    let closed = NewRun { share: Share { weight: 1, max_waiting: Some(0) }, ..keyed(21) };
    assert!(matches!(store.create(closed).await.unwrap(), Created::Existing(_)));
}

pub(crate) async fn depths_are_told_by_tenant(harness: &mut dyn Harness) {
    let store = harness.store();
    assert_eq!(store.depths_by_tenant().await.unwrap(), BTreeMap::new());
    for (number, tenant) in [(1, "a"), (2, "a"), (3, "a"), (4, "b")] {
        create(&*store, of(tenant, number)).await;
    }
    create_due(&*store, of("c", 5), Some(seconds(2_000))).await;
    claim(&*store, 1).await;
    let depths = store.depths_by_tenant().await.unwrap();
    let expected = [("a", TenantDepths { queued: 2, running: 1 }), ("b", TenantDepths { queued: 1, running: 0 })];
    assert_eq!(depths, expected.map(|(tenant, depths)| (Tenant::new(tenant), depths)).into());
}

/// In any history, no claim exceeds a limit, and none leaves room that somebody could have had.
pub(crate) async fn limits_hold_in_any_history(harness: &mut dyn Harness) {
    let store = harness.store();
    let limits = Arc::new(Limits { tenants: limit("a", 2), agents: limit("mail", 3), keys: limit("chat", 1) });
    let mut live: Vec<Claimed> = Vec::new();
    let (mut waiting, mut number, mut seed) = (Vec::new(), 0_u64, 7_u64);
    let mut below = |bound: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % bound
    };
    let may = |spec: &Spec, live: &[Claimed]| {
        let count = |same: &dyn Fn(&Spec) -> bool| live.iter().filter(|live| same(&live.run.spec)).count();
        let tenant = spec.tenant.as_str() != "a" || count(&|other| other.tenant == spec.tenant) < 2;
        let agent = spec.agent != "mail" || count(&|other| other.agent == "mail") < 3;
        let same_key = |other: &Spec| other.agent == "chat" && other.concurrency_key == spec.concurrency_key;
        tenant && agent && (spec.agent != "chat" || spec.concurrency_key.is_none() || count(&same_key) < 1)
    };
    for _ in 0..150 {
        for _ in 0..below(4) {
            number += 1;
            let tenant = Tenant::new(["a", "b", "c"][below(3) as usize]);
            let agent = ["chat", "mail"][below(2) as usize].to_owned();
            let concurrency_key = [None, Some("k".to_owned()), Some("l".to_owned())][below(3) as usize].clone();
            let spec = Spec { tenant, agent, concurrency_key, ..spec(number) };
            create(&*store, spec.clone()).await;
            waiting.push(spec);
        }
        let room = 1 + below(3) as usize;
        let mut claim = claim_of(room, &[("chat", "1"), ("mail", "1")], Limits::default());
        (claim.limits, claim.turn) = (Arc::clone(&limits), below(2) as usize);
        let claimed = store.claim(claim).await.unwrap();
        let found = claimed.len();
        for claimed in claimed {
            assert!(may(&claimed.run.spec, &live), "{:?} was one too many", claimed.run.spec);
            waiting.retain(|waiting| waiting.id != claimed.run.spec.id);
            live.push(claimed);
        }
        let left_out = waiting.iter().find(|spec| may(spec, &live));
        assert!(found == room || left_out.is_none(), "{left_out:?} could have been claimed");
        for _ in 0..below(3) {
            if !live.is_empty() {
                finish(&*store, live.swap_remove(below(live.len() as u64) as usize)).await;
            }
        }
    }
}
