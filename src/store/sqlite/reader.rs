//! The threads that read, each on its own connection. In WAL mode they wait for nobody, and each query
//! sees everything that was committed before it began.

use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam_channel::Receiver;
use rusqlite::Connection;

use super::jobs::{Gate, Message};
use crate::store::StoreError;

/// The threads. They end, and are waited for, when this is dropped.
pub(super) struct Readers {
    gate: Arc<Gate<Connection>>,
    threads: Vec<JoinHandle<()>>,
}

impl Readers {
    /// Starts a thread for each connection.
    pub(super) fn start(connections: Vec<Connection>, capacity: usize) -> Result<Self, StoreError> {
        let (gate, work) = Gate::new(capacity, connections.len());
        let mut readers = Self { gate: Arc::new(gate), threads: Vec::new() };
        for (number, conn) in connections.into_iter().enumerate() {
            let (gate, work) = (readers.gate.clone(), work.clone());
            readers.threads.push(super::spawn(&format!("sqlite-reader-{number}"), move || run(conn, &work, &gate))?);
        }
        Ok(readers)
    }

    /// Where questions go in.
    pub(super) fn gate(&self) -> Arc<Gate<Connection>> {
        self.gate.clone()
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        self.gate.close();
        for thread in self.threads.drain(..) {
            // A thread that panicked has closed its connection all the same.
            drop(thread.join());
        }
    }
}

/// Runs jobs until the gate is closed.
fn run(mut conn: Connection, work: &Receiver<Message<Connection>>, gate: &Gate<Connection>) {
    while let Ok(Message::Work(mut job)) = work.recv() {
        // The job keeps its own error.
        drop(job.run(&mut conn));
        gate.finished(1);
        job.answer(None);
    }
}
