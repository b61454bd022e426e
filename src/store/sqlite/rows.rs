//! Runs as rows, and back.

use std::sync::Arc;

use rusqlite::types::{FromSql, ToSql};
use rusqlite::{Connection, OptionalExtension as _, Row, Statement};

use super::shares::Place;
use crate::run::{
    Budget, Input, Reason, Run, RunError, RunId, Spec, Status, StepKind, StepRecord, Tenant, ThreadId, Timer,
    Timestamp, Usage,
};
use crate::store::spelling::{
    Documents, integer, ledger, on_disconnect, parse, read_ledger, step_kind, unreadable, unsigned,
};
use crate::store::{StoreError, Stored};

/// The columns of a run that change while its status stays. SQLite writes an index anew when an update names a column
/// of it, changed or not: so the status, the rank and the end are set only where they change.
macro_rules! state_columns {
    () => {
        "attempt = ?, failures = ?, crashes = ?, steps = ?, timer_due = ?, timer_id = ?, reason = ?, \
         timers_armed = ?, started_at = ?, attempt_started_at = ?, ran_ms = ?, checkpoint_seq = ?, last_seq = ?, \
         input_tokens = ?, output_tokens = ?, estimated = ?, outcome = ?, error_code = ?, error_message = ?, \
         reserved_seq = ?, commit_number = ?, ledger = ?"
    };
}
pub(super) use state_columns;

/// Selects a run by its id, in the order in which [`Found::read`] takes the columns.
const LOAD: &str = "SELECT r.id, r.tenant, r.agent, r.agent_version, r.priority, r.created_at, r.status, r.attempt, \
    r.failures, r.crashes, r.steps, r.timer_due, r.timer_id, r.reason, r.timers_armed, r.started_at, \
    r.attempt_started_at, r.ran_ms, r.finished_at, r.checkpoint_seq, r.last_seq, r.input_tokens, r.output_tokens, \
    r.estimated, r.outcome, r.error_code, r.error_message, r.reserved_seq, r.commit_number, r.ledger, \
    s.input, s.params, s.metadata, s.ttl_at, s.timeout_ms, s.max_attempts, s.on_disconnect, s.retry_of, \
    s.correlation_id, r.thread_id, s.latest_due, r.concurrency_key, r.rank, r.stride, s.webhook, \
    CASE r.status WHEN 'completed' THEN (SELECT output FROM results WHERE run_id = r.id) END, \
    CASE r.status WHEN 'running' THEN EXISTS (SELECT 1 FROM commands WHERE run_id = r.id) ELSE 0 END \
    FROM runs r CROSS JOIN specs s ON s.run_id = r.id WHERE r.id = ?";

/// A run as it was found. Its documents are still text: whoever asked parses them, so that a long
/// input does not hold up the store's threads.
pub(super) struct Found {
    /// The run, without its documents.
    pub(super) run: Run,
    pub(super) reserved_seq: u64,
    pub(super) commit_number: u64,
    pub(super) cancel_requested: bool,
    pub(super) documents: Documents,
    pub(super) place: Place,
}

/// The run `id`, whoever's it is.
pub(super) fn load(conn: &Connection, id: RunId) -> Result<Option<Found>, StoreError> {
    conn.prepare_cached(LOAD)?.query_row([id.as_bytes()], |row| Ok(Found::read(row))).optional()?.transpose()
}

impl Found {
    fn read(row: &Row<'_>) -> Result<Self, StoreError> {
        let mut columns = Columns { row, next: 0 };
        let id = columns.id()?;
        let tenant = columns.text(|text| Some(Tenant::new(text)))?;
        let (agent, agent_version) = (columns.take()?, columns.take()?);
        let (priority, created_at) = (columns.take()?, columns.time()?);
        let status = columns.text(Status::parse)?;
        let (attempt, failures, crashes, steps) = (columns.take()?, columns.take()?, columns.take()?, columns.take()?);
        let (due, timer_id) = (columns.optional_time()?, columns.take::<Option<i64>>()?);
        let reason = columns.optional_text(Reason::parse)?;
        let timers_armed = columns.number()?;
        let (started_at, attempt_started_at) = (columns.optional_time()?, columns.optional_time()?);
        let (ran_ms, finished_at) = (columns.number()?, columns.optional_time()?);
        let (checkpoint_seq, last_seq) = (columns.number()?, columns.number()?);
        let usage = columns.usage()?;
        let (outcome, code, message) = (columns.take()?, columns.take()?, columns.take()?);
        let (reserved_seq, commit_number) = (columns.number()?, columns.number()?);
        let ledger = columns.take::<Option<String>>()?;
        let (input, params, metadata) = (columns.take()?, columns.take()?, columns.take()?);
        let (ttl_at, timeout_ms, max_attempts) = (columns.optional_time()?, columns.number()?, columns.take()?);
        let on_disconnect = columns.text(on_disconnect)?;
        let (retry_of, correlation_id) = (columns.optional_id()?, columns.take()?);
        let thread = columns.take::<Option<_>>()?.map(|id| ThreadId::from_uuid(uuid::Uuid::from_bytes(id)));
        let latest_due = columns.optional_time()?;
        let concurrency_key = columns.take()?;
        let place = Place { rank: columns.take()?, stride: columns.take()? };
        let webhook = columns.take::<Option<String>>()?.as_deref().map(parse).transpose()?;
        let (output, cancel_requested) = (columns.take()?, columns.take()?);
        let spec = Spec {
            id,
            tenant,
            agent,
            agent_version,
            input: Input::Text(String::new()),
            params: serde_json::Map::new(),
            priority,
            ttl_at,
            timeout_ms,
            max_attempts,
            on_disconnect,
            metadata: std::collections::BTreeMap::new(),
            thread,
            latest_due,
            retry_of,
            concurrency_key,
            correlation_id,
            webhook,
            budget: Budget::NONE,
            created_at,
        };
        let timer = due.zip(timer_id).map(|(due, id)| Timer { due, id: unsigned(id) });
        let error = Option::zip(code, message).map(|(code, message)| RunError { code, message });
        let mut run = Run {
            spec: Arc::new(spec),
            status,
            attempt,
            failures,
            crashes,
            steps,
            open: Vec::new(),
            timer,
            reason,
            timers_armed,
            started_at,
            attempt_started_at,
            ran_ms,
            finished_at,
            checkpoint_seq,
            last_seq,
            usage,
            output: None,
            said: Vec::new(),
            outcome,
            error,
        };
        read_ledger(&mut run, ledger.as_deref())?;
        let documents = Documents { input, params, metadata, output };
        Ok(Self { run, reserved_seq, commit_number, cancel_requested, documents, place })
    }

    /// The run with its documents.
    pub(super) fn into_stored(self) -> Result<Stored, StoreError> {
        let run = self.documents.complete(self.run)?;
        Ok(Stored { run, reserved_seq: self.reserved_seq, cancel_requested: self.cancel_requested })
    }
}

/// A finished step as it was found.
pub(super) struct FoundStep {
    step: u32,
    kind: StepKind,
    name: String,
    usage: Usage,
    result: String,
}

impl FoundStep {
    /// Selects the steps of a run, with the columns that [`read`](Self::read) takes.
    pub(super) const SELECT: &str = "SELECT step, kind, name, input_tokens, output_tokens, estimated, result \
         FROM steps WHERE run_id = ? ORDER BY step";

    /// Reads a row of `steps`.
    pub(super) fn read(row: &Row<'_>) -> Result<Self, StoreError> {
        let mut columns = Columns { row, next: 0 };
        let (step, kind, name) = (columns.take()?, columns.text(step_kind)?, columns.take()?);
        Ok(Self { step, kind, name, usage: columns.usage()?, result: columns.take()? })
    }

    /// The step with its result.
    pub(super) fn complete(self) -> Result<StepRecord, StoreError> {
        let Self { step, kind, name, usage, result } = self;
        Ok(StepRecord { step, kind, name, result: parse(&result)?, usage })
    }
}

/// Takes the columns of a row one after the other.
struct Columns<'r, 's> {
    row: &'r Row<'s>,
    next: usize,
}

impl Columns<'_, '_> {
    fn take<T: FromSql>(&mut self) -> Result<T, StoreError> {
        self.next += 1;
        Ok(self.row.get(self.next - 1)?)
    }

    fn number(&mut self) -> Result<u64, StoreError> {
        self.take().map(unsigned)
    }

    fn id(&mut self) -> Result<RunId, StoreError> {
        self.take().map(run_id)
    }

    fn optional_id(&mut self) -> Result<Option<RunId>, StoreError> {
        Ok(self.take::<Option<_>>()?.map(run_id))
    }

    fn time(&mut self) -> Result<Timestamp, StoreError> {
        self.take().map(Timestamp::from_millis)
    }

    fn optional_time(&mut self) -> Result<Option<Timestamp>, StoreError> {
        Ok(self.take::<Option<_>>()?.map(Timestamp::from_millis))
    }

    fn usage(&mut self) -> Result<Usage, StoreError> {
        Ok(Usage {
            input_tokens: self.number()?,
            output_tokens: self.number()?,
            estimated: self.take()?,
            ..Usage::default()
        })
    }

    fn text<T>(&mut self, parse: fn(&str) -> Option<T>) -> Result<T, StoreError> {
        self.optional_text(parse)?.ok_or_else(|| unreadable("a column of a run", "it is empty"))
    }

    fn optional_text<T>(&mut self, parse: fn(&str) -> Option<T>) -> Result<Option<T>, StoreError> {
        self.next += 1;
        let text = self.row.get_ref(self.next - 1)?.as_str_or_null();
        let Some(text) = text.map_err(|error| unreadable("a column of a run", error))? else { return Ok(None) };
        parse(text).map(Some).ok_or_else(|| unreadable("a column of a run", format_args!("unknown value {text:?}")))
    }
}

/// The id that was stored as `bytes`.
pub(super) fn run_id(bytes: [u8; 16]) -> RunId {
    RunId::from_uuid(uuid::Uuid::from_bytes(bytes))
}

/// Binds the parameters of a statement one after the other.
pub(super) struct Binder<'a, 'c> {
    statement: &'a mut Statement<'c>,
    next: usize,
}

impl<'a, 'c> Binder<'a, 'c> {
    pub(super) fn new(statement: &'a mut Statement<'c>) -> Self {
        Self { statement, next: 1 }
    }

    /// Binds the next parameter.
    pub(super) fn bind(&mut self, value: impl ToSql) -> rusqlite::Result<()> {
        self.statement.raw_bind_parameter(self.next, value)?;
        self.next += 1;
        Ok(())
    }

    /// Binds the parameters of [`state_columns`].
    pub(super) fn bind_state(&mut self, run: &Run, reserved_seq: u64, commit_number: u64) -> rusqlite::Result<()> {
        self.bind(run.attempt)?;
        self.bind(run.failures)?;
        self.bind(run.crashes)?;
        self.bind(run.steps)?;
        self.bind(run.timer.map(|timer| timer.due.as_millis()))?;
        self.bind(run.timer.map(|timer| integer(timer.id)))?;
        self.bind(run.reason.map(Reason::as_str))?;
        self.bind(integer(run.timers_armed))?;
        self.bind(run.started_at.map(Timestamp::as_millis))?;
        self.bind(run.attempt_started_at.map(Timestamp::as_millis))?;
        self.bind(integer(run.ran_ms))?;
        self.bind(integer(run.checkpoint_seq))?;
        self.bind(integer(run.last_seq))?;
        self.bind(integer(run.usage.input_tokens))?;
        self.bind(integer(run.usage.output_tokens))?;
        self.bind(run.usage.estimated)?;
        self.bind(run.outcome.as_deref())?;
        self.bind(run.error.as_ref().map(|error| &error.code))?;
        self.bind(run.error.as_ref().map(|error| &error.message))?;
        self.bind(integer(reserved_seq))?;
        self.bind(integer(commit_number))?;
        self.bind(ledger(run))
    }

    /// Executes the statement; returns how many rows it changed.
    pub(super) fn execute(self) -> rusqlite::Result<usize> {
        self.statement.raw_execute()
    }
}
