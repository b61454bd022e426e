//! What is counted; the names are part of the interface.

use std::collections::BTreeMap;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use crate::run::{Run, Status, Tenant, Timestamp};
use crate::store::TenantDepths;

type Labels = [(&'static str, String); 1];

/// The metrics of a node.
pub struct Metrics {
    registry: Registry,
    /// Runs accepted.
    pub runs_created: Counter,
    /// Attempts begun.
    pub attempts_started: Counter,
    runs_finished: Family<Labels, Counter>,
    attempts_retried: Counter,
    runs_open: Family<Labels, Gauge>,
    queue_wait: Histogram,
    run_duration: Histogram,
    /// How late timers fire.
    pub timer_lateness: Histogram,
    /// Runs that are live on this node.
    pub live_runs: Gauge,
    /// Logs in memory.
    pub logs: Gauge,
    /// Viewers connected.
    pub viewers: Gauge,
    /// Attempts fenced off.
    pub fenced: Counter,
    /// Runs taken from nodes that let their lease end.
    pub recovered: Counter,
    /// Attempts suspended because the store could not be reached in time.
    pub suspended: Counter,
    /// Commands of attempts that were over.
    pub stale_commands: Counter,
    /// Timers that fired for nothing.
    pub stale_timers: Counter,
    /// Wake-ups that could not be published.
    pub lost_wakes: Counter,
    /// Panics inside agents.
    pub agent_panics: Counter,
    runs_refused: Family<[(&'static str, String); 2], Counter>,
    tenant_runs: Family<[(&'static str, String); 2], Gauge>,
    requests: Family<[(&'static str, String); 2], Counter>,
    ingested: Family<[(&'static str, String); 2], Counter>,
    webhooks: Family<Labels, Counter>,
}

impl Default for Metrics {
    fn default() -> Self {
        let seconds = || Histogram::new(exponential_buckets(0.0005, 2.0, 24));
        let mut metrics = Self {
            registry: Registry::with_prefix("runcast"),
            runs_created: Counter::default(),
            attempts_started: Counter::default(),
            runs_finished: Family::default(),
            attempts_retried: Counter::default(),
            runs_open: Family::default(),
            queue_wait: seconds(),
            run_duration: seconds(),
            timer_lateness: seconds(),
            live_runs: Gauge::default(),
            logs: Gauge::default(),
            viewers: Gauge::default(),
            fenced: Counter::default(),
            recovered: Counter::default(),
            suspended: Counter::default(),
            stale_commands: Counter::default(),
            stale_timers: Counter::default(),
            lost_wakes: Counter::default(),
            agent_panics: Counter::default(),
            runs_refused: Family::default(),
            tenant_runs: Family::default(),
            requests: Family::default(),
            ingested: Family::default(),
            webhooks: Family::default(),
        };
        metrics.register();
        metrics
    }
}

impl Metrics {
    fn register(&mut self) {
        let registry = &mut self.registry;
        registry.register("runs_created", "Runs accepted", self.runs_created.clone());
        registry.register("attempts_started", "Attempts begun", self.attempts_started.clone());
        registry.register("runs_finished", "Runs that ended, by status", self.runs_finished.clone());
        registry.register("attempts_retried", "Attempts that ended without an ending", self.attempts_retried.clone());
        registry.register("runs", "Runs that have not ended, by status", self.runs_open.clone());
        let wait = self.queue_wait.clone();
        registry.register_with_unit("queue_wait", "From acceptance to the first attempt", Unit::Seconds, wait);
        let duration = self.run_duration.clone();
        registry.register_with_unit("run_duration", "From acceptance to the end", Unit::Seconds, duration);
        let lateness = self.timer_lateness.clone();
        registry.register_with_unit("timer_lateness", "How late timers fire", Unit::Seconds, lateness);
        registry.register("live_runs", "Runs executing on this node", self.live_runs.clone());
        registry.register("logs", "Logs in memory", self.logs.clone());
        registry.register("viewers", "Viewers connected", self.viewers.clone());
        registry.register("fenced", "Attempts fenced off by the store", self.fenced.clone());
        registry.register("recovered", "Runs whose lease had ended", self.recovered.clone());
        registry.register("suspended", "Attempts suspended for want of the store", self.suspended.clone());
        registry.register("stale_commands", "Commands of attempts that were over", self.stale_commands.clone());
        registry.register("stale_timers", "Timers that fired for nothing", self.stale_timers.clone());
        registry.register("lost_wakes", "Wake-ups that could not be published", self.lost_wakes.clone());
        registry.register("agent_panics", "Panics inside agents", self.agent_panics.clone());
        registry.register("runs_refused", "Runs not accepted, by tenant and reason", self.runs_refused.clone());
        let of_tenants = self.tenant_runs.clone();
        registry.register("tenant_runs", "Runs of the tenants of the configuration, by status", of_tenants);
        registry.register("ingested", "Foreign messages, by source and what became of them", self.ingested.clone());
        let webhooks = "Webhooks that were delivered, have failed and are tried again, or are given up";
        registry.register("webhooks", webhooks, self.webhooks.clone());
        registry.register("http_requests", "Requests answered, by route and status", self.requests.clone());
    }

    /// A foreign message has become a `run`, is `repeated` or a `dead` letter.
    pub fn ingested(&self, source: &str, outcome: &str) {
        let labels = [("source", source.to_owned()), ("outcome", outcome.to_owned())];
        self.ingested.get_or_create(&labels).inc();
    }

    /// A webhook was `delivered`, has `failed` and is tried again, or is `dead`.
    pub fn webhook(&self, outcome: &str) {
        self.webhooks.get_or_create(&[("outcome", outcome.to_owned())]).inc();
    }

    /// A run was claimed.
    pub fn run_started(&self, run: &Run, now: Timestamp) {
        self.attempts_started.inc();
        if run.attempt == 1 {
            self.queue_wait.observe(now.since(run.spec.created_at).as_secs_f64());
        }
    }

    /// A run has left `running`, or ended without ever running.
    pub fn run_left(&self, run: &Run) {
        match run.finished_at {
            Some(at) => {
                self.runs_finished.get_or_create(&[("status", run.status.to_string())]).inc();
                self.run_duration.observe(at.since(run.spec.created_at).as_secs_f64());
            }
            None => drop(self.attempts_retried.inc()),
        }
    }

    /// How many runs have each status that is not final.
    pub fn runs_open(&self, counts: &BTreeMap<Status, u64>) {
        for status in Status::ALL.into_iter().filter(|status| !status.is_final()) {
            let count = counts.get(&status).copied().unwrap_or(0);
            let gauge = self.runs_open.get_or_create(&[("status", status.to_string())]);
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    /// A run was not accepted: `too_many_waiting`, `too_many_of_tenant` or `rate_limited`. `tenant` is one that the
    /// configuration names, or `other`.
    pub fn run_refused(&self, tenant: &str, reason: &str) {
        let labels = [("tenant", tenant.to_owned()), ("reason", reason.to_owned())];
        self.runs_refused.get_or_create(&labels).inc();
    }

    /// What a tenant of the configuration has queued and running.
    pub fn tenant_depths(&self, tenant: &Tenant, depths: TenantDepths) {
        for (status, count) in [(Status::Queued, depths.queued), (Status::Running, depths.running)] {
            let labels = [("tenant", tenant.as_str().to_owned()), ("status", status.to_string())];
            self.tenant_runs.get_or_create(&labels).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    /// A request was answered. `route` is the route's pattern, never a path from outside.
    pub fn answered(&self, route: &str, status: u16) {
        self.requests.get_or_create(&[("route", route.to_owned()), ("status", status.to_string())]).inc();
    }

    /// All of it, in Prometheus' text format (OpenMetrics).
    #[must_use]
    pub fn render(&self) -> String {
        let mut text = String::new();
        // Writing to memory does not fail.
        encode(&mut text, &self.registry).unwrap_or_default();
        text
    }
}
