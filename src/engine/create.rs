//! Accepting runs: new ones, and those that go on from one that ended.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Map, Value};

use super::effects::perform;
use super::mailbox::post;
use super::recovery::KEY_KEPT;
use super::sharing::settle;
use super::timers::Arm;
use super::{Engine, Node, RunRequestError};
use crate::run::{
    Budget, Input, Kept, OnDisconnect, Run, RunId, Segment, Spec, Status, Tenant, ThreadId, Timestamp, Webhook,
};
use crate::store::{Created, IdempotencyKey, NewRun, StoreError, Stored, TimerKey, TimerKind};
use crate::thread::{Occasion, OnBusy, Refusal};
use crate::webhook::KeyError;

/// The longest delay, time-to-live and timeout.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 3600);

/// Priorities lie between minus this and this.
pub(crate) const PRIORITIES: i32 = 100;

/// The longest metadata key and value, in bytes.
const METADATA_BYTES: usize = 512;

/// The longest concurrency key, in bytes.
const CONCURRENCY_KEY_BYTES: usize = 128;

/// A wish for a run.
#[derive(Debug, Clone)]
pub struct CreateRun {
    /// Who wishes.
    pub tenant: Tenant,
    /// Which agent.
    pub agent: String,
    /// What it is given.
    pub input: Input,
    /// Its options.
    pub params: Map<String, Value>,
    /// Higher goes first.
    pub priority: i32,
    /// When it may start.
    pub start: Start,
    /// It expires if it has not started so long after its creation.
    pub ttl: Option<Duration>,
    /// Bounds its running time.
    pub timeout: Option<Duration>,
    /// Bounds its attempts.
    pub max_attempts: Option<u32>,
    /// What happens when its last viewer hangs up.
    pub on_disconnect: OnDisconnect,
    /// The conversation that it belongs to; it has to be there.
    pub thread: Option<ThreadId>,
    /// What happens when another run holds the thread; as its agent says unless given.
    pub on_busy: Option<OnBusy>,
    /// The caller's labels.
    pub metadata: BTreeMap<String, String>,
    /// Makes the wish safe to repeat.
    pub key: Option<Key>,
    /// How many runs of the agent with the same key may be running at once can be limited. At most
    /// 128 bytes.
    pub concurrency_key: Option<String>,
    /// Kept on the run.
    pub correlation_id: Option<String>,
    /// Where its news go.
    pub webhook: Option<Webhook>,
    /// What it may use at most; its agent may allow less.
    pub budget: Budget,
}

impl CreateRun {
    /// A plain wish: `agent` is to work on `input`, and everything else is as usual.
    #[must_use]
    pub fn new(tenant: Tenant, agent: String, input: Input) -> Self {
        Self {
            tenant,
            agent,
            input,
            params: Map::new(),
            priority: 0,
            start: Start::Now,
            ttl: None,
            timeout: None,
            max_attempts: None,
            on_disconnect: OnDisconnect::Continue,
            thread: None,
            on_busy: None,
            metadata: BTreeMap::new(),
            key: None,
            concurrency_key: None,
            webhook: None,
            budget: Budget::NONE,
            correlation_id: None,
        }
    }
}

/// When a run may start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// At once.
    Now,
    /// After so long.
    After(Duration),
    /// Then.
    At(Timestamp),
}

/// Makes a request safe to repeat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// The route it was sent to.
    pub route: &'static str,
    /// The caller's key.
    pub key: String,
    /// SHA-256 of the request's body.
    pub fingerprint: [u8; 32],
}

/// Why a run was not accepted. Nothing was created.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CreateError {
    /// A field does not make sense.
    #[error("{field}: {message}")]
    Invalid {
        /// Which one.
        field: String,
        /// What was expected.
        message: String,
    },
    /// There is no such agent here.
    #[error("there is no agent {agent:?} here; there are {}", known.join(", "))]
    UnknownAgent {
        /// The name that was given.
        agent: String,
        /// The names there are.
        known: Vec<String>,
    },
    /// The input is too large.
    #[error("input has {bytes} bytes, at most {limit} are accepted")]
    InputTooLarge {
        /// How large it is.
        bytes: usize,
        /// How large it may be.
        limit: usize,
    },
    /// Too many runs wait.
    #[error("{limit} runs are waiting already")]
    TooManyWaiting {
        /// How many may.
        limit: u64,
    },
    /// Too many runs of the tenant wait.
    #[error("{limit} runs of tenant {} are waiting already, which is its max_waiting", tenant.as_str())]
    TooManyOfTenant {
        /// The tenant.
        tenant: Tenant,
        /// How many may.
        limit: u64,
    },
    /// The tenant asks for runs faster than it may.
    #[error("tenant {} asks for runs faster than its rate allows", tenant.as_str())]
    RateLimited {
        /// The tenant.
        tenant: Tenant,
        /// How long to wait.
        retry_after: Duration,
    },
    /// The key was used for another request.
    #[error("the idempotency key was used before, with another body")]
    KeyReused,
    /// The run to go on from has not failed or been cancelled.
    #[error("the run is {0}; only a failed or cancelled run can be retried")]
    NotRetryable(Status),
    /// There is no such thread, or it is another tenant's.
    #[error("there is no such thread")]
    ThreadMissing,
    /// Nothing may come into the thread as it stands.
    #[error(transparent)]
    Refused(Refusal),
    /// The run to go on from does not exist.
    #[error("there is no such run")]
    Missing,
    /// Every worker that has the agent lacks something for it.
    #[error("no worker can execute {agent}: {lacks}")]
    AgentUnavailable {
        /// The agent.
        agent: String,
        /// What they lack.
        lacks: String,
    },
    /// The run names a webhook, and there is no key to sign with.
    #[error(transparent)]
    NoWebhookKey(#[from] KeyError),
    /// The node shuts down.
    #[error("the node is shutting down")]
    Draining,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

pub(super) fn invalid(field: &str, message: impl Into<String>) -> CreateError {
    CreateError::Invalid { field: field.to_owned(), message: message.into() }
}

impl Engine {
    /// Accepts a run. When this returns `Ok` the run is in the store and will end. The flag says whether
    /// it was there before, under the same key.
    pub async fn create(&self, wish: CreateRun) -> Result<(Stored, bool), CreateError> {
        let now = self.now();
        let on_busy = wish.on_busy;
        let (spec, due, key) = self.check(wish, now)?;
        if spec.thread.is_some() {
            let on_busy = match (on_busy, due.is_some_and(|due| due > now)) {
                // Who has the thread by then is not known yet.
                (None | Some(OnBusy::Enqueue), true) => OnBusy::Enqueue,
                (Some(_), true) => {
                    let expected = "expected enqueue, or none, for a run that is to start later: it goes behind what is \
                                    there then";
                    return Err(invalid("on_busy", expected));
                }
                (on_busy, false) => on_busy.unwrap_or(self.card(&spec.agent)?.manners.on_busy),
            };
            return self.create_in_thread(spec, Occasion::Run { due }, on_busy, key, now).await;
        }
        if on_busy.is_some() {
            return Err(invalid("on_busy", "expected only together with thread_id"));
        }
        self.accept(spec, due, Kept::default(), key, now).await
    }

    /// Accepts a run of this id, with one label more, or finds it: the flag says whether it was there before.
    pub(super) async fn create_as(
        &self,
        id: RunId,
        wish: CreateRun,
        label: (String, String),
    ) -> Result<(Stored, bool), CreateError> {
        let now = self.now();
        let on_busy = wish.on_busy;
        let (mut spec, due, key) = self.check(wish, now)?;
        spec.id = id;
        spec.metadata.extend([label]);
        if spec.thread.is_some() {
            let on_busy = on_busy.unwrap_or(self.card(&spec.agent)?.manners.on_busy);
            // What joins a run makes none: there it is the key that finds it again.
            let key = Key { route: "schedule", key: id.to_string(), fingerprint: [0; 32] };
            return self.create_in_thread(spec, Occasion::Run { due }, on_busy, Some(key), now).await;
        }
        self.accept(spec, due, Kept::default(), key, now).await
    }

    /// Accepts a run that goes on from the last finished step of one that failed or was cancelled.
    pub async fn retry(&self, tenant: &Tenant, id: RunId, key: Option<Key>) -> Result<(Stored, bool), CreateError> {
        let now = self.now();
        let Stored { run, .. } = self.get(tenant, id).await.map_err(|error| match error {
            RunRequestError::Store(error) => CreateError::Store(error),
            RunRequestError::Missing
            | RunRequestError::Gone
            | RunRequestError::NotFinal(_)
            | RunRequestError::Beyond { .. } => CreateError::Missing,
        })?;
        if !matches!(run.status, Status::Failed | Status::Cancelled) {
            return Err(CreateError::NotRetryable(run.status));
        }
        let agent_version = self.card(&run.spec.agent)?.version.clone();
        let spec = Spec {
            id: self.node.clock.run_id(),
            agent_version,
            ttl_at: None,
            latest_due: None,
            retry_of: Some(id),
            // Steps that are taken over are not counted again.
            budget: Budget {
                steps: run.spec.budget.steps.map(|most| most.saturating_add(run.steps)),
                ..run.spec.budget
            },
            created_at: now,
            ..Spec::clone(&run.spec)
        };
        if spec.thread.is_some() {
            let occasion = Occasion::Retry { of: id, kept: run.kept() };
            return self.create_in_thread(spec, occasion, OnBusy::Enqueue, key, now).await;
        }
        self.accept(spec, None, run.kept(), key, now).await
    }

    async fn accept(
        &self,
        spec: Spec,
        due: Option<Timestamp>,
        kept: Kept,
        key: Option<Key>,
        now: Timestamp,
    ) -> Result<(Stored, bool), CreateError> {
        if self.is_draining() {
            return Err(CreateError::Draining);
        }
        self.check_available(&spec)?;
        let node = &self.node;
        let limit = node.settings.max_waiting;
        let (run, decision) = Run::create(spec, due, kept);
        let segment = Segment::encode(1, &decision.events, now);
        let key = key.map(|key| stored_key(key, now));
        let tenant = &run.spec.tenant;
        let share = node.settings.sharing.share(tenant);
        let charge = node.rates.take(tenant, node.peers.serving());
        // What was accepted before is found all the same: only nothing new is let in.
        let max_waiting = match &charge {
            Ok(_) => limit,
            Err(retry_after) if key.is_none() => return Err(node.too_fast(tenant, *retry_after)),
            Err(_) => 0,
        };
        let new = NewRun { run: run.clone(), segment: segment.clone(), key, max_waiting, share };
        let created = node.store.create(new).await;
        let retry_after = settle(charge, matches!(created, Ok(Created::New)));
        match created? {
            Created::Existing(stored) => return Ok((*stored, true)),
            Created::KeyReused => return Err(CreateError::KeyReused),
            Created::TooManyWaiting => return Err(node.too_many(tenant, retry_after)),
            Created::TooManyOfTenant => return Err(node.too_many_of(tenant)),
            Created::New => {}
        }
        node.metrics.runs_created.inc();
        let spec = &run.spec;
        node.feed.created(spec.id, &spec.tenant, &segment, spec.on_disconnect == OnDisconnect::Cancel);
        if let Some(due) = run.expires_at() {
            // Bounded by the timers that exist.
            post(&node.timers, Arm(TimerKey { due, owner: *spec.id.as_uuid(), kind: TimerKind::Ttl }));
        }
        perform(node, &run, decision.effects);
        let reserved_seq = run.last_seq;
        Ok((Stored { run, reserved_seq, cancel_requested: false }, false))
    }

    /// Somebody can execute the run, as far as is known.
    pub(super) fn check_available(&self, spec: &Spec) -> Result<(), CreateError> {
        let node = &self.node;
        let executes_it = node.executed.iter().any(|(agent, _)| *agent == spec.agent);
        match node.peers.lacks(&spec.agent, &spec.agent_version).filter(|_| !executes_it) {
            Some(lacks) => Err(CreateError::AgentUnavailable { agent: spec.agent.clone(), lacks }),
            None => Ok(()),
        }
    }

    pub(super) fn unknown(&self, agent: &str) -> CreateError {
        CreateError::UnknownAgent {
            agent: agent.chars().take(64).collect(),
            known: self.agents().map(|card| card.name.clone()).collect(),
        }
    }

    fn card(&self, agent: &str) -> Result<&crate::agent::AgentCard, CreateError> {
        self.node.agents.card(agent).ok_or_else(|| self.unknown(agent))
    }

    pub(super) fn check(
        &self,
        wish: CreateRun,
        now: Timestamp,
    ) -> Result<(Spec, Option<Timestamp>, Option<Key>), CreateError> {
        let settings = &self.node.settings;
        let card = self.card(&wish.agent)?;
        let bytes = wish.input.bytes();
        if bytes > settings.max_input {
            return Err(CreateError::InputTooLarge { bytes, limit: settings.max_input });
        }
        if let Input::Messages(messages) = &wish.input {
            if messages.is_empty() {
                return Err(invalid("input", "expected at least one message"));
            }
            if messages.len() > Input::MOST {
                return Err(invalid("input", format!("expected at most {} messages", Input::MOST)));
            }
            for (index, message) in messages.iter().enumerate() {
                if let Some(fault) = message.content.fault() {
                    return Err(invalid(&format!("input[{index}].content"), fault));
                }
            }
        }
        self.node
            .agents
            .check_params(&wish.agent, &wish.params)
            .map_err(|error| invalid(&error.field, error.message))?;
        if !(-PRIORITIES..=PRIORITIES).contains(&wish.priority) {
            return Err(invalid("priority", format!("expected -{PRIORITIES} to {PRIORITIES}")));
        }
        check_metadata(&wish.metadata, settings.max_metadata_entries)?;
        if wish.concurrency_key.as_ref().is_some_and(|key| !(1..=CONCURRENCY_KEY_BYTES).contains(&key.len())) {
            return Err(invalid("concurrency_key", format!("expected 1 to {CONCURRENCY_KEY_BYTES} bytes")));
        }
        if let Some(webhook) = &wish.webhook {
            self.check_webhook(webhook)?;
        }
        let due = match wish.start {
            Start::Now => None,
            Start::After(delay) => Some(now.after(bounded("delay_ms", delay)?)),
            Start::At(at) if at.since(now) > LONGEST => {
                return Err(invalid("run_at", "expected at most 366 days from now"));
            }
            Start::At(at) => Some(at),
        };
        let ttl_at = match wish.ttl {
            Some(ttl) => Some(now.after(bounded("ttl_ms", ttl)?)),
            None => None,
        };
        let timeout = bounded("timeout_ms", wish.timeout.or(card.timeout).unwrap_or(settings.timeout))?;
        if timeout.is_zero() {
            return Err(invalid("timeout_ms", "expected at least 1"));
        }
        let budget = wish.budget.and(card.budget);
        let least = [("tokens", budget.tokens), ("steps", budget.steps.map(u64::from)), ("time_ms", budget.time_ms)];
        if let Some((bound, _)) = least.into_iter().find(|(_, most)| *most == Some(0)) {
            return Err(invalid(&format!("budget.{bound}"), "expected at least 1"));
        }
        let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        let timeout_ms = budget.time_ms.map_or(timeout_ms, |most| most.min(timeout_ms));
        let max_attempts = wish.max_attempts.or(card.max_attempts).unwrap_or(settings.max_attempts);
        if !(1..=100).contains(&max_attempts) {
            return Err(invalid("max_attempts", "expected 1 to 100"));
        }
        let spec = Spec {
            id: self.node.clock.run_id(),
            tenant: wish.tenant,
            agent_version: card.version.clone(),
            agent: wish.agent,
            input: wish.input,
            params: wish.params,
            priority: wish.priority,
            ttl_at,
            timeout_ms,
            max_attempts,
            on_disconnect: wish.on_disconnect,
            metadata: wish.metadata,
            thread: wish.thread,
            latest_due: None,
            retry_of: None,
            concurrency_key: wish.concurrency_key,
            correlation_id: wish.correlation_id,
            webhook: wish.webhook,
            budget,
            created_at: now,
        };
        Ok((spec, due, wish.key))
    }
}

impl Node {
    /// Why nothing new is let in: the tenant asks too fast, or too many wait.
    pub(super) fn too_many(&self, tenant: &Tenant, retry_after: Option<Duration>) -> CreateError {
        if let Some(retry_after) = retry_after {
            return self.too_fast(tenant, retry_after);
        }
        self.metrics.run_refused(&self.tenant_label(tenant), "too_many_waiting");
        CreateError::TooManyWaiting { limit: self.settings.max_waiting }
    }

    pub(super) fn too_many_of(&self, tenant: &Tenant) -> CreateError {
        self.metrics.run_refused(&self.tenant_label(tenant), "too_many_of_tenant");
        let limit = self.settings.sharing.share(tenant).max_waiting.unwrap_or(0);
        CreateError::TooManyOfTenant { tenant: tenant.clone(), limit }
    }

    fn too_fast(&self, tenant: &Tenant, retry_after: Duration) -> CreateError {
        self.metrics.run_refused(&self.tenant_label(tenant), "rate_limited");
        CreateError::RateLimited { tenant: tenant.clone(), retry_after }
    }

    /// The tenant as metrics name it: only those that the settings name are told apart.
    fn tenant_label(&self, tenant: &Tenant) -> String {
        let known = *tenant == Tenant::default() || self.settings.sharing.tenants.contains_key(tenant);
        if known { tenant.as_str().to_owned() } else { "other".to_owned() }
    }
}

fn bounded(field: &str, duration: Duration) -> Result<Duration, CreateError> {
    if duration <= LONGEST { Ok(duration) } else { Err(invalid(field, "expected at most 366 days")) }
}

/// A key as the store keeps it.
pub(super) fn stored_key(Key { route, key, fingerprint }: Key, now: Timestamp) -> IdempotencyKey {
    let valid_after = Timestamp::from_millis(now.as_millis() - KEY_KEPT.as_millis() as i64);
    IdempotencyKey { route, key, fingerprint, valid_after }
}

pub(super) fn check_metadata(metadata: &BTreeMap<String, String>, entries: usize) -> Result<(), CreateError> {
    if metadata.len() > entries {
        return Err(invalid("metadata", format!("expected at most {entries} entries")));
    }
    match metadata.iter().find(|(key, value)| key.is_empty() || key.len().max(value.len()) > METADATA_BYTES) {
        Some((key, _)) => {
            let key: String = key.chars().take(64).collect();
            let expected = format!("expected keys of 1 and keys and values of at most {METADATA_BYTES} bytes");
            Err(invalid(&format!("metadata.{key}"), expected))
        }
        None => Ok(()),
    }
}
