//! The removal of what has ended long ago.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Node;
use crate::run::Timestamp;
use crate::store::StoreError;

/// The shortest pause between two batches. A batch that takes longer is followed by a pause as long as itself.
const PAUSE: Duration = Duration::from_millis(10);

/// How long what has ended is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Runs, from their end on; none: for ever.
    pub runs: Option<Duration>,
    /// Threads in which nothing happens; none: for ever.
    pub threads: Option<Duration>,
    /// How many are removed at a time, at least 1.
    pub batch: usize,
    /// How often is looked for them.
    pub interval: Duration,
}

impl Retention {
    /// Whether a run that was created at `created` may be gone by `now` for its age.
    pub(super) fn may_have_removed(&self, created: Timestamp, now: Timestamp) -> bool {
        self.runs.is_some_and(|kept| now.since(created) > kept)
    }
}

/// Removes what is too old, now and then again, until `stop` is cancelled.
pub(super) async fn keep(node: Arc<Node>, stop: CancellationToken) {
    let Retention { runs, threads, batch, interval } = node.settings.retention;
    if runs.is_none() && threads.is_none() {
        return;
    }
    // One that takes too long is made smaller until it does not.
    let mut size = batch.max(1);
    while !stop.is_cancelled() {
        let removed = remove(&node, runs, threads, size, &stop).await;
        match removed {
            Ok(0) => size = batch.max(1),
            Ok(removed) => {
                size = batch.max(1);
                tracing::debug!(removed, "removed runs and threads that are too old");
            }
            Err(error) => {
                size = (size / 2).max(1);
                node.outage.felt("cannot remove what is too old", &error);
            }
        }
        stop.run_until_cancelled(tokio::time::sleep(interval)).await;
    }
}

/// Removes all that is too old now. Returns how much.
async fn remove(
    node: &Arc<Node>,
    runs: Option<Duration>,
    threads: Option<Duration>,
    batch: usize,
    stop: &CancellationToken,
) -> Result<u64, StoreError> {
    let mut removed = 0;
    let before = |kept: Duration| {
        let kept = i64::try_from(kept.as_millis()).unwrap_or(i64::MAX);
        Timestamp::from_millis(node.clock.now().as_millis().saturating_sub(kept))
    };
    while let Some(kept) = runs.filter(|_| !stop.is_cancelled()) {
        let begun = Instant::now();
        let gone = node.store.remove_finished(before(kept), batch).await?;
        if gone.is_empty() {
            break;
        }
        removed += gone.len() as u64;
        gone.into_iter().for_each(|run| node.feed.removed(run));
        stop.run_until_cancelled(tokio::time::sleep(begun.elapsed().max(PAUSE))).await;
    }
    while let Some(kept) = threads.filter(|_| !stop.is_cancelled()) {
        let begun = Instant::now();
        let gone = node.store.delete_idle_threads(before(kept), batch).await?.len() as u64;
        if gone == 0 {
            break;
        }
        removed += gone;
        stop.run_until_cancelled(tokio::time::sleep(begun.elapsed().max(PAUSE))).await;
    }
    Ok(removed)
}
