//! Timers of the store: rows, so that those of a process that is gone fire all the same.

use rusqlite::{Connection, params};
use uuid::Uuid;

use crate::run::{Run, Timer, Timestamp};
use crate::store::spelling::{integer, unsigned};
use crate::store::{StoreError, TimerKey, TimerKind};

/// The timers that a run has in some state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Armed {
    due: Option<Timer>,
    ttl: Option<Timestamp>,
}

impl Armed {
    /// Those that go with the state of `run`.
    pub(super) fn of(run: &Run) -> Self {
        Self { due: run.timer, ttl: run.expires_at() }
    }
}

/// Brings the timers of `run`, which were `before`, in line with its state.
pub(super) fn follow(conn: &Connection, before: Armed, run: &Run) -> Result<(), StoreError> {
    let after = Armed::of(run);
    let id = *run.spec.id.as_uuid();
    let due = |timer: Timer| TimerKey { due: timer.due, owner: id, kind: TimerKind::Due(timer.id) };
    let ttl = |at| TimerKey { due: at, owner: id, kind: TimerKind::Ttl };
    for (before, after) in [(before.due.map(due), after.due.map(due)), (before.ttl.map(ttl), after.ttl.map(ttl))] {
        if before == after {
            continue;
        }
        if let Some(before) = before {
            remove(conn, before)?;
        }
        if let Some(after) = after {
            arm(conn, after)?;
        }
    }
    Ok(())
}

/// Adds a timer.
pub(super) fn arm(conn: &Connection, timer: TimerKey) -> Result<(), StoreError> {
    let (kind, number) = columns(timer.kind);
    conn.prepare_cached("INSERT INTO timers (due_at, run_id, kind, number) VALUES (?, ?, ?, ?)")?.execute(params![
        timer.due.as_millis(),
        timer.owner.as_bytes(),
        kind,
        number
    ])?;
    Ok(())
}

/// Removes a timer, if it is there.
pub(super) fn remove(conn: &Connection, timer: TimerKey) -> Result<(), StoreError> {
    let (kind, number) = columns(timer.kind);
    conn.prepare_cached("DELETE FROM timers WHERE due_at = ? AND run_id = ? AND kind = ? AND number = ?")?
        .execute(params![timer.due.as_millis(), timer.owner.as_bytes(), kind, number])?;
    Ok(())
}

/// Timers due until `until`, after `after` in their order.
pub(super) fn read(
    conn: &Connection,
    until: Timestamp,
    after: Option<TimerKey>,
    limit: usize,
) -> Result<Vec<TimerKey>, StoreError> {
    // No timer is due before the epoch.
    let from = after.map_or((-1, [0; 16], 0, 0), |after| {
        let (kind, number) = columns(after.kind);
        (after.due.as_millis(), *after.owner.as_bytes(), kind, number)
    });
    let mut statement = conn.prepare_cached(
        "SELECT due_at, run_id, kind, number FROM timers \
         WHERE (due_at, run_id, kind, number) > (?, ?, ?, ?) AND due_at <= ? \
         ORDER BY due_at, run_id, kind, number LIMIT ?",
    )?;
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let mut rows = statement.query(params![from.0, from.1, from.2, from.3, until.as_millis(), limit])?;
    let mut timers = Vec::new();
    while let Some(row) = rows.next()? {
        let kind = match row.get(2)? {
            0_i64 => TimerKind::Ttl,
            1 => TimerKind::Due(unsigned(row.get(3)?)),
            2 => TimerKind::FollowUp(unsigned(row.get(3)?)),
            _ => TimerKind::Schedule(unsigned(row.get(3)?)),
        };
        timers.push(TimerKey { due: Timestamp::from_millis(row.get(0)?), owner: Uuid::from_bytes(row.get(1)?), kind });
    }
    Ok(timers)
}

/// The kind and the number of a timer; they sort like [`TimerKind`].
fn columns(kind: TimerKind) -> (i64, i64) {
    match kind {
        TimerKind::Ttl => (0, 0),
        TimerKind::Due(number) => (1, integer(number)),
        TimerKind::FollowUp(number) => (2, integer(number)),
        TimerKind::Schedule(number) => (3, integer(number)),
    }
}
