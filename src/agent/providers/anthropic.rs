//! The Messages API of Anthropic, version 2023-06-01.
//!
//! Instructions stand apart from the messages, which alternate between user and assistant: turns of the same side are
//! one message. An answer is blocks, each begun, added to and stopped under its index; it has finished when
//! `message_delta` says why it stopped, which comes after the last block. A temperature beyond 1, which this API
//! refuses, is sent as 1.

use std::collections::BTreeMap;

use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;
use serde_json::{Value, json};

use super::answer::{Decoder, Said};
use super::asked::{
    self, Request, Unfit, arguments, by_words, completed, echoed, instruction, instructions, is_strict, only_text,
};
use super::faults::Fault;
use super::http::{HttpProvider, InvalidProvider, Protocol, ProviderOptions};
use super::{Chat, Finish, ToolCall, ToolCard, Turn};
use crate::run::{Message, Role, Source, Usage};

/// The key of this protocol's echo.
const ECHO: &str = "anthropic";

/// The most tokens of an answer when nobody says: the API insists on a bound, and the smallest of its models that
/// are still served take no more.
const MAX_TOKENS: u32 = 8_192;

#[derive(Debug)]
struct Messages;

impl HttpProvider {
    /// A provider that speaks the Messages API of Anthropic, its base URL ending before `/messages`.
    pub fn anthropic(options: ProviderOptions) -> Result<Self, InvalidProvider> {
        Self::new(options, |_| Messages)
    }
}

impl Protocol for Messages {
    fn key(&self, key: &str) -> (HeaderName, String) {
        (HeaderName::from_static("x-api-key"), key.to_owned())
    }

    fn headers(&self) -> HeaderMap {
        let version = (HeaderName::from_static("anthropic-version"), HeaderValue::from_static("2023-06-01"));
        HeaderMap::from_iter([version])
    }

    fn models(&self, list: &[u8]) -> Option<Vec<String>> {
        super::openai::listed(list)
    }

    fn ask(&self, chat: &Chat, model: &str) -> Result<Request, Unfit> {
        let (mut system, turns) = instructions(&chat.turns)?;
        // It promises to follow closed schemas of few keywords, and refuses the request for all others.
        let promised = chat.schema.as_deref().filter(|schema| is_strict(schema) && is_plain(schema));
        if let (Some(schema), None) = (&chat.schema, promised) {
            system = by_words(system, schema);
        }
        let mut body = json!({
            "model": model,
            "max_tokens": chat.max_tokens.unwrap_or(MAX_TOKENS),
            "messages": messages(turns)?,
            "stream": true,
        });
        if let Some(system) = system {
            body["system"] = json!(system);
        }
        if !chat.tools.is_empty() {
            body["tools"] = chat.tools.iter().map(tool).collect();
            body["tool_choice"] = json!({"type": "auto", "disable_parallel_tool_use": !chat.parallel_tools});
        }
        if let Some(schema) = promised {
            body["output_config"] = json!({"format": {"type": "json_schema", "schema": schema}});
        }
        if let Some(temperature) = chat.temperature {
            body["temperature"] = json!(temperature.min(1.0));
        }
        Ok(Request { path: "/messages".to_owned(), body })
    }

    fn decoder(&self) -> Box<dyn Decoder> {
        decoder()
    }
}

/// It says no more than what there is, in keywords that structured outputs take.
fn is_plain(schema: &Value) -> bool {
    const KNOWN: [&str; 9] =
        ["type", "properties", "required", "additionalProperties", "items", "enum", "const", "description", "title"];
    match schema {
        Value::Object(object) => object.iter().all(|(key, value)| match &**key {
            "properties" => value.as_object().is_some_and(|properties| properties.values().all(is_plain)),
            "items" => is_plain(value),
            key => KNOWN.contains(&key),
        }),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => false,
    }
}

fn tool(card: &ToolCard) -> Value {
    json!({"name": card.name, "description": card.description, "input_schema": card.parameters})
}

/// The messages; those that follow each other on one side are merged, because they have to alternate.
fn messages(turns: &[Turn]) -> Result<Vec<Value>, Unfit> {
    let mut messages: Vec<(&str, Vec<Value>)> = Vec::new();
    for turn in turns {
        let (role, blocks) = blocks(turn)?;
        match messages.last_mut() {
            _ if blocks.is_empty() => {}
            Some((last, content)) if *last == role => content.extend(blocks),
            // A history that was cut short may begin with an answer; the person has to begin.
            None if role == "assistant" => messages.extend([("user", vec![text("…")]), (role, blocks)]),
            Some(_) | None => messages.push((role, blocks)),
        }
    }
    Ok(messages.into_iter().map(|(role, content)| json!({"role": role, "content": content})).collect())
}

fn blocks(turn: &Turn) -> Result<(&'static str, Vec<Value>), Unfit> {
    match turn {
        Turn::Said(message) => match message.role {
            Role::System => Ok(("user", vec![text(&instruction(message)?)])),
            Role::Assistant => Ok(("assistant", some_text(&only_text(message)?).collect())),
            Role::User => Ok(("user", said(message)?)),
        },
        Turn::Called { text, calls, echo } => {
            if let Some(blocks) = echoed(echo.as_ref(), ECHO, calls, |block| block.get("id")?.as_str()) {
                return Ok(("assistant", blocks.clone()));
            }
            let call = |call: &ToolCall| tool_use(&call.id, &call.name, arguments(call).into());
            Ok(("assistant", some_text(text).chain(calls.iter().map(call)).collect()))
        }
        Turn::Returned { call_id, content, failed, .. } => {
            let mut result = json!({"type": "tool_result", "tool_use_id": call_id, "content": content});
            if *failed {
                result["is_error"] = json!(true);
            }
            Ok(("user", vec![result]))
        }
    }
}

fn text(text: &str) -> Value {
    json!({"type": "text", "text": text})
}

/// Blocks without text are refused.
fn some_text(said: &str) -> impl Iterator<Item = Value> {
    Some(said).filter(|said| !said.trim().is_empty()).map(text).into_iter()
}

fn tool_use(id: &str, name: &str, input: Value) -> Value {
    json!({"type": "tool_use", "id": id, "name": name, "input": input})
}

fn said(message: &Message) -> Result<Vec<Value>, Unfit> {
    let blocks = asked::parts(&message.content, |part| match part {
        asked::Said::Text(said) => Ok(text(said)),
        asked::Said::Image(Source::Url(url)) => Ok(json!({"type": "image", "source": {"type": "url", "url": url}})),
        asked::Said::Image(Source::Data { media_type, base64 }) => {
            let source = json!({"type": "base64", "media_type": media_type, "data": base64});
            Ok(json!({"type": "image", "source": source}))
        }
        asked::Said::Audio(_) => Err(Unfit("takes no audio: the Messages API has none".to_owned())),
    });
    let is_blank = |block: &Value| block["text"].as_str().is_some_and(|text| text.trim().is_empty());
    Ok(blocks?.into_iter().filter(|block| !is_blank(block)).collect())
}

/// What understands one answer.
pub(super) fn decoder() -> Box<dyn Decoder> {
    Box::new(Blocks::default())
}

#[derive(Default)]
struct Blocks {
    blocks: BTreeMap<u64, Block>,
    tokens: Tokens,
}

/// A block, as far as it has come.
enum Block {
    Text(String),
    Thinking {
        thinking: String,
        signature: String,
    },
    Call {
        id: String,
        name: String,
        begun_with: Value,
        input: String,
    },
    /// One that only has to be shown again, such as a redacted thought.
    Other(Value),
}

impl Decoder for Blocks {
    fn event(&mut self, data: &str, said: &mut Said) -> Result<(), Fault> {
        let event = Event::read(data.as_bytes())?;
        match event.kind.as_str() {
            "message_start" => self.tokens.add(event.message.and_then(|message| message.usage)),
            "content_block_start" => {
                let block = event.content_block.ok_or_else(|| Fault::bad("a block without itself"))?;
                self.begin(event.index, block, said);
            }
            "content_block_delta" => self.add(event.index, event.delta.unwrap_or_default(), said)?,
            "message_delta" => {
                self.tokens.add(event.usage);
                if let Some(reason) = event.delta.and_then(|delta| delta.stop_reason) {
                    self.finish(&reason, said);
                }
            }
            "message_stop" => said.end(),
            // The version of the API promises to add others.
            _ => {}
        }
        Ok(())
    }

    fn whole(&mut self, body: &[u8], said: &mut Said) -> Result<(), Fault> {
        let message: Whole = serde_json::from_slice(body).map_err(|error| Fault::unlike("a message", &error))?;
        if let Some(error) = message.error {
            return Err(Fault::Reported(error));
        }
        let (Some(content), Some(reason)) = (message.content, message.stop_reason) else {
            return Err(Fault::bad("neither a stream nor a message"));
        };
        for (index, block) in (0..).zip(content) {
            self.begin(index, block, said);
        }
        self.tokens.add(message.usage);
        self.finish(&reason, said);
        Ok(())
    }
}

impl Blocks {
    fn begin(&mut self, index: u64, block: Value, said: &mut Said) {
        let field = |name: &str| block.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        let begun = match field("type").as_str() {
            "text" => {
                said.text(field("text"));
                Block::Text(field("text"))
            }
            "thinking" => {
                said.reasoning(field("thinking"));
                Block::Thinking { thinking: field("thinking"), signature: field("signature") }
            }
            "tool_use" => {
                said.hold(block.to_string().len());
                let begun_with = block.get("input").cloned().unwrap_or_default();
                Block::Call { id: field("id"), name: field("name"), begun_with, input: String::new() }
            }
            _ => {
                said.hold(block.to_string().len());
                Block::Other(block)
            }
        };
        self.blocks.insert(index, begun);
    }

    fn add(&mut self, index: u64, delta: Delta, said: &mut Said) -> Result<(), Fault> {
        let block = self.blocks.get_mut(&index).ok_or_else(|| Fault::bad("a piece of a block that has not begun"))?;
        match block {
            Block::Text(text) => {
                let more = delta.text.unwrap_or_default();
                text.push_str(&more);
                said.text(more);
            }
            Block::Thinking { thinking, signature } => {
                let (more, signed) = (delta.thinking.unwrap_or_default(), delta.signature.unwrap_or_default());
                said.hold(signed.len());
                thinking.push_str(&more);
                signature.push_str(&signed);
                said.reasoning(more);
            }
            Block::Call { input, .. } => {
                let more = delta.partial_json.unwrap_or_default();
                said.hold(more.len());
                input.push_str(&more);
            }
            Block::Other(_) => {}
        }
        Ok(())
    }

    /// All blocks are whole now.
    fn finish(&mut self, reason: &str, said: &mut Said) {
        let (mut called, mut thought, mut shown) = (false, false, Vec::new());
        for block in std::mem::take(&mut self.blocks).into_values() {
            match block {
                Block::Text(text) => shown.extend(some_text(&text)),
                Block::Thinking { thinking, signature } => {
                    // Without a signature it is not taken back.
                    if !signature.is_empty() {
                        thought = true;
                        shown.push(json!({"type": "thinking", "thinking": thinking, "signature": signature}));
                    }
                }
                Block::Call { id, name, begun_with, input } => {
                    // Some send the whole input at the beginning, and no pieces.
                    let begun = begun_with.as_object().is_some_and(|input| !input.is_empty());
                    let input = if input.is_empty() && begun { begun_with.to_string() } else { input };
                    let call = completed(id, name, input);
                    shown.push(tool_use(&call.id, &call.name, arguments(&call).into()));
                    said.call(call);
                    called = true;
                }
                Block::Other(block) => {
                    thought = true;
                    shown.push(block);
                }
            }
        }
        if called && thought {
            said.echo(json!({ECHO: shown}));
        }
        if let Some(usage) = self.tokens.usage() {
            said.usage(usage);
        }
        said.finish(match reason {
            "end_turn" | "stop_sequence" if called => Finish::ToolCalls,
            "end_turn" | "stop_sequence" => Finish::Stop,
            "max_tokens" | "model_context_window_exceeded" => Finish::Length,
            "tool_use" => Finish::ToolCalls,
            "refusal" => Finish::Filtered,
            other => Finish::Other(other.to_owned()),
        });
    }
}

#[derive(Deserialize)]
struct Event {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    index: u64,
    message: Option<Begun>,
    content_block: Option<Value>,
    delta: Option<Delta>,
    usage: Option<Tokens>,
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Begun {
    usage: Option<Tokens>,
}

#[derive(Default, Deserialize)]
struct Delta {
    text: Option<String>,
    thinking: Option<String>,
    signature: Option<String>,
    partial_json: Option<String>,
    stop_reason: Option<String>,
}

/// A message that was not streamed.
#[derive(Deserialize)]
struct Whole {
    content: Option<Vec<Value>>,
    stop_reason: Option<String>,
    usage: Option<Tokens>,
    error: Option<Value>,
}

/// Counted from the beginning, each time; what is left out has been said before.
#[derive(Default, Deserialize)]
struct Tokens {
    input_tokens: Option<u64>,
    cache_creation_input_tokens: Option<u64>,
    cache_read_input_tokens: Option<u64>,
    output_tokens: Option<u64>,
}

impl Tokens {
    fn add(&mut self, newer: Option<Self>) {
        let Some(newer) = newer else { return };
        *self = Self {
            input_tokens: newer.input_tokens.or(self.input_tokens),
            cache_creation_input_tokens: newer.cache_creation_input_tokens.or(self.cache_creation_input_tokens),
            cache_read_input_tokens: newer.cache_read_input_tokens.or(self.cache_read_input_tokens),
            output_tokens: newer.output_tokens.or(self.output_tokens),
        };
    }

    /// Tokens that the cache takes or gives are not among `input_tokens`; thoughts are among `output_tokens`.
    fn usage(&self) -> Option<Usage> {
        let input = [self.input_tokens, self.cache_creation_input_tokens, self.cache_read_input_tokens];
        if input.iter().chain([&self.output_tokens]).all(Option::is_none) {
            return None;
        }
        let input_tokens = input.into_iter().flatten().fold(0, u64::saturating_add);
        Some(Usage { input_tokens, output_tokens: self.output_tokens.unwrap_or(0), ..Usage::default() })
    }
}

impl Event {
    fn read(json: &[u8]) -> Result<Self, Fault> {
        let event = serde_json::from_slice::<Self>(json);
        // An error may come without a type.
        let untyped = || serde_json::from_slice::<Value>(json).ok()?.get("error").cloned();
        let reported = match &event {
            Ok(event) => event.error.clone(),
            Err(_) => untyped(),
        };
        match reported {
            Some(error) => Err(Fault::Reported(error)),
            None => event.map_err(|error| Fault::unlike("an event of a message", &error)),
        }
    }
}

#[cfg(test)]
#[path = "anthropic_tests.rs"]
mod tests;
