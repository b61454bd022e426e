//! What becomes of each message.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde_json::{Map, Value};

use super::{Reply, Said, Source};
use crate::agent::masks::Masks;
use crate::agent::tools::Toolbox;
use crate::agent::{AgentError, Answer, Asked, BeginStep, NotBegun, RunContext};
use crate::run::{Input, Message, StepKind, StepRecord, Usage};

/// The first message: all that an attempt begins with.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename = "start")]
struct Start<'a> {
    run_id: String,
    attempt: u32,
    agent: &'a str,
    agent_version: &'a str,
    input: &'a Input,
    params: &'a Map<String, Value>,
    thread_id: Option<String>,
    history: &'a [Message],
    metadata: &'a BTreeMap<String, String>,
    steps: &'a [StepRecord],
    steers: Vec<Steer>,
    key: String,
}

/// A message that was handed to the run, after a finished step.
#[derive(Debug, Serialize)]
struct Steer {
    after_step: u32,
    message: Message,
}

/// What an attempt begins with, as JSON without line breaks, and its key, which is the same for all attempts that
/// begin after the same finished step. Takes what was handed to the run so far. Not cancellation safe.
pub(crate) async fn start(context: &RunContext) -> Result<(Vec<u8>, String), AgentError> {
    let spec = context.spec();
    let last = last_step(context);
    let taken = context.taken_steers().iter().cloned();
    let mut steers: Vec<_> = taken.map(|(after_step, message)| Steer { after_step, message }).collect();
    if spec.thread.is_some() {
        let new = context.take_steers(last).await?;
        steers.extend(new.into_iter().map(|message| Steer { after_step: last, message }));
    }
    let key = format!("{}:{last}", spec.id);
    let start = Start {
        run_id: spec.id.to_string(),
        attempt: context.attempt(),
        agent: &spec.agent,
        agent_version: &spec.agent_version,
        input: context.input(),
        params: &spec.params,
        thread_id: spec.thread.as_ref().map(ToString::to_string),
        history: context.history(),
        metadata: &spec.metadata,
        steps: context.finished_steps(),
        steers,
        key: key.clone(),
    };
    let json = serde_json::to_vec(&start)
        .map_err(|error| AgentError::permanent("internal", format!("the start cannot be written: {error}")))?;
    Ok((json, key))
}

fn last_step(context: &RunContext) -> u32 {
    context.finished_steps().last().map_or(0, |record| record.step)
}

/// Whether the other side can be answered.
#[derive(Clone)]
pub(crate) enum Talk {
    /// It can, and may have these tools called.
    TwoWay(Arc<dyn Toolbox>),
    /// It cannot.
    OneWay,
}

/// One attempt's conversation with a program or a service.
pub(crate) struct Session {
    pub(super) context: RunContext,
    talk: Talk,
    masks: Masks,
    /// The last step that is finished.
    step: u32,
    /// The step that was said to have begun.
    open: Option<(StepKind, String, Option<String>)>,
    /// The finished calls of Runcast's tools, by their ids.
    pub(super) calls: BTreeMap<String, StepRecord>,
}

/// What follows from a message.
#[derive(Debug, PartialEq)]
pub(crate) enum Heard {
    /// The next is listened to.
    Nothing,
    /// This has to be answered, where the other side can be.
    Reply(Reply),
    /// The attempt is over.
    End(Result<Answer, AgentError>),
}

impl Session {
    /// A session of this attempt; `masks` are the secrets that the other side knows.
    pub(crate) fn new(context: RunContext, talk: Talk, masks: Masks) -> Self {
        let finished = context.finished_steps().iter();
        let calls = finished.filter(|record| record.kind == StepKind::Tool);
        let calls =
            calls.filter_map(|record| Some((super::tools::call_id(record)?.to_owned(), record.clone()))).collect();
        // Numbers of steps that were cut off are not used for others: what is known of those has to stay.
        let step = context.cut_off().iter().map(|open| open.step).fold(last_step(&context), u32::max);
        Self { step, context, talk, masks, open: None, calls }
    }

    /// Does what a message says, as fast as the journal takes it. Not cancellation safe.
    pub(crate) async fn hear(&mut self, message: &[u8], source: Source<'_>) -> Result<Heard, AgentError> {
        let context = &self.context;
        match Said::read(message, source, &self.masks)? {
            Said::Token { text } => context.delta(text).await?,
            Said::Reasoning { text } => context.reasoning(text).await?,
            Said::Message { text } => context.message(text).await?,
            Said::Log { level, message } => context.log(level.as_str(), message).await?,
            Said::Custom { name, value } => context.custom(name, value).await?,
            Said::Plan { plan } => context.plan(plan).await?,
            Said::ToolStarted { call_id, name, arguments } => {
                context.tool_started(&call_id, &name, &arguments.to_string()).await?;
            }
            Said::ToolOutput { call_id, text } => context.tool_output(&call_id, text).await?,
            Said::ToolCompleted { call_id, name, output, failed } => {
                context.tool_completed(&call_id, &name, output, failed).await?;
            }
            Said::StepStarted { kind, name } => self.begin(kind.into(), &name, None).await?,
            Said::Step { kind, name, result, usage } => {
                let record = StepRecord { step: self.step + 1, kind: kind.into(), name, result, usage };
                let step = self.keep(record).await?;
                return Ok(Heard::Reply(Reply::StepKept { step }));
            }
            Said::Tool { call_id, name, arguments } => {
                let Talk::TwoWay(tools) = &self.talk else { return Err(self.unanswerable("tool", source)) };
                let tools = Arc::clone(tools);
                return Ok(Heard::Reply(self.call(&*tools, call_id, name, arguments).await?));
            }
            Said::Steer {} => {
                let Talk::TwoWay(_) = &self.talk else { return Err(self.unanswerable("steer", source)) };
                let messages = context.take_steers(self.step).await?;
                return Ok(Heard::Reply(Reply::Steers { messages }));
            }
            Said::Ask { prompt, reason, deadline_ms } => {
                let deadline = deadline_ms.map(Duration::from_millis);
                return Ok(Heard::End(Err(AgentError::Ask(Asked { reason: reason.into(), prompt, deadline }))));
            }
            Said::Complete { output, outcome, usage } => {
                let outcome = outcome.unwrap_or_else(|| "finished".to_owned());
                return Ok(Heard::End(Ok(Answer { output, outcome, usage })));
            }
            Said::Fail { code, message, transient, retry_after_ms } => {
                let error = if transient {
                    AgentError::Transient { code, message, retry_after: retry_after_ms.map(Duration::from_millis) }
                } else {
                    AgentError::Permanent { code, message }
                };
                return Ok(Heard::End(Err(error)));
            }
        }
        Ok(Heard::Nothing)
    }

    /// Says that a step begins, unless that was said already.
    pub(super) async fn begin(&mut self, kind: StepKind, name: &str, call_id: Option<String>) -> Result<(), NotBegun> {
        let begun = (kind, name.to_owned(), call_id.clone());
        if self.open.as_ref() != Some(&begun) {
            // What it will use is not known; what was used before has to be within the budget.
            let (step, name, reserve) = (self.step + 1, name.to_owned(), Usage::default());
            self.context.begin_step(BeginStep { step, kind, name, call_id, reserve }).await?;
            self.open = Some(begun);
        }
        Ok(())
    }

    /// Keeps a finished step, the next; its number.
    pub(super) async fn keep(&mut self, record: StepRecord) -> Result<u32, NotBegun> {
        // A call has begun as one; whatever else it is, it begins now unless it has.
        let begun = self.open.as_ref().filter(|(kind, name, _)| *kind == record.kind && *name == record.name);
        if begun.is_none() {
            self.begin(record.kind, &record.name, None).await?;
        }
        let StepRecord { step, kind, name, result, usage } = record;
        self.context.step_finished(step, kind, name, result, usage).await?;
        self.step = step;
        self.open = None;
        Ok(step)
    }

    /// The number of the next step.
    pub(super) fn next_step(&self) -> u32 {
        self.step + 1
    }

    fn unanswerable(&self, word: &str, source: Source<'_>) -> AgentError {
        source
            .wrong(format_args!("is of type {word}, which wants an answer: a service cannot be given one"), &self.masks)
    }
}
