//! What happens to runs that nobody executes.

use rusqlite::{Connection, params};

use super::log::{self, NewSegment, NewStep};
use super::rows::{Binder, Found, load, run_id, state_columns};
use super::shares::Place;
use super::timers::{self, Armed};
use super::webhooks;
use super::writer::Writer;
use super::{dead_letters, threads};
use crate::run::{Command, Context, Event, Rejection, Run, RunId, Segment, Status, StepRecord, Tenant, Timestamp};
use crate::store::spelling::Documents;
use crate::store::{Changed, Followed, StoreError, Transition};

/// [`Transition`], with the documents of its run as text.
pub(super) enum Outcome {
    Done(Box<(Changed, Documents, Option<Followed>)>),
    Handed(Box<Found>),
    Rejected(Box<Found>, Rejection),
    Missing,
}

impl Outcome {
    /// The outcome with the documents of its run.
    pub(super) fn complete(self) -> Result<Transition, StoreError> {
        Ok(match self {
            Self::Done(done) => {
                let (Changed { run, segment, effects }, documents, followed) = *done;
                let changed = Box::new(Changed { run: documents.complete(run)?, segment, effects });
                match followed {
                    Some(followed) => Transition::Followed(changed, followed),
                    None => Transition::Done(changed),
                }
            }
            Self::Handed(found) => Transition::Handed(Box::new(found.into_stored()?)),
            Self::Rejected(found, rejection) => Transition::Rejected(Box::new(found.into_stored()?), rejection),
            Self::Missing => Transition::Missing,
        })
    }
}

/// Lets the machine decide `command` for run `id`.
pub(super) fn transition(
    writer: &mut Writer,
    tenant: Option<&Tenant>,
    id: RunId,
    command: &Command,
    now: Timestamp,
) -> Result<Outcome, StoreError> {
    let found = load(writer.conn(), id)?.filter(|found| tenant.is_none_or(|tenant| found.run.spec.tenant == *tenant));
    let Some(mut found) = found else { return Ok(Outcome::Missing) };
    if found.run.status != Status::Running {
        return decide(writer, found, command, now);
    }
    if *command != Command::Cancel {
        return Ok(Outcome::Rejected(Box::new(found), Rejection::NotNow(Status::Running)));
    }
    keep_cancel(writer.conn(), id, now)?;
    found.cancel_requested = true;
    Ok(Outcome::Handed(Box::new(found)))
}

/// Keeps a cancel for the owner of run `id` to find.
pub(super) fn keep_cancel(conn: &Connection, id: RunId, now: Timestamp) -> Result<(), StoreError> {
    conn.prepare_cached("INSERT OR IGNORE INTO commands (run_id, kind, created_at) VALUES (?, 'cancel', ?)")?
        .execute(params![id.as_bytes(), now.as_millis()])?;
    Ok(())
}

/// Gives up the attempts of up to `limit` runs that nobody owns.
pub(super) fn recover(writer: &mut Writer, now: Timestamp, limit: usize) -> Result<Vec<Outcome>, StoreError> {
    let mut outcomes = Vec::new();
    while outcomes.len() < limit
        && let Some((id, attempt)) = writer.adopt()
    {
        // One run that cannot be read must not keep all others from going on.
        let found = match load(writer.conn(), id) {
            Ok(found) => found,
            Err(error @ StoreError::Corrupt(_)) => {
                tracing::error!(run = %id, %error, "a run cannot be recovered");
                None
            }
            Err(error) => return Err(error),
        };
        let Some(found) = found.filter(|found| found.run.status == Status::Running && found.run.attempt == attempt)
        else {
            continue;
        };
        outcomes.push(crash(writer, found, attempt, now)?);
    }
    Ok(outcomes)
}

/// Lets go of runs that are running as `node`'s and are not among `live`.
pub(super) fn let_go_strays(
    writer: &mut Writer,
    node: &str,
    live: &[RunId],
    now: Timestamp,
    limit: usize,
) -> Result<Vec<Outcome>, StoreError> {
    let mut strays = Vec::new();
    {
        let mut statement = writer.conn().prepare_cached(
            "SELECT id FROM runs INDEXED BY runs_by_status WHERE status = 'running' AND node = ? ORDER BY id",
        )?;
        let mut rows = statement.query([node])?;
        while let Some(row) = rows.next()? {
            strays.push(run_id(row.get(0)?));
        }
    }
    strays.retain(|id| !live.contains(id));
    strays.truncate(limit);
    let mut outcomes = Vec::with_capacity(strays.len());
    for id in strays {
        if let Some(found) = load(writer.conn(), id)? {
            outcomes.push(stray(writer, found, now)?);
        }
    }
    Ok(outcomes)
}

fn stray(writer: &mut Writer, found: Found, now: Timestamp) -> Result<Outcome, StoreError> {
    let command = match found.cancel_requested {
        true => Command::Cancel,
        false => Command::Release { attempt: found.run.attempt },
    };
    decide(writer, found, &command, now)
}

/// Gives up attempt `attempt` of run `id`, if it is the one that is running.
pub(super) fn give_up(writer: &mut Writer, id: RunId, attempt: u32, now: Timestamp) -> Result<Outcome, StoreError> {
    match load(writer.conn(), id)? {
        Some(found) => crash(writer, found, attempt, now),
        None => Ok(Outcome::Missing),
    }
}

/// Gives up an attempt: by the cancel that waits for the run, or as a crash.
fn crash(writer: &mut Writer, found: Found, attempt: u32, now: Timestamp) -> Result<Outcome, StoreError> {
    let command = Command::Crash { attempt, cancel: found.cancel_requested };
    decide(writer, found, &command, now)
}

fn decide(writer: &mut Writer, found: Found, command: &Command, now: Timestamp) -> Result<Outcome, StoreError> {
    let busy = match found.run.spec.thread {
        Some(thread) => threads::busy(writer.conn(), thread, found.run.spec.id)?,
        None => false,
    };
    let context = Context { now, next_seq: found.reserved_seq + 1, busy, spent: None };
    let decision = match found.run.decide(command, &context) {
        Ok(decision) => decision,
        Err(rejection) => return Ok(Outcome::Rejected(Box::new(found), rejection)),
    };
    let Found { mut run, commit_number, documents, place, .. } = found;
    let (from, armed) = (run.status, Armed::of(&run));
    let segment = apply(&mut run, &decision.events, context);
    write(writer, (from, armed, place), &run, commit_number, &segment)?;
    if let Command::Resume { wait_id, input } = command {
        log::keep_step(writer.conn(), run.spec.id, &NewStep::new(StepRecord::answer(&run, wait_id, input))?)?;
    }
    let followed = threads::follow(writer, &run, None, now)?;
    Ok(Outcome::Done(Box::new((Changed { run, segment, effects: decision.effects }, documents, followed))))
}

/// Writes a run that was in this status and place and had these timers, and what was added to its log.
pub(super) fn write(
    writer: &mut Writer,
    (from, armed, mut place): (Status, Armed, Place),
    run: &Run,
    commit_number: u64,
    segment: &Segment,
) -> Result<(), StoreError> {
    if run.status == Status::Queued {
        place.rank = writer.rank(run, place);
    }
    let (conn, id) = (writer.conn(), run.spec.id);
    update(conn, run, commit_number, (run.status != from || run.status == Status::Queued).then_some(place.rank))?;
    log::append(conn, id, &NewSegment::new(segment))?;
    timers::follow(conn, armed, run)?;
    if run.status.is_final() {
        // Cancels are kept of what is running, and of nothing else.
        if from == Status::Running {
            forget_commands(conn, id)?;
        }
        dead_letters::bury_failed(conn, run)?;
    }
    webhooks::put(writer, run, from, webhooks::recorded(Some(segment)))?;
    writer.moved(&run.spec, Some(from), run.status, place.rank);
    Ok(())
}

/// Applies events to a run, numbered from the context's; returns them encoded.
pub(super) fn apply(run: &mut Run, events: &[Event], context: Context) -> Segment {
    for (event, seq) in events.iter().zip(context.next_seq..) {
        run.apply(event, seq, context.now);
    }
    Segment::encode(context.next_seq, events, context.now)
}

/// `rank` is given where the status or the place of the run has changed.
fn update(conn: &Connection, run: &Run, commit_number: u64, rank: Option<i64>) -> Result<(), StoreError> {
    let mut statement = conn.prepare_cached(match rank {
        None => concat!("UPDATE runs SET ", state_columns!(), " WHERE id = ?"),
        Some(_) => {
            concat!("UPDATE runs SET status = ?, finished_at = ?, rank = ?, ", state_columns!(), " WHERE id = ?")
        }
    })?;
    let mut binder = Binder::new(&mut statement);
    if let Some(rank) = rank {
        binder.bind(run.status.as_str())?;
        binder.bind(run.finished_at.map(Timestamp::as_millis))?;
        binder.bind(rank)?;
    }
    binder.bind_state(run, run.last_seq, commit_number)?;
    binder.bind(run.spec.id.as_bytes())?;
    binder.execute()?;
    Ok(())
}

/// Removes the commands of a run that has ended.
pub(super) fn forget_commands(conn: &Connection, id: RunId) -> Result<(), StoreError> {
    conn.prepare_cached("DELETE FROM commands WHERE run_id = ?")?.execute([id.as_bytes()])?;
    Ok(())
}
