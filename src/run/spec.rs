//! What a run was asked to do; fixed at creation.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::de::{self, SeqAccess, Visitor, value::SeqAccessDeserializer};
use serde::{Deserialize, Deserializer, Serialize};
use uuid::Uuid;

use super::{Timestamp, Webhook};

/// Identifies a run: a UUID version 7, so ids sort by age.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RunId(Uuid);

impl RunId {
    /// Wraps an id that was made before.
    #[must_use]
    pub fn from_uuid(id: Uuid) -> Self {
        Self(id)
    }

    /// The id as a UUID.
    #[must_use]
    pub fn as_uuid(&self) -> &Uuid {
        &self.0
    }

    /// The bytes, in the order that sorts by age.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    /// When the id was made, if it is of version 7.
    #[must_use]
    pub fn made_at(&self) -> Option<Timestamp> {
        let (seconds, nanos) = self.0.get_timestamp()?.to_unix();
        let millis = i64::try_from(seconds).ok()?.checked_mul(1000)?.checked_add(i64::from(nanos / 1_000_000))?;
        Some(Timestamp::from_millis(millis))
    }

    /// A number that spreads runs evenly, constant for the run: its last random bits.
    #[must_use]
    pub fn spread(&self) -> usize {
        let bytes = self.0.as_bytes();
        usize::from(u16::from_be_bytes([bytes[14], bytes[15]]))
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_hyphenated().fmt(f)
    }
}

impl FromStr for RunId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Uuid::try_parse(text).map(Self)
    }
}

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

/// Everything about a run that never changes.
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
    /// The run this one goes on from.
    pub retry_of: Option<RunId>,
    /// Handed on from the request that created the run.
    pub correlation_id: Option<String>,
    /// Where its news go, besides the tenant's endpoints.
    pub webhook: Option<Webhook>,
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
    /// The length of all texts, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Messages(messages) => messages.iter().map(|message| message.content.len()).sum(),
        }
    }

    /// The text, or that of the last message.
    #[must_use]
    pub fn last_text(&self) -> &str {
        match self {
            Self::Text(text) => text,
            Self::Messages(messages) => messages.last().map_or("", |message| &message.content),
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
    pub content: String,
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
