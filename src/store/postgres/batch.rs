//! Runs as arrays, one a column: what a statement over many of them is given.
//!
//! A statement reads `unnest(…) AS i(…)`, in the order of the items, and changes rows of `runcast_runs r` where
//! `r.id = i.id`. That it finds them by their ids, one after the other, does not depend on what the planner
//! thinks of the tables: in a transaction that [`BEGIN`] began there are no plans but those over an index and a
//! condition, and no condition names a status as a literal, which would bring the partial indexes in. So rows are
//! locked in the order of the items: items are in the order of their ids, and batches do not deadlock.

use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::rows::plain;
use crate::run::{Reason, Run, Segment, Status, Timestamp};
use crate::store::DeadLetter;
use crate::store::spelling::{integer, ledger};

/// Begins a transaction for statements over batches.
pub(super) const BEGIN: &str = "BEGIN; SET LOCAL enable_indexscan = off; SET LOCAL enable_indexonlyscan = off";

/// The same within a transaction that has begun.
pub(super) const BY_CONDITION: &str = "SET LOCAL enable_indexscan = off; SET LOCAL enable_indexonlyscan = off";

/// Ends what [`BY_CONDITION`] began: whatever is planned for the first time afterwards is planned as ever.
pub(super) const AS_EVER: &str = "SET LOCAL enable_indexscan = on; SET LOCAL enable_indexonlyscan = on";

macro_rules! by_index {
    () => {
        "SET LOCAL enable_bitmapscan = off; SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off"
    };
}

/// Begins a transaction for a statement that is to find what it joins, and the ranks, by indexes and in their order.
pub(super) const BEGIN_BY_INDEX: &str = concat!("BEGIN; ", by_index!());

/// The same within a transaction that has begun.
pub(super) const BY_INDEX: &str = by_index!();

/// Ends what [`BY_INDEX`] began.
pub(super) const BY_INDEX_NO_MORE: &str = "SET LOCAL enable_bitmapscan = DEFAULT; SET LOCAL enable_hashjoin = DEFAULT; \
     SET LOCAL enable_mergejoin = DEFAULT";

/// The arrays of [`Batch::params`], as parameters 1 to 31.
macro_rules! batch_arrays {
    () => {
        "$1::uuid[], $2::text[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[], \
         $8::bigint[], $9::text[], $10::bigint[], $11::bigint[], $12::bigint[], $13::bigint[], $14::bigint[], \
         $15::bigint[], $16::bigint[], $17::bigint[], $18::bigint[], $19::bool[], $20::text[], $21::text[], \
         $22::text[], $23::bigint[], $24::bigint[], $25::bigint[], $26::bigint[], $27::bytea[], $28::bytea[], \
         $29::bigint[], $30::text[], $31::text[]"
    };
}
pub(super) use batch_arrays;

/// The names of those arrays as columns.
macro_rules! batch_columns {
    () => {
        "id, status, attempt, failures, crashes, steps, timer_due, timer_id, reason, timers_armed, started_at, \
         attempt_started_at, ran_ms, finished_at, checkpoint_seq, last_seq, input_tokens, output_tokens, estimated, \
         outcome, error_code, error_message, reserved_seq, commit_number, segment_first, segment_last, marks, frames, \
         letter_at, letter_reason, ledger"
    };
}
pub(super) use batch_columns;

/// Sets the columns of a run `r` that change to those of item `i`.
macro_rules! set_state {
    () => {
        "status = i.status, attempt = i.attempt, failures = i.failures, crashes = i.crashes, steps = i.steps, \
         timer_due = i.timer_due, timer_id = i.timer_id, reason = i.reason, timers_armed = i.timers_armed, \
         started_at = i.started_at, attempt_started_at = i.attempt_started_at, ran_ms = i.ran_ms, \
         finished_at = i.finished_at, checkpoint_seq = i.checkpoint_seq, last_seq = i.last_seq, \
         input_tokens = i.input_tokens, output_tokens = i.output_tokens, estimated = i.estimated, \
         outcome = i.outcome, error_code = i.error_code, error_message = i.error_message, \
         reserved_seq = i.reserved_seq, commit_number = i.commit_number, ledger = i.ledger"
    };
}
pub(super) use set_state;

/// Inserts the segments and the letters of the rows of `$from`.
macro_rules! insert_log {
    ($from:literal) => {
        concat!(
            "segments AS (INSERT INTO runcast_segments (run_id, last_seq, first_seq, marks, frames) \
             SELECT id, segment_last, segment_first, marks, frames FROM ",
            $from,
            " WHERE frames IS NOT NULL), \
             letters AS (INSERT INTO runcast_dead_letters (id, at, source, run_id, reason, payload) \
             SELECT id, letter_at, 'run', id, letter_reason, '' FROM ",
            $from,
            " WHERE letter_at IS NOT NULL ON CONFLICT DO NOTHING)"
        )
    };
}
pub(super) use insert_log;

/// How runs stand after a change, and what was added to their logs.
#[derive(Default)]
pub(super) struct Batch<'a> {
    id: Vec<Uuid>,
    status: Vec<&'static str>,
    attempt: Vec<i64>,
    failures: Vec<i64>,
    crashes: Vec<i64>,
    steps: Vec<i64>,
    timer_due: Vec<Option<i64>>,
    timer_id: Vec<Option<i64>>,
    reason: Vec<Option<&'static str>>,
    timers_armed: Vec<i64>,
    started_at: Vec<Option<i64>>,
    attempt_started_at: Vec<Option<i64>>,
    ran_ms: Vec<i64>,
    finished_at: Vec<Option<i64>>,
    checkpoint_seq: Vec<i64>,
    last_seq: Vec<i64>,
    input_tokens: Vec<i64>,
    output_tokens: Vec<i64>,
    estimated: Vec<bool>,
    outcome: Vec<Option<String>>,
    error_code: Vec<Option<String>>,
    error_message: Vec<Option<String>>,
    reserved_seq: Vec<i64>,
    commit_number: Vec<i64>,
    segment_first: Vec<Option<i64>>,
    segment_last: Vec<Option<i64>>,
    marks: Vec<Option<Vec<u8>>>,
    frames: Vec<Option<&'a [u8]>>,
    letter_at: Vec<Option<i64>>,
    letter_reason: Vec<Option<String>>,
    ledger: Vec<Option<String>>,
}

impl<'a> Batch<'a> {
    /// Adds a run and what was added to its log.
    pub(super) fn push(&mut self, run: &Run, reserved_seq: u64, commit_number: u64, segment: Option<&'a Segment>) {
        let text = |text: &String| plain(text).into_owned();
        self.id.push(*run.spec.id.as_uuid());
        self.status.push(run.status.as_str());
        self.attempt.push(run.attempt.into());
        self.failures.push(run.failures.into());
        self.crashes.push(run.crashes.into());
        self.steps.push(run.steps.into());
        self.timer_due.push(run.timer.map(|timer| timer.due.as_millis()));
        self.timer_id.push(run.timer.map(|timer| integer(timer.id)));
        self.reason.push(run.reason.map(Reason::as_str));
        self.timers_armed.push(integer(run.timers_armed));
        self.started_at.push(run.started_at.map(Timestamp::as_millis));
        self.attempt_started_at.push(run.attempt_started_at.map(Timestamp::as_millis));
        self.ran_ms.push(integer(run.ran_ms));
        self.finished_at.push(run.finished_at.map(Timestamp::as_millis));
        self.checkpoint_seq.push(integer(run.checkpoint_seq));
        self.last_seq.push(integer(run.last_seq));
        self.input_tokens.push(integer(run.usage.input_tokens));
        self.output_tokens.push(integer(run.usage.output_tokens));
        self.estimated.push(run.usage.estimated);
        self.outcome.push(run.outcome.as_ref().map(text));
        self.error_code.push(run.error.as_ref().map(|error| text(&error.code)));
        self.error_message.push(run.error.as_ref().map(|error| text(&error.message)));
        self.reserved_seq.push(integer(reserved_seq));
        self.commit_number.push(integer(commit_number));
        let segment = segment.filter(|segment| !segment.marks().is_empty());
        self.segment_first.push(segment.map(|segment| integer(segment.first_seq())));
        self.segment_last.push(segment.map(|segment| integer(segment.last_seq())));
        self.marks.push(segment.map(Segment::encode_marks));
        self.frames.push(segment.map(|segment| &**segment.bytes()));
        let letter = (run.status == Status::Failed).then(|| DeadLetter::of_run(run));
        self.letter_at.push(letter.as_ref().map(|letter| letter.at.as_millis()));
        self.letter_reason.push(letter.map(|letter| text(&letter.reason)));
        self.ledger.push(ledger(run));
    }

    /// The first 31 parameters, to be followed by the statement's own.
    pub(super) fn params(&self) -> Vec<&(dyn ToSql + Sync)> {
        vec![
            &self.id,
            &self.status,
            &self.attempt,
            &self.failures,
            &self.crashes,
            &self.steps,
            &self.timer_due,
            &self.timer_id,
            &self.reason,
            &self.timers_armed,
            &self.started_at,
            &self.attempt_started_at,
            &self.ran_ms,
            &self.finished_at,
            &self.checkpoint_seq,
            &self.last_seq,
            &self.input_tokens,
            &self.output_tokens,
            &self.estimated,
            &self.outcome,
            &self.error_code,
            &self.error_message,
            &self.reserved_seq,
            &self.commit_number,
            &self.segment_first,
            &self.segment_last,
            &self.marks,
            &self.frames,
            &self.letter_at,
            &self.letter_reason,
            &self.ledger,
        ]
    }
}
