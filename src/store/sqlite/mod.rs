//! The SQLite adapter: one file, one process.
//!
//! One thread writes, by group commit: whatever waits shares a transaction; another answers when many have waited. A
//! few threads read, and one copies the log to the file. Nothing here runs on the caller's threads but the encoding of
//! what goes in and the parsing of what comes out.

mod answers;
mod checkpoint;
mod claim;
mod commit;
mod create;
mod dead_letters;
mod error;
mod jobs;
mod lock;
mod log;
mod node;
mod reader;
mod retention;
mod rows;
mod runs;
mod schedules;
mod schema;
mod shares;
mod threads;
mod timers;
mod transition;
mod webhooks;
mod writer;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use async_trait::async_trait;
use rusqlite::Connection;
use tokio::sync::watch;
use uuid::Uuid;

use self::answers::Answers;
use self::checkpoint::Checkpointer;
use self::claim::Taken;
use self::commit::Decided;
use self::create::Creation;
use self::jobs::Gate;
use self::lock::FileLock;
use self::reader::Readers;
use self::rows::Found;
use self::shares::Shares;
use self::writer::{Counts, Writer};
use super::{
    Admission, Admitted, Agreement, Claim, Claimed, Commit, Committed, Conversation, Created, DeadLetter,
    DeadLetterStore, Deleted, Delivery, DeliveryFilter, Depths, Discard, Due, Endpoint, EndpointCreated, EndpointPatch,
    HandOff, Head, Held, IdempotencyKey, Limits, Moved, NewRun, NewThread, NodeStore, Patch, Proposal, Queued,
    Redelivered, RetentionStore, Rotated, RunFilter, RunStore, Schedule, ScheduleCreated, ScheduleStore, Settled,
    StoreError, Stored, TenantDepths, ThreadCreated, ThreadDeleted, ThreadNews, ThreadStore, TimerKey, Transition,
    WebhookStore,
};
use crate::run::{Command, Message, RunId, Segment, Status, Tenant, ThreadId, Timestamp};
use crate::thread::{Event, Thread, ThreadMessage};

/// So many writes are accepted at a time; further callers wait their turn.
const WRITES: usize = 4_096;

/// So many reads are accepted at a time; further callers wait their turn.
const READS: usize = 1_024;

/// How to open a [`SqliteStore`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SqliteOptions {
    /// The database file. It is created if it is missing, and its directory, too.
    pub path: PathBuf,
    /// When what is committed is safe from a power failure.
    pub synchronous: Synchronous,
    /// How many threads read, at least 1.
    pub readers: usize,
}

impl SqliteOptions {
    /// The defaults, for the file at `path`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), synchronous: Synchronous::Normal, readers: 2 }
    }
}

/// When what is committed is safe from a power failure. It is safe from the end of the process at once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Synchronous {
    /// At the next checkpoint of the log: a power failure may undo the last commits.
    #[default]
    Normal,
    /// With the commit.
    Full,
}

impl Synchronous {
    fn pragma(self) -> &'static str {
        match self {
            Self::Normal => "normal",
            Self::Full => "full",
        }
    }
}

/// Keeps runs in a SQLite file, which no other process uses at the same time.
pub struct SqliteStore {
    writes: Arc<Gate<Writer>>,
    reads: Arc<Gate<Connection>>,
    counts: Arc<Counts>,
    /// Ends when all connections are closed and the lock is released.
    ended: watch::Receiver<()>,
    /// The writer, which waits for the readers in its turn.
    thread: Option<JoinHandle<()>>,
}

impl SqliteStore {
    /// Opens the store, or creates it. Blocks for some milliseconds.
    ///
    /// # Errors
    ///
    /// [`StoreError::InUse`] when another process has it open; [`StoreError::Foreign`] when the file was
    /// made by a newer version or by another program; [`StoreError::ReadOnly`], [`StoreError::Full`] and
    /// [`StoreError::Corrupt`] by their names. The texts name the file and what was expected.
    pub fn open(options: SqliteOptions) -> Result<Self, StoreError> {
        let SqliteOptions { path, synchronous, readers } = options;
        create_directory(&path)?;
        let lock = FileLock::acquire(&path)?;
        let conn = schema::open_writer(&path, synchronous)?;
        webhooks::reopen(&conn)?;
        let (counted, orphans, shares) = (runs::count(&conn)?, runs::running(&conn)?, Shares::read(&conn)?);
        let connections = (0..readers.max(1)).map(|_| schema::open_reader(&path)).collect::<Result<_, _>>()?;
        let readers = Readers::start(connections, READS)?;
        let reads = readers.gate();
        let checkpointer = Checkpointer::start(schema::open_checkpointer(&path)?)?;
        let answers = Answers::start()?;

        let (writes, work) = Gate::new(WRITES, 1);
        let (writes, counts) = (Arc::new(writes), Arc::new(Counts::new(counted)));
        let (alive, ended) = watch::channel(());
        let mut writer = Writer::new(conn, counted, orphans, shares);
        let (gate, shown) = (writes.clone(), counts.clone());
        let thread = spawn("sqlite-writer", move || {
            writer::run(&mut writer, &work, &gate, &shown, &answers);
            drop(answers);
            // In this order: the last connection to close copies the log to the file and removes it.
            drop(readers);
            drop(checkpointer);
            drop(writer);
            drop(lock);
            drop(alive);
        })?;
        Ok(Self { writes, reads, counts, ended, thread: Some(thread) })
    }

    fn end(&self) {
        self.writes.close();
        self.reads.close();
    }
}

impl std::fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SqliteStore").field("counts", &self.counts).finish_non_exhaustive()
    }
}

/// Finishes what was accepted and releases the lock, as [`RunStore::close`] does, but blocks meanwhile.
impl Drop for SqliteStore {
    fn drop(&mut self) {
        self.end();
        if let Some(thread) = self.thread.take() {
            // If it panicked it has released what it held all the same.
            drop(thread.join());
        }
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, StoreError> {
    let thread = std::thread::Builder::new().name(name.to_owned()).spawn(work);
    thread.map_err(|error| StoreError::Unavailable(format!("no thread can be started: {error}")))
}

fn create_directory(path: &Path) -> Result<(), StoreError> {
    let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) else { return Ok(()) };
    std::fs::create_dir_all(directory).map_err(|error| {
        StoreError::ReadOnly(format!(
            "the directory {} cannot be created: {error}; expected a directory that can be written to",
            directory.display()
        ))
    })
}

#[async_trait]
impl RunStore for SqliteStore {
    async fn create(&self, new: NewRun) -> Result<Created, StoreError> {
        let creation = Creation::new(new)?;
        self.writes.call(move |writer| creation.write(writer)).await?.complete()
    }

    async fn get(&self, tenant: &Tenant, id: RunId) -> Result<Option<Stored>, StoreError> {
        let tenant = tenant.clone();
        let found = self.reads.call(move |conn| runs::get(conn, &tenant, id)).await?;
        found.map(Found::into_stored).transpose()
    }

    async fn tenant_of(&self, id: RunId) -> Result<Option<Tenant>, StoreError> {
        self.reads.call(move |conn| runs::tenant_of(conn, id)).await
    }

    async fn list(&self, tenant: &Tenant, filter: RunFilter, limit: usize) -> Result<Vec<Stored>, StoreError> {
        let tenant = tenant.clone();
        let found = self.reads.call(move |conn| runs::list(conn, &tenant, &filter, limit)).await?;
        found.into_iter().map(Found::into_stored).collect()
    }

    async fn delete(&self, tenant: &Tenant, id: RunId) -> Result<Deleted, StoreError> {
        let tenant = tenant.clone();
        self.writes.call(move |writer| runs::delete(writer.conn(), &tenant, id)).await
    }

    async fn claim(&self, claim: Claim) -> Result<Vec<Claimed>, StoreError> {
        let now = claim.now;
        let taken = self.writes.call(move |writer| claim::claim(writer, &claim)).await?;
        let mut claimed = Vec::with_capacity(taken.len());
        for (id, attempt, taken) in taken.into_iter().map(Taken::complete) {
            match taken {
                Ok(taken) => claimed.push(taken),
                Err(error) => {
                    // It is claimed, but nobody can execute it: its budget decides how often that happens.
                    tracing::error!(run = %id, %error, "a claimed run cannot be read");
                    self.writes.call(move |writer| transition::give_up(writer, id, attempt, now)).await?;
                }
            }
        }
        Ok(claimed)
    }

    async fn commit(&self, commit: Commit) -> Result<Committed, StoreError> {
        let decided = Decided::new(commit)?;
        self.writes.call(move |writer| decided.write(writer)).await
    }

    async fn extend(&self, owned: &[(RunId, u32)], _lease: Duration) -> Result<Vec<Held>, StoreError> {
        let owned = owned.to_vec();
        self.reads.call(move |conn| runs::held(conn, &owned)).await
    }

    async fn transition(
        &self,
        tenant: Option<&Tenant>,
        id: RunId,
        command: Command,
        now: Timestamp,
    ) -> Result<Transition, StoreError> {
        let tenant = tenant.cloned();
        let decide = move |writer: &mut Writer| transition::transition(writer, tenant.as_ref(), id, &command, now);
        self.writes.call(decide).await?.complete()
    }

    async fn segments(&self, id: RunId, after: u64, max_bytes: usize) -> Result<Vec<Segment>, StoreError> {
        self.reads.call(move |conn| log::read(conn, id, after, max_bytes)).await
    }

    async fn timers(
        &self,
        until: Timestamp,
        after: Option<TimerKey>,
        limit: usize,
    ) -> Result<Vec<TimerKey>, StoreError> {
        self.reads.call(move |conn| timers::read(conn, until, after, limit)).await
    }

    async fn drop_timer(&self, timer: TimerKey) -> Result<(), StoreError> {
        self.writes.call(move |writer| timers::remove(writer.conn(), timer)).await
    }

    async fn recover(&self, now: Timestamp, limit: usize) -> Result<Vec<Transition>, StoreError> {
        let outcomes = self.writes.call(move |writer| transition::recover(writer, now, limit)).await?;
        outcomes.into_iter().map(transition::Outcome::complete).collect()
    }

    async fn give_up(&self, id: RunId, attempt: u32, now: Timestamp) -> Result<Transition, StoreError> {
        self.writes.call(move |writer| transition::give_up(writer, id, attempt, now)).await?.complete()
    }

    async fn let_go_strays(
        &self,
        node: &str,
        live: &[RunId],
        now: Timestamp,
        limit: usize,
    ) -> Result<Vec<Transition>, StoreError> {
        let (node, live) = (node.to_owned(), live.to_vec());
        let let_go = move |writer: &mut Writer| transition::let_go_strays(writer, &node, &live, now, limit);
        let outcomes = self.writes.call(let_go).await?;
        outcomes.into_iter().map(transition::Outcome::complete).collect()
    }

    async fn counts(&self) -> Result<BTreeMap<Status, u64>, StoreError> {
        if self.writes.is_closed() {
            return Err(StoreError::Closed);
        }
        let counts = *self.counts.lock();
        Ok(writer::COUNTED.into_iter().zip(counts).collect())
    }

    async fn heads(&self, runs: &[RunId]) -> Result<Vec<Head>, StoreError> {
        let runs = runs.to_vec();
        self.reads.call(move |conn| runs::heads(conn, &runs)).await
    }

    async fn queued(&self, limits: &Arc<Limits>) -> Result<Vec<Queued>, StoreError> {
        let limits = Arc::clone(limits);
        self.reads.call(move |conn| runs::queued(conn, &limits)).await
    }

    async fn depths(&self) -> Result<Depths, StoreError> {
        self.reads.call(runs::depths).await
    }

    async fn depths_by_tenant(&self) -> Result<BTreeMap<Tenant, TenantDepths>, StoreError> {
        self.reads.call(runs::depths_by_tenant).await
    }

    async fn forget_keys(&self, before: Timestamp, limit: usize) -> Result<u64, StoreError> {
        self.writes.call(move |writer| create::forget_keys(writer.conn(), before, limit)).await
    }

    async fn health(&self) -> Result<(), StoreError> {
        self.writes.call(|writer| schema::set_version(writer.conn())).await?;
        self.reads.call(|conn| Ok(conn.prepare_cached("SELECT 1 FROM runs LIMIT 1")?.exists([]).map(|_| ())?)).await
    }

    async fn close(&self) {
        self.end();
        // Nothing is ever sent: this ends when the writer has gone.
        drop(self.ended.clone().changed().await);
    }
}

#[async_trait]
impl ThreadStore for SqliteStore {
    async fn create_thread(&self, new: NewThread) -> Result<ThreadCreated, StoreError> {
        self.writes.call(move |writer| threads::create(writer, &new)).await
    }

    async fn thread(&self, tenant: Option<&Tenant>, id: ThreadId) -> Result<Option<Thread>, StoreError> {
        let tenant = tenant.cloned();
        self.reads.call(move |conn| threads::get(conn, tenant.as_ref(), id)).await
    }

    async fn threads(
        &self,
        tenant: &Tenant,
        before: Option<ThreadId>,
        metadata: &BTreeMap<String, String>,
        limit: usize,
    ) -> Result<Vec<Thread>, StoreError> {
        let (tenant, metadata) = (tenant.clone(), metadata.clone());
        self.reads.call(move |conn| threads::list(conn, &tenant, before, &metadata, limit)).await
    }

    async fn patch_thread(&self, tenant: &Tenant, id: ThreadId, patch: Patch) -> Result<Option<Thread>, StoreError> {
        let tenant = tenant.clone();
        self.writes.call(move |writer| threads::patch(writer, &tenant, id, &patch)).await
    }

    async fn delete_thread(&self, tenant: &Tenant, id: ThreadId) -> Result<ThreadDeleted, StoreError> {
        let tenant = tenant.clone();
        self.writes.call(move |writer| threads::delete(writer.conn(), &tenant, id)).await
    }

    async fn delete_idle_threads(&self, before: Timestamp, limit: usize) -> Result<Vec<ThreadId>, StoreError> {
        self.writes.call(move |writer| threads::delete_idle(writer.conn(), before, limit)).await
    }

    async fn admit(&self, admission: Admission) -> Result<Admitted, StoreError> {
        self.writes.call(move |writer| threads::admit(writer, &admission)).await
    }

    async fn hand_off(&self, hand_off: HandOff) -> Result<Option<Moved>, StoreError> {
        self.writes.call(move |writer| threads::hand_off(writer, &hand_off)).await
    }

    async fn put_off_follow_up(&self, id: ThreadId, number: u64, due: Option<Timestamp>) -> Result<(), StoreError> {
        self.writes.call(move |writer| threads::put_off_follow_up(writer.conn(), id, number, due)).await
    }

    async fn release_thread(&self, tenant: &Tenant, id: ThreadId, now: Timestamp) -> Result<Option<Moved>, StoreError> {
        let tenant = tenant.clone();
        self.writes.call(move |writer| threads::release(writer, &tenant, id, now)).await
    }

    async fn messages(&self, id: ThreadId, after: u64, limit: usize) -> Result<Vec<ThreadMessage>, StoreError> {
        self.reads.call(move |conn| threads::messages(conn, id, after, limit)).await
    }

    async fn conversation(
        &self,
        run: RunId,
        max_messages: usize,
        max_bytes: usize,
    ) -> Result<Conversation, StoreError> {
        self.reads.call(move |conn| threads::conversation(conn, run, max_messages, max_bytes)).await
    }

    async fn take_steers(&self, run: RunId, attempt: u32, after_step: u32) -> Result<Vec<Message>, StoreError> {
        self.writes.call(move |writer| threads::take_steers(writer.conn(), run, attempt, after_step)).await
    }

    async fn thread_log(&self, id: ThreadId, after: u64, limit: usize) -> Result<Vec<Event>, StoreError> {
        self.reads.call(move |conn| threads::events(conn, id, after, limit)).await
    }
}

#[async_trait]
impl ScheduleStore for SqliteStore {
    async fn create_schedule(
        &self,
        schedule: Schedule,
        key: Option<IdempotencyKey>,
    ) -> Result<ScheduleCreated, StoreError> {
        self.writes.call(move |writer| schedules::create(writer.conn(), &schedule, key.as_ref())).await
    }

    async fn schedule(&self, tenant: Option<&Tenant>, id: Uuid) -> Result<Option<Schedule>, StoreError> {
        let tenant = tenant.cloned();
        self.reads.call(move |conn| schedules::get(conn, tenant.as_ref(), id)).await
    }

    async fn schedules(
        &self,
        tenant: &Tenant,
        before: Option<Uuid>,
        limit: usize,
    ) -> Result<Vec<Schedule>, StoreError> {
        let tenant = tenant.clone();
        self.reads.call(move |conn| schedules::list(conn, &tenant, before, limit)).await
    }

    async fn advance_schedule(&self, schedule: Schedule) -> Result<bool, StoreError> {
        self.writes.call(move |writer| schedules::advance(writer.conn(), &schedule)).await
    }

    async fn delete_schedule(&self, tenant: &Tenant, id: Uuid) -> Result<bool, StoreError> {
        let tenant = tenant.clone();
        self.writes.call(move |writer| schedules::delete(writer.conn(), &tenant, id)).await
    }
}

#[async_trait]
impl RetentionStore for SqliteStore {
    async fn remove_finished(&self, before: Timestamp, limit: usize) -> Result<Vec<RunId>, StoreError> {
        self.writes.call(move |writer| retention::remove_finished(writer.conn(), before, limit)).await
    }
}

#[async_trait]
impl DeadLetterStore for SqliteStore {
    async fn bury(&self, letter: DeadLetter) -> Result<(), StoreError> {
        self.writes.call(move |writer| dead_letters::bury(writer.conn(), &letter)).await
    }

    async fn dead_letters(
        &self,
        after: Option<(Timestamp, Uuid)>,
        limit: usize,
    ) -> Result<Vec<DeadLetter>, StoreError> {
        self.reads.call(move |conn| dead_letters::list(conn, after, limit)).await
    }

    async fn dead_letter(&self, id: Uuid) -> Result<Option<DeadLetter>, StoreError> {
        self.reads.call(move |conn| dead_letters::get(conn, id)).await
    }

    async fn discard(&self, letters: Discard) -> Result<u64, StoreError> {
        self.writes.call(move |writer| dead_letters::discard(writer.conn(), letters)).await
    }
}

#[async_trait]
impl NodeStore for SqliteStore {
    async fn agree(&self, proposal: &Proposal, adopt: bool) -> Result<Agreement, StoreError> {
        let proposal = proposal.clone();
        self.writes.call(move |writer| node::agree(writer.conn(), &proposal, adopt)).await
    }
}

#[async_trait]
impl WebhookStore for SqliteStore {
    async fn create_endpoint(
        &self,
        endpoint: Endpoint,
        key: Option<IdempotencyKey>,
        most: u64,
    ) -> Result<EndpointCreated, StoreError> {
        self.writes.call(move |writer| webhooks::create(writer, &endpoint, key.as_ref(), most)).await
    }

    async fn endpoints(&self, tenant: &Tenant, after: Option<Uuid>, limit: usize) -> Result<Vec<Endpoint>, StoreError> {
        let tenant = tenant.clone();
        self.reads.call(move |conn| webhooks::list(conn, &tenant, after, limit)).await
    }

    async fn endpoint(&self, tenant: &Tenant, id: Uuid) -> Result<Option<Endpoint>, StoreError> {
        let tenant = tenant.clone();
        self.reads.call(move |conn| webhooks::get(conn, &tenant, id)).await
    }

    async fn patch_endpoint(
        &self,
        tenant: &Tenant,
        id: Uuid,
        patch: EndpointPatch,
        now: Timestamp,
    ) -> Result<Option<Endpoint>, StoreError> {
        let tenant = tenant.clone();
        self.writes.call(move |writer| webhooks::patch(writer.conn(), &tenant, id, &patch, now)).await
    }

    async fn rotate_endpoint(
        &self,
        tenant: &Tenant,
        id: Uuid,
        key: Option<IdempotencyKey>,
        now: Timestamp,
    ) -> Result<Rotated, StoreError> {
        let tenant = tenant.clone();
        self.writes.call(move |writer| webhooks::rotate(writer.conn(), &tenant, id, key.as_ref(), now)).await
    }

    async fn delete_endpoint(&self, tenant: &Tenant, id: Uuid) -> Result<bool, StoreError> {
        let tenant = tenant.clone();
        self.writes.call(move |writer| webhooks::delete(writer.conn(), &tenant, id)).await
    }

    async fn claim_deliveries(&self, now: Timestamp, lease: Duration, limit: usize) -> Result<Vec<Due>, StoreError> {
        if !self.reads.call(move |conn| webhooks::is_due(conn, now)).await? {
            return Ok(Vec::new());
        }
        self.writes.call(move |writer| webhooks::claim(writer.conn(), now, lease, limit)).await
    }

    async fn settle_delivery(&self, settled: Settled, now: Timestamp) -> Result<bool, StoreError> {
        self.writes.call(move |writer| webhooks::settle(writer.conn(), &settled, now)).await
    }

    async fn deliveries(
        &self,
        tenant: &Tenant,
        filter: DeliveryFilter,
        limit: usize,
    ) -> Result<Vec<Delivery>, StoreError> {
        let tenant = tenant.clone();
        self.reads.call(move |conn| webhooks::deliveries(conn, &tenant, &filter, limit)).await
    }

    async fn redeliver(&self, tenant: &Tenant, id: Uuid, now: Timestamp) -> Result<Redelivered, StoreError> {
        let tenant = tenant.clone();
        self.writes.call(move |writer| webhooks::redeliver(writer.conn(), &tenant, id, now)).await
    }

    async fn forget_deliveries(&self, before: Timestamp, limit: usize) -> Result<u64, StoreError> {
        self.writes.call(move |writer| webhooks::forget(writer.conn(), before, limit)).await
    }

    async fn announce(&self, news: ThreadNews) -> Result<(), StoreError> {
        self.writes.call(move |writer| webhooks::put_thread(writer.conn(), &news)).await
    }
}
