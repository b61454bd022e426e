//! The engine: actors that execute runs, and the handle that everybody else uses.
//!
//! ```text
//! Engine (handle) ── create, cancel, open … ──> store, feed
//! dispatcher ── claims ──> Supervisor (one a core) ── owns ──> RunActor (one a live run) ──> agent task
//! Timers (due rows) ── transitions ──> store        FeedActor ── evicts ──> logs
//! leases, peers, control, feed::live: what several nodes on one store need of each other
//! ```
//!
//! No caller sees an address or a channel. The engine never knows HTTP, and no adapter by name.

mod control;
mod conversation;
mod create;
mod dead_letters;
mod dispatcher;
mod effects;
mod feed;
mod ingest;
mod leases;
mod mailbox;
mod outage;
mod peers;
mod places;
mod recovery;
mod retention;
mod run_actor;
mod schedules;
mod sharing;
mod supervisor;
mod thread_stream;
mod threads;
mod timers;
mod timetable;
mod webhooks;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::time::Duration;

use actix::prelude::*;
use parking_lot::Mutex;
use runcast_broker::{Broker, Source};
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::agent::{AgentCard, Agents};
use crate::clock::Clock;
use crate::ingest::Mapping;
use crate::run::{Backoff, Command, Rejection, RunId, Segment, Status, Tenant};
use crate::store::{Changed, Deleted, Followed, Limits, Proposal, RunFilter, Store, StoreError, Stored, Transition};
use crate::telemetry::Metrics;

pub use create::{CreateError, CreateRun, Key, Start};
pub use dead_letters::RequeueError;
pub use feed::{Feed, FeedSettings, Viewer};
pub use ingest::Ingest;
pub use retention::Retention;
pub use schedules::{CreateSchedule, ScheduleError};
pub use thread_stream::{WatchFrom, WatchThreadError};
pub(crate) use threads::LONGEST_WAIT;
pub use threads::{CreateThread, ResumeError, Send, Sent, ThreadRequestError};
pub use timetable::Timetable;

pub use peers::{Fingerprint, NodeCard, Offer};
pub use sharing::{AgentLimits, Sharing, TenantShare};
pub use webhooks::{EndpointWish, ROTATION, WebhookError, WebhookParts};

use feed::{Live, Opened};
use leases::Leases;
use mailbox::post;
use peers::Peers;
use recovery::{follow, settle, show};
use sharing::Rates;
use supervisor::Supervisor;
use timers::Timers;

/// How long the runs that are let go at a shutdown may take to be written.
const RELEASE: Duration = Duration::from_secs(10);

/// What an engine is made of.
pub struct Parts {
    /// Keeps the truth.
    pub store: Arc<dyn Store>,
    /// Carries wake-ups.
    pub broker: Arc<dyn Broker>,
    /// What can be run here.
    pub agents: Agents,
    /// What agents lack to work, by their names, such as a provider's key. A worker among many does not
    /// execute these: another may lack nothing.
    pub lacking: BTreeMap<String, String>,
    /// Tells the time.
    pub clock: Arc<dyn Clock>,
    /// Counts.
    pub metrics: Arc<Metrics>,
    /// The queues of foreign messages.
    pub ingest: Vec<Ingest>,
    /// What is told to URLs.
    pub webhooks: WebhookParts,
    /// Bounds and durations.
    pub settings: Settings,
}

/// What a node does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Accepts, shows and cancels runs.
    Api,
    /// Executes runs.
    Worker,
    /// Both.
    All,
}

impl Role {
    /// It executes runs.
    #[must_use]
    pub fn executes(self) -> bool {
        matches!(self, Self::Worker | Self::All)
    }

    /// It accepts and shows runs.
    #[must_use]
    pub fn serves(self) -> bool {
        matches!(self, Self::Api | Self::All)
    }
}

/// Bounds and durations of an engine.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What this node does.
    pub role: Role,
    /// Whether it executes runs, if its role says so. For maintenance.
    pub execute: bool,
    /// There may be other nodes on the same store and broker.
    pub shared: bool,
    /// What this node would have all nodes agree on.
    pub proposal: Proposal,
    /// This node's name; shown in `run.started`.
    pub node: String,
    /// How many runs may be live at once.
    pub concurrency: usize,
    /// How many supervisors there are, each on a thread of its own; at least 1.
    pub supervisors: usize,
    /// The running time of a run that names none.
    pub timeout: Duration,
    /// The attempts of a run that names none.
    pub max_attempts: u32,
    /// The waits between attempts.
    pub backoff: Backoff,
    /// How long tokens gather before they are announced to other nodes.
    pub announce_window: Duration,
    /// How long tokens gather before they are journaled.
    pub flush_interval: Duration,
    /// How many sequence numbers each commit reserves.
    pub reserve: u64,
    /// How much a run may have shown and not journaled, in bytes; then its agent waits.
    pub max_unflushed: usize,
    /// Bounds of the logs in memory.
    pub feed: FeedSettings,
    /// How long a claimed run is the node's, unless it extends that; which it does three times as often.
    pub lease: Duration,
    /// How often lost wake-ups are made up for, and runs looked for whose lease has ended.
    pub sweep_interval: Duration,
    /// How late a schedule may fire and still be in time.
    pub schedule_grace: Duration,
    /// How long what has ended is kept.
    pub retention: Retention,
    /// The largest input, in bytes of text.
    pub max_input: usize,
    /// The most runs that may be scheduled or queued.
    pub max_waiting: u64,
    /// The most runs that may wait in one thread.
    pub max_pending: usize,
    /// What tenants and agents are entitled to.
    pub sharing: Sharing,
    /// The most metadata entries.
    pub max_metadata_entries: usize,
}

/// What the engine's own parts share.
pub(crate) struct Node {
    name: Arc<str>,
    role: Role,
    shared: bool,
    store: Arc<dyn Store>,
    broker: Arc<dyn Broker>,
    agents: Agents,
    lacking: BTreeMap<String, String>,
    /// The names and versions of the agents that are executed here.
    executed: Arc<[(String, String)]>,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
    settings: Settings,
    /// Those of the settings, as the store takes them.
    limits: Arc<Limits>,
    rates: Rates,
    /// The place in `executed` of the agent whose turn it is.
    turn: AtomicUsize,
    feed: Feed,
    timers: Addr<Timers>,
    supervisors: Vec<Addr<Supervisor>>,
    leases: Leases,
    peers: Peers,
    asked: control::Asked,
    /// How foreign messages are read, by the names of their sources.
    mappings: BTreeMap<String, Mapping>,
    outage: outage::Outage,
    webhooks: webhooks::Webhooks,
    /// When a claim has failed last that may have happened all the same.
    unsure: Mutex<Option<Instant>>,
    draining: AtomicBool,
}

impl Node {
    /// The names and versions of the agents that this node knows.
    fn all_agents(&self) -> impl Iterator<Item = (String, String)> {
        self.agents.cards().map(|card| (card.name.clone(), card.version.clone()))
    }
}

/// Starts, shows and ends runs. A cheap handle; all methods are cancellation safe: what a dropped call
/// has begun either happened as a whole or not at all.
#[derive(Clone)]
pub struct Engine {
    node: Arc<Node>,
    life: Arc<Life>,
}

/// The engine's own life.
struct Life {
    phase: AtomicU8,
    stop: CancellationToken,
    /// No stream is shown any more.
    cut: CancellationToken,
    closed: CancellationToken,
    room: Arc<Semaphore>,
    arbiters: Vec<Arbiter>,
    /// Where foreign messages come from, until they are pumped.
    sources: Mutex<Vec<(String, Box<dyn Source>)>>,
    pumps: TaskTracker,
}

const RECOVERING: u8 = 0;
const SERVING: u8 = 1;

/// Why a request about an existing run was refused.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RunRequestError {
    /// There is no such run, or it is another tenant's.
    #[error("there is no such run")]
    Missing,
    /// There is no such run, and it is so old that it may have been removed for its age.
    #[error("the run is gone: it ended longer ago than runs are kept")]
    Gone,
    /// The run has not ended.
    #[error("the run is {0}, which is not final")]
    NotFinal(Status),
    /// The number lies beyond what can have been shown.
    #[error("the run's log cannot have been shown beyond number {last}")]
    Beyond {
        /// The last number that may have been shown.
        last: u64,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What a wish to watch a run leads to.
pub enum Watched {
    /// The viewer, in place.
    Viewer(Box<Viewer>),
    /// The final event was seen already.
    SeenAll,
}

/// What a cancel has led to.
#[derive(Debug, Clone, PartialEq)]
pub enum Cancelled {
    /// The run has ended, by this cancel or before.
    Final(Box<Stored>),
    /// Its owner has been told.
    Requested(Box<Stored>),
}

/// What is missing for the engine to do its work; all empty when it can.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Readiness {
    /// Each part: `ok`, or what is wrong with it.
    pub parts: BTreeMap<&'static str, Result<(), String>>,
    /// The agents whose fallbacks answer in place of their models, and why. They do no harm to readiness.
    pub fallbacks: BTreeMap<String, String>,
}

impl Readiness {
    /// Everything is there.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.parts.values().all(Result::is_ok)
    }
}

impl Engine {
    /// Starts the actors. Runs can be created at once; executing them begins with
    /// [`serve`](Self::serve). Needs an actix system.
    pub async fn start(parts: Parts) -> Self {
        let Parts { store, broker, agents, lacking, clock, metrics, ingest, webhooks, settings } = parts;
        let (mut mappings, mut sources) = (BTreeMap::new(), Vec::new());
        for Ingest { name, mapping, source } in ingest {
            sources.extend(source.map(|source| (name.clone(), source)));
            mappings.insert(name, mapping);
        }
        let live = settings.shared.then(|| Live { broker: Arc::clone(&broker), window: settings.announce_window });
        let (feed, mut to_cancel) = Feed::start(store.clone(), live, settings.feed.clone());
        let arbiters: Vec<_> = (0..settings.supervisors.max(1)).map(|_| Arbiter::new()).collect();
        let supervisors: Vec<_> = arbiters
            .iter()
            .map(|arbiter| Supervisor::start_in_arbiter(&arbiter.handle(), |_| Supervisor::default()))
            .collect();
        // Alone, a node has to tell by failing the run.
        let executed = agents.cards().filter(|card| !settings.shared || !lacking.contains_key(&card.name));
        let executed =
            executed.filter(|_| settings.execute).map(|card| (card.name.clone(), card.version.clone())).collect();
        let peers = Peers::new(settings.proposal.clone(), clock.now());
        let room = Arc::new(Semaphore::new(settings.concurrency.min(Semaphore::MAX_PERMITS)));
        let node = Arc::new(Node {
            name: settings.node.as_str().into(),
            role: settings.role,
            shared: settings.shared,
            store,
            broker,
            agents,
            lacking,
            executed,
            clock,
            metrics,
            limits: Arc::new(settings.sharing.limits()),
            rates: Rates::new(&settings.sharing),
            turn: AtomicUsize::new(0),
            settings,
            feed,
            timers: Timers::default().start(),
            supervisors,
            leases: Leases::default(),
            peers,
            asked: control::Asked::default(),
            mappings,
            outage: outage::Outage::default(),
            webhooks: webhooks::Webhooks::new(webhooks),
            unsure: Mutex::default(),
            draining: AtomicBool::new(false),
        });
        for supervisor in &node.supervisors {
            // One each.
            post(supervisor, supervisor::Adopt(Arc::clone(&node)));
        }
        let life = Life {
            phase: AtomicU8::new(RECOVERING),
            stop: CancellationToken::new(),
            cut: CancellationToken::new(),
            closed: CancellationToken::new(),
            room,
            arbiters,
            sources: Mutex::new(sources),
            pumps: TaskTracker::new(),
        };
        let engine = Self { node, life: Arc::new(life) };
        let unwatched = engine.clone();
        actix::spawn(async move {
            while let Some(id) = to_cancel.recv().await {
                unwatched.cancel_unwatched(id).await;
            }
        });
        engine
    }

    /// Recovers what the last process left behind, then begins to execute runs. Returns how many runs
    /// were recovered. Among many nodes, whose store and broker may be away, it only begins: leases end
    /// and are recovered by and by.
    pub async fn serve(&self) -> Result<usize, StoreError> {
        let node = &self.node;
        let recovered = if node.shared { 0 } else { recovery::recover(node).await? };
        // One.
        post(&node.timers, timers::Begin(self.clone()));
        let stop = &self.life.stop;
        if node.shared {
            actix::spawn(peers::keep(Arc::clone(node), stop.clone()));
            actix::spawn(control::listen(Arc::clone(node), stop.clone()));
        }
        if node.role.executes() {
            if node.shared {
                // Until the last live run is let go.
                actix::spawn(leases::keep(Arc::clone(node), self.life.closed.clone()));
                actix::spawn(leases::watch(Arc::clone(node), self.life.closed.clone()));
            }
            node.webhooks.begin(node);
            actix::spawn(recovery::sweep(Arc::clone(node), stop.clone()));
            actix::spawn(retention::keep(Arc::clone(node), stop.clone()));
            actix::spawn(dispatcher::dispatch(Arc::clone(node), Arc::clone(&self.life.room), stop.clone()));
        }
        for (name, source) in self.life.sources.lock().drain(..) {
            let pump = ingest::pump(self.clone(), name, source);
            actix::spawn(self.life.pumps.track_future(pump));
        }
        self.life.phase.store(SERVING, Ordering::Release);
        Ok(recovered)
    }

    /// The tenant's run `id`.
    pub async fn get(&self, tenant: &Tenant, id: RunId) -> Result<Stored, RunRequestError> {
        self.node.store.get(tenant, id).await?.ok_or_else(|| self.missing(id))
    }

    /// What to say of a run that is not there.
    fn missing(&self, id: RunId) -> RunRequestError {
        let removed = |created| self.node.settings.retention.may_have_removed(created, self.now());
        if id.made_at().is_some_and(removed) { RunRequestError::Gone } else { RunRequestError::Missing }
    }

    /// The tenant's runs that match `filter`, youngest first, at most `limit`.
    pub async fn list(&self, tenant: &Tenant, filter: RunFilter, limit: usize) -> Result<Vec<Stored>, StoreError> {
        self.node.store.list(tenant, filter, limit).await
    }

    /// The log of the tenant's run `id` after number `after`, about `max_bytes` at a time.
    pub async fn events(
        &self,
        tenant: &Tenant,
        id: RunId,
        after: u64,
        max_bytes: usize,
    ) -> Result<Vec<Segment>, RunRequestError> {
        self.get(tenant, id).await?;
        Ok(self.node.store.segments(id, after, max_bytes).await?)
    }

    /// Watches the tenant's run `id` after event number `after`.
    pub async fn watch(&self, tenant: &Tenant, id: RunId, after: u64) -> Result<Watched, RunRequestError> {
        self.open(tenant, id, after, true).await
    }

    async fn open(&self, tenant: &Tenant, id: RunId, after: u64, watches: bool) -> Result<Watched, RunRequestError> {
        match self.node.feed.open(tenant, id, after, watches).await? {
            Opened::Viewer(viewer) => Ok(Watched::Viewer(viewer)),
            Opened::SeenAll => Ok(Watched::SeenAll),
            Opened::Beyond { last } => Err(RunRequestError::Beyond { last }),
            Opened::Missing => Err(self.missing(id)),
        }
    }

    /// Waits until the run is final, `patience` is over or the node shuts down; then the run as it
    /// stands.
    pub async fn wait(&self, tenant: &Tenant, id: RunId, patience: Duration) -> Result<Stored, RunRequestError> {
        let stored = self.get(tenant, id).await?;
        if stored.run.status.is_final() {
            return Ok(stored);
        }
        if let Watched::Viewer(viewer) = self.open(tenant, id, stored.run.last_seq, false).await? {
            // Out of patience is an answer, too.
            tokio::time::timeout(patience, viewer.ended()).await.unwrap_or_default();
        }
        self.get(tenant, id).await
    }

    /// Ends the run, whatever its status. Ending a run that has ended is no error.
    pub async fn cancel(&self, tenant: &Tenant, id: RunId) -> Result<Cancelled, RunRequestError> {
        let now = self.node.clock.now();
        match self.node.store.transition(Some(tenant), id, Command::Cancel, now).await? {
            Transition::Missing => Err(self.missing(id)),
            Transition::Rejected(stored, Rejection::Final(_)) => Ok(Cancelled::Final(stored)),
            Transition::Rejected(stored, _) => Ok(Cancelled::Requested(stored)),
            Transition::Handed(stored) => {
                self.node.signal_cancel(id);
                Ok(Cancelled::Requested(stored))
            }
            Transition::Done(changed) => Ok(Cancelled::Final(Box::new(self.settled(*changed, None)))),
            Transition::Followed(changed, followed) => {
                Ok(Cancelled::Final(Box::new(self.settled(*changed, Some(followed)))))
            }
        }
    }

    /// Shows and performs what a transition has done; the answer is the run as it stands then.
    fn settled(&self, changed: Changed, followed: Option<Followed>) -> Stored {
        let run = changed.run.clone();
        let reserved_seq = run.last_seq;
        show(&self.node, changed);
        if let Some(followed) = followed {
            follow(&self.node, followed);
        }
        Stored { run, reserved_seq, cancel_requested: false }
    }

    async fn cancel_unwatched(&self, id: RunId) {
        if self.node.watched_elsewhere(id).await {
            return;
        }
        let now = self.node.clock.now();
        match self.node.store.transition(None, id, Command::Cancel, now).await {
            Ok(Transition::Handed(_)) => {
                tracing::info!(run = %id, "cancelled: its last viewer has gone");
                self.node.signal_cancel(id);
            }
            Ok(transition) => settle(&self.node, transition),
            Err(error) => tracing::warn!(run = %id, %error, "cannot cancel a run whose last viewer has gone"),
        }
    }

    /// Removes a final run, its log and all that belongs to it.
    pub async fn delete(&self, tenant: &Tenant, id: RunId) -> Result<(), RunRequestError> {
        match self.node.store.delete(tenant, id).await? {
            Deleted::Done => {
                self.node.feed.removed(id);
                Ok(())
            }
            Deleted::Missing => Err(self.missing(id)),
            Deleted::NotFinal(status) => Err(RunRequestError::NotFinal(status)),
        }
    }

    /// What can be run here.
    pub fn agents(&self) -> impl Iterator<Item = &AgentCard> {
        self.node.agents.cards()
    }

    /// All nodes that are there, this one among them, ordered by id.
    #[must_use]
    pub fn nodes(&self) -> Vec<NodeCard> {
        self.node.cards()
    }

    /// What counts.
    #[must_use]
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.node.metrics
    }

    /// The time, as the engine sees it.
    #[must_use]
    pub fn now(&self) -> crate::run::Timestamp {
        self.node.clock.now()
    }

    /// Whether a shutdown has begun: nothing new is accepted.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.node.draining.load(Ordering::Acquire)
    }

    /// Asks every part whether it can do its work.
    pub async fn readiness(&self) -> Readiness {
        let mut parts = BTreeMap::new();
        parts.insert("store", self.node.store.health().await.map_err(|error| error.to_string()));
        parts.insert("broker", self.node.broker.health().await.map_err(|error| error.to_string()));
        let node = match (self.is_draining(), self.life.phase.load(Ordering::Acquire)) {
            (true, _) => Err("shutting down".to_owned()),
            (false, RECOVERING) => Err("recovering runs".to_owned()),
            (false, _) => Ok(()),
        };
        parts.insert("node", node);
        if self.node.shared {
            let disagreements = self.node.peers.disagreements();
            let agreement = if disagreements.is_empty() { Ok(()) } else { Err(disagreements.join("; ")) };
            parts.insert("agreement", agreement);
        }
        let fallbacks = self.node.agents.standing_in().map(|(name, why)| (name.to_owned(), why)).collect();
        Readiness { parts, fallbacks }
    }

    /// Brings the gauges up to date.
    pub async fn gauge(&self) {
        let metrics = &self.node.metrics;
        if let Ok(counts) = self.node.store.counts().await {
            metrics.runs_open(&counts);
        }
        if let Ok(depths) = self.node.store.depths_by_tenant().await {
            for tenant in self.node.settings.sharing.tenants.keys() {
                metrics.tenant_depths(tenant, depths.get(tenant).copied().unwrap_or_default());
            }
        }
        metrics.logs.set(self.node.feed.len() as i64);
        metrics.viewers.set(self.node.feed.viewers() as i64);
    }

    /// Shuts down in good order: accepts and claims nothing new, gives the live runs `grace` to end (less
    /// when `hurry` is cancelled), lets the rest go to be run again, and ends all streams. What is
    /// asked of the engine after that is answered until [`close`](Self::close).
    pub async fn drain(&self, grace: Duration, hurry: CancellationToken) {
        self.node.draining.store(true, Ordering::Release);
        self.life.stop.cancel();
        self.life.pumps.close();
        let room = &self.life.room;
        let all = u32::try_from(self.node.settings.concurrency.min(Semaphore::MAX_PERMITS)).unwrap_or(u32::MAX);
        let idle = tokio::time::timeout(grace, room.acquire_many(all));
        if !matches!(hurry.run_until_cancelled(idle).await, Some(Ok(_))) {
            let live = self.node.settings.concurrency.saturating_sub(room.available_permits());
            tracing::info!(live, "the grace is over: letting the live runs go, to be run again");
            for supervisor in &self.node.supervisors {
                // One each.
                post(supervisor, supervisor::ReleaseAll);
            }
            if tokio::time::timeout(RELEASE, room.acquire_many(all)).await.is_err() {
                tracing::warn!("some runs could not be let go; they are recovered at the next start");
            }
        }
        if tokio::time::timeout(RELEASE, self.life.pumps.wait()).await.is_err() {
            tracing::warn!("some foreign messages could not be let go; they come again, and make no second run");
        }
        // What the last runs have come to is told as far as there is time.
        hurry.run_until_cancelled(self.node.webhooks.end()).await;
        // One.
        post(&self.node.timers, timers::Halt);
        self.node.feed.cut_all();
        self.life.cut.cancel();
    }

    /// Closes broker and store, when nobody asks any more.
    pub async fn close(&self) {
        self.life.closed.cancel();
        peers::leave(&self.node).await;
        self.node.broker.close().await;
        self.node.store.close().await;
        for arbiter in &self.life.arbiters {
            arbiter.stop();
        }
    }
}
