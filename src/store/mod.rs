//! The store keeps the truth: which runs there are, how they stand, and what their logs say.
//!
//! [`Store`] is the contract, of narrow ones by topic: runs, threads, schedules, dead letters, retention, nodes and
//! webhooks. `sqlite`
//! implements it for one process, `postgres` for many. No SQL dialect shows in the contract, and the
//! adapters do not decide anything: every change of a run's state is the pure machine's
//! (`crate::run`), made under the row's lock or by the run's owner.
//!
//! Two kinds of writers change a run. While it is `running`, its owner commits what it has decided,
//! fenced by the attempt ([`RunStore::commit`]). At any other time whoever comes first changes it
//! by [`RunStore::transition`], which decides under the lock. A command for a running run becomes a
//! row beside it, for the owner to find.

mod error;
pub mod postgres;
mod retention;
mod schedules;
pub(crate) mod shares;
mod spelling;
pub mod sqlite;
#[cfg(test)]
mod suite;
mod threads;
pub(crate) mod webhooks;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use uuid::Uuid;

use crate::run::{Command, Message, Rejection, Run, RunId, Segment, Status, Tenant, ThreadId, Timestamp};
use crate::thread::FollowUpRule;

pub use crate::run::{Changed, StepRecord};

pub use error::StoreError;
pub use retention::RetentionStore;
pub use schedules::{Schedule, ScheduleCreated, ScheduleStore};
pub use shares::Limits;
pub use threads::{
    Admission, Admitted, Conversation, HandOff, Moved, NewThread, Patch, ThreadCreated, ThreadDeleted, ThreadStore,
};
pub use webhooks::{
    Delivery, DeliveryFilter, DeliveryStatus, Due, Endpoint, EndpointCreated, EndpointPatch, Redelivered, Rotated,
    Settled, Settlement, ThreadNews, WebhookStore,
};

/// All that a store keeps.
pub trait Store:
    RunStore + ThreadStore + ScheduleStore + DeadLetterStore + RetentionStore + NodeStore + WebhookStore
{
}

impl<S> Store for S where
    S: RunStore + ThreadStore + ScheduleStore + DeadLetterStore + RetentionStore + NodeStore + WebhookStore
{
}

/// Keeps runs, their logs, steps, timers and commands. All methods are cancellation safe: a dropped
/// call either happened as a whole or not at all.
#[async_trait]
pub trait RunStore: Send + Sync + 'static {
    /// Creates a run, with its first events, its timers and its idempotency key, in one transaction. A run of the
    /// same id that is there already is found, whatever its key.
    async fn create(&self, new: NewRun) -> Result<Created, StoreError>;

    /// The tenant's run `id`.
    async fn get(&self, tenant: &Tenant, id: RunId) -> Result<Option<Stored>, StoreError>;

    /// Whose run `id` is: for operators, who may not know.
    async fn tenant_of(&self, id: RunId) -> Result<Option<Tenant>, StoreError>;

    /// The tenant's runs that match `filter`, youngest first, at most `limit`.
    async fn list(&self, tenant: &Tenant, filter: RunFilter, limit: usize) -> Result<Vec<Stored>, StoreError>;

    /// Removes a final run with all that belongs to it.
    async fn delete(&self, tenant: &Tenant, id: RunId) -> Result<Deleted, StoreError>;

    /// Claims the next queued runs: highest priority first, then in fair order between tenants; of equal
    /// priority, the agents take turns. Runs that a limit keeps waiting are passed over; limits hold
    /// exactly, whoever claims at the same time with the same limits. Each one's status, attempt, lease and
    /// first event are written in the same transaction. None left is no error.
    async fn claim(&self, claim: Claim) -> Result<Vec<Claimed>, StoreError>;

    /// Writes what the owner of a running run has decided, if it still is the owner.
    async fn commit(&self, commit: Commit) -> Result<Committed, StoreError>;

    /// Extends the leases of `owned` (runs and the attempts that own them) to `lease` from now, in one
    /// statement. The answer holds those that still are the run's; the others are lost. A lease that has
    /// ended can be extended as long as nobody has taken the run. A store of one process has no leases
    /// that end, and merely tells which are still owned.
    async fn extend(&self, owned: &[(RunId, u32)], lease: Duration) -> Result<Vec<Held>, StoreError>;

    /// Lets the machine decide `command` for run `id` under the lock of its row, and writes what
    /// follows. A running run is left to its owner: `Cancel` is kept as a row for it to find, and every
    /// other command is rejected.
    async fn transition(
        &self,
        tenant: Option<&Tenant>,
        id: RunId,
        command: Command,
        now: Timestamp,
    ) -> Result<Transition, StoreError>;

    /// The log of run `id` after number `after`, oldest first: at least one segment if there is any,
    /// and about `max_bytes` of frames at the most. The first segment may begin before `after`.
    async fn segments(&self, id: RunId, after: u64, max_bytes: usize) -> Result<Vec<Segment>, StoreError>;

    /// Timers due until `until`, earliest first, at most `limit`, beginning after `after` in the order
    /// of [`TimerKey`].
    async fn timers(
        &self,
        until: Timestamp,
        after: Option<TimerKey>,
        limit: usize,
    ) -> Result<Vec<TimerKey>, StoreError>;

    /// Removes a timer that turned out to be stale.
    async fn drop_timer(&self, timer: TimerKey) -> Result<(), StoreError>;

    /// Gives up the attempt of up to `limit` running runs whose owner is gone, by the machine's
    /// `Crash` (or the cancel that waits for them). For a store of many nodes those are the runs whose
    /// lease has ended, by the store's clock; for a store of one process those that were running when it
    /// was opened. An empty answer means that there are none left.
    async fn recover(&self, now: Timestamp, limit: usize) -> Result<Vec<Transition>, StoreError>;

    /// Gives up the attempt of a running run whose owner within this process is gone, as
    /// [`recover`](Self::recover) does. Rejected when the run is not running as that attempt.
    async fn give_up(&self, id: RunId, attempt: u32, now: Timestamp) -> Result<Transition, StoreError>;

    /// Lets go, free of charge, of up to `limit` runs that are running as `node`'s and are not among `live`:
    /// those of a claim whose answer was lost. Nothing else may claim for that node meanwhile.
    async fn let_go_strays(
        &self,
        node: &str,
        live: &[RunId],
        now: Timestamp,
        limit: usize,
    ) -> Result<Vec<Transition>, StoreError>;

    /// How many runs have each status that is not final.
    async fn counts(&self) -> Result<BTreeMap<Status, u64>, StoreError>;

    /// How the logs of `runs` stand, in any order; runs that do not exist are left out.
    async fn heads(&self, runs: &[RunId]) -> Result<Vec<Head>, StoreError>;

    /// How many runs are queued for each agent and version, and how many of these the limits let begin; agents without
    /// any are left out.
    async fn queued(&self, limits: &Arc<Limits>) -> Result<Vec<Queued>, StoreError>;

    /// How much waits where.
    async fn depths(&self) -> Result<Depths, StoreError>;

    /// What each tenant has queued and running; tenants without any are left out.
    async fn depths_by_tenant(&self) -> Result<BTreeMap<Tenant, TenantDepths>, StoreError>;

    /// Removes idempotency keys kept since before `before`, at most `limit`; returns how many.
    async fn forget_keys(&self, before: Timestamp, limit: usize) -> Result<u64, StoreError>;

    /// Checks that the store can be read and written.
    async fn health(&self) -> Result<(), StoreError>;

    /// Finishes what was accepted and closes. Idempotent; later calls fail with
    /// [`StoreError::Closed`].
    async fn close(&self);
}

/// Keeps what could not be done and waits for a person: runs that have failed (put there with their
/// final event, in the same transaction, and removed with the run), and messages of foreign queues that
/// no run could be made of. All methods are cancellation safe.
#[async_trait]
pub trait DeadLetterStore: Send + Sync + 'static {
    /// Keeps a letter. One that is there already, by its id, is left as it is.
    async fn bury(&self, letter: DeadLetter) -> Result<(), StoreError>;

    /// Letters, in the order of their times and ids, at most `limit`, beginning after `after`.
    async fn dead_letters(&self, after: Option<(Timestamp, Uuid)>, limit: usize)
    -> Result<Vec<DeadLetter>, StoreError>;

    /// The letter `id`.
    async fn dead_letter(&self, id: Uuid) -> Result<Option<DeadLetter>, StoreError>;

    /// Removes letters; returns how many there were. The runs they are about stay.
    async fn discard(&self, letters: Discard) -> Result<u64, StoreError>;
}

/// Keeps what all nodes on one store must agree on.
#[async_trait]
pub trait NodeStore: Send + Sync + 'static {
    /// What all nodes have agreed on. The first node that asks decides it by `proposal`; so does one that
    /// asks to `adopt`, whatever was agreed before.
    async fn agree(&self, proposal: &Proposal, adopt: bool) -> Result<Agreement, StoreError>;
}

/// What a node would have all nodes agree on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proposal {
    /// `local` or `production`.
    pub mode: String,
    /// The broker namespace.
    pub namespace: String,
}

/// What the nodes on one store have agreed on, and what there is to know of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agreement {
    /// Made up when the store was: tells stores apart.
    pub store: Uuid,
    /// What was proposed first, or adopted since.
    pub agreed: Proposal,
    /// The schema version of the data.
    pub schema: u32,
    /// The schema version that this program would bring the data to. It can work with the one before, too.
    pub known_schema: u32,
    /// The store's own clock.
    pub clock: Timestamp,
}

/// Something that could not be done and waits for a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// The run's id, the delivery's, or one made for the message.
    pub id: Uuid,
    /// When it came here.
    pub at: Timestamp,
    /// Where it came from: `run`, `webhook`, or the name of the foreign queue.
    pub source: String,
    /// The run that failed.
    pub run: Option<RunId>,
    /// What a person will read.
    pub reason: String,
    /// The message as it came; empty for a run; for a webhook what it was about, as JSON.
    pub payload: Bytes,
}

impl DeadLetter {
    /// The letter about a run that has failed.
    #[must_use]
    pub fn of_run(run: &Run) -> Self {
        let reason = run.error.as_ref().map(|error| format!("{}: {}", error.code, error.message));
        Self {
            id: *run.spec.id.as_uuid(),
            at: run.finished_at.unwrap_or(run.spec.created_at),
            source: "run".to_owned(),
            run: Some(run.spec.id),
            reason: reason.unwrap_or_default(),
            payload: Bytes::new(),
        }
    }
}

/// Which letters to remove.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Discard {
    /// This one.
    One(Uuid),
    /// All of them.
    All,
}

/// A run that is still owned by the attempt that asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// The run.
    pub run: RunId,
    /// The attempt.
    pub attempt: u32,
    /// A cancel waits for its owner.
    pub cancel_requested: bool,
}

/// How a run's log stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// The run.
    pub run: RunId,
    /// The number of the last event in the store.
    pub last_seq: u64,
    /// The run's status.
    pub status: Status,
}

/// How many runs are queued for an agent.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Queued {
    /// The agent's name.
    pub agent: String,
    /// Its version.
    pub version: String,
    /// How many runs are queued for it.
    pub runs: u64,
    /// How many of these could begin, as far as limits go.
    pub free: u64,
}

/// How much waits where.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Depths {
    /// Queued, with a priority of 0 or lower.
    pub pending: u64,
    /// Queued, with a priority above 0.
    pub high_priority: u64,
    /// Running.
    pub processing: u64,
    /// Scheduled for another attempt.
    pub retry: u64,
    /// Scheduled for any other reason.
    pub scheduled: u64,
    /// Waiting for input or approval.
    pub waiting: u64,
    /// Dead letters.
    pub failed: u64,
}

/// What a tenant has queued and running.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TenantDepths {
    /// Queued runs.
    pub queued: u64,
    /// Running ones.
    pub running: u64,
}

/// A run and what the store keeps beside its state.
#[derive(Debug, Clone, PartialEq)]
pub struct Stored {
    /// The run.
    pub run: Run,
    /// No number beyond this one has been shown to anyone.
    pub reserved_seq: u64,
    /// A cancel waits for the run's owner.
    pub cancel_requested: bool,
}

/// A run to be created.
#[derive(Debug, Clone)]
pub struct NewRun {
    /// Its state after its first events.
    pub run: Run,
    /// Its first events.
    pub segment: Segment,
    /// The caller's key.
    pub key: Option<IdempotencyKey>,
    /// Refuse when so many runs are scheduled or queued.
    pub max_waiting: u64,
    /// What its tenant is entitled to.
    pub share: Share,
}

/// What a tenant is entitled to, as far as a new run is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// Tenants that all have runs queued are served in proportion to their weights.
    pub weight: u32,
    /// Refuse when so many of the tenant's runs are scheduled or queued. Exact in a store of one process; near
    /// the bound, several nodes on one store may exceed it by what they create in the same moment.
    pub max_waiting: Option<u64>,
}

impl Default for Share {
    /// Weight 1, no bound.
    fn default() -> Self {
        Self { weight: 1, max_waiting: None }
    }
}

/// Makes a repeated request find the first one's run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdempotencyKey {
    /// The route it was sent to; keys are per tenant and route.
    pub route: &'static str,
    /// The caller's key.
    pub key: String,
    /// Tells requests apart that reuse a key: a SHA-256 of the body.
    pub fingerprint: [u8; 32],
    /// Keys kept since before this time count as forgotten.
    pub valid_after: Timestamp,
}

/// What became of a creation.
#[derive(Debug, Clone, PartialEq)]
pub enum Created {
    /// The run exists now.
    New,
    /// The key was used before with the same body: this is the first one's run. Or the run was created before.
    Existing(Box<Stored>),
    /// The key was used before with another body.
    KeyReused,
    /// Too many runs wait already.
    TooManyWaiting,
    /// Too many runs of the tenant wait already.
    TooManyOfTenant,
}

/// Which runs to list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RunFilter {
    /// Only those older than this one (where the page before ended).
    pub before: Option<RunId>,
    /// Only those with one of these statuses; empty: all.
    pub statuses: Vec<Status>,
    /// Only those of this agent.
    pub agent: Option<String>,
    /// Only those of this thread.
    pub thread: Option<ThreadId>,
    /// Only those with all these labels.
    pub metadata: BTreeMap<String, String>,
    /// Only those created at or after.
    pub created_after: Option<Timestamp>,
    /// Only those created before.
    pub created_before: Option<Timestamp>,
}

/// What became of a removal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deleted {
    /// It is gone.
    Done,
    /// There is no such run.
    Missing,
    /// It has not ended.
    NotFinal(Status),
}

/// What a worker asks for when it claims.
#[derive(Debug, Clone)]
pub struct Claim {
    /// The claiming node.
    pub node: Arc<str>,
    /// The agents it has: name and version.
    pub agents: Arc<[(String, String)]>,
    /// The place in `agents` of the one whose turn it is among those with runs of equal priority.
    pub turn: usize,
    /// How many runs may be running at once. All nodes on a store should say the same.
    pub limits: Arc<Limits>,
    /// How many runs it has room for, at least 1.
    pub room: usize,
    /// How many sequence numbers to reserve for each.
    pub reserve: u64,
    /// How long they are this node's, unless it extends that.
    pub lease: Duration,
    /// The time.
    pub now: Timestamp,
}

impl Claim {
    /// The agents and versions, each once, with how many others have their turn before it.
    fn lanes(&self) -> impl Iterator<Item = (usize, &str, &str)> {
        let agents = &self.agents;
        let first = |at: &usize| !agents[..*at].contains(&agents[*at]);
        (0..agents.len()).filter(first).map(|at| {
            let turn = (at + agents.len() - self.turn % agents.len()) % agents.len();
            (turn, agents[at].0.as_str(), agents[at].1.as_str())
        })
    }
}

/// A run that was claimed.
#[derive(Debug, Clone)]
pub struct Claimed {
    /// The run, `running`, with its new attempt.
    pub run: Run,
    /// Its `run.started` event.
    pub segment: Segment,
    /// Numbers up to this one may be shown.
    pub reserved_seq: u64,
    /// Its finished steps, in order.
    pub steps: Vec<StepRecord>,
}

/// What the owner of a running run has decided. Fenced by `run.attempt`.
#[derive(Debug, Clone)]
pub struct Commit {
    /// The run's state after the segment's events.
    pub run: Run,
    /// Counts the owner's commits within the attempt from 1. A commit that was done but whose answer
    /// got lost is recognised by it.
    pub number: u64,
    /// Events since the last commit.
    pub segment: Option<Segment>,
    /// Numbers up to this one may be shown from now on.
    pub reserved_seq: u64,
    /// A step that is finished with these events.
    pub step: Option<StepRecord>,
    /// What the end of a run means for its thread; none while it goes on, and for a run without a thread.
    pub farewell: Option<Farewell>,
}

/// What a run leaves to its thread when it ends.
#[derive(Debug, Clone, PartialEq)]
pub struct Farewell {
    /// What it said, with new ids.
    pub said: Vec<(Uuid, Message)>,
    /// The follow-ups that its agent declares.
    pub rules: Arc<[FollowUpRule]>,
    /// The time.
    pub now: Timestamp,
}

/// What became of a commit.
#[derive(Debug, Clone, PartialEq)]
pub enum Committed {
    /// It is written.
    Done,
    /// Nothing is written: the run is no longer this attempt's.
    Fenced,
    /// It is written, and so is what followed from it for its thread.
    Followed(Followed),
    /// Nothing is written: the commit would have let the run go while a cancel waits for it.
    CancelWaits,
    /// Nothing is written: the run would have completed without having looked at messages that were handed to it.
    SteerWaits,
}

/// What followed for a thread from the change of one of its runs.
#[derive(Debug, Clone, PartialEq)]
pub struct Followed {
    /// Other runs that have changed: the next that has the thread.
    pub changed: Vec<Changed>,
    /// The follow-up that is armed now.
    pub armed: Option<TimerKey>,
}

/// What became of a transition.
#[derive(Debug, Clone, PartialEq)]
pub enum Transition {
    /// It is written.
    Done(Box<Changed>),
    /// It is written, and so is what followed from it for its thread.
    Followed(Box<Changed>, Followed),
    /// The run is running, and the command is kept for its owner.
    Handed(Box<Stored>),
    /// Nothing changed.
    Rejected(Box<Stored>, Rejection),
    /// There is no such run.
    Missing,
}

/// A timer of the store. Ordered by due time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TimerKey {
    /// When it fires.
    pub due: Timestamp,
    /// What it belongs to: a run, a thread or a schedule, as its kind says.
    pub owner: Uuid,
    /// What it is for.
    pub kind: TimerKind,
}

/// What a timer is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TimerKind {
    /// The run's time-to-live.
    Ttl,
    /// The end of its delay, backoff, debounce or wait: the run's timer of this number.
    Due(u64),
    /// The thread's follow-up: its timer of this number.
    FollowUp(u64),
    /// The schedule's next firing: its timer of this number.
    Schedule(u64),
}

impl TimerKey {
    /// The run that it belongs to, and the command that says it is due; none if it is no run's.
    #[must_use]
    pub fn of_run(&self) -> Option<(RunId, Command)> {
        let command = match self.kind {
            TimerKind::Ttl => Command::Expire,
            TimerKind::Due(timer) => Command::Fire { timer },
            TimerKind::FollowUp(_) | TimerKind::Schedule(_) => return None,
        };
        Some((RunId::from_uuid(self.owner), command))
    }
}
