//! The logs of the runs, and their finished steps.

use bytes::Bytes;
use rusqlite::{Connection, params};

use super::rows::FoundStep;
use crate::run::{RunId, Segment, StepRecord};
use crate::store::StoreError;
use crate::store::spelling::{integer, json, step_kind_text, unreadable, unsigned};

/// A segment, ready to be written.
pub(super) struct NewSegment {
    first_seq: u64,
    last_seq: u64,
    marks: Vec<u8>,
    frames: Bytes,
}

impl NewSegment {
    pub(super) fn new(segment: &Segment) -> Self {
        Self {
            first_seq: segment.first_seq(),
            last_seq: segment.last_seq(),
            marks: segment.encode_marks(),
            frames: segment.bytes().clone(),
        }
    }
}

/// Appends a segment to the log of run `id`.
pub(super) fn append(conn: &Connection, id: RunId, segment: &NewSegment) -> Result<(), StoreError> {
    if segment.marks.is_empty() {
        return Ok(());
    }
    conn.prepare_cached("INSERT INTO segments (run_id, last_seq, first_seq, marks, frames) VALUES (?, ?, ?, ?, ?)")?
        .execute(params![
            id.as_bytes(),
            integer(segment.last_seq),
            integer(segment.first_seq),
            segment.marks,
            &*segment.frames
        ])?;
    Ok(())
}

/// Segments of run `id` that end after number `after`: at least one, and up to `max_bytes`.
pub(super) fn read(conn: &Connection, id: RunId, after: u64, max_bytes: usize) -> Result<Vec<Segment>, StoreError> {
    let mut statement = conn.prepare_cached(
        "SELECT first_seq, last_seq, marks, frames FROM segments WHERE run_id = ? AND last_seq > ? ORDER BY last_seq",
    )?;
    let mut rows = statement.query(params![id.as_bytes(), integer(after)])?;
    let (mut segments, mut bytes) = (Vec::new(), 0_usize);
    while let Some(row) = rows.next()? {
        let frames = row.get_ref(3)?.as_blob().map_err(rusqlite::Error::from)?;
        bytes = bytes.saturating_add(frames.len());
        if bytes > max_bytes && !segments.is_empty() {
            break;
        }
        let (first, last) = (unsigned(row.get(0)?), unsigned(row.get(1)?));
        let marks = row.get_ref(2)?.as_blob().map_err(rusqlite::Error::from)?;
        let segment = Segment::decode(first, Bytes::copy_from_slice(frames), marks)
            .filter(|segment| segment.last_seq() == last)
            .ok_or_else(|| unreadable("the log of a run", format_args!("the events {first} to {last} of {id}")))?;
        segments.push(segment);
    }
    Ok(segments)
}

/// A finished step, ready to be written.
pub(super) struct NewStep {
    record: StepRecord,
    result: String,
}

impl NewStep {
    pub(super) fn new(record: StepRecord) -> Result<Self, StoreError> {
        Ok(Self { result: json(&record.result)?, record })
    }
}

/// Keeps a finished step of run `id`.
pub(super) fn keep_step(conn: &Connection, id: RunId, step: &NewStep) -> Result<(), StoreError> {
    let StepRecord { step: number, kind, name, usage, .. } = &step.record;
    conn.prepare_cached(
        "INSERT INTO steps (run_id, step, kind, name, input_tokens, output_tokens, estimated, result) \
         VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
    )?
    .execute(params![
        id.as_bytes(),
        number,
        step_kind_text(*kind),
        name,
        integer(usage.input_tokens),
        integer(usage.output_tokens),
        usage.estimated,
        step.result
    ])?;
    Ok(())
}

/// The finished steps of run `id`, in order.
pub(super) fn steps(conn: &Connection, id: RunId) -> Result<Vec<FoundStep>, StoreError> {
    let mut statement = conn.prepare_cached(FoundStep::SELECT)?;
    let mut rows = statement.query([id.as_bytes()])?;
    let mut steps = Vec::new();
    while let Some(row) = rows.next()? {
        steps.push(FoundStep::read(row)?);
    }
    Ok(steps)
}

/// Copies the steps of run `from` up to number `last` to run `to`. Some numbers may be of no finished step.
pub(super) fn copy_steps(conn: &Connection, from: RunId, to: RunId, last: u32) -> Result<(), StoreError> {
    let there = conn
        .prepare_cached("SELECT 1 FROM steps WHERE run_id = ? AND step = ?")?
        .exists(params![from.as_bytes(), last])?;
    if last > 0 && !there {
        // Deleted since the caller has looked at it; it will find so when it looks again.
        return Err(StoreError::Unavailable(format!("the finished steps of run {from} are gone")));
    }
    conn.prepare_cached(
        "INSERT INTO steps (run_id, step, kind, name, input_tokens, output_tokens, estimated, result) \
             SELECT ?1, step, kind, name, input_tokens, output_tokens, estimated, result FROM steps \
             WHERE run_id = ?2 AND step <= ?3",
    )?
    .execute(params![to.as_bytes(), from.as_bytes(), last])?;
    Ok(())
}
