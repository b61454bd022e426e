//! Threads, their messages and their logs.
//!
//! What a change of a thread leads to is decided by the pure part; here it is only read and written.
//!
//! **Locks.** Whoever may give a thread to another of its runs locks the row of the thread first, then the rows of its
//! open runs in the order of their ids, which is the order of every batch. So nobody waits for a thread who holds
//! anything that a holder of the thread waits for. The key of an admission comes last: who finds it taken begins again.
//! Claims and what the owner of a run writes while the run goes on take no lock of a thread: until it has ended a run
//! keeps its thread, whatever becomes of it.
//!
//! Those who want the same thread come one after the other, and a busy thread is no outage: they wait for it longer than
//! for other locks. Who has many threads to look at does not.

use std::collections::BTreeMap;

use async_trait::async_trait;
use futures_util::future::{try_join, try_join5};
use tokio_postgres::Row;
use uuid::Uuid;

use super::conn::{Conn, Params};
use super::create::Waiting;
use super::error::Failure;
use super::rows::{self, Found as FoundRun, limit, plain};
use super::thread_rows::{find, insert, list, read_thread, thread, update};
use super::timers::{self, Armed};
use super::transition::{self, Written};
use super::{PostgresStore, create, messages, webhooks};
use crate::run::{Message, Run, RunId, Status, Tenant, ThreadId, Timer, Timestamp};
use crate::store::spelling::{integer, json};
use crate::store::{
    Admission, Admitted, Conversation, Farewell, Followed, HandOff, IdempotencyKey, Moved, NewThread, Patch, Share,
    StoreError, ThreadCreated, ThreadDeleted, ThreadNews, ThreadStore, TimerKey, TimerKind,
};
use crate::thread::{Change, Event, FollowUp, Found, Occasion, OnBusy, Open, Thread, ThreadMessage, Unread};

/// The open runs of thread `$1`, in the order in which rows are locked.
macro_rules! open {
    () => {
        "(SELECT id FROM runcast_runs WHERE thread_id = $1 AND finished_at IS NULL ORDER BY id) AS wanted"
    };
}

/// The thread that run `$1` belongs to.
pub(super) const LOCK_OF_RUN: &str =
    concat!(thread!(), " WHERE id = (SELECT thread_id FROM runcast_runs WHERE id = $1) FOR UPDATE");

const LOCK: &str = concat!(thread!(), " WHERE id = $1 FOR UPDATE");

const LOCK_OPEN: &str = concat!(
    "SELECT 1 FROM ",
    open!(),
    " CROSS JOIN LATERAL (SELECT 1 FROM runcast_runs WHERE id = wanted.id FOR UPDATE) r"
);

const LOAD_OPEN: &str = rows::load!(open!());

/// An admission or a creation finds its key taken at the last moment at most so often.
const TRIES: usize = 3;

/// A thread and its open runs, all of them locked.
pub(super) struct Locked {
    thread: Thread,
    open: Vec<FoundRun>,
}

/// An open run as it is in the store, before a change.
struct Before {
    id: RunId,
    status: Status,
    armed: Armed,
    commit_number: u64,
}

impl Locked {
    /// The thread of this row, with these open runs.
    pub(super) fn read(row: &Row, open: Vec<FoundRun>) -> Result<Self, StoreError> {
        Ok(Self { thread: read_thread(row)?, open })
    }

    /// Whether another run than `id` holds the thread.
    pub(super) fn is_busy_for(&self, id: RunId) -> bool {
        self.thread.holder.is_some_and(|holder| holder != id)
    }

    /// What the pure part is given, and what is needed to write it back.
    fn split(self) -> Result<(Found, Vec<Before>), StoreError> {
        let Self { thread, mut open } = self;
        open.sort_by_key(|found| found.run.spec.id);
        let (mut runs, mut before) = (Vec::with_capacity(open.len()), Vec::with_capacity(open.len()));
        for FoundRun { run, reserved_seq, commit_number, cancel_requested, documents, .. } in open {
            before.push(Before { id: run.spec.id, status: run.status, armed: Armed::of(&run), commit_number });
            // The others' documents are nobody's concern here.
            let run = if run.gathers() { documents.complete(run)? } else { run };
            runs.push(Open { run, reserved_seq, cancel_requested });
        }
        Ok((Found { thread, open: runs, unread: Unread::default() }, before))
    }
}

/// Begins a transaction, by `begin`, and locks thread `id` with its open runs. If there is no such thread, or it is
/// another tenant's, the transaction is over.
async fn lock(conn: &Conn, begin: &str, tenant: Option<&Tenant>, id: ThreadId) -> Result<Option<Locked>, Failure> {
    let client = conn.client();
    let thread = conn.prepare(LOCK).await?;
    let (lock, load) = (conn.prepare(LOCK_OPEN).await?, conn.prepare(LOAD_OPEN).await?);
    let params: Params<'_> = &[id.as_uuid()];
    let begin = (client.batch_execute(begin), client.query(&thread, params), client.batch_execute(conn.as_ever()));
    let (lock, load) = (client.query(&lock, params), client.query(&load, params));
    let (_, threads, (), _, rows) = try_join5(begin.0, begin.1, begin.2, lock, load).await?;
    let thread = threads.first().map(read_thread).transpose()?;
    let Some(thread) = thread.filter(|thread| tenant.is_none_or(|tenant| thread.tenant == *tenant)) else {
        end(conn).await?;
        return Ok(None);
    };
    let open = rows.iter().map(FoundRun::read).collect::<Result<_, _>>()?;
    Ok(Some(Locked { thread, open }))
}

async fn end(conn: &Conn) -> Result<(), Failure> {
    Ok(conn.client().batch_execute("COMMIT").await?)
}

async fn undo(conn: &Conn) -> Result<(), Failure> {
    Ok(conn.client().batch_execute("ROLLBACK").await?)
}

/// Run `after` of a locked thread, which was just written, has changed: what that means for the thread is written,
/// too, by the transaction that holds the locks.
pub(super) async fn follow(
    conn: &Conn,
    locked: Locked,
    after: &Run,
    farewell: Option<&Farewell>,
    now: Timestamp,
) -> Result<Option<Followed>, Failure> {
    if !after.status.is_final() && after.status != Status::Queued {
        return Ok(None);
    }
    let (found, before) = locked.split()?;
    let was = found.thread.clone();
    let (said, rules) = farewell.map_or((Vec::new(), &[][..]), |farewell| (farewell.said.clone(), &farewell.rules));
    let change = found.moved(after, said, rules, now);
    if change.thread == was && change.turns.is_empty() {
        return Ok(None);
    }
    write(conn, &was, &change, &before, Share::default()).await?;
    let armed = armed(&change.thread);
    Ok(Some(Followed { changed: change.changed, armed }))
}

/// The keys of messages point to them; those of other admissions point to runs.
fn points_to_message(occasion: &Occasion) -> bool {
    matches!(occasion, Occasion::Message { .. })
}

/// Something comes in. `None`: nothing has, since its key was taken meanwhile, or the thread had to be put right first.
async fn admit(
    conn: &Conn,
    admission: &Admission,
    waiting: &parking_lot::Mutex<Waiting>,
) -> Result<Option<Admitted>, Failure> {
    let Admission { tenant, thread, ask, key, max_waiting, share } = admission;
    let locked = lock(conn, conn.begin_patiently(), Some(tenant), *thread).await?;
    // Whoever has used the key for this thread has done so before the thread was locked.
    if let Some(key) = key
        && let Some((fingerprint, id)) = create::used(conn, tenant, key).await?
    {
        if locked.is_some() {
            end(conn).await?;
        }
        if fingerprint != key.fingerprint {
            return Ok(Some(Admitted::KeyReused));
        }
        return existing(conn, points_to_message(&ask.occasion), id).await.map(Some);
    }
    let Some(locked) = locked else { return Ok(Some(Admitted::Missing)) };
    if let Some(holder) = locked.thread.holder
        && !locked.open.iter().any(|found| found.run.spec.id == holder)
        && let Some(row) = rows::find(conn, &[*holder.as_uuid()]).await?.first()
    {
        // Its end was written by a node of the version before, which knows of no threads.
        follow(conn, locked, &FoundRun::read(row)?.run, None, ask.now).await?;
        end(conn).await?;
        return Ok(None);
    }
    let (mut found, before) = locked.split()?;
    if let (OnBusy::Steer, Some(holder)) = (ask.on_busy, found.thread.holder) {
        found.unread = messages::unread(conn, holder).await?;
    }
    let was = found.thread.clone();
    let change = match found.admit(ask) {
        Ok(change) => change,
        Err(refusal) => {
            end(conn).await?;
            return Ok(Some(Admitted::Refused(refusal)));
        }
    };
    if change.created.is_some()
        && let Some(refused) = Waiting::refuses(waiting, conn, *max_waiting, tenant, share.max_waiting).await?
    {
        end(conn).await?;
        return Ok(Some(refused));
    }
    write(conn, &was, &change, &before, *share).await?;
    let subject = match points_to_message(&ask.occasion) {
        true => change.came_in().map(|message| message.id),
        false => change.how.run().map(|run| *run.as_uuid()),
    };
    let moved = moved(conn, change).await?;
    if let (Some(key), Some(subject)) = (key, subject)
        && !create::keep(conn, tenant, key, subject, ask.now).await?
    {
        undo(conn).await?;
        return Ok(None);
    }
    end(conn).await?;
    Ok(Some(Admitted::Done(Box::new(moved))))
}

async fn existing(conn: &Conn, message: bool, id: Uuid) -> Result<Admitted, Failure> {
    let (message, run) = if message {
        let message = messages::find(conn, id).await?;
        let run = message.as_ref().and_then(|message| message.run);
        (message, run)
    } else {
        (None, Some(RunId::from_uuid(id)))
    };
    let run = match run {
        Some(run) => rows::find(conn, &[*run.as_uuid()]).await?.first().map(FoundRun::read).transpose()?,
        None => None,
    };
    let run = run.map(FoundRun::into_stored).transpose()?.map(Box::new);
    Ok(Admitted::Existing { message, run })
}

async fn moved(conn: &Conn, change: Change) -> Result<Moved, Failure> {
    let message = change.came_in().cloned();
    let Change { thread, created, changed, grown, cancel, events, how, .. } = change;
    let id = how.run();
    let is = |run: &&Run| Some(run.spec.id) == id;
    let known = created.as_ref().map(|created| &created.run).into_iter();
    let known = known.chain(changed.iter().rev().map(|changed| &changed.run)).chain(&grown).find(is).cloned();
    let run = match (known, id) {
        (Some(run), _) => Some(run),
        (None, Some(id)) => {
            let found = rows::find(conn, &[*id.as_uuid()]).await?.first().map(FoundRun::read).transpose()?;
            found.map(FoundRun::into_stored).transpose()?.map(|stored| stored.run)
        }
        (None, None) => None,
    };
    Ok(Moved { thread, how, run, message, created, changed, cancel, events })
}

async fn move_thread(
    conn: &Conn,
    tenant: &Tenant,
    id: ThreadId,
    decide: impl FnOnce(Found) -> Change,
) -> Result<Option<Moved>, Failure> {
    let Some(locked) = lock(conn, conn.begin_patiently(), Some(tenant), id).await? else { return Ok(None) };
    let (found, before) = locked.split()?;
    let was = found.thread.clone();
    let change = decide(found);
    write(conn, &was, &change, &before, Share::default()).await?;
    let moved = moved(conn, change).await?;
    end(conn).await?;
    Ok(Some(moved))
}

/// The follow-up of this number is due at another time, or not at all.
async fn put_off_follow_up(conn: &Conn, id: ThreadId, number: u64, due: Option<Timestamp>) -> Result<(), Failure> {
    let Some(Locked { thread: was, .. }) = lock(conn, conn.begin_patiently(), None, id).await? else { return Ok(()) };
    if let Some(follow_up) = was.follow_up.clone().filter(|follow_up| follow_up.timer.id == number) {
        let follow_up = due.map(|due| FollowUp { timer: Timer { due, ..follow_up.timer }, ..follow_up });
        let thread = Thread { follow_up, ..was.clone() };
        update(conn, &thread).await?;
        rearm(conn, &was, &thread).await?;
    }
    end(conn).await
}

/// Writes a change of a thread that was `was`, and of its runs, which were `before`. The transaction goes on.
/// A run that is created has this share.
async fn write(conn: &Conn, was: &Thread, change: &Change, before: &[Before], share: Share) -> Result<(), Failure> {
    if change.thread != *was {
        update(conn, &change.thread).await?;
        rearm(conn, was, &change.thread).await?;
    }
    let written = change.changed.iter().filter_map(|changed| {
        let run = &changed.run;
        let before = before.iter().find(|before| before.id == run.spec.id)?;
        let (reserved_seq, commit_number) = (run.last_seq, before.commit_number);
        let (from, armed) = (before.status, before.armed);
        Some(Written { run, segment: &changed.segment, reserved_seq, commit_number, from, before: armed })
    });
    let written: Vec<_> = written.collect();
    if !written.is_empty() {
        transition::write_on(conn, &written).await?;
    }
    if let Some(run) = &change.grown {
        let sql = "UPDATE runcast_specs SET input = $2 WHERE run_id = $1";
        conn.execute(sql, &[run.spec.id.as_uuid(), &json(&run.spec.input)?]).await?;
    }
    if let Some(run) = change.cancel {
        transition::keep_cancels(conn, &[*run.as_uuid()]).await?;
    }
    if let Some(created) = &change.created {
        create::insert(conn, &created.run, &created.segment, share).await?;
    }
    if !change.messages.is_empty() {
        messages::insert(conn, change.thread.id, &change.messages).await?;
    }
    if let Some((from, to)) = change.taken_over {
        let sql = "UPDATE runcast_messages SET run_id = $1, turn = NULL WHERE run_id = $2 AND role <> 'assistant'";
        conn.execute(sql, &[to.as_uuid(), from.as_uuid()]).await?;
    }
    for (run, turn) in &change.turns {
        let sql = "UPDATE runcast_messages SET turn = $1 WHERE run_id = $2 AND turn IS NULL";
        conn.execute(sql, &[&integer(*turn), run.as_uuid()]).await?;
    }
    for event in &change.events {
        let sql = "INSERT INTO runcast_thread_events (thread_id, seq, at, kind, run_id, text) \
             VALUES ($1, $2, $3, $4, $5, $6)";
        let (kind, run) = (event.happened.kind().as_str(), event.happened.run().map(|run| *run.as_uuid()));
        let (seq, at, text) = (integer(event.seq), event.at.as_millis(), plain(event.happened.text()));
        conn.execute(sql, &[change.thread.id.as_uuid(), &seq, &at, &kind, &run, &text]).await?;
        if let Some(news) = ThreadNews::of(&change.thread, event) {
            webhooks::put_thread(conn, &news).await?;
        }
    }
    Ok(())
}

/// The follow-up timer of a thread.
fn armed(thread: &Thread) -> Option<TimerKey> {
    let Timer { due, id } = thread.follow_up.as_ref()?.timer;
    Some(TimerKey { due, owner: *thread.id.as_uuid(), kind: TimerKind::FollowUp(id) })
}

async fn rearm(conn: &Conn, was: &Thread, thread: &Thread) -> Result<(), Failure> {
    let (before, after) = (armed(was), armed(thread));
    if before == after {
        return Ok(());
    }
    if let Some(timer) = before {
        timers::remove(conn, timer).await?;
    }
    if let Some(timer) = after {
        timers::insert(conn, timer).await?;
    }
    Ok(())
}

/// Creates a thread. `None`: its key or its id was taken meanwhile, and nothing has happened.
async fn create(conn: &Conn, thread: &Thread, key: Option<&IdempotencyKey>) -> Result<Option<ThreadCreated>, Failure> {
    let mut id = thread.id;
    if let Some(key) = key
        && let Some((fingerprint, used)) = create::used(conn, &thread.tenant, key).await?
    {
        if fingerprint != key.fingerprint {
            return Ok(Some(ThreadCreated::Taken));
        }
        id = ThreadId::from_uuid(used);
    }
    if let Some(found) = find(conn, id).await? {
        return Ok(Some(match found.tenant == thread.tenant {
            true => ThreadCreated::Existing(Box::new(found)),
            false => ThreadCreated::Taken,
        }));
    }
    conn.client().batch_execute("BEGIN").await?;
    let mut new = insert(conn, thread).await?;
    if let Some(key) = key.filter(|_| new) {
        new = create::keep(conn, &thread.tenant, key, *thread.id.as_uuid(), thread.created_at).await?;
    }
    if !new {
        undo(conn).await?;
        return Ok(None);
    }
    end(conn).await?;
    Ok(Some(ThreadCreated::New))
}

/// Changes what belongs to the caller.
async fn patch(conn: &Conn, tenant: &Tenant, id: ThreadId, patch: &Patch) -> Result<Option<Thread>, Failure> {
    let (client, lock) = (conn.client(), conn.prepare(LOCK).await?);
    let rows = try_join(client.batch_execute("BEGIN"), client.query(&lock, &[id.as_uuid()])).await?.1;
    let thread = rows.first().map(read_thread).transpose()?.filter(|thread| thread.tenant == *tenant);
    let Some(mut thread) = thread else {
        end(conn).await?;
        return Ok(None);
    };
    thread.metadata = patch.metadata.clone().unwrap_or(thread.metadata);
    thread.state = patch.state.clone().unwrap_or(thread.state);
    update(conn, &thread).await?;
    end(conn).await?;
    Ok(Some(thread))
}

/// Removes a thread whose runs have ended.
async fn delete(conn: &Conn, tenant: &Tenant, id: ThreadId) -> Result<ThreadDeleted, Failure> {
    let Some(Locked { thread, open }) = lock(conn, conn.begin_patiently(), Some(tenant), id).await? else {
        return Ok(ThreadDeleted::Missing);
    };
    let deleted = match open.iter().map(|found| found.run.spec.id).min() {
        Some(open) => ThreadDeleted::Busy(open),
        None => ThreadDeleted::Done(remove(conn, &thread).await?),
    };
    end(conn).await?;
    Ok(deleted)
}

/// Removes a locked thread, whose runs have ended, with all that belongs to it and to them.
async fn remove(conn: &Conn, thread: &Thread) -> Result<Vec<RunId>, Failure> {
    const RUNS: &str = "SELECT id FROM runcast_runs WHERE thread_id = $1 ORDER BY id FOR UPDATE";
    // A run that has ended has no timers. Its key is its own, its message's or its thread's.
    const DELETE: &str = "WITH segments AS (DELETE FROM runcast_segments WHERE run_id = ANY ($2::uuid[])), \
         steps AS (DELETE FROM runcast_steps WHERE run_id = ANY ($2::uuid[])), \
         results AS (DELETE FROM runcast_results WHERE run_id = ANY ($2::uuid[])), \
         deliveries AS (DELETE FROM runcast_deliveries WHERE run_id = ANY ($2::uuid[]) OR thread_id = $3::text \
         RETURNING id), \
         letters AS (DELETE FROM runcast_dead_letters WHERE id = ANY ($2::uuid[]) \
         OR id IN (SELECT id FROM deliveries)), \
         specs AS (DELETE FROM runcast_specs WHERE run_id = ANY ($2::uuid[])), \
         keys AS (DELETE FROM runcast_idempotency WHERE run_id = ANY ($2::uuid[] || $1::uuid || \
         ARRAY(SELECT id FROM runcast_messages WHERE thread_id = $1))), \
         messages AS (DELETE FROM runcast_messages WHERE thread_id = $1), \
         events AS (DELETE FROM runcast_thread_events WHERE thread_id = $1), \
         runs AS (DELETE FROM runcast_runs WHERE id = ANY ($2::uuid[])) \
         DELETE FROM runcast_threads WHERE id = $1";
    let id = thread.id.as_uuid();
    let rows = conn.query(RUNS, &[id]).await?;
    let runs: Vec<Uuid> = rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?;
    conn.execute(DELETE, &[id, &runs, &thread.id.to_string()]).await?;
    if let Some(timer) = armed(thread) {
        timers::remove(conn, timer).await?;
    }
    Ok(runs.into_iter().map(RunId::from_uuid).collect())
}

/// Removes threads in which nothing has happened since `before`.
async fn delete_idle(conn: &Conn, before: Timestamp, most: usize) -> Result<Vec<ThreadId>, Failure> {
    const IDLE: &str = "SELECT id FROM runcast_threads t WHERE active_at < $1 AND holder IS NULL \
         AND follow_up_due IS NULL AND NOT EXISTS (SELECT FROM runcast_runs \
         WHERE thread_id = t.id AND finished_at IS NULL OFFSET 0) \
         AND NOT EXISTS (SELECT FROM runcast_deliveries WHERE thread_id = t.id::text AND status = 'pending' OFFSET 0) \
         AND NOT EXISTS (SELECT FROM runcast_runs r JOIN runcast_deliveries d ON d.run_id = r.id \
         WHERE r.thread_id = t.id AND d.status = 'pending' OFFSET 0) ORDER BY active_at LIMIT $2";
    let rows = conn.query(IDLE, &[&before.as_millis(), &limit(most)]).await?;
    let candidates: Vec<Uuid> = rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?;
    let mut removed = Vec::new();
    for id in candidates.into_iter().map(ThreadId::from_uuid) {
        let Some(Locked { thread, open }) = lock(conn, "BEGIN", None, id).await? else { continue };
        // Something may have happened since.
        let idle = open.is_empty() && thread.holder.is_none() && thread.follow_up.is_none();
        if idle && thread.active_at < before {
            remove(conn, &thread).await?;
            removed.push(id);
        }
        end(conn).await?;
    }
    Ok(removed)
}

fn taken_again(what: &str) -> StoreError {
    StoreError::Unavailable(format!("the key or the id of {what} changes hands"))
}

#[async_trait]
impl ThreadStore for PostgresStore {
    async fn create_thread(&self, new: NewThread) -> Result<ThreadCreated, StoreError> {
        let (thread, key) = (&new.thread, new.key.as_ref());
        for _ in 0..TRIES {
            if let Some(created) = self.run(|conn| async move { create(&conn, thread, key).await }).await? {
                return Ok(created);
            }
        }
        Err(taken_again("a thread"))
    }

    async fn thread(&self, tenant: Option<&Tenant>, id: ThreadId) -> Result<Option<Thread>, StoreError> {
        let found = self.run(|conn| async move { find(&conn, id).await }).await?;
        Ok(found.filter(|thread| tenant.is_none_or(|tenant| thread.tenant == *tenant)))
    }

    async fn threads(
        &self,
        tenant: &Tenant,
        before: Option<ThreadId>,
        metadata: &BTreeMap<String, String>,
        limit: usize,
    ) -> Result<Vec<Thread>, StoreError> {
        self.run(|conn| async move { list(&conn, tenant, before, metadata, limit).await }).await
    }

    async fn patch_thread(&self, tenant: &Tenant, id: ThreadId, changes: Patch) -> Result<Option<Thread>, StoreError> {
        let changes = &changes;
        self.run(|conn| async move { patch(&conn, tenant, id, changes).await }).await
    }

    async fn delete_thread(&self, tenant: &Tenant, id: ThreadId) -> Result<ThreadDeleted, StoreError> {
        self.run(|conn| async move { delete(&conn, tenant, id).await }).await
    }

    async fn delete_idle_threads(&self, before: Timestamp, limit: usize) -> Result<Vec<ThreadId>, StoreError> {
        self.run(|conn| async move { delete_idle(&conn, before, limit).await }).await
    }

    async fn admit(&self, admission: Admission) -> Result<Admitted, StoreError> {
        let (admission, waiting) = (&admission, &self.waiting);
        for _ in 0..TRIES {
            if let Some(admitted) = self.run(|conn| async move { admit(&conn, admission, waiting).await }).await? {
                return Ok(admitted);
            }
        }
        Err(taken_again("a message"))
    }

    async fn hand_off(&self, hand_off: HandOff) -> Result<Option<Moved>, StoreError> {
        let HandOff { tenant, thread, reason, by, now } = hand_off;
        let tenant = &tenant;
        self.run(
            |conn| async move { move_thread(&conn, tenant, thread, |found| found.hand_off(reason, by, now)).await },
        )
        .await
    }

    async fn put_off_follow_up(&self, id: ThreadId, number: u64, due: Option<Timestamp>) -> Result<(), StoreError> {
        self.run(|conn| async move { put_off_follow_up(&conn, id, number, due).await }).await
    }

    async fn release_thread(&self, tenant: &Tenant, id: ThreadId, now: Timestamp) -> Result<Option<Moved>, StoreError> {
        self.run(|conn| async move { move_thread(&conn, tenant, id, |found| found.release(now)).await }).await
    }

    async fn messages(&self, id: ThreadId, after: u64, limit: usize) -> Result<Vec<ThreadMessage>, StoreError> {
        self.run(|conn| async move { messages::read(&conn, id, after, limit).await }).await
    }

    async fn conversation(
        &self,
        run: RunId,
        max_messages: usize,
        max_bytes: usize,
    ) -> Result<Conversation, StoreError> {
        self.run(|conn| async move { messages::conversation(&conn, run, max_messages, max_bytes).await }).await
    }

    async fn take_steers(&self, run: RunId, attempt: u32, after_step: u32) -> Result<Vec<Message>, StoreError> {
        self.run(|conn| async move { messages::take_steers(&conn, run, attempt, after_step).await }).await
    }

    async fn thread_log(&self, id: ThreadId, after: u64, limit: usize) -> Result<Vec<Event>, StoreError> {
        self.run(|conn| async move { messages::events(&conn, id, after, limit).await }).await
    }
}
