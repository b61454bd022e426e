//! Simulations of a lane: tenants that queue runs, and workers that serve them by rank.

use std::collections::BTreeSet;

use proptest::prelude::*;
use uuid::Uuid;

use super::*;

fn id(number: u128) -> RunId {
    RunId::from_uuid(Uuid::from_u128(number))
}

/// A lane with its queue.
#[derive(Default)]
struct Simulation {
    lane: Lane,
    queue: BTreeSet<(i64, u128, usize)>,
    created: u128,
}

fn tenant(number: usize) -> Tenant {
    Tenant::new(format!("tenant-{number}"))
}

impl Simulation {
    fn queue(&mut self, of: usize, weight: u32) -> i64 {
        let rank = self.lane.rank(&tenant(of), stride(weight));
        self.lane.queued(&tenant(of), 1, rank);
        self.created += 1;
        self.queue.insert((rank, self.created, of));
        rank
    }

    /// Serves the next run; whose it is, and its rank.
    fn serve(&mut self) -> Option<(usize, i64)> {
        let (rank, _, of) = self.queue.pop_first()?;
        self.lane.unqueued(&tenant(of));
        self.lane.started();
        self.lane.served(rank);
        Some((of, rank))
    }

    /// The tenants of the next so many runs.
    fn serve_many(&mut self, runs: usize) -> Vec<usize> {
        (0..runs).map_while(|_| self.serve()).map(|(of, _)| of).collect()
    }

    fn queued_of(&self, of: usize) -> usize {
        self.queue.iter().filter(|(.., whose)| *whose == of).count()
    }
}

fn count(served: &[usize], of: usize) -> usize {
    served.iter().filter(|whose| **whose == of).count()
}

#[test]
fn a_newcomer_stands_behind_one_run_of_a_flood() {
    let mut simulation = Simulation::default();
    for _ in 0..10_000 {
        simulation.queue(0, 1);
    }
    simulation.queue(1, 1);
    assert_eq!(simulation.serve_many(2), [0, 1]);
    assert_eq!(count(&simulation.serve_many(500), 0), 500);
    simulation.queue(2, 1);
    assert!(simulation.serve_many(2).contains(&2), "in the middle as well as at the beginning");
}

#[test]
fn an_idle_tenant_saves_nothing_up() {
    let mut simulation = Simulation::default();
    for _ in 0..1_000 {
        simulation.queue(0, 1);
    }
    simulation.queue(1, 1);
    simulation.serve_many(801);
    for _ in 0..100 {
        simulation.queue(1, 1);
    }
    // It has been idle for 800 runs, and gets no more than its half from now on.
    let served = simulation.serve_many(100);
    assert!((49..=51).contains(&count(&served, 1)), "{served:?}");
}

#[test]
fn a_tenant_that_cannot_be_served_holds_nobodys_time_back() {
    let mut simulation = Simulation::default();
    // Tenant 0 is first for ever: a limit keeps it from being served.
    let stuck = simulation.queue(0, 1);
    simulation.queue.clear();
    for _ in 0..300 {
        simulation.queue(1, 1);
    }
    simulation.serve_many(200);
    // Tenant 2 comes one by one, and does not overtake all of tenant 1's each time.
    let mut served = Vec::new();
    for _ in 0..40 {
        let rank = simulation.queue(2, 1);
        assert!(rank > stuck + 100 * SCALE, "{rank}");
        served.extend(simulation.serve_many(2));
    }
    assert!(count(&served, 1) >= 39, "{served:?}");
}

#[test]
fn a_run_that_comes_back_goes_first() {
    let mut simulation = Simulation::default();
    for _ in 0..10 {
        simulation.queue(0, 1);
        simulation.queue(1, 1);
    }
    let (_, own) = simulation.serve().unwrap();
    simulation.serve_many(5);
    assert_eq!(simulation.lane.rank_again(own), own);
    // Also when the lane was empty, and forgotten, meanwhile.
    let mut anew = Simulation::default();
    for _ in 0..10 {
        anew.queue(0, 1);
    }
    let again = anew.lane.rank_again(own + 1_000 * SCALE);
    assert!(anew.queue.first().unwrap().0 > again);
}

#[test]
fn lanes_take_turns_within_a_priority() {
    let candidate = |priority, turn, number| Candidate { priority, id: id(number), turn };
    let lanes = [
        candidate(5, 0, 9),
        candidate(0, 0, 3),
        candidate(0, 0, 1),
        candidate(0, 0, 2),
        candidate(0, 1, 8),
        candidate(-1, 1, 4),
    ];
    let all: Vec<_> = [9, 3, 8, 1, 2, 4].map(id).into();
    assert_eq!(merge(lanes, 9), all);
    assert_eq!(merge(lanes, 3), all[..3]);
}

#[test]
fn limits_hold_for_whom_they_name() {
    let name = |name: &str, limit| BTreeMap::from([(name.to_owned(), limit)]);
    let limits = Limits { tenants: name("acme", 2), agents: name("chat", 3), keys: name("mail", 1) };
    let subject = |tenant, agent, key| Subject { tenant, agent, key };
    let mut running = Running::default();
    for (subject, admitted, concerned) in [
        (subject("acme", "mail", None), true, true),
        (subject("acme", "chat", None), true, true),
        (subject("acme", "free", None), false, true),
        (subject("other", "chat", None), true, true),
        (subject("other", "mail", Some("k")), true, true),
        (subject("other", "mail", Some("k")), false, true),
        (subject("other", "mail", Some("l")), true, true),
        (subject("other", "chat", Some("k")), true, true),
        (subject("other", "chat", None), false, true),
        (subject("other", "mail", None), true, false),
        (subject("other", "free", Some("k")), true, false),
    ] {
        assert_eq!(limits.admit(subject, &running), admitted, "{subject:?}");
        assert_eq!(limits.concern(subject), concerned, "{subject:?}");
        if admitted {
            running.add(subject);
        }
    }
    running.remove(subject("acme", "chat", None));
    assert!(limits.admit(subject("acme", "chat", None), &running));
    for (agent, runs) in [("chat", 2), ("free", 1)] {
        assert_eq!(running.of_agent(agent), runs);
    }
    running.remove(subject("other", "mail", Some("l")));
    running.remove(subject("other", "mail", Some("k")));
    running.remove(subject("other", "chat", Some("k")));
    running.remove(subject("other", "free", Some("k")));
    assert_eq!(running.keys().count(), 0, "nothing is kept of what is not running");
}

proptest! {
    /// Tenants that always have something queued share in proportion to their weights.
    #[test]
    fn shares_converge_to_weights(weights in prop::collection::vec(1_u32..20, 2..6)) {
        let mut simulation = Simulation::default();
        for (of, weight) in weights.iter().enumerate() {
            for _ in 0..4_000 {
                simulation.queue(of, *weight);
            }
        }
        let total = 3_000;
        let served = simulation.serve_many(total);
        let sum: u32 = weights.iter().sum();
        for (of, weight) in weights.iter().enumerate() {
            let share = count(&served, of) as f64 / total as f64;
            let due = f64::from(*weight) / f64::from(sum);
            prop_assert!((share - due).abs() < 0.02, "tenant {of} of {weights:?} got {share}, due {due}");
        }
    }

    /// Whatever others do, a queued run is served after a number of runs that depends on what its own tenant has
    /// queued and on weights, and on nothing else.
    #[test]
    fn no_tenant_starves(
        weights in prop::collection::vec(1_u32..8, 2..5),
        history in prop::collection::vec((0_usize..5, 1_usize..40, 0_usize..20), 1..40),
    ) {
        let mut simulation = Simulation::default();
        for (who, burst, served) in history {
            let who = who % weights.len();
            for _ in 0..burst {
                simulation.queue(who, weights[who]);
            }
            simulation.serve_many(served);
        }
        let victim = 0;
        let own = simulation.queued_of(victim);
        simulation.queue(victim, weights[victim]);
        // The runs of another that fit before its last: those of as many strides as its own, one for the moment at
        // which it came, and one for the rounding of strides.
        let strides = own + 2;
        let bound: usize = weights
            .iter()
            .map(|weight| strides * (*weight as usize) / (weights[victim] as usize) + strides + 2)
            .sum();
        let mut waited = 0;
        while simulation.queued_of(victim) > 0 {
            // The others never stop.
            for (of, weight) in weights.iter().enumerate().skip(1) {
                simulation.queue(of, *weight);
            }
            simulation.serve();
            waited += 1;
            prop_assert!(waited <= bound + own + 1, "waited for {waited} runs, bound {bound}, own {own}");
        }
    }

    /// The lane counts what is queued, and nothing of a tenant is kept that has nothing queued.
    #[test]
    fn a_lane_keeps_only_what_is_queued(steps in prop::collection::vec((0_usize..4, prop::bool::ANY), 0..200)) {
        let mut simulation = Simulation::default();
        for (who, serves) in steps {
            match serves {
                true => { if simulation.serve().is_some() { simulation.lane.stopped(); } }
                false => { simulation.queue(who, 1); }
            }
            let waiting: BTreeSet<_> = simulation.queue.iter().map(|(.., of)| *of).collect();
            prop_assert_eq!(simulation.lane.tenants.len(), waiting.len());
            prop_assert_eq!(simulation.lane.is_empty(), waiting.is_empty());
        }
    }
}
