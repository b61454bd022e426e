//! The removal of what is old.

use std::time::{Duration, Instant};

use rusqlite::{Connection, params};

use super::rows::run_id;
use super::runs;
use crate::run::{RunId, Timestamp};
use crate::store::StoreError;

/// How long one removal may hold the writer: then it is left at what it has come to. A run is removed as a whole, and so is a thread.
pub(super) const HOLD: Duration = Duration::from_millis(10);

/// Removes runs that ended before `before`, oldest first.
pub(super) fn remove_finished(conn: &Connection, before: Timestamp, limit: usize) -> Result<Vec<RunId>, StoreError> {
    let begun = Instant::now();
    let mut statement = conn.prepare_cached(
        "SELECT id FROM runs INDEXED BY runs_by_end WHERE finished_at < ? \
         AND NOT EXISTS (SELECT 1 FROM deliveries INDEXED BY deliveries_by_run \
         WHERE run_id = runs.id AND status = 'pending') ORDER BY finished_at LIMIT ?",
    )?;
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let old = statement.query_map(params![before.as_millis(), limit], |row| Ok(run_id(row.get(0)?)))?;
    let mut removed = Vec::new();
    for run in old.collect::<Result<Vec<_>, _>>()? {
        runs::remove(conn, run)?;
        removed.push(run);
        if begun.elapsed() >= HOLD {
            break;
        }
    }
    Ok(removed)
}
