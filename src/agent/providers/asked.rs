//! What the protocols share in how a chat is asked.

use std::borrow::Cow;

use serde_json::{Map, Value, json};

use super::{ToolCall, Turn};
use crate::clock::{Clock, SystemClock};
use crate::run::{Content, Message, Part, Role, Source};

/// A chat has something that the protocol cannot say. Text for people.
#[derive(Debug)]
pub(super) struct Unfit(pub(super) String);

/// A request to a provider.
#[derive(Debug)]
pub(super) struct Request {
    /// What follows the base URL, from its slash on.
    pub(super) path: String,
    /// What is posted there.
    pub(super) body: Value,
}

/// A part of a message, lent out.
#[derive(Clone, Copy)]
pub(super) enum Said<'a> {
    Text(&'a str),
    Image(&'a Source),
    Audio(&'a Source),
}

/// Makes the protocol's parts of what a message says.
pub(super) fn parts(content: &Content, make: impl Fn(Said<'_>) -> Result<Value, Unfit>) -> Result<Vec<Value>, Unfit> {
    match content {
        Content::Text(text) => Ok(vec![make(Said::Text(text))?]),
        Content::Parts(parts) => {
            let make = |part: &Part| match part {
                Part::Text { text } => make(Said::Text(text)),
                Part::Image { source } => make(Said::Image(source)),
                Part::Audio { source } => make(Said::Audio(source)),
            };
            parts.iter().map(make).collect()
        }
    }
}

/// The text of a message that may be nothing else.
pub(super) fn only_text(message: &Message) -> Result<Cow<'_, str>, Unfit> {
    let is_text = |part: &Part| matches!(part, Part::Text { .. });
    if message.content.parts().is_none_or(|parts| parts.iter().all(is_text)) {
        return Ok(message.content.text());
    }
    let whose = match message.role {
        Role::System => "instructions",
        Role::User | Role::Assistant => "messages of the model itself",
    };
    Err(Unfit(format!("takes no images and no audio in {whose}")))
}

/// The instructions that a conversation begins with, and what follows. For protocols that keep them apart.
pub(super) fn instructions(turns: &[Turn]) -> Result<(Option<String>, &[Turn]), Unfit> {
    let leading = turns.iter().map_while(|turn| match turn {
        Turn::Said(message) if message.role == Role::System => Some(only_text(message)),
        Turn::Said(_) | Turn::Called { .. } | Turn::Returned { .. } => None,
    });
    let leading = leading.collect::<Result<Vec<_>, _>>()?;
    let rest = &turns[leading.len()..];
    let text = leading.join("\n\n");
    Ok((Some(text).filter(|text| !text.trim().is_empty()), rest))
}

/// The instructions, with words that ask for an answer by a schema: for what a protocol cannot be told otherwise.
pub(super) fn by_words(system: Option<String>, schema: &Value) -> Option<String> {
    let words = format!(
        "Give your final answer as one JSON document that follows this JSON Schema, without anything around it:\n{schema}"
    );
    Some(system.map_or_else(|| words.clone(), |system| format!("{system}\n\n{words}")))
}

/// An instruction in the middle of a conversation, for protocols that take instructions only before it: it is told
/// in the place of the person, marked.
pub(super) fn instruction(message: &Message) -> Result<String, Unfit> {
    Ok(format!("<system>\n{}\n</system>", only_text(message)?))
}

/// The arguments of a call as an object, which most servers insist on: what the model wrote, or an object around it
/// when that is no object.
pub(super) fn arguments(call: &ToolCall) -> Map<String, Value> {
    match serde_json::from_str(&call.arguments) {
        Ok(Value::Object(object)) => object,
        Ok(_) | Err(_) => Map::from_iter([("malformed_arguments".to_owned(), Value::from(call.arguments.as_str()))]),
    }
}

/// The same as text; what the model wrote, when it is an object.
pub(super) fn arguments_text(call: &ToolCall) -> Cow<'_, str> {
    match serde_json::from_str::<Map<String, Value>>(&call.arguments) {
        Ok(_) => Cow::Borrowed(&call.arguments),
        Err(_) => Cow::Owned(Value::Object(arguments(call)).to_string()),
    }
}

/// What [`Piece::Echo`](super::Piece::Echo) holds for a protocol, when it is that protocol's and still belongs to
/// these calls. `id` finds the id of a call in one of its entries.
pub(super) fn echoed<'a>(
    echo: Option<&'a Value>,
    protocol: &str,
    calls: &[ToolCall],
    id: impl Fn(&Value) -> Option<&str>,
) -> Option<&'a Vec<Value>> {
    let entries = echo?.get(protocol)?.as_array()?;
    entries.iter().filter_map(id).eq(calls.iter().map(|call| call.id.as_str())).then_some(entries)
}

/// A data URL.
pub(super) fn data_url(media_type: &str, base64: &str) -> String {
    format!("data:{media_type};base64,{base64}")
}

/// Where an image is, as a URL.
pub(super) fn image_url(source: &Source) -> Cow<'_, str> {
    match source {
        Source::Url(url) => Cow::Borrowed(url),
        Source::Data { media_type, base64 } => Cow::Owned(data_url(media_type, base64)),
    }
}

/// The ids that are made up here begin so.
const MADE_UP: &str = "rc_";

/// An id for a call that came without one. Never the same twice.
pub(super) fn made_up_id() -> String {
    format!("{MADE_UP}{}", SystemClock.id().simple())
}

/// Whether an id was made up here.
pub(super) fn is_made_up(id: &str) -> bool {
    id.starts_with(MADE_UP)
}

/// The arguments of a call as text: some servers send them as an object. Tools without parameters are called with
/// nothing by some models.
pub(super) fn written(arguments: Option<Value>) -> String {
    match arguments {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text,
        Some(other) => other.to_string(),
    }
}

/// The call, with what it lacks made up.
pub(super) fn completed(id: String, name: String, arguments: String) -> ToolCall {
    let id = if id.is_empty() { made_up_id() } else { id };
    let arguments = if arguments.trim().is_empty() { "{}".to_owned() } else { arguments };
    ToolCall { id, name, arguments }
}

/// How OpenAI is told of a schema. It promises to follow one only when every object in it has all its properties
/// required and no others, and refuses the promise for all others.
pub(super) fn is_strict(schema: &Value) -> bool {
    match schema {
        Value::Object(object) => {
            let properties = object.get("properties").and_then(Value::as_object);
            let required = object.get("required").and_then(Value::as_array);
            let all_required = properties.is_none_or(|properties| {
                properties.keys().all(|key| required.is_some_and(|required| required.contains(&json!(key))))
            });
            let is_object = properties.is_some() || object.get("type") == Some(&json!("object"));
            let closed = !is_object || object.get("additionalProperties") == Some(&json!(false));
            closed && all_required && object.values().all(is_strict)
        }
        Value::Array(items) => items.iter().all(is_strict),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => true,
    }
}
