//! The statuses of a run and the reasons that go with them.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Where a run stands. Spelled the same in the API, in SQL, in metrics and in the console.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Waits for a time (a delay, a debounce or a backoff) or for its thread. A row and perhaps a timer, no
    /// actor. Its timer or the end of the run before it moves it to `queued`, a cancel or its time-to-live ends it.
    Scheduled,
    /// May run as soon as a worker has room. A claim moves it to `running`.
    Queued,
    /// One worker executes it, under a lease, as the current attempt.
    Running,
    /// Waits for a person's input or approval, for as long as it takes. No actor. The answer moves it to
    /// `queued`, its deadline or a cancel ends it.
    Waiting,
    /// Ended: the agent finished. Final.
    Completed,
    /// Ended: an error, a deadline or too many attempts. Final.
    Failed,
    /// Ended: someone cancelled it. Final.
    Cancelled,
    /// Ended: its time-to-live passed before it started. Final.
    Expired,
}

impl Status {
    /// All statuses, in the order of the documentation.
    pub const ALL: [Self; 8] = [
        Self::Scheduled,
        Self::Queued,
        Self::Running,
        Self::Waiting,
        Self::Completed,
        Self::Failed,
        Self::Cancelled,
        Self::Expired,
    ];

    /// Nothing leaves a final status.
    #[must_use]
    pub fn is_final(self) -> bool {
        match self {
            Self::Scheduled | Self::Queued | Self::Running | Self::Waiting => false,
            Self::Completed | Self::Failed | Self::Cancelled | Self::Expired => true,
        }
    }

    /// The spelling used everywhere.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Scheduled => "scheduled",
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Waiting => "waiting",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
        }
    }

    /// The status spelled `text`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.as_str() == text)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a run is `scheduled` or `waiting`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// Its creator asked for a delay.
    Delay,
    /// An attempt failed, and the next one is due later.
    Backoff,
    /// Its thread may have more to say: it starts when nobody has spoken for a while.
    Debounce,
    /// Another run holds its thread; it is next when that has ended.
    ThreadBusy,
    /// Waiting for a person's input.
    Input,
    /// Waiting for a person's approval.
    Approval,
}

impl Reason {
    /// All reasons.
    pub const ALL: [Self; 6] =
        [Self::Delay, Self::Backoff, Self::Debounce, Self::ThreadBusy, Self::Input, Self::Approval];

    /// The spelling used everywhere.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Delay => "delay",
            Self::Backoff => "backoff",
            Self::Debounce => "debounce",
            Self::ThreadBusy => "thread_busy",
            Self::Input => "input",
            Self::Approval => "approval",
        }
    }

    /// The reason spelled `text`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == text)
    }
}
