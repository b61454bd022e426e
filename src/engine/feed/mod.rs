//! The logs that are in memory: which are live, who watches, what is evicted and when.
//!
//! [`Feed`] is the handle that everybody uses; [`FeedActor`] owns what happens by itself: evicting logs
//! nobody needs, and telling of runs whose viewers have gone. The frames go from a log to its sockets
//! without passing a mailbox.

mod live;
mod log;
mod viewer;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::engine::leases::Lease;
use crate::run::{OnDisconnect, Run, RunId, Segment, Status, Tenant};
use crate::store::{RunStore, StoreError, Stored};

pub(crate) use live::Live;
use log::{End, Shown};
pub(crate) use log::{Pushed, RunLog};
pub use viewer::Viewer;

/// Logs are spread over so many locks.
const SHARDS: usize = 32;

/// How often logs are looked over for eviction.
const TICK: Duration = Duration::from_millis(500);

/// Bounds of what is kept in memory.
#[derive(Debug, Clone)]
pub struct FeedSettings {
    /// How much of a live run's log stays in memory, in bytes; older events are read from the store.
    pub log_memory: usize,
    /// How much the logs of runs that are not live may hold together, in bytes.
    pub ended_memory: usize,
    /// How long they are kept for viewers that come late.
    pub ended_linger: Duration,
    /// How long the last viewer of a run created with `on_disconnect: cancel` may be gone.
    pub disconnect_grace: Duration,
}

/// The logs in memory. A cheap handle.
#[derive(Clone)]
pub struct Feed {
    shared: Arc<Shared>,
}

struct Shared {
    store: Arc<dyn RunStore>,
    settings: FeedSettings,
    /// How live events travel, where there are other nodes.
    live: Option<Arc<Live>>,
    shards: [Mutex<HashMap<RunId, Arc<RunLog>>>; SHARDS],
    idle: Mutex<Idle>,
    unwatched: mpsc::UnboundedSender<RunId>,
}

/// Logs without an owner, in the order in which they became so. An entry may be out of date.
#[derive(Default)]
struct Idle {
    logs: VecDeque<(Instant, RunId, usize)>,
    bytes: usize,
}

/// How a viewer's wish to see a log was answered.
pub(crate) enum Opened {
    /// Here it is.
    Viewer(Box<Viewer>),
    /// It has seen the final event already.
    SeenAll,
    /// The number lies beyond what can have been shown.
    Beyond {
        /// The last number that may have been.
        last: u64,
    },
    /// There is no such run.
    Missing,
}

impl Feed {
    /// An empty feed over `store`, and the runs whose viewers have gone for good, which want to be
    /// cancelled. Needs an actix system.
    pub(crate) fn start(
        store: Arc<dyn RunStore>,
        live: Option<Live>,
        settings: FeedSettings,
    ) -> (Self, mpsc::UnboundedReceiver<RunId>) {
        let (unwatched, to_cancel) = mpsc::unbounded_channel();
        let (gone, watch_gone) = mpsc::unbounded_channel();
        let shared = Shared {
            store,
            settings,
            live: live.map(Arc::new),
            shards: std::array::from_fn(|_| Mutex::default()),
            idle: Mutex::default(),
            unwatched: gone,
        };
        let feed = Self { shared: Arc::new(shared) };
        let actor = FeedActor { feed: feed.clone(), unwatched, gone: Some(watch_gone) };
        actor.start();
        (feed, to_cancel)
    }

    /// The actor of a claimed run takes its log, to write the attempt that `started` begins.
    pub(crate) fn own(
        &self,
        run: &Run,
        started: &Segment,
        reserved_seq: u64,
        lease: Option<Arc<Lease>>,
    ) -> Arc<RunLog> {
        let log = self.log(run.spec.id, &run.spec.tenant);
        let ownership = log.own(started, reserved_seq, lease);
        if let Some(live) = &self.shared.live {
            spawn(live::announce(Arc::clone(live), Arc::clone(&log), ownership, started.first_seq()));
        }
        log
    }

    /// The actor has let its log go. Whoever watches here follows the next owner.
    pub(crate) fn disowned(&self, log: &Arc<RunLog>) {
        self.idle(log);
        self.follow(log);
    }

    /// Follows the owner of `log`, if that is to be done and not done yet.
    fn follow(&self, log: &Arc<RunLog>) {
        if let Some(live) = &self.shared.live
            && log.begin_mirror()
        {
            spawn(live::follow(self.clone(), Arc::clone(live), Arc::clone(log)));
        }
    }

    fn logs(&self) -> Vec<Arc<RunLog>> {
        self.shared.shards.iter().flat_map(|shard| shard.lock().values().cloned().collect::<Vec<_>>()).collect()
    }

    /// The log of run `id`, which the caller has seen to exist; made if it is not in memory.
    fn log(&self, id: RunId, tenant: &Tenant) -> Arc<RunLog> {
        let mut shard = self.shard(id).lock();
        Arc::clone(shard.entry(id).or_insert_with(|| RunLog::new(id, tenant.clone())))
    }

    /// A run was created with these events: viewers that come soon find them here.
    pub(crate) fn created(&self, id: RunId, tenant: &Tenant, segment: &Segment, cancel_unwatched: bool) {
        let log = self.log(id, tenant);
        if cancel_unwatched {
            log.cancel_unwatched();
        }
        log.append(segment, false);
        self.idle(&log);
    }

    /// A run that nobody owns has changed.
    pub(crate) fn changed(&self, id: RunId, segment: &Segment, status: Status) {
        let log = self.shard(id).lock().get(&id).cloned();
        if let Some(log) = log {
            log.append(segment, status.is_final());
            self.idle(&log);
        }
        if let Some(live) = &self.shared.live {
            let (live, segment) = (Arc::clone(live), segment.clone());
            spawn(async move { live.announce(id, &segment).await });
        }
    }

    /// The log has no owner (any more): it stays for a while, for viewers that come late.
    pub(crate) fn idle(&self, log: &RunLog) {
        let bytes = log.bytes();
        let mut idle = self.shared.idle.lock();
        idle.bytes += bytes;
        idle.logs.push_back((Instant::now() + self.shared.settings.ended_linger, log.id, bytes));
        let mut evicted = Vec::new();
        while idle.bytes > self.shared.settings.ended_memory {
            match idle.logs.pop_front() {
                Some((_, id, bytes)) => {
                    idle.bytes -= bytes;
                    evicted.push(id);
                }
                None => break,
            }
        }
        drop(idle);
        evicted.into_iter().for_each(|id| self.evict(id));
    }

    /// The run was removed: its viewers are closed without a final event.
    pub(crate) fn removed(&self, id: RunId) {
        let log = self.shard(id).lock().remove(&id);
        if let Some(log) = log {
            log.cut();
        }
    }

    /// Ends all streams; those of live runs without a final event.
    pub(crate) fn cut_all(&self) {
        for shard in &self.shared.shards {
            shard.lock().values().for_each(|log| log.cut());
        }
    }

    /// Opens the log of the tenant's run `id` after number `after`, for somebody who watches, or who merely
    /// waits for the end: that is not watching, where a run wants to be watched.
    pub(crate) async fn open(
        &self,
        tenant: &Tenant,
        id: RunId,
        after: u64,
        watches: bool,
    ) -> Result<Opened, StoreError> {
        // A log is made only for a run that is this tenant's.
        let in_memory = self.shard(id).lock().contains_key(&id);
        let known = match in_memory {
            true => None,
            false => match self.shared.store.get(tenant, id).await? {
                Some(stored) => Some(stored),
                None => return Ok(Opened::Missing),
            },
        };
        // The place in the log is taken first and the log loaded then, so that nothing is missed between.
        let Some(viewer) = self.enter(id, tenant) else { return Ok(Opened::Missing) };
        // A log that lives on another node may be further there.
        let elsewhere = self.shared.live.is_some() && !viewer.log().is_owned();
        let shown = match viewer.shown() {
            Some(shown) if !elsewhere || shown.end.is_some() => shown,
            _ => {
                let final_already = known.filter(|stored| stored.run.status.is_final());
                let stored = match final_already {
                    Some(stored) => Some(stored),
                    None => self.shared.store.get(tenant, id).await?,
                };
                let Some(Stored { run, reserved_seq, .. }) = stored else { return Ok(Opened::Missing) };
                if run.spec.on_disconnect == OnDisconnect::Cancel {
                    viewer.log().cancel_unwatched();
                }
                viewer.log().loaded(run.last_seq, run.status.is_final());
                let end = run.status.is_final().then_some(End::Final);
                let stored = Shown { visible: run.last_seq, reserved: reserved_seq.max(run.last_seq), end };
                viewer.shown().filter(|newer| newer.reserved >= stored.reserved).unwrap_or(stored)
            }
        };
        if shown.end == Some(End::Final) && after == shown.visible {
            return Ok(Opened::SeenAll);
        }
        if after > shown.reserved {
            // The store may know of more: an event that is not in memory yet, or a reservation.
            let Some(stored) = self.shared.store.get(tenant, id).await? else { return Ok(Opened::Missing) };
            let last = stored.reserved_seq.max(stored.run.last_seq);
            if after > last {
                return Ok(Opened::Beyond { last });
            }
        }
        self.follow(viewer.log());
        // Who was not let in has watched nothing, and leaves nobody unwatched.
        let viewer = if watches { viewer.watching() } else { viewer };
        Ok(Opened::Viewer(Box::new(viewer.after(after))))
    }

    /// A reader of the log, unless it is another tenant's.
    fn enter(&self, id: RunId, tenant: &Tenant) -> Option<Viewer> {
        let mut shard = self.shard(id).lock();
        let log = Arc::clone(shard.entry(id).or_insert_with(|| RunLog::new(id, tenant.clone())));
        if log.tenant != *tenant {
            return None;
        }
        let slot = log.enter();
        drop(shard);
        Some(Viewer::new(self.clone(), log, slot))
    }

    fn leave(&self, log: &RunLog, slot: usize, watches: bool) {
        let left = log.leave(slot, watches);
        if left.deserted {
            log.nudge();
        }
        if left.unwatched {
            // Nobody listens any more once the node has stopped.
            self.shared.unwatched.send(log.id).unwrap_or_default();
        } else if left.deserted {
            // A log that is done, or was opened for a viewer alone, goes with its last reader.
            self.evict(log.id);
        }
    }

    fn evict(&self, id: RunId) {
        let mut shard = self.shard(id).lock();
        if shard.get(&id).is_some_and(|log| log.is_idle()) {
            shard.remove(&id);
            if shard.capacity() > 64 && shard.len() * 4 < shard.capacity() {
                shard.shrink_to_fit();
            }
        }
    }

    fn evict_expired(&self) {
        let now = Instant::now();
        let mut idle = self.shared.idle.lock();
        let expired = idle.logs.partition_point(|(until, _, _)| *until <= now);
        let expired: Vec<_> = idle.logs.drain(..expired).collect();
        idle.bytes -= expired.iter().map(|(_, _, bytes)| bytes).sum::<usize>();
        if idle.logs.capacity() > 1024 && idle.logs.len() * 4 < idle.logs.capacity() {
            idle.logs.shrink_to_fit();
        }
        drop(idle);
        expired.into_iter().for_each(|(_, id, _)| self.evict(id));
    }

    /// Somebody watches the run here.
    pub(crate) fn watched(&self, id: RunId) -> bool {
        self.shard(id).lock().get(&id).is_some_and(|log| log.is_watched())
    }

    /// How many logs are in memory.
    pub(crate) fn len(&self) -> usize {
        self.shared.shards.iter().map(|shard| shard.lock().len()).sum()
    }

    /// How many viewers there are.
    pub(crate) fn viewers(&self) -> usize {
        let count =
            |shard: &Mutex<HashMap<_, Arc<RunLog>>>| shard.lock().values().map(|log| log.readers()).sum::<usize>();
        self.shared.shards.iter().map(count).sum()
    }

    pub(crate) fn settings(&self) -> &FeedSettings {
        &self.shared.settings
    }

    fn store(&self) -> Arc<dyn RunStore> {
        Arc::clone(&self.shared.store)
    }

    fn shard(&self, id: RunId) -> &Mutex<HashMap<RunId, Arc<RunLog>>> {
        &self.shared.shards[id.spread() % SHARDS]
    }
}

/// Spawns a task on the caller's thread. While the system comes down there is none, and nothing to do.
fn spawn(task: impl Future<Output = ()> + Send + 'static) {
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        drop(runtime.spawn(task));
    }
}

/// Owns what happens to logs by itself.
struct FeedActor {
    feed: Feed,
    unwatched: mpsc::UnboundedSender<RunId>,
    gone: Option<mpsc::UnboundedReceiver<RunId>>,
}

impl Actor for FeedActor {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Self::Context) {
        context.run_interval(TICK, |actor, _| actor.feed.evict_expired());
        if self.feed.shared.live.is_some() {
            let feed = self.feed.clone();
            context.spawn(
                async move {
                    loop {
                        tokio::time::sleep(live::CHECK).await;
                        live::check(&feed).await;
                    }
                }
                .into_actor(self),
            );
        }
        if let Some(gone) = self.gone.take() {
            context.add_stream(futures_util::stream::unfold(gone, async |mut gone| {
                gone.recv().await.map(|id| (id, gone))
            }));
        }
    }
}

/// The last viewer of a run that wants to be watched has left.
impl StreamHandler<RunId> for FeedActor {
    fn handle(&mut self, id: RunId, context: &mut Self::Context) {
        let unwatched = self.unwatched.clone();
        let grace = self.feed.shared.settings.disconnect_grace;
        let feed = self.feed.clone();
        context.spawn(
            async move {
                tokio::time::sleep(grace).await;
                if !feed.watched(id) {
                    // Nobody listens any more once the node has stopped.
                    unwatched.send(id).unwrap_or_default();
                }
            }
            .into_actor(self),
        );
    }
}
