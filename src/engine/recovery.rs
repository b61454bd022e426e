//! What puts right what got lost: attempts whose owner is gone, and wake-ups that never came.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use super::Node;
use super::effects::perform;
use crate::run::{Backoff, RunId, Status};
use crate::store::{Changed, StoreError, Transition};

/// How many runs are recovered in one transaction.
const BATCH: usize = 256;

/// How many wake-ups a sweep sends at most.
const WAKES: u64 = 10_000;

/// How long an idempotency key is kept.
pub(crate) const KEY_KEPT: Duration = Duration::from_secs(24 * 3600);

const RETRY: Backoff = Backoff { base: Duration::from_millis(100), max: Duration::from_secs(5) };

/// Shows what a transition has done and performs what follows from it.
pub(crate) fn settle(node: &Arc<Node>, transition: Transition) {
    if let Transition::Done(changed) = transition {
        let Changed { run, segment, effects } = *changed;
        node.feed.changed(run.spec.id, &segment, run.status);
        if run.status.is_final() {
            node.metrics.run_left(&run);
        }
        perform(node, &run, effects);
    }
}

/// Gives up the runs that were running when the last process ended. Returns how many there were.
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

/// Wakes the workers for queued runs that no wake-up is under way for, and forgets old idempotency keys,
/// now and then again, until `stop` is cancelled.
pub(crate) async fn sweep(node: Arc<Node>, every: Duration, stop: CancellationToken) {
    while !stop.is_cancelled() {
        if let Err(error) = wake_forgotten(&node).await {
            tracing::warn!(%error, "cannot sweep the queue");
        }
        let now = node.clock.now();
        let before = crate::run::Timestamp::from_millis(now.as_millis() - KEY_KEPT.as_millis() as i64);
        if let Err(error) = node.store.forget_keys(before, BATCH * 16).await {
            tracing::warn!(%error, "cannot forget old idempotency keys");
        }
        stop.run_until_cancelled(tokio::time::sleep(every)).await;
    }
}

async fn wake_forgotten(node: &Arc<Node>) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let queued = node.store.counts().await?.get(&Status::Queued).copied().unwrap_or(0);
    let depths = node.broker.depths(std::slice::from_ref(&node.queue)).await?;
    let under_way = depths.iter().map(|depth| depth.ready + depth.outstanding).sum();
    let missing = queued.saturating_sub(under_way).min(WAKES);
    for _ in 0..missing {
        node.broker.publish(&node.queue, Bytes::new()).await?;
    }
    if missing > 0 {
        tracing::debug!(missing, queued, "woke the workers again");
    }
    Ok(())
}
