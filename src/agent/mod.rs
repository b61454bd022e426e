//! What executes a run.
//!
//! An [`Agent`] is given a [`RunContext`]: the input, the steps that earlier attempts have finished, and
//! a way to show what it does. It runs as a task of its own; a panic in it fails the attempt and
//! nothing else. The task is dropped when the run is cancelled, times out or is let go, at whatever
//! `await` it stands: whatever it holds (sockets, child processes) must end when dropped.

mod context;
#[cfg(test)]
pub(crate) mod kit;
mod masks;
pub mod model;
pub mod process;
mod protocol;
pub mod providers;
mod registry;
pub mod remote;
pub mod scripted;
pub mod tools;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::Value;

use crate::run::{Bound, Budget, Reason, Usage};
use crate::thread::{FollowUpRule, OnBusy, Quiet};

pub use context::{BeginStep, Conversation, NotBegun, Push, RunContext, Sink, Stopped};
pub use registry::{Agents, InvalidParams};

/// What executes a run.
#[async_trait]
pub trait Agent: Send + Sync + 'static {
    /// What this agent is. Asked once, when it is registered.
    fn card(&self) -> AgentCard;

    /// Why its fallback answers in place of what it is made of; `None`: it does not, as far as is known.
    fn stands_in(&self) -> Option<String> {
        None
    }

    /// Called again in the same attempt, with the steps that it has finished by then, it goes on behind what it has
    /// said, and says nothing twice. That happens when a message is handed to a run that is about to complete. For an
    /// agent that cannot, another attempt begins in that case, and what it has said since its last step is void.
    fn goes_on(&self) -> bool {
        false
    }

    /// Executes one attempt. Must not block its thread: other runs share it.
    async fn run(&self, context: RunContext) -> Result<Answer, AgentError>;
}

/// What an agent says of itself.
#[derive(Debug, Clone, PartialEq, serde::Serialize, utoipa::ToSchema)]
pub struct AgentCard {
    /// Its name, as runs name it.
    pub name: String,
    /// A run is executed only by the version it was created with. Change it when runs that are under
    /// way could not go on under the new definition.
    pub version: String,
    /// What kind of agent: `model`, `process`, `remote`, `scripted`, or the embedding service's own word.
    pub kind: String,
    /// What it is good for.
    pub description: String,
    /// It does what a script says; there is no model behind it.
    pub scripted: bool,
    /// The model it calls, as `provider/model`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// JSON Schema of the `params` it takes.
    pub params_schema: Value,
    /// Bounds the running time of its runs, unless they say otherwise.
    #[serde(skip)]
    pub timeout: Option<Duration>,
    /// How many attempts its runs have, unless they say otherwise.
    #[serde(skip)]
    pub max_attempts: Option<u32>,
    /// What each of its runs may use at most. A run may have less.
    #[serde(skip)]
    pub budget: Budget,
    /// How it converses.
    #[serde(skip)]
    pub manners: Manners,
}

/// How an agent converses in threads.
#[derive(Debug, Clone, PartialEq)]
pub struct Manners {
    /// Messages wait for others that follow soon, unless they say otherwise.
    pub debounce: Option<Quiet>,
    /// What becomes of a message while a run is going on, unless it says otherwise.
    pub on_busy: OnBusy,
    /// What it says when the person has gone quiet.
    pub follow_ups: Arc<[FollowUpRule]>,
    /// The most messages of its thread that a run is shown.
    pub history_messages: usize,
    /// The most text of its thread that a run is shown, in tokens of some four bytes.
    pub history_tokens: usize,
}

impl Default for Manners {
    fn default() -> Self {
        Self {
            debounce: None,
            on_busy: OnBusy::default(),
            follow_ups: Arc::from([]),
            history_messages: 100,
            history_tokens: 32_000,
        }
    }
}

impl AgentCard {
    /// The card of an agent of version `1` that takes no params.
    pub fn new(name: impl Into<String>, kind: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            version: "1".to_owned(),
            kind: kind.into(),
            description: String::new(),
            scripted: false,
            model: None,
            params_schema: serde_json::json!({"type": "object", "additionalProperties": false}),
            timeout: None,
            max_attempts: None,
            budget: Budget::NONE,
            manners: Manners::default(),
        }
    }
}

/// How an attempt ended well.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// What it made; often a text.
    pub output: Value,
    /// Why it stopped: `finished`, or the bound it reached.
    pub outcome: String,
    /// What it used beyond its finished steps.
    pub usage: Usage,
}

impl Answer {
    /// The agent finished with `output`.
    pub fn finished(output: impl Into<Value>) -> Self {
        Self { output: output.into(), outcome: "finished".to_owned(), usage: Usage::default() }
    }
}

/// How an attempt ended badly.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum AgentError {
    /// It may pass: another attempt follows after a wait, while the budget lasts.
    #[error("{code}: {message}")]
    Transient {
        /// Stable, in snake case.
        code: String,
        /// For people, without secrets.
        message: String,
        /// Do not come back before.
        retry_after: Option<Duration>,
    },
    /// It would happen again: the run fails.
    #[error("{code}: {message}")]
    Permanent {
        /// Stable, in snake case.
        code: String,
        /// For people, without secrets; says what would help.
        message: String,
    },
    /// What it would need is more than is left of the run's budget: the run fails, with the bound as its outcome.
    #[error("the run is out of its budget: {}", .0.outcome())]
    OutOfBudget(Bound),
    /// No error: a person is asked, see [`RunContext::ask`].
    #[error("a person is asked")]
    Ask(Asked),
    /// The attempt is over for another reason; whatever the agent says now is not heard.
    #[error("the attempt was stopped")]
    Stopped,
}

/// What an agent asks a person.
#[derive(Debug, Clone, PartialEq)]
pub struct Asked {
    /// [`Reason::Input`] or [`Reason::Approval`].
    pub reason: Reason,
    /// What to show to the person; often a text.
    pub prompt: Value,
    /// The run fails unless there is an answer within this time.
    pub deadline: Option<Duration>,
}

impl AgentError {
    /// An error that may pass.
    pub fn transient(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Transient { code: code.into(), message: message.into(), retry_after: None }
    }

    /// An error that would happen again.
    pub fn permanent(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Permanent { code: code.into(), message: message.into() }
    }
}

impl From<NotBegun> for AgentError {
    fn from(why: NotBegun) -> Self {
        match why {
            NotBegun::Stopped => Self::Stopped,
            NotBegun::OutOfBudget(bound) => Self::OutOfBudget(bound),
        }
    }
}

impl From<Stopped> for AgentError {
    fn from(Stopped: Stopped) -> Self {
        Self::Stopped
    }
}
