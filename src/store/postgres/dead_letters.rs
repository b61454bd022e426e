//! What could not be done and waits for a person.

use bytes::Bytes;
use tokio_postgres::Row;
use uuid::Uuid;

use super::conn::Conn;
use super::error::Failure;
use super::rows::{Columns, limit, plain};
use crate::run::{RunId, Timestamp};
use crate::store::{DeadLetter, Discard, StoreError};

/// Keeps a letter, if there is none of its id.
pub(super) async fn bury(conn: &Conn, letter: &DeadLetter) -> Result<(), Failure> {
    let sql = "INSERT INTO runcast_dead_letters (id, at, source, run_id, reason, payload) \
         VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING";
    let (run, source, reason) = (letter.run.as_ref().map(RunId::as_uuid), plain(&letter.source), plain(&letter.reason));
    conn.execute(sql, &[&letter.id, &letter.at.as_millis(), &source, &run, &reason, &&*letter.payload]).await.map(drop)
}

/// Letters in the order of their times and ids.
pub(super) async fn list(
    conn: &Conn,
    after: Option<(Timestamp, Uuid)>,
    most: usize,
) -> Result<Vec<DeadLetter>, Failure> {
    let (at, id) = after.map_or((i64::MIN, Uuid::nil()), |(at, id)| (at.as_millis(), id));
    let sql = "SELECT id, at, source, run_id, reason, payload FROM runcast_dead_letters \
         WHERE (at, id) > ($1, $2) ORDER BY at, id LIMIT $3";
    let rows = conn.query(sql, &[&at, &id, &limit(most)]).await?;
    Ok(rows.iter().map(read).collect::<Result<_, _>>()?)
}

/// The letter `id`.
pub(super) async fn get(conn: &Conn, id: Uuid) -> Result<Option<DeadLetter>, Failure> {
    let sql = "SELECT id, at, source, run_id, reason, payload FROM runcast_dead_letters WHERE id = $1";
    Ok(conn.query(sql, &[&id]).await?.first().map(read).transpose()?)
}

/// Removes letters.
pub(super) async fn discard(conn: &Conn, letters: Discard) -> Result<u64, Failure> {
    match letters {
        Discard::One(id) => conn.execute("DELETE FROM runcast_dead_letters WHERE id = $1", &[&id]).await,
        Discard::All => conn.execute("DELETE FROM runcast_dead_letters", &[]).await,
    }
}

fn read(row: &Row) -> Result<DeadLetter, StoreError> {
    let mut columns = Columns::of(row);
    let (id, at, source, run) = (columns.take()?, columns.time()?, columns.take()?, columns.optional_id()?);
    let (reason, payload) = (columns.take()?, Bytes::from(columns.take::<Vec<u8>>()?));
    Ok(DeadLetter { id, at, source, run, reason, payload })
}
