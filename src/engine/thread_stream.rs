//! Watching a thread: the events of all its runs, and its own, as one stream that can be resumed at every event.
//!
//! The thread's own log tells which runs there are. Each run that has not been shown to its end has a [`Viewer`], and
//! whatever one of them has to show goes out as it comes: a run that waits holds up no other. That the log has grown
//! is announced on the thread's topic; what gets lost there is found by looking at the store.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::future::BoxFuture;
use futures_util::stream::{BoxStream, SelectAll};
use futures_util::{FutureExt, Stream, StreamExt, stream};
use runcast_broker::{BrokerError, Watch};
use serde::Serialize;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::feed::{Opened, Viewer};
use super::threads::topic;
use super::{Engine, Node};
use crate::run::segment::frames;
use crate::run::{RunId, Status, Tenant, ThreadId, is_final_kind};
use crate::store::{RunFilter, StoreError};
use crate::thread::{Event, Happened, MOST_OPEN, Position};

/// How often the store is looked at, in case an announcement got lost.
const LOOK: Duration = Duration::from_secs(1);

/// And how often where there are no other nodes.
const ALONE: Duration = Duration::from_secs(10);

/// How long the broker may take to confirm a watch. Without one the store is looked at.
const PATIENCE: Duration = Duration::from_secs(5);

/// How many entries of the thread's log are read at a time.
const PAGE: usize = 256;

/// Sent when nothing has happened for a while.
const HEARTBEAT: Bytes = Bytes::from_static(b": still here\n\n");

/// Where a stream of a thread begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WatchFrom {
    /// With the runs that have not ended, each from its first event.
    Now,
    /// With the first event of the thread.
    Start,
    /// After what was seen.
    After(Position),
}

/// Why a thread cannot be watched.
#[derive(Debug, Clone, thiserror::Error)]
pub enum WatchThreadError {
    /// There is no such thread, or it is another tenant's.
    #[error("there is no such thread")]
    Missing,
    /// The position lies beyond what can have been shown.
    #[error("the position lies beyond what can have been shown of the thread")]
    Beyond,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Engine {
    /// Watches the tenant's thread: the frames of all its runs' events, `run_id` added to their data, and of its own
    /// events. The id of each frame is the [`Position`] after it. Nothing for `heartbeat` is followed by a comment.
    ///
    /// The stream ends when the node shuts down or the thread is removed, and when the store fails while it is read
    /// for a run: whoever comes back with the last position misses nothing.
    pub async fn watch_thread(
        &self,
        tenant: &Tenant,
        id: ThreadId,
        from: WatchFrom,
        heartbeat: Duration,
    ) -> Result<impl Stream<Item = Bytes> + use<>, WatchThreadError> {
        let source = Source { node: Arc::clone(&self.node), tenant: tenant.clone(), id };
        // What happens from now on is announced, or found when the log is read.
        let watch = source.watch().await;
        let thread = source.node.store.thread(Some(tenant), id).await?.ok_or(WatchThreadError::Missing)?;
        let position = match from {
            WatchFrom::Start => Position::default(),
            WatchFrom::Now => source.now(thread.last_event).await?,
            WatchFrom::After(position) if position.last > thread.last_event => return Err(WatchThreadError::Beyond),
            WatchFrom::After(position) => position,
        };
        let mut shown = ThreadStream {
            position: Position { last: position.last, open: BTreeMap::new() },
            source,
            cut: self.life.cut.clone(),
            watch,
            watching: None,
            viewers: SelectAll::new(),
            runs: BTreeMap::new(),
            reading: None,
            look: true,
            heartbeat,
            silent_since: Instant::now(),
            looked: Instant::now(),
        };
        for (entry, seq) in position.open {
            let found = shown.source.node.store.thread_log(id, entry - 1, 1).await?;
            let run = found.first().filter(|event| event.seq == entry).map(|event| &event.happened);
            let Some(Happened::Run(run)) = run else { return Err(WatchThreadError::Beyond) };
            match shown.source.node.feed.open(tenant, *run, seq, true).await? {
                Opened::Viewer(viewer) => shown.show(entry, *run, seq, *viewer),
                Opened::Beyond { .. } => return Err(WatchThreadError::Beyond),
                // It was seen to its end, or retention has removed it.
                Opened::SeenAll | Opened::Missing => {}
            }
        }
        Ok(stream::unfold(shown, async |mut shown| shown.next().await.map(|frames| (frames, shown))))
    }
}

/// Where the stream's events come from.
#[derive(Clone)]
struct Source {
    node: Arc<Node>,
    tenant: Tenant,
    id: ThreadId,
}

/// What was read of the thread's log.
enum Read {
    /// There is no such thread any more.
    Gone,
    /// The next entries; those about runs with what shows them, unless they are gone.
    Entries(Vec<(Event, Option<Box<Viewer>>)>),
}

impl Source {
    async fn watch(&self) -> Option<Box<dyn Watch>> {
        match timeout(PATIENCE, self.node.broker.watch(&topic(self.id))).await {
            Ok(Ok(watch)) => return Some(watch),
            Ok(Err(error)) => tracing::debug!(thread = %self.id, %error, "cannot watch a thread"),
            Err(_) => tracing::debug!(thread = %self.id, "watching a thread takes too long"),
        }
        None
    }

    /// Where the open runs begin, in a thread whose log had `last` entries a moment ago.
    async fn now(&self, last: u64) -> Result<Position, StoreError> {
        let store = &self.node.store;
        let mut wanted = BTreeSet::new();
        let mut before = None;
        loop {
            let statuses = vec![Status::Scheduled, Status::Queued, Status::Running, Status::Waiting];
            let filter = RunFilter { before, statuses, thread: Some(self.id), ..RunFilter::default() };
            let page = store.list(&self.tenant, filter, PAGE).await?;
            wanted.extend(page.iter().map(|stored| stored.run.spec.id));
            before = page.last().map(|stored| stored.run.spec.id).filter(|_| page.len() == PAGE);
            if before.is_none() {
                break;
            }
        }
        // Those that came since are found in the log's further entries.
        for event in store.thread_log(self.id, last, PAGE).await? {
            if let Happened::Run(run) = event.happened {
                wanted.remove(&run);
            }
        }
        let (mut open, mut until) = (BTreeMap::new(), last);
        while !wanted.is_empty() && until > 0 {
            let after = until.saturating_sub(PAGE as u64);
            for event in store.thread_log(self.id, after, (until - after) as usize).await? {
                if let Happened::Run(run) = event.happened
                    && wanted.remove(&run)
                {
                    open.insert(event.seq, 0);
                }
            }
            until = after;
        }
        // The oldest go first; the others are met when the log is read on from before them.
        let first_left = open.keys().nth(MOST_OPEN).copied();
        let last = first_left.map_or(last, |first_left| first_left - 1);
        open.retain(|entry, _| *entry <= last);
        Ok(Position { last, open })
    }

    /// The entries after number `after`, up to the first run for which there is no `room`.
    async fn read(self, after: u64, mut room: usize) -> Result<Read, StoreError> {
        let store = &self.node.store;
        let Some(thread) = store.thread(Some(&self.tenant), self.id).await? else { return Ok(Read::Gone) };
        let mut entries = Vec::new();
        if thread.last_event <= after {
            return Ok(Read::Entries(entries));
        }
        for event in store.thread_log(self.id, after, PAGE).await? {
            let mut shown = None;
            if let Happened::Run(run) = event.happened {
                if room == 0 {
                    break;
                }
                if let Opened::Viewer(viewer) = self.node.feed.open(&self.tenant, run, 0, true).await? {
                    room -= 1;
                    shown = Some(viewer);
                }
            }
            entries.push((event, shown));
        }
        Ok(Read::Entries(entries))
    }
}

/// What a viewer has to show; `None`: it has ended.
type Piece = (u64, Option<Bytes>);

struct ThreadStream {
    source: Source,
    cut: CancellationToken,
    watch: Option<Box<dyn Watch>>,
    /// A watch is being put in place again.
    watching: Option<BoxFuture<'static, Option<Box<dyn Watch>>>>,
    position: Position,
    viewers: SelectAll<BoxStream<'static, Piece>>,
    /// The open runs, by their entries.
    runs: BTreeMap<u64, RunId>,
    reading: Option<BoxFuture<'static, Result<Read, StoreError>>>,
    /// The thread's log may have grown.
    look: bool,
    looked: Instant,
    heartbeat: Duration,
    silent_since: Instant,
}

impl ThreadStream {
    fn show(&mut self, entry: u64, run: RunId, seq: u64, viewer: Viewer) {
        self.position.open.insert(entry, seq);
        self.runs.insert(entry, run);
        let end = stream::once(std::future::ready((entry, None)));
        self.viewers.push(viewer.map(move |frames| (entry, Some(frames))).chain(end).boxed());
    }

    /// The next frames; `None` at the end.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            let room = MOST_OPEN.saturating_sub(self.position.open.len());
            if self.look && room > 0 && self.reading.is_none() && !self.cut.is_cancelled() {
                self.look = false;
                self.looked = Instant::now();
                self.reading = Some(self.source.clone().read(self.position.last, room).boxed());
            }
            let look = self.looked + self.look_every();
            let frames = tokio::select! {
                Some((entry, piece)) = self.viewers.next() => match piece {
                    Some(frames) => self.rewritten(entry, &frames),
                    None => self.ended(entry).await?,
                },
                read = resolved(&mut self.reading) => {
                    self.reading = None;
                    self.read(read)?
                }
                watch = resolved(&mut self.watching) => {
                    (self.watching, self.watch, self.look) = (None, watch, true);
                    continue;
                }
                // The viewers end by themselves, after what there is to show.
                () = self.cut.cancelled(), if self.viewers.is_empty() => return None,
                announced = announced(&mut self.watch) => {
                    self.look = true;
                    if let Err(error) = announced {
                        tracing::debug!(thread = %self.source.id, %error, "the watch has ended");
                        self.watch = None;
                    }
                    continue;
                }
                () = sleep_until(look) => {
                    self.look = true;
                    self.looked = Instant::now();
                    if self.watch.is_none() && self.watching.is_none() {
                        let source = self.source.clone();
                        self.watching = Some(async move { source.watch().await }.boxed());
                    }
                    continue;
                }
                () = sleep_until(self.silent_since + self.heartbeat) => HEARTBEAT,
            };
            if !frames.is_empty() {
                self.silent_since = Instant::now();
                return Some(frames);
            }
        }
    }

    /// How often the store is looked at unasked: an announcement of another node may be lost, one of this node's is not.
    fn look_every(&self) -> Duration {
        if self.source.node.shared || self.watch.is_none() { LOOK } else { ALONE }
    }

    /// The frames of the run of `entry`, as they are shown here.
    fn rewritten(&mut self, entry: u64, bytes: &Bytes) -> Bytes {
        let Some(run) = self.runs.get(&entry) else { return Bytes::new() };
        let mut out = BytesMut::with_capacity(bytes.len() * 2);
        for (seq, kind, data) in frames(bytes) {
            if is_final_kind(kind) {
                self.position.open.remove(&entry);
                self.look = true;
            } else {
                self.position.open.insert(entry, seq);
            }
            let rest = data.strip_prefix('{').unwrap_or(data);
            let comma = if rest == "}" { "" } else { "," };
            let (id, position) = (run, &self.position);
            let frame = format!("id: {position}\nevent: {kind}\ndata: {{\"run_id\":\"{id}\"{comma}{rest}\n\n");
            out.put_slice(frame.as_bytes());
        }
        out.freeze()
    }

    /// The viewer of `entry` has ended. `None`: and so does this stream.
    async fn ended(&mut self, entry: u64) -> Option<Bytes> {
        let Some(run) = self.runs.remove(&entry) else { return Some(Bytes::new()) };
        if self.position.open.contains_key(&entry) && !self.cut.is_cancelled() {
            // Not after a final event: it was removed, or could not be read.
            match self.source.node.store.get(&self.source.tenant, run).await {
                Ok(None) => {}
                Ok(Some(_)) | Err(_) => return None,
            }
            self.position.open.remove(&entry);
            self.look = true;
        }
        Some(Bytes::new())
    }

    /// Takes in what was read of the log. `None`: there is nothing more to come.
    fn read(&mut self, read: Result<Read, StoreError>) -> Option<Bytes> {
        let entries = match read {
            Ok(Read::Gone) => return None,
            Ok(Read::Entries(entries)) => entries,
            Err(error) => {
                tracing::debug!(thread = %self.source.id, %error, "cannot read the log of a thread; trying again");
                return Some(Bytes::new());
            }
        };
        let mut out = BytesMut::new();
        // There may be more than were read.
        self.look |= !entries.is_empty();
        for (event, viewer) in entries {
            self.position.last = event.seq;
            let kind = event.happened.kind().as_str();
            match &event.happened {
                Happened::Run(run) => {
                    if let Some(viewer) = viewer {
                        self.show(event.seq, *run, 0, *viewer);
                    }
                    continue;
                }
                Happened::HandedOff { .. } | Happened::Released | Happened::FollowUp(_) => {}
            }
            let handed_off = matches!(event.happened, Happened::HandedOff { .. });
            let reason = handed_off.then(|| event.happened.text());
            let data = serde_json::to_string(&Own { reason, run_id: event.happened.run() }).unwrap_or_default();
            out.put_slice(format!("id: {}\nevent: {kind}\ndata: {data}\n\n", self.position).as_bytes());
        }
        Some(out.freeze())
    }
}

/// The data of a thread's own event.
#[derive(Serialize)]
struct Own<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    run_id: Option<RunId>,
}

async fn resolved<T>(future: &mut Option<BoxFuture<'static, T>>) -> T {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}

async fn announced(watch: &mut Option<Box<dyn Watch>>) -> Result<(), BrokerError> {
    match watch {
        Some(watch) => watch.next().await.map(drop),
        None => std::future::pending().await,
    }
}
