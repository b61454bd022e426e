//! What a tool was when it was approved. Pure.
//!
//! A server may show one tool to the person who looks at it and another to the models that use it later. A pin is the
//! SHA-256 of all that a model is told of a tool: its name, its description, its parameters.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use rmcp::model::Tool;
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

/// The pin of a tool, 64 hex digits. The order in which a server writes the keys of its schema makes no difference.
#[must_use]
pub(super) fn pin(tool: &Tool) -> String {
    let told = json!([tool.name, tool.description, sorted(&Value::Object((*tool.input_schema).clone()))]);
    Sha256::digest(told.to_string()).iter().fold(String::new(), |mut hex, byte| {
        // Writing to a text does not fail.
        write!(hex, "{byte:02x}").unwrap_or_default();
        hex
    })
}

fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(entries) => {
            let sorted: BTreeMap<&String, Value> = entries.iter().map(|(key, value)| (key, sorted(value))).collect();
            Value::Object(sorted.into_iter().map(|(key, value)| (key.clone(), value)).collect::<Map<_, _>>())
        }
        Value::Array(items) => items.iter().map(sorted).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value.clone(),
    }
}

/// What is known of a server's tools.
#[derive(Debug)]
pub(super) struct Pins {
    pinned: BTreeMap<String, String>,
    /// The configuration names what is approved, and nothing else is.
    strict: bool,
    /// What has been complained about.
    told: BTreeSet<(String, String)>,
}

/// Whether a tool may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Approval {
    /// It is what was approved.
    Approved,
    /// Nobody has approved a tool of this name.
    Unknown,
    /// It is another than the one that was approved.
    Changed,
}

impl Pins {
    /// Those that the configuration has, or, if it has none, none yet.
    pub(super) fn new(approved: impl IntoIterator<Item = (String, String)>) -> Self {
        let pinned: BTreeMap<_, _> = approved.into_iter().collect();
        Self { strict: !pinned.is_empty(), pinned, told: BTreeSet::new() }
    }

    /// Judges a tool. The first of its name is approved unless the configuration knows better.
    pub(super) fn judge(&mut self, name: &str, pin: &str) -> Approval {
        match self.pinned.get(name) {
            Some(pinned) if pinned == pin => Approval::Approved,
            Some(_) => Approval::Changed,
            None if self.strict => Approval::Unknown,
            None => {
                self.pinned.insert(name.to_owned(), pin.to_owned());
                Approval::Approved
            }
        }
    }

    /// Whether this has not been complained about before.
    pub(super) fn is_news(&mut self, name: &str, pin: &str) -> bool {
        // A server that changes all the time is not to fill the memory.
        self.told.len() < 1_000 && self.told.insert((name.to_owned(), pin.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tool(text: &str) -> Tool {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn a_pin_is_of_all_that_a_model_is_told_and_of_nothing_else() {
        let one =
            tool(r#"{"name": "a", "description": "b", "inputSchema": {"type": "object", "properties": {"x": {}}}}"#);
        let same = tool(
            r#"{"name": "a", "title": "A", "inputSchema": {"properties": {"x": {}}, "type": "object"}, "description": "b"}"#,
        );
        assert_eq!(pin(&one), pin(&same));
        assert!(pin(&one).len() == 64 && pin(&one).bytes().all(|byte| byte.is_ascii_hexdigit()));
        for other in [
            r#"{"name": "b", "description": "b", "inputSchema": {"type": "object", "properties": {"x": {}}}}"#,
            r#"{"name": "a", "description": "b!", "inputSchema": {"type": "object", "properties": {"x": {}}}}"#,
            r#"{"name": "a", "inputSchema": {"type": "object", "properties": {"x": {}}}}"#,
            r#"{"name": "a", "description": "b", "inputSchema": {"type": "object", "properties": {"y": {}}}}"#,
        ] {
            assert_ne!(pin(&tool(other)), pin(&one), "{other}");
        }
    }

    #[test]
    fn the_first_is_approved_and_what_differs_from_it_is_not() {
        let mut pins = Pins::new([]);
        assert_eq!(pins.judge("a", "1"), Approval::Approved);
        assert_eq!(pins.judge("a", "2"), Approval::Changed);
        assert_eq!(pins.judge("a", "1"), Approval::Approved, "it is again what it was");
        assert_eq!(pins.judge("b", "2"), Approval::Approved);
        assert!(pins.is_news("a", "2") && !pins.is_news("a", "2") && pins.is_news("a", "3"));
    }

    #[test]
    fn what_the_configuration_approves_is_all_there_is() {
        let mut pins = Pins::new([("a".to_owned(), "1".to_owned())]);
        assert_eq!(pins.judge("a", "1"), Approval::Approved);
        assert_eq!(pins.judge("a", "2"), Approval::Changed);
        assert_eq!(pins.judge("b", "1"), Approval::Unknown);
    }
}
