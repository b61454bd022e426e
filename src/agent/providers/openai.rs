//! The chat completions of OpenAI, which most providers and local servers speak too.

use reqwest::header::{AUTHORIZATION, HeaderName};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::answer::{Decoder, Said};
use super::asked::{self, Request, Unfit, arguments_text, completed, echoed, image_url, is_strict, only_text, written};
use super::faults::Fault;
use super::http::{HttpProvider, InvalidProvider, Protocol, ProviderOptions};
use super::{Chat, Finish, ToolCall, ToolCard, Turn};
use crate::run::{Message, Role, Source, Usage};

/// The key of this protocol's echo.
const ECHO: &str = "openai";

/// The fields of a message that hold thoughts, and that some servers want back together with the calls: DeepSeek
/// refuses a conversation without its reasoning_content, OpenRouter keeps the signatures of other providers in
/// reasoning_details. Nobody is sent what it did not send itself.
const THOUGHTS: [&str; 2] = ["reasoning_content", "reasoning_details"];

#[derive(Debug)]
struct ChatCompletions {
    /// OpenAI itself, whose newer models refuse `max_tokens`, whereas many others know nothing else.
    genuine: bool,
}

impl HttpProvider {
    /// A provider that speaks the chat completions of OpenAI, its base URL ending before `/chat/completions`.
    pub fn openai(options: ProviderOptions) -> Result<Self, InvalidProvider> {
        Self::new(options, |url| ChatCompletions { genuine: url.host_str() == Some("api.openai.com") })
    }
}

/// The header of OpenAI's key.
pub(super) fn bearer(key: &str) -> (HeaderName, String) {
    (AUTHORIZATION, format!("Bearer {key}"))
}

/// The models in a list as OpenAI gives it: `{"data": [{"id"}]}`.
pub(super) fn listed(list: &[u8]) -> Option<Vec<String>> {
    #[derive(Deserialize)]
    struct Models {
        data: Vec<Model>,
    }
    #[derive(Deserialize)]
    struct Model {
        id: String,
    }
    let list: Models = serde_json::from_slice(list).ok()?;
    Some(list.data.into_iter().map(|model| model.id).collect())
}

impl Protocol for ChatCompletions {
    fn key(&self, key: &str) -> (HeaderName, String) {
        bearer(key)
    }

    fn models(&self, list: &[u8]) -> Option<Vec<String>> {
        listed(list)
    }

    fn ask(&self, chat: &Chat, model: &str) -> Result<Request, Unfit> {
        let messages = chat.turns.iter().map(message).collect::<Result<Vec<_>, _>>()?;
        let mut body = json!({
            "model": model,
            "messages": messages,
            "stream": true,
            "stream_options": {"include_usage": true},
        });
        if !chat.tools.is_empty() {
            body["tools"] = chat.tools.iter().map(tool).collect();
            // Several at once is what they do when nothing is said, and some do not know the word.
            if !chat.parallel_tools {
                body["parallel_tool_calls"] = json!(false);
            }
        }
        if let Some(schema) = &chat.schema {
            let schema = json!({"name": "answer", "schema": schema, "strict": is_strict(schema)});
            body["response_format"] = json!({"type": "json_schema", "json_schema": schema});
        }
        if let Some(temperature) = chat.temperature {
            body["temperature"] = json!(temperature);
        }
        if let Some(max_tokens) = chat.max_tokens {
            body[if self.genuine { "max_completion_tokens" } else { "max_tokens" }] = json!(max_tokens);
        }
        Ok(Request { path: "/chat/completions".to_owned(), body })
    }

    fn decoder(&self) -> Box<dyn Decoder> {
        decoder()
    }
}

/// What understands one answer.
pub(super) fn decoder() -> Box<dyn Decoder> {
    Box::new(Completions::default())
}

fn tool(card: &ToolCard) -> Value {
    let ToolCard { name, description, parameters } = card;
    json!({"type": "function", "function": {"name": name, "description": description, "parameters": parameters}})
}

fn message(turn: &Turn) -> Result<Value, Unfit> {
    match turn {
        Turn::Said(message) => Ok(json!({"role": message.role, "content": content(message)?})),
        Turn::Called { text, calls, echo } => {
            let call = |call: &ToolCall| {
                let function = json!({"name": call.name, "arguments": arguments_text(call)});
                json!({"id": call.id, "type": "function", "function": function})
            };
            let content = if text.is_empty() { Value::Null } else { json!(text) };
            let tool_calls: Vec<_> = calls.iter().map(call).collect();
            let mut message = json!({"role": "assistant", "content": content, "tool_calls": tool_calls});
            let thoughts = echoed(echo.as_ref(), ECHO, calls, |entry| entry.as_str());
            if let (Some(_), Some(echo)) = (thoughts, echo) {
                for field in THOUGHTS.iter().filter(|field| echo.get(field).is_some()) {
                    message[field] = echo[field].clone();
                }
            }
            Ok(message)
        }
        Turn::Returned { call_id, content, .. } => {
            Ok(json!({"role": "tool", "tool_call_id": call_id, "content": content}))
        }
    }
}

/// A text stays a text: many servers take nothing else.
fn content(message: &Message) -> Result<Value, Unfit> {
    if message.role != Role::User || message.content.parts().is_none() {
        return Ok(json!(only_text(message)?));
    }
    let part = |part: asked::Said<'_>| match part {
        asked::Said::Text(text) => Ok(json!({"type": "text", "text": text})),
        asked::Said::Image(source) => Ok(json!({"type": "image_url", "image_url": {"url": image_url(source)}})),
        asked::Said::Audio(Source::Url(_)) => Err(Unfit("takes audio only as base64, not by URL".to_owned())),
        asked::Said::Audio(Source::Data { media_type, base64 }) => {
            let format = match media_type.as_str() {
                "audio/wav" | "audio/x-wav" | "audio/wave" | "audio/vnd.wave" => "wav",
                "audio/mpeg" | "audio/mp3" => "mp3",
                _ => return Err(Unfit(format!("takes audio as audio/wav or audio/mpeg, not as {media_type}"))),
            };
            Ok(json!({"type": "input_audio", "input_audio": {"data": base64, "format": format}}))
        }
    };
    Ok(asked::parts(&message.content, part)?.into())
}

/// Understands one answer.
#[derive(Default)]
struct Completions {
    calls: Vec<Open>,
    thoughts: Map<String, Value>,
}

/// A call whose pieces are still coming.
#[derive(Default)]
struct Open {
    /// Absent when the server does not say.
    index: Option<u64>,
    id: String,
    name: String,
    arguments: String,
}

impl Decoder for Completions {
    fn event(&mut self, data: &str, said: &mut Said) -> Result<(), Fault> {
        if data == "[DONE]" {
            self.flush(said);
            said.end();
            return Ok(());
        }
        let completion = Completion::read(data.as_bytes())?;
        self.take(completion, said);
        Ok(())
    }

    fn whole(&mut self, body: &[u8], said: &mut Said) -> Result<(), Fault> {
        let completion = Completion::read(body)?;
        match completion.choices.as_deref() {
            Some([Choice { message: Some(_), .. }, ..]) => {}
            Some(_) | None => return Err(Fault::bad("neither a stream nor a chat completion")),
        }
        self.take(completion, said);
        self.flush(said);
        Ok(())
    }
}

impl Completions {
    /// In the order in which a model says them. Only one choice is ever asked for.
    fn take(&mut self, completion: Completion, said: &mut Said) {
        if let Some(tokens) = completion.usage
            && let Some(usage) = tokens.usage()
        {
            said.usage(usage);
        }
        let Some(choice) = completion.choices.into_iter().flatten().next() else { return };
        let delta = choice.delta.or(choice.message).unwrap_or_default();
        self.remember(&delta, said);
        said.reasoning(delta.reasoning_content.or(delta.reasoning).unwrap_or_default());
        said.text(delta.content.unwrap_or_default());
        for piece in delta.tool_calls.into_iter().flatten() {
            self.piece(piece, said);
        }
        if let Some(reason) = choice.finish_reason.filter(|reason| !reason.is_empty()) {
            // Some say "stop" when they have called.
            let called = !self.calls.is_empty();
            let finish = Finish::from(reason.as_str());
            let finish = if called && finish == Finish::Stop { Finish::ToolCalls } else { finish };
            self.flush(said);
            said.finish(finish);
        }
    }

    /// Keeps what may have to be shown again.
    fn remember(&mut self, delta: &Delta, said: &mut Said) {
        if let Some(text) = delta.reasoning_content.as_deref() {
            match self.thoughts.get_mut(THOUGHTS[0]) {
                Some(Value::String(kept)) => kept.push_str(text),
                Some(_) | None => drop(self.thoughts.insert(THOUGHTS[0].to_owned(), Value::from(text))),
            }
        }
        for detail in delta.reasoning_details.iter().flatten() {
            said.hold(detail.to_string().len());
            match self.thoughts.get_mut(THOUGHTS[1]) {
                Some(Value::Array(kept)) => kept.push(detail.clone()),
                Some(_) | None => drop(self.thoughts.insert(THOUGHTS[1].to_owned(), json!([detail]))),
            }
        }
    }

    /// Puts a piece to the call that it belongs to. Calls are told apart by their index; by id and name for servers
    /// that leave the index out or say 0 for all.
    fn piece(&mut self, piece: CallPiece, said: &mut Said) {
        let CallPiece { index, id, function } = piece;
        let Function { name, arguments } = function.unwrap_or_default();
        let (id, name) = (id.unwrap_or_default(), name.unwrap_or_default());
        let arguments = written(arguments);
        said.hold(id.len() + name.len() + arguments.len());
        let same = |open: &&mut Open| match index {
            Some(_) => open.index == index,
            None => true,
        };
        let another = |open: &Open| {
            let other_id = !id.is_empty() && !open.id.is_empty() && open.id != id;
            let no_ids = index.is_none() && id.is_empty() && !open.name.is_empty();
            !name.is_empty() && (other_id || no_ids)
        };
        match self.calls.iter_mut().rev().find(same).filter(|open| !another(open)) {
            Some(open) => {
                if open.id.is_empty() {
                    open.id = id;
                }
                if open.name.is_empty() {
                    open.name = name;
                }
                open.arguments.push_str(&arguments);
            }
            None => self.calls.push(Open { index, id, name, arguments }),
        }
    }

    /// All calls are whole now.
    fn flush(&mut self, said: &mut Said) {
        let calls: Vec<_> =
            self.calls.drain(..).map(|Open { id, name, arguments, .. }| completed(id, name, arguments)).collect();
        if !calls.is_empty() && !self.thoughts.is_empty() {
            let ids: Vec<_> = calls.iter().map(|call| call.id.as_str()).collect();
            self.thoughts.insert(ECHO.to_owned(), json!(ids));
        }
        let echo = std::mem::take(&mut self.thoughts);
        let echo = echo.contains_key(ECHO).then_some(Value::Object(echo));
        calls.into_iter().for_each(|call| said.call(call));
        if let Some(echo) = echo {
            said.echo(echo);
        }
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
    delta: Option<Delta>,
    /// In a whole completion.
    message: Option<Delta>,
    finish_reason: Option<String>,
}

#[derive(Default, Deserialize)]
struct Delta {
    content: Option<String>,
    /// DeepSeek's name for it, which most servers took over.
    reasoning_content: Option<String>,
    /// The name that others use; some send both.
    reasoning: Option<String>,
    /// Of OpenRouter.
    reasoning_details: Option<Vec<Value>>,
    tool_calls: Option<Vec<CallPiece>>,
}

#[derive(Deserialize)]
struct CallPiece {
    index: Option<u64>,
    id: Option<String>,
    function: Option<Function>,
}

#[derive(Default, Deserialize)]
struct Function {
    name: Option<String>,
    arguments: Option<Value>,
}

#[derive(Deserialize)]
struct Tokens {
    prompt_tokens: Option<u64>,
    completion_tokens: Option<u64>,
    total_tokens: Option<u64>,
}

impl Tokens {
    /// Cached tokens are among those of the prompt. Those of thoughts are among those of the completion with OpenAI;
    /// with others (xAI) only the total has them.
    fn usage(&self) -> Option<Usage> {
        if self.prompt_tokens.is_none() && self.completion_tokens.is_none() {
            return None;
        }
        let input_tokens = self.prompt_tokens.unwrap_or(0);
        let beyond_input = self.total_tokens.unwrap_or(0).saturating_sub(input_tokens);
        let output_tokens = self.completion_tokens.unwrap_or(0).max(beyond_input);
        Some(Usage { input_tokens, output_tokens, ..Usage::default() })
    }
}

impl Completion {
    fn read(json: &[u8]) -> Result<Self, Fault> {
        let completion: Self =
            serde_json::from_slice(json).map_err(|error| Fault::unlike("a chat completion", &error))?;
        match completion.error {
            Some(error) => Err(Fault::Reported(error)),
            None => Ok(completion),
        }
    }
}

#[cfg(test)]
#[path = "openai_tests.rs"]
mod tests;
