//! From the bytes of an answer to its pieces: the phases of time and the bounds of size, for every protocol.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt, stream};
use serde_json::Value;
use tokio::time::{Instant, timeout_at};
use tokio_util::codec::Decoder as _;

use super::faults::{Fault, Who};
use super::{Finish, Piece, Pieces, Timeouts, ToolCall};
use crate::agent::AgentError;
use crate::run::Usage;

/// The most bytes of text, reasoning and calls of one answer.
pub(super) const MAX_TEXT: usize = 16 * 1024 * 1024;

/// The most bytes of one SSE event, which mostly carries a token or so.
pub(super) const MAX_EVENT: usize = 1024 * 1024;

/// How long a finished answer is waited on for its usage and its end, which some servers never send.
const EPILOGUE: Duration = Duration::from_secs(5);

/// How a protocol's answer is understood: one value an answer.
pub(super) trait Decoder: Send {
    /// The most bytes of one event.
    fn max_event(&self) -> usize {
        MAX_EVENT
    }

    /// Takes the data of one event, which is not blank.
    fn event(&mut self, data: &str, said: &mut Said) -> Result<(), Fault>;

    /// Takes an answer that was not streamed although it was asked for. It finishes.
    fn whole(&mut self, body: &[u8], said: &mut Said) -> Result<(), Fault>;
}

/// What a decoder has understood so far.
#[derive(Debug, Default)]
pub(super) struct Said {
    ready: VecDeque<Piece>,
    usage: Option<Usage>,
    bytes: usize,
    begun: bool,
    finished: bool,
    ended: bool,
}

impl Said {
    /// Text that follows.
    pub(super) fn text(&mut self, text: String) {
        if !text.is_empty() {
            self.hold(text.len());
            self.ready.push_back(Piece::Text(text));
        }
    }

    /// Thought that follows.
    pub(super) fn reasoning(&mut self, text: String) {
        if !text.is_empty() {
            self.hold(text.len());
            self.ready.push_back(Piece::Reasoning(text));
        }
    }

    /// The decoder keeps so many bytes of something that is not whole yet, such as a call: that is progress too.
    pub(super) fn hold(&mut self, bytes: usize) {
        self.begun = true;
        self.bytes += bytes;
    }

    /// A call, whole.
    pub(super) fn call(&mut self, call: ToolCall) {
        self.begun = true;
        self.ready.push_back(Piece::Call(call));
    }

    /// See [`Piece::Echo`].
    pub(super) fn echo(&mut self, echo: Value) {
        self.ready.push_back(Piece::Echo(echo));
    }

    /// The model has finished: the answer is whole, and nothing that follows can spoil it.
    pub(super) fn finish(&mut self, finish: Finish) {
        if !self.finished {
            self.finished = true;
            self.ready.push_back(Piece::Finish(finish));
        }
    }

    /// What the call has used so far; shown at the end.
    pub(super) fn usage(&mut self, usage: Usage) {
        self.usage = Some(usage);
    }

    /// Nothing follows.
    pub(super) fn end(&mut self) {
        self.ended = true;
    }
}

/// An answer that is being streamed.
pub(super) struct Answer<B> {
    body: B,
    who: Arc<Who>,
    timeouts: Timeouts,
    total: Instant,
    decoder: Box<dyn Decoder>,
    said: Said,
    events: russe::Decoder,
    undecoded: BytesMut,
    phase: Phase,
}

/// How far the answer is.
#[derive(Clone, Copy)]
enum Phase {
    /// No token yet; there has to be one by then.
    Waiting(Instant),
    /// Tokens come.
    Talking,
    /// The model has finished. Usage may follow, until then.
    Finished(Instant),
    /// Nothing follows.
    Ended,
}

impl<B> Answer<B>
where
    B: Stream<Item = Result<Bytes, String>> + Send + Unpin + 'static,
{
    /// The answer whose bytes are `body`, to a call that was `asked` then. Its pieces begin with `first`.
    pub(super) fn new(
        body: B,
        decoder: Box<dyn Decoder>,
        first: Piece,
        who: Arc<Who>,
        timeouts: Timeouts,
        asked: Instant,
    ) -> Self {
        Self {
            body,
            who,
            timeouts,
            total: asked + timeouts.total,
            decoder,
            said: Said { ready: [first].into(), ..Said::default() },
            events: russe::Decoder::default(),
            undecoded: BytesMut::new(),
            phase: Phase::Waiting(asked + timeouts.first_token),
        }
    }

    /// Its pieces.
    pub(super) fn pieces(self) -> Pieces {
        stream::try_unfold(self, async |mut answer| Ok(answer.next().await?.map(|piece| (piece, answer)))).boxed()
    }

    async fn next(&mut self) -> Result<Option<Piece>, AgentError> {
        loop {
            if let Some(piece) = self.said.ready.pop_front() {
                return Ok(Some(piece));
            }
            // Silence counts from here: what the reader of the pieces takes is not the provider's. Only events
            // count, so that comments do not keep a dead answer alive.
            let deadline = match self.phase {
                Phase::Waiting(until) | Phase::Finished(until) => until,
                Phase::Talking => Instant::now() + self.timeouts.idle,
                Phase::Ended => return Ok(self.said.usage.take().map(Piece::Usage)),
            };
            let progress = match timeout_at(deadline.min(self.total), self.event()).await {
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
        if Instant::now() >= self.total {
            return self.who.too_long(self.timeouts.total);
        }
        match self.phase {
            Phase::Waiting(_) => self.who.no_first_token(self.timeouts.first_token),
            Phase::Talking | Phase::Finished(_) | Phase::Ended => self.who.silent(self.timeouts.idle),
        }
    }

    /// The next event. Cancellation safe.
    async fn event(&mut self) -> Result<russe::Message, AgentError> {
        let max_event = self.decoder.max_event();
        loop {
            match self.events.decode(&mut self.undecoded) {
                // Sent by some to keep the connection open, and as good as a comment.
                Ok(Some(russe::Event::Message(message)))
                    if matches!(message.event.as_deref(), Some("ping" | "keepalive")) => {}
                Ok(Some(russe::Event::Message(message))) if message.data.len() <= max_event => return Ok(message),
                Ok(Some(russe::Event::Comment(_) | russe::Event::Retry(_))) => {}
                Ok(None) if self.undecoded.len() <= max_event => {
                    match self.body.next().await {
                        Some(Ok(bytes)) => self.undecoded.extend_from_slice(&bytes),
                        Some(Err(why)) => return Err(self.who.cut(why)),
                        None => return Err(self.who.cut("the connection ended before the answer")),
                    }
                    continue;
                }
                Ok(Some(russe::Event::Message(_)) | None) => {
                    return Err(self.who.bad_answer(&format!("an event of more than {max_event} bytes")));
                }
                Err(error) => return Err(self.who.bad_answer(&error.to_string())),
            }
            // A server that says nothing else must not keep the thread, nor outlast the deadline.
            tokio::task::coop::consume_budget().await;
        }
    }

    fn take(&mut self, event: &russe::Message) -> Result<(), AgentError> {
        let data = event.data.trim();
        if data.is_empty() {
            return Ok(());
        }
        if event.event.as_deref() == Some("error") {
            return Err(self.who.reported(&serde_json::from_str(data).unwrap_or_else(|_| Value::from(data))));
        }
        self.decoder.event(data, &mut self.said).map_err(|fault| self.who.fault(fault))?;
        let Said { bytes, begun, finished, ended, .. } = self.said;
        if bytes > MAX_TEXT {
            self.said.ready.clear();
            return Err(self.who.too_large(MAX_TEXT));
        }
        self.phase = match self.phase {
            _ if ended && !begun && !finished => return Err(self.who.bad_answer("it ended before its first token")),
            _ if ended => Phase::Ended,
            Phase::Waiting(_) | Phase::Talking if finished => {
                Phase::Finished(Instant::now() + EPILOGUE.min(self.timeouts.idle))
            }
            Phase::Waiting(_) if begun => Phase::Talking,
            unchanged @ (Phase::Waiting(_) | Phase::Talking | Phase::Finished(_) | Phase::Ended) => unchanged,
        };
        Ok(())
    }
}

/// The pieces of an answer that was not streamed. They begin with `first`.
pub(super) fn whole(
    body: &[u8],
    mut decoder: Box<dyn Decoder>,
    first: Piece,
    who: &Who,
) -> Result<Vec<Piece>, AgentError> {
    let mut said = Said::default();
    decoder.whole(body, &mut said).map_err(|fault| who.fault(fault))?;
    Ok([first].into_iter().chain(said.ready).chain(said.usage.map(Piece::Usage)).collect())
}
