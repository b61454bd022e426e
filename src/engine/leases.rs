//! The leases of the runs that are live on this node, where a store is shared by many.
//!
//! One statement extends all of them. What does not come back belongs to another node, and is stopped
//! without another word to the store. A lease that could not be extended in time is over for this node
//! before it is over for the others: its deadline counts from before the extension was sent, less a
//! margin, on the monotonic clock. From then on nothing of the attempt is shown, its agent is stopped,
//! and as soon as the store is back the run is let go, free of charge.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Node;
use super::mailbox::post;
use super::supervisor::{Cancel, Lose, Supervisor};
use crate::run::RunId;
use crate::store::StoreError;

/// A lease is extended so many times while it lasts.
const EXTENSIONS: u32 = 3;

/// This part of a lease is left when the node takes it for over.
const MARGIN: u32 = 5;

/// Deadlines are looked at so many times a lease.
const LOOKS: u32 = 50;

/// One attempt's claim to its run, as this node sees it.
pub(crate) struct Lease {
    attempt: u32,
    since: Instant,
    /// Milliseconds after `since`.
    deadline: AtomicU64,
    over: AtomicBool,
}

impl Lease {
    fn new(attempt: u32, asked: Instant, lease: Duration) -> Self {
        let made = Self { attempt, since: asked, deadline: AtomicU64::new(0), over: AtomicBool::new(false) };
        made.extend(asked, lease);
        made
    }

    /// The store was asked at `asked` and has granted `lease` from some moment after.
    fn extend(&self, asked: Instant, lease: Duration) {
        let deadline = asked.duration_since(self.since) + (lease - lease / MARGIN);
        self.deadline.store(u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX), Ordering::Release);
    }

    /// The attempt must not show anything any more. Once over, a lease stays so.
    pub(crate) fn is_over(&self) -> bool {
        if self.over.load(Ordering::Acquire) {
            return true;
        }
        let passed = self.since.elapsed().as_millis() >= u128::from(self.deadline.load(Ordering::Acquire));
        if passed {
            self.over.store(true, Ordering::Release);
        }
        passed
    }
}

/// The leases of a node's live runs.
#[derive(Default)]
pub(crate) struct Leases {
    live: Mutex<HashMap<RunId, Arc<Lease>>>,
}

impl Leases {
    /// A run was claimed by an attempt, which the store was asked for at `asked`.
    pub(crate) fn begin(&self, run: RunId, attempt: u32, asked: Instant, lease: Duration) -> Arc<Lease> {
        let lease = Arc::new(Lease::new(attempt, asked, lease));
        self.live.lock().insert(run, Arc::clone(&lease));
        lease
    }

    /// The attempt is over, however it ended.
    pub(crate) fn end(&self, run: RunId, attempt: u32) {
        let mut live = self.live.lock();
        if live.get(&run).is_some_and(|lease| lease.attempt == attempt) {
            live.remove(&run);
        }
    }

    /// The runs that are live.
    pub(crate) fn live(&self) -> Vec<RunId> {
        self.live.lock().keys().copied().collect()
    }

    fn all(&self) -> Vec<(RunId, Arc<Lease>)> {
        self.live.lock().iter().map(|(run, lease)| (*run, Arc::clone(lease))).collect()
    }
}

/// Extends the leases, until `stop` is cancelled.
pub(crate) async fn keep(node: Arc<Node>, stop: CancellationToken) {
    let lease = node.settings.lease;
    let mut wait = lease / EXTENSIONS;
    while stop.run_until_cancelled(tokio::time::sleep(wait)).await.is_some() {
        match extend(&node).await {
            Ok(()) => wait = lease / EXTENSIONS,
            Err(error) => {
                node.outage.felt("cannot extend the leases", &error);
                wait = lease / (EXTENSIONS * 5);
            }
        }
    }
}

async fn extend(node: &Arc<Node>) -> Result<(), StoreError> {
    let live = node.leases.all();
    if live.is_empty() {
        return Ok(());
    }
    let lease = node.settings.lease;
    let owned: Vec<_> = live.iter().map(|(run, lease)| (*run, lease.attempt)).collect();
    let asked = Instant::now();
    let held = tokio::time::timeout(lease / EXTENSIONS, node.store.extend(&owned, lease)).await;
    let held = held.map_err(|_| StoreError::Unavailable("it does not answer in time".to_owned()))??;
    node.outage.is_over();
    let held: HashMap<_, _> = held.into_iter().map(|held| ((held.run, held.attempt), held)).collect();
    for (run, known) in live {
        match held.get(&(run, known.attempt)) {
            Some(held) => {
                known.extend(asked, lease);
                if held.cancel_requested {
                    // Bounded by the live runs.
                    post(node.supervisor(run), Cancel(run));
                }
            }
            // Bounded by the live runs. One that has ended meanwhile is not found any more.
            None => post(node.supervisor(run), Lose { run, attempt: known.attempt, suspend: false }),
        }
    }
    Ok(())
}

/// Suspends the runs whose lease is over, until `stop` is cancelled.
pub(crate) async fn watch(node: Arc<Node>, stop: CancellationToken) {
    let mut told: HashMap<RunId, u32> = HashMap::new();
    while stop.run_until_cancelled(tokio::time::sleep(node.settings.lease / LOOKS)).await.is_some() {
        let live = node.leases.all();
        let over: HashMap<_, _> =
            live.into_iter().filter(|(_, lease)| lease.is_over()).map(|(run, lease)| (run, lease.attempt)).collect();
        let mut suspended = 0;
        for (&run, &attempt) in &over {
            if told.get(&run) != Some(&attempt) {
                suspended += 1;
                // One to each attempt.
                post(node.supervisor(run), Lose { run, attempt, suspend: true });
            }
        }
        if suspended > 0 {
            tracing::warn!(runs = suspended, "suspended: their leases could not be extended in time");
        }
        told = over;
    }
}

impl Node {
    /// The supervisor that a live run belongs to.
    pub(crate) fn supervisor(&self, run: RunId) -> &actix::Addr<Supervisor> {
        &self.supervisors[run.spread() % self.supervisors.len()]
    }
}
