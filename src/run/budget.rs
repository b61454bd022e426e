//! What a run may use, what it has reserved, and which bound it has reached.

use serde::{Deserialize, Serialize};

use super::{StepKind, Usage};

/// What a run may use at most, over all its attempts. A bound that is absent bounds nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Budget {
    /// Tokens read and written by models.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens: Option<u64>,
    /// Money, in millionths of the currency of the providers' prices.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost_micros: Option<u64>,
    /// Steps: calls of models and of tools.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<u32>,
    /// Running time, in milliseconds; waiting is excluded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_ms: Option<u64>,
}

/// A bound of a budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// [`Budget::tokens`].
    Tokens,
    /// [`Budget::cost_micros`].
    Cost,
    /// [`Budget::steps`].
    Steps,
    /// [`Budget::time_ms`].
    Time,
}

impl Bound {
    /// The outcome of a run that has reached it.
    #[must_use]
    pub fn outcome(self) -> &'static str {
        match self {
            Self::Tokens => "budget_tokens",
            Self::Cost => "budget_cost",
            Self::Steps => "budget_steps",
            Self::Time => "budget_time",
        }
    }
}

impl Budget {
    /// No bound at all.
    pub const NONE: Self = Self { tokens: None, cost_micros: None, steps: None, time_ms: None };

    /// Whatever both allow.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            tokens: lesser(self.tokens, other.tokens),
            cost_micros: lesser(self.cost_micros, other.cost_micros),
            steps: lesser(self.steps, other.steps),
            time_ms: lesser(self.time_ms, other.time_ms),
        }
    }

    /// The bound that `used` exceeds, if it exceeds one.
    #[must_use]
    pub fn exceeded(&self, used: Usage) -> Option<Bound> {
        if self.tokens.is_some_and(|most| used.tokens() > most) {
            return Some(Bound::Tokens);
        }
        self.cost_micros.is_some_and(|most| used.cost_micros > most).then_some(Bound::Cost)
    }
}

fn lesser<T: Ord>(one: Option<T>, other: Option<T>) -> Option<T> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

/// A step that has begun and is not finished. While its attempt goes on, its reservation counts as used; when the
/// attempt is lost it is charged. Of an attempt that is over it says that the step was cut off: nobody knows whether
/// what it does outside was done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenStep {
    /// Its number in the run, from 1.
    pub step: u32,
    /// What kind of step.
    pub kind: StepKind,
    /// The model or tool.
    pub name: String,
    /// The tool call that it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub call_id: Option<String>,
    /// The attempt that began it.
    pub attempt: u32,
    /// The most that it may use. Nothing once the attempt is over.
    #[serde(default)]
    pub reserved: Usage,
}
