//! Who watches what, and what they have not read yet.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use runcast_broker::{Announcement, BrokerError, Name, Watch};
use tokio::sync::{Notify, oneshot};
use tokio::task::coop::consume_budget;
use tokio_util::sync::CancellationToken;

use crate::failure::Failure;

/// Who watches what. The lock is held for moments only.
#[derive(Default)]
pub(crate) struct Topics {
    registry: Mutex<Registry>,
    /// Somebody came, or all of a topic went.
    pub(crate) changed: Notify,
}

#[derive(Default)]
struct Registry {
    topics: HashMap<Name, Vec<Arc<Watcher>>>,
    /// Topics whose watchers came, or all went, since the bindings were last looked at.
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

    /// The first answer ends the wait of [`AmqpWatch::new`]; `false` if that was over before.
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

pub(crate) struct AmqpWatch {
    topics: Arc<Topics>,
    topic: Name,
    watcher: Arc<Watcher>,
    closed: CancellationToken,
}

impl AmqpWatch {
    /// Returns when the server has confirmed the binding. The caller limits the time.
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
impl Watch for AmqpWatch {
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

impl Drop for AmqpWatch {
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

/// What to bind and what to unbind.
pub(crate) struct Change {
    pub(crate) came: Vec<Name>,
    pub(crate) went: Vec<Name>,
}

impl Topics {
    /// A new connection: everything is to be bound.
    pub(crate) fn begin(&self) {
        let mut registry = self.registry.lock();
        registry.touched = registry.topics.keys().cloned().collect();
    }

    /// What was touched since the last time.
    pub(crate) fn change(&self) -> Change {
        let mut registry = self.registry.lock();
        let touched = std::mem::take(&mut registry.touched);
        let (came, went) = touched.into_iter().partition(|topic| registry.topics.contains_key(topic));
        Change { came, went }
    }

    /// The server has bound `topics`: tells those who wait for it. On a `fresh` connection the others
    /// read a gap, since they have missed what came in between.
    pub(crate) fn bound(&self, topics: &[Name], fresh: bool) {
        let registry = self.registry.lock();
        for watcher in topics.iter().filter_map(|topic| registry.topics.get(topic)).flatten() {
            if !watcher.confirm(Ok(())) && fresh {
                watcher.push(Announcement::Gap);
            }
        }
    }

    /// Tells those who wait for their first binding that it failed.
    pub(crate) fn failed(&self, failure: &Failure) {
        for watcher in self.registry.lock().topics.values().flatten() {
            watcher.confirm(Err(failure.clone()));
        }
    }

    pub(crate) fn hand_out(&self, topic: &Name, payload: &Bytes) {
        for watcher in self.registry.lock().topics.get(topic).into_iter().flatten() {
            watcher.push(Announcement::Payload(payload.clone()));
        }
    }
}
