//! From the bytes of an answer to its pieces.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt, stream};
use serde::Deserialize;
use serde_json::Value;
use tokio::time::{Instant, timeout_at};
use tokio_util::codec::Decoder as _;

use super::faults::Who;
use crate::agent::AgentError;
use crate::agent::providers::{Piece, Pieces};
use crate::run::Usage;

/// The most bytes of text and reasoning of one answer.
pub(super) const MAX_TEXT: usize = 16 * 1024 * 1024;

/// The most bytes of one SSE event, which carries a token or so.
const MAX_EVENT: usize = 1024 * 1024;

/// How long a finished answer is waited on for its usage and its `[DONE]`, which some servers never send.
const EPILOGUE: Duration = Duration::from_secs(5);

/// An answer that is being streamed.
pub(super) struct Answer<B> {
    body: B,
    who: Arc<Who>,
    first_token_timeout: Duration,
    idle_timeout: Duration,
    decoder: russe::Decoder,
    undecoded: BytesMut,
    ready: VecDeque<Piece>,
    phase: Phase,
    text_bytes: usize,
}

/// How far the answer is.
#[derive(Clone, Copy)]
enum Phase {
    /// No token yet; there has to be one by then.
    Waiting(Instant),
    /// Tokens come.
    Talking,
    /// The model has finished: the answer is whole, and nothing that follows can spoil it. Usage may, until
    /// then.
    Finished(Instant),
    /// Nothing follows.
    Ended,
}

impl<B> Answer<B>
where
    B: Stream<Item = Result<Bytes, String>> + Send + Unpin + 'static,
{
    /// The answer whose bytes are `body`; its first token is due at `deadline`, `first_token_timeout` after
    /// the request.
    pub(super) fn new(
        body: B,
        who: Arc<Who>,
        first_token_timeout: Duration,
        deadline: Instant,
        idle_timeout: Duration,
    ) -> Self {
        Self {
            body,
            who,
            first_token_timeout,
            idle_timeout,
            decoder: russe::Decoder::default(),
            undecoded: BytesMut::new(),
            ready: VecDeque::new(),
            phase: Phase::Waiting(deadline),
            text_bytes: 0,
        }
    }

    /// Its pieces.
    pub(super) fn pieces(self) -> Pieces {
        stream::try_unfold(self, async |mut answer| Ok(answer.next().await?.map(|piece| (piece, answer)))).boxed()
    }

    async fn next(&mut self) -> Result<Option<Piece>, AgentError> {
        loop {
            if let Some(piece) = self.ready.pop_front() {
                return Ok(Some(piece));
            }
            // Time counts from here: what the reader of the pieces takes is not the provider's silence. Only
            // events count, so that comments do not keep a dead answer alive.
            let deadline = match self.phase {
                Phase::Waiting(until) | Phase::Finished(until) => until,
                Phase::Talking => Instant::now() + self.idle_timeout,
                Phase::Ended => return Ok(None),
            };
            let progress = match timeout_at(deadline, self.event()).await {
                Ok(event) => event.and_then(|event| self.take(&event)),
                Err(_) => Err(self.late()),
            };
            match progress {
                Ok(()) => {}
                Err(_) if matches!(self.phase, Phase::Finished(_)) => self.phase = Phase::Ended,
                Err(error) => return Err(error),
            }
        }
    }

    fn late(&self) -> AgentError {
        match self.phase {
            Phase::Waiting(_) => self.who.no_first_token(self.first_token_timeout),
            Phase::Talking | Phase::Finished(_) | Phase::Ended => self.who.silent(self.idle_timeout),
        }
    }

    /// The next event. Cancellation safe.
    async fn event(&mut self) -> Result<russe::Message, AgentError> {
        loop {
            match self.decoder.decode(&mut self.undecoded) {
                Ok(Some(russe::Event::Message(message))) => return Ok(message),
                Ok(Some(russe::Event::Comment(_) | russe::Event::Retry(_))) => {
                    // A server that says nothing else must not keep the thread, nor outlast the deadline.
                    tokio::task::coop::consume_budget().await;
                    continue;
                }
                Ok(None) if self.undecoded.len() > MAX_EVENT => {
                    return Err(self.who.bad_answer(&format!("an event of more than {MAX_EVENT} bytes")));
                }
                Ok(None) => {}
                Err(error) => return Err(self.who.bad_answer(&error.to_string())),
            }
            match self.body.next().await {
                Some(Ok(bytes)) => self.undecoded.extend_from_slice(&bytes),
                Some(Err(why)) => return Err(self.who.cut(why)),
                None => return Err(self.who.cut("the connection ended before the answer")),
            }
        }
    }

    fn take(&mut self, event: &russe::Message) -> Result<(), AgentError> {
        let data = event.data.trim();
        if data.is_empty() {
            return Ok(());
        }
        if data == "[DONE]" {
            if let Phase::Waiting(_) = self.phase {
                return Err(self.who.bad_answer("it ended before its first token"));
            }
            self.phase = Phase::Ended;
            return Ok(());
        }
        if event.event.as_deref() == Some("error") {
            return Err(self.who.reported(&serde_json::from_str(data).unwrap_or_else(|_| Value::from(data))));
        }
        let chunk = Completion::read(data.as_bytes(), &self.who)?;
        for piece in chunk.into_pieces() {
            match &piece {
                Piece::Text(text) | Piece::Reasoning(text) => {
                    self.text_bytes += text.len();
                    if self.text_bytes > MAX_TEXT {
                        return Err(self.who.too_large(MAX_TEXT));
                    }
                    if let Phase::Waiting(_) = self.phase {
                        self.phase = Phase::Talking;
                    }
                }
                Piece::Finish(_) => {
                    self.phase = Phase::Finished(Instant::now() + EPILOGUE.min(self.idle_timeout));
                }
                Piece::Usage(_) | Piece::Call(_) | Piece::Echo(_) => {}
            }
            self.ready.push_back(piece);
        }
        Ok(())
    }
}

/// The pieces of an answer that was not streamed.
pub(super) fn whole(body: &[u8], who: &Who) -> Result<Vec<Piece>, AgentError> {
    let completion = Completion::read(body, who)?;
    match completion.choices.as_deref() {
        Some([Choice { message: Some(_), .. }, ..]) => Ok(completion.into_pieces()),
        Some(_) | None => Err(who.bad_answer("neither a stream nor a chat completion")),
    }
}

/// A `chat.completion`, or a `chat.completion.chunk`. Servers send null for whatever they leave out.
#[derive(Deserialize)]
struct Completion {
    choices: Option<Vec<Choice>>,
    usage: Option<Tokens>,
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Choice {
    /// In a chunk.
    delta: Option<Said>,
    /// In a whole completion.
    message: Option<Said>,
    finish_reason: Option<String>,
}

#[derive(Default, Deserialize)]
struct Said {
    content: Option<String>,
    /// DeepSeek's name for it, which most servers took over.
    reasoning_content: Option<String>,
    /// The name that others use; some send both.
    reasoning: Option<String>,
}

#[derive(Deserialize)]
struct Tokens {
    prompt_tokens: Option<u64>,
    completion_tokens: Option<u64>,
}

impl Completion {
    fn read(json: &[u8], who: &Who) -> Result<Self, AgentError> {
        let completion: Self = serde_json::from_slice(json).map_err(|error| {
            // The text of the error may quote what was sent; the place has to do.
            let (line, column) = (error.line(), error.column());
            who.bad_answer(&format!("not the JSON of a chat completion, at line {line} column {column}"))
        })?;
        match &completion.error {
            Some(error) => Err(who.reported(error)),
            None => Ok(completion),
        }
    }

    /// In the order in which a model says them. Only one choice is ever asked for.
    fn into_pieces(self) -> Vec<Piece> {
        let mut pieces = Vec::new();
        if let Some(choice) = self.choices.into_iter().flatten().next() {
            let said = choice.delta.or(choice.message).unwrap_or_default();
            pieces.extend(
                said.reasoning_content.or(said.reasoning).filter(|text| !text.is_empty()).map(Piece::Reasoning),
            );
            pieces.extend(said.content.filter(|text| !text.is_empty()).map(Piece::Text));
            pieces.extend(
                choice
                    .finish_reason
                    .filter(|reason| !reason.is_empty())
                    .map(|reason| Piece::Finish(reason.as_str().into())),
            );
        }
        if let Some(Tokens { prompt_tokens, completion_tokens }) = self.usage
            && (prompt_tokens.is_some() || completion_tokens.is_some())
        {
            pieces.push(Piece::Usage(Usage {
                input_tokens: prompt_tokens.unwrap_or(0),
                output_tokens: completion_tokens.unwrap_or(0),
                estimated: false,
                ..Usage::default()
            }));
        }
        pieces
    }
}
