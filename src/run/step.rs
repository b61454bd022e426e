//! Finished steps: what a later attempt, or a retry, does not make again.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Run, Usage};

/// What kind of step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepKind {
    /// A call of a language model.
    Model,
    /// A call of a tool.
    Tool,
    /// A question to a person; its result is `{"wait_id", "input"}`.
    Ask,
}

/// A finished step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// Its number in the run, from 1.
    pub step: u32,
    /// What kind of step.
    pub kind: StepKind,
    /// The model or tool.
    pub name: String,
    /// What it gave.
    pub result: Value,
    /// What it used.
    pub usage: Usage,
}

impl StepRecord {
    /// The step that a person's answer is: the last of `run`, which goes on with it.
    #[must_use]
    pub fn answer(run: &Run, wait_id: &str, input: &Value) -> Self {
        let result = json!({"wait_id": wait_id, "input": input});
        Self { step: run.steps, kind: StepKind::Ask, name: "ask".to_owned(), result, usage: Usage::default() }
    }
}
