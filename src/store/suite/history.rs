//! Random histories.

use std::collections::BTreeMap;

use super::Harness;
use super::kit::*;
use crate::run::{Command, Retry, Spec, Status};
use crate::store::{Committed, Created, NewRun, RunFilter, RunStore, TimerKind};

/// A small generator of numbers that are random enough, and the same in every run of the tests.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

pub(crate) async fn counts_match_a_scan_after_any_history(harness: &mut dyn Harness) {
    let mut random = Random(42);
    let mut store = harness.store();
    let (mut owners, mut created): (Vec<Owner>, u64) = (Vec::new(), 0);
    for step in 0..1_500 {
        let any = id(random.below(created + 1));
        let time = seconds(1_000 + i64::from(step));
        match random.below(100) {
            0..30 => {
                created += 1;
                let ttl_at = (random.below(3) == 0).then(|| seconds(1_000 + step as i64 + 100));
                let due = (random.below(3) == 0).then(|| seconds(1_000 + step as i64 + 50));
                let created_at = time;
                let new = new_run(Spec { ttl_at, created_at, max_attempts: 2, ..spec(created) }, due, 0);
                let outcome = store.create(NewRun { max_waiting: 40, ..new }).await.unwrap();
                created -= u64::from(outcome == Created::TooManyWaiting);
            }
            30..50 => {
                let room = 1 + random.below(4) as usize;
                owners.extend(claim(&*store, room).await.into_iter().map(Owner::from));
            }
            50..75 if !owners.is_empty() => {
                let at = random.below(owners.len() as u64) as usize;
                act(&*store, &mut random, &mut owners, at).await;
            }
            75..80 => drop(transition(&*store, any, Command::Cancel, time).await),
            80..85 => drop(store.delete(&tenant(), any).await.unwrap()),
            85..98 => {
                for timer in store.timers(time, None, 3).await.unwrap() {
                    let (run, command) = timer.of_run().unwrap();
                    transition(&*store, run, command, time).await;
                }
            }
            98 => {
                store = harness.restart().await;
                while !store.recover(time, 3).await.unwrap().is_empty() {}
            }
            _ => {}
        }
        if step % 10 == 0 {
            check(&*store).await;
        }
    }
    check(&*store).await;
    assert!(created > 100, "the history had something to it: {created}");
}

/// Lets an owner, who may have lost its run, do something.
async fn act(store: &dyn RunStore, random: &mut Random, owners: &mut Vec<Owner>, at: usize) {
    let owner = &mut owners[at];
    let attempt = owner.run.attempt;
    let commit = match random.below(6) {
        0 | 1 => owner.tokens(&["a", "b", "c"]),
        2 => owner.step(),
        3 => owner.complete(),
        4 => owner.fail(if random.below(2) == 0 { Retry::Never } else { after(20) }),
        _ => owner.decide(&Command::Release { attempt }),
    };
    let leaves = commit.run.status != Status::Running;
    let committed = store.commit(commit).await.unwrap();
    if committed == Committed::CancelWaits {
        assert_eq!(drop(store.give_up(owner.id(), attempt, now()).await.unwrap()), ());
    }
    if leaves || committed != Committed::Done {
        owners.swap_remove(at);
    }
}

/// The counts are those of the runs; and just the timers are there that the runs need.
async fn check(store: &dyn RunStore) {
    let runs = store.list(&tenant(), RunFilter::default(), usize::MAX).await.unwrap();
    let live = Status::ALL.into_iter().filter(|status| !status.is_final());
    let mut scanned: BTreeMap<_, _> = live.map(|status| (status, 0)).collect();
    let mut expected = Vec::new();
    for stored in &runs {
        let run = &stored.run;
        if let Some(count) = scanned.get_mut(&run.status) {
            *count += 1;
        }
        let timer = |due, kind| crate::store::TimerKey { due, owner: *run.spec.id.as_uuid(), kind };
        expected.extend(run.timer.map(|armed| timer(armed.due, TimerKind::Due(armed.id))));
        expected.extend(run.expires_at().map(|due| timer(due, TimerKind::Ttl)));
        assert!(run.last_seq <= stored.reserved_seq);
    }
    expected.sort_unstable();
    assert_eq!(store.counts().await.unwrap(), scanned);
    assert_eq!(timers(store).await, expected);
}
