//! What stands behind a model: one file a provider protocol, all behind [`Provider`].
//!
//! | file | owns |
//! | --- | --- |
//! | `openai.rs`, `responses.rs`, `anthropic.rs`, `gemini.rs` | a protocol each: how a chat is asked, and how its answer is understood |
//! | `http.rs` | the connection, the requests and their limits, whatever the protocol |
//! | `answer.rs` | from the bytes of an answer to its pieces, with the bounds of time and size |
//! | `asked.rs` | what the protocols share in how a chat is asked |
//! | `faults.rs` | what goes wrong, in stable codes, without the key |
//! | `limits.rs` | how many calls a provider is asked at once and in a minute |
//! | `chain.rs` | models that stand in for each other |
//!
//! Written by hand after a look at genai 0.7.2. When a connection that no length or chunk delimits closes in the
//! middle of an answer of OpenAI, Anthropic or Gemini, its stream ends without an error (with Gemini even with its
//! event of an end): an answer cut short would pass for a whole one. It has no bounds of size, turns on
//! `preserve_order` of serde_json for the whole program, gzip and HTTP/2 of reqwest, and by default aws-lc-sys. Of its
//! 36,000 lines, four protocols would be used.

mod answer;
mod anthropic;
mod asked;
pub mod chain;
mod faults;
mod gemini;
pub mod http;
pub mod limits;
mod openai;
mod responses;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::AgentError;
use crate::run::{Message, Price, Usage};

/// How long a provider's answers may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// Bounds the time to connect, TLS included.
    pub connect: Duration,
    /// Bounds the time from the call to the first token, connecting included.
    pub first_token: Duration,
    /// Bounds the silence between two tokens.
    pub idle: Duration,
    /// Bounds the whole call.
    pub total: Duration,
}

/// Something that answers chats. Dropping a call, or its answer, closes its connection at once.
#[async_trait]
pub trait Provider: Send + Sync + 'static {
    /// Its name, as agents write it before the slash of their model.
    fn name(&self) -> &str;

    /// Asks for an answer, and returns as soon as it begins.
    async fn chat(&self, chat: Chat) -> Result<Pieces, AgentError>;
}

/// What a model is asked.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Chat {
    /// The model, without its provider.
    pub model: String,
    /// The conversation, oldest first.
    pub turns: Vec<Turn>,
    /// What the model may call.
    pub tools: Arc<[ToolCard]>,
    /// The model may call several tools at once.
    pub parallel_tools: bool,
    /// The JSON Schema that the text of the answer has to follow.
    pub schema: Option<Arc<Value>>,
    /// 0 to 2; the provider's own default when absent.
    pub temperature: Option<f64>,
    /// The most tokens of the answer; the provider's own bound when absent.
    pub max_tokens: Option<u32>,
}

/// One entry of a conversation with a model.
#[derive(Debug, Clone, PartialEq)]
pub enum Turn {
    /// Somebody has said something.
    Said(Message),
    /// The model has answered, and wants tools to be called.
    Called {
        /// What it said before; may be empty.
        text: String,
        /// What it wants to be called, in its order; not empty. Each is returned by one of the turns that follow.
        calls: Vec<ToolCall>,
        /// See [`Piece::Echo`].
        echo: Option<Value>,
    },
    /// What a tool gave.
    Returned {
        /// The call that it belongs to.
        call_id: String,
        /// The tool.
        name: String,
        /// What the model is shown of it.
        content: String,
        /// It did not work; the content says why.
        failed: bool,
    },
}

/// A tool, as a model is told of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ToolCard {
    /// Its name: 1 to 64 of the characters a-z A-Z 0-9 _ -, which every provider takes.
    pub name: String,
    /// What it is good for.
    pub description: String,
    /// JSON Schema of its arguments, of type object.
    pub parameters: Value,
}

/// A call that a model wants to be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolCall {
    /// Tells it from the model's other calls of the same answer; made up where the protocol has none.
    pub id: String,
    /// The tool.
    pub name: String,
    /// The arguments as the model wrote them: a JSON object, unless it made a mistake.
    pub arguments: String,
}

/// An answer as it comes. It is complete when it ends without an error.
pub type Pieces = BoxStream<'static, Result<Piece, AgentError>>;

/// A piece of an answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Piece {
    /// Which model answers: the first piece of every answer, and the first after each restart.
    Model {
        /// As `provider/model`, `auto` being resolved.
        name: String,
        /// What it costs, where the configuration says.
        price: Option<Price>,
    },
    /// Everything that was said so far is void: the answer begins anew, from another model.
    Restart {
        /// Why, for people.
        reason: String,
    },
    /// Text that follows.
    Text(String),
    /// What the model thinks aloud.
    Reasoning(String),
    /// A call, whole. Some servers have the arguments of a call cut where the answer reached its most tokens.
    Call(ToolCall),
    /// What the provider wants to be shown again, as it is, together with the calls of this answer: signatures of
    /// thoughts and the like. Understood by the protocol that it comes from alone. At most one an answer.
    Echo(Value),
    /// Why it stopped. At most one an answer.
    Finish(Finish),
    /// What the call used.
    Usage(Usage),
}

/// Why a model stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finish {
    /// It has said what it had to say.
    Stop,
    /// Its answer reached the most tokens that it may have.
    Length,
    /// It wants tools to be called.
    ToolCalls,
    /// It, or its provider, refuses to say this.
    Filtered,
    /// In the provider's own words.
    Other(String),
}

impl Finish {
    /// The word for it, as steps keep it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::ToolCalls => "tool_calls",
            Self::Filtered => "content_filter",
            Self::Other(word) => word,
        }
    }
}

impl From<&str> for Finish {
    /// The words of OpenAI, which most servers use.
    fn from(word: &str) -> Self {
        match word {
            "stop" => Self::Stop,
            "length" => Self::Length,
            "tool_calls" | "function_call" => Self::ToolCalls,
            "content_filter" => Self::Filtered,
            other => Self::Other(other.to_owned()),
        }
    }
}

#[cfg(test)]
mod suite;
