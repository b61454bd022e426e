//! Finding runs, removing them, counting them.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::{try_join, try_join3};
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::batch;
use super::conn::Conn;
use super::error::Failure;
use super::rows::{Columns, Found, LOAD, limit, line, plain};
use crate::run::{Reason, RunId, Status, Tenant, Timestamp};
use crate::store::shares::{Alike, Running, Subject, add_up};
use crate::store::{Deleted, Depths, Head, Held, Limits, Queued, RunFilter, StoreError, Stored, TenantDepths};

/// The tenant's run `id`.
pub(super) async fn get(conn: &Conn, tenant: &Tenant, id: RunId) -> Result<Option<Stored>, Failure> {
    let ids = [*id.as_uuid()];
    let rows = conn.query(LOAD, &[&&ids[..]]).await?;
    let found = rows.first().map(Found::read).transpose()?;
    let found = found.filter(|found| found.run.spec.tenant == *tenant);
    Ok(found.map(Found::into_stored).transpose()?)
}

/// Whose run `id` is.
pub(super) async fn tenant_of(conn: &Conn, id: RunId) -> Result<Option<Tenant>, Failure> {
    let rows = conn.query("SELECT tenant FROM runcast_runs WHERE id = $1", &[id.as_uuid()]).await?;
    Ok(rows.first().map(|row| row.try_get::<_, String>(0)).transpose()?.map(Tenant::new))
}

/// The tenant's runs that match, youngest first.
pub(super) async fn list(
    conn: &Conn,
    tenant: &Tenant,
    filter: &RunFilter,
    most: usize,
) -> Result<Vec<Stored>, Failure> {
    let before = filter.before.map_or(Uuid::max(), |before| *before.as_uuid());
    let agent = filter.agent.as_deref().map(plain);
    let after = filter.created_after.map_or(i64::MIN, Timestamp::as_millis);
    let until = filter.created_before.map_or(i64::MAX, Timestamp::as_millis);
    let labels: Vec<String> = filter.metadata.iter().map(|(key, value)| line(key, value)).collect::<Result<_, _>>()?;
    let tenant = plain(tenant.as_str());
    let (most, thread) = (limit(most), filter.thread.map(|thread| *thread.as_uuid()));
    let mut params: Vec<&(dyn ToSql + Sync)> = vec![&tenant, &before, &agent, &after, &until, &labels, &most];
    params.extend(thread.as_ref().map(|thread| thread as &(dyn ToSql + Sync)));
    let rows = conn.client().query(&page(&filter.statuses, thread.is_some()), &params).await?;
    let found = rows.iter().map(|row| Found::read(row).and_then(Found::into_stored));
    Ok(found.collect::<Result<_, _>>()?)
}

/// One statement, so that the runs are those whose ids were found. Each status is looked for by itself, as a
/// literal: the planner must see that a partial index applies. Those of one thread are few, and found by it.
fn page(statuses: &[Status], of_thread: bool) -> String {
    let runs = match of_thread {
        true => "(SELECT * FROM runcast_runs WHERE thread_id = $8 OFFSET 0)",
        false => "runcast_runs",
    };
    let select = |condition: &str| {
        format!(
            "(SELECT id FROM {runs} r WHERE tenant = $1 AND id < $2 {condition} \
             AND ($3::text IS NULL OR agent = $3) AND created_at >= $4 AND created_at < $5 \
             AND (cardinality($6::text[]) = 0 OR (SELECT bool_and(strpos(s.metadata, label) > 0) \
             FROM runcast_specs s, unnest($6::text[]) label WHERE s.run_id = r.id)) ORDER BY id DESC LIMIT $7)"
        )
    };
    let wanted: Vec<String> = Status::ALL
        .iter()
        .filter(|status| statuses.contains(status))
        .map(|status| select(&format!("AND status = '{status}'")))
        .collect();
    let ids = if wanted.is_empty() { select("") } else { wanted.join(" UNION ALL ") };
    let loaded = super::rows::load!("wanted");
    format!("WITH wanted AS (SELECT id FROM ({ids}) found ORDER BY id DESC LIMIT $7) {loaded} ORDER BY r.id DESC")
}

/// Removes a final run with all that belongs to it.
pub(super) async fn delete(conn: &Conn, tenant: &Tenant, id: RunId) -> Result<Deleted, Failure> {
    const LOCK: &str = "SELECT status FROM runcast_runs WHERE id = $1 AND tenant = $2 FOR UPDATE";
    // A run that has ended has no timers.
    const DELETE: &str = "WITH segments AS (DELETE FROM runcast_segments WHERE run_id = $1), \
         steps AS (DELETE FROM runcast_steps WHERE run_id = $1), \
         results AS (DELETE FROM runcast_results WHERE run_id = $1), \
         keys AS (DELETE FROM runcast_idempotency WHERE run_id = $1), \
         letters AS (DELETE FROM runcast_dead_letters \
         WHERE id = $1 OR id IN (SELECT id FROM runcast_deliveries WHERE run_id = $1)), \
         deliveries AS (DELETE FROM runcast_deliveries WHERE run_id = $1), \
         specs AS (DELETE FROM runcast_specs WHERE run_id = $1) \
         DELETE FROM runcast_runs WHERE id = $1";
    let (client, id, tenant) = (conn.client(), id.as_uuid(), plain(tenant.as_str()));
    let (lock, delete) = (conn.prepare(LOCK).await?, conn.prepare(DELETE).await?);
    let locked = try_join(client.batch_execute("BEGIN"), client.query(&lock, &[id, &tenant])).await?.1;
    let status = locked.first().map(|row| row.try_get::<_, &str>(0)).transpose()?;
    let refused = match status.map(Status::parse) {
        None => Some(Deleted::Missing),
        Some(Some(status)) if !status.is_final() => Some(Deleted::NotFinal(status)),
        // A status that nobody can read must not keep the run from being removed.
        Some(Some(_) | None) => None,
    };
    if let Some(refused) = refused {
        client.batch_execute("COMMIT").await?;
        return Ok(refused);
    }
    try_join(client.execute(&delete, &[id]), client.batch_execute("COMMIT")).await?;
    Ok(Deleted::Done)
}

/// How many runs have each status that is not final.
pub(super) async fn counts(conn: &Conn) -> Result<BTreeMap<Status, u64>, Failure> {
    const COUNT: &str = "SELECT (SELECT count(*) FROM runcast_runs WHERE status = 'scheduled'), \
         (SELECT count(*) FROM runcast_runs WHERE status = 'queued'), \
         (SELECT count(*) FROM runcast_runs WHERE status = 'running'), \
         (SELECT count(*) FROM runcast_runs WHERE status = 'waiting')";
    let row = one(conn.query(COUNT, &[]).await?)?;
    let mut columns = Columns::of(&row);
    let mut counts = BTreeMap::new();
    for status in [Status::Scheduled, Status::Queued, Status::Running, Status::Waiting] {
        counts.insert(status, columns.number()?);
    }
    Ok(counts)
}

/// How much waits where.
pub(super) async fn depths(conn: &Conn) -> Result<Depths, Failure> {
    const COUNT: &str = "SELECT (SELECT count(*) FROM runcast_runs WHERE status = 'queued' AND priority <= 0), \
         (SELECT count(*) FROM runcast_runs WHERE status = 'queued' AND priority > 0), \
         (SELECT count(*) FROM runcast_runs WHERE status = 'running'), \
         (SELECT count(*) FROM runcast_runs WHERE status = 'scheduled' AND reason = $1), \
         (SELECT count(*) FROM runcast_runs WHERE status = 'scheduled' AND reason IS DISTINCT FROM $1), \
         (SELECT count(*) FROM runcast_runs WHERE status = 'waiting'), \
         (SELECT count(*) FROM runcast_dead_letters)";
    let row = one(conn.query(COUNT, &[&Reason::Backoff.as_str()]).await?)?;
    let mut columns = Columns::of(&row);
    Ok(Depths {
        pending: columns.number()?,
        high_priority: columns.number()?,
        processing: columns.number()?,
        retry: columns.number()?,
        scheduled: columns.number()?,
        waiting: columns.number()?,
        failed: columns.number()?,
    })
}

fn one(rows: Vec<tokio_postgres::Row>) -> Result<tokio_postgres::Row, StoreError> {
    rows.into_iter().next().ok_or_else(|| StoreError::Corrupt("a count has no row".to_owned()))
}

/// Extends the leases of those of `owned` that still are, by the clock of the database.
pub(super) async fn extend(conn: &Conn, owned: &[(RunId, u32)], lease: Duration) -> Result<Vec<Held>, Failure> {
    const EXTEND: &str = "UPDATE runcast_runs r \
         SET lease_until = clock_timestamp() + $3::bigint * interval '1 millisecond' \
         FROM unnest($1::uuid[], $2::bigint[]) AS i(id, attempt) \
         WHERE r.id = i.id AND r.attempt = i.attempt AND r.status = $4 \
         RETURNING r.id, r.attempt, r.cancel_requested";
    if owned.is_empty() {
        return Ok(Vec::new());
    }
    // In the order in which every batch locks its rows.
    let mut owned = owned.to_vec();
    owned.sort_unstable();
    let ids: Vec<Uuid> = owned.iter().map(|(run, _)| *run.as_uuid()).collect();
    let attempts: Vec<i64> = owned.iter().map(|(_, attempt)| i64::from(*attempt)).collect();
    let lease = i64::try_from(lease.as_millis()).unwrap_or(i64::MAX);
    let (client, extend) = (conn.client(), conn.prepare(EXTEND).await?);
    let params: super::conn::Params<'_> = &[&ids, &attempts, &lease, &Status::Running.as_str()];
    let extended = client.query(&extend, params);
    let rows = try_join3(client.batch_execute(batch::BEGIN), extended, client.batch_execute("COMMIT")).await?.1;
    let held = rows.iter().map(|row| {
        let mut columns = Columns::of(row);
        let (run, attempt) = (columns.id()?, columns.number()?);
        let attempt = u32::try_from(attempt).unwrap_or(u32::MAX);
        Ok(Held { run, attempt, cancel_requested: columns.take()? })
    });
    Ok(held.collect::<Result<_, StoreError>>()?)
}

/// How the logs of `runs` stand.
pub(super) async fn heads(conn: &Conn, runs: &[RunId]) -> Result<Vec<Head>, Failure> {
    const HEADS: &str = "SELECT r.id, r.last_seq, r.status FROM unnest($1::uuid[]) AS wanted(id) \
         CROSS JOIN LATERAL (SELECT * FROM runcast_runs WHERE id = wanted.id OFFSET 0) r";
    let ids: Vec<Uuid> = runs.iter().map(|run| *run.as_uuid()).collect();
    let rows = conn.query(HEADS, &[&ids]).await?;
    let heads = rows.iter().map(|row| {
        let mut columns = Columns::of(row);
        Ok(Head { run: columns.id()?, last_seq: columns.number()?, status: columns.text(Status::parse)? })
    });
    Ok(heads.collect::<Result<_, StoreError>>()?)
}

/// How many runs are queued for each agent and version, and how many of these the limits let begin.
pub(super) async fn queued(conn: &Conn, limits: &Limits) -> Result<Vec<Queued>, Failure> {
    const QUEUED: &str = "SELECT agent, agent_version, CASE WHEN tenant = ANY ($1::text[]) THEN tenant END, \
         CASE WHEN agent = ANY ($2::text[]) THEN concurrency_key END, count(*) FROM runcast_runs \
         WHERE status = 'queued' GROUP BY 1, 2, 3, 4";
    const UNLIMITED: &str = "SELECT agent, agent_version, NULL::text, NULL::text, count(*) FROM runcast_runs \
         WHERE status = 'queued' GROUP BY agent, agent_version";
    const RUNNING: &str = "SELECT tenant, agent, concurrency_key, count(*) FROM runcast_runs WHERE status = 'running' \
         GROUP BY tenant, agent, concurrency_key";
    let named = |names: &BTreeMap<String, u64>| names.keys().map(|name| plain(name).into_owned()).collect::<Vec<_>>();
    let mut running = Running::default();
    let rows = if limits.is_empty() {
        conn.query(UNLIMITED, &[]).await?
    } else {
        for row in conn.query(RUNNING, &[]).await? {
            let mut columns = Columns::of(&row);
            let (tenant, agent, key): (String, String, Option<String>) =
                (columns.take()?, columns.take()?, columns.take()?);
            running.add_alike(Subject { tenant: &tenant, agent: &agent, key: key.as_deref() }, columns.number()?);
        }
        conn.query(QUEUED, &[&named(&limits.tenants), &named(&limits.keys)]).await?
    };
    let alike = rows.iter().map(|row| {
        let mut columns = Columns::of(row);
        let (agent, version, tenant) = (columns.take()?, columns.take()?, columns.take()?);
        Ok(Alike { agent, version, tenant, key: columns.take()?, runs: columns.number()? })
    });
    Ok(add_up(alike.collect::<Result<_, StoreError>>()?, limits, running))
}

/// What each tenant has queued and running.
pub(super) async fn depths_by_tenant(conn: &Conn) -> Result<BTreeMap<Tenant, TenantDepths>, Failure> {
    const DEPTHS: &str = "SELECT tenant, sum(queued)::bigint, sum(running)::bigint FROM \
         (SELECT tenant, count(*) AS queued, 0 AS running FROM runcast_runs WHERE status = 'queued' GROUP BY tenant \
         UNION ALL SELECT tenant, 0, count(*) FROM runcast_runs WHERE status = 'running' GROUP BY tenant) counted \
         GROUP BY tenant";
    let rows = conn.query(DEPTHS, &[]).await?;
    let depths = rows.iter().map(|row| {
        let mut columns = Columns::of(row);
        let tenant = columns.text(|text| Some(Tenant::new(text)))?;
        Ok((tenant, TenantDepths { queued: columns.number()?, running: columns.number()? }))
    });
    Ok(depths.collect::<Result<_, StoreError>>()?)
}
