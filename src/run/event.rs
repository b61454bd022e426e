//! The entries of a run's log.

use serde::Serialize;
use serde_json::Value;

use super::{Message, OpenStep, Reason, RunId, StepKind, Timestamp, Usage};

/// What happened. Serialized it is the `data` of its SSE frame; [`Event::kind`] is the frame's `event`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Event {
    /// The run was accepted.
    Created {
        /// The agent that will execute it.
        agent: String,
        /// The run it goes on from.
        #[serde(skip_serializing_if = "Option::is_none")]
        retry_of: Option<RunId>,
        /// How many finished steps it takes over from that run.
        #[serde(skip_serializing_if = "is_zero")]
        steps_kept: u32,
        /// The steps of that run that were cut off.
        #[serde(skip)]
        cut_off: Vec<OpenStep>,
    },
    /// The run waits for a time, or for its thread.
    Scheduled {
        /// Until when; absent: until the run that holds its thread has ended.
        #[serde(skip_serializing_if = "Option::is_none")]
        due: Option<Timestamp>,
        /// Why.
        reason: Reason,
        /// The timer that will fire.
        #[serde(skip)]
        timer: u64,
    },
    /// The run waits for a worker.
    Queued {},
    /// A worker began an attempt.
    Started {
        /// Its number, from 1.
        attempt: u32,
        /// The worker's node.
        node: String,
    },
    /// A step began.
    StepStarted {
        /// Its number in the run, from 1.
        step: u32,
        /// What kind of step.
        kind: StepKind,
        /// The model or tool.
        name: String,
        /// The tool call that it is.
        #[serde(skip_serializing_if = "Option::is_none")]
        call_id: Option<String>,
        /// The most that it may use.
        #[serde(skip_serializing_if = "Usage::is_nothing")]
        reserved: Usage,
    },
    /// A piece of the answer.
    MessageDelta {
        /// The text that follows.
        text: String,
    },
    /// A piece of what the model thinks aloud.
    ReasoningDelta {
        /// The text that follows.
        text: String,
    },
    /// The whole answer of one model call.
    MessageCompleted {
        /// The message.
        message: Message,
    },
    /// A tool is called.
    ToolStarted {
        /// Tells the call from the run's others.
        call_id: String,
        /// The tool.
        name: String,
        /// What it is given: an object, or the model's own words when they are no JSON.
        arguments: Value,
    },
    /// A piece of what a tool says while it works.
    ToolOutput {
        /// The call.
        call_id: String,
        /// The text that follows.
        text: String,
    },
    /// A tool has ended.
    ToolCompleted {
        /// The call.
        call_id: String,
        /// The tool.
        name: String,
        /// What the model is shown of what it gave.
        output: Value,
        /// It did not work; the output says why.
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        failed: bool,
    },
    /// The plan that the agent follows, in place of the one before.
    PlanUpdated {
        /// A list of `{"task", "status"}`, or the agent's own form.
        plan: Value,
    },
    /// A step is finished and kept: no later attempt makes it again.
    StepCompleted {
        /// Its number in the run.
        step: u32,
        /// What it used.
        usage: Usage,
        /// What the run has used in all.
        #[serde(skip)]
        total: Usage,
    },
    /// What was shown of a step is void, and it is made anew within the same attempt: another model goes on.
    StepRetrying {
        /// Its number in the run.
        step: u32,
        /// What went wrong, for people.
        message: String,
        /// The text after this sequence number is void.
        void_after: u64,
    },
    /// The run waits for a person, and nobody executes it meanwhile.
    Waiting {
        /// Names this question: an answer has to say which question it answers.
        wait_id: String,
        /// For what.
        #[serde(rename = "for")]
        reason: Reason,
        /// What the person is asked.
        prompt: Value,
        /// The run fails unless there is an answer by then.
        #[serde(skip_serializing_if = "Option::is_none")]
        due: Option<Timestamp>,
        /// The timer that will fire then.
        #[serde(skip)]
        timer: u64,
        /// What the run has used in all.
        #[serde(skip)]
        usage: Usage,
    },
    /// An attempt ended without an ending. Another will follow, unless the next event says otherwise.
    Retrying {
        /// Why.
        reason: RetryReason,
        /// What went wrong, for people.
        #[serde(skip_serializing_if = "Option::is_none")]
        message: Option<String>,
        /// When the next attempt may begin; absent: at once.
        #[serde(skip_serializing_if = "Option::is_none")]
        due: Option<Timestamp>,
        /// The timer that will fire then.
        #[serde(skip)]
        timer: u64,
        /// The text after this sequence number belongs to the abandoned step and is void.
        void_after: u64,
        /// This event's own sequence number: those between the previous event and this one are never
        /// used, because a crash may have lost what was shown under them.
        skips_to: u64,
        /// What the run has used in all.
        usage: Usage,
    },
    /// A line of the agent's own log.
    Log {
        /// `debug`, `info`, `warn` or `error`.
        level: &'static str,
        /// What it says.
        message: String,
    },
    /// Whatever an agent wants its viewers to see.
    Custom {
        /// The agent's own name for it.
        name: String,
        /// Anything.
        value: Value,
    },
    /// Final: the agent finished.
    Completed {
        /// What it made.
        output: Value,
        /// Why it stopped.
        outcome: String,
        /// What the run used in all.
        usage: Usage,
    },
    /// Final: the run failed.
    Failed {
        /// Stable code.
        code: String,
        /// For people.
        message: String,
        /// Why no further attempt was made.
        outcome: String,
        /// What the run used in all.
        usage: Usage,
    },
    /// Final: someone cancelled it.
    Cancelled {
        /// What the run used in all.
        usage: Usage,
    },
    /// Final: its time-to-live passed before it started.
    Expired {},
}

/// Why another attempt follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RetryReason {
    /// The attempt failed in a way that may pass.
    TransientError,
    /// Its worker is gone.
    WorkerLost,
    /// Its worker shut down and let it go, or its agent was handed a message that it did not look for.
    Released,
    /// Its worker could not reach the store for longer than its lease.
    Suspended,
}

impl Event {
    /// The event's type on the wire.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Created { .. } => "run.created",
            Self::Scheduled { .. } => "run.scheduled",
            Self::Queued {} => "run.queued",
            Self::Started { .. } => "run.started",
            Self::StepStarted { .. } => "step.started",
            Self::MessageDelta { .. } => "message.delta",
            Self::ReasoningDelta { .. } => "reasoning.delta",
            Self::MessageCompleted { .. } => "message.completed",
            Self::ToolStarted { .. } => "tool.started",
            Self::ToolOutput { .. } => "tool.output",
            Self::ToolCompleted { .. } => "tool.completed",
            Self::PlanUpdated { .. } => "plan.updated",
            Self::StepCompleted { .. } => "step.completed",
            Self::StepRetrying { .. } => "step.retrying",
            Self::Waiting { .. } => "run.waiting",
            Self::Retrying { .. } => "run.retrying",
            Self::Log { .. } => "log",
            Self::Custom { .. } => "custom",
            Self::Completed { .. } => "run.completed",
            Self::Failed { .. } => "run.failed",
            Self::Cancelled { .. } => "run.cancelled",
            Self::Expired {} => "run.expired",
        }
    }

    /// Nothing follows a final event.
    #[must_use]
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Completed { .. } | Self::Failed { .. } | Self::Cancelled { .. } | Self::Expired {})
    }
}

/// The type is that of an event that nothing follows.
pub(crate) fn is_final_kind(kind: &str) -> bool {
    matches!(kind, "run.completed" | "run.failed" | "run.cancelled" | "run.expired")
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature serde asks for")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}
