//! What could not be done and waits for a person.

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension as _, Row, params};
use uuid::Uuid;

use super::rows::run_id;
use crate::run::{Run, RunId, Status, Timestamp};
use crate::store::{DeadLetter, Discard, StoreError};

const COLUMNS: &str = "SELECT id, at, source, run_id, reason, payload FROM dead_letters";

/// Keeps a letter, if there is none of its id.
pub(super) fn bury(conn: &Connection, letter: &DeadLetter) -> Result<(), StoreError> {
    conn.prepare_cached(
        "INSERT OR IGNORE INTO dead_letters (id, at, source, run_id, reason, payload) VALUES (?, ?, ?, ?, ?, ?)",
    )?
    .execute(params![
        letter.id.as_bytes(),
        letter.at.as_millis(),
        letter.source,
        letter.run.as_ref().map(RunId::as_bytes),
        letter.reason,
        &*letter.payload
    ])?;
    Ok(())
}

/// Keeps a letter about `run` if it has failed.
pub(super) fn bury_failed(conn: &Connection, run: &Run) -> Result<(), StoreError> {
    match run.status {
        Status::Failed => bury(conn, &DeadLetter::of_run(run)),
        Status::Scheduled
        | Status::Queued
        | Status::Running
        | Status::Waiting
        | Status::Completed
        | Status::Cancelled
        | Status::Expired => Ok(()),
    }
}

/// Letters in the order of their times and ids.
pub(super) fn list(
    conn: &Connection,
    after: Option<(Timestamp, Uuid)>,
    limit: usize,
) -> Result<Vec<DeadLetter>, StoreError> {
    let (at, id) = after.map_or((i64::MIN, Uuid::nil()), |(at, id)| (at.as_millis(), id));
    let mut statement = conn.prepare_cached(&format!("{COLUMNS} WHERE (at, id) > (?, ?) ORDER BY at, id LIMIT ?"))?;
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let letters = statement.query_map(params![at, id.as_bytes(), limit], read)?;
    Ok(letters.collect::<Result<_, _>>()?)
}

/// The letter `id`.
pub(super) fn get(conn: &Connection, id: Uuid) -> Result<Option<DeadLetter>, StoreError> {
    Ok(conn.prepare_cached(&format!("{COLUMNS} WHERE id = ?"))?.query_row([id.as_bytes()], read).optional()?)
}

/// Removes letters.
pub(super) fn discard(conn: &Connection, letters: Discard) -> Result<u64, StoreError> {
    let discarded = match letters {
        Discard::One(id) => conn.prepare_cached("DELETE FROM dead_letters WHERE id = ?")?.execute([id.as_bytes()])?,
        Discard::All => conn.prepare_cached("DELETE FROM dead_letters")?.execute([])?,
    };
    Ok(discarded as u64)
}

fn read(row: &Row<'_>) -> rusqlite::Result<DeadLetter> {
    Ok(DeadLetter {
        id: Uuid::from_bytes(row.get(0)?),
        at: Timestamp::from_millis(row.get(1)?),
        source: row.get(2)?,
        run: row.get::<_, Option<_>>(3)?.map(run_id),
        reason: row.get(4)?,
        payload: Bytes::from(row.get::<_, Vec<u8>>(5)?),
    })
}
