//! Copies the write-ahead log to the file beside the writer.
//!
//! A checkpoint syncs both files, which takes tens of milliseconds on many disks. SQLite would have the
//! writer do it, in the middle of somebody's commit. This thread does it often, so that little is left
//! when the writer's own turn comes: it still has to complete one now and then, since only then the log
//! starts from its beginning again.

use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{RecvTimeoutError, Sender, bounded};
use rusqlite::Connection;

use crate::store::StoreError;

/// The pause between two checkpoints. At full load a log of some 10 MB gathers in it.
const EVERY: Duration = Duration::from_millis(250);

/// The thread. It ends, and is waited for, when this is dropped.
pub(super) struct Checkpointer {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Checkpointer {
    /// Starts the thread on a connection of its own.
    pub(super) fn start(conn: Connection) -> Result<Self, StoreError> {
        let (stop, stopped) = bounded::<()>(0);
        let thread = super::spawn("sqlite-checkpoint", move || {
            while stopped.recv_timeout(EVERY) == Err(RecvTimeoutError::Timeout) {
                // What it cannot copy now, because of a reader or the writer, it copies the next time.
                if let Err(error) = checkpoint(&conn) {
                    tracing::warn!(%error, "cannot copy the write-ahead log to the database");
                }
            }
        })?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Checkpointer {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // If it panicked it has closed its connection all the same.
            drop(thread.join());
        }
    }
}

/// Copies what nobody is in the way of. Never waits, and makes nobody wait.
fn checkpoint(conn: &Connection) -> rusqlite::Result<()> {
    conn.prepare_cached("PRAGMA wal_checkpoint(PASSIVE)")?.query_row([], |_| Ok(()))
}
