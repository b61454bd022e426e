//! The contract for threads.

use std::collections::BTreeMap;

use super::{Changed, IdempotencyKey, Share, StoreError, Stored};
use crate::run::{Message, Run, RunId, Tenant, ThreadId, Timestamp};
use crate::thread::{Ask, Event, How, Refusal, Thread, ThreadMessage};
use async_trait::async_trait;
use serde_json::{Map, Value};

/// Keeps threads, their messages and their logs. What concerns more than one run of a thread is decided by the pure
/// part (`crate::thread`) under the lock of the thread's row, which every change of one of its runs takes that may
/// give the thread to another: admission, timers, cancels, answers, and the end of a run. All methods are
/// cancellation safe.
#[async_trait]
pub trait ThreadStore: Send + Sync + 'static {
    /// Creates a thread.
    async fn create_thread(&self, new: NewThread) -> Result<ThreadCreated, StoreError>;

    /// Thread `id`, if it is the tenant's; without one, whoever's it is.
    async fn thread(&self, tenant: Option<&Tenant>, id: ThreadId) -> Result<Option<Thread>, StoreError>;

    /// The tenant's threads, youngest first, at most `limit`, only those older than `before`, with all of `metadata`.
    async fn threads(
        &self,
        tenant: &Tenant,
        before: Option<ThreadId>,
        metadata: &BTreeMap<String, String>,
        limit: usize,
    ) -> Result<Vec<Thread>, StoreError>;

    /// Changes what belongs to the caller. The answer is the thread as it stands then.
    async fn patch_thread(&self, tenant: &Tenant, id: ThreadId, patch: Patch) -> Result<Option<Thread>, StoreError>;

    /// Removes a thread whose runs have all ended, with all that belongs to it and to them.
    async fn delete_thread(&self, tenant: &Tenant, id: ThreadId) -> Result<ThreadDeleted, StoreError>;

    /// Removes up to `limit` threads in which nothing has happened since `before`, nothing is going on and nothing is
    /// to come or to be told by a webhook; fewer if that takes long. Returns which. None are left when none were
    /// removed.
    async fn delete_idle_threads(&self, before: Timestamp, limit: usize) -> Result<Vec<ThreadId>, StoreError>;

    /// Something comes into the thread, by [`Found::admit`](crate::thread::Found::admit).
    async fn admit(&self, admission: Admission) -> Result<Admitted, StoreError>;

    /// People take the thread over, by [`Found::hand_off`](crate::thread::Found::hand_off). Nothing changes when they
    /// have it.
    async fn hand_off(&self, hand_off: HandOff) -> Result<Option<Moved>, StoreError>;

    /// The thread's follow-up, if it still is the timer of this `number`, is due at `due` instead; without one it is
    /// armed no more. Its timer goes with it.
    async fn put_off_follow_up(&self, id: ThreadId, number: u64, due: Option<Timestamp>) -> Result<(), StoreError>;

    /// The thread is given back, by [`Found::release`](crate::thread::Found::release).
    async fn release_thread(&self, tenant: &Tenant, id: ThreadId, now: Timestamp) -> Result<Option<Moved>, StoreError>;

    /// Messages of a thread after number `after`, oldest first, at most `limit`.
    async fn messages(&self, id: ThreadId, after: u64, limit: usize) -> Result<Vec<ThreadMessage>, StoreError>;

    /// What the agent of run `run` is shown of its thread: the last messages of the turns before the run's, oldest
    /// first, at most `max_messages` and some `max_bytes` of text, but at least one if there is any; and the messages
    /// that were handed to the run while it was going on and that it has looked at.
    async fn conversation(&self, run: RunId, max_messages: usize, max_bytes: usize)
    -> Result<Conversation, StoreError>;

    /// The messages that were handed to the run and that it has not looked at, in order. From now on it has, after
    /// step `after_step`. None if the run is not running as `attempt`.
    async fn take_steers(&self, run: RunId, attempt: u32, after_step: u32) -> Result<Vec<Message>, StoreError>;

    /// The thread's own log after entry `after`, oldest first, at most `limit`.
    async fn thread_log(&self, id: ThreadId, after: u64, limit: usize) -> Result<Vec<Event>, StoreError>;
}

/// A thread to be created.
#[derive(Debug, Clone)]
pub struct NewThread {
    /// As it begins.
    pub thread: Thread,
    /// The caller's key.
    pub key: Option<IdempotencyKey>,
}

/// What became of a thread's creation.
#[derive(Debug, Clone, PartialEq)]
pub enum ThreadCreated {
    /// It exists now.
    New,
    /// There is one of this id, or the key was used before with the same body: this is it.
    Existing(Box<Thread>),
    /// The key was used before with another body, or there is a thread of this id that is another tenant's.
    Taken,
}

/// What a caller changes about a thread.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Patch {
    /// Labels in place of those it had.
    pub metadata: Option<BTreeMap<String, String>>,
    /// A document in place of the one it had.
    pub state: Option<Map<String, Value>>,
}

/// What became of a thread's removal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ThreadDeleted {
    /// It is gone, and so are these runs of it.
    Done(Vec<RunId>),
    /// There is no such thread.
    Missing,
    /// This run of it has not ended.
    Busy(RunId),
}

/// Something comes into a thread.
#[derive(Debug, Clone)]
pub struct Admission {
    /// Whose thread.
    pub tenant: Tenant,
    /// Which.
    pub thread: ThreadId,
    /// What.
    pub ask: Ask,
    /// The caller's key. It points to the first message for [`Occasion::Message`](crate::thread::Occasion::Message),
    /// and to the run that was given it for others.
    pub key: Option<IdempotencyKey>,
    /// Refuse when so many runs are scheduled or queued and another would be.
    pub max_waiting: u64,
    /// What the tenant is entitled to, if a run is created.
    pub share: Share,
}

/// What became of an admission.
#[derive(Debug, Clone, PartialEq)]
pub enum Admitted {
    /// It came in.
    Done(Box<Moved>),
    /// The key was used before with the same body: these are the first one's message and run, as they stand.
    Existing {
        /// The message; none for a run.
        message: Option<ThreadMessage>,
        /// The run that was given it.
        run: Option<Box<Stored>>,
    },
    /// The key was used before with another body.
    KeyReused,
    /// Too many runs wait already.
    TooManyWaiting,
    /// Too many of the tenant's runs wait already.
    TooManyOfTenant,
    /// There is no such thread.
    Missing,
    /// It did not come in.
    Refused(Refusal),
}

/// People take a thread over.
#[derive(Debug, Clone)]
pub struct HandOff {
    /// Whose thread.
    pub tenant: Tenant,
    /// Which.
    pub thread: ThreadId,
    /// Why, for people.
    pub reason: String,
    /// The run whose agent asks for it, and its attempt: nothing happens when that is over.
    pub by: Option<(RunId, u32)>,
    /// The time.
    pub now: Timestamp,
}

/// A thread after a change, and what the caller has to show and perform.
#[derive(Debug, Clone, PartialEq)]
pub struct Moved {
    /// The thread as it stands now.
    pub thread: Thread,
    /// What became of what came in.
    pub how: How,
    /// The run that is given it, as it stands now.
    pub run: Option<Run>,
    /// The first of the messages that came in.
    pub message: Option<ThreadMessage>,
    /// The run that was created.
    pub created: Option<Changed>,
    /// Runs that have changed.
    pub changed: Vec<Changed>,
    /// The run whose owner is to be told of a cancel.
    pub cancel: Option<RunId>,
    /// New entries of the thread's log.
    pub events: Vec<Event>,
}

/// What an agent is shown of its thread.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Conversation {
    /// What was said before.
    pub history: Vec<Message>,
    /// What was handed to the run, each with the last step that it had finished when it looked.
    pub steers: Vec<(u32, Message)>,
}
