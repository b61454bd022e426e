//! Creating runs, and what a repeated request finds.

use rusqlite::{Connection, OptionalExtension as _, params};

use super::log::{self, NewSegment};
use super::rows::{Binder, Found, load, run_id};
use super::timers::{self, Armed};
use super::writer::Writer;
use crate::run::{Run, RunId, Spec, Timestamp};
use crate::store::spelling::{integer, json, on_disconnect_text};
use crate::store::{Created, IdempotencyKey, NewRun, StoreError};

/// A run, ready to be created: what costs time is encoded by the caller.
pub(super) struct Creation {
    run: Run,
    segment: NewSegment,
    key: Option<IdempotencyKey>,
    max_waiting: u64,
    input: String,
    params: String,
    metadata: String,
}

/// [`Created`], with the run as it was found.
pub(super) enum Outcome {
    New,
    Existing(Box<Found>),
    KeyReused,
    TooManyWaiting,
}

impl Creation {
    pub(super) fn new(new: NewRun) -> Result<Self, StoreError> {
        let spec = &new.run.spec;
        Ok(Self {
            input: json(&spec.input)?,
            params: json(&spec.params)?,
            metadata: json(&spec.metadata)?,
            segment: NewSegment::new(&new.segment),
            run: new.run,
            key: new.key,
            max_waiting: new.max_waiting,
        })
    }

    /// Creates the run, unless its key or the bound says otherwise.
    pub(super) fn write(&self, writer: &mut Writer) -> Result<Outcome, StoreError> {
        let spec = &self.run.spec;
        if let Some(key) = &self.key
            && let Some((fingerprint, id)) = used(writer.conn(), spec, key)?
        {
            if fingerprint != key.fingerprint {
                return Ok(Outcome::KeyReused);
            }
            let found = load(writer.conn(), id)?
                .ok_or_else(|| StoreError::Corrupt(format!("run {id} of an idempotency key is missing")))?;
            return Ok(Outcome::Existing(Box::new(found)));
        }
        if writer.waiting() >= self.max_waiting {
            return Ok(Outcome::TooManyWaiting);
        }
        let conn = writer.conn();
        insert_run(conn, &self.run)?;
        self.insert_spec(conn)?;
        log::append(conn, spec.id, &self.segment)?;
        timers::follow(conn, Armed::default(), &self.run)?;
        if let Some(from) = spec.retry_of
            && self.run.steps > 0
        {
            log::copy_steps(conn, from, spec.id, self.run.steps)?;
        }
        if let Some(key) = &self.key {
            keep(conn, spec, key)?;
        }
        writer.moved(None, self.run.status);
        Ok(Outcome::New)
    }

    fn insert_spec(&self, conn: &Connection) -> Result<(), StoreError> {
        let spec = &self.run.spec;
        conn.prepare_cached(
            "INSERT INTO specs (run_id, input, params, metadata, ttl_at, timeout_ms, max_attempts, on_disconnect, \
             retry_of, correlation_id, webhook) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        )?
        .execute(params![
            spec.id.as_bytes(),
            self.input,
            self.params,
            self.metadata,
            spec.ttl_at.map(Timestamp::as_millis),
            integer(spec.timeout_ms),
            spec.max_attempts,
            on_disconnect_text(spec.on_disconnect),
            spec.retry_of.as_ref().map(RunId::as_bytes),
            spec.correlation_id,
            spec.webhook.as_ref().map(json).transpose()?
        ])?;
        Ok(())
    }
}

impl Outcome {
    /// The outcome with the documents of its run.
    pub(super) fn complete(self) -> Result<Created, StoreError> {
        Ok(match self {
            Self::New => Created::New,
            Self::Existing(found) => Created::Existing(Box::new(found.into_stored()?)),
            Self::KeyReused => Created::KeyReused,
            Self::TooManyWaiting => Created::TooManyWaiting,
        })
    }
}

fn insert_run(conn: &Connection, run: &Run) -> Result<(), StoreError> {
    let mut statement = conn.prepare_cached(
        "INSERT INTO runs (id, tenant, agent, agent_version, priority, created_at, status, attempt, failures, \
         crashes, steps, timer_due, timer_id, reason, timers_armed, started_at, attempt_started_at, ran_ms, \
         finished_at, checkpoint_seq, last_seq, input_tokens, output_tokens, estimated, outcome, error_code, \
         error_message, reserved_seq, commit_number) \
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )?;
    let spec = &run.spec;
    let mut binder = Binder::new(&mut statement);
    binder.bind(spec.id.as_bytes())?;
    binder.bind(spec.tenant.as_str())?;
    binder.bind(&spec.agent)?;
    binder.bind(&spec.agent_version)?;
    binder.bind(spec.priority)?;
    binder.bind(spec.created_at.as_millis())?;
    binder.bind(run.status.as_str())?;
    binder.bind_state(run, run.last_seq, 0)?;
    binder.execute()?;
    Ok(())
}

/// The fingerprint and the run that the key was used for, unless that is forgotten.
fn used(conn: &Connection, spec: &Spec, key: &IdempotencyKey) -> Result<Option<([u8; 32], RunId)>, StoreError> {
    let found = conn
        .prepare_cached(
            "SELECT fingerprint, run_id FROM idempotency WHERE tenant = ? AND route = ? AND key = ? AND kept_at >= ?",
        )?
        .query_row(params![spec.tenant.as_str(), key.route, key.key, key.valid_after.as_millis()], |row| {
            Ok((row.get(0)?, run_id(row.get(1)?)))
        })
        .optional()?;
    Ok(found)
}

fn keep(conn: &Connection, spec: &Spec, key: &IdempotencyKey) -> Result<(), StoreError> {
    conn.prepare_cached(
        "INSERT OR REPLACE INTO idempotency (tenant, route, key, fingerprint, run_id, kept_at) \
         VALUES (?, ?, ?, ?, ?, ?)",
    )?
    .execute(params![
        spec.tenant.as_str(),
        key.route,
        key.key,
        key.fingerprint,
        spec.id.as_bytes(),
        spec.created_at.as_millis()
    ])?;
    Ok(())
}

/// Removes keys kept since before `before`.
pub(super) fn forget_keys(conn: &Connection, before: Timestamp, limit: usize) -> Result<u64, StoreError> {
    let forgotten = conn
        .prepare_cached(
            "DELETE FROM idempotency WHERE (tenant, route, key) IN (SELECT tenant, route, key FROM idempotency \
             INDEXED BY idempotency_by_age WHERE kept_at < ? ORDER BY kept_at LIMIT ?)",
        )?
        .execute(params![before.as_millis(), i64::try_from(limit).unwrap_or(i64::MAX)])?;
    Ok(forgotten as u64)
}
