//! The bodies of the API: what is asked for, and what a run looks like from outside.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::engine::{CreateRun, Key, Start};
use crate::run::{
    Budget, Input, OnDisconnect, Reason, Recorded, RunError, Status, Tenant, ThreadId, Timestamp, Usage, Webhook,
};
use crate::store::Stored;
use crate::thread::OnBusy;

/// The body of `POST /v1/runs`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct CreateRunBody {
    /// The agent that executes the run; `GET /v1/agents` lists them.
    agent: String,
    /// A text, or the messages of a conversation.
    input: Input,
    /// The agent's own options, checked against its JSON Schema.
    #[serde(default)]
    params: Map<String, Value>,
    /// Higher goes first; -100 to 100.
    #[serde(default)]
    priority: i32,
    /// Starts the run so much later. Not together with `run_at`.
    #[serde(default)]
    delay_ms: Option<u64>,
    /// Starts the run then (RFC 3339).
    #[serde(default)]
    #[schema(value_type = Option<String>, format = DateTime)]
    run_at: Option<Timestamp>,
    /// The run expires if it has not started so long after its creation.
    #[serde(default)]
    ttl_ms: Option<u64>,
    /// Bounds its running time over all attempts.
    #[serde(default)]
    timeout_ms: Option<u64>,
    /// How many attempts may fail; 1 to 100.
    #[serde(default)]
    max_attempts: Option<u32>,
    /// What happens when the last viewer hangs up.
    #[serde(default)]
    on_disconnect: OnDisconnect,
    /// The conversation that the run belongs to.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    thread_id: Option<ThreadId>,
    /// What happens when another run holds the thread; as the agent says unless given.
    #[serde(default)]
    on_busy: Option<OnBusy>,
    /// What it may use at most, over all attempts; its agent may allow less.
    #[serde(default)]
    budget: Budget,
    /// How many runs of the agent with the same key are running at once can be limited. At most 128 bytes.
    #[serde(default)]
    concurrency_key: Option<String>,
    /// The caller's own labels.
    #[serde(default)]
    metadata: BTreeMap<String, String>,
    /// Where the news of this run go, besides the endpoints; signed by the secret of `GET /v1/webhooks/secret`.
    #[serde(default)]
    webhook: Option<Webhook>,
    /// The answer is the run's event stream itself.
    #[serde(default)]
    pub(super) stream: bool,
}

impl CreateRunBody {
    /// The wish this body says. The error names a field and what was expected.
    pub(super) fn wish(
        self,
        tenant: Tenant,
        key: Option<Key>,
        correlation_id: Option<String>,
    ) -> Result<CreateRun, (&'static str, &'static str)> {
        let start = match (self.delay_ms, self.run_at) {
            (Some(_), Some(_)) => return Err(("run_at", "expected either delay_ms or run_at, not both")),
            (Some(delay), None) => Start::After(Duration::from_millis(delay)),
            (None, Some(at)) => Start::At(at),
            (None, None) => Start::Now,
        };
        Ok(CreateRun {
            tenant,
            agent: self.agent,
            input: self.input,
            params: self.params,
            priority: self.priority,
            start,
            ttl: self.ttl_ms.map(Duration::from_millis),
            timeout: self.timeout_ms.map(Duration::from_millis),
            max_attempts: self.max_attempts,
            on_disconnect: self.on_disconnect,
            thread: self.thread_id,
            on_busy: self.on_busy,
            metadata: self.metadata,
            key,
            concurrency_key: self.concurrency_key,
            correlation_id,
            webhook: self.webhook,
            budget: self.budget,
        })
    }
}

/// A run.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct RunObject<'a> {
    /// UUID version 7.
    id: String,
    agent: &'a str,
    tenant: &'a str,
    status: Status,
    /// Why it is scheduled or waiting.
    reason: Option<Reason>,
    /// The current or last attempt; 0 before the first.
    attempt: u32,
    max_attempts: u32,
    priority: i32,
    input: &'a Input,
    #[schema(value_type = Object)]
    params: &'a Map<String, Value>,
    /// What it made.
    output: Option<&'a Value>,
    /// Why it ended as it did: `finished`, `max_tokens`, `max_steps`, `content_filter`, `fallback`, `budget_tokens`, `budget_cost`,
    /// `budget_steps`, `budget_time`, `error`, `attempts_exhausted`, `deadline`, `cancelled`, `expired`.
    outcome: Option<&'a str>,
    /// Why it failed.
    error: Option<&'a RunError>,
    usage: Usage,
    /// What it may use at most.
    budget: Budget,
    /// A cancel is on its way to the run's worker.
    cancel_requested: bool,
    on_disconnect: OnDisconnect,
    timeout_ms: u64,
    /// The run this one goes on from.
    retry_of: Option<String>,
    concurrency_key: Option<&'a str>,
    /// The conversation that it belongs to.
    thread_id: Option<String>,
    /// What it waits for while it is `waiting`.
    wait: Option<WaitObject>,
    metadata: &'a BTreeMap<String, String>,
    correlation_id: Option<&'a str>,
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    /// When a scheduled run is due, or the answer that a waiting one waits for.
    #[schema(value_type = Option<String>, format = DateTime)]
    due_at: Option<Timestamp>,
    /// When the run expires unless it has started.
    #[schema(value_type = Option<String>, format = DateTime)]
    expires_at: Option<Timestamp>,
    #[schema(value_type = Option<String>, format = DateTime)]
    started_at: Option<Timestamp>,
    #[schema(value_type = Option<String>, format = DateTime)]
    finished_at: Option<Timestamp>,
    /// The number of the last journaled event.
    last_seq: u64,
    links: Links,
}

/// Where to go from a run.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Links {
    #[serde(rename = "self")]
    this: String,
    stream: String,
    events: String,
    wait: String,
    cancel: String,
}

impl<'a> RunObject<'a> {
    /// `base` is the path of the runs: the prefix the API is mounted under, and `/v1/runs`.
    pub(super) fn new(stored: &'a Stored, base: &str) -> Self {
        let Stored { run, cancel_requested, .. } = stored;
        let spec = &*run.spec;
        let link = |tail: &str| format!("{base}/{}{tail}", spec.id);
        Self {
            id: spec.id.to_string(),
            agent: &spec.agent,
            tenant: spec.tenant.as_str(),
            status: run.status,
            reason: run.reason,
            attempt: run.attempt,
            max_attempts: spec.max_attempts,
            priority: spec.priority,
            input: &spec.input,
            params: &spec.params,
            output: run.output.as_ref(),
            outcome: run.outcome.as_deref(),
            error: run.error.as_ref(),
            usage: run.usage,
            budget: spec.budget,
            cancel_requested: *cancel_requested,
            on_disconnect: spec.on_disconnect,
            timeout_ms: spec.timeout_ms,
            retry_of: spec.retry_of.map(|id| id.to_string()),
            concurrency_key: spec.concurrency_key.as_deref(),
            thread_id: spec.thread.map(|id| id.to_string()),
            wait: run.wait_id().map(|wait_id| WaitObject {
                wait_id,
                reason: run.reason,
                prompt: None,
                due: run.timer.map(|timer| timer.due),
            }),
            metadata: &spec.metadata,
            correlation_id: spec.correlation_id.as_deref(),
            created_at: spec.created_at,
            due_at: run.timer.map(|timer| timer.due),
            expires_at: run.expires_at(),
            started_at: run.started_at,
            finished_at: run.finished_at,
            last_seq: run.last_seq,
            links: Links {
                this: link(""),
                stream: link("/stream"),
                events: link("/events"),
                wait: link("/wait"),
                cancel: link("/cancel"),
            },
        }
    }
}

impl RunObject<'_> {
    /// The same with what the person is asked, which is in the log.
    pub(super) fn with_prompt(mut self, prompt: Option<Value>) -> Self {
        if let Some(wait) = &mut self.wait {
            wait.prompt = prompt;
        }
        self
    }
}

/// What a run waits for.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct WaitObject {
    /// Names the question: the answer has to say which one it answers.
    wait_id: String,
    /// `input` or `approval`.
    #[serde(rename = "for")]
    reason: Option<Reason>,
    /// What the person is asked; absent in lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt: Option<Value>,
    /// The run fails unless there is an answer by then.
    #[schema(value_type = Option<String>, format = DateTime)]
    due: Option<Timestamp>,
}

/// A page of runs, youngest first.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct RunPage<'a> {
    pub(super) data: Vec<RunObject<'a>>,
    /// Give it as `cursor` to get the next page; absent on the last.
    pub(super) next_cursor: Option<String>,
}

/// A page of a run's log.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct EventPage<'a> {
    pub(super) data: Vec<EventObject<'a>>,
    /// Give it as `after` to get what follows.
    pub(super) next_after: u64,
}

/// One event of a run's log.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct EventObject<'a> {
    /// Its number: from 1, dense within an attempt.
    pub(super) seq: u64,
    #[serde(rename = "type")]
    kind: &'a str,
    #[schema(value_type = String, format = DateTime)]
    at: Timestamp,
    #[schema(value_type = Object)]
    data: &'a RawValue,
}

impl<'a> EventObject<'a> {
    /// `None` when what was stored is not JSON.
    pub(super) fn new(event: Recorded<'a>) -> Option<Self> {
        let data = serde_json::from_str(event.data).ok()?;
        Some(Self { seq: event.seq, kind: event.kind, at: event.at, data })
    }
}
