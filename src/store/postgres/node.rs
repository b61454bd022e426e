//! What is known of the store as a whole.

use super::conn::Conn;
use super::error::Failure;
use super::rows::{Columns, plain};
use super::schema;
use crate::store::{Agreement, Proposal, StoreError};

/// What was agreed on; now, if nothing was before.
pub(super) async fn agree(conn: &Conn, proposal: &Proposal, adopt: bool) -> Result<Agreement, Failure> {
    let sql = "INSERT INTO runcast_stores AS s (one, id, mode, namespace) VALUES (true, gen_random_uuid(), $1, $2) \
         ON CONFLICT (one) DO UPDATE SET mode = CASE WHEN $3 THEN EXCLUDED.mode ELSE s.mode END, \
         namespace = CASE WHEN $3 THEN EXCLUDED.namespace ELSE s.namespace END \
         RETURNING id, mode, namespace, (extract(epoch FROM clock_timestamp()) * 1000)::bigint";
    let rows = conn.query(sql, &[&plain(&proposal.mode), &plain(&proposal.namespace), &adopt]).await?;
    let row = rows.first().ok_or_else(|| StoreError::Corrupt("the table runcast_stores has no row".to_owned()))?;
    let mut columns = Columns::of(row);
    let (store, mode, namespace) = (columns.take()?, columns.take()?, columns.take()?);
    let (agreed, clock) = (Proposal { mode, namespace }, columns.time()?);
    Ok(Agreement { store, agreed, schema: schema::version(conn).await?, known_schema: schema::KNOWN, clock })
}

/// Reads a row and writes to the log of the database, which touches no table.
pub(super) async fn health(conn: &Conn) -> Result<(), Failure> {
    conn.query("SELECT 1 FROM runcast_runs LIMIT 1", &[]).await?;
    conn.query("SELECT pg_logical_emit_message(true, 'runcast', 'health')::text", &[]).await.map(drop)
}
