//! What an agent is given, and how it shows what it does.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use serde_json::Value;

use super::{AgentError, Asked};
use crate::run::{Bound, Event, Input, Message, OpenStep, Reason, Role, Spec, StepKind, StepRecord, Usage};

/// One attempt, as its agent sees it. Cheap to clone.
#[derive(Clone)]
pub struct RunContext {
    spec: Arc<Spec>,
    attempt: u32,
    steps: Arc<[StepRecord]>,
    cut_off: Arc<[OpenStep]>,
    conversation: Arc<Conversation>,
    sink: Arc<dyn Sink>,
}

/// What an agent is shown of the thread that its run belongs to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Conversation {
    /// What was said before the run's input, oldest first, within the agent's bounds.
    pub history: Vec<Message>,
    /// What was handed to the run while it was going on, in order, each with the number of the last step that was
    /// finished when the agent took it.
    pub steers: Vec<(u32, Message)>,
}

/// Where an agent's events go; the engine's side of a [`RunContext`].
pub trait Sink: Send + Sync {
    /// Shows `event` at once, if there is room for it.
    fn push(&self, event: Event) -> Push;
    /// Waits until there may be room. Cancellation safe.
    fn room(&self) -> BoxFuture<'_, ()>;
    /// Journals a finished step, then shows it. When it returns `Ok` no later attempt makes the step
    /// again. Not cancellation safe: a dropped call may or may not have kept the step.
    fn finish_step(&self, record: StepRecord) -> BoxFuture<'_, Result<(), Stopped>>;
    /// See [`RunContext::begin_step`].
    fn begin_step(&self, begin: BeginStep) -> BoxFuture<'_, Result<u64, NotBegun>>;
    /// See [`RunContext::spent`].
    fn spent(&self, step: u32, usage: Usage);
    /// See [`RunContext::used`].
    fn used(&self) -> Usage;
    /// Takes the messages that were handed to the run since it looked last; see [`RunContext::take_steers`].
    fn take_steers(&self, after_step: u32) -> BoxFuture<'_, Result<Vec<Message>, Stopped>> {
        let _ = after_step;
        Box::pin(std::future::ready(Ok(Vec::new())))
    }
    /// Hands the run's thread to people.
    fn hand_off(&self, reason: String) -> BoxFuture<'_, Result<(), Stopped>> {
        let _ = reason;
        Box::pin(std::future::ready(Ok(())))
    }
}

/// A step that is to begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BeginStep {
    /// Its number in the run, from 1, which no finished step has.
    pub step: u32,
    /// What kind of step.
    pub kind: StepKind,
    /// The model or tool.
    pub name: String,
    /// The tool call that it is.
    pub call_id: Option<String>,
    /// The most that it may use.
    pub reserve: Usage,
}

/// Why a step has not begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotBegun {
    /// The attempt is over.
    #[error("the attempt was stopped")]
    Stopped,
    /// What it would reserve is more than is left of the run's budget.
    #[error("the run is out of its budget: {}", .0.outcome())]
    OutOfBudget(Bound),
}

impl From<Stopped> for NotBegun {
    fn from(Stopped: Stopped) -> Self {
        Self::Stopped
    }
}

/// What became of a pushed event.
#[derive(Debug)]
pub enum Push {
    /// It is in the log.
    Shown,
    /// The log has no room until more of it is journaled; the event is handed back.
    Full(Event),
    /// The attempt is over.
    Stopped,
}

/// The attempt is over; nothing the agent does is kept any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the attempt was stopped")]
pub struct Stopped;

impl RunContext {
    /// Makes a context; for the engine and for tests of agents.
    pub fn new(spec: Arc<Spec>, attempt: u32, steps: Vec<StepRecord>, sink: Arc<dyn Sink>) -> Self {
        Self { spec, attempt, steps: steps.into(), cut_off: Arc::default(), conversation: Arc::default(), sink }
    }

    /// The same attempt within a conversation.
    #[must_use]
    pub fn in_conversation(self, conversation: Conversation) -> Self {
        Self { conversation: Arc::new(conversation), ..self }
    }

    /// The same attempt, after others that had begun these steps and did not finish them.
    #[must_use]
    pub fn after(self, cut_off: Vec<OpenStep>) -> Self {
        Self { cut_off: cut_off.into(), ..self }
    }

    /// The steps that earlier attempts had begun and not finished when they ended: nobody knows whether what they do
    /// outside was done. Those of the run that this one goes on from are among them.
    #[must_use]
    pub fn cut_off(&self) -> &[OpenStep] {
        &self.cut_off
    }

    /// What the run has used and reserved so far, in all its attempts.
    #[must_use]
    pub fn used(&self) -> Usage {
        self.sink.used()
    }

    /// What was said in the run's thread before its input, oldest first. Empty for a run without a thread.
    #[must_use]
    pub fn history(&self) -> &[Message] {
        &self.conversation.history
    }

    /// What was handed to the run and taken by earlier attempts, with the last step that was finished then: an
    /// agent that goes on from its finished steps puts each in its place.
    #[must_use]
    pub fn taken_steers(&self) -> &[(u32, Message)] {
        &self.conversation.steers
    }

    /// Takes the messages that were handed to the run since the agent looked last, to be taken into account after
    /// step `after_step`, which is finished. An agent that never looks is executed again from its last finished
    /// step, when there are any. Not cancellation safe.
    pub async fn take_steers(&self, after_step: u32) -> Result<Vec<Message>, Stopped> {
        self.sink.take_steers(after_step).await
    }

    /// Asks a person: the agent returns this error, its attempt ends, and the run waits, however long. Another
    /// attempt goes on when there is an answer, which is a finished step of kind [`StepKind::Ask`]. What is to be
    /// kept of this attempt must be a finished step before.
    #[must_use]
    pub fn ask(&self, prompt: impl Into<Value>, deadline: Option<Duration>) -> AgentError {
        AgentError::Ask(Asked { reason: Reason::Input, prompt: prompt.into(), deadline })
    }

    /// Hands the run's thread to people: nobody is answered any more until they give it back. The run itself goes
    /// on. Does nothing for a run without a thread, or when people have it already. Not cancellation safe.
    pub async fn hand_off(&self, reason: impl Into<String>) -> Result<(), Stopped> {
        self.sink.hand_off(reason.into()).await
    }

    /// What the run was asked to do.
    #[must_use]
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// The run's input.
    #[must_use]
    pub fn input(&self) -> &Input {
        &self.spec.input
    }

    /// The number of this attempt, from 1.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// The steps that are finished, by earlier attempts or by the run this one goes on from.
    #[must_use]
    pub fn finished_steps(&self) -> &[StepRecord] {
        &self.steps
    }

    /// A piece of the answer. Waits when the journal is behind.
    pub async fn delta(&self, text: impl Into<String>) -> Result<(), Stopped> {
        self.show(Event::MessageDelta { text: text.into() }).await
    }

    /// A piece of what the model thinks aloud.
    pub async fn reasoning(&self, text: impl Into<String>) -> Result<(), Stopped> {
        self.show(Event::ReasoningDelta { text: text.into() }).await
    }

    /// The whole answer of one model call.
    pub async fn message(&self, text: impl Into<String>) -> Result<(), Stopped> {
        let message = Message { role: Role::Assistant, content: text.into().into() };
        self.show(Event::MessageCompleted { message }).await
    }

    /// A line of the agent's own log. `level` is `debug`, `info`, `warn` or `error`.
    pub async fn log(&self, level: &'static str, message: impl Into<String>) -> Result<(), Stopped> {
        self.show(Event::Log { level, message: message.into() }).await
    }

    /// Says that a tool is called. What the model wrote as its arguments is shown as it is.
    pub async fn tool_started(&self, call_id: &str, name: &str, arguments: &str) -> Result<(), Stopped> {
        let arguments = serde_json::from_str(arguments).unwrap_or_else(|_| Value::from(arguments));
        self.show(Event::ToolStarted { call_id: call_id.to_owned(), name: name.to_owned(), arguments }).await
    }

    /// A piece of what a tool says while it works.
    pub async fn tool_output(&self, call_id: &str, text: impl Into<String>) -> Result<(), Stopped> {
        self.show(Event::ToolOutput { call_id: call_id.to_owned(), text: text.into() }).await
    }

    /// Says what a tool gave.
    pub async fn tool_completed(&self, call_id: &str, name: &str, output: Value, failed: bool) -> Result<(), Stopped> {
        self.show(Event::ToolCompleted { call_id: call_id.to_owned(), name: name.to_owned(), output, failed }).await
    }

    /// Shows the plan that the agent follows, in place of the one before.
    pub async fn plan(&self, plan: Value) -> Result<(), Stopped> {
        self.show(Event::PlanUpdated { plan }).await
    }

    /// Whatever the agent wants its viewers to see.
    pub async fn custom(&self, name: impl Into<String>, value: Value) -> Result<(), Stopped> {
        self.show(Event::Custom { name: name.into(), value }).await
    }

    /// Begins a step that uses something, or that does something outside: reserves what it may use, and keeps that it
    /// has begun, before it returns. The sequence number of the event that says so. Not cancellation safe: a dropped
    /// call may or may not have begun the step.
    pub async fn begin_step(&self, begin: BeginStep) -> Result<u64, NotBegun> {
        self.sink.begin_step(begin).await
    }

    /// What the open step `step` has used until now. That is what it is charged if the attempt ends before the step does,
    /// unless the attempt is lost with its worker.
    pub fn spent(&self, step: u32, usage: Usage) {
        self.sink.spent(step, usage);
    }

    /// What was shown of the open step `step`, which began with event number `began`, is void: it is made anew.
    pub async fn step_retrying(&self, step: u32, began: u64, message: impl Into<String>) -> Result<(), Stopped> {
        self.show(Event::StepRetrying { step, message: message.into(), void_after: began }).await
    }

    /// Says that step number `step` begins, which uses nothing and does nothing outside.
    pub async fn step_started(&self, step: u32, kind: StepKind, name: impl Into<String>) -> Result<(), Stopped> {
        let (name, reserved) = (name.into(), Usage::default());
        self.show(Event::StepStarted { step, kind, name, call_id: None, reserved }).await
    }

    /// Keeps a finished step; see [`Sink::finish_step`].
    pub async fn step_finished(
        &self,
        step: u32,
        kind: StepKind,
        name: impl Into<String>,
        result: Value,
        usage: Usage,
    ) -> Result<(), Stopped> {
        self.sink.finish_step(StepRecord { step, kind, name: name.into(), result, usage }).await
    }

    async fn show(&self, mut event: Event) -> Result<(), Stopped> {
        // An agent that always has something to say must not keep its thread to itself.
        tokio::task::coop::consume_budget().await;
        loop {
            match self.sink.push(event) {
                Push::Shown => return Ok(()),
                Push::Stopped => return Err(Stopped),
                Push::Full(returned) => {
                    event = returned;
                    self.sink.room().await;
                }
            }
        }
    }
}
