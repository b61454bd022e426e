//! One fault after the other, under load; each is given time to be over before the next.

use std::time::{Duration, Instant};

use runcast_broker_conformance::Mode;
use serde_json::json;

use super::{Cluster, Kind, LEASE, SWEEP, on_both_brokers};
use crate::harness::{assert_promise, eventually};

/// How often the clients start a run.
const PAUSE: Duration = Duration::from_millis(150);

/// How long an outage lasts here; longer than a lease.
const OUTAGE: Duration = Duration::from_secs(8);

/// Lets the clients work for a moment.
async fn a_moment() {
    tokio::time::sleep(Duration::from_millis(1_500)).await;
}

impl Cluster {
    /// A worker dies, and another takes its place.
    pub(super) async fn worker_dies(&mut self, at: usize) {
        self.workers[at].kill9().await;
        tokio::time::sleep(LEASE).await;
        self.workers[at].restart().await;
    }

    /// An API node dies, with its viewers, and comes back.
    pub(super) async fn api_dies(&mut self, at: usize) {
        self.apis[at].kill9().await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        self.apis[at].restart().await;
        self.retarget();
    }

    /// A worker stands still for longer than its lease.
    pub(super) async fn worker_freezes(&mut self, at: usize) {
        self.workers[at].signal("STOP");
        tokio::time::sleep(LEASE * 2).await;
        self.workers[at].signal("CONT");
    }

    /// Every node is told to stop and started again, one after the other.
    pub(super) async fn rolls(&mut self) {
        for at in 0..self.workers.len() {
            self.workers[at].sigterm();
            assert_eq!(self.workers[at].wait_exit().await.code(), Some(0));
            self.workers[at].restart().await;
        }
        for at in 0..self.apis.len() {
            self.apis[at].sigterm();
            assert_eq!(self.apis[at].wait_exit().await.code(), Some(0));
            self.apis[at].restart().await;
            self.retarget();
        }
    }

    pub(super) async fn broker_is_away(&mut self, outage: Duration) {
        self.services.kill_broker();
        tokio::time::sleep(outage).await;
        self.services.run_broker().await;
    }

    pub(super) async fn database_is_away(&mut self, outage: Duration) {
        self.services.postgres.kill();
        tokio::time::sleep(outage).await;
        self.services.postgres.run().await;
    }

    pub(super) async fn database_stalls(&mut self, stall: Duration) {
        self.services.to_store.set(Mode::Stall);
        tokio::time::sleep(stall).await;
        self.services.to_store.set(Mode::Pass);
    }

    pub(super) async fn broker_stalls(&mut self, stall: Duration) {
        self.services.to_broker.set(Mode::Stall);
        tokio::time::sleep(stall).await;
        self.services.to_broker.set(Mode::Pass);
    }

    pub(super) async fn connections_are_cut(&mut self) {
        for _ in 0..5 {
            self.services.to_broker.cut();
            self.services.to_store.cut();
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    pub(super) async fn everything_is_slow(&mut self) {
        let slow = Mode::Slow(Duration::from_millis(100));
        self.services.to_broker.set(slow);
        self.services.to_store.set(slow);
        tokio::time::sleep(LEASE).await;
        self.services.to_broker.set(Mode::Pass);
        self.services.to_store.set(Mode::Pass);
    }

    /// Wake-ups come that nobody sent, many for each run.
    pub(super) async fn wake_ups_are_repeated(&mut self) {
        let broker = self.services.broker().await;
        let queue = runcast_broker::Name::new("pending.scripted.1").expect("a name");
        for _ in 0..200 {
            broker.publish(&queue, bytes::Bytes::new()).await.expect("a broker that takes it");
        }
        broker.close().await;
    }
}

async fn nodes_come_and_go_and_no_promise_breaks(kind: Kind) {
    let Some(mut cluster) = Cluster::start(kind, 2, 3).await else { return };
    let load = cluster.load(1, PAUSE);
    a_moment().await;
    cluster.worker_dies(0).await;
    a_moment().await;
    cluster.api_dies(0).await;
    cluster.worker_freezes(1).await;
    a_moment().await;
    cluster.rolls().await;
    cluster.wake_ups_are_repeated().await;
    a_moment().await;
    let settled = cluster.settle(load).await;
    println!("{kind:?}: {settled:?}");
    assert!(settled.lost > 0 && settled.free > 0 && settled.reconnections > 0, "the faults hit nothing: {settled:?}");
}

async fn services_come_and_go_and_no_promise_breaks(kind: Kind) {
    let Some(mut cluster) = Cluster::start(kind, 2, 2).await else { return };
    let load = cluster.load(2, PAUSE);
    a_moment().await;
    cluster.broker_is_away(OUTAGE).await;
    cluster.ready().await;
    a_moment().await;
    cluster.connections_are_cut().await;
    cluster.ready().await;
    cluster.database_is_away(OUTAGE).await;
    cluster.ready().await;
    a_moment().await;
    cluster.database_stalls(OUTAGE).await;
    cluster.ready().await;
    cluster.broker_stalls(OUTAGE).await;
    cluster.everything_is_slow().await;
    a_moment().await;
    let settled = cluster.settle(load).await;
    println!("{kind:?}: {settled:?}");
    assert!(settled.free > 0, "no run was suspended: {settled:?}");
    assert_eq!(settled.lost, 0, "an outage costs no attempt: {settled:?}");
}

async fn a_run_of_a_killed_worker_goes_on_within_lease_and_sweep(kind: Kind) {
    let Some(mut cluster) = Cluster::start(kind, 1, 2).await else { return };
    let talking = json!({"agent": "scripted", "input": "x",
        "params": {"tokens": 400, "delay_ms": 20, "step_tokens": 20}});
    let id = cluster.apis[0].create(talking).await;
    let mut viewer = cluster.apis[0].stream(&id).await;
    viewer.through(|event| event.text() == "t50 ").await;
    let owner = eventually("its worker is known", async || {
        for (at, worker) in cluster.workers.iter().enumerate() {
            if worker.metric("runcast_live_runs").await > 0.0 {
                return Some(at);
            }
        }
        None
    })
    .await;
    let killed = Instant::now();
    cluster.workers[owner].kill9().await;
    let retrying = viewer.through(|event| event.kind == "run.started").await;
    let took = killed.elapsed();
    println!("{kind:?}: the next attempt began {took:?} after the kill (lease {LEASE:?}, sweep {SWEEP:?})");
    assert!(retrying.iter().any(|event| event.kind == "run.retrying" && event.data["reason"] == "worker_lost"));
    assert_eq!(cluster.apis[0].wait_final(&id).await["status"], "completed");
    assert_eq!(assert_promise(&cluster.apis[0], &id).await.attempts, [1, 2]);
}

on_both_brokers! {
    nodes_come_and_go_and_no_promise_breaks
    services_come_and_go_and_no_promise_breaks
    a_run_of_a_killed_worker_goes_on_within_lease_and_sweep
}
