//! Webhook endpoints, and the outbox of what is to be told them.

use std::time::Duration;

use rusqlite::{Connection, OptionalExtension as _, Row, params};
use uuid::Uuid;

use super::create::{keep, used};
use super::dead_letters;
use super::rows::run_id;
use super::writer::Writer;
use crate::run::{Run, RunId, Segment, Status, Tenant, ThreadId, Timestamp, WebhookEvent};
use crate::store::spelling::{integer, json, parse, unreadable, unsigned};
use crate::store::webhooks::{AT_ONCE, DISABLED};
use crate::store::{
    Delivery, DeliveryFilter, DeliveryStatus, Due, Endpoint, EndpointCreated, EndpointPatch, IdempotencyKey,
    Redelivered, Rotated, Settled, Settlement, StoreError, ThreadNews,
};

macro_rules! endpoint_columns {
    () => {
        "e.id, e.tenant, e.url, e.events, e.agent, e.enabled, e.secret_version, e.rotated_at, e.created_at"
    };
}

macro_rules! delivery_columns {
    () => {
        "d.id, d.tenant, d.endpoint_id, d.event, d.run_id, d.thread_id, d.data, d.at, d.status, d.attempts, d.due_at, \
         d.answer, d.error, d.settled_at"
    };
}

/// How many columns those are.
const DELIVERY_COLUMNS: usize = 14;

/// When the last event of a segment was recorded.
pub(super) fn recorded(segment: Option<&Segment>) -> Option<Timestamp> {
    segment?.marks().last().map(|mark| mark.at)
}

/// Puts into the outbox what is to be told of a run that was `from` before, changed at `at`.
pub(super) fn put(writer: &Writer, run: &Run, from: Status, at: Option<Timestamp>) -> Result<(), StoreError> {
    let Some(event) = WebhookEvent::of(run.status).filter(|_| run.status != from) else { return Ok(()) };
    let spec = &*run.spec;
    let at = at.or(run.finished_at).unwrap_or(spec.created_at);
    let mut insert = Insert { event, tenant: &spec.tenant, run: Some(spec.id), thread: None, data: None, at };
    let conn = writer.conn();
    if writer.has_endpoints()? {
        insert.for_endpoints(conn, Some(&spec.agent))?;
    }
    if spec.webhook.as_ref().is_some_and(|webhook| webhook.events.contains(&event)) {
        insert.one(conn, None)?;
    }
    Ok(())
}

/// Puts news of a thread into the outbox. Part of the transaction that changes the thread.
pub(super) fn put_thread(conn: &Connection, news: &ThreadNews) -> Result<(), StoreError> {
    let ThreadNews { tenant, thread, event, data, at } = news;
    Insert { event: *event, tenant, run: None, thread: Some(thread), data: Some(data), at: *at }
        .for_endpoints(conn, None)
}

/// A delivery to be inserted.
struct Insert<'a> {
    event: WebhookEvent,
    tenant: &'a Tenant,
    run: Option<RunId>,
    thread: Option<&'a str>,
    data: Option<&'a str>,
    at: Timestamp,
}

impl Insert<'_> {
    /// One for every endpoint that wants it; `agent` is whose the run is.
    fn for_endpoints(&mut self, conn: &Connection, agent: Option<&str>) -> Result<(), StoreError> {
        let mut statement = conn.prepare_cached(
            "SELECT id FROM webhook_endpoints WHERE tenant = ? AND enabled \
             AND EXISTS (SELECT 1 FROM json_each(events) WHERE value = ?) AND (agent IS NULL OR agent IS ?) ORDER BY id",
        )?;
        let mut rows = statement.query(params![self.tenant.as_str(), self.event.as_str(), agent])?;
        while let Some(row) = rows.next()? {
            self.one(conn, Some(row.get(0)?))?;
        }
        Ok(())
    }

    fn one(&mut self, conn: &Connection, endpoint: Option<[u8; 16]>) -> Result<(), StoreError> {
        conn.prepare_cached(
            "INSERT INTO deliveries (id, tenant, endpoint_id, event, run_id, thread_id, data, at, status, attempts, \
             due_at, claim, claimed) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, 'pending', 0, ?8, 0, 0)",
        )?
        .execute(params![
            Uuid::now_v7().as_bytes(),
            self.tenant.as_str(),
            endpoint,
            self.event.as_str(),
            self.run.as_ref().map(RunId::as_bytes),
            self.thread,
            self.data,
            self.at.as_millis()
        ])?;
        Ok(())
    }
}

/// Makes due what the last process has claimed: nobody sends it any more.
pub(super) fn reopen(conn: &Connection) -> Result<(), StoreError> {
    conn.execute("UPDATE deliveries SET due_at = at, claimed = 0 WHERE status = 'pending' AND claimed", [])?;
    Ok(())
}

/// Removes what belongs to a thread that is removed.
pub(super) fn forget_thread(conn: &Connection, id: ThreadId) -> Result<(), StoreError> {
    for sql in [
        "DELETE FROM dead_letters WHERE id IN (SELECT id FROM deliveries WHERE thread_id = ?)",
        "DELETE FROM deliveries WHERE thread_id = ?",
    ] {
        conn.prepare_cached(sql)?.execute([id.to_string()])?;
    }
    Ok(())
}

/// Removes what belongs to a run that is removed.
pub(super) fn forget_run(conn: &Connection, id: RunId) -> Result<(), StoreError> {
    for sql in [
        "DELETE FROM dead_letters WHERE id IN (SELECT id FROM deliveries WHERE run_id = ?)",
        "DELETE FROM deliveries WHERE run_id = ?",
    ] {
        conn.prepare_cached(sql)?.execute([id.as_bytes()])?;
    }
    Ok(())
}

/// Keeps a new endpoint.
pub(super) fn create(
    writer: &Writer,
    endpoint: &Endpoint,
    key: Option<&IdempotencyKey>,
    most: u64,
) -> Result<EndpointCreated, StoreError> {
    let (conn, tenant) = (writer.conn(), endpoint.tenant.as_str());
    if let Some(key) = key
        && let Some((fingerprint, id)) = used(conn, &endpoint.tenant, key)?
    {
        let existing = get(conn, &endpoint.tenant, id)?.filter(|_| fingerprint == key.fingerprint);
        return Ok(existing.map_or(EndpointCreated::KeyReused, EndpointCreated::Existing));
    }
    let count = "SELECT count(*) FROM webhook_endpoints WHERE tenant = ?";
    let there: i64 = conn.prepare_cached(count)?.query_row([tenant], |row| row.get(0))?;
    if unsigned(there) >= most {
        return Ok(EndpointCreated::TooMany);
    }
    conn.prepare_cached(
        "INSERT INTO webhook_endpoints (id, tenant, url, events, agent, enabled, secret_version, rotated_at, \
         created_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )?
    .execute(params![
        endpoint.id.as_bytes(),
        tenant,
        endpoint.url,
        json(&endpoint.events)?,
        endpoint.agent,
        endpoint.enabled,
        endpoint.secret_version,
        endpoint.rotated_at.map(Timestamp::as_millis),
        endpoint.created_at.as_millis()
    ])?;
    if let Some(key) = key {
        keep(conn, &endpoint.tenant, key, endpoint.id, endpoint.created_at)?;
    }
    writer.endpoint_made();
    Ok(EndpointCreated::New)
}

/// The tenant's endpoint `id`.
pub(super) fn get(conn: &Connection, tenant: &Tenant, id: Uuid) -> Result<Option<Endpoint>, StoreError> {
    let sql = concat!("SELECT ", endpoint_columns!(), " FROM webhook_endpoints e WHERE id = ? AND tenant = ?");
    let found =
        conn.prepare_cached(sql)?.query_row(params![id.as_bytes(), tenant.as_str()], |row| Ok(endpoint(row, 0)));
    found.optional()?.transpose()
}

/// The tenant's endpoints, oldest first.
pub(super) fn list(
    conn: &Connection,
    tenant: &Tenant,
    after: Option<Uuid>,
    limit: usize,
) -> Result<Vec<Endpoint>, StoreError> {
    let sql = concat!(
        "SELECT ",
        endpoint_columns!(),
        " FROM webhook_endpoints e WHERE tenant = ? AND id > ? ORDER BY id LIMIT ?"
    );
    let (after, limit) = (after.unwrap_or(Uuid::nil()), i64::try_from(limit).unwrap_or(i64::MAX));
    let mut statement = conn.prepare_cached(sql)?;
    let found = statement.query_map(params![tenant.as_str(), after.as_bytes(), limit], |row| Ok(endpoint(row, 0)))?;
    found.map(|found| found?).collect()
}

/// Changes an endpoint.
pub(super) fn patch(
    conn: &Connection,
    tenant: &Tenant,
    id: Uuid,
    patch: &EndpointPatch,
    now: Timestamp,
) -> Result<Option<Endpoint>, StoreError> {
    let Some(mut endpoint) = get(conn, tenant, id)? else { return Ok(None) };
    let EndpointPatch { url, events, agent, enabled, still_at } = patch.clone();
    if still_at.is_some_and(|url| url != endpoint.url) {
        return Ok(Some(endpoint));
    }
    endpoint.url = url.unwrap_or(endpoint.url);
    endpoint.events = events.unwrap_or(endpoint.events);
    endpoint.agent = agent.unwrap_or(endpoint.agent);
    endpoint.enabled = enabled.unwrap_or(endpoint.enabled);
    conn.prepare_cached("UPDATE webhook_endpoints SET url = ?, events = ?, agent = ?, enabled = ? WHERE id = ?")?
        .execute(params![endpoint.url, json(&endpoint.events)?, endpoint.agent, endpoint.enabled, id.as_bytes()])?;
    if !endpoint.enabled {
        conn.prepare_cached(
            "UPDATE deliveries SET status = 'dead', error = ?, settled_at = ?, claimed = 0 WHERE id IN \
             (SELECT id FROM deliveries WHERE endpoint_id = ? AND status = 'pending' LIMIT ?)",
        )?
        .execute(params![DISABLED, now.as_millis(), id.as_bytes(), integer(AT_ONCE)])?;
    }
    Ok(Some(endpoint))
}

/// Raises the version of an endpoint's secret, once for the key.
pub(super) fn rotate(
    conn: &Connection,
    tenant: &Tenant,
    id: Uuid,
    key: Option<&IdempotencyKey>,
    now: Timestamp,
) -> Result<Rotated, StoreError> {
    let before = key.map(|key| used(conn, tenant, key)).transpose()?.flatten();
    if key.zip(before).is_some_and(|(key, (fingerprint, _))| fingerprint != key.fingerprint) {
        return Ok(Rotated::KeyReused);
    }
    let Some(endpoint) = get(conn, tenant, id)? else { return Ok(Rotated::Missing) };
    if before.is_some() {
        return Ok(Rotated::Done(endpoint));
    }
    let endpoint =
        Endpoint { secret_version: endpoint.secret_version.saturating_add(1), rotated_at: Some(now), ..endpoint };
    conn.prepare_cached("UPDATE webhook_endpoints SET secret_version = ?, rotated_at = ? WHERE id = ?")?
        .execute(params![endpoint.secret_version, now.as_millis(), id.as_bytes()])?;
    if let Some(key) = key {
        keep(conn, tenant, key, id, now)?;
    }
    Ok(Rotated::Done(endpoint))
}

/// Removes an endpoint with its deliveries.
pub(super) fn delete(conn: &Connection, tenant: &Tenant, id: Uuid) -> Result<bool, StoreError> {
    let sql = "DELETE FROM webhook_endpoints WHERE id = ? AND tenant = ?";
    if conn.prepare_cached(sql)?.execute(params![id.as_bytes(), tenant.as_str()])? == 0 {
        return Ok(false);
    }
    for sql in [
        "DELETE FROM dead_letters WHERE id IN (SELECT id FROM deliveries WHERE endpoint_id = ? LIMIT ?)",
        "DELETE FROM deliveries WHERE id IN (SELECT id FROM deliveries WHERE endpoint_id = ? LIMIT ?)",
    ] {
        conn.prepare_cached(sql)?.execute(params![id.as_bytes(), integer(AT_ONCE)])?;
    }
    conn.prepare_cached("DELETE FROM idempotency WHERE run_id = ?")?.execute([id.as_bytes()])?;
    Ok(true)
}

/// Whether anything is due: most of the time nothing is, and the writer need not be asked.
pub(super) fn is_due(conn: &Connection, now: Timestamp) -> Result<bool, StoreError> {
    let sql = "SELECT 1 FROM deliveries INDEXED BY deliveries_due WHERE status = 'pending' AND due_at <= ? LIMIT 1";
    Ok(conn.prepare_cached(sql)?.exists([now.as_millis()])?)
}

/// Claims deliveries that are due.
pub(super) fn claim(conn: &Connection, now: Timestamp, lease: Duration, limit: usize) -> Result<Vec<Due>, StoreError> {
    let ids: Vec<[u8; 16]> = {
        let mut statement = conn.prepare_cached(
            "SELECT id FROM deliveries INDEXED BY deliveries_due WHERE status = 'pending' AND due_at <= ? \
             ORDER BY due_at LIMIT ?",
        )?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let found = statement.query_map(params![now.as_millis(), limit], |row| row.get(0))?;
        found.collect::<Result<_, _>>()?
    };
    let mut due = Vec::with_capacity(ids.len());
    let load = concat!(
        "SELECT ",
        delivery_columns!(),
        ", d.claim, ",
        endpoint_columns!(),
        " FROM deliveries d LEFT JOIN webhook_endpoints e ON e.id = d.endpoint_id WHERE d.id = ?"
    );
    for id in ids {
        conn.prepare_cached("UPDATE deliveries SET claim = claim + 1, claimed = 1, due_at = ? WHERE id = ?")?
            .execute(params![now.after(lease).as_millis(), id])?;
        match conn.prepare_cached(load)?.query_row([id], |row| Ok(read_due(row)))? {
            Ok(claimed) => due.push(claimed),
            // One that cannot be read must not keep all others from being sent.
            Err(error) => tracing::error!(delivery = %Uuid::from_bytes(id), %error, "a delivery cannot be read"),
        }
    }
    Ok(due)
}

/// Writes what became of a claimed delivery.
pub(super) fn settle(conn: &Connection, settled: &Settled, now: Timestamp) -> Result<bool, StoreError> {
    let (status, due, charged, answer, error) = match &settled.settlement {
        Settlement::Delivered(answer) => (DeliveryStatus::Delivered, None, true, Some(*answer), None),
        Settlement::Retry { after, answer, error } => {
            (DeliveryStatus::Pending, Some(now.after(*after)), true, *answer, Some(error))
        }
        Settlement::Postponed(after) => (DeliveryStatus::Pending, Some(now.after(*after)), false, None, None),
        Settlement::Dead { sent, answer, error, .. } => (DeliveryStatus::Dead, None, *sent, *answer, Some(error)),
    };
    // What was not sent says nothing new.
    let written = conn
        .prepare_cached(
            "UPDATE deliveries SET status = ?1, due_at = coalesce(?2, due_at), attempts = attempts + ?3, \
             answer = CASE WHEN ?3 THEN ?4 ELSE answer END, error = CASE WHEN ?3 OR ?1 = 'dead' THEN ?5 ELSE error END, \
             settled_at = ?6, claimed = 0 WHERE id = ?7 AND claim = ?8 AND status = 'pending'",
        )?
        .execute(params![
            status.as_str(),
            due.map(Timestamp::as_millis),
            charged,
            answer,
            error,
            (status != DeliveryStatus::Pending).then_some(now.as_millis()),
            settled.id.as_bytes(),
            integer(settled.claim)
        ])?;
    if let Settlement::Dead { letter: Some(letter), .. } = &settled.settlement
        && written > 0
    {
        dead_letters::bury(conn, letter)?;
    }
    Ok(written > 0)
}

/// The tenant's deliveries that match, youngest first.
pub(super) fn deliveries(
    conn: &Connection,
    tenant: &Tenant,
    filter: &DeliveryFilter,
    limit: usize,
) -> Result<Vec<Delivery>, StoreError> {
    let (at, id) = filter.after.map_or((i64::MAX, Uuid::max()), |(at, id)| (at.as_millis(), id));
    let mut sql = concat!(
        "SELECT ",
        delivery_columns!(),
        " FROM deliveries d WHERE tenant = ?1 AND (at, id) < (?2, ?3) AND (?4 IS NULL OR status = ?4)"
    )
    .to_owned();
    if filter.endpoint.is_some() {
        sql += " AND endpoint_id = ?6";
    }
    sql += " ORDER BY at DESC, id DESC LIMIT ?5";
    let mut statement = conn.prepare_cached(&sql)?;
    let (status, limit) = (filter.status.map(DeliveryStatus::as_str), i64::try_from(limit).unwrap_or(i64::MAX));
    let read = |row: &Row<'_>| Ok(delivery(row));
    let found: Vec<_> = match filter.endpoint {
        Some(endpoint) => statement
            .query_map(params![tenant.as_str(), at, id.as_bytes(), status, limit, endpoint.as_bytes()], read)?
            .collect::<Result<_, _>>()?,
        None => statement
            .query_map(params![tenant.as_str(), at, id.as_bytes(), status, limit], read)?
            .collect::<Result<_, _>>()?,
    };
    found.into_iter().collect()
}

/// Makes a delivery that has ended due again.
pub(super) fn redeliver(
    conn: &Connection,
    tenant: &Tenant,
    id: Uuid,
    now: Timestamp,
) -> Result<Redelivered, StoreError> {
    let sql = concat!(
        "SELECT ",
        delivery_columns!(),
        ", d.endpoint_id IS NULL OR coalesce(e.enabled, 0) \
         FROM deliveries d LEFT JOIN webhook_endpoints e ON e.id = d.endpoint_id WHERE d.id = ? AND d.tenant = ?"
    );
    let load = |conn: &Connection| -> Result<_, StoreError> {
        let found = conn
            .prepare_cached(sql)?
            .query_row(params![id.as_bytes(), tenant.as_str()], |row| {
                Ok((delivery(row), row.get::<_, bool>(DELIVERY_COLUMNS)?))
            })
            .optional()?;
        found.map(|(delivery, enabled)| Ok((delivery?, enabled))).transpose()
    };
    let Some((mut delivery, enabled)) = load(conn)? else { return Ok(Redelivered::Missing) };
    if delivery.status != DeliveryStatus::Pending {
        if !enabled {
            return Ok(Redelivered::Disabled);
        }
        conn.prepare_cached(
            "UPDATE deliveries SET status = 'pending', attempts = 0, due_at = ?, answer = NULL, error = NULL, \
             settled_at = NULL WHERE id = ?",
        )?
        .execute(params![now.as_millis(), id.as_bytes()])?;
        conn.prepare_cached("DELETE FROM dead_letters WHERE id = ?")?.execute([id.as_bytes()])?;
        delivery = load(conn)?.map_or(delivery, |(delivery, _)| delivery);
    }
    Ok(Redelivered::Pending(Box::new(delivery)))
}

/// Removes deliveries that ended before `before`, with their letters.
pub(super) fn forget(conn: &Connection, before: Timestamp, limit: usize) -> Result<u64, StoreError> {
    let old: Vec<[u8; 16]> = {
        let mut statement = conn.prepare_cached(
            "SELECT id FROM deliveries INDEXED BY deliveries_settled \
             WHERE status <> 'pending' AND settled_at < ? ORDER BY settled_at LIMIT ?",
        )?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let found = statement.query_map(params![before.as_millis(), limit], |row| row.get(0))?;
        found.collect::<Result<_, _>>()?
    };
    for sql in ["DELETE FROM dead_letters WHERE id = ?", "DELETE FROM deliveries WHERE id = ?"] {
        let mut statement = conn.prepare_cached(sql)?;
        for id in &old {
            statement.execute([id])?;
        }
    }
    Ok(old.len() as u64)
}

fn read_due(row: &Row<'_>) -> Result<Due, StoreError> {
    let claim = unsigned(row.get(DELIVERY_COLUMNS)?);
    let known = row.get::<_, Option<[u8; 16]>>(DELIVERY_COLUMNS + 1)?;
    let endpoint = known.map(|_| endpoint(row, DELIVERY_COLUMNS + 1)).transpose()?;
    Ok(Due { delivery: delivery(row)?, endpoint, claim })
}

/// Reads [`endpoint_columns`], the first of which is number `first`.
fn endpoint(row: &Row<'_>, first: usize) -> Result<Endpoint, StoreError> {
    Ok(Endpoint {
        id: Uuid::from_bytes(row.get(first)?),
        tenant: Tenant::new(row.get::<_, String>(first + 1)?),
        url: row.get(first + 2)?,
        events: parse(&row.get::<_, String>(first + 3)?)?,
        agent: row.get(first + 4)?,
        enabled: row.get(first + 5)?,
        secret_version: row.get(first + 6)?,
        rotated_at: row.get::<_, Option<i64>>(first + 7)?.map(Timestamp::from_millis),
        created_at: Timestamp::from_millis(row.get(first + 8)?),
    })
}

/// Reads [`delivery_columns`].
fn delivery(row: &Row<'_>) -> Result<Delivery, StoreError> {
    let (event, status): (String, String) = (row.get(3)?, row.get(8)?);
    Ok(Delivery {
        id: Uuid::from_bytes(row.get(0)?),
        tenant: Tenant::new(row.get::<_, String>(1)?),
        endpoint: row.get::<_, Option<_>>(2)?.map(Uuid::from_bytes),
        event: WebhookEvent::parse(&event).ok_or_else(|| unreadable("the event of a delivery", event))?,
        run: row.get::<_, Option<_>>(4)?.map(run_id),
        thread: row.get(5)?,
        data: row.get(6)?,
        at: Timestamp::from_millis(row.get(7)?),
        status: DeliveryStatus::parse(&status).ok_or_else(|| unreadable("the status of a delivery", status))?,
        attempts: row.get(9)?,
        due_at: Timestamp::from_millis(row.get(10)?),
        answer: row.get(11)?,
        error: row.get(12)?,
        settled_at: row.get::<_, Option<i64>>(13)?.map(Timestamp::from_millis),
    })
}
