//! What can be asked of a run, what follows outside of it, and why it may be refused.

use std::time::Duration;

use serde_json::Value;

use super::{Bound, OpenStep, Reason, RunError, Status, Timer, Timestamp, Usage};

/// Something that wants to change a run. Whatever comes from outside carries the attempt or the timer
/// it belongs to, so that a stale one is told apart.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// A worker takes the run.
    Claim {
        /// The worker's node.
        node: String,
    },
    /// A timer is due.
    Fire {
        /// Which one.
        timer: u64,
    },
    /// The run before it in its thread has ended.
    Promote,
    /// Another message joins its input: it may wait until then for more.
    Join {
        /// When it is due now, unless its longest wait ends before; not after now: at once.
        due: Timestamp,
    },
    /// The time-to-live has passed.
    Expire,
    /// Someone wants the run to end.
    Cancel,
    /// The agent begins a step that uses something, or does something outside that must not happen twice unnoticed.
    BeginStep(OpenStep),
    /// The agent finished a step, which is a checkpoint from now on.
    FinishStep {
        /// The attempt that made it.
        attempt: u32,
        /// Its number in the run, from 1.
        step: u32,
        /// What it used.
        usage: Usage,
    },
    /// The agent finished.
    Complete {
        /// The attempt that did.
        attempt: u32,
        /// What it made.
        output: Value,
        /// Why it stopped, such as `finished` or `max_steps`.
        outcome: String,
        /// What was used beyond the finished steps.
        usage: Usage,
    },
    /// The attempt failed.
    Fail {
        /// The attempt that did.
        attempt: u32,
        /// Why, and whether another may follow.
        failure: Failure,
    },
    /// The agent asks a person and ends its attempt; another goes on with the answer.
    Wait {
        /// The attempt that asks.
        attempt: u32,
        /// What it asks.
        question: Question,
    },
    /// A person answers.
    Resume {
        /// The question that is answered.
        wait_id: String,
        /// The answer.
        input: Value,
    },
    /// The attempt's running time is used up.
    Timeout {
        /// The attempt that was stopped.
        attempt: u32,
    },
    /// Its worker shuts down in good order and lets the run go. Free of charge.
    Release {
        /// The attempt that is given up.
        attempt: u32,
    },
    /// Its worker cannot reach the store in time, and has stopped it. Free of charge.
    Suspend {
        /// The attempt that is given up.
        attempt: u32,
    },
    /// Its worker is gone: killed, out of its lease, or its actor died.
    Crash {
        /// The attempt that is lost.
        attempt: u32,
        /// A cancel waits for the run, so there will be no other.
        cancel: bool,
    },
}

/// What a person is asked.
#[derive(Debug, Clone, PartialEq)]
pub struct Question {
    /// [`Reason::Input`] or [`Reason::Approval`].
    pub reason: Reason,
    /// What to show to the person; often a text.
    pub prompt: Value,
    /// The run fails unless there is an answer by then.
    pub deadline: Option<Timestamp>,
}

/// How an attempt failed.
#[derive(Debug, Clone, PartialEq)]
pub struct Failure {
    /// What to tell.
    pub error: RunError,
    /// Whether to try again.
    pub retry: Retry,
    /// What was used beyond the finished steps.
    pub usage: Usage,
}

/// Whether another attempt may follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// It would fail again.
    Never,
    /// After this wait, while the attempts last.
    After(Duration),
    /// It would need more than is left of the run's budget.
    OutOfBudget(Bound),
}

/// What must happen outside once the events of a decision are journaled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Tell a worker that the run's queue has work.
    Wake,
    /// Keep this timer.
    Arm(Timer),
    /// Forget this timer.
    Disarm(Timer),
    /// Start the agent as the new attempt.
    StartAgent,
    /// Stop the agent: close its sockets, kill its processes.
    StopAgent,
}

/// Why a command changed nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// The run has ended, and final is final.
    #[error("the run is {0}, which is final")]
    Final(Status),
    /// The command does not apply to a run in this status.
    #[error("the run is {0}")]
    NotNow(Status),
    /// It comes from an attempt that is no longer the run's.
    #[error("the command belongs to another attempt than the current one, {current}")]
    StaleAttempt {
        /// The current attempt.
        current: u32,
    },
    /// It answers another question than the one that is open.
    #[error("the run waits for an answer to {current:?}, not to this question")]
    StaleWait {
        /// The `wait_id` of the open question.
        current: String,
    },
    /// What the step may use is more than is left of the run's budget.
    #[error("the run is out of its budget: {}", .0.outcome())]
    OutOfBudget(Bound),
    /// It comes from a timer that is no longer the run's, or before its time.
    #[error("the timer is no longer armed, or not due")]
    StaleTimer,
}
