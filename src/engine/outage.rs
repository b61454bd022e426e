//! An outage of the store is told once, however many feel it.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::store::StoreError;

/// Whether the store has failed those who asked it last.
#[derive(Default)]
pub(crate) struct Outage(AtomicBool);

impl Outage {
    /// The store has failed; `what` cannot be done, and is tried again by itself.
    pub(crate) fn felt(&self, what: &str, error: &StoreError) {
        if self.0.swap(true, Ordering::Relaxed) {
            tracing::debug!(%error, "{what}; trying again");
        } else {
            tracing::warn!(%error, "{what}; trying again, and more may follow that is not told");
        }
    }

    /// The store has answered.
    pub(crate) fn is_over(&self) {
        if self.0.load(Ordering::Relaxed) && self.0.swap(false, Ordering::Relaxed) {
            tracing::info!("the store answers again");
        }
    }
}
