//! Faults at random, for as long as one likes: `tests/run chaos --minutes N [--seed S]`.

use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::{Cluster, Kind, on_both_brokers};

/// The faults, in the order of the `match` below.
const NAMES: [&str; 10] = [
    "a worker is killed",
    "an API node is killed",
    "a worker stands still",
    "every node is restarted",
    "the broker is killed",
    "the database is killed",
    "the database stalls",
    "the broker stalls",
    "connections are cut",
    "everything is slow",
];

/// A number from the environment.
fn given(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

async fn faults_at_random_break_no_promise(kind: Kind) {
    let Some(mut cluster) = Cluster::start(kind, 2, 3).await else { return };
    let seed = given("RUNCAST_CHAOS_SEED").unwrap_or(20_261_122);
    let lasts = Duration::from_secs(given("RUNCAST_CHAOS_SECONDS").unwrap_or(30));
    let outage = Duration::from_secs(given("RUNCAST_CHAOS_OUTAGE_SECONDS").unwrap_or(8));
    println!("{kind:?}: seed {seed}, for {lasts:?}, with outages of {outage:?}");
    let mut dice = StdRng::seed_from_u64(seed);
    let began = Instant::now();
    let (mut round, mut faults, mut runs, mut lost) = (0, 0, 0, 0);
    while began.elapsed() < lasts {
        // In rounds, so that what is checked at a time stays small.
        round += 1;
        let load = cluster.load(seed.wrapping_add(round), Duration::from_millis(dice.random_range(80..300)));
        for _ in 0..dice.random_range(2..6) {
            if began.elapsed() >= lasts && faults > 0 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(dice.random_range(200..2_000))).await;
            faults += 1;
            let fault = dice.random_range(0..10);
            println!("{kind:?}: {:?}: {}", began.elapsed(), NAMES[fault]);
            match fault {
                0 => cluster.worker_dies(dice.random_range(0..3)).await,
                1 => cluster.api_dies(dice.random_range(0..2)).await,
                2 => cluster.worker_freezes(dice.random_range(0..3)).await,
                3 => cluster.rolls().await,
                4 => cluster.broker_is_away(outage).await,
                5 => cluster.database_is_away(outage).await,
                6 => cluster.database_stalls(outage).await,
                7 => cluster.broker_stalls(outage).await,
                8 => cluster.connections_are_cut().await,
                _ => cluster.everything_is_slow().await,
            }
        }
        let settled = cluster.settle(load).await;
        println!("{kind:?}: round {round}: {settled:?}");
        runs += settled.runs;
        lost += settled.lost;
    }
    println!("{kind:?}: seed {seed}: {faults} faults, {runs} runs, {lost} attempts lost and made again, promise kept");
}

on_both_brokers! {
    faults_at_random_break_no_promise
}
