//! What happens to runs that nobody executes.
//!
//! A transition locks the run's row first, and looks at the run in a statement of its own: what it sees is what was
//! committed before it got the lock, in every table. Then the machine decides, and what follows is written in the
//! same transaction. If the run belongs to a thread, the lock of the thread comes before (see `threads`).

use futures_util::future::{try_join, try_join3, try_join5};
use uuid::Uuid;

use super::batch::{AS_EVER, BY_CONDITION, Batch, batch_arrays, batch_columns, insert_log, set_state};
use super::conn::Conn;
use super::error::{Blame, Failure};
use super::rows::{self, Found, limit, plain};
use super::shares;
use super::threads::{self, Locked};
use super::timers::{self, Armed, Timers};
use super::webhooks::{News, insert_deliveries};
use crate::run::{
    Command, Context, Effect, Event, Rejection, Run, RunId, Segment, Status, StepRecord, Tenant, Timestamp,
};
use crate::store::spelling::{Documents, integer, json, step_kind_text};
use crate::store::{Changed, Followed, StoreError, Transition};

/// Run `$1` and, if it belongs to a thread, all open runs of that, in the order in which rows are locked.
macro_rules! wanted {
    () => {
        "(SELECT id FROM runcast_runs WHERE finished_at IS NULL \
         AND thread_id = (SELECT thread_id FROM runcast_runs WHERE id = $1) \
         UNION SELECT $1::uuid ORDER BY 1) AS wanted"
    };
}

const LOCK: &str = concat!(
    "SELECT 1 FROM ",
    wanted!(),
    " CROSS JOIN LATERAL (SELECT 1 FROM runcast_runs WHERE id = wanted.id FOR UPDATE) r"
);

const LOAD: &str = rows::load!(wanted!());

const KEEP_CANCEL: &str =
    "UPDATE runcast_runs SET cancel_requested = true WHERE id = ANY ($1::uuid[]) AND NOT cancel_requested";

/// The runs whose lease has ended. Those that someone is busy with are left to them.
const EXPIRED: &str = "SELECT id FROM runcast_runs WHERE status = 'running' AND lease_until < now() \
     AND thread_id IS NULL ORDER BY lease_until LIMIT $1 FOR UPDATE SKIP LOCKED";

/// The same of threads, without a lock: that of the thread comes first.
const EXPIRED_IN_THREADS: &str = "SELECT id, attempt FROM (SELECT * FROM runcast_runs \
     WHERE status = 'running' AND lease_until < now() ORDER BY lease_until OFFSET 0) r \
     WHERE thread_id IS NOT NULL ORDER BY lease_until LIMIT $1";

/// Whether the lease of a run has still ended.
const IS_EXPIRED: &str = "SELECT 1 FROM runcast_runs WHERE id = $1 AND lease_until < clock_timestamp()";

/// Writes runs whose rows are locked.
const WRITE: &str = concat!(
    "WITH changed AS (UPDATE runcast_runs r SET ",
    set_state!(),
    ", cancel_requested = false, node = $32::text, \
     lease_until = clock_timestamp() + $33::bigint * interval '1 millisecond' FROM unnest(",
    batch_arrays!(),
    ") AS i(",
    batch_columns!(),
    ") WHERE r.id = i.id RETURNING i.*), ",
    insert_log!("changed"),
    ", disarmed AS (DELETE FROM runcast_timers t \
     USING unnest($34::bigint[], $35::uuid[], $36::bigint[], $37::bigint[]) AS d(due_at, run_id, kind, number) \
     WHERE t.due_at = d.due_at AND t.run_id = d.run_id AND t.kind = d.kind AND t.number = d.number), \
     armed AS (INSERT INTO runcast_timers (due_at, run_id, kind, number) \
     SELECT * FROM unnest($38::bigint[], $39::uuid[], $40::bigint[], $41::bigint[])), ",
    insert_deliveries!("$42", "$43", "$44", "$45", "$46", "$47"),
    " SELECT id FROM changed"
);

/// The runs that are running as a node's and that it does not know of.
const STRAYS: &str = "SELECT id FROM runcast_runs WHERE status = 'running' AND node = $2 AND id <> ALL ($3::uuid[]) \
     AND thread_id IS NULL ORDER BY id LIMIT $1 FOR UPDATE SKIP LOCKED";

/// The same of threads, without a lock.
const STRAYS_IN_THREADS: &str = "SELECT id, attempt FROM (SELECT * FROM runcast_runs \
     WHERE status = 'running' AND node = $2 AND id <> ALL ($3::uuid[]) OFFSET 0) r \
     WHERE thread_id IS NOT NULL ORDER BY id LIMIT $1";

const KEEP_STEP: &str = "INSERT INTO runcast_steps \
     (run_id, step, kind, name, input_tokens, output_tokens, estimated, result) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)";

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

/// A run whose row is locked, behind its thread and all open runs of that.
pub(super) struct Held {
    pub(super) found: Found,
    pub(super) thread: Option<Locked>,
}

/// How a run is to be written whose row is locked.
pub(super) struct Written<'a> {
    pub(super) run: &'a Run,
    pub(super) segment: &'a Segment,
    pub(super) reserved_seq: u64,
    pub(super) commit_number: u64,
    pub(super) from: Status,
    pub(super) before: Armed,
}

/// What the machine makes of `command`, while another run holds the thread or not.
pub(super) fn decide(
    found: Found,
    command: &Command,
    now: Timestamp,
    busy: bool,
) -> Result<Next, Box<(Found, Rejection)>> {
    let context = Context { now, next_seq: found.reserved_seq + 1, busy, spent: None };
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

    fn written(&self) -> Written<'_> {
        let Self { run, segment, reserved_seq, commit_number, from, before, .. } = self;
        let (reserved_seq, commit_number) = (*reserved_seq, *commit_number);
        Written { run, segment, reserved_seq, commit_number, from: *from, before: *before }
    }

    pub(super) fn done(self, followed: Option<Followed>) -> Result<Transition, StoreError> {
        let run = self.documents.complete(self.run)?;
        let changed = Box::new(Changed { run, segment: self.segment, effects: self.effects });
        Ok(match followed {
            Some(followed) => Transition::Followed(changed, followed),
            None => Transition::Done(changed),
        })
    }
}

/// Writes what was decided, and commits the transaction that holds the rows' locks. With an `owner` the runs are
/// its, until so many milliseconds from now; without, they are nobody's.
pub(super) async fn write(conn: &Conn, next: &[Next], owner: Option<(&str, i64)>) -> Result<(), Failure> {
    let written: Vec<Written<'_>> = next.iter().map(Next::written).collect();
    write_before(conn, &written, owner, "COMMIT").await
}

/// Writes runs whose rows are locked, by the transaction that holds the locks, which goes on.
pub(super) async fn write_on(conn: &Conn, next: &[Written<'_>]) -> Result<(), Failure> {
    write_before(conn, next, None, AS_EVER).await
}

async fn write_before(
    conn: &Conn,
    next: &[Written<'_>],
    owner: Option<(&str, i64)>,
    behind: &str,
) -> Result<(), Failure> {
    let (mut batch, mut disarmed, mut armed) = (Batch::default(), Timers::default(), Timers::default());
    let mut news = News::default();
    for next in next {
        batch.push(next.run, next.reserved_seq, next.commit_number, Some(next.segment));
        timers::follow(next.before, next.run, &mut disarmed, &mut armed);
        news.push(next.run, next.from, Some(next.segment));
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
    let written = client.query(&statement, &params);
    let written = try_join3(client.batch_execute(BY_CONDITION), written, client.batch_execute(behind)).await?.1;
    if written.len() == next.len() {
        return Ok(());
    }
    Err(StoreError::Corrupt(format!("{} rows were written, expected {}", written.len(), next.len())).into())
}

/// What comes of a command for a run that was found.
pub(super) enum Looked {
    /// Nothing is to be written.
    Answered(Result<Transition, StoreError>),
    /// The cancel is to be kept for the owner.
    Handed(Box<Found>),
    /// To be written.
    Next(Box<Next>),
}

/// Lets the machine decide about a run that was found: by the command that goes with how it stands, or not at all.
/// Without a `tenant` it may be anyone's. `busy`: another run holds its thread.
pub(super) fn look(mut found: Found, tenant: Option<&Tenant>, command: &Command, now: Timestamp, busy: bool) -> Looked {
    let rejected = |found: Found, rejection| {
        Looked::Answered(found.into_stored().map(|stored| Transition::Rejected(Box::new(stored), rejection)))
    };
    if tenant.is_some_and(|tenant| found.run.spec.tenant != *tenant) {
        return Looked::Answered(Ok(Transition::Missing));
    }
    if found.run.status != Status::Running {
        return match decide(found, command, now, busy) {
            Ok(next) => Looked::Next(Box::new(next)),
            Err(refused) => rejected(refused.0, refused.1),
        };
    }
    if *command != Command::Cancel {
        return rejected(found, Rejection::NotNow(Status::Running));
    }
    found.cancel_requested = true;
    Looked::Handed(Box::new(found))
}

/// Lets the machine decide about run `id`, behind the lock of its thread.
pub(super) async fn transition(
    conn: &Conn,
    tenant: Option<&Tenant>,
    id: RunId,
    command: &Command,
    now: Timestamp,
) -> Result<Transition, Failure> {
    let Some(Held { found, thread }) = lock(conn, conn.begin_patiently(), tenant, id).await? else {
        return Ok(Transition::Missing);
    };
    let busy = thread.as_ref().is_some_and(|thread| thread.is_busy_for(id));
    let answer = match look(found, tenant, command, now, busy) {
        Looked::Next(next) => return carry_out(conn, *next, thread, command, now).await,
        Looked::Answered(answer) => answer,
        Looked::Handed(found) => {
            keep_cancels(conn, &[*id.as_uuid()]).await?;
            found.into_stored().map(|stored| Transition::Handed(Box::new(stored)))
        }
    };
    conn.client().batch_execute("COMMIT").await?;
    Ok(answer?)
}

/// Keeps a cancel for the owners of `runs`, whose rows are locked, to find.
pub(super) async fn keep_cancels(conn: &Conn, runs: &[Uuid]) -> Result<(), Failure> {
    conn.execute(KEEP_CANCEL, &[&runs]).await.map(drop)
}

/// Gives up attempt `attempt` of run `id`, if it is the one that is running.
pub(super) async fn give_up(conn: &Conn, id: RunId, attempt: u32, now: Timestamp) -> Result<Transition, Failure> {
    match lock(conn, conn.begin_patiently(), None, id).await? {
        Some(held) => {
            let command = Command::Crash { attempt, cancel: held.found.cancel_requested };
            change(conn, held, &command, now).await
        }
        None => Ok(Transition::Missing),
    }
}

/// Gives up the attempts of up to `most` runs whose lease has ended: by the cancels that wait for them, or as
/// crashes.
pub(super) async fn recover(conn: &Conn, now: Timestamp, most: usize) -> Result<Vec<Transition>, Failure> {
    let command = |found: &Found| Command::Crash { attempt: found.run.attempt, cancel: found.cancel_requested };
    let mut recovered = end_attempts(conn, EXPIRED, &[&limit(most)], now, command).await?;
    let room = limit(most.saturating_sub(recovered.len()));
    let candidates = candidates(conn, EXPIRED_IN_THREADS, &[&room]).await?;
    for (id, attempt) in candidates {
        recovered.extend(end_attempt(conn, id, attempt, true, now, command).await?);
    }
    Ok(recovered)
}

/// Lets go of up to `most` runs that are running as `node`'s and are not among `live`.
pub(super) async fn let_go_strays(
    conn: &Conn,
    node: &str,
    live: &[Uuid],
    now: Timestamp,
    most: usize,
) -> Result<Vec<Transition>, Failure> {
    let command = |found: &Found| match found.cancel_requested {
        true => Command::Cancel,
        false => Command::Release { attempt: found.run.attempt },
    };
    let mut ended = end_attempts(conn, STRAYS, &[&limit(most), &node, &live], now, command).await?;
    let room = limit(most.saturating_sub(ended.len()));
    let candidates = candidates(conn, STRAYS_IN_THREADS, &[&room, &node, &live]).await?;
    for (id, attempt) in candidates {
        ended.extend(end_attempt(conn, id, attempt, false, now, command).await?);
    }
    Ok(ended)
}

/// Runs of threads whose attempts may have to be ended.
async fn candidates(
    conn: &Conn,
    which: &'static str,
    params: super::conn::Params<'_>,
) -> Result<Vec<(RunId, u64)>, Failure> {
    let rows = conn.query(which, params).await?;
    let candidates = rows.iter().map(|row| {
        let mut columns = rows::Columns::of(row);
        Ok((columns.id()?, columns.number()?))
    });
    Ok(candidates.collect::<Result<_, StoreError>>()?)
}

/// Ends attempt `attempt` of run `id`, which belongs to a thread, unless that has been done since; if it is
/// `expired`, unless its lease was extended since. What cannot be done now is left to the next time: it must not
/// keep what was done from being told.
async fn end_attempt(
    conn: &Conn,
    id: RunId,
    attempt: u64,
    expired: bool,
    now: Timestamp,
    command: impl Fn(&Found) -> Command,
) -> Result<Option<Transition>, Failure> {
    let ended = async {
        let Some(held) = lock(conn, "BEGIN", None, id).await? else { return Ok(None) };
        let is_it = held.found.run.status == Status::Running && u64::from(held.found.run.attempt) == attempt;
        if !is_it || (expired && conn.query(IS_EXPIRED, &[id.as_uuid()]).await?.is_empty()) {
            conn.client().batch_execute("COMMIT").await?;
            return Ok(None);
        }
        let command = command(&held.found);
        change(conn, held, &command, now).await.map(Some)
    };
    match ended.await {
        Ok(Some(Transition::Rejected(..) | Transition::Missing) | None) => Ok(None),
        Ok(Some(transition)) => Ok(Some(transition)),
        Err(Failure { error, blame: Blame::Connection }) => Err(Failure { error, blame: Blame::Connection }),
        Err(Failure { error, .. }) => {
            tracing::error!(run = %id, %error, "a run cannot be recovered");
            conn.client().batch_execute("ROLLBACK").await?;
            Ok(None)
        }
    }
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
                    next.extend(decide(found, &command, now, false).ok());
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
        match next.done(None) {
            Ok(transition) => recovered.push(transition),
            Err(error) => tracing::error!(run = %id, %error, "a recovered run cannot be read"),
        }
    }
    Ok(recovered)
}

/// Begins a transaction, by `begin`, and locks run `id`, behind its thread. If there is no such run, or it is another
/// tenant's, the transaction is over.
pub(super) async fn lock(
    conn: &Conn,
    begin: &str,
    tenant: Option<&Tenant>,
    id: RunId,
) -> Result<Option<Held>, Failure> {
    let client = conn.client();
    let thread = conn.prepare(threads::LOCK_OF_RUN).await?;
    let (lock, load) = (conn.prepare(LOCK).await?, conn.prepare(LOAD).await?);
    let params: super::conn::Params<'_> = &[id.as_uuid()];
    let begin = (client.batch_execute(begin), client.query(&thread, params), client.batch_execute(conn.as_ever()));
    let (lock, load) = (client.query(&lock, params), client.query(&load, params));
    let (_, threads, (), _, rows) = try_join5(begin.0, begin.1, begin.2, lock, load).await?;
    let (mut found, mut open) = (None, Vec::new());
    for row in &rows {
        if rows::Columns::of(row).id()? == id {
            found = Some(Found::read(row)?);
        } else {
            open.push(Found::read(row)?);
        }
    }
    let found = found.filter(|found| tenant.is_none_or(|tenant| found.run.spec.tenant == *tenant));
    let Some(found) = found else {
        client.batch_execute("COMMIT").await?;
        return Ok(None);
    };
    let thread = threads.first().map(|row| Locked::read(row, open)).transpose()?;
    Ok(Some(Held { found, thread }))
}

/// Lets the machine decide about a run that somebody may execute, and writes what follows.
async fn change(conn: &Conn, held: Held, command: &Command, now: Timestamp) -> Result<Transition, Failure> {
    let Held { found, thread } = held;
    let busy = thread.as_ref().is_some_and(|thread| thread.is_busy_for(found.run.spec.id));
    match decide(found, command, now, busy) {
        Ok(next) => carry_out(conn, next, thread, command, now).await,
        Err(refused) => {
            conn.client().batch_execute("COMMIT").await?;
            Ok(Transition::Rejected(Box::new(refused.0.into_stored()?), refused.1))
        }
    }
}

/// Writes what was decided, with what follows from it for the thread, and commits.
async fn carry_out(
    conn: &Conn,
    next: Next,
    thread: Option<Locked>,
    command: &Command,
    now: Timestamp,
) -> Result<Transition, Failure> {
    let answer = if let Command::Resume { wait_id, input } = command {
        Some(StepRecord::answer(&next.run, wait_id, input))
    } else {
        None
    };
    if thread.is_none() && answer.is_none() {
        write(conn, std::slice::from_ref(&next), None).await?;
        return Ok(next.done(None)?);
    }
    write_on(conn, &[next.written()]).await?;
    if let Some(answer) = answer {
        keep_step(conn, next.run.spec.id, &answer).await?;
    }
    let followed = match thread {
        Some(thread) => threads::follow(conn, thread, &next.run, None, now).await?,
        None => None,
    };
    conn.client().batch_execute("COMMIT").await?;
    Ok(next.done(followed)?)
}

async fn keep_step(conn: &Conn, run: RunId, record: &StepRecord) -> Result<(), Failure> {
    let StepRecord { step, kind, name, result, usage } = record;
    let (result, input, output) = (json(result)?, integer(usage.input_tokens), integer(usage.output_tokens));
    let (step, kind, name) = (i64::from(*step), step_kind_text(*kind), plain(name));
    let params: super::conn::Params<'_> =
        &[run.as_uuid(), &step, &kind, &name, &input, &output, &usage.estimated, &result];
    conn.execute(KEEP_STEP, params).await.map(drop)
}
