//! The messages of threads, and the threads' own logs.

use tokio_postgres::Row;
use uuid::Uuid;

use super::conn::{Conn, Params};
use super::error::Failure;
use super::rows::{Columns, limit, plain};
use crate::run::{Message, RunId, Status, ThreadId};
use crate::store::spelling::{self, integer, unreadable, words};
use crate::store::{Conversation, StoreError};
use crate::thread::{Event, EventKind, Happened, ThreadMessage, Unread};

/// The columns of a message, in the order in which [`read_message`] takes them.
macro_rules! message {
    () => {
        "SELECT id, seq, role, content, run_id, turn, unread, after_step, at FROM runcast_messages"
    };
}

pub(super) async fn insert(conn: &Conn, thread: ThreadId, messages: &[ThreadMessage]) -> Result<(), Failure> {
    let sql = "INSERT INTO runcast_messages (thread_id, seq, id, role, content, run_id, turn, unread, after_step, at) \
         SELECT $1, * FROM unnest($2::bigint[], $3::uuid[], $4::text[], $5::text[], $6::uuid[], $7::bigint[], \
         $8::bool[], $9::bigint[], $10::bigint[])";
    let seqs: Vec<_> = messages.iter().map(|message| integer(message.seq)).collect();
    let ids: Vec<_> = messages.iter().map(|message| message.id).collect();
    let words: Vec<_> = messages.iter().map(|message| words(&message.message)).collect::<Result<_, _>>()?;
    let roles: Vec<_> = words.iter().map(|(role, _)| *role).collect();
    let contents: Vec<_> = words.iter().map(|(_, content)| plain(content)).collect();
    let runs: Vec<_> = messages.iter().map(|message| message.run.map(|run| *run.as_uuid())).collect();
    let turns: Vec<_> = messages.iter().map(|message| message.turn.map(integer)).collect();
    let unread: Vec<_> = messages.iter().map(|message| message.unread).collect();
    let steps: Vec<_> = messages.iter().map(|message| message.after_step.map(i64::from)).collect();
    let times: Vec<_> = messages.iter().map(|message| message.at.as_millis()).collect();
    let params: Params<'_> =
        &[thread.as_uuid(), &seqs, &ids, &roles, &contents, &runs, &turns, &unread, &steps, &times];
    conn.execute(sql, params).await.map(drop)
}

/// The message `id`, whoever's it is.
pub(super) async fn find(conn: &Conn, id: Uuid) -> Result<Option<ThreadMessage>, Failure> {
    let rows = conn.query(concat!(message!(), " WHERE id = $1"), &[&id]).await?;
    Ok(rows.first().map(read_message).transpose()?)
}

/// Messages after number `after`, oldest first.
pub(super) async fn read(conn: &Conn, id: ThreadId, after: u64, most: usize) -> Result<Vec<ThreadMessage>, Failure> {
    let sql = concat!(message!(), " WHERE thread_id = $1 AND seq > $2 ORDER BY seq LIMIT $3");
    let rows = conn.query(sql, &[id.as_uuid(), &integer(after), &limit(most)]).await?;
    Ok(rows.iter().map(read_message).collect::<Result<_, _>>()?)
}

/// What the agent of run `id` is shown. No snapshot is needed: the turns before the run's do not change any more, and
/// what it has looked at is its own doing.
pub(super) async fn conversation(
    conn: &Conn,
    id: RunId,
    max_messages: usize,
    max_bytes: usize,
) -> Result<Conversation, Failure> {
    let mut conversation = Conversation::default();
    // Whoever asks has the thread: the turn is its own.
    let turn = "SELECT t.id, t.turns FROM runcast_runs r JOIN runcast_threads t ON t.id = r.thread_id \
         WHERE r.id = $1 AND t.holder = r.id";
    let rows = conn.query(turn, &[id.as_uuid()]).await?;
    let Some(row) = rows.first() else { return Ok(conversation) };
    let (thread, turn): (Uuid, i64) = (row.try_get(0)?, row.try_get(1)?);
    let history = "SELECT role, content FROM runcast_messages WHERE thread_id = $1 AND turn < $2 \
         ORDER BY turn DESC, seq DESC LIMIT $3";
    let mut bytes = 0;
    for row in conn.query(history, &[&thread, &turn, &limit(max_messages)]).await? {
        let message = read_words(&mut Columns::of(&row))?;
        bytes += message.content.weight();
        if bytes > max_bytes && !conversation.history.is_empty() {
            break;
        }
        conversation.history.push(message);
    }
    conversation.history.reverse();
    let steers = "SELECT after_step, role, content FROM runcast_messages \
         WHERE run_id = $1 AND after_step IS NOT NULL ORDER BY seq";
    for row in conn.query(steers, &[id.as_uuid()]).await? {
        let mut columns = Columns::of(&row);
        conversation.steers.push((columns.small("after_step")?, read_words(&mut columns)?));
    }
    Ok(conversation)
}

/// The messages that the run has not looked at: now it has.
pub(super) async fn take_steers(
    conn: &Conn,
    id: RunId,
    attempt: u32,
    after_step: u32,
) -> Result<Vec<Message>, Failure> {
    const TAKE: &str = "WITH owned AS MATERIALIZED (SELECT id FROM runcast_runs \
         WHERE id = $1 AND attempt = $2 AND status = $3 FOR UPDATE), \
         taken AS (UPDATE runcast_messages SET unread = false, after_step = $4 \
         WHERE run_id = $1 AND unread AND EXISTS (SELECT FROM owned) RETURNING seq, role, content) \
         SELECT role, content FROM taken ORDER BY seq";
    let (attempt, after_step) = (i64::from(attempt), i64::from(after_step));
    let rows = conn.query(TAKE, &[id.as_uuid(), &attempt, &Status::Running.as_str(), &after_step]).await?;
    let messages = rows.iter().map(|row| read_words(&mut Columns::of(row)));
    Ok(messages.collect::<Result<_, _>>()?)
}

/// The thread's own log after entry `after`.
pub(super) async fn events(conn: &Conn, id: ThreadId, after: u64, most: usize) -> Result<Vec<Event>, Failure> {
    let sql = "SELECT seq, at, kind, run_id, text FROM runcast_thread_events WHERE thread_id = $1 AND seq > $2 \
         ORDER BY seq LIMIT $3";
    let rows = conn.query(sql, &[id.as_uuid(), &integer(after), &limit(most)]).await?;
    Ok(rows.iter().map(read_event).collect::<Result<_, _>>()?)
}

fn read_event(row: &Row) -> Result<Event, StoreError> {
    let mut columns = Columns::of(row);
    let (seq, at) = (columns.number()?, columns.time()?);
    let kind = columns.text(EventKind::parse)?;
    let (run, text) = (columns.optional_id()?, columns.take()?);
    let happened = Happened::from_parts(kind, run, text);
    let happened = happened.ok_or_else(|| unreadable("the log of a thread", format_args!("{:?}", kind.as_str())))?;
    Ok(Event { seq, at, happened })
}

/// What the run has not looked at.
pub(super) async fn unread(conn: &Conn, id: RunId) -> Result<Unread, Failure> {
    let sql = "SELECT count(*), coalesce(sum(octet_length(content)), 0)::bigint FROM runcast_messages \
         WHERE run_id = $1 AND unread";
    let rows = conn.query(sql, &[id.as_uuid()]).await?;
    let Some(row) = rows.first() else { return Ok(Unread::default()) };
    let mut columns = Columns::of(row);
    Ok(Unread { messages: columns.number()?, bytes: columns.number()? })
}

/// Messages wait that the run has not looked at.
pub(super) async fn has_unread(conn: &Conn, id: RunId) -> Result<bool, Failure> {
    let sql = "SELECT 1 FROM runcast_messages WHERE run_id = $1 AND unread LIMIT 1";
    Ok(!conn.query(sql, &[id.as_uuid()]).await?.is_empty())
}

fn read_message(row: &Row) -> Result<ThreadMessage, StoreError> {
    let mut columns = Columns::of(row);
    let (id, seq) = (columns.take()?, columns.number()?);
    let message = read_words(&mut columns)?;
    let (run, turn, unread) = (columns.optional_id()?, columns.optional_number()?, columns.take()?);
    let after_step = columns.optional_number()?.map(|step| u32::try_from(step).unwrap_or(u32::MAX));
    Ok(ThreadMessage { id, seq, message, run, turn, unread, after_step, at: columns.time()? })
}

fn read_words(columns: &mut Columns<'_>) -> Result<Message, StoreError> {
    spelling::message(columns.take()?, columns.take()?)
}
