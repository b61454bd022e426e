//! What foreign producers wish for: from a message, as somebody else's system wrote it, to a wish for a run.
//!
//! Pure: no queue, no store, no clock. What takes messages in and makes runs of them is the engine's.

use std::collections::BTreeMap;

use serde::Deserialize as _;
use serde_json::{Map, Value};

use crate::run::Input;

#[cfg(test)]
mod tests;

/// The longest key of a message, in bytes.
const MAX_KEY: usize = 255;

/// The field that holds the input, unless the mapping names one.
const INPUT: &str = "input";

/// How the messages of one source are read: JSON objects, in which a field of an object within is named as
/// `outer.inner`. Fields that nobody names are ignored.
#[derive(Debug, Clone, PartialEq)]
pub struct Mapping {
    /// The field that holds the producer's own key for the message: a text of 1 to 255 bytes without control
    /// characters, or a whole number. Has to be there.
    pub key_field: String,
    /// The agent of messages that name none.
    pub agent: Option<String>,
    /// The field that names the agent.
    pub agent_field: Option<String>,
    /// The field that holds the input: a text, or messages with role and content; has to be there. `None`: the field
    /// `input`, and for messages that lack it, the whole message as text.
    pub input_field: Option<String>,
    /// The field that holds the priority: a whole number, also as text; 0 when it is missing.
    pub priority_field: String,
    /// The params of each run.
    pub params: Map<String, Value>,
    /// Labels of each run.
    pub metadata: BTreeMap<String, String>,
}

/// What a message wishes for.
#[derive(Debug, Clone, PartialEq)]
pub struct Wish {
    /// The producer's own key.
    pub key: String,
    /// Which agent.
    pub agent: String,
    /// What it is given.
    pub input: Input,
    /// As the producer gave it, without bounds.
    pub priority: i64,
    /// The mapping's params.
    pub params: Map<String, Value>,
    /// The mapping's labels.
    pub metadata: BTreeMap<String, String>,
}

impl Mapping {
    /// Reads `message`, or says why it cannot be read, for a person.
    pub fn map(&self, message: &[u8]) -> Result<Wish, String> {
        let parsed = serde_json::from_slice(message).map_err(|error| format!("the message is not JSON: {error}"))?;
        let Value::Object(fields) = parsed else { return Err("expected a JSON object".to_owned()) };
        let wrong = |field: &str, expected: &str| Err(format!("{field}: expected {expected}"));

        let key = match find(&fields, &self.key_field) {
            Some(Value::String(key)) => Some(key.clone()),
            Some(Value::Number(key)) if key.is_i64() || key.is_u64() => Some(key.to_string()),
            _ => None,
        };
        let fits = |key: &String| (1..=MAX_KEY).contains(&key.len()) && !key.contains(char::is_control);
        let Some(key) = key.filter(fits) else {
            return wrong(&self.key_field, "the message's own key, a text of 1 to 255 bytes or a whole number");
        };

        let agent_field = self.agent_field.as_deref();
        let agent = match (agent_field.and_then(|field| find(&fields, field)), &self.agent) {
            (Some(Value::String(agent)), _) => agent.clone(),
            (None, Some(agent)) => agent.clone(),
            (Some(_) | None, _) => return wrong(agent_field.unwrap_or("agent"), "the name of an agent"),
        };

        let input = match (find(&fields, self.input_field.as_deref().unwrap_or(INPUT)), &self.input_field) {
            (Some(input), field) => {
                let field = field.as_deref().unwrap_or(INPUT);
                Input::deserialize(input).map_err(|error| format!("{field}: {error}"))?
            }
            (None, Some(field)) => return wrong(field, "a text or an array of messages"),
            (None, None) => Input::Text(String::from_utf8_lossy(message).into_owned()),
        };

        let priority = match find(&fields, &self.priority_field) {
            None => Some(0),
            Some(Value::Number(priority)) => priority.as_i64(),
            Some(Value::String(priority)) => priority.trim().parse().ok(),
            Some(_) => None,
        };
        let Some(priority) = priority else { return wrong(&self.priority_field, "a whole number") };

        Ok(Wish { key, agent, input, priority, params: self.params.clone(), metadata: self.metadata.clone() })
    }
}

/// The field at `path`; null is as good as not there.
fn find<'v>(fields: &'v Map<String, Value>, path: &str) -> Option<&'v Value> {
    let mut names = path.split('.');
    let outer = fields.get(names.next()?)?;
    names.try_fold(outer, |value, name| value.get(name)).filter(|value| !value.is_null())
}
