//! What a run was asked to do; fixed at creation.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::de::{self, SeqAccess, Visitor, value::SeqAccessDeserializer};
use serde::{Deserialize, Deserializer, Serialize};

use super::{Budget, Content, RunId, ThreadId, Timestamp, Webhook};

/// Whose run it is. Stands in every query.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Tenant(Arc<str>);

impl Tenant {
    /// The tenant called `name`.
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        Self(name.into())
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for Tenant {
    /// The one tenant of local mode.
    fn default() -> Self {
        Self::new("default")
    }
}

/// Everything about a run that does not change; but for its input, which messages may join until it is queued.
#[derive(Debug, Clone, PartialEq)]
pub struct Spec {
    /// The run's id.
    pub id: RunId,
    /// Whose run it is.
    pub tenant: Tenant,
    /// The agent's name.
    pub agent: String,
    /// The agent's version when the run was created; only that version may execute it.
    pub agent_version: String,
    /// What the agent is given.
    pub input: Input,
    /// The agent's own options, checked against its JSON Schema.
    pub params: serde_json::Map<String, serde_json::Value>,
    /// Higher goes first; 0 is usual.
    pub priority: i32,
    /// The run expires if it has not started by then.
    pub ttl_at: Option<Timestamp>,
    /// Bounds the running time over all attempts, in milliseconds.
    pub timeout_ms: u64,
    /// How many attempts may be charged for failures and crashes together, at least 1.
    pub max_attempts: u32,
    /// What happens when the last viewer hangs up.
    pub on_disconnect: OnDisconnect,
    /// The caller's own labels.
    pub metadata: BTreeMap<String, String>,
    /// The conversation it belongs to.
    pub thread: Option<ThreadId>,
    /// While it gathers messages it is put off no longer than this.
    pub latest_due: Option<Timestamp>,
    /// The run this one goes on from.
    pub retry_of: Option<RunId>,
    /// How many runs of an agent with the same key may be running at once can be limited.
    pub concurrency_key: Option<String>,
    /// Handed on from the request that created the run.
    pub correlation_id: Option<String>,
    /// Where its news go, besides the tenant's endpoints.
    pub webhook: Option<Webhook>,
    /// What it may use at most.
    pub budget: Budget,
    /// When it was accepted.
    pub created_at: Timestamp,
}

/// What happens to a run when its last viewer hangs up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnDisconnect {
    /// Nothing: it goes on.
    #[default]
    Continue,
    /// It is cancelled, once its last viewer has been gone for a grace.
    Cancel,
}

/// What a run is given: a text, or the messages of a conversation.
#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
#[serde(untagged)]
pub enum Input {
    /// One text, said by the user.
    Text(String),
    /// Messages, oldest first.
    Messages(Vec<Message>),
}

impl Input {
    /// The most messages that may come together in one input: each is kept as a row of its own.
    pub const MOST: usize = 1_000;

    /// How many messages it is.
    #[must_use]
    pub fn count(&self) -> usize {
        match self {
            Self::Text(_) => 1,
            Self::Messages(messages) => messages.len(),
        }
    }

    /// The length of all texts, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Messages(messages) => messages.iter().map(|message| message.content.bytes()).sum(),
        }
    }

    /// The messages; a text is one message of the user.
    #[must_use]
    pub fn into_messages(self) -> Vec<Message> {
        match self {
            Self::Text(content) => vec![Message { role: Role::User, content: content.into() }],
            Self::Messages(messages) => messages,
        }
    }

    /// The text, or that of the last message.
    #[must_use]
    pub fn last_text(&self) -> std::borrow::Cow<'_, str> {
        match self {
            Self::Text(text) => text.as_str().into(),
            Self::Messages(messages) => messages.last().map_or("".into(), |message| message.content.text()),
        }
    }
}

impl<'de> Deserialize<'de> for Input {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Not `untagged`, whose only message is that nothing matched.
        struct TextOrMessages;
        impl<'de> Visitor<'de> for TextOrMessages {
            type Value = Input;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text or an array of messages {\"role\", \"content\"}")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Input, E> {
                Ok(Input::Text(text.to_owned()))
            }

            fn visit_string<E: de::Error>(self, text: String) -> Result<Input, E> {
                Ok(Input::Text(text))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Input, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(seq)).map(Input::Messages)
            }
        }
        deserializer.deserialize_any(TextOrMessages)
    }
}

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said.
    pub content: Content,
}

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// The operator's instructions.
    System,
    /// The person (or system) the agent serves.
    User,
    /// The agent.
    Assistant,
}
