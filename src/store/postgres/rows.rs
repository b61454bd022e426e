//! Rows as runs and steps.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use tokio_postgres::Row;
use tokio_postgres::types::FromSql;
use uuid::Uuid;

use super::conn::Conn;
use super::error::Failure;
use crate::run::{
    Budget, Input, Reason, Run, RunError, RunId, Spec, Status, StepRecord, Tenant, ThreadId, Timer, Timestamp, Usage,
};
use crate::store::spelling::{Documents, json, on_disconnect, parse, read_ledger, step_kind, unreadable, unsigned};
use crate::store::{StoreError, Stored};

/// The columns of a run `r` and its specification `s`, in the order in which [`Found::read`] takes them, but for
/// the output.
macro_rules! run_columns {
    () => {
        "r.id, r.tenant, r.agent, r.agent_version, r.priority, r.created_at, r.status, r.attempt, r.failures, \
         r.crashes, r.steps, r.timer_due, r.timer_id, r.reason, r.timers_armed, r.started_at, r.attempt_started_at, \
         r.ran_ms, r.finished_at, r.checkpoint_seq, r.last_seq, r.input_tokens, r.output_tokens, r.estimated, \
         r.outcome, r.error_code, r.error_message, r.reserved_seq, r.commit_number, r.ledger, r.cancel_requested, s.input, \
         s.params, s.metadata, s.ttl_at, s.timeout_ms, s.max_attempts, s.on_disconnect, s.retry_of, s.correlation_id, \
         r.concurrency_key, s.webhook, r.thread_id, s.latest_due"
    };
}
pub(super) use run_columns;

/// Selects the runs whose ids are in `wanted(id)`, with all columns. Subqueries with `OFFSET 0` stay what they are:
/// each id is looked up by its index, whatever the planner thinks of the tables.
macro_rules! load {
    ($wanted:expr) => {
        concat!(
            "SELECT ",
            super::rows::run_columns!(),
            ", o.output FROM ",
            $wanted,
            " CROSS JOIN LATERAL (SELECT * FROM runcast_runs WHERE id = wanted.id OFFSET 0) r \
             CROSS JOIN LATERAL (SELECT * FROM runcast_specs WHERE run_id = r.id OFFSET 0) s \
             LEFT JOIN LATERAL (SELECT output FROM runcast_results WHERE run_id = r.id OFFSET 0) o \
             ON r.status = 'completed'"
        )
    };
}
pub(super) use load;

/// Selects the runs whose ids are given.
pub(super) const LOAD: &str = load!("unnest($1::uuid[]) AS wanted(id)");

/// A run as it was found. Its documents are still text.
pub(super) struct Found {
    /// The run, without its documents.
    pub(super) run: Run,
    pub(super) reserved_seq: u64,
    pub(super) commit_number: u64,
    pub(super) cancel_requested: bool,
    pub(super) documents: Documents,
}

/// The runs of `ids` that there are, in no order.
pub(super) async fn find(conn: &Conn, ids: &[Uuid]) -> Result<Vec<Row>, Failure> {
    conn.query(LOAD, &[&ids]).await
}

impl Found {
    pub(super) fn read(row: &Row) -> Result<Self, StoreError> {
        let mut columns = Columns::of(row);
        let id = columns.id()?;
        let tenant = columns.text(|text| Some(Tenant::new(text)))?;
        let (agent, agent_version) = (columns.take()?, columns.take()?);
        let (priority, created_at) = (columns.small("priority")?, columns.time()?);
        let status = columns.text(Status::parse)?;
        let (attempt, failures) = (columns.small("attempt")?, columns.small("failures")?);
        let (crashes, steps) = (columns.small("crashes")?, columns.small("steps")?);
        let (due, timer_id) = (columns.optional_time()?, columns.take::<Option<i64>>()?);
        let reason = columns.optional_text(Reason::parse)?;
        let timers_armed = columns.number()?;
        let (started_at, attempt_started_at) = (columns.optional_time()?, columns.optional_time()?);
        let (ran_ms, finished_at) = (columns.number()?, columns.optional_time()?);
        let (checkpoint_seq, last_seq) = (columns.number()?, columns.number()?);
        let usage = columns.usage()?;
        let (outcome, code, message) = (columns.take()?, columns.take()?, columns.take()?);
        let (reserved_seq, commit_number) = (columns.number()?, columns.number()?);
        let ledger = columns.take::<Option<&str>>()?;
        let cancel_requested = columns.take::<bool>()? && status == Status::Running;
        let (input, params, metadata) = (columns.take()?, columns.take()?, columns.take()?);
        let (ttl_at, timeout_ms) = (columns.optional_time()?, columns.number()?);
        let max_attempts = columns.small("max_attempts")?;
        let on_disconnect = columns.text(on_disconnect)?;
        let (retry_of, correlation_id) = (columns.optional_id()?, columns.take()?);
        let concurrency_key = columns.take()?;
        let webhook = columns.take::<Option<&str>>()?.map(parse).transpose()?;
        let thread = columns.take::<Option<_>>()?.map(ThreadId::from_uuid);
        let latest_due = columns.optional_time()?;
        let output = if row.len() > columns.next { columns.take()? } else { None };
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
            metadata: BTreeMap::new(),
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
        read_ledger(&mut run, ledger)?;
        let documents = Documents { input, params, metadata, output };
        Ok(Self { run, reserved_seq, commit_number, cancel_requested, documents })
    }

    /// The run with its documents.
    pub(super) fn into_stored(self) -> Result<Stored, StoreError> {
        let run = self.documents.complete(self.run)?;
        Ok(Stored { run, reserved_seq: self.reserved_seq, cancel_requested: self.cancel_requested })
    }
}

/// A row of `runcast_steps`, behind the id of its run.
pub(super) fn step(row: &Row) -> Result<(RunId, StepRecord), StoreError> {
    let mut columns = Columns::of(row);
    let (run, step) = (columns.id()?, columns.small("step")?);
    let (kind, name, usage) = (columns.text(step_kind)?, columns.take()?, columns.usage()?);
    let result = parse(&columns.take::<String>()?)?;
    Ok((run, StepRecord { step, kind, name, result, usage }))
}

/// Labels as JSON, each on a line of its own. No JSON string holds a line break, so a label is there if its
/// [`line`] is.
pub(super) fn metadata(labels: &BTreeMap<String, String>) -> Result<String, StoreError> {
    let lines: Vec<String> = labels.iter().map(|(key, value)| line(key, value)).collect::<Result<_, _>>()?;
    Ok(format!("{{{}}}", if lines.is_empty() { "\n".to_owned() } else { lines.join(",") }))
}

/// A label as it stands in the stored text.
pub(super) fn line(key: &str, value: &str) -> Result<String, StoreError> {
    Ok(format!("\n{}:{}\n", json(&key)?, json(&value)?))
}

/// Plain text as PostgreSQL can hold it: it knows no NUL.
pub(super) fn plain(text: &str) -> Cow<'_, str> {
    if text.contains('\0') { Cow::Owned(text.replace('\0', "\u{fffd}")) } else { Cow::Borrowed(text) }
}

/// How many rows at most.
pub(super) fn limit(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

/// Takes the columns of a row one after the other.
pub(super) struct Columns<'r> {
    row: &'r Row,
    next: usize,
}

impl<'r> Columns<'r> {
    pub(super) fn of(row: &'r Row) -> Self {
        Self { row, next: 0 }
    }

    pub(super) fn take<T: FromSql<'r>>(&mut self) -> Result<T, StoreError> {
        self.next += 1;
        self.row.try_get(self.next - 1).map_err(|error| unreadable("a column", error))
    }

    pub(super) fn number(&mut self) -> Result<u64, StoreError> {
        self.take().map(unsigned)
    }

    pub(super) fn small<T: TryFrom<i64>>(&mut self, what: &str) -> Result<T, StoreError> {
        let number: i64 = self.take()?;
        T::try_from(number).map_err(|_| unreadable(what, number))
    }

    pub(super) fn id(&mut self) -> Result<RunId, StoreError> {
        self.take().map(RunId::from_uuid)
    }

    pub(super) fn optional_id(&mut self) -> Result<Option<RunId>, StoreError> {
        Ok(self.take::<Option<_>>()?.map(RunId::from_uuid))
    }

    pub(super) fn time(&mut self) -> Result<Timestamp, StoreError> {
        self.take().map(Timestamp::from_millis)
    }

    pub(super) fn optional_time(&mut self) -> Result<Option<Timestamp>, StoreError> {
        Ok(self.take::<Option<_>>()?.map(Timestamp::from_millis))
    }

    pub(super) fn optional_number(&mut self) -> Result<Option<u64>, StoreError> {
        Ok(self.take::<Option<_>>()?.map(unsigned))
    }

    fn usage(&mut self) -> Result<Usage, StoreError> {
        Ok(Usage {
            input_tokens: self.number()?,
            output_tokens: self.number()?,
            estimated: self.take()?,
            ..Usage::default()
        })
    }

    pub(super) fn text<T>(&mut self, parse: fn(&str) -> Option<T>) -> Result<T, StoreError> {
        self.optional_text(parse)?.ok_or_else(|| unreadable("a column of a run", "it is empty"))
    }

    fn optional_text<T>(&mut self, parse: fn(&str) -> Option<T>) -> Result<Option<T>, StoreError> {
        let Some(text) = self.take::<Option<&str>>()? else { return Ok(None) };
        parse(text).map(Some).ok_or_else(|| unreadable("a column of a run", format_args!("unknown value {text:?}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_json_and_each_has_its_line() {
        for labels in [vec![], vec![("a", "b")], vec![("a\n\"", ",\0"), ("b", "\n"), ("c", "d")]] {
            let labels: BTreeMap<String, String> =
                labels.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
            let text = metadata(&labels).unwrap();
            assert_eq!(serde_json::from_str::<BTreeMap<String, String>>(&text).unwrap(), labels);
            assert!(labels.iter().all(|(key, value)| text.contains(&line(key, value).unwrap())));
            assert!(!text.contains(&line("d", "c").unwrap()) && !text.contains('\0'));
        }
    }
}
