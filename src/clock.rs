//! The one place that reads the wall clock.
//!
//! Due times, `created_at` and the like are wall clock, by definition. Waiting within the process is
//! monotonic (tokio's time) and does not come here.

use std::time::SystemTime;

use uuid::Uuid;

use crate::run::{RunId, Timestamp};

/// Tells the time.
pub trait Clock: Send + Sync + 'static {
    /// Now.
    fn now(&self) -> Timestamp;

    /// A new id of version 7. Ids made by one process rise.
    fn id(&self) -> Uuid {
        Uuid::now_v7()
    }

    /// A new run id. Ids made by one process rise.
    fn run_id(&self) -> RunId {
        RunId::from_uuid(self.id())
    }
}

/// The machine's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        #[expect(clippy::disallowed_methods, reason = "this is the one place")]
        let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Timestamp::from_millis(i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX))
    }
}
