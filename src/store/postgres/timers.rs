//! Timers of the store: rows, so that those of a node that is gone fire all the same.

use uuid::Uuid;

use super::conn::Conn;
use super::error::Failure;
use super::rows::{Columns, limit};
use crate::run::{Run, Timer, Timestamp};
use crate::store::spelling::integer;
use crate::store::{TimerKey, TimerKind};

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

/// Timers as arrays, one a column.
#[derive(Default)]
pub(super) struct Timers {
    pub(super) due_at: Vec<i64>,
    pub(super) run_id: Vec<Uuid>,
    pub(super) kind: Vec<i64>,
    pub(super) number: Vec<i64>,
}

impl Timers {
    fn push(&mut self, timer: TimerKey) {
        let (kind, number) = columns(timer.kind);
        self.due_at.push(timer.due.as_millis());
        self.run_id.push(timer.owner);
        self.kind.push(kind);
        self.number.push(number);
    }
}

/// What brings the timers of `run`, which were `before`, in line with its state.
pub(super) fn follow(before: Armed, run: &Run, disarmed: &mut Timers, armed: &mut Timers) {
    let (after, id) = (Armed::of(run), *run.spec.id.as_uuid());
    let due = |timer: Timer| TimerKey { due: timer.due, owner: id, kind: TimerKind::Due(timer.id) };
    let ttl = |at| TimerKey { due: at, owner: id, kind: TimerKind::Ttl };
    for (before, after) in [(before.due.map(due), after.due.map(due)), (before.ttl.map(ttl), after.ttl.map(ttl))] {
        if before != after {
            before.into_iter().for_each(|timer| disarmed.push(timer));
            after.into_iter().for_each(|timer| armed.push(timer));
        }
    }
}

/// Removes a timer, if it is there.
pub(super) async fn remove(conn: &Conn, timer: TimerKey) -> Result<(), Failure> {
    let (kind, number) = columns(timer.kind);
    let sql = "DELETE FROM runcast_timers WHERE due_at = $1 AND run_id = $2 AND kind = $3 AND number = $4";
    conn.execute(sql, &[&timer.due.as_millis(), &timer.owner, &kind, &number]).await.map(drop)
}

/// Keeps a timer.
pub(super) async fn insert(conn: &Conn, timer: TimerKey) -> Result<(), Failure> {
    let (kind, number) = columns(timer.kind);
    let sql = "INSERT INTO runcast_timers (due_at, run_id, kind, number) VALUES ($1, $2, $3, $4)";
    conn.execute(sql, &[&timer.due.as_millis(), &timer.owner, &kind, &number]).await.map(drop)
}

/// Timers due until `until`, after `after` in their order.
pub(super) async fn read(
    conn: &Conn,
    until: Timestamp,
    after: Option<TimerKey>,
    most: usize,
) -> Result<Vec<TimerKey>, Failure> {
    // No timer is due before the epoch.
    let (due, run, (kind, number)) =
        after.map_or((-1, Uuid::nil(), (0, 0)), |after| (after.due.as_millis(), after.owner, columns(after.kind)));
    let sql = "SELECT due_at, run_id, kind, number FROM runcast_timers \
         WHERE (due_at, run_id, kind, number) > ($1, $2, $3, $4) AND due_at <= $5 \
         ORDER BY due_at, run_id, kind, number LIMIT $6";
    let rows = conn.query(sql, &[&due, &run, &kind, &number, &until.as_millis(), &limit(most)]).await?;
    let mut timers = Vec::with_capacity(rows.len());
    for row in &rows {
        let mut columns = Columns::of(row);
        let (due, owner) = (columns.time()?, columns.take()?);
        let kind = match (columns.take::<i64>()?, columns.number()?) {
            (0, _) => TimerKind::Ttl,
            (1, number) => TimerKind::Due(number),
            (2, number) => TimerKind::FollowUp(number),
            (_, number) => TimerKind::Schedule(number),
        };
        timers.push(TimerKey { due, owner, kind });
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
