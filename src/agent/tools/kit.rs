//! What tests of tools stand on.

use serde_json::json;

use super::*;
use crate::agent::kit::{attempt, spec};
use crate::run::Input;

/// A run's context.
pub(super) fn context() -> RunContext {
    attempt(spec("test", Input::Text(String::new()), json!({})), Vec::new()).0
}

/// Calls `tool` as a model would, with key `key-1`.
pub(super) async fn make(tool: &Declared, arguments: impl ToString) -> Outcome {
    tool.make(&asked(arguments), "key-1", &context()).await.unwrap()
}

/// What a model wants to be called.
pub(super) fn asked(arguments: impl ToString) -> crate::agent::providers::ToolCall {
    crate::agent::providers::ToolCall {
        id: "call-1".to_owned(),
        name: "tool".to_owned(),
        arguments: arguments.to_string(),
    }
}
