//! What tests of agents are made of: a place where events go, and runs to be executed.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};
use parking_lot::Mutex;
use serde_json::Value;
use uuid::Uuid;

use super::{BeginStep, NotBegun, Push, RunContext, Sink, Stopped};
use crate::run::{
    Budget, Event, Input, Message, OnDisconnect, Role, RunId, Spec, StepKind, StepRecord, Tenant, Timestamp, Usage,
};

/// Takes all that an agent shows, and remembers it.
#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) events: Mutex<Vec<Event>>,
    pub(crate) steps: Mutex<Vec<StepRecord>>,
    pub(crate) begun: Mutex<Vec<BeginStep>>,
    pub(crate) spent: Mutex<BTreeMap<u32, Usage>>,
    /// What was handed to the run, each with the step after which it came.
    pub(crate) steers: Mutex<Vec<(u32, Message)>>,
    pub(crate) handed_off: Mutex<u32>,
    /// What a step may not exceed.
    pub(crate) budget: Budget,
}

impl Seen {
    /// The texts of the answer, in pieces.
    pub(crate) fn said(&self) -> Vec<String> {
        let text = |event: &Event| match event.kind() {
            "message.delta" => serde_json::to_value(event).unwrap()["text"].as_str().map(str::to_owned),
            _ => None,
        };
        self.events.lock().iter().filter_map(text).collect()
    }

    /// What tools said while they worked, in lines.
    pub(crate) fn output(&self) -> String {
        let text = |event: &Event| match event.kind() {
            "tool.output" => Some(serde_json::to_value(event).unwrap()["text"].as_str()?.to_owned() + "\n"),
            _ => None,
        };
        self.events.lock().iter().filter_map(text).collect()
    }
}

impl Sink for Seen {
    fn push(&self, event: Event) -> Push {
        self.events.lock().push(event);
        Push::Shown
    }

    fn room(&self) -> BoxFuture<'_, ()> {
        ready(()).boxed()
    }

    fn begin_step(&self, begin: BeginStep) -> BoxFuture<'_, Result<u64, NotBegun>> {
        if let Some(bound) = self.budget.exceeded(self.used() + begin.reserve) {
            return ready(Err(NotBegun::OutOfBudget(bound))).boxed();
        }
        self.begun.lock().push(begin);
        ready(Ok(self.events.lock().len() as u64)).boxed()
    }

    fn spent(&self, step: u32, usage: Usage) {
        self.spent.lock().insert(step, usage);
    }

    fn used(&self) -> Usage {
        self.steps.lock().iter().map(|step| step.usage).sum()
    }

    fn finish_step(&self, record: StepRecord) -> BoxFuture<'_, Result<(), Stopped>> {
        self.steps.lock().push(record);
        ready(Ok(())).boxed()
    }

    fn take_steers(&self, after_step: u32) -> BoxFuture<'_, Result<Vec<Message>, Stopped>> {
        let taken: Vec<_> = self.steers.lock().extract_if(.., |(after, _)| *after <= after_step).collect();
        ready(Ok(taken.into_iter().map(|(_, steer)| steer).collect())).boxed()
    }

    fn hand_off(&self, _: String) -> BoxFuture<'_, Result<(), Stopped>> {
        *self.handed_off.lock() += 1;
        ready(Ok(())).boxed()
    }
}

/// A message of the user.
pub(crate) fn user(content: &str) -> Message {
    Message { role: Role::User, content: content.into() }
}

/// A finished step that used nothing.
pub(crate) fn record(step: u32, kind: StepKind, name: &str, result: Value) -> StepRecord {
    StepRecord { step, kind, name: name.to_owned(), result, usage: Usage::default() }
}

/// A run as its agent sees it.
pub(crate) fn spec(agent: &str, input: Input, params: Value) -> Spec {
    let Value::Object(params) = params else { panic!("params are an object") };
    Spec {
        id: RunId::from_uuid(Uuid::nil()),
        tenant: Tenant::default(),
        agent: agent.to_owned(),
        agent_version: "1".to_owned(),
        input,
        params,
        priority: 0,
        ttl_at: None,
        timeout_ms: 1_000,
        max_attempts: 1,
        on_disconnect: OnDisconnect::Continue,
        metadata: BTreeMap::new(),
        thread: None,
        latest_due: None,
        retry_of: None,
        concurrency_key: None,
        correlation_id: None,
        webhook: None,
        budget: Budget::NONE,
        created_at: Timestamp::from_millis(0),
    }
}

/// The first attempt at `spec` after these steps, and what it will have shown.
pub(crate) fn attempt(spec: Spec, steps: Vec<StepRecord>) -> (RunContext, Arc<Seen>) {
    let seen = Arc::new(Seen { budget: spec.budget, ..Seen::default() });
    (RunContext::new(Arc::new(spec), 1, steps, Arc::clone(&seen) as Arc<dyn Sink>), seen)
}
