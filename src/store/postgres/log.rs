//! The logs of the runs.

use bytes::Bytes;

use super::conn::Conn;
use super::error::Failure;
use super::rows::Columns;
use crate::run::{RunId, Segment};
use crate::store::StoreError;
use crate::store::spelling::{integer, unreadable};

/// So many segments are asked for at a time.
const PAGE: usize = 64;

/// The next segments, as long as their frames together have no more than so many bytes; but at least `$4`.
const READ: &str = "SELECT first_seq, last_seq, marks, frames FROM (SELECT first_seq, last_seq, marks, frames, \
     row_number() OVER page AS number, sum(octet_length(frames)) OVER page AS bytes \
     FROM (SELECT * FROM runcast_segments WHERE run_id = $1 AND last_seq > $2 ORDER BY last_seq LIMIT 64) read \
     WINDOW page AS (ORDER BY last_seq)) counted WHERE bytes <= $3 OR number <= $4 ORDER BY last_seq";

/// Segments of run `id` that end after number `after`: at least one, and up to `max_bytes`.
pub(super) async fn read(conn: &Conn, id: RunId, after: u64, max_bytes: usize) -> Result<Vec<Segment>, Failure> {
    let (mut segments, mut cursor, mut room) = (Vec::new(), integer(after), max_bytes);
    loop {
        let (bytes, least) = (i64::try_from(room).unwrap_or(i64::MAX), i64::from(segments.is_empty()));
        let rows = conn.query(READ, &[id.as_uuid(), &cursor, &bytes, &least]).await?;
        for row in &rows {
            let mut columns = Columns::of(row);
            let (first, last) = (columns.number()?, columns.number()?);
            let (marks, frames): (&[u8], &[u8]) = (columns.take()?, columns.take()?);
            (cursor, room) = (integer(last), room.saturating_sub(frames.len()));
            segments.push(decoded(id, first, last, marks, frames)?);
        }
        if rows.len() < PAGE {
            return Ok(segments);
        }
    }
}

fn decoded(id: RunId, first: u64, last: u64, marks: &[u8], frames: &[u8]) -> Result<Segment, StoreError> {
    Segment::decode(first, Bytes::copy_from_slice(frames), marks)
        .filter(|segment| segment.last_seq() == last)
        .ok_or_else(|| unreadable("the log of a run", format_args!("the events {first} to {last} of {id}")))
}
