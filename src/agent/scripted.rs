//! An agent that does what its params say: for demos, tests and benches. No model is behind it, and it
//! says so.
//!
//! What it says is a list of tokens that follows from its input, its params and what was handed to it, so that a
//! later attempt finds the place up to which its finished steps have said it.

use std::collections::VecDeque;
use std::time::Duration;

use async_trait::async_trait;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Agent, AgentCard, AgentError, Answer, RunContext};
use crate::run::{Message, StepKind, Usage};

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
    ask_at: Option<u64>,
    ask_deadline_ms: Option<u64>,
    hand_off_at: Option<u64>,
    say_history: bool,
}

/// The step that is being made.
struct Step {
    number: u32,
    tokens: u64,
    text: String,
}

impl Step {
    fn new(number: u32) -> Self {
        Self { number, tokens: 0, text: String::new() }
    }

    /// Keeps the step; the next one begins. The number of the finished one.
    async fn finish(&mut self, context: &RunContext) -> Result<u32, AgentError> {
        let next = Self::new(self.number + 1);
        let Self { number, text, .. } = std::mem::replace(self, next);
        context.step_finished(number, StepKind::Model, "script", text.into(), Usage::default()).await?;
        Ok(number)
    }
}

/// What is still to be said.
struct Plan<'a> {
    /// Goes first.
    ahead: VecDeque<String>,
    rest: Box<dyn Iterator<Item = String> + Send + 'a>,
}

impl<'a> Plan<'a> {
    fn new(script: &Script, history: usize, text: &'a str) -> Self {
        let ahead = script.say_history.then(|| format!("h{history} ")).into_iter().collect();
        let rest: Box<dyn Iterator<Item = String> + Send + 'a> = match script.tokens {
            Some(tokens) => Box::new((1..=tokens).map(|number| format!("t{number} "))),
            None => Box::new(text.split_inclusive(char::is_whitespace).map(str::to_owned)),
        };
        Self { ahead, rest }
    }

    fn next(&mut self) -> Option<String> {
        self.ahead.pop_front().or_else(|| self.rest.next())
    }

    /// The words of a message that was handed to the run come next, after what was `said`.
    fn hear(&mut self, message: &Message, said: &str) {
        let before = self.ahead.back().map_or(said, String::as_str);
        let gap = !before.is_empty() && !before.ends_with(char::is_whitespace);
        let text = message.content.text();
        let words = text.split_whitespace().enumerate();
        let tokens = words.map(|(index, word)| format!("{}{word} ", if gap && index == 0 { " " } else { "" }));
        self.ahead.extend(tokens);
    }
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
                "ask_at": {"type": "integer", "minimum": 1,
                    "description": "Asks a person before saying this token, and goes on after the answer."},
                "ask_deadline_ms": {"type": "integer", "minimum": 1, "maximum": 31_536_000_000_u64,
                    "description": "How long the answer may take."},
                "hand_off_at": {"type": "integer", "minimum": 1,
                    "description": "Hands its thread to people before saying this token."},
                "say_history": {"type": "boolean",
                    "description": "First says how many messages of its thread it was shown, as `h3 `."},
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
    fn goes_on(&self) -> bool {
        true
    }

    fn card(&self) -> AgentCard {
        self.card.clone()
    }

    async fn run(&self, context: RunContext) -> Result<Answer, AgentError> {
        let script: Script = serde_json::from_value(Value::Object(context.spec().params.clone()))
            .map_err(|error| AgentError::permanent("invalid_params", error.to_string()))?;
        let in_thread = context.spec().thread.is_some();
        let finished = context.finished_steps();
        let keeps = in_thread || script.step_tokens.is_some() || script.ask_at.is_some();
        let text = if in_thread { all_text(&context) } else { context.input().last_text().into_owned() };
        let mut plan = Plan::new(&script, context.history().len(), &text);
        let (mut said, mut tokens) = (String::new(), 0_u64);
        // Up to where earlier attempts have said it.
        hear_again(&mut plan, &context, 0, &said);
        for record in finished {
            let text = record.result.as_str().filter(|_| record.kind == StepKind::Model).unwrap_or_default();
            let until = said.len() + text.len();
            while said.len() < until {
                let Some(token) = plan.next() else { break };
                said.push_str(&token);
                tokens += 1;
            }
            hear_again(&mut plan, &context, record.step, &said);
        }
        let answer = finished.iter().rfind(|record| record.kind == StepKind::Ask);
        if let Some(answer) = answer.filter(|answer| finished.last() == Some(answer)) {
            context.custom("answer", answer.result.get("input").cloned().unwrap_or_default()).await?;
        }
        let mut step = Step::new(finished.last().map_or(0, |record| record.step) + 1);
        loop {
            let token = plan.next();
            let number = tokens + 1;
            if script.hand_off_at == Some(number) {
                context.hand_off("the script hands off").await?;
            }
            if script.ask_at == Some(number) && answer.is_none() {
                if !step.text.is_empty() {
                    step.finish(&context).await?;
                }
                let question = json!({"question": format!("May the script say token {number}?")});
                return Err(context.ask(question, script.ask_deadline_ms.map(Duration::from_millis)));
            }
            if script.hang_at == Some(number) {
                std::future::pending::<()>().await;
            }
            if script.fail_at == Some(number) {
                return Err(fault(script.error, number));
            }
            let Some(token) = token else {
                if in_thread && !step.text.is_empty() {
                    step.finish(&context).await?;
                }
                if !steered(&mut plan, &context, &step, &said).await? {
                    break;
                }
                continue;
            };
            if keeps && step.text.is_empty() {
                context.step_started(step.number, StepKind::Model, "script").await?;
            }
            if script.delay_ms > 0 {
                tokio::time::sleep(Duration::from_millis(script.delay_ms)).await;
            }
            said.push_str(&token);
            step.text.push_str(&token);
            step.tokens += 1;
            tokens = number;
            context.delta(token).await?;
            if script.step_tokens == Some(step.tokens) {
                step.finish(&context).await?;
                steered(&mut plan, &context, &step, &said).await?;
            }
        }
        context.message(said.clone()).await?;
        let usage = Usage { output_tokens: said.split_whitespace().count() as u64, ..Usage::default() };
        Ok(Answer { usage, ..Answer::finished(said) })
    }
}

/// All that the run is given to say.
fn all_text(context: &RunContext) -> String {
    let messages = context.input().clone().into_messages();
    messages.iter().map(|message| message.content.text()).collect::<Vec<_>>().join(" ")
}

/// Puts what earlier attempts have taken after step `step` into its place.
fn hear_again(plan: &mut Plan<'_>, context: &RunContext, step: u32, said: &str) {
    for (_, message) in context.taken_steers().iter().filter(|(after, _)| *after == step) {
        plan.hear(message, said);
    }
}

/// Takes what was handed to the run before `step` begins. Whether there was anything.
async fn steered(plan: &mut Plan<'_>, context: &RunContext, step: &Step, said: &str) -> Result<bool, AgentError> {
    let steers = context.take_steers(step.number - 1).await?;
    steers.iter().for_each(|steer| plan.hear(steer, said));
    Ok(!steers.is_empty())
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

#[cfg(test)]
#[path = "scripted_tests.rs"]
mod tests;
