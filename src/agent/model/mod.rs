//! An agent that is a model with tools: it calls the model, does what the model wants to be done, and shows it what that
//! gave, until it has finished or a bound is reached. Each call is a finished step before the next begins, so that an
//! attempt after a crash goes on from there.
//!
//! | file | owns |
//! | --- | --- |
//! | `mod.rs` | the agent and its loop |
//! | `talk.rs` | the conversation: the fold of the finished steps, pure |
//! | `call.rs` | one model call: its reservation, its stream, what it used |
//! | `act.rs` | tool calls: approval, calls that were cut off, several at once, Runcast's own tools |
//! | `fallback.rs` | what answers where no model does |

mod act;
mod call;
mod fallback;
mod talk;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::{Value, json};

use self::act::{Done, Tools, own_tool};
use self::talk::{Returned, Said, Talk};
use super::providers::Provider;
use super::tools::Toolbox;
use super::{Agent, AgentCard, AgentError, Answer, Manners, RunContext};
use crate::run::{Budget, Content, Message, Price, Role, StepKind};

pub use act::is_own_tool;
pub use fallback::{Fallback, InvalidFallback};

/// How many steps a run may have unless its agent says otherwise: a model that goes round in circles is stopped.
pub const MAX_STEPS: u32 = 100;

/// How often a model is told that its answer is not what was asked for.
const MAX_REFUSED: u32 = 2;

/// The most tasks of a plan.
const MAX_TASKS: usize = 50;

const PLANNER: &str = "You are the planner. Do not do the task yet. Write the plan for it: the fewest tasks that lead \
    to the result, in their order, each one sentence. Answer with a JSON object {\"tasks\": [\"...\"]} and nothing else.";

const SUPERVISOR: &str = "You are the supervisor of this plan. Do its tasks in order. Call update_plan with all tasks and \
    their statuses whenever one is done or the plan has to change. When nothing is left to be done, give the result.";

/// What a [`ModelAgent`] is made of.
#[derive(Clone)]
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
    /// What the model may call.
    pub tools: Vec<Arc<dyn Toolbox>>,
    /// Which of Runcast's own tools it may call: `complete`, `ask`, `hand_off`.
    pub own_tools: Vec<String>,
    /// Calls of one answer are made at once.
    pub parallel_tools: bool,
    /// The most steps of a run.
    pub max_steps: u32,
    /// JSON Schema of the run's output.
    pub output_schema: Option<Arc<Value>>,
    /// A planner writes a plan first, which a supervisor carries out and revises.
    pub plan: bool,
    /// How long people have to answer what they are asked.
    pub answer_within: Option<Duration>,
    /// What answers when no model does.
    pub fallback: Option<Fallback>,
    /// Why no model can be asked at all, such as a missing key: said of an agent with a fallback before it has run.
    pub lacking: Option<String>,
    /// The most that the model, or one of those behind it, costs.
    pub price: Option<Price>,
    /// See [`AgentCard::budget`].
    pub budget: Budget,
    /// See [`AgentCard::timeout`].
    pub timeout: Option<Duration>,
    /// See [`AgentCard::max_attempts`].
    pub max_attempts: Option<u32>,
    /// See [`AgentCard::manners`].
    pub manners: Manners,
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
            tools: Vec::new(),
            own_tools: Vec::new(),
            parallel_tools: false,
            max_steps: MAX_STEPS,
            output_schema: None,
            plan: false,
            answer_within: None,
            fallback: None,
            lacking: None,
            price: None,
            budget: Budget::NONE,
            timeout: None,
            max_attempts: None,
            manners: Manners::default(),
        }
    }
}

/// The agent.
pub struct ModelAgent {
    options: ModelAgentOptions,
    provider: Arc<dyn Provider>,
    /// What the run's output is checked against.
    schema: Option<Arc<jsonschema::Validator>>,
    /// Why the fallback answered the last run.
    away: Mutex<Option<String>>,
}

/// The params of a run; they go before the agent's own settings.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Params {
    temperature: Option<f64>,
    /// A float because to JSON Schema 5.0 is an integer too.
    max_tokens: Option<f64>,
}

impl ModelAgent {
    /// An agent whose model `provider` serves.
    ///
    /// # Errors
    /// The output's schema is no JSON Schema, or a tool has a name that is none of Runcast's own.
    pub fn new(options: ModelAgentOptions, provider: Arc<dyn Provider>) -> Result<Self, String> {
        let schema = options.output_schema.as_deref().map(jsonschema::validator_for).transpose();
        let schema = schema.map_err(|error| format!("output_schema is not a JSON Schema: {error}"))?;
        if let Some(name) = options.own_tools.iter().find(|name| own_tool(name, None).is_none()) {
            return Err(format!("there is no tool {name:?}"));
        }
        let away = options.lacking.clone().filter(|_| options.fallback.is_some());
        let schema = schema.map(Arc::new);
        Ok(Self { options, provider, schema, away: Mutex::new(away) })
    }

    fn model(&self) -> String {
        format!("{}/{}", self.provider.name(), self.options.model)
    }

    fn params(&self, context: &RunContext) -> Result<Params, AgentError> {
        serde_json::from_value(Value::Object(context.spec().params.clone()))
            .map_err(|error| AgentError::permanent("invalid_params", error.to_string()))
    }

    /// What the first model call is given: the instructions, what was said before in the thread, and the input.
    fn opening(&self, context: &RunContext) -> Vec<Message> {
        let system = self.options.system.iter().map(|system| instruction(system));
        system.chain(context.history().iter().cloned()).chain(context.input().clone().into_messages()).collect()
    }

    /// The conversation as the finished steps leave it. What was handed to the run goes to its place.
    fn talk(&self, context: &RunContext) -> Talk {
        let taken = |step: u32| {
            let taken = context.taken_steers().iter().filter(move |(after, _)| *after == step);
            taken.map(|(_, message)| message.clone())
        };
        let mut talk = Talk::new(self.opening(context));
        talk.say(taken(0));
        for record in context.finished_steps() {
            talk.take(record);
            self.supervise(&mut talk);
            self.review(&mut talk);
            talk.say(taken(record.step));
        }
        talk
    }

    /// Tells the model of the plan, once.
    fn supervise(&self, talk: &mut Talk) {
        // Its text is taken away when the model has been told.
        let Some(plan) = talk.plan.take_if(|plan| !plan.text.is_empty()) else { return };
        let tasks: Vec<_> =
            tasks(&plan.text).iter().enumerate().map(|(n, task)| format!("{}. {task}", n + 1)).collect();
        let content = Content::Text(format!("{SUPERVISOR}\n\nThe plan:\n{}", tasks.join("\n")));
        talk.turns.push(super::providers::Turn::Said(Message { role: Role::User, content }));
        talk.plan = Some(Said { text: String::new(), ..plan });
    }

    /// Whether the last answer is what was asked for; if not, the model is told.
    fn review(&self, talk: &mut Talk) {
        let (Some(schema), Some(said)) = (&self.schema, &talk.last) else { return };
        if talk.refused < MAX_REFUSED
            && let Err(why) = checked(&said.text, schema)
        {
            talk.refuse(format!("Your answer is not what was asked for: {why}. Answer with the JSON document alone."));
        }
    }

    /// What the model may call now.
    async fn tools(&self) -> Result<Tools, AgentError> {
        let options = &self.options;
        let schema = options.output_schema.as_deref();
        let planning = options.plan.then_some(act::UPDATE_PLAN);
        let names = options.own_tools.iter().map(String::as_str).chain(planning);
        let own: BTreeMap<_, _> = names.filter_map(|name| own_tool(name, schema)).collect();
        let mut declared = BTreeMap::new();
        for toolbox in &options.tools {
            let tools = toolbox.tools().await.map_err(|why| AgentError::transient("tools_unavailable", why))?;
            for tool in tools {
                let name = tool.tool.card().name;
                if own.contains_key(&*name) || declared.insert(name.clone(), tool).is_some() {
                    let message = format!("two of the agent's tools are called {name:?}");
                    return Err(AgentError::permanent("ambiguous_tools", message));
                }
            }
        }
        let (parallel, answer_within) = (options.parallel_tools, options.answer_within);
        Ok(Tools { own, declared, parallel, answer_within, schema: self.schema.clone() })
    }

    /// How the run ends with the model's last answer.
    fn answer(&self, said: &Said) -> Result<Answer, AgentError> {
        let outcome = match said.finish_reason.as_deref() {
            Some("length") => "max_tokens",
            Some("content_filter") => "content_filter",
            Some(bound) if bound.starts_with("budget_") => bound,
            _ => "finished",
        };
        let output = match &self.schema {
            None => Value::from(said.text.as_str()),
            Some(schema) => checked(&said.text, schema).map_err(|why| {
                let message = format!("the model's answer does not follow output_schema: {why}");
                AgentError::permanent("invalid_output", message)
            })?,
        };
        Ok(Answer { outcome: outcome.to_owned(), ..Answer::finished(output) })
    }

    async fn converse(&self, context: &RunContext, talk: &mut Talk) -> Result<Answer, AgentError> {
        let params = self.params(context)?;
        if self.options.plan && talk.plan.is_none() {
            self.make_plan(context, &params, talk).await?;
        }
        loop {
            if !talk.pending.is_empty()
                && let Done::Completed(result) = self.tools().await?.act(context, talk).await?
            {
                return Ok(Answer::finished(result));
            }
            // Nothing can have been handed to a run that has only begun, or it is seen at the next step.
            if talk.pending.is_empty() && talk.step > 0 {
                talk.say(context.take_steers(talk.step).await?);
            }
            if let Some(said) = &talk.last {
                return self.answer(said);
            }
            if talk.step >= self.options.max_steps {
                let text = Value::from(talk.last_text());
                return Ok(Answer { outcome: "max_steps".to_owned(), ..Answer::finished(text) });
            }
            let tools = self.tools().await?;
            let said = self.call(context, &params, talk, &tools).await?;
            talk.step += 1;
            talk.answered(said);
            self.review(talk);
        }
    }

    /// What answers in place of a model that has failed with `error`. Behind a finished step nothing does: what was
    /// begun is gone on with.
    fn fallback(&self, error: &AgentError, talk: &Talk) -> Option<&Fallback> {
        self.options.fallback.as_ref().filter(|_| talk.step == 0 && fallback::is_for(error))
    }

    async fn make_plan(&self, context: &RunContext, params: &Params, talk: &mut Talk) -> Result<(), AgentError> {
        let mut asked = Talk { step: talk.step, ..Talk::new([]) };
        asked.turns.clone_from(&talk.turns);
        asked.say([Message { role: Role::User, content: Content::Text(PLANNER.to_owned()) }]);
        let said = self.call_for_plan(context, params, &asked).await?;
        let plan: Vec<_> =
            tasks(&said.text).into_iter().map(|task| json!({"task": task, "status": "pending"})).collect();
        context.plan(Value::from(plan)).await?;
        talk.step += 1;
        talk.answered(said);
        self.supervise(talk);
        Ok(())
    }
}

/// The result with which an earlier attempt has ended the run, if it has, and nobody has said more since.
fn completed(context: &RunContext) -> Option<Value> {
    let last = context.finished_steps().last()?;
    let said_more = context.taken_steers().iter().any(|(after, _)| *after >= last.step);
    if last.kind != StepKind::Tool || last.name != act::COMPLETE || said_more {
        return None;
    }
    let returned: Returned = serde_json::from_value(last.result.clone()).ok().filter(|gave: &Returned| !gave.failed)?;
    Some(serde_json::from_str(&returned.content).unwrap_or(Value::String(returned.content)))
}

/// The tasks of a plan as the model wrote it.
fn tasks(text: &str) -> Vec<String> {
    let json = serde_json::from_str::<Value>(document(text)).unwrap_or_default();
    let listed = json.get("tasks").and_then(Value::as_array).or(json.as_array()).cloned().unwrap_or_default();
    let task = |task: &Value| task.as_str().or_else(|| task.get("task")?.as_str()).map(str::to_owned);
    let mut tasks: Vec<_> = listed.iter().filter_map(task).filter(|task| !task.trim().is_empty()).collect();
    if tasks.is_empty() {
        // Some models write lists all the same.
        let bullet = |c: char| c.is_ascii_digit() || matches!(c, '.' | ')' | '-' | '*' | ' ');
        let lines = text.lines().map(|line| line.trim_start_matches(bullet).trim().to_owned());
        tasks = lines.filter(|line| !line.is_empty()).collect();
    }
    tasks.truncate(MAX_TASKS);
    tasks
}

/// The text without the fence that many models put around JSON.
fn document(text: &str) -> &str {
    let text = text.trim();
    let Some(inner) = text.strip_prefix("```").and_then(|text| text.strip_suffix("```")) else { return text };
    inner.strip_prefix("json").unwrap_or(inner).trim()
}

/// The document that a text is, if it follows the schema.
fn checked(text: &str, schema: &jsonschema::Validator) -> Result<Value, String> {
    let value: Value = serde_json::from_str(document(text)).map_err(|error| format!("it is not JSON: {error}"))?;
    match schema.validate(&value) {
        Ok(()) => Ok(value),
        Err(error) => {
            let at = error.instance_path().to_string();
            let what: String = error.to_string().chars().take(300).collect();
            Err(if at.is_empty() { what } else { format!("{at}: {what}") })
        }
    }
}

fn instruction(text: &str) -> Message {
    Message { role: Role::System, content: text.into() }
}

#[async_trait]
impl Agent for ModelAgent {
    fn goes_on(&self) -> bool {
        true
    }

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
            budget: options.budget,
            manners: options.manners.clone(),
            ..AgentCard::new(&options.name, "model")
        }
    }

    fn stands_in(&self) -> Option<String> {
        self.away.lock().clone()
    }

    async fn run(&self, context: RunContext) -> Result<Answer, AgentError> {
        if let Some(result) = completed(&context) {
            return Ok(Answer::finished(result));
        }
        let mut talk = self.talk(&context);
        let answered = self.converse(&context, &mut talk).await;
        match &answered {
            Err(error) => {
                let Some(fallback) = self.fallback(error, &talk) else { return answered };
                *self.away.lock() = Some(error.to_string());
                fallback.answer(&context, error).await
            }
            Ok(_) => {
                *self.away.lock() = None;
                answered
            }
        }
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
