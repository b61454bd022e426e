//! Threads, their messages and their logs.
//!
//! What a change of a thread leads to is decided by the pure part; here it is only read and written. There is one
//! writer, so every job has the lock of every thread.

use std::collections::BTreeMap;
use std::time::Instant;

use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension as _, Row, params, params_from_iter};
use uuid::Uuid;

use super::create::{self, Creation};
use super::retention::HOLD;
use super::rows::{Found as FoundRun, load, run_id};
use super::shares::Place;
use super::timers::{self, Armed};
use super::writer::Writer;
use super::{runs, transition, webhooks};
use crate::run::{Message, Run, RunId, Status, Tenant, ThreadId, Timer, Timestamp};
use crate::store::spelling::{self, integer, json, parse, unreadable, unsigned, words};
use crate::store::{
    Admission, Admitted, Conversation, Farewell, Followed, HandOff, Moved, NewRun, NewThread, Patch, Share, StoreError,
    ThreadCreated, ThreadDeleted, ThreadNews, TimerKey, TimerKind,
};
use crate::thread::{
    Change, Event, EventKind, FollowUp, Found, HandedOff, Happened, Occasion, OnBusy, Open, Progress, Thread,
    ThreadMessage, Unread,
};

const THREAD: &str = "SELECT id, tenant, metadata, state, created_at, active_at, handed_at, handed_reason, handed_by, \
     holder, dropping, turns, last_message, last_event, follow_up_due, follow_up_timer, follow_up_agent, rule, sent, \
     timers_armed FROM threads";

const MESSAGE: &str = "SELECT id, seq, role, content, run_id, turn, unread, after_step, at FROM messages";

/// The route of the keys of messages; those of other admissions point to runs.
fn points_to_message(occasion: &Occasion) -> bool {
    matches!(occasion, Occasion::Message { .. })
}

/// An open run as it is in the store, before a change.
struct Before {
    id: RunId,
    status: Status,
    armed: Armed,
    commit_number: u64,
    place: Place,
}

/// A thread and its open runs, and what is needed to write them back.
struct Locked {
    found: Found,
    before: Vec<Before>,
}

/// Thread `id` with its open runs.
fn lock(conn: &Connection, id: ThreadId) -> Result<Option<Locked>, StoreError> {
    let Some(thread) = find(conn, id)? else { return Ok(None) };
    let mut ids = Vec::new();
    {
        let mut statement = conn.prepare_cached(
            "SELECT id FROM runs INDEXED BY runs_open_by_thread \
             WHERE thread_id = ? AND finished_at IS NULL ORDER BY id",
        )?;
        let mut rows = statement.query([id.as_bytes()])?;
        while let Some(row) = rows.next()? {
            ids.push(run_id(row.get(0)?));
        }
    }
    let (mut open, mut before) = (Vec::with_capacity(ids.len()), Vec::with_capacity(ids.len()));
    for id in ids {
        let Some(FoundRun { run, reserved_seq, commit_number, cancel_requested, documents, place }) = load(conn, id)?
        else {
            continue;
        };
        // The others' documents are nobody's concern here.
        let run = if run.gathers() { documents.complete(run)? } else { run };
        before.push(Before { id, status: run.status, armed: Armed::of(&run), commit_number, place });
        open.push(Open { run, reserved_seq, cancel_requested });
    }
    Ok(Some(Locked { found: Found { thread, open, unread: Unread::default() }, before }))
}

/// Whether another run than `id` holds thread `thread`.
pub(super) fn busy(conn: &Connection, thread: ThreadId, id: RunId) -> Result<bool, StoreError> {
    let holder: Option<Option<[u8; 16]>> = conn
        .prepare_cached("SELECT holder FROM threads WHERE id = ?")?
        .query_row([thread.as_bytes()], |row| row.get(0))
        .optional()?;
    Ok(holder.flatten().is_some_and(|holder| run_id(holder) != id))
}

/// Run `after`, which was just written, has changed: what that means for its thread is written, too.
pub(super) fn follow(
    writer: &mut Writer,
    after: &Run,
    farewell: Option<&Farewell>,
    now: Timestamp,
) -> Result<Option<Followed>, StoreError> {
    let Some(thread) = after.spec.thread else { return Ok(None) };
    if !after.status.is_final() && after.status != Status::Queued {
        return Ok(None);
    }
    let Some(Locked { found, before }) = lock(writer.conn(), thread)? else { return Ok(None) };
    let was = found.thread.clone();
    let (said, rules) = farewell.map_or((Vec::new(), &[][..]), |farewell| (farewell.said.clone(), &farewell.rules));
    let change = found.moved(after, said, rules, now);
    if change.thread == was && change.turns.is_empty() {
        return Ok(None);
    }
    write(writer, &was, &change, &before, Share::default())?;
    let armed = armed(&change.thread);
    Ok(Some(Followed { changed: change.changed, armed }))
}

/// Messages wait that the run has not looked at.
pub(super) fn has_unread(conn: &Connection, id: RunId) -> Result<bool, StoreError> {
    let mut statement = conn.prepare_cached("SELECT 1 FROM messages WHERE run_id = ? AND unread = 1")?;
    Ok(statement.exists([id.as_bytes()])?)
}

/// What the run has not looked at.
fn unread(conn: &Connection, id: RunId) -> Result<Unread, StoreError> {
    let mut statement = conn.prepare_cached(
        "SELECT count(*), coalesce(sum(length(content)), 0) FROM messages WHERE run_id = ? AND unread = 1",
    )?;
    Ok(statement.query_row([id.as_bytes()], |row| {
        Ok(Unread { messages: unsigned(row.get(0)?), bytes: unsigned(row.get(1)?) })
    })?)
}

/// Something comes in.
pub(super) fn admit(writer: &mut Writer, admission: &Admission) -> Result<Admitted, StoreError> {
    let Admission { tenant, thread, ask, key, max_waiting, share } = admission;
    if let Some(key) = key
        && let Some((fingerprint, id)) = create::used(writer.conn(), tenant, key)?
    {
        if fingerprint != key.fingerprint {
            return Ok(Admitted::KeyReused);
        }
        return existing(writer.conn(), points_to_message(&ask.occasion), id);
    }
    let Some(Locked { mut found, before }) =
        lock(writer.conn(), *thread)?.filter(|locked| locked.found.thread.tenant == *tenant)
    else {
        return Ok(Admitted::Missing);
    };
    if let (OnBusy::Steer, Some(holder)) = (ask.on_busy, found.thread.holder) {
        found.unread = unread(writer.conn(), holder)?;
    }
    let was = found.thread.clone();
    let change = match found.admit(ask) {
        Ok(change) => change,
        Err(refusal) => return Ok(Admitted::Refused(refusal)),
    };
    if change.created.is_some() && writer.waiting() >= *max_waiting {
        return Ok(Admitted::TooManyWaiting);
    }
    if change.created.is_some() && share.max_waiting.is_some_and(|most| writer.waiting_of(tenant) >= most) {
        return Ok(Admitted::TooManyOfTenant);
    }
    write(writer, &was, &change, &before, *share)?;
    if let Some(key) = key {
        let subject = match points_to_message(&ask.occasion) {
            true => change.came_in().map(|message| message.id),
            false => change.how.run().map(|run| *run.as_uuid()),
        };
        if let Some(subject) = subject {
            create::keep(writer.conn(), tenant, key, subject, ask.now)?;
        }
    }
    Ok(Admitted::Done(Box::new(moved(writer.conn(), change)?)))
}

fn existing(conn: &Connection, message: bool, id: Uuid) -> Result<Admitted, StoreError> {
    let (message, run) = if message {
        let found = conn
            .prepare_cached(&format!("{MESSAGE} WHERE id = ?"))?
            .query_row([id.as_bytes()], |row| Ok(read_message(row)))
            .optional()?
            .transpose()?;
        let run = found.as_ref().and_then(|message| message.run);
        (found, run)
    } else {
        (None, Some(RunId::from_uuid(id)))
    };
    let run = run.map(|run| load(conn, run)).transpose()?.flatten();
    let run = run.map(FoundRun::into_stored).transpose()?.map(Box::new);
    Ok(Admitted::Existing { message, run })
}

fn moved(conn: &Connection, change: Change) -> Result<Moved, StoreError> {
    let message = change.came_in().cloned();
    let Change { thread, created, changed, grown, cancel, events, how, .. } = change;
    let id = how.run();
    let is = |run: &&Run| Some(run.spec.id) == id;
    let known = created.as_ref().map(|created| &created.run).into_iter();
    let known = known.chain(changed.iter().rev().map(|changed| &changed.run)).chain(&grown).find(is).cloned();
    let run = match (known, id) {
        (Some(run), _) => Some(run),
        (None, Some(id)) => load(conn, id)?.map(FoundRun::into_stored).transpose()?.map(|stored| stored.run),
        (None, None) => None,
    };
    Ok(Moved { thread, how, run, message, created, changed, cancel, events })
}

/// People take over.
pub(super) fn hand_off(writer: &mut Writer, hand_off: &HandOff) -> Result<Option<Moved>, StoreError> {
    let HandOff { tenant, thread, reason, by, now } = hand_off;
    move_thread(writer, tenant, *thread, |found| found.hand_off(reason.clone(), *by, *now))
}

/// The follow-up of this number is due at another time, or not at all.
pub(super) fn put_off_follow_up(
    conn: &Connection,
    id: ThreadId,
    number: u64,
    due: Option<Timestamp>,
) -> Result<(), StoreError> {
    let Some(was) = find(conn, id)? else { return Ok(()) };
    let Some(follow_up) = was.follow_up.clone().filter(|follow_up| follow_up.timer.id == number) else {
        return Ok(());
    };
    let follow_up = due.map(|due| FollowUp { timer: Timer { due, ..follow_up.timer }, ..follow_up });
    let thread = Thread { follow_up, ..was.clone() };
    update(conn, &thread)?;
    rearm(conn, &was, &thread)
}

/// The thread is given back.
pub(super) fn release(
    writer: &mut Writer,
    tenant: &Tenant,
    id: ThreadId,
    now: Timestamp,
) -> Result<Option<Moved>, StoreError> {
    move_thread(writer, tenant, id, |found| found.release(now))
}

fn move_thread(
    writer: &mut Writer,
    tenant: &Tenant,
    id: ThreadId,
    decide: impl FnOnce(Found) -> Change,
) -> Result<Option<Moved>, StoreError> {
    let Some(Locked { found, before }) =
        lock(writer.conn(), id)?.filter(|locked| locked.found.thread.tenant == *tenant)
    else {
        return Ok(None);
    };
    let was = found.thread.clone();
    let change = decide(found);
    write(writer, &was, &change, &before, Share::default())?;
    moved(writer.conn(), change).map(Some)
}

/// Writes a change of a thread that was `was`, and of its runs, which were `before`. A run that is created has this
/// share.
fn write(
    writer: &mut Writer,
    was: &Thread,
    change: &Change,
    before: &[Before],
    share: Share,
) -> Result<(), StoreError> {
    if change.thread != *was {
        update(writer.conn(), &change.thread)?;
        rearm(writer.conn(), was, &change.thread)?;
    }
    for changed in &change.changed {
        let run = &changed.run;
        let Some(before) = before.iter().find(|before| before.id == run.spec.id) else { continue };
        let was = (before.status, before.armed, before.place);
        transition::write(writer, was, run, before.commit_number, &changed.segment)?;
    }
    if let Some(run) = &change.grown {
        writer
            .conn()
            .prepare_cached("UPDATE specs SET input = ? WHERE run_id = ?")?
            .execute(params![json(&run.spec.input)?, run.spec.id.as_bytes()])?;
    }
    if let Some(run) = change.cancel {
        transition::keep_cancel(writer.conn(), run, change.thread.active_at)?;
    }
    if let Some(created) = &change.created {
        let (run, segment) = (created.run.clone(), created.segment.clone());
        let creation = Creation::new(NewRun { run, segment, key: None, max_waiting: u64::MAX, share })?;
        creation.insert(writer)?;
    }
    let conn = writer.conn();
    for message in &change.messages {
        insert_message(conn, change.thread.id, message)?;
    }
    if let Some((from, to)) = change.taken_over {
        conn.prepare_cached("UPDATE messages SET run_id = ?, turn = NULL WHERE run_id = ? AND role <> 'assistant'")?
            .execute([to.as_bytes(), from.as_bytes()])?;
    }
    for (run, turn) in &change.turns {
        conn.prepare_cached("UPDATE messages SET turn = ? WHERE run_id = ? AND turn IS NULL")?
            .execute(params![integer(*turn), run.as_bytes()])?;
    }
    for event in &change.events {
        conn.prepare_cached(
            "INSERT INTO thread_events (thread_id, seq, at, kind, run_id, text) VALUES (?, ?, ?, ?, ?, ?)",
        )?
        .execute(params![
            change.thread.id.as_bytes(),
            integer(event.seq),
            event.at.as_millis(),
            event.happened.kind().as_str(),
            event.happened.run().as_ref().map(RunId::as_bytes),
            event.happened.text()
        ])?;
        if let Some(news) = ThreadNews::of(&change.thread, event) {
            webhooks::put_thread(conn, &news)?;
        }
    }
    Ok(())
}

fn insert_message(conn: &Connection, thread: ThreadId, message: &ThreadMessage) -> Result<(), StoreError> {
    let (role, content) = words(&message.message)?;
    conn.prepare_cached(
        "INSERT INTO messages (thread_id, seq, id, role, content, run_id, turn, unread, after_step, at) \
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )?
    .execute(params![
        thread.as_bytes(),
        integer(message.seq),
        message.id.as_bytes(),
        role,
        content,
        message.run.as_ref().map(RunId::as_bytes),
        message.turn.map(integer),
        message.unread,
        message.after_step,
        message.at.as_millis()
    ])?;
    Ok(())
}

/// The follow-up timer of a thread.
fn armed(thread: &Thread) -> Option<TimerKey> {
    let Timer { due, id } = thread.follow_up.as_ref()?.timer;
    Some(TimerKey { due, owner: *thread.id.as_uuid(), kind: TimerKind::FollowUp(id) })
}

fn rearm(conn: &Connection, was: &Thread, thread: &Thread) -> Result<(), StoreError> {
    let (before, after) = (armed(was), armed(thread));
    if before != after {
        before.map(|timer| timers::remove(conn, timer)).transpose()?;
        after.map(|timer| timers::arm(conn, timer)).transpose()?;
    }
    Ok(())
}

/// Creates a thread.
pub(super) fn create(writer: &mut Writer, new: &NewThread) -> Result<ThreadCreated, StoreError> {
    let (conn, thread) = (writer.conn(), &new.thread);
    let mut id = thread.id;
    if let Some(key) = &new.key
        && let Some((fingerprint, used)) = create::used(conn, &thread.tenant, key)?
    {
        if fingerprint != key.fingerprint {
            return Ok(ThreadCreated::Taken);
        }
        id = ThreadId::from_uuid(used);
    }
    if let Some(found) = find(conn, id)? {
        return Ok(match found.tenant == thread.tenant {
            true => ThreadCreated::Existing(Box::new(found)),
            false => ThreadCreated::Taken,
        });
    }
    conn.prepare_cached(
        "INSERT INTO threads (metadata, state, active_at, handed_at, handed_reason, handed_by, holder, dropping, turns, \
         last_message, last_event, follow_up_due, follow_up_timer, follow_up_agent, rule, sent, timers_armed, \
         id, tenant, created_at) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20)",
    )?
    .execute(params_from_iter(state(thread)?.into_iter().chain([
        thread.id.as_bytes().to_vec().into(),
        thread.tenant.as_str().to_owned().into(),
        thread.created_at.as_millis().into(),
    ])))?;
    if let Some(key) = &new.key {
        create::keep(conn, &thread.tenant, key, *thread.id.as_uuid(), thread.created_at)?;
    }
    Ok(ThreadCreated::New)
}

fn update(conn: &Connection, thread: &Thread) -> Result<(), StoreError> {
    conn.prepare_cached(
        "UPDATE threads SET metadata = ?1, state = ?2, active_at = ?3, handed_at = ?4, handed_reason = ?5, \
         handed_by = ?6, holder = ?7, dropping = ?8, turns = ?9, last_message = ?10, last_event = ?11, \
         follow_up_due = ?12, follow_up_timer = ?13, follow_up_agent = ?14, rule = ?15, sent = ?16, \
         timers_armed = ?17 WHERE id = ?18",
    )?
    .execute(params_from_iter(state(thread)?.into_iter().chain([thread.id.as_bytes().to_vec().into()])))?;
    Ok(())
}

/// The columns of a thread that change, in order.
fn state(thread: &Thread) -> Result<Vec<Value>, StoreError> {
    let (handed, follow_up) = (thread.handed_off.as_ref(), thread.follow_up.as_ref());
    let id = |id: RunId| id.as_bytes().to_vec();
    Ok(vec![
        json(&thread.metadata)?.into(),
        json(&thread.state)?.into(),
        thread.active_at.as_millis().into(),
        handed.map(|handed| handed.at.as_millis()).into(),
        handed.map(|handed| handed.reason.clone()).into(),
        handed.and_then(|handed| handed.by).map(id).into(),
        thread.holder.map(id).into(),
        i64::from(thread.dropping).into(),
        integer(thread.turns).into(),
        integer(thread.last_message).into(),
        integer(thread.last_event).into(),
        follow_up.map(|follow_up| follow_up.timer.due.as_millis()).into(),
        follow_up.map(|follow_up| integer(follow_up.timer.id)).into(),
        follow_up.map(|follow_up| follow_up.agent.clone()).into(),
        i64::from(thread.progress.rule).into(),
        i64::from(thread.progress.sent).into(),
        integer(thread.timers_armed).into(),
    ])
}

fn find(conn: &Connection, id: ThreadId) -> Result<Option<Thread>, StoreError> {
    conn.prepare_cached(&format!("{THREAD} WHERE id = ?"))?
        .query_row([id.as_bytes()], |row| Ok(read_thread(row)))
        .optional()?
        .transpose()
}

/// Thread `id`, if it is the tenant's.
pub(super) fn get(conn: &Connection, tenant: Option<&Tenant>, id: ThreadId) -> Result<Option<Thread>, StoreError> {
    Ok(find(conn, id)?.filter(|thread| tenant.is_none_or(|tenant| thread.tenant == *tenant)))
}

/// The tenant's threads, youngest first.
pub(super) fn list(
    conn: &Connection,
    tenant: &Tenant,
    before: Option<ThreadId>,
    metadata: &BTreeMap<String, String>,
    limit: usize,
) -> Result<Vec<Thread>, StoreError> {
    let mut sql = format!("{THREAD} INDEXED BY threads_by_tenant WHERE tenant = ?");
    let mut values = vec![Value::from(tenant.as_str().to_owned())];
    if let Some(before) = before {
        sql.push_str(" AND id < ?");
        values.push(before.as_bytes().to_vec().into());
    }
    for (key, value) in metadata {
        sql.push_str(
            " AND EXISTS (SELECT 1 FROM json_each(threads.metadata) label WHERE label.key = ? AND label.value = ?)",
        );
        values.extend([Value::from(key.clone()), value.clone().into()]);
    }
    sql.push_str(" ORDER BY id DESC LIMIT ?");
    values.push(integer(limit as u64).into());
    let mut statement = conn.prepare_cached(&sql)?;
    let mut rows = statement.query(params_from_iter(values))?;
    let mut threads = Vec::new();
    while let Some(row) = rows.next()? {
        threads.push(read_thread(row)?);
    }
    Ok(threads)
}

/// Changes what belongs to the caller.
pub(super) fn patch(
    writer: &mut Writer,
    tenant: &Tenant,
    id: ThreadId,
    patch: &Patch,
) -> Result<Option<Thread>, StoreError> {
    let Some(mut thread) = get(writer.conn(), Some(tenant), id)? else { return Ok(None) };
    thread.metadata = patch.metadata.clone().unwrap_or(thread.metadata);
    thread.state = patch.state.clone().unwrap_or(thread.state);
    update(writer.conn(), &thread)?;
    Ok(Some(thread))
}

/// Removes a thread whose runs have ended.
pub(super) fn delete(conn: &Connection, tenant: &Tenant, id: ThreadId) -> Result<ThreadDeleted, StoreError> {
    let Some(thread) = get(conn, Some(tenant), id)? else { return Ok(ThreadDeleted::Missing) };
    let open: Option<[u8; 16]> = conn
        .prepare_cached(
            "SELECT id FROM runs INDEXED BY runs_open_by_thread WHERE thread_id = ? AND finished_at IS NULL LIMIT 1",
        )?
        .query_row([id.as_bytes()], |row| row.get(0))
        .optional()?;
    match open {
        Some(open) => Ok(ThreadDeleted::Busy(run_id(open))),
        None => Ok(ThreadDeleted::Done(remove(conn, &thread)?)),
    }
}

fn remove(conn: &Connection, thread: &Thread) -> Result<Vec<RunId>, StoreError> {
    let id = thread.id;
    let mut removed = Vec::new();
    {
        let mut statement = conn.prepare_cached("SELECT id FROM runs INDEXED BY runs_by_thread WHERE thread_id = ?")?;
        let mut rows = statement.query([id.as_bytes()])?;
        while let Some(row) = rows.next()? {
            removed.push(run_id(row.get(0)?));
        }
    }
    for run in &removed {
        runs::delete(conn, &thread.tenant, *run)?;
    }
    armed(thread).map(|timer| timers::remove(conn, timer)).transpose()?;
    webhooks::forget_thread(conn, id)?;
    for sql in [
        "DELETE FROM idempotency WHERE run_id IN (SELECT id FROM messages WHERE thread_id = ?)",
        "DELETE FROM idempotency WHERE run_id = ?",
        "DELETE FROM messages WHERE thread_id = ?",
        "DELETE FROM thread_events WHERE thread_id = ?",
        "DELETE FROM threads WHERE id = ?",
    ] {
        conn.prepare_cached(sql)?.execute([id.as_bytes()])?;
    }
    Ok(removed)
}

/// The id of a thread as deliveries have it.
const TEXT_OF_ID: &str = "lower(substr(hex(threads.id), 1, 8) || '-' || substr(hex(threads.id), 9, 4) || '-' || \
     substr(hex(threads.id), 13, 4) || '-' || substr(hex(threads.id), 17, 4) || '-' || substr(hex(threads.id), 21))";

/// Removes threads in which nothing has happened since `before`.
pub(super) fn delete_idle(conn: &Connection, before: Timestamp, limit: usize) -> Result<Vec<ThreadId>, StoreError> {
    let mut idle = Vec::new();
    {
        let mut statement = conn.prepare_cached(&format!(
            "{THREAD} INDEXED BY threads_by_activity WHERE active_at < ? AND holder IS NULL AND follow_up_due IS NULL \
             AND NOT EXISTS (SELECT 1 FROM runs INDEXED BY runs_open_by_thread \
             WHERE thread_id = threads.id AND finished_at IS NULL) \
             AND NOT EXISTS (SELECT 1 FROM deliveries INDEXED BY deliveries_by_thread \
             WHERE thread_id = {TEXT_OF_ID} AND status = 'pending') \
             AND NOT EXISTS (SELECT 1 FROM runs r INDEXED BY runs_by_thread \
             JOIN deliveries d INDEXED BY deliveries_by_run ON d.run_id = r.id \
             WHERE r.thread_id = threads.id AND d.status = 'pending') ORDER BY active_at LIMIT ?"
        ))?;
        let mut rows = statement.query(params![before.as_millis(), integer(limit as u64)])?;
        while let Some(row) = rows.next()? {
            idle.push(read_thread(row)?);
        }
    }
    let (begun, mut removed) = (Instant::now(), Vec::new());
    for thread in &idle {
        remove(conn, thread)?;
        removed.push(thread.id);
        if begun.elapsed() >= HOLD {
            break;
        }
    }
    Ok(removed)
}

/// Messages after number `after`, oldest first.
pub(super) fn messages(
    conn: &Connection,
    id: ThreadId,
    after: u64,
    limit: usize,
) -> Result<Vec<ThreadMessage>, StoreError> {
    let mut statement =
        conn.prepare_cached(&format!("{MESSAGE} WHERE thread_id = ? AND seq > ? ORDER BY seq LIMIT ?"))?;
    let mut rows = statement.query(params![id.as_bytes(), integer(after), integer(limit as u64)])?;
    let mut messages = Vec::new();
    while let Some(row) = rows.next()? {
        messages.push(read_message(row)?);
    }
    Ok(messages)
}

/// What the agent of run `id` is shown.
pub(super) fn conversation(
    conn: &mut Connection,
    id: RunId,
    max_messages: usize,
    max_bytes: usize,
) -> Result<Conversation, StoreError> {
    let snapshot = conn.transaction()?;
    let mut conversation = Conversation::default();
    // Whoever asks has the thread: the turn is its own.
    let turn: Option<([u8; 16], i64)> = snapshot
        .prepare_cached(
            "SELECT t.id, t.turns FROM runs r JOIN threads t ON t.id = r.thread_id WHERE r.id = ? AND t.holder = r.id",
        )?
        .query_row([id.as_bytes()], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let Some((thread, turn)) = turn else { return Ok(conversation) };
    let mut statement = snapshot.prepare_cached(
        "SELECT role, content FROM messages INDEXED BY messages_by_turn WHERE thread_id = ? AND turn < ? \
         ORDER BY turn DESC, seq DESC LIMIT ?",
    )?;
    let mut rows = statement.query(params![thread, turn, integer(max_messages as u64)])?;
    let mut bytes = 0;
    while let Some(row) = rows.next()? {
        let message = read_words(row, 0)?;
        bytes += message.content.weight();
        if bytes > max_bytes && !conversation.history.is_empty() {
            break;
        }
        conversation.history.push(message);
    }
    conversation.history.reverse();
    let mut statement = snapshot.prepare_cached(
        "SELECT role, content, after_step FROM messages WHERE run_id = ? AND after_step IS NOT NULL ORDER BY seq",
    )?;
    let mut rows = statement.query([id.as_bytes()])?;
    while let Some(row) = rows.next()? {
        conversation.steers.push((row.get(2)?, read_words(row, 0)?));
    }
    Ok(conversation)
}

/// The messages that the run has not looked at: now it has.
pub(super) fn take_steers(
    conn: &Connection,
    id: RunId,
    attempt: u32,
    after_step: u32,
) -> Result<Vec<Message>, StoreError> {
    let owned = conn
        .prepare_cached("SELECT 1 FROM runs WHERE id = ? AND attempt = ? AND status = 'running'")?
        .exists(params![id.as_bytes(), attempt])?;
    let mut steers = Vec::new();
    if !owned {
        return Ok(steers);
    }
    {
        let mut statement =
            conn.prepare_cached("SELECT role, content FROM messages WHERE run_id = ? AND unread = 1 ORDER BY seq")?;
        let mut rows = statement.query([id.as_bytes()])?;
        while let Some(row) = rows.next()? {
            steers.push(read_words(row, 0)?);
        }
    }
    if !steers.is_empty() {
        conn.prepare_cached("UPDATE messages SET unread = 0, after_step = ? WHERE run_id = ? AND unread = 1")?
            .execute(params![after_step, id.as_bytes()])?;
    }
    Ok(steers)
}

/// The thread's own log after entry `after`.
pub(super) fn events(conn: &Connection, id: ThreadId, after: u64, limit: usize) -> Result<Vec<Event>, StoreError> {
    let mut statement = conn.prepare_cached(
        "SELECT seq, at, kind, run_id, text FROM thread_events WHERE thread_id = ? AND seq > ? ORDER BY seq LIMIT ?",
    )?;
    let mut rows = statement.query(params![id.as_bytes(), integer(after), integer(limit as u64)])?;
    let mut events = Vec::new();
    while let Some(row) = rows.next()? {
        let kind: String = row.get(2)?;
        let run = row.get::<_, Option<[u8; 16]>>(3)?.map(run_id);
        let happened = EventKind::parse(&kind).zip(Some(row.get(4)?));
        let happened = happened.and_then(|(kind, text)| Happened::from_parts(kind, run, text));
        let happened = happened.ok_or_else(|| unreadable("the log of a thread", format_args!("{kind:?}")))?;
        events.push(Event { seq: unsigned(row.get(0)?), at: Timestamp::from_millis(row.get(1)?), happened });
    }
    Ok(events)
}

fn read_thread(row: &Row<'_>) -> Result<Thread, StoreError> {
    let time = |at: usize| Ok::<_, rusqlite::Error>(row.get::<_, Option<i64>>(at)?.map(Timestamp::from_millis));
    let run = |at: usize| Ok::<_, rusqlite::Error>(row.get::<_, Option<[u8; 16]>>(at)?.map(run_id));
    let number = |at: usize| Ok::<_, rusqlite::Error>(unsigned(row.get(at)?));
    let handed_by = run(8)?;
    let handed_off = Option::zip(time(6)?, row.get(7)?).map(|(at, reason)| HandedOff { at, reason, by: handed_by });
    let timer = Option::zip(time(14)?, row.get::<_, Option<i64>>(15)?);
    let timer = timer.map(|(due, id)| Timer { due, id: unsigned(id) });
    let follow_up = Option::zip(timer, row.get(16)?).map(|(timer, agent)| FollowUp { timer, agent });
    Ok(Thread {
        id: ThreadId::from_uuid(Uuid::from_bytes(row.get(0)?)),
        tenant: Tenant::new(row.get::<_, String>(1)?),
        metadata: parse(&row.get::<_, String>(2)?)?,
        state: parse(&row.get::<_, String>(3)?)?,
        created_at: Timestamp::from_millis(row.get(4)?),
        active_at: Timestamp::from_millis(row.get(5)?),
        handed_off,
        holder: run(9)?,
        dropping: row.get(10)?,
        turns: number(11)?,
        last_message: number(12)?,
        last_event: number(13)?,
        follow_up,
        progress: Progress { rule: row.get(17)?, sent: row.get(18)? },
        timers_armed: number(19)?,
    })
}

fn read_message(row: &Row<'_>) -> Result<ThreadMessage, StoreError> {
    Ok(ThreadMessage {
        id: Uuid::from_bytes(row.get(0)?),
        seq: unsigned(row.get(1)?),
        message: read_words(row, 2)?,
        run: row.get::<_, Option<[u8; 16]>>(4)?.map(run_id),
        turn: row.get::<_, Option<i64>>(5)?.map(unsigned),
        unread: row.get(6)?,
        after_step: row.get(7)?,
        at: Timestamp::from_millis(row.get(8)?),
    })
}

fn read_words(row: &Row<'_>, first: usize) -> Result<Message, StoreError> {
    spelling::message(&row.get::<_, String>(first)?, row.get(first + 1)?)
}
