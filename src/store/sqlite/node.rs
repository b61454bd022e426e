//! What is known of the store as a whole.

use rusqlite::{Connection, OptionalExtension as _, params};
use uuid::Uuid;

use super::schema;
use crate::run::Timestamp;
use crate::store::{Agreement, Proposal, StoreError};

/// What was agreed on; now, if nothing was before.
pub(super) fn agree(conn: &Connection, proposal: &Proposal, adopt: bool) -> Result<Agreement, StoreError> {
    let mut found = read(conn)?;
    if found.is_none() {
        conn.prepare_cached("INSERT INTO stores (id, mode, namespace) VALUES (randomblob(16), ?, ?)")?
            .execute(params![proposal.mode, proposal.namespace])?;
        found = read(conn)?;
    } else if adopt {
        conn.prepare_cached("UPDATE stores SET mode = ?, namespace = ?")?
            .execute(params![proposal.mode, proposal.namespace])?;
        found = read(conn)?;
    }
    let (store, agreed) = found.ok_or_else(|| StoreError::Corrupt("the table stores has no row".to_owned()))?;
    let clock = conn
        .prepare_cached("SELECT CAST(unixepoch('subsec') * 1000 AS INTEGER)")?
        .query_row([], |row| Ok(Timestamp::from_millis(row.get(0)?)))?;
    let schema = schema::KNOWN;
    Ok(Agreement { store, agreed, schema, known_schema: schema, clock })
}

fn read(conn: &Connection) -> Result<Option<(Uuid, Proposal)>, StoreError> {
    let found = conn.prepare_cached("SELECT id, mode, namespace FROM stores")?.query_row([], |row| {
        Ok((Uuid::from_bytes(row.get(0)?), Proposal { mode: row.get(1)?, namespace: row.get(2)? }))
    });
    Ok(found.optional()?)
}
