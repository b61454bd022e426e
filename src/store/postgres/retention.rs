//! The removal of what is old.

use futures_util::future::try_join;
use uuid::Uuid;

use super::conn::Conn;
use super::error::Failure;
use super::rows::limit;
use crate::run::{RunId, Timestamp};

/// What another node removes, or somebody writes, is left to them.
const OLD: &str = "SELECT id FROM runcast_runs r WHERE finished_at < $1 AND NOT EXISTS (SELECT FROM runcast_deliveries \
     WHERE run_id = r.id AND status = 'pending' OFFSET 0) ORDER BY finished_at LIMIT $2 FOR UPDATE SKIP LOCKED";

/// By arrays, so that every table is entered by its index.
const REMOVE: &str = "WITH segments AS (DELETE FROM runcast_segments WHERE run_id = ANY($1)), \
     steps AS (DELETE FROM runcast_steps WHERE run_id = ANY($1)), \
     results AS (DELETE FROM runcast_results WHERE run_id = ANY($1)), \
     keys AS (DELETE FROM runcast_idempotency WHERE run_id = ANY($1)), \
     deliveries AS (DELETE FROM runcast_deliveries WHERE run_id = ANY($1) RETURNING id), \
     letters AS (DELETE FROM runcast_dead_letters WHERE id = ANY($1) OR id IN (SELECT id FROM deliveries)), \
     specs AS (DELETE FROM runcast_specs WHERE run_id = ANY($1)) \
     DELETE FROM runcast_runs WHERE id = ANY($1::uuid[])";

/// Removes runs that ended before `before`, oldest first.
pub(super) async fn remove_finished(conn: &Conn, before: Timestamp, most: usize) -> Result<Vec<RunId>, Failure> {
    let client = conn.client();
    let (old, remove) = (conn.prepare(OLD).await?, conn.prepare(REMOVE).await?);
    let (at, most) = (before.as_millis(), limit(most));
    let rows = try_join(client.batch_execute("BEGIN"), client.query(&old, &[&at, &most])).await?.1;
    let ids: Vec<Uuid> = rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?;
    if ids.is_empty() {
        client.batch_execute("COMMIT").await?;
        return Ok(Vec::new());
    }
    try_join(client.execute(&remove, &[&ids]), client.batch_execute("COMMIT")).await?;
    Ok(ids.into_iter().map(RunId::from_uuid).collect())
}
