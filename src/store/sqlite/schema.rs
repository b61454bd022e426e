//! The file: its pragmas, whose it is, and its tables.

use std::path::Path;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};

use super::Synchronous;
use crate::store::StoreError;

/// `RCST`, in the header of the file.
const APPLICATION_ID: i32 = 0x5243_5354;

/// How long to wait for another program, such as the SQLite shell, that holds the file.
const BUSY: Duration = Duration::from_secs(2);

/// More than there are different statements.
const STATEMENTS: usize = 128;

/// The steps from each schema version to the next. The version of a file is how many it has taken.
const MIGRATIONS: &[&str] = &[
    include_str!("schema_1.sql"),
    include_str!("schema_2.sql"),
    concat!(
        include_str!("schema_3_threads.sql"),
        include_str!("schema_3_schedules.sql"),
        include_str!("schema_3_webhooks.sql"),
        include_str!("schema_3_shares.sql"),
        include_str!("schema_3_ledger.sql"),
    ),
];

/// The version that files are brought to.
pub(super) const KNOWN: u32 = MIGRATIONS.len() as u32;

/// Opens the database for the writer: creates it, or brings it up to date. Refuses what is not ours.
pub(super) fn open_writer(path: &Path, synchronous: Synchronous) -> Result<Connection, StoreError> {
    if path.is_dir() {
        return Err(StoreError::ReadOnly(format!("{} is a directory, expected a file", path.display())));
    }
    let opened = open(path, OpenFlags::SQLITE_OPEN_CREATE).and_then(|mut conn| {
        identify(&conn, path)?;
        conn.pragma_update(None, "journal_mode", "wal")?;
        conn.pragma_update(None, "synchronous", synchronous.pragma())?;
        // How many pages the log gathers before the writer itself copies what the checkpoint thread has left,
        // so that the log can start again; and what the log may keep after that.
        conn.pragma_update(None, "wal_autocheckpoint", 16_000)?;
        conn.pragma_update(None, "journal_size_limit", 64 << 20)?;
        conn.pragma_update(None, "cache_size", -4_096)?;
        migrate(&mut conn)?;
        Ok(conn)
    });
    opened.map_err(|error| naming(path, error))
}

/// Opens the database for a reader.
pub(super) fn open_reader(path: &Path) -> Result<Connection, StoreError> {
    let opened = open(path, OpenFlags::empty()).and_then(|conn| {
        conn.pragma_update(None, "cache_size", -1_024)?;
        conn.pragma_update(None, "query_only", true)?;
        Ok(conn)
    });
    opened.map_err(|error| naming(path, error))
}

/// Opens the database for the checkpoint thread.
pub(super) fn open_checkpointer(path: &Path) -> Result<Connection, StoreError> {
    let opened = open(path, OpenFlags::empty()).and_then(|conn| {
        // It makes nobody wait, and waits for nobody.
        conn.busy_timeout(Duration::ZERO)?;
        Ok(conn)
    });
    opened.map_err(|error| naming(path, error))
}

fn open(path: &Path, flags: OpenFlags) -> Result<Connection, StoreError> {
    // Each connection has one thread: SQLite's own locks would only cost.
    let flags = flags | OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(path, flags)?;
    conn.busy_timeout(BUSY)?;
    conn.set_prepared_statement_cache_capacity(STATEMENTS);
    // Otherwise SQLite peeks at parameters (such as that of LIMIT), and prepares again for each new value.
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    conn.pragma_update(None, "foreign_keys", false)?;
    conn.pragma_update(None, "temp_store", "memory")?;
    Ok(conn)
}

/// Whose file it is: ours, of a version we know, or an empty one.
fn identify(conn: &Connection, path: &Path) -> Result<(), StoreError> {
    if conn.is_readonly("main")? {
        return Err(StoreError::ReadOnly("expected a file that can be written to".to_owned()));
    }
    let application: i32 = conn.pragma_query_value(None, "application_id", |row| row.get(0))?;
    let tables: i64 = conn.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    let (version, known) = (version(conn)?, MIGRATIONS.len());
    if application != APPLICATION_ID && (application != 0 || tables > 0) {
        return Err(StoreError::Foreign(format!(
            "{} belongs to another program (its application id is {application:#x}, expected {APPLICATION_ID:#x}): \
             choose another file",
            path.display()
        )));
    }
    if version > known {
        return Err(StoreError::Foreign(format!(
            "{} was written by a newer version of Runcast (its schema version is {version}, expected at most {known}): \
             use that version, or choose another file",
            path.display()
        )));
    }
    Ok(())
}

fn version(conn: &Connection) -> Result<usize, StoreError> {
    let version: i64 = conn.pragma_query_value(None, "user_version", |row| row.get(0))?;
    usize::try_from(version).map_err(|_| StoreError::Foreign(format!("its schema version is {version}")))
}

fn migrate(conn: &mut Connection) -> Result<(), StoreError> {
    let version = version(conn)?;
    if version == MIGRATIONS.len() {
        return Ok(());
    }
    let transaction = conn.transaction()?;
    for step in &MIGRATIONS[version..] {
        transaction.execute_batch(step)?;
    }
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    set_version(&transaction)?;
    transaction.commit()?;
    Ok(())
}

/// Writes the schema version: the smallest write there is.
pub(super) fn set_version(conn: &Connection) -> Result<(), StoreError> {
    Ok(conn.pragma_update(None, "user_version", MIGRATIONS.len() as i64)?)
}

/// Adds to an error which file it is about.
fn naming(path: &Path, error: StoreError) -> StoreError {
    let path = path.display();
    match error {
        StoreError::Unavailable(text) => StoreError::Unavailable(format!("{path}: {text}")),
        StoreError::Full(text) => StoreError::Full(format!("{path}: {text}")),
        StoreError::ReadOnly(text) => StoreError::ReadOnly(format!("{path}: {text}")),
        StoreError::Corrupt(text) => {
            StoreError::Corrupt(format!("{path}: {text}; expected a database of Runcast, or no file"))
        }
        StoreError::Foreign(_) | StoreError::Misconfigured(_) | StoreError::InUse(_) | StoreError::Closed => error,
    }
}
