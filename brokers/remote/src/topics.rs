//! Who watches what, and what they have not read yet. The adapter keeps one connection subscribed to it.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use runcast_broker::{Announcement, BrokerError, Name, Watch};
use tokio::sync::{Notify, oneshot};
use tokio::task::coop::consume_budget;
use tokio_util::sync::CancellationToken;

use crate::Failure;

/// Who watches what. The lock is held for moments only.
#[derive(Default)]
pub struct Topics {
    registry: Mutex<Registry>,
    /// Somebody came, or all of a topic went.
    changed: Notify,
}

#[derive(Default)]
struct Registry {
    topics: HashMap<Name, Vec<Arc<Watcher>>>,
    /// Topics whose watchers came, or all went, since they were last looked at.
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

    /// The first answer ends the wait of [`RemoteWatch::new`]; `false` if that was over before.
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

impl std::fmt::Debug for Topics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Topics").finish_non_exhaustive()
    }
}

/// A watch of one topic. Dropping it ends it.
pub struct RemoteWatch {
    topics: Arc<Topics>,
    topic: Name,
    watcher: Arc<Watcher>,
    closed: CancellationToken,
}

impl RemoteWatch {
    /// Begins to watch `topic`; returns when the server has confirmed the subscription. The caller limits the time. At most
    /// `bound` announcements are kept unread; in the place of more there is a gap. `closed` ends it with the broker.
    ///
    /// Dropping the future leaves nothing behind.
    ///
    /// # Errors
    /// Why it cannot be subscribed to.
    pub async fn new(
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

impl std::fmt::Debug for RemoteWatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RemoteWatch").field("topic", &self.topic).finish_non_exhaustive()
    }
}

#[async_trait]
impl Watch for RemoteWatch {
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

impl Drop for RemoteWatch {
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

/// What to subscribe to and what not any more.
#[derive(Debug)]
pub struct Change {
    /// They are watched.
    pub came: Vec<Name>,
    /// Nobody watches them any more.
    pub went: Vec<Name>,
}

impl Topics {
    /// Returns when somebody came, or all of a topic went, since this returned last. Cancellation safe.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Whether anything is watched.
    #[must_use]
    pub fn is_watched(&self) -> bool {
        !self.registry.lock().topics.is_empty()
    }

    /// A new connection: everything is to be subscribed to.
    pub fn begin(&self) {
        let mut registry = self.registry.lock();
        registry.touched = registry.topics.keys().cloned().collect();
    }

    /// What was touched since the last time.
    #[must_use]
    pub fn change(&self) -> Change {
        let mut registry = self.registry.lock();
        let touched = std::mem::take(&mut registry.touched);
        let (came, went) = touched.into_iter().partition(|topic| registry.topics.contains_key(topic));
        Change { came, went }
    }

    /// The server has subscribed us to `topics`: tells those who wait for it. On a `fresh` connection the others
    /// read a gap, since they have missed what came in between.
    pub fn bound(&self, topics: &[Name], fresh: bool) {
        let registry = self.registry.lock();
        for watcher in topics.iter().filter_map(|topic| registry.topics.get(topic)).flatten() {
            if !watcher.confirm(Ok(())) && fresh {
                watcher.push(Announcement::Gap);
            }
        }
    }

    /// Tells those who wait for their first subscription that it failed.
    pub fn failed(&self, failure: &Failure) {
        for watcher in self.registry.lock().topics.values().flatten() {
            watcher.confirm(Err(failure.clone()));
        }
    }

    /// Something was announced.
    pub fn hand_out(&self, topic: &Name, payload: &Bytes) {
        for watcher in self.registry.lock().topics.get(topic).into_iter().flatten() {
            watcher.push(Announcement::Payload(payload.clone()));
        }
    }
}
