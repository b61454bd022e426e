//! The tables: which version they are of, and how they are brought to the next.
//!
//! A version of the tables serves the program before it, too (expand first, contract in a later version), so that
//! nodes can be replaced one by one. The database says which programs can work with it: `runcast_schema` holds its
//! version, and the oldest version that a program may know and still work with it.

use std::time::Duration;

use tokio::time::timeout;

use super::conn::Conn;
use super::error::{Blame, Failure};
use super::options::PostgresOptions;
use crate::store::StoreError;

/// The steps from each version to the next. The version of a database is how many it has taken.
const MIGRATIONS: &[&str] = &[
    include_str!("schema_1.sql"),
    concat!(
        include_str!("schema_2_threads.sql"),
        include_str!("schema_2_schedules.sql"),
        include_str!("schema_2_webhooks.sql"),
        include_str!("schema_2_shares.sql"),
        include_str!("schema_2_ledger.sql"),
    ),
];

/// The version that databases are brought to.
pub(super) const KNOWN: u32 = MIGRATIONS.len() as u32;

/// How long the migrations may take before the connection is given up and they begin again.
const MIGRATION_LIMIT: Duration = Duration::from_secs(600);

/// What a migration found and did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Migrated {
    /// The version of the tables before; 0: there were none.
    pub from: u32,
    /// Their version now.
    pub to: u32,
}

/// Sees that this program can work with the tables; brings them up to date if that is wanted.
pub(super) async fn prepare(conn: &Conn, options: &PostgresOptions) -> Result<(), Failure> {
    let found = timeout(options.query_timeout, async {
        writable(conn).await?;
        version(conn).await
    });
    let found = found.await.map_err(|_| Failure::away("no answer in time"))??;
    if found >= KNOWN {
        return Ok(());
    }
    if !options.auto_migrate {
        return Err(StoreError::Foreign(format!(
            "the tables of {} are of version {found}, expected {KNOWN}: run `runcast migrate`",
            options.url
        ))
        .into());
    }
    migrate(conn).await.map(drop)
}

/// Brings the tables up to date. One node does it, in one transaction; the others wait a little, and come again.
pub(super) async fn migrate(conn: &Conn) -> Result<Migrated, Failure> {
    let migrated = timeout(MIGRATION_LIMIT, migrate_patiently(conn)).await;
    migrated.map_err(|_| Failure::away("the migration has not ended in time"))?
}

async fn migrate_patiently(conn: &Conn) -> Result<Migrated, Failure> {
    let client = conn.client();
    client.batch_execute("BEGIN").await?;
    // NULL, which locks nothing: there is no schema to create tables in, as the first migration will say.
    let lock = "SELECT pg_advisory_xact_lock(hashtextextended('runcast ' || current_schema(), 0))";
    client.batch_execute(lock).await.map_err(Failure::from).map_err(|failure| match failure.blame {
        Blame::Statement => StoreError::Unavailable("another node migrates the tables".to_owned()).into(),
        Blame::Connection | Blame::Other => failure,
    })?;
    client.batch_execute("SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0").await?;
    let from = version(conn).await?;
    for step in MIGRATIONS.iter().skip(from as usize) {
        client.batch_execute(step).await?;
    }
    if from < KNOWN {
        let (version, oldest) = (KNOWN, oldest(KNOWN));
        let write = format!(
            "DELETE FROM runcast_schema; INSERT INTO runcast_schema (version, oldest) VALUES ({version}, {oldest})"
        );
        client.batch_execute(&write).await?;
        tracing::info!(from, to = KNOWN, "migrated the tables");
    }
    client.batch_execute("COMMIT").await?;
    Ok(Migrated { from, to: from.max(KNOWN) })
}

/// Refuses a standby: it may become the primary, or another host of the URL is.
async fn writable(conn: &Conn) -> Result<(), Failure> {
    let row = conn.client().query_one("SELECT current_setting('transaction_read_only')", &[]).await?;
    match row.try_get(0)? {
        "off" => Ok(()),
        _ => Err(StoreError::ReadOnly("the server takes no writes, as a standby does not".to_owned()).into()),
    }
}

/// The version of the tables; 0: there are none. Refuses those that this program cannot work with.
pub(super) async fn version(conn: &Conn) -> Result<u32, Failure> {
    // Asked of the catalogue itself: a name that was looked up in vain may be remembered, and another node may have
    // made the tables since.
    let there = "SELECT EXISTS (SELECT FROM pg_class WHERE relname = 'runcast_schema' AND pg_table_is_visible(oid))";
    if !conn.client().query_one(there, &[]).await?.try_get::<_, bool>(0)? {
        return Ok(0);
    }
    let rows = conn.client().query("SELECT version, oldest FROM runcast_schema", &[]).await?;
    let [row] = &rows[..] else {
        return Err(StoreError::Corrupt(format!("the table runcast_schema has {} rows, expected 1", rows.len())).into());
    };
    let (version, oldest): (i32, i32) = (row.try_get(0)?, row.try_get(1)?);
    let number = |number: i32| u32::try_from(number).unwrap_or(0);
    if number(oldest) > KNOWN {
        return Err(StoreError::Foreign(format!(
            "the tables were written by a newer version of Runcast (their schema version is {version}, for programs \
             that know at least {oldest}; this one knows {KNOWN}): use that version, or another database"
        ))
        .into());
    }
    Ok(number(version))
}

/// The oldest version that a program may know and still work with tables of version `version`.
fn oldest(version: u32) -> u32 {
    version.saturating_sub(1).max(1)
}
