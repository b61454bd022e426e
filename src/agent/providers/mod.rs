//! What stands behind a model: one folder or file a provider protocol, all behind [`Provider`].

pub mod openai;

use async_trait::async_trait;
use futures_util::stream::BoxStream;

use super::AgentError;
use crate::run::{Message, Usage};

/// Something that answers chats. Dropping a call, or its answer, closes its connection at once.
#[async_trait]
pub trait Provider: Send + Sync + 'static {
    /// Its name, as agents write it before the slash of their model.
    fn name(&self) -> &str;

    /// Asks for an answer, and returns as soon as it begins.
    async fn chat(&self, chat: Chat) -> Result<Pieces, AgentError>;
}

/// What a model is asked.
#[derive(Debug, Clone, PartialEq)]
pub struct Chat {
    /// The model, without its provider.
    pub model: String,
    /// The conversation, oldest first.
    pub messages: Vec<Message>,
    /// 0 to 2; the provider's own default when absent.
    pub temperature: Option<f64>,
    /// The most tokens of the answer; the provider's own bound when absent.
    pub max_tokens: Option<u32>,
}

/// An answer as it comes. It is complete when it ends without an error.
pub type Pieces = BoxStream<'static, Result<Piece, AgentError>>;

/// A piece of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Text that follows.
    Text(String),
    /// What the model thinks aloud.
    Reasoning(String),
    /// Why it stopped, in the provider's words, such as `stop` or `length`.
    Finish(String),
    /// What the call used.
    Usage(Usage),
}
