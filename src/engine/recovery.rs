//! What puts right what got lost: attempts whose owner is gone, and wake-ups that never came.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Node;
use super::effects::{perform, queue};
use super::mailbox::post;
use super::sharing::relieve;
use super::timers::Arm;
use crate::run::{Backoff, RunId, Timestamp};
use crate::store::{Changed, Followed, Queued, StoreError, Transition};

/// How many runs are recovered in one transaction.
const BATCH: usize = 256;

/// Between two batches of old idempotency keys.
const PAUSE: Duration = Duration::from_millis(20);

/// How many wake-ups a sweep sends at most.
const WAKES: u64 = 10_000;

/// How long an idempotency key is kept.
pub(crate) const KEY_KEPT: Duration = Duration::from_secs(24 * 3600);

const RETRY: Backoff = Backoff { base: Duration::from_millis(100), max: Duration::from_secs(5) };

/// Shows what a transition has done and performs what follows from it.
pub(crate) fn settle(node: &Arc<Node>, transition: Transition) {
    match transition {
        Transition::Done(changed) => show(node, *changed),
        Transition::Followed(changed, followed) => {
            show(node, *changed);
            follow(node, followed);
        }
        Transition::Handed(_) | Transition::Rejected(..) | Transition::Missing => {}
    }
}

/// Shows what has become of a run that nobody executes, and performs what follows from it.
pub(crate) fn show(node: &Arc<Node>, Changed { run, segment, effects }: Changed) {
    node.feed.changed(run.spec.id, &segment, run.status);
    if run.status.is_final() {
        node.metrics.run_left(&run);
    }
    relieve(node, &run);
    perform(node, &run, effects);
}

/// Shows and performs what has followed for a thread from the change of one of its runs.
pub(crate) fn follow(node: &Arc<Node>, Followed { changed, armed }: Followed) {
    changed.into_iter().for_each(|changed| show(node, changed));
    if let Some(timer) = armed {
        // Bounded by the timers that exist.
        post(&node.timers, Arm(timer));
    }
}

/// Gives up the runs whose owner is gone. Returns how many there were.
pub(crate) async fn recover(node: &Arc<Node>) -> Result<usize, StoreError> {
    let mut recovered = 0;
    loop {
        let batch = node.store.recover(node.clock.now(), BATCH).await?;
        if batch.is_empty() {
            return Ok(recovered);
        }
        recovered += batch.len();
        batch.into_iter().for_each(|transition| settle(node, transition));
    }
}

/// Gives up an attempt whose actor has died. Tries until the store has taken it.
pub(crate) async fn give_up(node: Arc<Node>, run: RunId, attempt: u32) {
    for failures in 1.. {
        match node.store.give_up(run, attempt, node.clock.now()).await {
            Ok(transition) => return settle(&node, transition),
            Err(error) if error.is_transient() => {
                tracing::warn!(%run, %error, "cannot give up an attempt; trying again");
                tokio::time::sleep(RETRY.delay(failures, 1.0, None)).await;
            }
            Err(error) => return tracing::error!(%run, %error, "cannot give up an attempt"),
        }
    }
}

/// Gives up the attempts whose lease has ended, wakes the workers for queued runs that no wake-up is under
/// way for, and forgets old idempotency keys, now and then again, until `stop` is cancelled.
pub(crate) async fn sweep(node: Arc<Node>, stop: CancellationToken) {
    // Whose lease ended while the store was away could not help it: nobody's run is taken before all
    // have had the time to extend.
    let mut reached: Option<Instant> = None;
    let mut unserved = BTreeSet::new();
    while !stop.is_cancelled() {
        if node.shared {
            match node.store.health().await {
                Ok(()) => {
                    let since = *reached.get_or_insert_with(Instant::now);
                    if since.elapsed() >= node.settings.lease {
                        recover_expired(&node).await;
                    }
                }
                Err(_) => reached = None,
            }
        }
        if let Err(error) = wake_forgotten(&node, &mut unserved).await {
            tracing::debug!(%error, "cannot sweep the queues");
        }
        let now = node.clock.now();
        let before = Timestamp::from_millis(now.as_millis() - KEY_KEPT.as_millis() as i64);
        while !stop.is_cancelled() {
            match node.store.forget_keys(before, BATCH * 16).await {
                Ok(forgotten) if forgotten < BATCH as u64 * 16 => break,
                // Others write in between.
                Ok(_) => tokio::time::sleep(PAUSE).await,
                Err(error) => {
                    tracing::debug!(%error, "cannot forget old idempotency keys");
                    break;
                }
            }
        }
        stop.run_until_cancelled(tokio::time::sleep(node.settings.sweep_interval)).await;
    }
}

async fn recover_expired(node: &Arc<Node>) {
    match recover(node).await {
        Ok(0) => {}
        Ok(recovered) => {
            node.metrics.recovered.inc_by(recovered as u64);
            tracing::warn!(recovered, "runs whose lease had ended go on as another attempt");
        }
        Err(error) => tracing::debug!(%error, "cannot recover runs"),
    }
}

/// `unserved`: the agents and versions that somebody has been warned about.
async fn wake_forgotten(
    node: &Arc<Node>,
    unserved: &mut BTreeSet<(String, String)>,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let queued = node.store.queued(&node.limits).await?;
    let served = |queued: &Queued| {
        let here = node.executed.iter().any(|(agent, version)| (agent, version) == (&queued.agent, &queued.version));
        here || node.peers.offered(&queued.agent, &queued.version)
    };
    let (queued, nobodys): (Vec<_>, Vec<_>) = queued.into_iter().partition(served);
    for Queued { agent, version, runs, .. } in &nobodys {
        if !unserved.contains(&(agent.clone(), version.clone())) {
            tracing::warn!(agent, version, runs, "runs are queued for an agent that no worker has");
        }
    }
    *unserved = nobodys.into_iter().map(|queued| (queued.agent, queued.version)).collect();
    let queues: Vec<_> = queued.iter().map(|queued| queue(&queued.agent, &queued.version)).collect();
    let depths = node.broker.depths(&queues).await?;
    let mut left = WAKES;
    for ((Queued { runs, free, agent, .. }, depth), queue) in queued.iter().zip(depths).zip(&queues) {
        // What is outstanding may be held by a node that is dead, or full. A few wake-ups too many do no harm.
        let missing = free.saturating_sub(depth.ready).min(left);
        left -= missing;
        for _ in 0..missing {
            node.broker.publish(queue, Bytes::new()).await?;
        }
        if missing > 0 {
            tracing::debug!(missing, runs, agent, "woke the workers again");
        }
    }
    Ok(())
}
