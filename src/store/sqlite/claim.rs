//! Claiming runs.

use rusqlite::{Connection, params};

use super::log::{self, NewSegment};
use super::rows::{Binder, FoundStep, load, run_id, state_columns};
use super::timers::{self, Armed};
use super::writer::Writer;
use crate::run::{Command, Context, Run, RunId, Segment};
use crate::store::shares::{Candidate, First, Running, Subject, merge, pick};
use crate::store::spelling::Documents;
use crate::store::{Claim, Claimed, StoreError};

/// [`Claimed`], with its documents as text.
pub(super) struct Taken {
    run: Run,
    segment: Segment,
    reserved_seq: u64,
    steps: Vec<FoundStep>,
    documents: Documents,
}

impl Taken {
    /// The claimed run with its documents; besides its id and attempt, in case they do not parse.
    pub(super) fn complete(self) -> (RunId, u32, Result<Claimed, StoreError>) {
        let Self { run, segment, reserved_seq, steps, documents } = self;
        let (id, attempt) = (run.spec.id, run.attempt);
        let steps = steps.into_iter().map(FoundStep::complete).collect::<Result<_, _>>();
        let claimed = documents.complete(run).and_then(|run| Ok(Claimed { run, segment, reserved_seq, steps: steps? }));
        (id, attempt, claimed)
    }
}

/// Claims the next runs.
pub(super) fn claim(writer: &mut Writer, claim: &Claim) -> Result<Vec<Taken>, StoreError> {
    let limited = claim.limits.concern_any(claim.agents.iter().map(|(agent, _)| agent.as_str()));
    let next = if limited { next_within(writer, claim)? } else { next(writer.conn(), claim)? };
    next.into_iter().map(|id| take(writer, claim, id)).collect()
}

/// The runs to claim. Each agent and version has its own queue within the index, so that no claim
/// has to pass over what waits for an agent that nobody here has.
fn next(conn: &Connection, claim: &Claim) -> Result<Vec<RunId>, StoreError> {
    let mut statement = conn.prepare_cached(
        "SELECT priority, id FROM runs INDEXED BY runs_queued \
         WHERE status = 'queued' AND agent = ? AND agent_version = ? ORDER BY priority DESC, rank, id LIMIT ?",
    )?;
    let room = i64::try_from(claim.room).unwrap_or(i64::MAX);
    let mut waiting = Vec::new();
    for (turn, agent, version) in claim.lanes() {
        let mut rows = statement.query(params![agent, version, room])?;
        while let Some(row) = rows.next()? {
            waiting.push(Candidate { priority: row.get(0)?, id: run_id(row.get(1)?), turn });
        }
    }
    Ok(merge(waiting, claim.room))
}

/// As [`next`], but passing over the runs that the limits keep waiting. The index holds all that has to be known of
/// these.
fn next_within(writer: &Writer, claim: &Claim) -> Result<Vec<RunId>, StoreError> {
    let sql = "SELECT priority, id, tenant, concurrency_key FROM runs INDEXED BY runs_queued \
         WHERE status = 'queued' AND agent = ? AND agent_version = ? ORDER BY priority DESC, rank, id";
    let mut agents: Vec<_> = claim.lanes().collect();
    agents.sort_unstable();
    let limits = &claim.limits;
    let mut statements: Vec<_> = agents.iter().map(|_| writer.conn().prepare_cached(sql)).collect::<Result<_, _>>()?;
    let mut queues = Vec::with_capacity(agents.len());
    for (statement, (_, agent, version)) in statements.iter_mut().zip(agents) {
        let mut rows = statement.query(params![agent, version])?;
        queues.push(move |running: &Running| -> Result<_, StoreError> {
            while let Some(row) = rows.next()? {
                let text = |error| StoreError::Corrupt(format!("a tenant or a key cannot be read: {error}"));
                let (tenant, key) = (row.get_ref(2)?.as_str(), row.get_ref(3)?.as_str_or_null());
                let subject = Subject { tenant: tenant.map_err(text)?, agent, key: key.map_err(text)? };
                // One that is refused now is refused in the rest of the claim.
                if limits.admit(subject, running) {
                    return Ok(Some(First::new(row.get(0)?, run_id(row.get(1)?), subject)));
                }
            }
            Ok(None)
        });
    }
    pick(&mut queues, limits, &mut writer.running().clone(), claim.room)
}

fn take(writer: &mut Writer, claim: &Claim, id: RunId) -> Result<Taken, StoreError> {
    let conn = writer.conn();
    let found = load(conn, id)?.ok_or_else(|| StoreError::Corrupt(format!("run {id} has no specification")))?;
    let mut run = found.run;
    let (from, armed) = (run.status, Armed::of(&run));
    let context = Context { now: claim.now, next_seq: found.reserved_seq + 1, busy: false, spent: None };
    let command = Command::Claim { node: claim.node.to_string() };
    let decision = run
        .decide(&command, &context)
        .map_err(|rejection| StoreError::Corrupt(format!("run {id} cannot be claimed: {rejection}")))?;
    let segment = super::transition::apply(&mut run, &decision.events, context);
    let reserved_seq = run.last_seq.saturating_add(claim.reserve);
    let steps = if run.steps > 0 { log::steps(conn, id)? } else { Vec::new() };
    update(conn, &run, reserved_seq, &claim.node)?;
    log::append(conn, id, &NewSegment::new(&segment))?;
    timers::follow(conn, armed, &run)?;
    writer.moved(&run.spec, Some(from), run.status, found.place.rank);
    Ok(Taken { run, segment, reserved_seq, steps, documents: found.documents })
}

fn update(conn: &Connection, run: &Run, reserved_seq: u64, node: &str) -> Result<(), StoreError> {
    let mut statement =
        conn.prepare_cached(concat!("UPDATE runs SET status = ?, node = ?, ", state_columns!(), " WHERE id = ?"))?;
    let mut binder = Binder::new(&mut statement);
    binder.bind(run.status.as_str())?;
    binder.bind(node)?;
    binder.bind_state(run, reserved_seq, 0)?;
    binder.bind(run.spec.id.as_bytes())?;
    binder.execute()?;
    Ok(())
}
