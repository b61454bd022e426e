//! Announcements: one connection for all subscriptions of this process.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use parking_lot::Mutex;
use redis::aio::{PubSubSink, PubSubStream};
use redis::{Msg, RedisResult, Value};
use runcast_broker::{Announcement, Backoff, BrokerError, Name, Watch};
use tokio::sync::{Notify, oneshot};
use tokio::task::coop::consume_budget;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use crate::failure::Failure;
use crate::keys::Keys;
use crate::link::Endpoint;

/// How many channels one SUBSCRIBE names.
const CHUNK: usize = 512;

/// Who watches what. The lock is held for moments only.
#[derive(Default)]
pub(crate) struct Topics {
    registry: Mutex<Registry>,
    changed: Notify,
}

#[derive(Default)]
struct Registry {
    topics: HashMap<Name, Vec<Arc<Watcher>>>,
    /// Topics whose watchers came, or all went, since the subscriptions were last looked at.
    touched: HashSet<Name>,
}

struct Watcher {
    unread: Mutex<VecDeque<Announcement>>,
    bound: usize,
    notify: Notify,
    /// Who is to hear that the watch is in place; nobody once it is.
    confirm: Mutex<Option<oneshot::Sender<Result<(), Failure>>>>,
}

impl Watcher {
    /// Adds an announcement to what is unread, or a gap in the place of all that does not fit.
    fn push(&self, announcement: Announcement) {
        let mut unread = self.unread.lock();
        let announcement = if unread.len() < self.bound { announcement } else { Announcement::Gap };
        if announcement != Announcement::Gap || unread.back() != Some(&Announcement::Gap) {
            unread.push_back(announcement);
        }
        drop(unread);
        self.notify.notify_one();
    }

    /// The first answer ends the wait of [`RedisWatch::new`]; `false` if that was over before.
    fn confirm(&self, result: Result<(), Failure>) -> bool {
        let waiting = self.confirm.lock().take();
        // an error means that it has given up
        waiting.map(|waiting| waiting.send(result)).is_some()
    }

    fn pop(&self) -> Option<Announcement> {
        let mut unread = self.unread.lock();
        let first = unread.pop_front();
        if unread.is_empty() && unread.capacity() > 64 {
            // thousands may watch: a burst that has been read must not stay allocated
            *unread = VecDeque::new();
        }
        first
    }
}

pub(crate) struct RedisWatch {
    topics: Arc<Topics>,
    topic: Name,
    watcher: Arc<Watcher>,
    closed: CancellationToken,
}

impl RedisWatch {
    /// Returns when the server has confirmed the subscription. The caller limits the time.
    pub(crate) async fn new(
        topics: &Arc<Topics>,
        topic: &Name,
        bound: usize,
        closed: CancellationToken,
    ) -> Result<Self, BrokerError> {
        let (confirm, confirmed) = oneshot::channel();
        let confirm = Mutex::new(Some(confirm));
        let watcher = Arc::new(Watcher { unread: Mutex::default(), bound, notify: Notify::new(), confirm });
        {
            let mut registry = topics.registry.lock();
            registry.topics.entry(topic.clone()).or_default().push(Arc::clone(&watcher));
            registry.touched.insert(topic.clone());
        }
        // made before anything is awaited: dropping it takes the watcher off the list again
        let watch = Self { topics: Arc::clone(topics), topic: topic.clone(), watcher, closed };
        topics.changed.notify_one();
        confirmed.await.map_err(|_| BrokerError::closed())??;
        Ok(watch)
    }
}

#[async_trait]
impl Watch for RedisWatch {
    async fn next(&mut self) -> Result<Announcement, BrokerError> {
        // one that lags must not keep its thread from other tasks
        consume_budget().await;
        loop {
            if self.closed.is_cancelled() {
                return Err(BrokerError::closed());
            }
            if let Some(announcement) = self.watcher.pop() {
                return Ok(announcement);
            }
            tokio::select! {
                () = self.watcher.notify.notified() => {}
                () = self.closed.cancelled() => {}
            }
        }
    }
}

impl Drop for RedisWatch {
    fn drop(&mut self) {
        let mut registry = self.topics.registry.lock();
        let Some(watchers) = registry.topics.get_mut(&self.topic) else { return };
        watchers.retain(|other| !Arc::ptr_eq(other, &self.watcher));
        if watchers.is_empty() {
            registry.topics.remove(&self.topic);
            registry.touched.insert(self.topic.clone());
            self.topics.changed.notify_one();
        }
    }
}

/// Keeps one connection subscribed to what is watched, for ever.
pub(crate) async fn subscribe(topics: Arc<Topics>, endpoint: Arc<Endpoint>, keys: Keys, limit: Duration) {
    let mut backoff = Backoff::default();
    loop {
        while topics.registry.lock().topics.is_empty() {
            topics.changed.notified().await;
        }
        let failure = match endpoint.subscriber().await {
            Ok(connection) => {
                let (sink, stream) = connection.split();
                let on = HashSet::new();
                let session = Session { topics: &topics, endpoint: &endpoint, keys: &keys, limit, sink, on };
                session.run(stream, &mut backoff).await
            }
            Err(failure) => failure,
        };
        tracing::debug!(error = &*failure.text, "announcements are interrupted");
        for watcher in topics.registry.lock().topics.values().flatten() {
            watcher.confirm(Err(failure.clone()));
        }
        tokio::time::sleep(backoff.next()).await;
    }
}

/// The life of one connection.
struct Session<'a> {
    topics: &'a Topics,
    endpoint: &'a Endpoint,
    keys: &'a Keys,
    limit: Duration,
    sink: PubSubSink,
    /// What the server has confirmed.
    on: HashSet<Name>,
}

impl Session<'_> {
    /// Returns why the connection is of no more use.
    async fn run(mut self, stream: PubSubStream, backoff: &mut Backoff) -> Failure {
        {
            let mut registry = self.topics.registry.lock();
            registry.touched = registry.topics.keys().cloned().collect();
        }
        if let Err(failure) = self.reconcile(true).await {
            return failure;
        }
        *backoff = Backoff::default();
        self.listen(stream).await
    }

    async fn listen(mut self, mut stream: PubSubStream) -> Failure {
        // a connection that has gone silent is found out by asking
        let mut heartbeat = interval(self.limit.max(Duration::from_secs(1)) * 2);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let step = tokio::select! {
                message = stream.next() => match message {
                    Some(message) => {
                        self.hand_out(&message);
                        Ok(())
                    }
                    None => Err(Failure::transient("redis: the connection for announcements has ended")),
                },
                () = self.topics.changed.notified() => self.reconcile(false).await,
                _ = heartbeat.tick() => self.ping().await,
            };
            if let Err(failure) = step {
                return failure;
            }
        }
    }

    fn hand_out(&self, message: &Msg) {
        let Some(topic) = self.keys.topic_of(message.get_channel_name()) else { return };
        let payload = Bytes::copy_from_slice(message.get_payload_bytes());
        for watcher in self.topics.registry.lock().topics.get(&topic).into_iter().flatten() {
            watcher.push(Announcement::Payload(payload.clone()));
        }
    }

    /// Subscribes to what came and unsubscribes from what went, then tells those who wait for it. On
    /// a `fresh` connection the others read a gap: they have missed what came in between.
    async fn reconcile(&mut self, fresh: bool) -> Result<(), Failure> {
        let (wanted, unwanted): (Vec<Name>, Vec<Name>) = {
            let mut registry = self.topics.registry.lock();
            let touched = std::mem::take(&mut registry.touched);
            touched.into_iter().partition(|topic| registry.topics.contains_key(topic))
        };
        let channels = |topics: &[Name], on: bool| -> Vec<String> {
            topics.iter().filter(|topic| self.on.contains(*topic) == on).map(|topic| self.keys.topic(topic)).collect()
        };
        let (came, went) = (channels(&wanted, false), channels(&unwanted, true));
        for channels in came.chunks(CHUNK) {
            self.limited(self.sink.clone().subscribe(channels)).await?;
        }
        for channels in went.chunks(CHUNK) {
            self.limited(self.sink.clone().unsubscribe(channels)).await?;
        }
        for topic in &unwanted {
            self.on.remove(topic);
        }
        for topic in wanted {
            for watcher in self.topics.registry.lock().topics.get(&topic).into_iter().flatten() {
                if !watcher.confirm(Ok(())) && fresh {
                    watcher.push(Announcement::Gap);
                }
            }
            self.on.insert(topic);
        }
        Ok(())
    }

    async fn ping(&self) -> Result<(), Failure> {
        self.limited(self.sink.clone().ping::<Value>()).await.map(drop)
    }

    async fn limited<T>(&self, call: impl Future<Output = RedisResult<T>>) -> Result<T, Failure> {
        match timeout(self.limit, call).await {
            Ok(done) => done.map_err(|error| self.endpoint.failure(&error)),
            Err(_) => Err(Failure::transient("redis: no answer in time on the connection for announcements")),
        }
    }
}
