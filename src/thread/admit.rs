//! What becomes of a message or a run that comes into a thread.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::FollowUpRule;
use crate::run::{Input, Kept, Message, Run, RunId, Spec, Timestamp};

/// What becomes of a message when a run holds its thread.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnBusy {
    /// It is refused.
    Reject,
    /// It becomes a run of its own, after those that are there.
    #[default]
    Enqueue,
    /// The run is cancelled, what it has said is kept, and the message becomes the next run.
    Interrupt,
    /// The run is cancelled, what it has said is dropped, and the message becomes the next run.
    Rollback,
    /// It joins the run that waits to be next, or becomes that run.
    Debounce,
    /// It is handed to the run, which sees it at its next step.
    Steer,
}

impl OnBusy {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Reject, Self::Enqueue, Self::Interrupt, Self::Rollback, Self::Debounce, Self::Steer];

    /// The spelling used everywhere.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Reject => "reject",
            Self::Enqueue => "enqueue",
            Self::Interrupt => "interrupt",
            Self::Rollback => "rollback",
            Self::Debounce => "debounce",
            Self::Steer => "steer",
        }
    }
}

impl fmt::Display for OnBusy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How long a thread must be quiet before its messages become a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quiet {
    /// The quiet period after each message.
    pub quiet: Duration,
    /// The longest that the first message waits.
    pub longest: Duration,
}

/// Why something comes into a thread.
#[derive(Debug, Clone, PartialEq)]
pub enum Occasion {
    /// A message, which becomes a run, or joins one.
    Message {
        /// It may have to wait for others.
        quiet: Option<Quiet>,
    },
    /// A run that was asked for.
    Run {
        /// Not before.
        due: Option<Timestamp>,
    },
    /// A run that goes on from one that ended, whose messages it takes over.
    Retry {
        /// The run that ended.
        of: RunId,
        /// What is taken over of it.
        kept: Kept,
    },
    /// Nobody has spoken for a while.
    FollowUp {
        /// The thread's timer that is due.
        timer: u64,
        /// What the agent declares.
        rules: Arc<[FollowUpRule]>,
    },
}

/// Something comes into a thread.
#[derive(Debug, Clone, PartialEq)]
pub struct Ask {
    /// Why.
    pub occasion: Occasion,
    /// What to do when a run holds the thread.
    pub on_busy: OnBusy,
    /// The run that it becomes if it becomes a run. Its input is what is said.
    pub newcomer: Newcomer,
    /// The most runs that may wait in the thread.
    pub max_pending: usize,
    /// The largest input that may come together in one run, in bytes of text.
    pub max_input: usize,
    /// The time.
    pub now: Timestamp,
}

/// A run that may be created, and the ids of the messages that it is given.
#[derive(Debug, Clone, PartialEq)]
pub struct Newcomer {
    /// The run.
    pub spec: Spec,
    /// One id for each message of its input.
    pub messages: Vec<Uuid>,
}

/// Why nothing came into the thread.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A run holds the thread, and `reject` was asked for.
    #[error("run {holder} is going on in the thread")]
    Busy {
        /// The run.
        holder: RunId,
    },
    /// Too many runs wait in the thread.
    #[error("{limit} runs are waiting in the thread already")]
    Full {
        /// How many may.
        limit: usize,
    },
    /// People have taken the thread over.
    #[error("the thread is handed off to people")]
    HandedOff,
    /// The timer is no longer the thread's, or not due.
    #[error("the timer is no longer armed, or not due")]
    StaleTimer,
}

impl Newcomer {
    /// What is said.
    pub(super) fn said(&self) -> Vec<(Uuid, Message)> {
        self.messages.iter().copied().zip(self.spec.input.clone().into_messages()).collect()
    }

    /// It could join `run`: it asks the same of the same agent, and both together are not too much.
    pub(super) fn fits(&self, run: &Run, max_input: usize) -> bool {
        let (ours, theirs) = (&self.spec, &run.spec);
        run.gathers()
            && (&ours.agent, &ours.agent_version, &ours.params)
                == (&theirs.agent, &theirs.agent_version, &theirs.params)
            && ours.input.bytes() + theirs.input.bytes() <= max_input
            && ours.input.count() + theirs.input.count() <= Input::MOST
    }
}
