//! An agent that does what its params say: for demos, tests and benches. No model is behind it, and it
//! says so.

use std::time::Duration;

use async_trait::async_trait;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Agent, AgentCard, AgentError, Answer, RunContext};
use crate::run::{StepKind, Usage};

/// The scripted agent.
pub struct ScriptedAgent {
    card: AgentCard,
}

/// Its params.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Script {
    tokens: Option<u64>,
    delay_ms: u64,
    fail_at: Option<u64>,
    error: Fault,
    hang_at: Option<u64>,
    step_tokens: Option<u64>,
}

/// The step that is being made.
struct Step {
    number: u32,
    text: String,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Fault {
    #[default]
    Transient,
    Permanent,
    Panic,
}

impl ScriptedAgent {
    /// An agent called `name`.
    pub fn new(name: impl Into<String>) -> Self {
        let mut card = AgentCard::new(name, "scripted");
        card.description = "Deterministic and scripted, for demos, tests and benches: no model is behind it. \
            Says its input word by word, or as many tokens as its params ask for."
            .to_owned();
        card.scripted = true;
        card.params_schema = json!({
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "type": "object",
            "additionalProperties": false,
            "properties": {
                "tokens": {"type": "integer", "minimum": 0, "maximum": 10_000_000,
                    "description": "How many events `t1 `, `t2 `, … to say, instead of the input."},
                "delay_ms": {"type": "integer", "minimum": 0, "maximum": 3_600_000,
                    "description": "The pause before each token."},
                "fail_at": {"type": "integer", "minimum": 1,
                    "description": "Fails instead of saying this token, in every attempt."},
                "error": {"enum": ["transient", "permanent", "panic"],
                    "description": "How it fails; `transient` unless given."},
                "hang_at": {"type": "integer", "minimum": 1,
                    "description": "Waits for ever instead of saying this token."},
                "step_tokens": {"type": "integer", "minimum": 1,
                    "description": "Makes a step of so many tokens each; a later attempt does not say them again."},
            },
        });
        Self { card }
    }

    /// The agent described by `card`, whose kind and schema are this agent's own.
    #[must_use]
    pub fn with_card(card: AgentCard) -> Self {
        let own = Self::new("").card;
        let description = if card.description.is_empty() { own.description } else { card.description };
        Self {
            card: AgentCard { kind: own.kind, scripted: true, params_schema: own.params_schema, description, ..card },
        }
    }
}

#[async_trait]
impl Agent for ScriptedAgent {
    fn card(&self) -> AgentCard {
        self.card.clone()
    }

    async fn run(&self, context: RunContext) -> Result<Answer, AgentError> {
        let script: Script = serde_json::from_value(Value::Object(context.spec().params.clone()))
            .map_err(|error| AgentError::permanent("invalid_params", error.to_string()))?;
        let mut words = context.input().last_text().split_inclusive(char::is_whitespace);
        let finished = context.finished_steps();
        let mut said: String = finished.iter().filter_map(|record| record.result.as_str()).collect();
        let first = 1 + script.step_tokens.map_or(0, |tokens| tokens * finished.len() as u64);
        let mut step = Step { number: finished.len() as u32 + 1, text: String::new() };
        for number in 1_u64.. {
            let text = match script.tokens {
                Some(tokens) if number > tokens => None,
                Some(_) => Some(format!("t{number} ")),
                None => words.next().map(str::to_owned),
            };
            if number < first && text.is_some() {
                continue;
            }
            if script.hang_at == Some(number) {
                std::future::pending::<()>().await;
            }
            if script.fail_at == Some(number) {
                return Err(fault(script.error, number));
            }
            let Some(text) = text else { break };
            if script.step_tokens.is_some() && step.text.is_empty() {
                context.step_started(step.number, StepKind::Model, "script").await?;
            }
            if script.delay_ms > 0 {
                tokio::time::sleep(Duration::from_millis(script.delay_ms)).await;
            }
            said.push_str(&text);
            step.text.push_str(&text);
            context.delta(text).await?;
            if script.step_tokens.is_some_and(|tokens| number % tokens == 0) {
                let Step { number, text } = step;
                context.step_finished(number, StepKind::Model, "script", text.into(), Usage::default()).await?;
                step = Step { number: number + 1, text: String::new() };
            }
        }
        context.message(said.clone()).await?;
        let usage = Usage { output_tokens: said.split_whitespace().count() as u64, ..Usage::default() };
        Ok(Answer { usage, ..Answer::finished(said) })
    }
}

fn fault(fault: Fault, number: u64) -> AgentError {
    let message = format!("the script fails at token {number}");
    match fault {
        Fault::Transient => AgentError::transient("scripted_transient", message),
        Fault::Permanent => AgentError::permanent("scripted_permanent", message),
        #[expect(clippy::panic, reason = "the script asks for a panic, to show that it harms nobody else")]
        Fault::Panic => panic!("{message}"),
    }
}
