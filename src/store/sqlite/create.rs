//! Creating runs, and what a repeated request finds.

use rusqlite::{Connection, OptionalExtension as _, params};
use uuid::Uuid;

use super::log::{self, NewSegment};
use super::rows::{Binder, Found, load};
use super::shares::Place;
use super::timers::{self, Armed};
use super::writer::Writer;
use crate::run::{Run, RunId, Status, Tenant, ThreadId, Timestamp};
use crate::store::shares::stride;
use crate::store::spelling::{integer, json, on_disconnect_text};
use crate::store::{Created, IdempotencyKey, NewRun, Share, StoreError};

/// A run, ready to be created: what costs time is encoded by the caller.
pub(super) struct Creation {
    run: Run,
    segment: NewSegment,
    key: Option<IdempotencyKey>,
    max_waiting: u64,
    share: Share,
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
    TooManyOfTenant,
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
            share: new.share,
        })
    }

    /// Creates the run, unless its key or the bound says otherwise.
    pub(super) fn write(&self, writer: &mut Writer) -> Result<Outcome, StoreError> {
        let spec = &self.run.spec;
        if let Some(key) = &self.key
            && let Some((fingerprint, id)) = used(writer.conn(), &spec.tenant, key)?
        {
            if fingerprint != key.fingerprint {
                return Ok(Outcome::KeyReused);
            }
            let id = RunId::from_uuid(id);
            let found = load(writer.conn(), id)?
                .ok_or_else(|| StoreError::Corrupt(format!("run {id} of an idempotency key is missing")))?;
            return Ok(Outcome::Existing(Box::new(found)));
        }
        if writer.waiting() >= self.max_waiting {
            let found = load(writer.conn(), spec.id)?;
            return Ok(found.map_or(Outcome::TooManyWaiting, |found| Outcome::Existing(Box::new(found))));
        }
        if self.share.max_waiting.is_some_and(|most| writer.waiting_of(&spec.tenant) >= most) {
            return Ok(Outcome::TooManyOfTenant);
        }
        if !self.insert(writer)? {
            let found = load(writer.conn(), spec.id)?
                .ok_or_else(|| StoreError::Corrupt(format!("run {} is there and is not", spec.id)))?;
            return Ok(Outcome::Existing(Box::new(found)));
        }
        if let Some(key) = &self.key {
            keep(writer.conn(), &spec.tenant, key, *spec.id.as_uuid(), spec.created_at)?;
        }
        Ok(Outcome::New)
    }

    /// Creates the run, whatever its key and the bound say. False: there is one of its id.
    pub(super) fn insert(&self, writer: &mut Writer) -> Result<bool, StoreError> {
        let spec = &self.run.spec;
        let mut place = Place { rank: 0, stride: stride(self.share.weight) };
        if self.run.status == Status::Queued {
            place.rank = writer.rank(&self.run, place);
        }
        let conn = writer.conn();
        if !insert_run(conn, &self.run, place)? {
            return Ok(false);
        }
        self.insert_spec(conn)?;
        log::append(conn, spec.id, &self.segment)?;
        timers::follow(conn, Armed::default(), &self.run)?;
        if let Some(from) = spec.retry_of
            && self.run.steps > 0
        {
            log::copy_steps(conn, from, spec.id, self.run.steps)?;
        }
        writer.moved(spec, None, self.run.status, place.rank);
        Ok(true)
    }

    fn insert_spec(&self, conn: &Connection) -> Result<(), StoreError> {
        let spec = &self.run.spec;
        conn.prepare_cached(
            "INSERT INTO specs (run_id, input, params, metadata, ttl_at, timeout_ms, max_attempts, on_disconnect, \
             retry_of, correlation_id, latest_due, webhook) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
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
            spec.latest_due.map(Timestamp::as_millis),
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
            Self::TooManyOfTenant => Created::TooManyOfTenant,
        })
    }
}

/// False: there is one of its id.
fn insert_run(conn: &Connection, run: &Run, place: Place) -> Result<bool, StoreError> {
    let mut statement = conn.prepare_cached(
        "INSERT INTO runs (id, tenant, agent, agent_version, priority, created_at, rank, stride, concurrency_key, \
         status, finished_at, attempt, failures, crashes, steps, timer_due, timer_id, reason, timers_armed, \
         started_at, attempt_started_at, ran_ms, checkpoint_seq, last_seq, input_tokens, output_tokens, estimated, \
         outcome, error_code, error_message, reserved_seq, commit_number, ledger, thread_id) \
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) \
         ON CONFLICT (id) DO NOTHING",
    )?;
    let spec = &run.spec;
    let mut binder = Binder::new(&mut statement);
    binder.bind(spec.id.as_bytes())?;
    binder.bind(spec.tenant.as_str())?;
    binder.bind(&spec.agent)?;
    binder.bind(&spec.agent_version)?;
    binder.bind(spec.priority)?;
    binder.bind(spec.created_at.as_millis())?;
    binder.bind(place.rank)?;
    binder.bind(place.stride)?;
    binder.bind(spec.concurrency_key.as_deref())?;
    binder.bind(run.status.as_str())?;
    binder.bind(run.finished_at.map(Timestamp::as_millis))?;
    binder.bind_state(run, run.last_seq, 0)?;
    binder.bind(spec.thread.as_ref().map(ThreadId::as_bytes))?;
    Ok(binder.execute()? == 1)
}

/// The fingerprint and the id of what the key was used for, unless that is forgotten.
pub(super) fn used(
    conn: &Connection,
    tenant: &Tenant,
    key: &IdempotencyKey,
) -> Result<Option<([u8; 32], Uuid)>, StoreError> {
    let found = conn
        .prepare_cached(
            "SELECT fingerprint, run_id FROM idempotency WHERE tenant = ? AND route = ? AND key = ? AND kept_at >= ?",
        )?
        .query_row(params![tenant.as_str(), key.route, key.key, key.valid_after.as_millis()], |row| {
            Ok((row.get(0)?, Uuid::from_bytes(row.get(1)?)))
        })
        .optional()?;
    Ok(found)
}

/// Keeps a key, which was used at `now` to make what is called `subject`.
pub(super) fn keep(
    conn: &Connection,
    tenant: &Tenant,
    key: &IdempotencyKey,
    subject: Uuid,
    now: Timestamp,
) -> Result<(), StoreError> {
    conn.prepare_cached(
        "INSERT OR REPLACE INTO idempotency (tenant, route, key, fingerprint, run_id, kept_at) \
         VALUES (?, ?, ?, ?, ?, ?)",
    )?
    .execute(params![
        tenant.as_str(),
        key.route,
        key.key,
        key.fingerprint,
        subject.as_bytes(),
        now.as_millis()
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
