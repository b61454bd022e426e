//! An agent that is a system prompt and a model: one model call, streamed.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use serde::Deserialize;
use serde_json::{Value, json};

use super::providers::{Chat, Piece, Provider};
use super::{Agent, AgentCard, AgentError, Answer, RunContext};
use crate::run::{Input, Message, Role, StepKind, StepRecord, Usage};

/// The number of the one step there is.
const STEP: u32 = 1;

/// What a [`ModelAgent`] is made of.
#[derive(Debug, Clone)]
pub struct ModelAgentOptions {
    /// The agent's name.
    pub name: String,
    /// The model, without its provider; `auto` is the provider's first.
    pub model: String,
    /// See [`AgentCard::version`].
    pub version: String,
    /// What the agent is good for.
    pub description: String,
    /// The system prompt.
    pub system: Option<String>,
    /// 0 to 2; the provider's own default when absent.
    pub temperature: Option<f64>,
    /// The most tokens of an answer.
    pub max_tokens: Option<u32>,
    /// See [`AgentCard::timeout`].
    pub timeout: Option<Duration>,
    /// See [`AgentCard::max_attempts`].
    pub max_attempts: Option<u32>,
}

impl ModelAgentOptions {
    /// An agent of version `1` called `name` on `model`, with nothing else said.
    pub fn new(name: impl Into<String>, model: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            model: model.into(),
            version: "1".to_owned(),
            description: String::new(),
            system: None,
            temperature: None,
            max_tokens: None,
            timeout: None,
            max_attempts: None,
        }
    }
}

/// The agent.
pub struct ModelAgent {
    options: ModelAgentOptions,
    provider: Arc<dyn Provider>,
}

/// The params of a run; they go before the agent's own settings.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Params {
    temperature: Option<f64>,
    max_tokens: Option<u32>,
}

impl ModelAgent {
    /// An agent whose model `provider` serves.
    pub fn new(options: ModelAgentOptions, provider: Arc<dyn Provider>) -> Self {
        Self { options, provider }
    }

    fn model(&self) -> String {
        format!("{}/{}", self.provider.name(), self.options.model)
    }

    fn chat(&self, context: &RunContext) -> Result<Chat, AgentError> {
        let params: Params = serde_json::from_value(Value::Object(context.spec().params.clone()))
            .map_err(|error| AgentError::permanent("invalid_params", error.to_string()))?;
        let system = self.options.system.iter().map(|system| Message { role: Role::System, content: system.clone() });
        let said = match context.input() {
            Input::Text(text) => vec![Message { role: Role::User, content: text.clone() }],
            Input::Messages(messages) => messages.clone(),
        };
        Ok(Chat {
            model: self.options.model.clone(),
            messages: system.chain(said).collect(),
            temperature: params.temperature.or(self.options.temperature),
            max_tokens: params.max_tokens.or(self.options.max_tokens),
        })
    }

    /// Makes the model call and keeps it as the run's step.
    async fn call(&self, context: &RunContext) -> Result<Value, AgentError> {
        let chat = self.chat(context)?;
        let asked: usize = chat.messages.iter().map(|message| message.content.len()).sum();
        context.step_started(STEP, StepKind::Model, self.model()).await?;
        let mut pieces = self.provider.chat(chat).await?;
        let (mut text, mut thought, mut finish, mut usage) = (String::new(), 0, None, None);
        while let Some(piece) = pieces.next().await {
            match piece? {
                Piece::Text(more) => {
                    text.push_str(&more);
                    context.delta(more).await?;
                }
                Piece::Reasoning(more) => {
                    thought += more.len();
                    context.reasoning(more).await?;
                }
                Piece::Finish(reason) => finish = Some(reason),
                Piece::Usage(counted) => usage = Some(counted),
            }
        }
        let usage = usage.unwrap_or_else(|| estimate(asked, text.len() + thought));
        context.message(text.as_str()).await?;
        let result = json!({"text": text, "finish_reason": finish});
        context.step_finished(STEP, StepKind::Model, self.model(), result.clone(), usage).await?;
        Ok(result)
    }
}

/// What a call has used whose provider does not say: about one token for four bytes.
fn estimate(asked: usize, said: usize) -> Usage {
    Usage { input_tokens: asked.div_ceil(4) as u64, output_tokens: said.div_ceil(4) as u64, estimated: true }
}

#[async_trait]
impl Agent for ModelAgent {
    fn card(&self) -> AgentCard {
        let options = &self.options;
        AgentCard {
            version: options.version.clone(),
            description: options.description.clone(),
            model: Some(self.model()),
            params_schema: json!({
                "$schema": "https://json-schema.org/draft/2020-12/schema",
                "type": "object",
                "additionalProperties": false,
                "properties": {
                    "temperature": {"type": "number", "minimum": 0, "maximum": 2,
                        "description": "How freely the model chooses; the agent's own unless given."},
                    "max_tokens": {"type": "integer", "minimum": 1, "maximum": u32::MAX,
                        "description": "The most tokens of the answer; the agent's own bound unless given."},
                },
            }),
            timeout: options.timeout,
            max_attempts: options.max_attempts,
            ..AgentCard::new(&options.name, "model")
        }
    }

    async fn run(&self, context: RunContext) -> Result<Answer, AgentError> {
        // A step that an earlier attempt has finished is not made again.
        let finished = context.finished_steps().iter().find(|record| record.step == STEP);
        let result = match finished {
            Some(StepRecord { result, .. }) => result.clone(),
            None => self.call(&context).await?,
        };
        let text = result.get("text").cloned().unwrap_or_default();
        let outcome = match result.get("finish_reason").and_then(Value::as_str) {
            Some("length") => "max_tokens",
            _ => "finished",
        };
        Ok(Answer { outcome: outcome.to_owned(), ..Answer::finished(text) })
    }
}
