//! What a run is and what may happen to it. PURE: no IO, no clock, no async, nothing else of ours.
//!
//! [`decide`](Run::decide) says which events a command leads to, or why it is rejected;
//! [`apply`](Run::apply) folds an event into the state and cannot fail. Whoever calls them journals the
//! events first, then applies them, then shows them, and only then performs the effects.
//! The diagram in the README is drawn in the words of [`Status`].

mod command;
mod content;
mod event;
mod id;
mod machine;
mod retry;
pub mod segment;
mod spec;
mod status;
mod step;
mod time;
mod webhook;

pub use command::{Command, Effect, Failure, Question, Rejection, Retry};
pub use content::{Content, Part, Source};
pub(crate) use event::is_final_kind;
pub use event::{Event, RetryReason};
pub use id::{RunId, ThreadId};
pub use machine::{Begin, Changed, Context, Decision, Run, Timer};
pub use retry::Backoff;
pub use segment::{Mark, Recorded, Segment};
pub use spec::{Input, Message, OnDisconnect, Role, Spec, Tenant};
pub use status::{Reason, Status};
pub use step::{StepKind, StepRecord};
pub use time::Timestamp;
pub use webhook::{Webhook, WebhookEvent};

/// Tokens used, as the provider counts them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
pub struct Usage {
    /// Tokens read by the model.
    pub input_tokens: u64,
    /// Tokens written by the model.
    pub output_tokens: u64,
    /// Some of the figures are estimates, because the provider reported none.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub estimated: bool,
}

impl std::ops::Add for Usage {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            input_tokens: self.input_tokens.saturating_add(other.input_tokens),
            output_tokens: self.output_tokens.saturating_add(other.output_tokens),
            estimated: self.estimated || other.estimated,
        }
    }
}

/// What a model costs, in millionths of the currency unit for a million tokens. The currency is the operator's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Price {
    /// Of a million tokens that it reads.
    pub input: u64,
    /// Of a million tokens that it writes.
    pub output: u64,
}

/// Why a run failed: a stable code and a text for people.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
pub struct RunError {
    /// Stable, in snake case, such as `timeout` or `provider_rejected`.
    pub code: String,
    /// For people; may change between versions. Contains no secret.
    pub message: String,
}
