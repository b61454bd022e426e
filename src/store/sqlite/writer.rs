//! The one thread that writes: everything that waits goes into one transaction (group commit).
//!
//! An item that fails must undo what it has written, and nothing else. A savepoint for each would do, but SQLite then
//! copies every page for every item that writes to it. So a batch begins without them; when an item fails the batch is
//! undone, and done once more without that item, in savepoints.

use std::cell::Cell;
use std::sync::Arc;

use crossbeam_channel::Receiver;
use parking_lot::Mutex;
use rusqlite::Connection;

use super::answers::Answers;
use super::jobs::{Gate, Job, Message};
use super::shares::{Place, Shares};
use crate::run::{Run, RunId, Spec, Status, Tenant};
use crate::store::StoreError;
use crate::store::shares::Running;

/// At most so many jobs share a transaction. Bounds how long the first of them waits.
const BATCH: usize = 512;

/// How many runs have each status that is not final, as of the last commit.
pub(super) type Counts = Mutex<[u64; 4]>;

/// Where a status is counted.
pub(super) const COUNTED: [Status; 4] = [Status::Scheduled, Status::Queued, Status::Running, Status::Waiting];

/// What jobs write with.
pub(super) struct Writer {
    conn: Connection,
    committed: [u64; 4],
    pending: Pending,
    /// The runs that were running when the store was opened, and their attempts: nobody owns them.
    orphans: Vec<(RunId, u32)>,
    /// So many of them are taken care of.
    adopted: usize,
    /// The queues in memory.
    shares: Shares,
    /// An item of the current transaction has failed: each has a savepoint.
    cautious: bool,
    /// Some tenant has a webhook endpoint. Not known until it is asked for in the current transaction.
    endpoints: Cell<Option<bool>>,
}

/// What the current transaction changes in memory. It counts once the transaction is committed.
#[derive(Debug, Clone, Copy, Default)]
struct Pending {
    counts: [i64; 4],
    adopted: usize,
}

impl Writer {
    /// A writer on `conn`.
    pub(super) fn new(conn: Connection, counts: [u64; 4], orphans: Vec<(RunId, u32)>, shares: Shares) -> Self {
        Self {
            conn,
            committed: counts,
            pending: Pending::default(),
            orphans,
            adopted: 0,
            shares,
            cautious: false,
            endpoints: Cell::new(None),
        }
    }

    /// The connection, within a transaction.
    pub(super) fn conn(&self) -> &Connection {
        &self.conn
    }

    /// The rank of a run that becomes queued, by whichever way; to be written with its status, and told to
    /// [`moved`](Self::moved). `place` is the one it had.
    pub(super) fn rank(&self, run: &Run, place: Place) -> i64 {
        self.shares.rank(run, place)
    }

    /// Counts a run that goes from one status to another. None: it did not exist. `rank` is its own, where it matters:
    /// when it is queued for the first time, and when it is claimed.
    pub(super) fn moved(&mut self, spec: &Arc<Spec>, from: Option<Status>, to: Status, rank: i64) {
        self.shares.moved(spec, from, to, rank);
        for (status, pending) in COUNTED.iter().zip(&mut self.pending.counts) {
            *pending += i64::from(*status == to) - i64::from(Some(*status) == from);
        }
    }

    /// How many runs wait for a time or a worker.
    pub(super) fn waiting(&self) -> u64 {
        let now = self.counts();
        now[0] + now[1]
    }

    /// How many runs of the tenant wait for a time or a worker.
    pub(super) fn waiting_of(&self, tenant: &Tenant) -> u64 {
        self.shares.waiting(tenant)
    }

    /// All that is counted in memory, and as it would be if the store was opened now.
    #[cfg(test)]
    pub(super) fn tallies(&self) -> Result<[Vec<String>; 2], StoreError> {
        Ok([self.shares.tally(), Shares::read(&self.conn)?.tally()])
    }

    /// How many runs are running.
    pub(super) fn running(&self) -> &Running {
        self.shares.running()
    }

    /// The next run that nobody owns, with its attempt.
    pub(super) fn adopt(&mut self) -> Option<(RunId, u32)> {
        let orphan = self.orphans.get(self.adopted + self.pending.adopted).copied();
        self.pending.adopted += usize::from(orphan.is_some());
        orphan
    }

    /// Some tenant has a webhook endpoint. Looked up once in a transaction, for most have none and all ask.
    pub(super) fn has_endpoints(&self) -> Result<bool, StoreError> {
        if let Some(known) = self.endpoints.get() {
            return Ok(known);
        }
        let there = self.conn.prepare_cached("SELECT 1 FROM webhook_endpoints")?.exists([])?;
        self.endpoints.set(Some(there));
        Ok(there)
    }

    /// There is an endpoint now.
    pub(super) fn endpoint_made(&self) {
        self.endpoints.set(Some(true));
    }

    fn counts(&self) -> [u64; 4] {
        std::array::from_fn(|at| self.committed[at].saturating_add_signed(self.pending.counts[at]))
    }

    fn begin(&mut self) -> Result<(), StoreError> {
        self.pending = Pending::default();
        self.cautious = false;
        self.endpoints.set(None);
        self.execute("BEGIN IMMEDIATE")
    }

    /// Runs the last of the jobs, all of which share the transaction. An error means that the whole transaction is lost.
    fn join(&mut self, jobs: &mut [Box<dyn Job<Self>>]) -> Result<(), StoreError> {
        let Some((last, before)) = jobs.split_last_mut() else { return Ok(()) };
        if self.cautious {
            return self.item(&mut **last);
        }
        let Err(error) = last.run(self) else { return Ok(()) };
        if self.conn.is_autocommit() {
            return Err(error);
        }
        self.shares.take_back(0);
        self.execute("ROLLBACK")?;
        self.begin()?;
        self.cautious = true;
        before.iter_mut().try_for_each(|job| self.item(&mut **job))
    }

    /// Runs one job in a savepoint of its own. An error means that the whole transaction is lost.
    fn item(&mut self, job: &mut dyn Job<Self>) -> Result<(), StoreError> {
        self.execute("SAVEPOINT item")?;
        let (before, mark) = (self.pending, self.shares.mark());
        if let Err(error) = job.run(self) {
            // A full disk, for one, may make SQLite give up the whole transaction by itself.
            if self.conn.is_autocommit() {
                return Err(error);
            }
            self.pending = before;
            self.shares.take_back(mark);
            self.execute("ROLLBACK TO item")?;
        }
        self.execute("RELEASE item")
    }

    fn end(&mut self, outcome: Result<(), StoreError>) -> Result<(), StoreError> {
        let outcome = outcome.and_then(|()| self.execute("COMMIT"));
        if outcome.is_ok() {
            self.committed = self.counts();
            self.adopted += self.pending.adopted;
            self.shares.keep();
        } else {
            self.shares.take_back(0);
            if !self.conn.is_autocommit()
                && let Err(error) = self.execute("ROLLBACK")
            {
                tracing::error!(%error, "a transaction could not be rolled back");
            }
        }
        outcome
    }

    fn execute(&self, sql: &str) -> Result<(), StoreError> {
        self.conn.prepare_cached(sql)?.execute([])?;
        Ok(())
    }
}

/// Runs jobs until the gate is closed.
pub(super) fn run(
    writer: &mut Writer,
    work: &Receiver<Message<Writer>>,
    gate: &Gate<Writer>,
    counts: &Counts,
    answers: &Answers,
) {
    let mut stopped = false;
    while !stopped && let Ok(Message::Work(first)) = work.recv() {
        let mut jobs = Vec::new();
        let mut outcome = writer.begin();
        let mut next = Some(first);
        // What arrives while the batch runs still joins it.
        while let Some(job) = next.take() {
            jobs.push(job);
            outcome = outcome.and_then(|()| writer.join(&mut jobs));
            if jobs.len() < BATCH && outcome.is_ok() {
                match work.try_recv() {
                    Ok(Message::Work(job)) => next = Some(job),
                    Ok(Message::Stop) => stopped = true,
                    Err(_) => {}
                }
            }
        }
        let outcome = writer.end(outcome);
        *counts.lock() = writer.committed;
        gate.finished(jobs.len());
        answers.give((jobs, outcome.err()));
    }
}
