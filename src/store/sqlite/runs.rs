//! Finding runs, removing them, counting them.

use std::collections::BTreeMap;

use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension as _, params, params_from_iter};

use super::rows::{Found, load, run_id};
use super::webhooks;
use super::writer::COUNTED;
use crate::run::{Reason, RunId, Status, Tenant};
use crate::store::shares::{Alike, Running, Subject, add_up};
use crate::store::spelling::{json, unsigned};
use crate::store::{Deleted, Depths, Head, Held, Limits, Queued, RunFilter, StoreError, TenantDepths};

/// The tenant's run `id`.
pub(super) fn get(conn: &Connection, tenant: &Tenant, id: RunId) -> Result<Option<Found>, StoreError> {
    Ok(load(conn, id)?.filter(|found| found.run.spec.tenant == *tenant))
}

/// Whose run `id` is.
pub(super) fn tenant_of(conn: &Connection, id: RunId) -> Result<Option<Tenant>, StoreError> {
    let tenant = conn
        .prepare_cached("SELECT tenant FROM runs WHERE id = ?")?
        .query_row([id.as_bytes()], |row| row.get::<_, String>(0))
        .optional()?;
    Ok(tenant.map(Tenant::new))
}

/// The tenant's runs that match, youngest first.
pub(super) fn list(
    conn: &mut Connection,
    tenant: &Tenant,
    filter: &RunFilter,
    limit: usize,
) -> Result<Vec<Found>, StoreError> {
    // Ids first, then the runs: both in one snapshot.
    let snapshot = conn.transaction()?;
    let mut ids = Vec::new();
    if filter.statuses.is_empty() {
        select(&snapshot, tenant, filter, None, limit, &mut ids)?;
    }
    for status in &filter.statuses {
        select(&snapshot, tenant, filter, Some(*status), limit, &mut ids)?;
    }
    ids.sort_unstable_by(|a, b| b.cmp(a));
    ids.dedup();
    ids.truncate(limit);
    ids.into_iter().filter_map(|id| load(&snapshot, id).transpose()).collect()
}

/// Appends the youngest ids that match, by the index that goes with the status.
fn select(
    conn: &Connection,
    tenant: &Tenant,
    filter: &RunFilter,
    status: Option<Status>,
    limit: usize,
    ids: &mut Vec<RunId>,
) -> Result<(), StoreError> {
    let index = match status {
        _ if filter.thread.is_some() => "runs_by_thread",
        None | Some(Status::Completed) => "runs_by_tenant",
        Some(Status::Queued) => "runs_queued",
        Some(
            Status::Scheduled
            | Status::Running
            | Status::Waiting
            | Status::Failed
            | Status::Cancelled
            | Status::Expired,
        ) => "runs_by_status",
    };
    let mut sql = format!("SELECT id FROM runs INDEXED BY {index} WHERE tenant = ?");
    let mut values = vec![Value::from(tenant.as_str().to_owned())];
    if let Some(status) = status {
        // As a literal: SQLite must see that the partial index applies.
        sql.push_str(&format!(" AND status = '{status}'"));
    }
    let mut both = |condition: &str, value: Value| {
        sql.push_str(condition);
        values.push(value);
    };
    if let Some(before) = filter.before {
        both(" AND id < ?", before.as_bytes().to_vec().into());
    }
    if let Some(agent) = &filter.agent {
        both(" AND agent = ?", agent.clone().into());
    }
    if let Some(thread) = &filter.thread {
        both(" AND thread_id = ?", thread.as_bytes().to_vec().into());
    }
    if let Some(after) = filter.created_after {
        both(" AND created_at >= ?", after.as_millis().into());
    }
    if let Some(before) = filter.created_before {
        both(" AND created_at < ?", before.as_millis().into());
    }
    for (key, value) in &filter.metadata {
        both(
            " AND EXISTS (SELECT 1 FROM specs, json_each(specs.metadata) label \
             WHERE specs.run_id = runs.id AND label.key = ?",
            key.clone().into(),
        );
        both(" AND label.value = ?)", value.clone().into());
    }
    both(" ORDER BY id DESC LIMIT ?", i64::try_from(limit).unwrap_or(i64::MAX).into());
    let mut statement = conn.prepare_cached(&sql)?;
    let mut rows = statement.query(params_from_iter(values))?;
    while let Some(row) = rows.next()? {
        ids.push(run_id(row.get(0)?));
    }
    Ok(())
}

/// Removes a final run with all that belongs to it.
pub(super) fn delete(conn: &Connection, tenant: &Tenant, id: RunId) -> Result<Deleted, StoreError> {
    let status: Option<String> = conn
        .prepare_cached("SELECT status FROM runs WHERE id = ? AND tenant = ?")?
        .query_row(params![id.as_bytes(), tenant.as_str()], |row| row.get(0))
        .optional()?;
    let Some(status) = status else { return Ok(Deleted::Missing) };
    match Status::parse(&status) {
        Some(status) if !status.is_final() => return Ok(Deleted::NotFinal(status)),
        // A status that nobody can read must not keep the run from being removed.
        Some(_) | None => {}
    }
    remove(conn, id)?;
    Ok(Deleted::Done)
}

/// Removes a run that has ended, with all that belongs to it.
pub(super) fn remove(conn: &Connection, id: RunId) -> Result<(), StoreError> {
    webhooks::forget_run(conn, id)?;
    // It has no timers.
    for sql in [
        "DELETE FROM segments WHERE run_id = ?",
        "DELETE FROM steps WHERE run_id = ?",
        "DELETE FROM results WHERE run_id = ?",
        "DELETE FROM commands WHERE run_id = ?",
        "DELETE FROM idempotency WHERE run_id = ?",
        "DELETE FROM dead_letters WHERE id = ?",
        "DELETE FROM specs WHERE run_id = ?",
        "DELETE FROM runs WHERE id = ?",
    ] {
        conn.prepare_cached(sql)?.execute([id.as_bytes()])?;
    }
    Ok(())
}

/// How many runs have each status that is not final.
pub(super) fn count(conn: &Connection) -> Result<[u64; 4], StoreError> {
    let mut counts = [0; 4];
    for (status, count) in COUNTED.into_iter().zip(&mut counts) {
        let index = if status == Status::Queued { "runs_queued" } else { "runs_by_status" };
        let sql = format!("SELECT count(*) FROM runs INDEXED BY {index} WHERE status = '{status}'");
        *count = conn.query_row(&sql, [], |row| row.get::<_, i64>(0)).map(unsigned)?;
    }
    Ok(counts)
}

/// The runs that are running, oldest first, with their attempts.
pub(super) fn running(conn: &Connection) -> Result<Vec<(RunId, u32)>, StoreError> {
    let mut statement =
        conn.prepare("SELECT id, attempt FROM runs INDEXED BY runs_by_status WHERE status = 'running'")?;
    let rows = statement.query_map([], |row| Ok((run_id(row.get(0)?), row.get(1)?)))?;
    let mut running = rows.collect::<Result<Vec<_>, _>>()?;
    running.sort_unstable();
    Ok(running)
}

/// Which of `owned` still are, and whether a cancel waits for their owners.
pub(super) fn held(conn: &mut Connection, owned: &[(RunId, u32)]) -> Result<Vec<Held>, StoreError> {
    let snapshot = conn.transaction()?;
    let mut statement = snapshot.prepare_cached(
        "SELECT EXISTS (SELECT 1 FROM commands WHERE run_id = runs.id) FROM runs \
         WHERE id = ? AND attempt = ? AND status = 'running'",
    )?;
    let mut held = Vec::new();
    for &(run, attempt) in owned {
        let found = statement.query_row(params![run.as_bytes(), attempt], |row| row.get(0)).optional()?;
        held.extend(found.map(|cancel_requested| Held { run, attempt, cancel_requested }));
    }
    Ok(held)
}

/// How the logs of `runs` stand.
pub(super) fn heads(conn: &mut Connection, runs: &[RunId]) -> Result<Vec<Head>, StoreError> {
    let snapshot = conn.transaction()?;
    let mut statement = snapshot.prepare_cached("SELECT last_seq, status FROM runs WHERE id = ?")?;
    let mut heads = Vec::new();
    for &run in runs {
        let found = statement.query_row([run.as_bytes()], |row| Ok((row.get(0)?, row.get::<_, String>(1)?)));
        if let Some((last_seq, status)) = found.optional()?
            && let Some(status) = Status::parse(&status)
        {
            heads.push(Head { run, last_seq: unsigned(last_seq), status });
        }
    }
    Ok(heads)
}

/// How many runs are queued for each agent and version, and how many of these the limits let begin.
pub(super) fn queued(conn: &mut Connection, limits: &Limits) -> Result<Vec<Queued>, StoreError> {
    let snapshot = conn.transaction()?;
    let named = |names: &BTreeMap<String, u64>| json(&names.keys().collect::<Vec<_>>());
    let mut running = Running::default();
    if !limits.is_empty() {
        let mut statement = snapshot.prepare_cached(
            "SELECT tenant, agent, concurrency_key, count(*) FROM runs INDEXED BY runs_by_status \
             WHERE status = 'running' GROUP BY tenant, agent, concurrency_key",
        )?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let (tenant, agent, key): (String, String, Option<String>) = (row.get(0)?, row.get(1)?, row.get(2)?);
            running.add_alike(Subject { tenant: &tenant, agent: &agent, key: key.as_deref() }, unsigned(row.get(3)?));
        }
    }
    let mut statement = snapshot.prepare_cached(
        "SELECT agent, agent_version, CASE WHEN tenant IN (SELECT value FROM json_each(?)) THEN tenant END, \
         CASE WHEN agent IN (SELECT value FROM json_each(?)) THEN concurrency_key END, count(*) \
         FROM runs INDEXED BY runs_queued WHERE status = 'queued' GROUP BY 1, 2, 3, 4",
    )?;
    let alike = statement.query_map([named(&limits.tenants)?, named(&limits.keys)?], |row| {
        let (agent, version, tenant, key) = (row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?);
        Ok(Alike { agent, version, tenant, key, runs: unsigned(row.get(4)?) })
    })?;
    Ok(add_up(alike.collect::<Result<_, _>>()?, limits, running))
}

/// How much waits where, but for what the counts know: those of queued runs by priority, of scheduled
/// runs by reason, and of dead letters.
pub(super) fn depths(conn: &mut Connection) -> Result<Depths, StoreError> {
    let snapshot = conn.transaction()?;
    let count = |sql: &str| -> Result<u64, StoreError> {
        Ok(snapshot.prepare_cached(sql)?.query_row([], |row| row.get(0).map(unsigned))?)
    };
    let status = |status: Status, condition: &str| {
        let index = if status == Status::Queued { "runs_queued" } else { "runs_by_status" };
        count(&format!("SELECT count(*) FROM runs INDEXED BY {index} WHERE status = '{status}' {condition}"))
    };
    let backoff = Reason::Backoff.as_str();
    Ok(Depths {
        pending: status(Status::Queued, "AND priority <= 0")?,
        high_priority: status(Status::Queued, "AND priority > 0")?,
        processing: status(Status::Running, "")?,
        retry: status(Status::Scheduled, &format!("AND reason = '{backoff}'"))?,
        scheduled: status(Status::Scheduled, &format!("AND reason IS NOT '{backoff}'"))?,
        waiting: status(Status::Waiting, "")?,
        failed: count("SELECT count(*) FROM dead_letters")?,
    })
}

/// What each tenant has queued and running.
pub(super) fn depths_by_tenant(conn: &mut Connection) -> Result<BTreeMap<Tenant, TenantDepths>, StoreError> {
    let snapshot = conn.transaction()?;
    let mut depths: BTreeMap<Tenant, TenantDepths> = BTreeMap::new();
    for (sql, running) in [
        ("SELECT tenant, count(*) FROM runs INDEXED BY runs_queued WHERE status = 'queued' GROUP BY tenant", false),
        ("SELECT tenant, count(*) FROM runs INDEXED BY runs_by_status WHERE status = 'running' GROUP BY tenant", true),
    ] {
        let mut statement = snapshot.prepare_cached(sql)?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let of_tenant = depths.entry(Tenant::new(row.get::<_, String>(0)?)).or_default();
            let count = if running { &mut of_tenant.running } else { &mut of_tenant.queued };
            *count = unsigned(row.get(1)?);
        }
    }
    Ok(depths)
}
