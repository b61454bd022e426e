//! Who goes first, and who has to wait although it is first: pure arithmetic.
//!
//! **Order.** Start-time fair queueing. The runs of an agent, a version and a priority are a *lane*. A run that becomes
//! queued gets a rank, once: that of its tenant's last queued run in the lane, or the lane's *virtual time* if that is
//! later, and a [stride] more, which is the smaller the larger the tenant's weight is. Claims go by
//! rank. The virtual time is the rank that was served last (or that from which the next to be served comes), so a tenant that comes anew
//! stands behind about one run of each other tenant, however many those have queued, and one that was idle has saved
//! nothing up. A run that goes back to the queue keeps its rank, and so goes before those that came later.
//!
//! Ranks of different lanes have nothing to do with each other. Of equal priority, lanes take [turns](merge).
//!
//! **Limits.** [`Limits`] say how many runs may be running at once; [`Running`] counts those that are.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};

use super::Queued;
use crate::run::{RunId, Spec, Tenant};

/// How far one run moves a tenant of weight 1 back. 2^43 runs go by before ranks run out.
pub(crate) const SCALE: i64 = 1 << 20;

/// How far one run moves a tenant of this weight back, at least 1. A weight of 0 counts as 1.
#[must_use]
pub(crate) fn stride(weight: u32) -> i64 {
    (SCALE / i64::from(weight.max(1))).max(1)
}

/// The rank of a run that is queued for the first time. `last` is the last rank among those of its tenant that are
/// queued in the lane.
#[must_use]
pub(crate) fn rank(virtual_time: i64, last: Option<i64>, stride: i64) -> i64 {
    last.map_or(virtual_time, |last| last.max(virtual_time)).saturating_add(stride)
}

/// The rank of a run that is queued again: its own, unless the lane has begun anew meanwhile.
#[must_use]
pub(crate) fn rank_again(virtual_time: i64, own: i64) -> i64 {
    own.min(virtual_time)
}

/// A lane as it is kept in memory. It is empty, and may be forgotten, when nothing of it is queued or running.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Lane {
    virtual_time: i64,
    running: u64,
    tenants: BTreeMap<Tenant, Flow>,
}

/// The queued runs of a tenant in a lane.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Flow {
    queued: u64,
    last: i64,
}

impl Lane {
    /// The rank of a run of `tenant` that is queued for the first time; it is counted by [`queued`](Self::queued).
    pub(super) fn rank(&self, tenant: &Tenant, stride: i64) -> i64 {
        rank(self.virtual_time, self.tenants.get(tenant).map(|flow| flow.last), stride)
    }

    /// The rank of a run that is queued again.
    pub(super) fn rank_again(&self, own: i64) -> i64 {
        rank_again(self.virtual_time, own)
    }

    /// So many runs of `tenant` are queued, `last` being their last rank.
    pub(super) fn queued(&mut self, tenant: &Tenant, runs: u64, last: i64) {
        let flow = match self.tenants.get_mut(tenant) {
            Some(flow) => flow,
            None => self.tenants.entry(tenant.clone()).or_default(),
        };
        flow.queued += runs;
        flow.last = flow.last.max(last);
    }

    /// The last rank among the queued runs of `tenant`.
    pub(super) fn last(&self, tenant: &Tenant) -> i64 {
        self.tenants.get(tenant).map_or(0, |flow| flow.last)
    }

    /// That was not so: `last` is the last rank of those that are queued still.
    pub(super) fn go_back(&mut self, tenant: &Tenant, last: i64) {
        if let Some(flow) = self.tenants.get_mut(tenant) {
            flow.last = last;
        }
    }

    /// A run of `tenant` is queued no more. With its last one, what the tenant had coming is forgotten.
    pub(super) fn unqueued(&mut self, tenant: &Tenant) {
        if let Some(flow) = self.tenants.get_mut(tenant) {
            flow.queued = flow.queued.saturating_sub(1);
            if flow.queued == 0 {
                self.tenants.remove(tenant);
            }
        }
    }

    /// The lane has come as far as `rank`.
    pub(super) fn served(&mut self, rank: i64) {
        self.virtual_time = self.virtual_time.max(rank);
    }

    /// A run is running.
    pub(super) fn started(&mut self) {
        self.running += 1;
    }

    /// A run is running no more.
    pub(super) fn stopped(&mut self) {
        self.running = self.running.saturating_sub(1);
    }

    /// What it counts, in words.
    #[cfg(test)]
    pub(super) fn tally(&self) -> String {
        let queued: Vec<_> = self.tenants.iter().map(|(tenant, flow)| (tenant.as_str(), flow.queued)).collect();
        format!("runs {} and queues {queued:?}", self.running)
    }

    /// Nothing of it is queued or running.
    pub(super) fn is_empty(&self) -> bool {
        self.running == 0 && self.tenants.is_empty()
    }
}

/// A queued run, among those of all lanes that a claim looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) priority: i32,
    pub(super) id: RunId,
    /// How many lanes have their turn before its own.
    pub(super) turn: usize,
}

/// The first `room` of `candidates`: by priority; of equal priority the first of each lane, in the order of their
/// turns, then the second of each, and so on. The candidates of a lane come in the lane's order.
pub(super) fn merge(candidates: impl IntoIterator<Item = Candidate>, room: usize) -> Vec<RunId> {
    let mut places: HashMap<(usize, i32), usize> = HashMap::new();
    let mut ordered: Vec<_> = candidates
        .into_iter()
        .map(|Candidate { priority, id, turn, .. }| {
            let place = places.entry((turn, priority)).or_default();
            *place += 1;
            (Reverse(priority), *place, turn, id)
        })
        .collect();
    ordered.sort_unstable();
    ordered.truncate(room);
    ordered.into_iter().map(|(.., id)| id).collect()
}

/// The first run of a lane that is still to be looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct First {
    priority: i32,
    id: RunId,
    tenant: String,
    agent: String,
    key: Option<String>,
}

impl First {
    pub(super) fn new(priority: i32, id: RunId, subject: Subject<'_>) -> Self {
        let Subject { tenant, agent, key } = subject;
        Self { priority, id, tenant: tenant.to_owned(), agent: agent.to_owned(), key: key.map(str::to_owned) }
    }

    fn subject(&self) -> Subject<'_> {
        Subject { tenant: &self.tenant, agent: &self.agent, key: self.key.as_deref() }
    }
}

/// The first `room` runs of `lanes` that the limits admit, in the order of [`merge`]; they are added to `running`. The
/// lanes come in the order of their turns, and each tells its next run, or that it has no more; it may leave out those
/// that are not admitted.
pub(super) fn pick<E>(
    lanes: &mut [impl FnMut(&Running) -> Result<Option<First>, E>],
    limits: &Limits,
    running: &mut Running,
    room: usize,
) -> Result<Vec<RunId>, E> {
    let mut firsts = lanes.iter_mut().map(|lane| lane(running)).collect::<Result<Vec<_>, E>>()?;
    let mut picked = Vec::new();
    while picked.len() < room
        && let Some(priority) = firsts.iter().flatten().map(|first| first.priority).max()
    {
        for (lane, first) in lanes.iter_mut().zip(&mut firsts) {
            while picked.len() < room
                && let Some(found) = first.take_if(|first| first.priority == priority)
            {
                let admitted = limits.admit(found.subject(), running);
                if admitted {
                    running.add(found.subject());
                    picked.push(found.id);
                }
                *first = lane(running)?;
                if admitted {
                    break;
                }
            }
        }
    }
    Ok(picked)
}

/// How many runs may be running at once, over all nodes. What is not named has no limit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Limits {
    /// Of each tenant.
    pub tenants: BTreeMap<String, u64>,
    /// Of each agent, all its versions together.
    pub agents: BTreeMap<String, u64>,
    /// Of each concurrency key, by the agents they are used with.
    pub keys: BTreeMap<String, u64>,
}

/// What limits have to know of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Subject<'a> {
    pub(crate) tenant: &'a str,
    pub(crate) agent: &'a str,
    pub(crate) key: Option<&'a str>,
}

impl<'a> Subject<'a> {
    pub(crate) fn of(spec: &'a Spec) -> Self {
        Self { tenant: spec.tenant.as_str(), agent: &spec.agent, key: spec.concurrency_key.as_deref() }
    }
}

impl Limits {
    /// Nothing is limited.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tenants.is_empty() && self.agents.is_empty() && self.keys.is_empty()
    }

    /// Whether some limit may hold for runs of these agents.
    pub(super) fn concern_any<'a>(&self, mut agents: impl Iterator<Item = &'a str>) -> bool {
        !self.tenants.is_empty() || agents.any(|agent| self.agents.contains_key(agent) || self.keys.contains_key(agent))
    }

    /// Whether some limit holds for the run.
    pub(crate) fn concern(&self, subject: Subject<'_>) -> bool {
        self.tenants.contains_key(subject.tenant)
            || self.agents.contains_key(subject.agent)
            || (subject.key.is_some() && self.keys.contains_key(subject.agent))
    }

    /// Whether the run may start while others are `running`.
    pub(super) fn admit(&self, subject: Subject<'_>, running: &Running) -> bool {
        let below = |limit: Option<&u64>, count: u64| limit.is_none_or(|limit| count < *limit);
        below(self.tenants.get(subject.tenant), running.of_tenant(subject.tenant))
            && below(self.agents.get(subject.agent), running.of_agent(subject.agent))
            && subject.key.is_none_or(|key| below(self.keys.get(subject.agent), running.of_key(subject.agent, key)))
    }
}

/// Queued runs of an agent and version that are the same to the limits: tenants and keys that have none are left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Alike {
    pub(super) agent: String,
    pub(super) version: String,
    pub(super) tenant: Option<String>,
    pub(super) key: Option<String>,
    pub(super) runs: u64,
}

/// Adds up what is queued for each agent and version, and what of it the limits let begin besides what is `running`.
pub(super) fn add_up(alike: Vec<Alike>, limits: &Limits, mut running: Running) -> Vec<Queued> {
    let mut queued = BTreeMap::<(String, String), (u64, u64)>::new();
    for Alike { agent, version, tenant, key, runs } in alike {
        let left = |limit: Option<&u64>, count: u64| limit.map_or(u64::MAX, |limit| limit.saturating_sub(count));
        let of_tenant = tenant.as_ref().map(|name| left(limits.tenants.get(name), running.of_tenant(name)));
        let of_key = key.as_ref().map(|key| left(limits.keys.get(&agent), running.of_key(&agent, key)));
        let of_agent = left(limits.agents.get(&agent), running.of_agent(&agent));
        let free = [of_tenant, of_key, Some(of_agent)].into_iter().flatten().fold(runs, u64::min);
        running.add_agent(&agent, free);
        tenant.iter().for_each(|tenant| running.add_tenant(tenant, free));
        key.iter().for_each(|key| running.add_key(&agent, key, free));
        let sums = queued.entry((agent, version)).or_default();
        *sums = (sums.0 + runs, sums.1 + free);
    }
    queued.into_iter().map(|((agent, version), (runs, free))| Queued { agent, version, runs, free }).collect()
}

/// How many runs are running, by what limits go by.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Running {
    tenants: HashMap<String, u64>,
    agents: HashMap<String, u64>,
    keys: HashMap<String, HashMap<String, u64>>,
}

impl Running {
    /// One more.
    pub(super) fn add(&mut self, subject: Subject<'_>) {
        self.add_alike(subject, 1);
    }

    /// One less. What is counted no more is forgotten.
    pub(super) fn remove(&mut self, subject: Subject<'_>) {
        decrease(&mut self.tenants, subject.tenant);
        decrease(&mut self.agents, subject.agent);
        if let Some(key) = subject.key
            && let Some(keys) = self.keys.get_mut(subject.agent)
        {
            decrease(keys, key);
            if keys.is_empty() {
                self.keys.remove(subject.agent);
            }
        }
    }

    /// So many more that are all the same to limits.
    pub(super) fn add_alike(&mut self, subject: Subject<'_>, runs: u64) {
        self.add_tenant(subject.tenant, runs);
        self.add_agent(subject.agent, runs);
        if let Some(key) = subject.key {
            self.add_key(subject.agent, key, runs);
        }
    }

    /// So many more of a tenant, counted by itself.
    pub(super) fn add_tenant(&mut self, tenant: &str, runs: u64) {
        increase(&mut self.tenants, tenant, runs);
    }

    /// So many more of an agent, counted by itself.
    pub(super) fn add_agent(&mut self, agent: &str, runs: u64) {
        increase(&mut self.agents, agent, runs);
    }

    /// So many more of a key, counted by itself.
    pub(super) fn add_key(&mut self, agent: &str, key: &str, runs: u64) {
        if !self.keys.contains_key(agent) {
            self.keys.insert(agent.to_owned(), HashMap::new());
        }
        if let Some(keys) = self.keys.get_mut(agent) {
            increase(keys, key, runs);
        }
    }

    /// What is counted, in words.
    #[cfg(test)]
    pub(super) fn tally(&self) -> Vec<String> {
        let named = |what: &'static str| move |(name, runs): (&String, &u64)| format!("{what} {name} runs {runs}");
        let keys = self.keys().map(|(agent, key, runs)| format!("key {key} of {agent} runs {runs}"));
        self.tenants.iter().map(named("tenant")).chain(self.agents.iter().map(named("agent"))).chain(keys).collect()
    }

    pub(super) fn of_tenant(&self, tenant: &str) -> u64 {
        self.tenants.get(tenant).copied().unwrap_or(0)
    }

    pub(super) fn of_agent(&self, agent: &str) -> u64 {
        self.agents.get(agent).copied().unwrap_or(0)
    }

    pub(super) fn of_key(&self, agent: &str, key: &str) -> u64 {
        self.keys.get(agent).and_then(|keys| keys.get(key)).copied().unwrap_or(0)
    }

    /// The keys that are counted, with their agents.
    pub(super) fn keys(&self) -> impl Iterator<Item = (&str, &str, u64)> {
        self.keys
            .iter()
            .flat_map(|(agent, keys)| keys.iter().map(move |(key, runs)| (agent.as_str(), key.as_str(), *runs)))
    }
}

fn increase(counts: &mut HashMap<String, u64>, name: &str, runs: u64) {
    match counts.get_mut(name) {
        Some(count) => *count += runs,
        None => drop(counts.insert(name.to_owned(), runs)),
    }
}

fn decrease(counts: &mut HashMap<String, u64>, name: &str) {
    if let Some(count) = counts.get_mut(name) {
        *count = count.saturating_sub(1);
        if *count == 0 {
            counts.remove(name);
        }
    }
}

#[cfg(test)]
#[path = "shares_tests.rs"]
mod tests;
