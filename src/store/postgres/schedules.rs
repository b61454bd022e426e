//! Schedules, and the timers that go with them.

use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::conn::Conn;
use super::error::Failure;
use super::rows::{Columns, limit, plain};
use crate::run::{Tenant, Timestamp};
use crate::schedule::Missed;
use crate::store::spelling::{integer, json, parse};
use crate::store::{IdempotencyKey, Schedule, ScheduleCreated, StoreError};

macro_rules! select {
    ($which:literal) => {
        concat!(
            "SELECT id, tenant, cron, timezone, request, missed, enabled, next_at, number, last_at, last_run, \
             last_error, created_at FROM runcast_schedules WHERE ",
            $which
        )
    };
}

/// Takes the key, unless somebody has it. The key of a concurrent creation is waited for.
const TAKE: &str = "INSERT INTO runcast_idempotency AS k (tenant, route, key, fingerprint, run_id, kept_at) \
     VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (tenant, route, key) DO UPDATE \
     SET fingerprint = EXCLUDED.fingerprint, run_id = EXCLUDED.run_id, kept_at = EXCLUDED.kept_at \
     WHERE k.kept_at < $7";

const USED: &str = "SELECT fingerprint, run_id FROM runcast_idempotency WHERE tenant = $1 AND route = $2 AND key = $3";

const INSERT: &str = "WITH armed AS (INSERT INTO runcast_timers (due_at, run_id, kind, number) \
     SELECT $8::bigint, $1::uuid, 3, $9::bigint WHERE $7::boolean AND $8 IS NOT NULL) \
     INSERT INTO runcast_schedules (id, tenant, cron, timezone, request, missed, enabled, next_at, number, last_at, \
     last_run, last_error, created_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)";

const ADVANCE: &str = "WITH before AS MATERIALIZED \
     (SELECT next_at FROM runcast_schedules WHERE id = $1 AND number = $8::bigint - 1 FOR UPDATE), \
     gone AS (DELETE FROM runcast_timers t USING before b \
     WHERE t.due_at = b.next_at AND t.run_id = $1 AND t.kind = 3 AND t.number = $8::bigint - 1), \
     armed AS (INSERT INTO runcast_timers (due_at, run_id, kind, number) \
     SELECT $7::bigint, $1::uuid, 3, $8::bigint FROM before WHERE $6::boolean AND $7 IS NOT NULL) \
     UPDATE runcast_schedules SET cron = $2, timezone = $3, request = $4, missed = $5, enabled = $6, next_at = $7, \
     number = $8, last_at = $9, last_run = $10, last_error = $11 \
     WHERE id = $1 AND EXISTS (SELECT FROM before)";

const DELETE: &str = "WITH gone AS (DELETE FROM runcast_schedules WHERE id = $1 AND tenant = $2 \
     RETURNING id, number, next_at), \
     timers AS (DELETE FROM runcast_timers t USING gone g \
     WHERE t.due_at = g.next_at AND t.run_id = g.id AND t.kind = 3 AND t.number = g.number), \
     keys AS (DELETE FROM runcast_idempotency WHERE run_id = $1 AND EXISTS (SELECT FROM gone)) \
     SELECT count(*) FROM gone";

/// Creates a schedule, unless its key says otherwise.
pub(super) async fn create(
    conn: &Conn,
    schedule: &Schedule,
    key: Option<&IdempotencyKey>,
) -> Result<ScheduleCreated, Failure> {
    conn.client().batch_execute("BEGIN").await?;
    let created = write(conn, schedule, key).await?;
    conn.client().batch_execute("COMMIT").await?;
    Ok(created)
}

async fn write(conn: &Conn, schedule: &Schedule, key: Option<&IdempotencyKey>) -> Result<ScheduleCreated, Failure> {
    let (tenant, created_at) = (plain(schedule.tenant.as_str()), schedule.created_at.as_millis());
    if let Some(key) = key {
        let (route, name, fingerprint) = (plain(key.route), plain(&key.key), &key.fingerprint[..]);
        let valid_after = key.valid_after.as_millis();
        let params: [&(dyn ToSql + Sync); 7] =
            [&tenant, &route, &name, &fingerprint, &schedule.id, &created_at, &valid_after];
        if conn.execute(TAKE, &params).await? == 0 {
            return existing(conn, schedule, key).await;
        }
    }
    let (cron, timezone, request) = (plain(&schedule.cron), plain(&schedule.timezone), json(&schedule.request)?);
    let (missed, next_at, number) = (schedule.missed.as_str(), millis(schedule.next_at), integer(schedule.number));
    let last_run = schedule.last_run.map(|run| *run.as_uuid());
    let (last_at, last_error) = (millis(schedule.last_at), schedule.last_error.as_deref().map(plain));
    let params: [&(dyn ToSql + Sync); 13] = [
        &schedule.id,
        &tenant,
        &cron,
        &timezone,
        &request,
        &missed,
        &schedule.enabled,
        &next_at,
        &number,
        &last_at,
        &last_run,
        &last_error,
        &created_at,
    ];
    conn.execute(INSERT, &params).await?;
    Ok(ScheduleCreated::New)
}

/// What the key was used for before.
async fn existing(conn: &Conn, schedule: &Schedule, key: &IdempotencyKey) -> Result<ScheduleCreated, Failure> {
    let (tenant, route, name) = (plain(schedule.tenant.as_str()), plain(key.route), plain(&key.key));
    let rows = conn.query(USED, &[&tenant, &route, &name]).await?;
    // Deleted just now: the caller comes again, and finds the key free.
    let gone = || StoreError::Unavailable("the schedule of the idempotency key is being removed".to_owned());
    let row = rows.first().ok_or_else(gone)?;
    let (fingerprint, id): (&[u8], Uuid) = (row.try_get(0)?, row.try_get(1)?);
    if fingerprint != key.fingerprint {
        return Ok(ScheduleCreated::KeyReused);
    }
    let found = get(conn, Some(&schedule.tenant), id).await?.ok_or_else(gone)?;
    Ok(ScheduleCreated::Existing(Box::new(found)))
}

/// The schedule `id`.
pub(super) async fn get(conn: &Conn, tenant: Option<&Tenant>, id: Uuid) -> Result<Option<Schedule>, Failure> {
    let rows = conn.query(select!("id = $1"), &[&id]).await?;
    let found = rows.first().map(read).transpose()?;
    Ok(found.filter(|found| tenant.is_none_or(|tenant| found.tenant == *tenant)))
}

/// The tenant's schedules, youngest first.
pub(super) async fn list(
    conn: &Conn,
    tenant: &Tenant,
    before: Option<Uuid>,
    most: usize,
) -> Result<Vec<Schedule>, Failure> {
    let (tenant, before) = (plain(tenant.as_str()), before.unwrap_or(Uuid::max()));
    let sql = select!("tenant = $1 AND id < $2 ORDER BY id DESC LIMIT $3");
    let rows = conn.query(sql, &[&tenant, &before, &limit(most)]).await?;
    Ok(rows.iter().map(read).collect::<Result<_, _>>()?)
}

/// Writes `schedule` over the one with the number before its own.
pub(super) async fn advance(conn: &Conn, schedule: &Schedule) -> Result<bool, Failure> {
    let (cron, timezone, request) = (plain(&schedule.cron), plain(&schedule.timezone), json(&schedule.request)?);
    let (missed, next_at, number) = (schedule.missed.as_str(), millis(schedule.next_at), integer(schedule.number));
    let last_run = schedule.last_run.map(|run| *run.as_uuid());
    let (last_at, last_error) = (millis(schedule.last_at), schedule.last_error.as_deref().map(plain));
    let params: [&(dyn ToSql + Sync); 11] = [
        &schedule.id,
        &cron,
        &timezone,
        &request,
        &missed,
        &schedule.enabled,
        &next_at,
        &number,
        &last_at,
        &last_run,
        &last_error,
    ];
    Ok(conn.execute(ADVANCE, &params).await? == 1)
}

/// Removes the tenant's schedule.
pub(super) async fn delete(conn: &Conn, tenant: &Tenant, id: Uuid) -> Result<bool, Failure> {
    let rows = conn.query(DELETE, &[&id, &plain(tenant.as_str())]).await?;
    let gone: i64 = rows.first().map_or(Ok(0), |row| row.try_get(0))?;
    Ok(gone == 1)
}

fn millis(time: Option<Timestamp>) -> Option<i64> {
    time.map(Timestamp::as_millis)
}

fn read(row: &Row) -> Result<Schedule, StoreError> {
    let mut columns = Columns::of(row);
    Ok(Schedule {
        id: columns.take()?,
        tenant: Tenant::new(columns.take::<&str>()?),
        cron: columns.take()?,
        timezone: columns.take()?,
        request: parse(columns.take()?)?,
        missed: columns.text(|text| text.parse::<Missed>().ok())?,
        enabled: columns.take()?,
        next_at: columns.optional_time()?,
        number: columns.number()?,
        last_at: columns.optional_time()?,
        last_run: columns.optional_id()?,
        last_error: columns.take()?,
        created_at: columns.time()?,
    })
}
