//! Models that stand in for each other.

use std::collections::VecDeque;
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::{StreamExt, stream};

use super::{Chat, Piece, Pieces, Provider};
use crate::agent::AgentError;

/// Several models, of which the next is asked when one fails in a way that may pass. The model that a chat names is
/// not looked at. With one model it adds nothing.
///
/// A model that has said something can only be followed by another when everything is said anew, which viewers see:
/// hence the choice.
pub struct Chain {
    members: Arc<[Member]>,
    restart: bool,
}

/// A model of a chain.
#[derive(Clone)]
pub struct Member {
    /// Who is asked.
    pub provider: Arc<dyn Provider>,
    /// For which model, without its provider.
    pub model: String,
}

impl Chain {
    /// The models in the order in which they are asked: `first`, then the others. `restart`: also when there is
    /// something of the answer already, by a [`Piece::Restart`].
    pub fn new(first: Member, others: impl IntoIterator<Item = Member>, restart: bool) -> Self {
        Self { members: [first].into_iter().chain(others).collect(), restart }
    }
}

#[async_trait]
impl Provider for Chain {
    /// The name of the first model's provider.
    fn name(&self) -> &str {
        self.members[0].provider.name()
    }

    async fn chat(&self, mut chat: Chat) -> Result<Pieces, AgentError> {
        if let [only] = &*self.members {
            chat.model.clone_from(&only.model);
            return only.provider.chat(chat).await;
        }
        let mut answer = Answer {
            members: self.members.clone(),
            restart: self.restart,
            chat,
            next: 0,
            pieces: None,
            held: VecDeque::new(),
            shown: false,
            failures: Vec::new(),
        };
        // The answer begins with what does not fail any more without being seen.
        let first = answer.next().await?;
        let rest = stream::try_unfold(answer, async |mut answer| Ok(answer.next().await?.map(|piece| (piece, answer))));
        Ok(stream::iter(first.map(Ok)).chain(rest).boxed())
    }
}

/// An answer of whichever model gives one.
struct Answer {
    members: Arc<[Member]>,
    restart: bool,
    chat: Chat,
    /// Who is asked next.
    next: usize,
    /// The answer of the one before, once it has begun.
    pieces: Option<Pieces>,
    /// Pieces to show first.
    held: VecDeque<Piece>,
    /// Something of the answer has been shown: a model that fails now has failed before everybody's eyes.
    shown: bool,
    /// What became of those that were asked.
    failures: Vec<String>,
}

impl Answer {
    /// The next piece to show. Not cancellation safe.
    async fn next(&mut self) -> Result<Option<Piece>, AgentError> {
        loop {
            if self.shown
                && let Some(piece) = self.held.pop_front()
            {
                return Ok(Some(piece));
            }
            let piece = match &mut self.pieces {
                Some(pieces) => pieces.next().await.transpose(),
                None => match self.begin().await {
                    Ok(()) => continue,
                    Err(error) => Err(error),
                },
            };
            match piece {
                // Which model it is says nothing yet: until it speaks, another may take its place unseen.
                Ok(Some(piece @ Piece::Model { .. })) => self.held.push_back(piece),
                Ok(Some(piece)) => {
                    self.held.push_back(piece);
                    self.shown = true;
                }
                Ok(None) if self.shown || self.held.is_empty() => return Ok(None),
                Ok(None) => self.shown = true,
                Err(error) => self.give_up(error)?,
            }
        }
    }

    async fn begin(&mut self) -> Result<(), AgentError> {
        let Member { provider, model } = &self.members[self.next];
        let chat = Chat { model: model.clone(), ..self.chat.clone() };
        self.pieces = Some(provider.chat(chat).await?);
        Ok(())
    }

    /// The model has failed: goes on with the next, if there is one and the error may pass.
    fn give_up(&mut self, error: AgentError) -> Result<(), AgentError> {
        self.pieces = None;
        let Member { provider, model } = &self.members[self.next];
        let name = format!("{}/{model}", provider.name());
        let passes = matches!(error, AgentError::Transient { .. });
        let last = self.next + 1 == self.members.len();
        if !passes || last || (self.shown && !self.restart) {
            return Err(with_tried(error, &self.failures));
        }
        tracing::warn!(model = name, %error, "a model failed; the next one is asked");
        self.failures.push(format!("{name} ({error})"));
        self.next += 1;
        self.held.clear();
        if self.shown {
            self.held.push_back(Piece::Restart { reason: format!("{name} failed: {error}") });
        }
        Ok(())
    }
}

/// The error, which also says what was tried before.
fn with_tried(error: AgentError, failures: &[String]) -> AgentError {
    if failures.is_empty() {
        return error;
    }
    let with = |message: String| format!("{message}; tried before: {}", failures.join(", "));
    match error {
        AgentError::Transient { code, message, retry_after } => {
            AgentError::Transient { code, message: with(message), retry_after }
        }
        AgentError::Permanent { code, message } => AgentError::Permanent { code, message: with(message) },
        AgentError::OutOfBudget(_) | AgentError::Ask(_) | AgentError::Stopped => error,
    }
}

#[cfg(test)]
#[path = "chain_tests.rs"]
mod tests;
