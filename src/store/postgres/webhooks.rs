//! Webhook endpoints, and the outbox of what is to be told them.
//!
//! What is to be told of a run goes into the outbox within the statement that changes the run, by
//! [`insert_deliveries`]: there is nothing to it in the usual case, in which no run of the batch has come to anything
//! that is told. When deliveries are due, and who has claimed them until when, is by the clock of the database.

use std::time::Duration;

use futures_util::future::try_join;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::conn::Conn;
use super::create::{keep, used};
use super::error::Failure;
use super::rows::{Columns, limit, plain};
use crate::run::{Run, RunId, Segment, Status, Tenant, Timestamp, WebhookEvent};
use crate::store::spelling::{integer, unreadable};
use crate::store::webhooks::{AT_ONCE, DISABLED};
use crate::store::{
    DeadLetter, Delivery, DeliveryFilter, DeliveryStatus, Due, Endpoint, EndpointCreated, EndpointPatch,
    IdempotencyKey, Redelivered, Rotated, Settled, Settlement, StoreError, ThreadNews,
};

/// Inserts a delivery of each of the news for every endpoint that wants it, and for the run's own webhook, if the run
/// is among the rows of `changed`. The parameters are those of [`News::params`], from the named ones on.
macro_rules! insert_deliveries {
    ($run:literal, $tenant:literal, $agent:literal, $event:literal, $at:literal, $own:literal) => {
        concat!(
            "news AS MATERIALIZED (SELECT n.* FROM unnest(",
            $run,
            "::uuid[], ",
            $tenant,
            "::text[], ",
            $agent,
            "::text[], ",
            $event,
            "::text[], ",
            $at,
            "::bigint[], ",
            $own,
            "::bool[]) AS n(run, tenant, agent, event, at, own) WHERE n.run IN (SELECT id FROM changed)), \
             told AS (INSERT INTO runcast_deliveries (id, tenant, endpoint_id, event, run_id, at, status, attempts, \
             due_at, claim) SELECT gen_random_uuid(), n.tenant, e.id, n.event, n.run, n.at, 'pending', 0, \
             clock_timestamp(), 0 FROM news n CROSS JOIN LATERAL (SELECT w.id FROM runcast_webhook_endpoints w \
             WHERE w.tenant = n.tenant AND w.enabled AND n.event = ANY (w.events) \
             AND (w.agent IS NULL OR w.agent = n.agent) \
             UNION ALL SELECT NULL::uuid WHERE n.own OFFSET 0) e)"
        )
    };
}
pub(super) use insert_deliveries;

macro_rules! endpoint_columns {
    () => {
        "e.id, e.tenant, e.url, e.events, e.agent, e.enabled, e.secret_version, e.rotated_at, e.created_at"
    };
}

macro_rules! delivery_columns {
    () => {
        "d.id, d.tenant, d.endpoint_id, d.event, d.run_id, d.thread_id, d.data, d.at, d.status, d.attempts, \
         (extract(epoch FROM d.due_at) * 1000)::bigint, d.answer, d.error, d.settled_at"
    };
}

/// What is to be told of runs that change, as arrays, one a column.
#[derive(Default)]
pub(super) struct News {
    run: Vec<Uuid>,
    tenant: Vec<String>,
    agent: Vec<String>,
    event: Vec<&'static str>,
    at: Vec<i64>,
    own: Vec<bool>,
}

impl News {
    /// Adds what is to be told of a run that was `from` before and is changed by `segment`, if anything.
    pub(super) fn push(&mut self, run: &Run, from: Status, segment: Option<&Segment>) {
        let Some(event) = WebhookEvent::of(run.status).filter(|_| run.status != from) else { return };
        let spec = &*run.spec;
        let recorded = segment.and_then(|segment| segment.marks().last()).map(|mark| mark.at);
        self.run.push(*spec.id.as_uuid());
        self.tenant.push(plain(spec.tenant.as_str()).into_owned());
        self.agent.push(plain(&spec.agent).into_owned());
        self.event.push(event.as_str());
        self.at.push(recorded.or(run.finished_at).unwrap_or(spec.created_at).as_millis());
        self.own.push(spec.webhook.as_ref().is_some_and(|webhook| webhook.events.contains(&event)));
    }

    /// The parameters of [`insert_deliveries`].
    pub(super) fn params(&self) -> [&(dyn ToSql + Sync); 6] {
        [&self.run, &self.tenant, &self.agent, &self.event, &self.at, &self.own]
    }
}

/// Puts news of a thread into the outbox. Part of the transaction that changes the thread, if one has begun.
pub(super) async fn put_thread(conn: &Conn, news: &ThreadNews) -> Result<(), Failure> {
    const PUT: &str = "INSERT INTO runcast_deliveries (id, tenant, endpoint_id, event, thread_id, data, at, status, \
         attempts, due_at, claim) SELECT gen_random_uuid(), $1::text, id, $2::text, $3::text, $4::text, \
         $5::bigint, 'pending', 0, clock_timestamp(), 0 FROM runcast_webhook_endpoints WHERE tenant = $1 AND enabled AND $2 = ANY (events) AND agent IS NULL";
    let (tenant, thread) = (plain(news.tenant.as_str()), plain(&news.thread));
    conn.execute(PUT, &[&tenant, &news.event.as_str(), &thread, &news.data, &news.at.as_millis()]).await.map(drop)
}

/// Keeps a new endpoint.
pub(super) async fn create(
    conn: &Conn,
    endpoint: &Endpoint,
    key: Option<&IdempotencyKey>,
    most: u64,
) -> Result<EndpointCreated, Failure> {
    // Requests of one tenant come one after the other, so that they count each other's endpoints.
    const LOCK: &str = "SELECT pg_advisory_xact_lock(hashtextextended('runcast endpoints ' || $1, 0))";
    const USED: &str = "SELECT fingerprint, run_id FROM runcast_idempotency \
         WHERE tenant = $1 AND route = $2 AND key = $3 AND kept_at >= $4";
    const INSERT: &str = "INSERT INTO runcast_webhook_endpoints (id, tenant, url, events, agent, enabled, \
         secret_version, rotated_at, created_at) SELECT $1::uuid, $2::text, $3::text, $4::text[], $5::text, $6::bool, \
         $7::bigint, $8::bigint, $9::bigint \
         WHERE (SELECT count(*) FROM runcast_webhook_endpoints WHERE tenant = $2) < $10";
    const KEEP: &str = "INSERT INTO runcast_idempotency (tenant, route, key, fingerprint, run_id, kept_at) \
         VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (tenant, route, key) DO UPDATE \
         SET fingerprint = EXCLUDED.fingerprint, run_id = EXCLUDED.run_id, kept_at = EXCLUDED.kept_at";
    let (client, tenant) = (conn.client(), plain(endpoint.tenant.as_str()));
    client.batch_execute("BEGIN").await?;
    conn.query(LOCK, &[&tenant]).await?;
    let name = key.map(|key| plain(&key.key));
    if let (Some(key), Some(name)) = (key, &name) {
        let found = conn.query(USED, &[&tenant, &key.route, name, &key.valid_after.as_millis()]).await?;
        if let Some(row) = found.first() {
            let (fingerprint, id): (&[u8], Uuid) = (row.try_get(0)?, row.try_get(1)?);
            let same = fingerprint == key.fingerprint;
            let existing = if same { get(conn, &endpoint.tenant, id).await? } else { None };
            client.batch_execute("COMMIT").await?;
            return Ok(existing.map_or(EndpointCreated::KeyReused, EndpointCreated::Existing));
        }
    }
    let events = words(&endpoint.events);
    let created = conn
        .execute(
            INSERT,
            &[
                &endpoint.id,
                &tenant,
                &plain(&endpoint.url),
                &events,
                &endpoint.agent.as_deref().map(plain),
                &endpoint.enabled,
                &i64::from(endpoint.secret_version),
                &endpoint.rotated_at.map(Timestamp::as_millis),
                &endpoint.created_at.as_millis(),
                &integer(most),
            ],
        )
        .await?;
    if let (Some(key), Some(name), 1) = (key, &name, created) {
        let kept = endpoint.created_at.as_millis();
        conn.execute(KEEP, &[&tenant, &key.route, name, &&key.fingerprint[..], &endpoint.id, &kept]).await?;
    }
    client.batch_execute("COMMIT").await?;
    Ok(if created == 1 { EndpointCreated::New } else { EndpointCreated::TooMany })
}

fn words(events: &[WebhookEvent]) -> Vec<&'static str> {
    events.iter().map(|event| event.as_str()).collect()
}

/// The tenant's endpoint `id`.
pub(super) async fn get(conn: &Conn, tenant: &Tenant, id: Uuid) -> Result<Option<Endpoint>, Failure> {
    const GET: &str =
        concat!("SELECT ", endpoint_columns!(), " FROM runcast_webhook_endpoints e WHERE e.id = $1 AND e.tenant = $2");
    one(&conn.query(GET, &[&id, &plain(tenant.as_str())]).await?)
}

fn one(rows: &[Row]) -> Result<Option<Endpoint>, Failure> {
    Ok(rows.first().map(|row| endpoint(&mut Columns::of(row))).transpose()?.flatten())
}

/// The tenant's endpoints, oldest first.
pub(super) async fn list(
    conn: &Conn,
    tenant: &Tenant,
    after: Option<Uuid>,
    most: usize,
) -> Result<Vec<Endpoint>, Failure> {
    const LIST: &str = concat!(
        "SELECT ",
        endpoint_columns!(),
        " FROM runcast_webhook_endpoints e WHERE e.tenant = $1 AND e.id > $2 ORDER BY e.id LIMIT $3"
    );
    let rows = conn.query(LIST, &[&plain(tenant.as_str()), &after.unwrap_or(Uuid::nil()), &limit(most)]).await?;
    let found = rows.iter().filter_map(|row| endpoint(&mut Columns::of(row)).transpose());
    Ok(found.collect::<Result<_, _>>()?)
}

/// Changes an endpoint.
pub(super) async fn patch(
    conn: &Conn,
    tenant: &Tenant,
    id: Uuid,
    patch: &EndpointPatch,
    now: Timestamp,
) -> Result<Option<Endpoint>, Failure> {
    const PATCH: &str = concat!(
        "WITH e AS (UPDATE runcast_webhook_endpoints SET url = coalesce($3::text, url), \
         events = coalesce($4::text[], events), agent = CASE WHEN $5::bool THEN $6::text ELSE agent END, enabled = coalesce($7::bool, enabled) \
         WHERE id = $1 AND tenant = $2 AND ($10::text IS NULL OR url = $10) RETURNING *), \
         dropped AS (UPDATE runcast_deliveries SET status = 'dead', error = $8, settled_at = $9 WHERE id IN \
         (SELECT d.id FROM runcast_deliveries d, e \
         WHERE NOT e.enabled AND d.endpoint_id = e.id AND d.status = 'pending' LIMIT $11)) SELECT ",
        endpoint_columns!(),
        " FROM e"
    );
    let EndpointPatch { url, events, agent, enabled, still_at } = patch;
    let params: [&(dyn ToSql + Sync); 11] = [
        &id,
        &plain(tenant.as_str()),
        &url.as_deref().map(plain),
        &events.as_deref().map(words),
        &agent.is_some(),
        &agent.as_ref().and_then(Option::as_deref).map(plain),
        enabled,
        &DISABLED,
        &now.as_millis(),
        &still_at.as_deref().map(plain),
        &integer(AT_ONCE),
    ];
    match one(&conn.query(PATCH, &params).await?)? {
        None if still_at.is_some() => get(conn, tenant, id).await,
        patched => Ok(patched),
    }
}

/// Raises the version of an endpoint's secret, once for the key.
pub(super) async fn rotate(
    conn: &Conn,
    tenant: &Tenant,
    id: Uuid,
    key: Option<&IdempotencyKey>,
    now: Timestamp,
) -> Result<Rotated, Failure> {
    let client = conn.client();
    client.batch_execute("BEGIN").await?;
    let rotated = rotate_once(conn, tenant, id, key, now).await?;
    // What is refused leaves nothing behind.
    let end = if let Rotated::Done(_) = rotated { "COMMIT" } else { "ROLLBACK" };
    client.batch_execute(end).await?;
    Ok(rotated)
}

async fn rotate_once(
    conn: &Conn,
    tenant: &Tenant,
    id: Uuid,
    key: Option<&IdempotencyKey>,
    now: Timestamp,
) -> Result<Rotated, Failure> {
    // Rotations of one endpoint come one after the other, so that they see each other's keys.
    const LOCK: &str = "SELECT id FROM runcast_webhook_endpoints WHERE id = $1 AND tenant = $2 FOR UPDATE";
    const ROTATE: &str = concat!(
        "UPDATE runcast_webhook_endpoints e SET secret_version = secret_version + 1, rotated_at = $3 \
         WHERE id = $1 AND tenant = $2 RETURNING ",
        endpoint_columns!()
    );
    let owner = plain(tenant.as_str());
    if let Some(key) = key {
        conn.query(LOCK, &[&id, &owner]).await?;
        if let Some((fingerprint, _)) = used(conn, tenant, key).await? {
            if fingerprint != key.fingerprint {
                return Ok(Rotated::KeyReused);
            }
            return Ok(get(conn, tenant, id).await?.map_or(Rotated::Missing, Rotated::Done));
        }
    }
    let rotated = one(&conn.query(ROTATE, &[&id, &owner, &now.as_millis()]).await?)?;
    let Some(endpoint) = rotated else { return Ok(Rotated::Missing) };
    match key {
        // Another endpoint's rotation was first.
        Some(key) if !keep(conn, tenant, key, id, now).await? => Ok(Rotated::KeyReused),
        Some(_) | None => Ok(Rotated::Done(endpoint)),
    }
}

/// Removes an endpoint with its deliveries.
pub(super) async fn delete(conn: &Conn, tenant: &Tenant, id: Uuid) -> Result<bool, Failure> {
    const DELETE: &str = "WITH e AS (DELETE FROM runcast_webhook_endpoints WHERE id = $1 AND tenant = $2 RETURNING id), \
         d AS (DELETE FROM runcast_deliveries WHERE id IN (SELECT d.id FROM runcast_deliveries d, e \
         WHERE d.endpoint_id = e.id LIMIT $3) RETURNING id), \
         letters AS (DELETE FROM runcast_dead_letters WHERE id IN (SELECT id FROM d)), \
         keys AS (DELETE FROM runcast_idempotency WHERE run_id IN (SELECT id FROM e)) SELECT id FROM e";
    Ok(!conn.query(DELETE, &[&id, &plain(tenant.as_str()), &integer(AT_ONCE)]).await?.is_empty())
}

/// Claims deliveries that are due. Those that someone else claims just now are left to them.
pub(super) async fn claim(conn: &Conn, lease: Duration, most: usize) -> Result<Vec<Due>, Failure> {
    const CLAIM: &str = concat!(
        "WITH due AS MATERIALIZED (SELECT id FROM runcast_deliveries \
         WHERE status = 'pending' AND due_at <= clock_timestamp() ORDER BY due_at LIMIT $1 FOR UPDATE SKIP LOCKED), \
         d AS (UPDATE runcast_deliveries SET claim = claim + 1, \
         due_at = clock_timestamp() + $2::bigint * interval '1 millisecond' \
         WHERE id IN (SELECT id FROM due) RETURNING *) SELECT ",
        delivery_columns!(),
        ", d.claim, ",
        endpoint_columns!(),
        " FROM d LEFT JOIN runcast_webhook_endpoints e ON e.id = d.endpoint_id"
    );
    let lease = i64::try_from(lease.as_millis()).unwrap_or(i64::MAX);
    let mut claimed = Vec::new();
    for row in conn.query(CLAIM, &[&limit(most), &lease]).await? {
        match due(&row) {
            Ok(due) => claimed.push(due),
            // One that cannot be read must not keep all others from being sent.
            Err(error) => tracing::error!(%error, "a delivery cannot be read"),
        }
    }
    Ok(claimed)
}

/// Writes what became of a claimed delivery.
pub(super) async fn settle(conn: &Conn, settled: &Settled, now: Timestamp) -> Result<bool, Failure> {
    // What was not sent says nothing new.
    const SETTLE: &str = "WITH d AS (UPDATE runcast_deliveries SET status = $3::text, \
         due_at = coalesce(clock_timestamp() + $4::bigint * interval '1 millisecond', due_at), \
         attempts = attempts + CASE WHEN $5::bool THEN 1 ELSE 0 END, \
         answer = CASE WHEN $5 THEN $6::bigint ELSE answer END, \
         error = CASE WHEN $5 OR $3 = 'dead' THEN $7::text ELSE error END, settled_at = $8::bigint \
         WHERE id = $1 AND claim = $2 AND status = 'pending' RETURNING id), \
         letters AS (INSERT INTO runcast_dead_letters (id, at, source, run_id, reason, payload) \
         SELECT id, $9::bigint, $10::text, NULL, $11::text, $12::bytea FROM d \
         WHERE $9::bigint IS NOT NULL ON CONFLICT DO NOTHING) SELECT id FROM d";
    let (status, wait, charged, answer, error, letter) = match &settled.settlement {
        Settlement::Delivered(answer) => (DeliveryStatus::Delivered, None, true, Some(*answer), None, None),
        Settlement::Retry { after, answer, error } => {
            (DeliveryStatus::Pending, Some(*after), true, *answer, Some(error), None)
        }
        Settlement::Postponed(after) => (DeliveryStatus::Pending, Some(*after), false, None, None, None),
        Settlement::Dead { sent, answer, error, letter } => {
            (DeliveryStatus::Dead, None, *sent, *answer, Some(error), letter.as_deref())
        }
    };
    let wait = wait.map(|wait| i64::try_from(wait.as_millis()).unwrap_or(i64::MAX));
    let text = |text: fn(&DeadLetter) -> &str| letter.map(|letter| plain(text(letter)));
    let params: [&(dyn ToSql + Sync); 12] = [
        &settled.id,
        &integer(settled.claim),
        &status.as_str(),
        &wait,
        &charged,
        &answer.map(i64::from),
        &error.map(|error| plain(error)),
        &(status != DeliveryStatus::Pending).then_some(now.as_millis()),
        &letter.map(|letter| letter.at.as_millis()),
        &text(|letter| &letter.source),
        &text(|letter| &letter.reason),
        &letter.map(|letter| &*letter.payload),
    ];
    Ok(!conn.query(SETTLE, &params).await?.is_empty())
}

/// The tenant's deliveries that match, youngest first.
pub(super) async fn deliveries(
    conn: &Conn,
    tenant: &Tenant,
    filter: &DeliveryFilter,
    most: usize,
) -> Result<Vec<Delivery>, Failure> {
    const LIST: &str = concat!(
        "SELECT ",
        delivery_columns!(),
        " FROM runcast_deliveries d WHERE d.tenant = $1 AND (d.at, d.id) < ($2, $3) \
         AND ($4::text IS NULL OR d.status = $4) ORDER BY d.at DESC, d.id DESC LIMIT $5"
    );
    const OF_ENDPOINT: &str = concat!(
        "SELECT ",
        delivery_columns!(),
        " FROM runcast_deliveries d WHERE d.tenant = $1 AND (d.at, d.id) < ($2, $3) AND d.endpoint_id = $6 \
         AND ($4::text IS NULL OR d.status = $4) ORDER BY d.at DESC, d.id DESC LIMIT $5"
    );
    let (at, id) = filter.after.map_or((i64::MAX, Uuid::max()), |(at, id)| (at.as_millis(), id));
    let (tenant, status, most) = (plain(tenant.as_str()), filter.status.map(DeliveryStatus::as_str), limit(most));
    let rows = match &filter.endpoint {
        Some(endpoint) => conn.query(OF_ENDPOINT, &[&tenant, &at, &id, &status, &most, endpoint]).await?,
        None => conn.query(LIST, &[&tenant, &at, &id, &status, &most]).await?,
    };
    Ok(rows.iter().map(|row| delivery(&mut Columns::of(row))).collect::<Result<_, _>>()?)
}

/// Makes a delivery that has ended due again.
pub(super) async fn redeliver(conn: &Conn, tenant: &Tenant, id: Uuid) -> Result<Redelivered, Failure> {
    const LOCK: &str = concat!(
        "SELECT ",
        delivery_columns!(),
        ", d.endpoint_id IS NULL OR coalesce((SELECT enabled FROM runcast_webhook_endpoints WHERE id = d.endpoint_id), \
         false) FROM runcast_deliveries d WHERE d.id = $1 AND d.tenant = $2 FOR UPDATE OF d"
    );
    const AGAIN: &str = concat!(
        "WITH letters AS (DELETE FROM runcast_dead_letters WHERE id = $1) \
         UPDATE runcast_deliveries d SET status = 'pending', attempts = 0, due_at = clock_timestamp(), answer = NULL, \
         error = NULL, settled_at = NULL WHERE d.id = $1 RETURNING ",
        delivery_columns!()
    );
    let client = conn.client();
    let (lock, again) = (conn.prepare(LOCK).await?, conn.prepare(AGAIN).await?);
    let tenant = plain(tenant.as_str());
    let rows = try_join(client.batch_execute("BEGIN"), client.query(&lock, &[&id, &tenant])).await?.1;
    let mut redelivered = Redelivered::Missing;
    if let Some(row) = rows.first() {
        let mut columns = Columns::of(row);
        let (found, enabled) = (delivery(&mut columns)?, columns.take::<bool>()?);
        redelivered = match found.status {
            DeliveryStatus::Pending => Redelivered::Pending(Box::new(found)),
            DeliveryStatus::Delivered | DeliveryStatus::Dead if !enabled => Redelivered::Disabled,
            DeliveryStatus::Delivered | DeliveryStatus::Dead => {
                let rows = client.query(&again, &[&id]).await?;
                let row = rows.first().ok_or_else(|| unreadable("a delivery", "it is gone though locked"))?;
                Redelivered::Pending(Box::new(delivery(&mut Columns::of(row))?))
            }
        };
    }
    client.batch_execute("COMMIT").await?;
    Ok(redelivered)
}

/// Removes deliveries that ended before `before`, with their letters.
pub(super) async fn forget(conn: &Conn, before: Timestamp, most: usize) -> Result<u64, Failure> {
    const FORGET: &str = "WITH old AS (DELETE FROM runcast_deliveries WHERE id IN (SELECT id FROM runcast_deliveries \
         WHERE status <> 'pending' AND settled_at < $1 ORDER BY settled_at LIMIT $2 FOR UPDATE SKIP LOCKED) \
         RETURNING id), letters AS (DELETE FROM runcast_dead_letters WHERE id IN (SELECT id FROM old)) \
         SELECT id FROM old";
    Ok(conn.query(FORGET, &[&before.as_millis(), &limit(most)]).await?.len() as u64)
}

fn due(row: &Row) -> Result<Due, StoreError> {
    let mut columns = Columns::of(row);
    let (delivery, claim) = (delivery(&mut columns)?, columns.number()?);
    Ok(Due { delivery, endpoint: endpoint(&mut columns)?, claim })
}

/// Reads [`endpoint_columns`]; none, if they are all empty.
fn endpoint(columns: &mut Columns<'_>) -> Result<Option<Endpoint>, StoreError> {
    let Some(id) = columns.take::<Option<Uuid>>()? else { return Ok(None) };
    let tenant = columns.text(|text| Some(Tenant::new(text)))?;
    let (url, events): (_, Vec<&str>) = (columns.take()?, columns.take()?);
    let known = |text: &&str| WebhookEvent::parse(text).ok_or_else(|| unreadable("an event of an endpoint", text));
    Ok(Some(Endpoint {
        id,
        tenant,
        url,
        events: events.iter().map(known).collect::<Result<_, _>>()?,
        agent: columns.take()?,
        enabled: columns.take()?,
        secret_version: columns.small("secret_version")?,
        rotated_at: columns.optional_time()?,
        created_at: columns.time()?,
    }))
}

/// Reads [`delivery_columns`].
fn delivery(columns: &mut Columns<'_>) -> Result<Delivery, StoreError> {
    Ok(Delivery {
        id: columns.take()?,
        tenant: columns.text(|text| Some(Tenant::new(text)))?,
        endpoint: columns.take()?,
        event: columns.text(WebhookEvent::parse)?,
        run: columns.take::<Option<Uuid>>()?.map(RunId::from_uuid),
        thread: columns.take()?,
        data: columns.take()?,
        at: columns.time()?,
        status: columns.text(DeliveryStatus::parse)?,
        attempts: columns.small("attempts")?,
        due_at: columns.time()?,
        answer: columns.take::<Option<i64>>()?.and_then(|answer| u16::try_from(answer).ok()),
        error: columns.take()?,
        settled_at: columns.optional_time()?,
    })
}
