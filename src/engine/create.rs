//! Accepting runs: new ones, and those that go on from one that ended.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Map, Value};

use super::effects::perform;
use super::mailbox::post;
use super::recovery::KEY_KEPT;
use super::timers::Arm;
use super::{Engine, RunRequestError};
use crate::run::{Input, OnDisconnect, Run, RunId, Segment, Spec, Status, Tenant, Timestamp, Webhook};
use crate::store::{Created, IdempotencyKey, NewRun, StoreError, Stored, TimerKey, TimerKind};
use crate::webhook::KeyError;

/// The longest delay, time-to-live and timeout.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 3600);

/// Priorities lie between minus this and this.
pub(crate) const PRIORITIES: i32 = 100;

/// The longest metadata key and value, in bytes.
const METADATA_BYTES: usize = 512;

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
    /// The caller's labels.
    pub metadata: BTreeMap<String, String>,
    /// Makes the wish safe to repeat.
    pub key: Option<Key>,
    /// Kept on the run.
    pub correlation_id: Option<String>,
    /// Where its news go.
    pub webhook: Option<Webhook>,
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
    /// The key was used for another request.
    #[error("the idempotency key was used before, with another body")]
    KeyReused,
    /// The run to go on from has not failed or been cancelled.
    #[error("the run is {0}; only a failed or cancelled run can be retried")]
    NotRetryable(Status),
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
        let (spec, due, key) = self.check(wish, now)?;
        self.accept(spec, due, 0, key, now).await
    }

    /// Accepts a run that goes on from the last finished step of one that failed or was cancelled.
    pub async fn retry(&self, tenant: &Tenant, id: RunId, key: Option<Key>) -> Result<(Stored, bool), CreateError> {
        let now = self.now();
        let Stored { run, .. } = self.get(tenant, id).await.map_err(|error| match error {
            RunRequestError::Store(error) => CreateError::Store(error),
            RunRequestError::Missing | RunRequestError::NotFinal(_) | RunRequestError::Beyond { .. } => {
                CreateError::Missing
            }
        })?;
        if !matches!(run.status, Status::Failed | Status::Cancelled) {
            return Err(CreateError::NotRetryable(run.status));
        }
        let agent_version = self.card(&run.spec.agent)?.version.clone();
        let spec = Spec {
            id: self.node.clock.run_id(),
            agent_version,
            ttl_at: None,
            retry_of: Some(id),
            created_at: now,
            ..Spec::clone(&run.spec)
        };
        self.accept(spec, None, run.steps, key, now).await
    }

    async fn accept(
        &self,
        spec: Spec,
        due: Option<Timestamp>,
        steps_kept: u32,
        key: Option<Key>,
        now: Timestamp,
    ) -> Result<(Stored, bool), CreateError> {
        if self.is_draining() {
            return Err(CreateError::Draining);
        }
        let node = &self.node;
        let executes_it = node.executed.iter().any(|(agent, _)| *agent == spec.agent);
        if !executes_it && let Some(lacks) = node.peers.lacks(&spec.agent, &spec.agent_version) {
            return Err(CreateError::AgentUnavailable { agent: spec.agent, lacks });
        }
        let limit = node.settings.max_waiting;
        let (run, decision) = Run::create(spec, due, steps_kept);
        let segment = Segment::encode(1, &decision.events, now);
        let valid_after = Timestamp::from_millis(now.as_millis() - KEY_KEPT.as_millis() as i64);
        let key = key.map(|Key { route, key, fingerprint }| IdempotencyKey { route, key, fingerprint, valid_after });
        let new = NewRun { run: run.clone(), segment: segment.clone(), key, max_waiting: limit };
        match node.store.create(new).await? {
            Created::Existing(stored) => return Ok((*stored, true)),
            Created::KeyReused => return Err(CreateError::KeyReused),
            Created::TooManyWaiting => return Err(CreateError::TooManyWaiting { limit }),
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

    fn card(&self, agent: &str) -> Result<&crate::agent::AgentCard, CreateError> {
        self.node.agents.card(agent).ok_or_else(|| CreateError::UnknownAgent {
            agent: agent.chars().take(64).collect(),
            known: self.agents().map(|card| card.name.clone()).collect(),
        })
    }

    fn check(&self, wish: CreateRun, now: Timestamp) -> Result<(Spec, Option<Timestamp>, Option<Key>), CreateError> {
        let settings = &self.node.settings;
        let card = self.card(&wish.agent)?;
        let bytes = wish.input.bytes();
        if bytes > settings.max_input {
            return Err(CreateError::InputTooLarge { bytes, limit: settings.max_input });
        }
        if let Input::Messages(messages) = &wish.input
            && messages.is_empty()
        {
            return Err(invalid("input", "expected at least one message"));
        }
        self.node
            .agents
            .check_params(&wish.agent, &wish.params)
            .map_err(|error| invalid(&error.field, error.message))?;
        if !(-PRIORITIES..=PRIORITIES).contains(&wish.priority) {
            return Err(invalid("priority", format!("expected -{PRIORITIES} to {PRIORITIES}")));
        }
        check_metadata(&wish.metadata, settings.max_metadata_entries)?;
        if let Some(webhook) = &wish.webhook {
            self.check_webhook(webhook)?;
        }
        let due = match wish.start {
            Start::Now => None,
            Start::After(delay) => Some(now.after(bounded("delay_ms", delay)?)),
            Start::At(at) => {
                bounded("run_at", at.since(now))?;
                Some(at)
            }
        };
        let ttl_at = match wish.ttl {
            Some(ttl) => Some(now.after(bounded("ttl_ms", ttl)?)),
            None => None,
        };
        let timeout = bounded("timeout_ms", wish.timeout.or(card.timeout).unwrap_or(settings.timeout))?;
        if timeout.is_zero() {
            return Err(invalid("timeout_ms", "expected at least 1"));
        }
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
            timeout_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX),
            max_attempts,
            on_disconnect: wish.on_disconnect,
            metadata: wish.metadata,
            retry_of: None,
            correlation_id: wish.correlation_id,
            webhook: wish.webhook,
            created_at: now,
        };
        Ok((spec, due, wish.key))
    }
}

fn bounded(field: &str, duration: Duration) -> Result<Duration, CreateError> {
    if duration <= LONGEST { Ok(duration) } else { Err(invalid(field, "expected at most 366 days")) }
}

fn check_metadata(metadata: &BTreeMap<String, String>, entries: usize) -> Result<(), CreateError> {
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
