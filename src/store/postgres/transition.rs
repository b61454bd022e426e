//! What happens to runs that nobody executes.
//!
//! A transition locks the run's row first, and looks at the run in a statement of its own: what it sees is what was
//! committed before it got the lock, in every table. Then the machine decides, and what follows is written in the
//! same transaction.

use futures_util::future::{try_join, try_join3};
use uuid::Uuid;

use super::batch::{Batch, batch_arrays, batch_columns, insert_log, set_state};
use super::conn::Conn;
use super::error::Failure;
use super::rows::{self, Found, LOAD, limit};
use super::shares;
use super::timers::{self, Armed, Timers};
use super::webhooks::{News, insert_deliveries};
use crate::run::{Command, Context, Effect, Event, Rejection, Run, RunId, Segment, Status, Tenant, Timestamp};
use crate::store::spelling::Documents;
use crate::store::{Changed, StoreError, Transition};

const LOCK: &str = "SELECT 1 FROM runcast_runs WHERE id = $1 FOR UPDATE";

const KEEP_CANCEL: &str = "UPDATE runcast_runs SET cancel_requested = true WHERE id = $1 AND NOT cancel_requested";

/// The runs whose lease has ended. Those that someone is busy with are left to them.
const EXPIRED: &str = "SELECT id FROM runcast_runs WHERE status = 'running' AND lease_until < now() \
     ORDER BY lease_until LIMIT $1 FOR UPDATE SKIP LOCKED";

/// Writes runs whose rows are locked.
const WRITE: &str = concat!(
    "WITH changed AS (UPDATE runcast_runs r SET ",
    set_state!(),
    ", cancel_requested = false, node = $31::text, \
     lease_until = clock_timestamp() + $32::bigint * interval '1 millisecond' FROM unnest(",
    batch_arrays!(),
    ") AS i(",
    batch_columns!(),
    ") WHERE r.id = i.id RETURNING i.*), ",
    insert_log!("changed"),
    ", disarmed AS (DELETE FROM runcast_timers t \
     USING unnest($33::bigint[], $34::uuid[], $35::bigint[], $36::bigint[]) AS d(due_at, run_id, kind, number) \
     WHERE t.due_at = d.due_at AND t.run_id = d.run_id AND t.kind = d.kind AND t.number = d.number), \
     armed AS (INSERT INTO runcast_timers (due_at, run_id, kind, number) \
     SELECT * FROM unnest($37::bigint[], $38::uuid[], $39::bigint[], $40::bigint[])), ",
    insert_deliveries!("$41", "$42", "$43", "$44", "$45", "$46"),
    " SELECT id FROM changed"
);

/// The runs that are running as a node's and that it does not know of.
const STRAYS: &str = "SELECT id FROM runcast_runs WHERE status = 'running' AND node = $2 AND id <> ALL ($3::uuid[]) \
     ORDER BY id LIMIT $1 FOR UPDATE SKIP LOCKED";

/// A run that the machine has decided about, before it is written.
pub(super) struct Next {
    pub(super) run: Run,
    pub(super) segment: Segment,
    pub(super) documents: Documents,
    reserved_seq: u64,
    commit_number: u64,
    from: Status,
    before: Armed,
    effects: Vec<Effect>,
}

/// What the machine makes of `command`.
pub(super) fn decide(found: Found, command: &Command, now: Timestamp) -> Result<Next, Box<(Found, Rejection)>> {
    let context = Context { now, next_seq: found.reserved_seq + 1, busy: false };
    let decision = match found.run.decide(command, &context) {
        Ok(decision) => decision,
        Err(rejection) => return Err(Box::new((found, rejection))),
    };
    let Found { mut run, commit_number, documents, .. } = found;
    let (from, before) = (run.status, Armed::of(&run));
    let segment = apply(&mut run, &decision.events, context);
    let reserved_seq = run.last_seq;
    Ok(Next { run, segment, documents, reserved_seq, commit_number, from, before, effects: decision.effects })
}

/// Applies events to a run, numbered from the context's; returns them encoded.
fn apply(run: &mut Run, events: &[Event], context: Context) -> Segment {
    for (event, seq) in events.iter().zip(context.next_seq..) {
        run.apply(event, seq, context.now);
    }
    Segment::encode(context.next_seq, events, context.now)
}

impl Next {
    /// The run as a claim leaves it: it may use `reserve` further numbers, and its owner's commits count anew.
    pub(super) fn owned(mut self, reserve: u64) -> Self {
        self.reserved_seq = self.run.last_seq.saturating_add(reserve);
        self.commit_number = 0;
        self
    }

    pub(super) fn reserved_seq(&self) -> u64 {
        self.reserved_seq
    }

    fn done(self) -> Result<Transition, StoreError> {
        let run = self.documents.complete(self.run)?;
        Ok(Transition::Done(Box::new(Changed { run, segment: self.segment, effects: self.effects })))
    }
}

/// Writes what was decided, and commits the transaction that holds the rows' locks. With an `owner` the runs are
/// its, until so many milliseconds from now; without, they are nobody's.
pub(super) async fn write(conn: &Conn, next: &[Next], owner: Option<(&str, i64)>) -> Result<(), Failure> {
    let (mut batch, mut disarmed, mut armed) = (Batch::default(), Timers::default(), Timers::default());
    let mut news = News::default();
    for next in next {
        batch.push(&next.run, next.reserved_seq, next.commit_number, Some(&next.segment));
        timers::follow(next.before, &next.run, &mut disarmed, &mut armed);
        news.push(&next.run, next.from, Some(&next.segment));
    }
    let (node, lease) = (owner.map(|(node, _)| node), owner.map(|(_, lease)| lease));
    let mut params = batch.params();
    params.push(&node);
    params.push(&lease);
    for timers in [&disarmed, &armed] {
        params.push(&timers.due_at);
        params.push(&timers.run_id);
        params.push(&timers.kind);
        params.push(&timers.number);
    }
    params.extend(news.params());
    let unranked = next.iter().filter(|next| next.from == Status::Scheduled && next.run.status == Status::Queued);
    let unranked: Vec<Uuid> = unranked.map(|next| *next.run.spec.id.as_uuid()).collect();
    if !unranked.is_empty() {
        shares::assign(conn, &unranked).await?;
    }
    let (client, statement) = (conn.client(), conn.prepare(WRITE).await?);
    let by_condition = "SET LOCAL enable_indexscan = off; SET LOCAL enable_indexonlyscan = off";
    let written = client.query(&statement, &params);
    let written = try_join3(client.batch_execute(by_condition), written, client.batch_execute("COMMIT")).await?.1;
    if written.len() == next.len() {
        return Ok(());
    }
    Err(StoreError::Corrupt(format!("{} rows were written, expected {}", written.len(), next.len())).into())
}

/// Lets the machine decide about run `id`: by the command that goes with how it was found, or not at all.
pub(super) async fn transition(
    conn: &Conn,
    tenant: Option<&Tenant>,
    id: RunId,
    command: &Command,
    now: Timestamp,
) -> Result<Transition, Failure> {
    let Some(mut found) = lock(conn, tenant, id).await? else { return Ok(Transition::Missing) };
    if found.run.status != Status::Running {
        return change(conn, found, command, now).await;
    }
    if *command != Command::Cancel {
        conn.client().batch_execute("COMMIT").await?;
        let stored = Box::new(found.into_stored()?);
        return Ok(Transition::Rejected(stored, Rejection::NotNow(Status::Running)));
    }
    let (client, keep) = (conn.client(), conn.prepare(KEEP_CANCEL).await?);
    try_join(client.execute(&keep, &[id.as_uuid()]), client.batch_execute("COMMIT")).await?;
    found.cancel_requested = true;
    Ok(Transition::Handed(Box::new(found.into_stored()?)))
}

/// Gives up attempt `attempt` of run `id`, if it is the one that is running.
pub(super) async fn give_up(conn: &Conn, id: RunId, attempt: u32, now: Timestamp) -> Result<Transition, Failure> {
    match lock(conn, None, id).await? {
        Some(found) => {
            let command = Command::Crash { attempt, cancel: found.cancel_requested };
            change(conn, found, &command, now).await
        }
        None => Ok(Transition::Missing),
    }
}

/// Gives up the attempts of up to `most` runs whose lease has ended: by the cancels that wait for them, or as
/// crashes.
pub(super) async fn recover(conn: &Conn, now: Timestamp, most: usize) -> Result<Vec<Transition>, Failure> {
    end_attempts(conn, EXPIRED, &[&limit(most)], now, |found| Command::Crash {
        attempt: found.run.attempt,
        cancel: found.cancel_requested,
    })
    .await
}

/// Lets go of up to `most` runs that are running as `node`'s and are not among `live`.
pub(super) async fn let_go_strays(
    conn: &Conn,
    node: &str,
    live: &[Uuid],
    now: Timestamp,
    most: usize,
) -> Result<Vec<Transition>, Failure> {
    end_attempts(conn, STRAYS, &[&limit(most), &node, &live], now, |found| match found.cancel_requested {
        true => Command::Cancel,
        false => Command::Release { attempt: found.run.attempt },
    })
    .await
}

/// Ends the attempts of the runs that `which` selects and locks.
async fn end_attempts(
    conn: &Conn,
    which: &'static str,
    params: super::conn::Params<'_>,
    now: Timestamp,
    command: impl Fn(&Found) -> Command,
) -> Result<Vec<Transition>, Failure> {
    let (client, which) = (conn.client(), conn.prepare(which).await?);
    let rows = try_join(client.batch_execute("BEGIN"), client.query(&which, params)).await?.1;
    let ids: Vec<Uuid> = rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?;
    let mut next = Vec::with_capacity(ids.len());
    if !ids.is_empty() {
        for row in rows::find(conn, &ids).await? {
            // One run that cannot be read must not keep all others from going on.
            match Found::read(&row) {
                Ok(found) => {
                    let command = command(&found);
                    next.extend(decide(found, &command, now).ok());
                }
                Err(error) => tracing::error!(%error, "a run cannot be recovered"),
            }
        }
    }
    if next.is_empty() {
        client.batch_execute("COMMIT").await?;
        return Ok(Vec::new());
    }
    next.sort_by_key(|next| next.run.spec.id);
    write(conn, &next, None).await?;
    let mut recovered = Vec::with_capacity(next.len());
    for next in next {
        let id = next.run.spec.id;
        match next.done() {
            Ok(transition) => recovered.push(transition),
            Err(error) => tracing::error!(run = %id, %error, "a recovered run cannot be read"),
        }
    }
    Ok(recovered)
}

/// Begins a transaction and locks run `id`. If there is no such run, or it is another tenant's, the transaction is
/// over.
async fn lock(conn: &Conn, tenant: Option<&Tenant>, id: RunId) -> Result<Option<Found>, Failure> {
    let client = conn.client();
    let (lock, load, id) = (conn.prepare(LOCK).await?, conn.prepare(LOAD).await?, *id.as_uuid());
    let ids = [id];
    let ids = &ids[..];
    let (locked, loaded): (super::conn::Params<'_>, super::conn::Params<'_>) = (&[&id], &[&ids]);
    let pipeline = (client.batch_execute("BEGIN"), client.query(&lock, locked), client.query(&load, loaded));
    let rows = try_join3(pipeline.0, pipeline.1, pipeline.2).await?.2;
    let found = rows.first().map(Found::read).transpose()?;
    let found = found.filter(|found| tenant.is_none_or(|tenant| found.run.spec.tenant == *tenant));
    if found.is_none() {
        client.batch_execute("COMMIT").await?;
    }
    Ok(found)
}

async fn change(conn: &Conn, found: Found, command: &Command, now: Timestamp) -> Result<Transition, Failure> {
    match decide(found, command, now) {
        Ok(next) => {
            write(conn, std::slice::from_ref(&next), None).await?;
            Ok(next.done()?)
        }
        Err(rejected) => {
            let (found, rejection) = *rejected;
            conn.client().batch_execute("COMMIT").await?;
            Ok(Transition::Rejected(Box::new(found.into_stored()?), rejection))
        }
    }
}
