//! The Gemini API, generateContent, streamed as SSE.
//!
//! Instructions stand apart from the contents. An answer is parts of text, thought and calls, calls always whole; it
//! has finished when its candidate has a `finishReason`, or when the prompt was blocked. Newer models sign parts with
//! a `thoughtSignature` and refuse a conversation whose signatures were lost.

use reqwest::Url;
use reqwest::header::HeaderName;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::answer::{Decoder, Said};
use super::asked::{
    self, Request, Unfit, arguments, by_words, completed, echoed, instruction, instructions, is_made_up, only_text,
};
use super::faults::Fault;
use super::http::{HttpProvider, InvalidProvider, Protocol, ProviderOptions};
use super::{Chat, Finish, ToolCall, ToolCard, Turn};
use crate::run::{Message, Role, Source, Usage};

/// The key of this protocol's echo.
const ECHO: &str = "gemini";

#[derive(Debug)]
struct GenerateContent;

impl HttpProvider {
    /// A provider that speaks the Gemini API, its base URL ending before `/models`.
    pub fn gemini(options: ProviderOptions) -> Result<Self, InvalidProvider> {
        Self::new(options, |_| GenerateContent)
    }
}

impl Protocol for GenerateContent {
    fn key(&self, key: &str) -> (HeaderName, String) {
        (HeaderName::from_static("x-goog-api-key"), key.to_owned())
    }

    /// Only those that can answer: the list has others too, under names such as `models/gemini-2.5-flash`.
    fn models(&self, list: &[u8]) -> Option<Vec<String>> {
        #[derive(Deserialize)]
        struct Models {
            models: Vec<Model>,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Model {
            name: String,
            supported_generation_methods: Option<Vec<String>>,
        }
        let list: Models = serde_json::from_slice(list).ok()?;
        let answers = |model: &Model| {
            let methods = model.supported_generation_methods.as_ref();
            methods.is_none_or(|methods| methods.iter().any(|method| method == "generateContent"))
        };
        let answering = list.models.into_iter().filter(answers);
        Some(answering.map(|model| model.name.trim_start_matches("models/").to_owned()).collect())
    }

    fn ask(&self, chat: &Chat, model: &str) -> Result<Request, Unfit> {
        let (mut system, turns) = instructions(&chat.turns)?;
        // Models before 3 refuse a schema beside tools.
        let schema = chat.schema.as_deref();
        let promised = schema.filter(|_| chat.tools.is_empty());
        if let (Some(schema), None) = (schema, promised) {
            system = by_words(system, schema);
        }
        let mut body = json!({"contents": contents(turns)?});
        if let Some(system) = system {
            body["systemInstruction"] = json!({"parts": [text(&system)]});
        }
        if !chat.tools.is_empty() {
            let declarations: Vec<_> = chat.tools.iter().map(declaration).collect();
            body["tools"] = json!([{"functionDeclarations": declarations}]);
        }
        let mut settings = Map::new();
        if let Some(schema) = promised {
            settings.insert("responseMimeType".to_owned(), json!("application/json"));
            settings.insert("responseJsonSchema".to_owned(), json!(schema));
        }
        if let Some(temperature) = chat.temperature {
            settings.insert("temperature".to_owned(), json!(temperature));
        }
        if let Some(max_tokens) = chat.max_tokens {
            settings.insert("maxOutputTokens".to_owned(), json!(max_tokens));
        }
        if !settings.is_empty() {
            body["generationConfig"] = settings.into();
        }
        Ok(Request { path: format!("/models/{}:streamGenerateContent?alt=sse", in_path(model)), body })
    }

    fn decoder(&self) -> Box<dyn Decoder> {
        decoder()
    }
}

/// The name of a model as a segment of a path.
fn in_path(model: &str) -> String {
    let model = model.trim_start_matches("models/");
    let Ok(mut url) = Url::parse("http://localhost") else { return String::new() };
    if let Ok(mut path) = url.path_segments_mut() {
        path.push(model);
    }
    url.path().trim_start_matches('/').to_owned()
}

fn declaration(card: &ToolCard) -> Value {
    json!({"name": card.name, "description": card.description, "parametersJsonSchema": card.parameters})
}

/// The contents; what follows on one side is merged, so that all results of one answer's calls are together.
fn contents(turns: &[Turn]) -> Result<Vec<Value>, Unfit> {
    let mut contents: Vec<(&str, Vec<Value>)> = Vec::new();
    for turn in turns {
        let (role, parts) = parts(turn)?;
        match contents.last_mut() {
            _ if parts.is_empty() => {}
            Some((last, content)) if *last == role => content.extend(parts),
            Some(_) | None => contents.push((role, parts)),
        }
    }
    Ok(contents.into_iter().map(|(role, parts)| json!({"role": role, "parts": parts})).collect())
}

fn parts(turn: &Turn) -> Result<(&'static str, Vec<Value>), Unfit> {
    match turn {
        Turn::Said(message) => match message.role {
            Role::System => Ok(("user", vec![text(&instruction(message)?)])),
            Role::Assistant => Ok(("model", some_text(&only_text(message)?).collect())),
            Role::User => Ok(("user", said(message)?)),
        },
        Turn::Called { text, calls, echo } => {
            // The ids stand beside the parts: the API itself has none in its older versions.
            if let Some(echo) = echo
                && echoed(Some(echo), ECHO, calls, |id| id.as_str()).is_some()
                && let Some(parts) = echo.get("parts").and_then(Value::as_array)
            {
                return Ok(("model", parts.clone()));
            }
            let call = |call: &ToolCall| json!({"functionCall": with_id(&call.id, &call.name, "args", arguments(call).into())});
            Ok(("model", some_text(text).chain(calls.iter().map(call)).collect()))
        }
        Turn::Returned { call_id, name, content, failed } => {
            let said = if *failed { "error" } else { "output" };
            let response = json!({said: content});
            Ok(("user", vec![json!({"functionResponse": with_id(call_id, name, "response", response)})]))
        }
    }
}

/// A call or its result; under its id when the API gave it.
fn with_id(id: &str, name: &str, field: &str, value: Value) -> Value {
    let mut object = json!({"name": name, field: value});
    if !is_made_up(id) {
        object["id"] = json!(id);
    }
    object
}

fn text(text: &str) -> Value {
    json!({"text": text})
}

fn some_text(said: &str) -> impl Iterator<Item = Value> {
    Some(said).filter(|said| !said.is_empty()).map(text).into_iter()
}

fn said(message: &Message) -> Result<Vec<Value>, Unfit> {
    asked::parts(&message.content, |part| match part {
        asked::Said::Text(said) => Ok(text(said)),
        asked::Said::Image(Source::Data { media_type, base64 })
        | asked::Said::Audio(Source::Data { media_type, base64 }) => {
            Ok(json!({"inlineData": {"mimeType": media_type, "data": base64}}))
        }
        // The media type is the server's to find out.
        asked::Said::Image(Source::Url(url)) => Ok(json!({"fileData": {"fileUri": url}})),
        asked::Said::Audio(Source::Url(_)) => Err(Unfit("takes audio only as base64, not by URL".to_owned())),
    })
}

/// What understands one answer.
pub(super) fn decoder() -> Box<dyn Decoder> {
    Box::new(Contents::default())
}

#[derive(Default)]
struct Contents {
    calls: Vec<ToolCall>,
    /// What the model said, to be shown again.
    parts: Vec<Value>,
    signed: bool,
}

impl Decoder for Contents {
    fn event(&mut self, data: &str, said: &mut Said) -> Result<(), Fault> {
        self.take(data.as_bytes(), said).map(drop)
    }

    fn whole(&mut self, body: &[u8], said: &mut Said) -> Result<(), Fault> {
        // Without alt=sse, which some proxies drop, the events are the items of an array.
        let chunks = match serde_json::from_slice::<Vec<Box<serde_json::value::RawValue>>>(body) {
            Ok(chunks) => chunks,
            Err(_) => vec![serde_json::from_slice(body).map_err(|error| Fault::unlike("a content", &error))?],
        };
        let mut finished = false;
        for chunk in chunks {
            finished |= self.take(chunk.get().as_bytes(), said)?;
        }
        if finished { Ok(()) } else { Err(Fault::bad("an answer that has not finished")) }
    }
}

impl Contents {
    /// Whether the answer has finished.
    fn take(&mut self, json: &[u8], said: &mut Said) -> Result<bool, Fault> {
        let chunk: Chunk = serde_json::from_slice(json).map_err(|error| Fault::unlike("a content", &error))?;
        if let Some(error) = chunk.error {
            return Err(Fault::Reported(error));
        }
        if chunk.candidates.is_none() && chunk.usage_metadata.is_none() && chunk.prompt_feedback.is_none() {
            return Err(Fault::bad("not a content"));
        }
        if let Some(usage) = chunk.usage_metadata {
            said.usage(usage.usage());
        }
        let candidate = chunk.candidates.into_iter().flatten().next().unwrap_or_default();
        for part in candidate.content.and_then(|content| content.parts).into_iter().flatten() {
            self.part(part, said);
        }
        let blocked = chunk.prompt_feedback.is_some_and(|feedback| feedback.block_reason.is_some());
        match candidate.finish_reason.as_deref() {
            Some("FINISH_REASON_UNSPECIFIED") | None if !blocked => return Ok(false),
            // The model wrote a call that its own server could not read: nothing of it is here.
            Some("MALFORMED_FUNCTION_CALL") => return Err(Fault::bad("a call that its own server cannot read")),
            reason => self.finish(reason.unwrap_or("SAFETY"), said),
        }
        Ok(true)
    }

    fn part(&mut self, part: Value, said: &mut Said) {
        let is_thought = part.get("thought").is_some_and(|thought| *thought == json!(true));
        let signature = part.get("thoughtSignature").and_then(Value::as_str);
        self.signed |= signature.is_some();
        said.hold(signature.map_or(0, str::len));
        if let Some(text) = part.get("text").and_then(Value::as_str) {
            if is_thought { said.reasoning(text.to_owned()) } else { said.text(text.to_owned()) }
        }
        if let Some(call) = part.get("functionCall") {
            let field = |name: &str| call.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
            let arguments = asked::written(call.get("args").cloned());
            said.hold(arguments.len());
            self.calls.push(completed(field("id"), field("name"), arguments));
        }
        // Thoughts that are not signed are for people alone.
        if signature.is_some() || !is_thought {
            self.keep(part);
        }
    }

    /// Texts that follow each other are kept as one, unless they are signed.
    fn keep(&mut self, part: Value) {
        let plain = |part: &Value| part.as_object().is_some_and(|part| part.len() == 1 && part.contains_key("text"));
        match self.parts.last_mut() {
            Some(last) if plain(last) && plain(&part) => {
                if let (Some(Value::String(kept)), Some(more)) = (last.get_mut("text"), part["text"].as_str()) {
                    kept.push_str(more);
                }
            }
            Some(_) | None => self.parts.push(part),
        }
    }

    fn finish(&mut self, reason: &str, said: &mut Said) {
        let calls = std::mem::take(&mut self.calls);
        let called = !calls.is_empty();
        let ids: Vec<_> = calls.iter().map(|call| call.id.as_str()).collect();
        let echo = (called && self.signed).then(|| json!({ECHO: ids, "parts": std::mem::take(&mut self.parts)}));
        calls.into_iter().for_each(|call| said.call(call));
        if let Some(echo) = echo {
            said.echo(echo);
        }
        said.finish(match reason {
            // What some servers that speak the protocol say of calls.
            "STOP" | "FUNCTION_CALL" if called => Finish::ToolCalls,
            "STOP" => Finish::Stop,
            "MAX_TOKENS" => Finish::Length,
            "SAFETY" | "RECITATION" | "BLOCKLIST" | "PROHIBITED_CONTENT" | "SPII" | "IMAGE_SAFETY" => Finish::Filtered,
            other => Finish::Other(other.to_lowercase()),
        });
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Chunk {
    candidates: Option<Vec<Candidate>>,
    prompt_feedback: Option<Feedback>,
    usage_metadata: Option<Tokens>,
    error: Option<Value>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Candidate {
    content: Option<Content>,
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Content {
    parts: Option<Vec<Value>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Feedback {
    block_reason: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Tokens {
    prompt_token_count: Option<u64>,
    tool_use_prompt_token_count: Option<u64>,
    candidates_token_count: Option<u64>,
    thoughts_token_count: Option<u64>,
}

impl Tokens {
    /// Cached tokens are among those of the prompt; thoughts are not among those of the candidates.
    fn usage(&self) -> Usage {
        let sum = |counts: [Option<u64>; 2]| counts.into_iter().flatten().fold(0, u64::saturating_add);
        Usage {
            input_tokens: sum([self.prompt_token_count, self.tool_use_prompt_token_count]),
            output_tokens: sum([self.candidates_token_count, self.thoughts_token_count]),
            ..Usage::default()
        }
    }
}

#[cfg(test)]
#[path = "gemini_tests.rs"]
mod tests;
