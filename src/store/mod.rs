//! The store keeps the truth: which runs there are, how they stand, and what their logs say.
//!
//! [`RunStore`] is the contract; `sqlite` implements it for one process. No SQL dialect shows in the
//! contract, and the adapters do not decide anything: every change of a run's state is the pure
//! machine's (`crate::run`), made under the row's lock or by the run's owner.
//!
//! Two kinds of writers change a run. While it is `running`, its owner commits what it has decided,
//! fenced by the attempt ([`RunStore::commit`]). At any other time whoever comes first changes it
//! by [`RunStore::transition`], which decides under the lock. A command for a running run becomes a
//! row beside it, for the owner to find.

mod error;
pub mod sqlite;
#[cfg(test)]
mod suite;

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;

use crate::run::{Command, Effect, Rejection, Run, RunId, Segment, Status, Tenant, Timestamp};

pub use crate::run::StepRecord;

pub use error::StoreError;

/// Keeps runs, their logs, steps, timers and commands. All methods are cancellation safe: a dropped
/// call either happened as a whole or not at all.
#[async_trait]
pub trait RunStore: Send + Sync + 'static {
    /// Creates a run, with its first events, its timers and its idempotency key, in one transaction.
    async fn create(&self, new: NewRun) -> Result<Created, StoreError>;

    /// The tenant's run `id`.
    async fn get(&self, tenant: &Tenant, id: RunId) -> Result<Option<Stored>, StoreError>;

    /// The tenant's runs that match `filter`, youngest first, at most `limit`.
    async fn list(&self, tenant: &Tenant, filter: RunFilter, limit: usize) -> Result<Vec<Stored>, StoreError>;

    /// Removes a final run with all that belongs to it.
    async fn delete(&self, tenant: &Tenant, id: RunId) -> Result<Deleted, StoreError>;

    /// Claims the next queued runs: highest priority first, then oldest. Each one's status, attempt
    /// and first event are written in the same transaction. None left is no error.
    async fn claim(&self, claim: Claim) -> Result<Vec<Claimed>, StoreError>;

    /// Writes what the owner of a running run has decided, if it still is the owner.
    async fn commit(&self, commit: Commit) -> Result<Committed, StoreError>;

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
    /// `Crash` (or the cancel that waits for them). For a store of one process those are the runs that
    /// were running when it was opened; an empty answer means that there are none left.
    async fn recover(&self, now: Timestamp, limit: usize) -> Result<Vec<Transition>, StoreError>;

    /// Gives up the attempt of a running run whose owner within this process is gone, as
    /// [`recover`](Self::recover) does. Rejected when the run is not running as that attempt.
    async fn give_up(&self, id: RunId, attempt: u32, now: Timestamp) -> Result<Transition, StoreError>;

    /// How many runs have each status that is not final.
    async fn counts(&self) -> Result<BTreeMap<Status, u64>, StoreError>;

    /// Removes idempotency keys kept since before `before`, at most `limit`; returns how many.
    async fn forget_keys(&self, before: Timestamp, limit: usize) -> Result<u64, StoreError>;

    /// Checks that the store can be read and written.
    async fn health(&self) -> Result<(), StoreError>;

    /// Finishes what was accepted and closes. Idempotent; later calls fail with
    /// [`StoreError::Closed`].
    async fn close(&self);
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
    /// The key was used before with the same body: this is the first one's run.
    Existing(Box<Stored>),
    /// The key was used before with another body.
    KeyReused,
    /// Too many runs wait already.
    TooManyWaiting,
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
    /// How many runs it has room for, at least 1.
    pub room: usize,
    /// How many sequence numbers to reserve for each.
    pub reserve: u64,
    /// The time.
    pub now: Timestamp,
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
}

/// What became of a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Committed {
    /// It is written.
    Done,
    /// Nothing is written: the run is no longer this attempt's.
    Fenced,
    /// Nothing is written: the commit would have let the run go while a cancel waits for it.
    CancelWaits,
}

/// What became of a transition.
#[derive(Debug, Clone, PartialEq)]
pub enum Transition {
    /// It is written.
    Done(Box<Changed>),
    /// The run is running, and the command is kept for its owner.
    Handed(Box<Stored>),
    /// Nothing changed.
    Rejected(Box<Stored>, Rejection),
    /// There is no such run.
    Missing,
}

/// A run after a transition.
#[derive(Debug, Clone, PartialEq)]
pub struct Changed {
    /// The run as it stands now.
    pub run: Run,
    /// The events that brought it there.
    pub segment: Segment,
    /// To be performed by the caller.
    pub effects: Vec<Effect>,
}

/// A timer of the store. Ordered by due time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TimerKey {
    /// When it fires.
    pub due: Timestamp,
    /// The run it belongs to.
    pub run: RunId,
    /// What it is for.
    pub kind: TimerKind,
}

/// What a timer is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TimerKind {
    /// The run's time-to-live.
    Ttl,
    /// The end of its delay or backoff: the run's timer of this number.
    Due(u64),
}

impl TimerKind {
    /// The command that says it is due.
    #[must_use]
    pub fn command(self) -> Command {
        match self {
            Self::Ttl => Command::Expire,
            Self::Due(timer) => Command::Fire { timer },
        }
    }
}
