//! What tenants are entitled to: their settings, their rates, and the wake-ups that limits make necessary.
//!
//! The order of the queue and the limits are the store's; see `crate::store::shares`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use runcast_broker::Name;
use tokio::time::Instant;

use super::Node;
use super::effects::queue;
use crate::run::{Run, Status, Tenant};
use crate::store::shares::Subject;
use crate::store::{Limits, Share};

/// What tenants and agents are entitled to. What is not named has weight 1 and no limits. All nodes on a store should
/// say the same: each goes by its own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sharing {
    /// By the names of tenants.
    pub tenants: BTreeMap<Tenant, TenantShare>,
    /// By the names of agents.
    pub agents: BTreeMap<String, AgentLimits>,
}

/// What a tenant is entitled to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TenantShare {
    /// Tenants that all have runs queued are served in proportion to their weights; at least 1.
    pub weight: u32,
    /// How many of its runs may be running at once, over all nodes.
    pub max_running: Option<u64>,
    /// How many of its runs may be scheduled or queued.
    pub max_waiting: Option<u64>,
    /// How many of its runs are accepted a minute, over all nodes that serve; at least 1.
    pub rate: Option<u32>,
    /// How many of them may come at once; a tenth of the rate unless set, at least 1.
    pub burst: Option<u32>,
}

impl Default for TenantShare {
    /// Weight 1, no limits.
    fn default() -> Self {
        Self { weight: 1, max_running: None, max_waiting: None, rate: None, burst: None }
    }
}

/// How many runs of an agent may be running at once, over all nodes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AgentLimits {
    /// All its versions together.
    pub max_running: Option<u64>,
    /// Those of the same concurrency key.
    pub max_running_per_key: Option<u64>,
}

impl Sharing {
    /// What the store has to know of a new run of `tenant`.
    pub(super) fn share(&self, tenant: &Tenant) -> Share {
        let of_tenant = self.tenants.get(tenant).copied().unwrap_or_default();
        Share { weight: of_tenant.weight, max_waiting: of_tenant.max_waiting }
    }

    pub(super) fn limits(&self) -> Limits {
        let tenants = self.tenants.iter().filter_map(|(tenant, share)| Some((tenant.as_str(), share.max_running?)));
        let agents = self.agents.iter().filter_map(|(agent, limits)| Some((agent, limits.max_running?)));
        let keys = self.agents.iter().filter_map(|(agent, limits)| Some((agent, limits.max_running_per_key?)));
        Limits {
            tenants: tenants.map(|(tenant, most)| (tenant.to_owned(), most)).collect(),
            agents: agents.map(|(agent, most)| (agent.clone(), most)).collect(),
            keys: keys.map(|(agent, most)| (agent.clone(), most)).collect(),
        }
    }
}

/// How many runs of each tenant this node accepts: its share of the tenant's rate. Kept in memory, one small
/// entry for each tenant that has a rate.
pub(super) struct Rates {
    began: Instant,
    tenants: BTreeMap<Tenant, Mutex<Rate>>,
}

/// A run that was let in. It counts, unless it is given back.
#[must_use]
pub(super) struct Charge<'a> {
    rate: Option<(&'a Mutex<Rate>, Duration)>,
}

impl Charge<'_> {
    /// Nothing was created after all.
    pub(super) fn give_back(self) {
        if let Some((rate, interval)) = self.rate {
            rate.lock().give_back(interval);
        }
    }
}

/// What was let in is charged if it has `created` a run. Otherwise: how long to wait for what was not let in.
pub(super) fn settle(charge: Result<Charge<'_>, Duration>, created: bool) -> Option<Duration> {
    match charge {
        Ok(charge) if !created => charge.give_back(),
        Ok(_) => {}
        Err(retry_after) => return Some(retry_after),
    }
    None
}

impl Rates {
    pub(super) fn new(sharing: &Sharing) -> Self {
        let rates = sharing.tenants.iter().filter_map(|(tenant, share)| {
            let rate = share.rate?.max(1);
            let rate = Rate { rate, burst: share.burst.unwrap_or(rate / 10).max(1), next: Duration::ZERO };
            Some((tenant.clone(), Mutex::new(rate)))
        });
        Self { began: Instant::now(), tenants: rates.collect() }
    }

    /// Lets a run of `tenant` in, if its rate allows; otherwise tells how long to wait. `nodes` share the rate.
    pub(super) fn take(&self, tenant: &Tenant, nodes: u32) -> Result<Charge<'_>, Duration> {
        let Some(rate) = self.tenants.get(tenant) else { return Ok(Charge { rate: None }) };
        let interval = rate.lock().take(self.began.elapsed(), nodes)?;
        Ok(Charge { rate: Some((rate, interval)) })
    }
}

/// A rate, by the generic cell rate algorithm: each run takes an interval, and those of a burst may be taken ahead.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Rate {
    /// A minute, over all nodes.
    rate: u32,
    /// At once, over all nodes.
    burst: u32,
    /// Up to when the intervals are taken.
    next: Duration,
}

impl Rate {
    /// Takes an interval at `now`, and tells how long it is; or tells how long to wait.
    fn take(&mut self, now: Duration, nodes: u32) -> Result<Duration, Duration> {
        let nodes = nodes.max(1);
        let interval = Duration::from_secs(60).saturating_mul(nodes) / self.rate;
        let ahead = interval.saturating_mul((self.burst / nodes).max(1) - 1);
        let earliest = self.next.saturating_sub(ahead);
        if earliest > now {
            return Err(earliest - now);
        }
        self.next = self.next.max(now) + interval;
        Ok(interval)
    }

    fn give_back(&mut self, interval: Duration) {
        self.next = self.next.saturating_sub(interval);
    }
}

/// A run has left `running`, or the queue: wakes the workers for those that its limits have kept waiting. Their own
/// wake-ups are used up, since a claim has passed over them. One that goes back to the queue is to take its place
/// itself, and has a wake-up of its own.
pub(super) fn relieve(node: &Arc<Node>, run: &Run) {
    let (limits, subject) = (&node.limits, Subject::of(&run.spec));
    if run.status == Status::Queued || !limits.concern(subject) {
        return;
    }
    let own = queue(&run.spec.agent, &run.spec.agent_version);
    // For each limit one that it has kept waiting, which may be another version's; or another agent's, if the limit is
    // the tenant's.
    let of_tenant = limits.tenants.contains_key(subject.tenant);
    let of_agent = limits.agents.contains_key(subject.agent);
    let of_key = subject.key.is_some() && limits.keys.contains_key(subject.agent);
    let others = node.offered().into_iter().filter(|(agent, _)| of_tenant || *agent == run.spec.agent);
    let mut queues: Vec<Name> = others.map(|(agent, version)| queue(&agent, &version)).collect();
    queues.retain(|queue| *queue != own);
    queues.extend([of_tenant, of_agent, of_key].into_iter().filter(|holds| *holds).map(|_| own.clone()));
    let node = Arc::clone(node);
    actix::spawn(async move {
        for queue in queues {
            if let Err(error) = node.broker.publish(&queue, Bytes::new()).await {
                node.metrics.lost_wakes.inc();
                tracing::debug!(%error, "cannot wake the workers; the sweep will");
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(rate: u32, burst: u32) -> Rate {
        Rate { rate, burst, next: Duration::ZERO }
    }

    /// How many are let in when one asks every 10 ms for so many seconds.
    fn let_in(rate: &mut Rate, from: u64, seconds: u64, nodes: u32) -> u64 {
        (0..seconds * 100).filter(|at| rate.take(Duration::from_millis(from + at * 10), nodes).is_ok()).count() as u64
    }

    #[test]
    fn a_burst_comes_at_once_and_the_rest_by_the_rate() {
        let mut rate = rate(60, 5);
        let taken = (0..9).filter(|_| rate.take(Duration::ZERO, 1).is_ok()).count();
        assert_eq!(taken, 5);
        assert_eq!(rate.take(Duration::ZERO, 1), Err(Duration::from_secs(1)));
        assert_eq!(rate.take(Duration::from_millis(400), 1), Err(Duration::from_millis(600)));
        assert!(rate.take(Duration::from_secs(1), 1).is_ok());
        assert_eq!(let_in(&mut rate, 1_000, 60, 1), 59, "from then on it is one a second");
    }

    #[test]
    fn an_idle_tenant_saves_no_more_than_a_burst() {
        let mut rate = rate(60, 5);
        let later = Duration::from_secs(3_600);
        assert_eq!((0..9).filter(|_| rate.take(later, 1).is_ok()).count(), 5);
    }

    #[test]
    fn nodes_share_a_rate() {
        let (mut alone, mut of_three) = (rate(600, 30), rate(600, 30));
        assert_eq!(let_in(&mut alone, 0, 10, 1), 30 + 99);
        assert_eq!(let_in(&mut of_three, 0, 10, 3), 10 + 33);
        // Of more nodes than a burst has runs, each still lets one in.
        let mut of_many = rate(60, 5);
        assert!(of_many.take(Duration::ZERO, 60).is_ok());
        assert_eq!(of_many.take(Duration::ZERO, 60), Err(Duration::from_secs(60)));
    }

    #[test]
    fn what_is_given_back_was_never_taken() {
        let mut rate = rate(60, 2);
        for _ in 0..100 {
            let interval = rate.take(Duration::ZERO, 1).unwrap();
            rate.give_back(interval);
        }
        assert_eq!(rate.next, Duration::ZERO);
    }

    #[test]
    fn a_rate_has_a_burst_of_its_tenth() {
        let tenant = Tenant::new("acme");
        let share = TenantShare { rate: Some(600), ..TenantShare::default() };
        let sharing = Sharing { tenants: [(tenant.clone(), share)].into(), ..Sharing::default() };
        let rates = Rates::new(&sharing);
        assert_eq!(rates.tenants[&tenant].lock().burst, 60);
        assert!(rates.take(&Tenant::default(), 1).is_ok(), "others have no rate");
    }
}
