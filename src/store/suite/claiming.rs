//! Claiming runs.

use std::collections::BTreeSet;

use super::Harness;
use super::kit::*;
use crate::run::{Spec, Status};
use crate::store::Claimed;

fn ids(claimed: &[Claimed]) -> Vec<u64> {
    claimed.iter().map(|claimed| claimed.run.spec.id.spread() as u64).collect()
}

pub(crate) async fn claims_go_by_priority_then_age(harness: &mut dyn Harness) {
    let store = harness.store();
    for (number, priority, agent) in
        [(4, 0, "chat"), (1, 0, "mail"), (2, 5, "chat"), (3, -1, "chat"), (6, 5, "mail"), (5, 0, "chat")]
    {
        create(&*store, Spec { priority, agent: agent.into(), ..spec(number) }).await;
    }
    let agents = [("mail", "1"), ("chat", "1")];
    // Of equal priority, the agents take turns.
    assert_eq!(ids(&claim_agents(&*store, 3, &agents).await), [6, 2, 1]);
    assert_eq!(ids(&claim_agents(&*store, 1, &agents).await), [4]);
    assert_eq!(ids(&claim_agents(&*store, 9, &agents).await), [5, 3]);
    assert_eq!(ids(&claim_agents(&*store, 9, &agents).await), Vec::<u64>::new());
}

pub(crate) async fn only_known_agents_and_versions_are_claimed(harness: &mut dyn Harness) {
    let store = harness.store();
    for (number, agent, version) in [(1, "chat", "1"), (2, "chat", "2"), (3, "mail", "1"), (4, "mail", "2")] {
        create(&*store, Spec { agent: agent.into(), agent_version: version.into(), ..spec(number) }).await;
    }
    assert_eq!(ids(&claim_agents(&*store, 9, &[]).await), Vec::<u64>::new());
    assert_eq!(ids(&claim_agents(&*store, 9, &[("chat", "3"), ("Chat", "1")]).await), Vec::<u64>::new());
    // The pair counts, not its halves; and a pair that is named twice is one.
    let agents = [("mail", "2"), ("chat", "1"), ("mail", "2")];
    assert_eq!(ids(&claim_agents(&*store, 9, &agents).await), [4, 1]);
    assert_eq!(store.counts().await.unwrap()[&Status::Queued], 2);
}

pub(crate) async fn no_run_is_claimed_twice(harness: &mut dyn Harness) {
    let store = harness.store();
    for number in 1..=100 {
        create(&*store, spec(number)).await;
    }
    let claims = futures_util::future::join_all((0..20).map(|_| claim(&*store, 7))).await;
    let claimed: Vec<_> = claims.iter().flat_map(|claimed| ids(claimed)).collect();
    assert_eq!(claimed.len(), 100);
    assert_eq!(claimed.into_iter().collect::<BTreeSet<_>>(), (1..=100).collect());
}

pub(crate) async fn a_claim_writes_what_it_returns(harness: &mut dyn Harness) {
    let store = harness.store();
    create(&*store, spec(1)).await;
    let claimed = claim(&*store, 5).await.pop().unwrap();
    assert_eq!((claimed.run.status, claimed.run.attempt, claimed.run.last_seq), (Status::Running, 1, 3));
    assert_eq!(claimed.reserved_seq, 3 + RESERVE);
    assert_eq!(claimed.steps, []);
    let stored = get(&*store, id(1)).await;
    assert_eq!((stored.run, stored.reserved_seq), (claimed.run, claimed.reserved_seq));
    let segments = store.segments(id(1), 2, usize::MAX).await.unwrap();
    assert_eq!(segments, [claimed.segment]);
    let started = segments[0].events().next().unwrap();
    assert_eq!((started.kind, started.data), ("run.started", r#"{"attempt":1,"node":"node-1"}"#));
}

pub(crate) async fn a_claim_takes_the_time_to_live_away(harness: &mut dyn Harness) {
    let store = harness.store();
    create(&*store, Spec { ttl_at: Some(seconds(2_000)), ..spec(1) }).await;
    assert_eq!(timers(&*store).await.len(), 1);
    let mut owner = Owner::next(&*store).await;
    assert_eq!(timers(&*store).await, []);
    // Once started it does not expire, also when it waits again.
    let failed = owner.fail(after(5));
    commit(&*store, failed).await;
    assert_eq!(timers(&*store).await.len(), 1, "only the backoff");
}
