//! The removal of what is old.

use async_trait::async_trait;

use super::StoreError;
use crate::run::{RunId, Timestamp};

/// Removes what is kept for a time only. Several nodes may do it at once: what one of them is at, the others leave
/// to it. All methods are cancellation safe.
#[async_trait]
pub trait RetentionStore: Send + Sync + 'static {
    /// Removes runs that ended before `before`, oldest first, with all that belongs to them: logs, steps, results,
    /// idempotency keys, deliveries, dead letters. One that a webhook is still to tell of stays. At most `limit`, and fewer if that takes long; returns which. None are left
    /// when none were removed.
    async fn remove_finished(&self, before: Timestamp, limit: usize) -> Result<Vec<RunId>, StoreError>;
}
