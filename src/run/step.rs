//! Finished steps: what a later attempt, or a retry, does not make again.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Usage;

/// What kind of step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepKind {
    /// A call of a language model.
    Model,
    /// A call of a tool.
    Tool,
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
