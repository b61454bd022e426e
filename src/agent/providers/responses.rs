//! The Responses API of OpenAI, without its memory: nothing is stored there, every call shows the whole conversation.
//!
//! An answer is items, each added, added to and done under its index; it has finished with `response.completed` or
//! `response.incomplete`, which nothing follows. What a reasoning model thought is an item that only the provider can
//! read, and that it wants to be shown again together with the calls.

use std::collections::BTreeMap;

use reqwest::header::HeaderName;
use serde::Deserialize;
use serde_json::{Value, json};

use super::answer::{Decoder, Said};
use super::asked::{
    self, Request, Unfit, arguments_text, completed, echoed, image_url, instructions, is_strict, only_text,
};
use super::faults::Fault;
use super::http::{HttpProvider, InvalidProvider, Protocol, ProviderOptions};
use super::openai::{bearer, listed};
use super::{Chat, Finish, ToolCall, ToolCard, Turn};
use crate::run::{Message, Role, Usage};

/// The key of this protocol's echo.
const ECHO: &str = "openai_responses";

/// The most bytes of one event: the last one holds the whole answer.
const MAX_EVENT: usize = 4 * super::answer::MAX_EVENT;

/// What names of models begin with that do not reason, and that refuse to be asked for what they thought.
const NOT_REASONING: [&str; 4] = ["gpt-3.5", "gpt-4", "gpt-5-chat", "chatgpt-"];

#[derive(Debug)]
struct Responses;

impl HttpProvider {
    /// A provider that speaks the Responses API of OpenAI, its base URL ending before `/responses`.
    pub fn openai_responses(options: ProviderOptions) -> Result<Self, InvalidProvider> {
        Self::new(options, |_| Responses)
    }
}

impl Protocol for Responses {
    fn key(&self, key: &str) -> (HeaderName, String) {
        bearer(key)
    }

    fn models(&self, list: &[u8]) -> Option<Vec<String>> {
        listed(list)
    }

    fn ask(&self, chat: &Chat, model: &str) -> Result<Request, Unfit> {
        let (system, turns) = instructions(&chat.turns)?;
        let input = turns.iter().map(items).collect::<Result<Vec<_>, _>>()?;
        let input: Vec<Value> = input.into_iter().flatten().collect();
        let mut body = json!({"model": model, "input": input, "stream": true, "store": false});
        if !NOT_REASONING.iter().any(|prefix| model.starts_with(prefix)) {
            body["include"] = json!(["reasoning.encrypted_content"]);
        }
        if let Some(system) = system {
            body["instructions"] = json!(system);
        }
        if !chat.tools.is_empty() {
            body["tools"] = chat.tools.iter().map(tool).collect();
            body["parallel_tool_calls"] = json!(chat.parallel_tools);
        }
        if let Some(schema) = &chat.schema {
            let strict = is_strict(schema);
            let format = json!({"type": "json_schema", "name": "answer", "schema": schema, "strict": strict});
            body["text"] = json!({"format": format});
        }
        if let Some(temperature) = chat.temperature {
            body["temperature"] = json!(temperature);
        }
        if let Some(max_tokens) = chat.max_tokens {
            body["max_output_tokens"] = json!(max_tokens);
        }
        Ok(Request { path: "/responses".to_owned(), body })
    }

    fn decoder(&self) -> Box<dyn Decoder> {
        decoder()
    }
}

fn tool(card: &ToolCard) -> Value {
    let ToolCard { name, description, parameters } = card;
    // Strict unless said otherwise, which not every schema is fit for.
    let strict = is_strict(parameters);
    json!({"type": "function", "name": name, "description": description, "parameters": parameters, "strict": strict})
}

fn items(turn: &Turn) -> Result<Vec<Value>, Unfit> {
    match turn {
        Turn::Said(message) => Ok(vec![json!({"role": message.role, "content": content(message)?})]),
        Turn::Called { text, calls, echo } => {
            if let Some(items) = echoed(echo.as_ref(), ECHO, calls, |item| item.get("call_id")?.as_str()) {
                return Ok(items.clone());
            }
            let said = Some(text).filter(|text| !text.is_empty());
            let said = said.map(|text| json!({"role": Role::Assistant, "content": text}));
            Ok(said.into_iter().chain(calls.iter().map(function_call)).collect())
        }
        Turn::Returned { call_id, content, .. } => {
            Ok(vec![json!({"type": "function_call_output", "call_id": call_id, "output": content})])
        }
    }
}

fn function_call(call: &ToolCall) -> Value {
    json!({"type": "function_call", "call_id": call.id, "name": call.name, "arguments": arguments_text(call)})
}

fn content(message: &Message) -> Result<Value, Unfit> {
    if message.role != Role::User || message.content.parts().is_none() {
        return Ok(json!(only_text(message)?));
    }
    let part = |part: asked::Said<'_>| match part {
        asked::Said::Text(text) => Ok(json!({"type": "input_text", "text": text})),
        asked::Said::Image(source) => Ok(json!({"type": "input_image", "image_url": image_url(source)})),
        asked::Said::Audio(_) => {
            Err(Unfit("takes no audio: the Responses API has none; the protocol openai has".to_owned()))
        }
    };
    Ok(asked::parts(&message.content, part)?.into())
}

/// What understands one answer.
pub(super) fn decoder() -> Box<dyn Decoder> {
    Box::new(Items::default())
}

#[derive(Default)]
struct Items {
    items: BTreeMap<u64, Item>,
    refused: bool,
    spoken: bool,
}

/// An item, as far as it has come.
#[derive(Default)]
struct Item {
    whole: Value,
    /// The pieces of a call's arguments.
    arguments: String,
}

impl Decoder for Items {
    fn max_event(&self) -> usize {
        MAX_EVENT
    }

    fn event(&mut self, data: &str, said: &mut Said) -> Result<(), Fault> {
        let event: Event =
            serde_json::from_str(data).map_err(|error| Fault::unlike("an event of a response", &error))?;
        let delta = event.delta.as_ref().and_then(Value::as_str).unwrap_or_default().to_owned();
        match event.kind.as_deref() {
            Some("response.output_text.delta") => {
                self.spoken = true;
                said.text(delta);
            }
            Some("response.refusal.delta") => {
                self.spoken = true;
                self.refused = true;
                said.text(delta);
            }
            Some("response.reasoning_summary_text.delta" | "response.reasoning_text.delta") => said.reasoning(delta),
            Some("response.function_call_arguments.delta") => {
                said.hold(delta.len());
                self.items.entry(event.output_index).or_default().arguments.push_str(&delta);
            }
            Some("response.output_item.added" | "response.output_item.done") => {
                self.item(event.output_index, event.item.unwrap_or_default(), said);
            }
            Some("response.completed" | "response.incomplete") => {
                self.finish(event.response.ok_or_else(|| Fault::bad("an end without its response"))?, said);
                said.end();
            }
            Some("response.failed") => {
                let error = event.response.and_then(|response| response.error);
                return Err(Fault::Reported(error.unwrap_or_else(|| json!("the response failed"))));
            }
            Some("error") => {
                let whole = || serde_json::from_str(data).unwrap_or_default();
                return Err(Fault::Reported(event.error.unwrap_or_else(whole)));
            }
            Some(kind) if kind.starts_with("response.") => {}
            Some(_) | None => match event.error {
                Some(error) => return Err(Fault::Reported(error)),
                None => return Err(Fault::bad("not an event of a response")),
            },
        }
        Ok(())
    }

    fn whole(&mut self, body: &[u8], said: &mut Said) -> Result<(), Fault> {
        let response: Response = serde_json::from_slice(body).map_err(|error| Fault::unlike("a response", &error))?;
        if let Some(error) = response.error {
            return Err(Fault::Reported(error));
        }
        if !matches!(response.status.as_deref(), Some("completed" | "incomplete")) || response.output.is_none() {
            return Err(Fault::bad("neither a stream nor a response"));
        }
        self.finish(response, said);
        Ok(())
    }
}

impl Items {
    /// Keeps an item; what is done goes before what was only added.
    fn item(&mut self, index: u64, item: Value, said: &mut Said) {
        let kind = item.get("type").and_then(Value::as_str).unwrap_or_default();
        if matches!(kind, "reasoning" | "function_call") {
            said.hold(item.to_string().len());
        }
        self.items.entry(index).or_default().whole = item;
    }

    /// All items are whole now.
    fn finish(&mut self, response: Response, said: &mut Said) {
        // Some send only what has come of it in the end.
        for (index, item) in (0..).zip(response.output.unwrap_or_default()) {
            let known = self.items.entry(index).or_default();
            if known.whole.is_null() {
                known.whole = item;
            }
        }
        let (mut calls, mut reasoned, mut shown) = (Vec::new(), false, Vec::new());
        for Item { mut whole, arguments } in std::mem::take(&mut self.items).into_values() {
            let field = |name: &str| whole.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
            match field("type").as_str() {
                "function_call" => {
                    let written = asked::written(whole.get("arguments").cloned());
                    let arguments = if written.is_empty() { arguments } else { written };
                    let call = completed(field("call_id"), field("name"), arguments);
                    whole["call_id"] = json!(call.id);
                    whole["arguments"] = json!(arguments_text(&call));
                    calls.push(call);
                }
                "message" if !self.spoken => whole_text(&whole).for_each(|text| said.text(text)),
                "reasoning" => reasoned |= whole.get("encrypted_content").is_some_and(Value::is_string),
                _ => {}
            }
            shown.push(whole);
        }
        let called = !calls.is_empty();
        calls.into_iter().for_each(|call| said.call(call));
        if called && reasoned {
            said.echo(json!({ECHO: shown}));
        }
        if let Some(tokens) = response.usage {
            let (input_tokens, output_tokens) = (tokens.input_tokens.unwrap_or(0), tokens.output_tokens.unwrap_or(0));
            said.usage(Usage { input_tokens, output_tokens, ..Usage::default() });
        }
        let cut = response.incomplete_details.and_then(|details| details.reason);
        said.finish(match cut.as_deref() {
            Some("max_output_tokens") => Finish::Length,
            Some("content_filter") => Finish::Filtered,
            Some(other) => Finish::Other(other.to_owned()),
            None if self.refused => Finish::Filtered,
            None if called => Finish::ToolCalls,
            None => Finish::Stop,
        });
    }
}

/// The texts of a message that was not streamed.
fn whole_text(message: &Value) -> impl Iterator<Item = String> {
    let parts = message.get("content").and_then(Value::as_array).into_iter().flatten();
    parts.filter_map(|part| Some(part.get("text").or_else(|| part.get("refusal"))?.as_str()?.to_owned()))
}

#[derive(Deserialize)]
struct Event {
    #[serde(rename = "type")]
    kind: Option<String>,
    #[serde(default)]
    output_index: u64,
    delta: Option<Value>,
    item: Option<Value>,
    response: Option<Response>,
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Response {
    status: Option<String>,
    output: Option<Vec<Value>>,
    usage: Option<Tokens>,
    incomplete_details: Option<Incomplete>,
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Incomplete {
    reason: Option<String>,
}

/// Cached tokens are among those of the input, thoughts among those of the output.
#[derive(Deserialize)]
struct Tokens {
    input_tokens: Option<u64>,
    output_tokens: Option<u64>,
}

#[cfg(test)]
#[path = "responses_tests.rs"]
mod tests;
