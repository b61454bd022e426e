//! From the bytes of an answer to messages.

use bytes::BytesMut;
use reqwest::Response;
use reqwest::header::CONTENT_TYPE;
use serde_json::{Map, Value};
use tokio::time::{Instant, timeout_at};
use tokio_util::codec::Decoder as _;

use super::{RemoteAgent, root};
use crate::agent::protocol::{BAD_MESSAGE, Heard, MAX_MESSAGE, Session, Source};
use crate::agent::{AgentError, Answer};

/// The most bytes of an event: a message, the name of its field, and what else belongs to an event.
const MAX_EVENT: usize = MAX_MESSAGE + 1024;

/// An answer while it is read.
pub(super) struct Answering<'a> {
    agent: &'a RemoteAgent,
    response: Response,
    unread: BytesMut,
    decoder: russe::Decoder,
    /// By when the next sign of life has to come; the first is due at a time of its own.
    first: Option<Instant>,
}

impl<'a> Answering<'a> {
    /// The answer; its first event is due at `deadline`.
    pub(super) fn new(agent: &'a RemoteAgent, response: Response, deadline: Instant) -> Self {
        let (unread, decoder) = (BytesMut::new(), russe::Decoder::default());
        Self { agent, response, unread, decoder, first: Some(deadline) }
    }

    /// Does what the answer says, until it says how the attempt ends.
    pub(super) async fn hear(mut self, session: Session) -> Result<Answer, AgentError> {
        let kind = self.response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        match kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase().as_str() {
            "text/event-stream" => self.events(session).await,
            "application/json" => self.one(session).await,
            other => {
                let problem =
                    format!("answered with content-type {other:?}; expected text/event-stream or application/json");
                Err(self.agent.permanent(BAD_MESSAGE, &problem))
            }
        }
    }

    /// A stream of messages.
    async fn events(&mut self, mut session: Session) -> Result<Answer, AgentError> {
        let mut number = 0;
        loop {
            let event = match self.decoder.decode(&mut self.unread) {
                Ok(event) => event,
                Err(error) => return Err(self.source(number + 1).wrong(error, &self.agent.masks)),
            };
            match event {
                Some(russe::Event::Message(message)) if message.data.trim().is_empty() => self.first = None,
                Some(russe::Event::Message(message)) => {
                    self.first = None;
                    number += 1;
                    if message.data.len() > MAX_MESSAGE {
                        return Err(self.source(number).too_long(&self.agent.masks));
                    }
                    match session.hear(message.data.as_bytes(), self.source(number)).await? {
                        // A reply to a step needs no answer: the service sees its steps when it is asked again.
                        Heard::Nothing | Heard::Reply(_) => {}
                        Heard::End(ending) => return ending,
                    }
                }
                Some(russe::Event::Comment(_) | russe::Event::Retry(_)) => {
                    self.first = None;
                    // A service that says nothing else must not keep the thread.
                    tokio::task::coop::consume_budget().await;
                }
                None if self.unread.len() > MAX_EVENT => {
                    return Err(self.source(number + 1).too_long(&self.agent.masks));
                }
                None => {
                    if !self.more().await? {
                        return Err(self.agent.cut("the answer ended"));
                    }
                }
            }
        }
    }

    /// One message: `complete`, `fail` or `ask`, or what `complete` has without its type.
    async fn one(&mut self, mut session: Session) -> Result<Answer, AgentError> {
        while self.more().await? {
            if self.unread.len() > MAX_MESSAGE {
                return Err(self.source(1).too_long(&self.agent.masks));
            }
        }
        let mut message: Map<String, Value> = match serde_json::from_slice(&self.unread) {
            Ok(message) => message,
            Err(error) if error.is_eof() => return Err(self.agent.cut("its JSON is not whole")),
            Err(error) => {
                return Err(self.source(1).wrong(format_args!("is no JSON object: {error}"), &self.agent.masks));
            }
        };
        message.entry("type").or_insert_with(|| "complete".into());
        match session.hear(Value::Object(message).to_string().as_bytes(), self.source(1)).await? {
            Heard::End(ending) => ending,
            Heard::Nothing | Heard::Reply(_) => {
                let why = "is alone and does not end the attempt; expected complete, fail or ask";
                Err(self.source(1).wrong(why, &self.agent.masks))
            }
        }
    }

    /// Waits for more bytes; `false` at the end.
    async fn more(&mut self) -> Result<bool, AgentError> {
        // Time counts from here: what the journal takes is not the service's silence.
        let deadline = self.first.unwrap_or_else(|| Instant::now() + self.agent.options.idle_timeout);
        match timeout_at(deadline, self.response.chunk()).await {
            Ok(Ok(Some(bytes))) => {
                self.unread.extend_from_slice(&bytes);
                Ok(true)
            }
            Ok(Ok(None)) => Ok(false),
            Ok(Err(error)) => Err(self.agent.cut(&root(&error))),
            Err(_) if self.first.is_some() => Err(self.agent.no_first_event()),
            Err(_) => Err(self.agent.silent()),
        }
    }

    fn source(&self, number: u64) -> Source<'a> {
        Source { unit: "event", number, who: &self.agent.who }
    }
}
