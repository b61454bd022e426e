//! What the writer keeps in memory of queued and running runs: the lanes with their ranks, and the counts that limits
//! and bounds go by. Rebuilt when the store is opened; bounded by what is scheduled, queued and running.
//!
//! It follows each transaction at once, for the next item of a batch to build on. What an item that fails has changed
//! is taken back; only how far a lane has come is not, which leaves a gap between ranks and nothing worse.

use std::collections::HashMap;
use std::sync::Arc;

use rusqlite::Connection;

use crate::run::{Run, Spec, Status, Tenant};
use crate::store::StoreError;
use crate::store::shares::{Lane, Running, Subject};
use crate::store::spelling::unsigned;

/// The place of a run in its lane, and how far it moves its tenant back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) rank: i64,
    pub(super) stride: i64,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct LaneKey {
    agent: String,
    version: String,
    priority: i32,
}

impl LaneKey {
    fn of(spec: &Spec) -> Self {
        Self { agent: spec.agent.clone(), version: spec.agent_version.clone(), priority: spec.priority }
    }
}

/// A change of the current transaction, to be taken back if it fails.
struct Moved {
    spec: Arc<Spec>,
    from: Option<Status>,
    to: Option<Status>,
    rank: i64,
    /// The last rank of its tenant in its lane before, if it is queued now.
    last: i64,
}

/// The state.
#[derive(Default)]
pub(super) struct Shares {
    lanes: HashMap<LaneKey, Lane>,
    running: Running,
    /// Scheduled and queued runs.
    waiting: HashMap<Tenant, u64>,
    moved: Vec<Moved>,
}

impl Shares {
    /// Those of the runs in the store.
    pub(super) fn read(conn: &Connection) -> Result<Self, StoreError> {
        let mut shares = Self::default();
        let mut lowest: HashMap<LaneKey, i64> = HashMap::new();
        let mut statement = conn.prepare(
            "SELECT agent, agent_version, priority, tenant, count(*), min(rank), max(rank) FROM runs \
             INDEXED BY runs_queued WHERE status = 'queued' GROUP BY agent, agent_version, priority, tenant",
        )?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let key = LaneKey { agent: row.get(0)?, version: row.get(1)?, priority: row.get(2)? };
            let (tenant, runs) = (Tenant::new(row.get::<_, String>(3)?), unsigned(row.get(4)?));
            let first: i64 = row.get(5)?;
            lowest.entry(key.clone()).and_modify(|lowest| *lowest = first.min(*lowest)).or_insert(first);
            shares.lanes.entry(key).or_default().queued(&tenant, runs, row.get(6)?);
            *shares.waiting.entry(tenant).or_default() += runs;
        }
        for (key, lowest) in lowest {
            shares.lanes.entry(key).or_default().served(lowest);
        }
        let mut statement = conn.prepare(
            "SELECT agent, agent_version, priority, tenant, concurrency_key, rank FROM runs \
             INDEXED BY runs_by_status WHERE status = 'running'",
        )?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let key = LaneKey { agent: row.get(0)?, version: row.get(1)?, priority: row.get(2)? };
            let (tenant, concurrency): (String, Option<String>) = (row.get(3)?, row.get(4)?);
            shares.running.add(Subject { tenant: &tenant, agent: &key.agent, key: concurrency.as_deref() });
            let lane = shares.lanes.entry(key).or_default();
            lane.started();
            lane.served(row.get(5)?);
        }
        let mut statement = conn.prepare(
            "SELECT tenant, count(*) FROM runs INDEXED BY runs_by_status WHERE status = 'scheduled' GROUP BY tenant",
        )?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            *shares.waiting.entry(Tenant::new(row.get::<_, String>(0)?)).or_default() += unsigned(row.get(1)?);
        }
        Ok(shares)
    }

    /// The rank of a run that becomes queued, by whichever way; `place` is the one it had. What has never been
    /// attempted stands behind its tenant's others, what comes back goes first.
    pub(super) fn rank(&self, run: &Run, place: Place) -> i64 {
        let empty = Lane::default();
        let lane = self.lanes.get(&LaneKey::of(&run.spec)).unwrap_or(&empty);
        if run.attempt == 0 { lane.rank(&run.spec.tenant, place.stride) } else { lane.rank_again(place.rank) }
    }

    /// A run goes from one status to another; none: it did not exist. `rank` is its own, where it matters: when it is
    /// queued for the first time, and when it is claimed.
    pub(super) fn moved(&mut self, spec: &Arc<Spec>, from: Option<Status>, to: Status, rank: i64) {
        let lane = (to == Status::Queued).then(|| self.lanes.get(&LaneKey::of(spec))).flatten();
        let last = lane.map_or(0, |lane| lane.last(&spec.tenant));
        let moved = Moved { spec: Arc::clone(spec), from, to: Some(to), rank, last };
        self.follow(&moved.spec, from, moved.to, rank);
        self.moved.push(moved);
    }

    /// How many runs are running.
    pub(super) fn running(&self) -> &Running {
        &self.running
    }

    /// How many runs of the tenant wait for a time or a worker.
    pub(super) fn waiting(&self, tenant: &Tenant) -> u64 {
        self.waiting.get(tenant).copied().unwrap_or(0)
    }

    /// Where the transaction stands, for [`take_back`](Self::take_back).
    pub(super) fn mark(&self) -> usize {
        self.moved.len()
    }

    /// Takes back what was changed since `mark`.
    pub(super) fn take_back(&mut self, mark: usize) {
        while self.moved.len() > mark
            && let Some(Moved { spec, from, to, rank, last }) = self.moved.pop()
        {
            self.follow(&spec, to, from, rank);
            if to == Some(Status::Queued)
                && let Some(lane) = self.lanes.get_mut(&LaneKey::of(&spec))
            {
                lane.go_back(&spec.tenant, last);
            }
        }
    }

    /// The transaction is committed.
    pub(super) fn keep(&mut self) {
        self.moved.clear();
    }

    /// All that is counted, in words.
    #[cfg(test)]
    pub(super) fn tally(&self) -> Vec<String> {
        let lanes = self.lanes.iter().map(|(key, lane)| format!("{key:?} {}", lane.tally()));
        let waiting = self.waiting.iter().map(|(tenant, runs)| format!("{tenant:?} waits {runs}"));
        let mut tally: Vec<_> = lanes.chain(waiting).chain(self.running.tally()).collect();
        tally.sort();
        tally
    }

    fn follow(&mut self, spec: &Spec, from: Option<Status>, to: Option<Status>, rank: i64) {
        let waits = |status: Option<Status>| matches!(status, Some(Status::Scheduled | Status::Queued));
        match (waits(from), waits(to)) {
            (false, true) => match self.waiting.get_mut(&spec.tenant) {
                Some(waiting) => *waiting += 1,
                None => drop(self.waiting.insert(spec.tenant.clone(), 1)),
            },
            (true, false) => {
                if let Some(waiting) = self.waiting.get_mut(&spec.tenant) {
                    *waiting = waiting.saturating_sub(1);
                    if *waiting == 0 {
                        self.waiting.remove(&spec.tenant);
                    }
                }
            }
            (true, true) | (false, false) => {}
        }
        let has_lane = |status: Option<Status>| matches!(status, Some(Status::Queued | Status::Running));
        if !has_lane(from) && !has_lane(to) {
            return;
        }
        let key = LaneKey::of(spec);
        let lane = self.lanes.entry(key.clone()).or_default();
        match from {
            Some(Status::Queued) => lane.unqueued(&spec.tenant),
            Some(Status::Running) => {
                lane.stopped();
                self.running.remove(Subject::of(spec));
            }
            _ => {}
        }
        match to {
            Some(Status::Queued) => lane.queued(&spec.tenant, 1, rank),
            Some(Status::Running) => {
                lane.started();
                lane.served(rank);
                self.running.add(Subject::of(spec));
            }
            _ => {}
        }
        if lane.is_empty() {
            self.lanes.remove(&key);
        }
    }
}
