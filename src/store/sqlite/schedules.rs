//! Schedules, and the timers that go with them.

use rusqlite::{Connection, OptionalExtension as _, Row, params};
use uuid::Uuid;

use super::create::{keep, used};
use super::rows::run_id;
use super::timers;
use crate::run::{RunId, Tenant, Timestamp};
use crate::store::spelling::{integer, json, parse, unreadable, unsigned};
use crate::store::{IdempotencyKey, Schedule, ScheduleCreated, StoreError};

const SELECT: &str = "SELECT id, tenant, cron, timezone, request, missed, enabled, next_at, number, last_at, \
     last_run, last_error, created_at FROM schedules";

/// Creates a schedule, unless its key says otherwise.
pub(super) fn create(
    conn: &Connection,
    schedule: &Schedule,
    key: Option<&IdempotencyKey>,
) -> Result<ScheduleCreated, StoreError> {
    if let Some(key) = key {
        if let Some((fingerprint, id)) = used(conn, &schedule.tenant, key)? {
            if fingerprint != key.fingerprint {
                return Ok(ScheduleCreated::KeyReused);
            }
            let existing = get(conn, Some(&schedule.tenant), id)?
                .ok_or_else(|| StoreError::Corrupt(format!("schedule {id} of an idempotency key is missing")))?;
            return Ok(ScheduleCreated::Existing(Box::new(existing)));
        }
        keep(conn, &schedule.tenant, key, schedule.id, schedule.created_at)?;
    }
    conn.prepare_cached(
        "INSERT INTO schedules (id, tenant, cron, timezone, request, missed, enabled, next_at, number, last_at, \
         last_run, last_error, created_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )?
    .execute(params![
        schedule.id.as_bytes(),
        schedule.tenant.as_str(),
        schedule.cron,
        schedule.timezone,
        json(&schedule.request)?,
        schedule.missed.as_str(),
        schedule.enabled,
        schedule.next_at.map(Timestamp::as_millis),
        integer(schedule.number),
        schedule.last_at.map(Timestamp::as_millis),
        schedule.last_run.as_ref().map(RunId::as_bytes),
        schedule.last_error,
        schedule.created_at.as_millis()
    ])?;
    schedule.timer().map_or(Ok(()), |timer| timers::arm(conn, timer))?;
    Ok(ScheduleCreated::New)
}

/// The schedule `id`.
pub(super) fn get(conn: &Connection, tenant: Option<&Tenant>, id: Uuid) -> Result<Option<Schedule>, StoreError> {
    let found = conn
        .prepare_cached(&format!("{SELECT} WHERE id = ?"))?
        .query_row([id.as_bytes()], |row| Ok(read(row)))
        .optional()?
        .transpose()?;
    Ok(found.filter(|found| tenant.is_none_or(|tenant| found.tenant == *tenant)))
}

/// The tenant's schedules, youngest first.
pub(super) fn list(
    conn: &Connection,
    tenant: &Tenant,
    before: Option<Uuid>,
    limit: usize,
) -> Result<Vec<Schedule>, StoreError> {
    let mut statement =
        conn.prepare_cached(&format!("{SELECT} WHERE tenant = ? AND id < ? ORDER BY id DESC LIMIT ?"))?;
    let before = before.unwrap_or(Uuid::max());
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let found = statement.query_map(params![tenant.as_str(), before.as_bytes(), limit], |row| Ok(read(row)))?;
    found.map(|found| found?).collect()
}

/// Writes `schedule` over the one with the number before its own.
pub(super) fn advance(conn: &Connection, schedule: &Schedule) -> Result<bool, StoreError> {
    let Some(stored) = get(conn, None, schedule.id)? else { return Ok(false) };
    if stored.number.checked_add(1) != Some(schedule.number) {
        return Ok(false);
    }
    stored.timer().map_or(Ok(()), |timer| timers::remove(conn, timer))?;
    conn.prepare_cached(
        "UPDATE schedules SET cron = ?, timezone = ?, request = ?, missed = ?, enabled = ?, next_at = ?, number = ?, \
         last_at = ?, last_run = ?, last_error = ? WHERE id = ?",
    )?
    .execute(params![
        schedule.cron,
        schedule.timezone,
        json(&schedule.request)?,
        schedule.missed.as_str(),
        schedule.enabled,
        schedule.next_at.map(Timestamp::as_millis),
        integer(schedule.number),
        schedule.last_at.map(Timestamp::as_millis),
        schedule.last_run.as_ref().map(RunId::as_bytes),
        schedule.last_error,
        schedule.id.as_bytes()
    ])?;
    schedule.timer().map_or(Ok(()), |timer| timers::arm(conn, timer))?;
    Ok(true)
}

/// Removes the tenant's schedule.
pub(super) fn delete(conn: &Connection, tenant: &Tenant, id: Uuid) -> Result<bool, StoreError> {
    let Some(stored) = get(conn, Some(tenant), id)? else { return Ok(false) };
    stored.timer().map_or(Ok(()), |timer| timers::remove(conn, timer))?;
    conn.prepare_cached("DELETE FROM idempotency WHERE run_id = ?")?.execute([id.as_bytes()])?;
    conn.prepare_cached("DELETE FROM schedules WHERE id = ?")?.execute([id.as_bytes()])?;
    Ok(true)
}

fn read(row: &Row<'_>) -> Result<Schedule, StoreError> {
    let time = |at| row.get::<_, Option<i64>>(at).map(|millis| millis.map(Timestamp::from_millis));
    let missed: String = row.get(5)?;
    Ok(Schedule {
        id: Uuid::from_bytes(row.get(0)?),
        tenant: Tenant::new(row.get::<_, String>(1)?),
        cron: row.get(2)?,
        timezone: row.get(3)?,
        request: parse(&row.get::<_, String>(4)?)?,
        missed: missed.parse().map_err(|()| unreadable("a column of a schedule", &missed))?,
        enabled: row.get(6)?,
        next_at: time(7)?,
        number: unsigned(row.get(8)?),
        last_at: time(9)?,
        last_run: row.get::<_, Option<_>>(10)?.map(run_id),
        last_error: row.get(11)?,
        created_at: Timestamp::from_millis(row.get(12)?),
    })
}
