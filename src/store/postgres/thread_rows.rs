//! Threads as rows, and back.

use std::collections::BTreeMap;

use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::conn::Conn;
use super::error::Failure;
use super::rows::{self, Columns, limit, line, plain};
use crate::run::{Tenant, ThreadId, Timer};
use crate::store::StoreError;
use crate::store::spelling::{integer, json, parse};
use crate::thread::{FollowUp, HandedOff, Progress, Thread};

/// The columns of a thread, in the order in which [`read_thread`] takes them.
macro_rules! thread {
    () => {
        "SELECT id, tenant, metadata, state, created_at, active_at, handed_at, handed_reason, handed_by, holder, \
         dropping, turns, last_message, last_event, follow_up_due, follow_up_timer, follow_up_agent, rule, sent, \
         timers_armed FROM runcast_threads"
    };
}
pub(super) use thread;

const GET: &str = concat!(thread!(), " WHERE id = $1");

/// The columns of a thread that change.
struct State {
    metadata: String,
    state: String,
    active_at: i64,
    handed_at: Option<i64>,
    handed_reason: Option<String>,
    handed_by: Option<Uuid>,
    holder: Option<Uuid>,
    dropping: bool,
    numbers: [i64; 6],
    follow_up: (Option<i64>, Option<i64>, Option<String>),
}

impl State {
    fn of(thread: &Thread) -> Result<Self, StoreError> {
        let (handed, follow_up) = (thread.handed_off.as_ref(), thread.follow_up.as_ref());
        Ok(Self {
            metadata: rows::metadata(&thread.metadata)?,
            state: json(&thread.state)?,
            active_at: thread.active_at.as_millis(),
            handed_at: handed.map(|handed| handed.at.as_millis()),
            handed_reason: handed.map(|handed| plain(&handed.reason).into_owned()),
            handed_by: handed.and_then(|handed| handed.by).map(|run| *run.as_uuid()),
            holder: thread.holder.map(|run| *run.as_uuid()),
            dropping: thread.dropping,
            numbers: [
                integer(thread.turns),
                integer(thread.last_message),
                integer(thread.last_event),
                thread.progress.rule.into(),
                thread.progress.sent.into(),
                integer(thread.timers_armed),
            ],
            follow_up: (
                follow_up.map(|follow_up| follow_up.timer.due.as_millis()),
                follow_up.map(|follow_up| integer(follow_up.timer.id)),
                follow_up.map(|follow_up| plain(&follow_up.agent).into_owned()),
            ),
        })
    }

    /// Parameters 2 to 18, behind the id.
    fn params<'a>(&'a self, id: &'a Uuid) -> Vec<&'a (dyn ToSql + Sync)> {
        let [turns, last_message, last_event, rule, sent, timers_armed] = &self.numbers;
        let (due, timer, agent) = &self.follow_up;
        vec![
            id,
            &self.metadata,
            &self.state,
            &self.active_at,
            &self.handed_at,
            &self.handed_reason,
            &self.handed_by,
            &self.holder,
            &self.dropping,
            turns,
            last_message,
            last_event,
            due,
            timer,
            agent,
            rule,
            sent,
            timers_armed,
        ]
    }
}

pub(super) async fn update(conn: &Conn, thread: &Thread) -> Result<(), Failure> {
    let sql = "UPDATE runcast_threads SET metadata = $2, state = $3, active_at = $4, handed_at = $5, \
         handed_reason = $6, handed_by = $7, holder = $8, dropping = $9, turns = $10, last_message = $11, \
         last_event = $12, follow_up_due = $13, follow_up_timer = $14, follow_up_agent = $15, rule = $16, sent = $17, \
         timers_armed = $18 WHERE id = $1";
    conn.execute(sql, &State::of(thread)?.params(thread.id.as_uuid())).await.map(drop)
}

/// Whether it is new.
pub(super) async fn insert(conn: &Conn, thread: &Thread) -> Result<bool, Failure> {
    let sql = "INSERT INTO runcast_threads (id, metadata, state, active_at, handed_at, handed_reason, handed_by, \
         holder, dropping, turns, last_message, last_event, follow_up_due, follow_up_timer, follow_up_agent, rule, \
         sent, timers_armed, tenant, created_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, \
         $15, $16, $17, $18, $19, $20) ON CONFLICT (id) DO NOTHING";
    let (state, tenant, created) = (State::of(thread)?, plain(thread.tenant.as_str()), thread.created_at.as_millis());
    let mut params = state.params(thread.id.as_uuid());
    params.push(&tenant);
    params.push(&created);
    Ok(conn.execute(sql, &params).await? > 0)
}

pub(super) async fn find(conn: &Conn, id: ThreadId) -> Result<Option<Thread>, Failure> {
    Ok(conn.query(GET, &[id.as_uuid()]).await?.first().map(read_thread).transpose()?)
}

/// The tenant's threads, youngest first.
pub(super) async fn list(
    conn: &Conn,
    tenant: &Tenant,
    before: Option<ThreadId>,
    metadata: &BTreeMap<String, String>,
    most: usize,
) -> Result<Vec<Thread>, Failure> {
    const LIST: &str = concat!(
        thread!(),
        " WHERE tenant = $1 AND id < $2 AND (cardinality($3::text[]) = 0 \
         OR (SELECT bool_and(strpos(metadata, label) > 0) FROM unnest($3::text[]) label)) ORDER BY id DESC LIMIT $4"
    );
    let before = before.map_or(Uuid::max(), |before| *before.as_uuid());
    let labels: Vec<String> = metadata.iter().map(|(key, value)| line(key, value)).collect::<Result<_, _>>()?;
    let rows = conn.query(LIST, &[&plain(tenant.as_str()), &before, &labels, &limit(most)]).await?;
    Ok(rows.iter().map(read_thread).collect::<Result<_, _>>()?)
}

pub(super) fn read_thread(row: &Row) -> Result<Thread, StoreError> {
    let mut columns = Columns::of(row);
    let id = ThreadId::from_uuid(columns.take()?);
    let tenant = columns.text(|text| Some(Tenant::new(text)))?;
    let (metadata, state) = (parse(columns.take()?)?, parse(columns.take()?)?);
    let (created_at, active_at) = (columns.time()?, columns.time()?);
    let (handed_at, reason, by) = (columns.optional_time()?, columns.take()?, columns.optional_id()?);
    let handed_off = handed_at.zip(reason).map(|(at, reason)| HandedOff { at, reason, by });
    let (holder, dropping) = (columns.optional_id()?, columns.take()?);
    let (turns, last_message, last_event) = (columns.number()?, columns.number()?, columns.number()?);
    let (due, timer, agent) = (columns.optional_time()?, columns.optional_number()?, columns.take()?);
    let timer = due.zip(timer).map(|(due, id)| Timer { due, id });
    let follow_up = timer.zip(agent).map(|(timer, agent)| FollowUp { timer, agent });
    let progress = Progress { rule: columns.small("rule")?, sent: columns.small("sent")? };
    let timers_armed = columns.number()?;
    Ok(Thread {
        id,
        tenant,
        metadata,
        state,
        created_at,
        active_at,
        handed_off,
        holder,
        dropping,
        turns,
        last_message,
        last_event,
        follow_up,
        progress,
        timers_armed,
    })
}
