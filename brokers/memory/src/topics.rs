//! Announcements: who watches what, and what each watcher has not read yet.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use runcast_broker::{Announcement, BrokerError, Name, Watch};
use tokio::sync::Notify;
use tokio::task::coop::consume_budget;

use crate::closable::Closable;

/// The watchers of each topic that has any. An announcement shares the list for as long as it takes
/// to fill the buffers, outside the lock.
#[derive(Default)]
pub(crate) struct Topics(BTreeMap<Name, Arc<Vec<Arc<Watcher>>>>);

pub(crate) struct Watcher {
    unread: Closable<VecDeque<Announcement>>,
    bound: usize,
    notify: Notify,
}

impl Topics {
    /// Everyone who watches `topic` at this moment.
    pub(crate) fn watchers(&self, topic: &Name) -> Option<Arc<Vec<Arc<Watcher>>>> {
        self.0.get(topic).map(Arc::clone)
    }

    /// Ends every watch.
    pub(crate) fn close(self) {
        for watcher in self.0.values().flat_map(|watchers| watchers.iter()) {
            watcher.unread.close();
            watcher.notify.notify_one();
        }
    }

    fn add(&mut self, topic: Name, watcher: Arc<Watcher>) {
        Arc::make_mut(self.0.entry(topic).or_default()).push(watcher);
    }

    fn remove(&mut self, topic: &Name, watcher: &Arc<Watcher>) {
        let Some(watchers) = self.0.get_mut(topic) else { return };
        let watchers = Arc::make_mut(watchers);
        watchers.retain(|other| !Arc::ptr_eq(other, watcher));
        if watchers.is_empty() {
            self.0.remove(topic);
        }
    }
}

impl Watcher {
    /// Adds `payload` to what is unread, or a gap in the place of all that does not fit.
    pub(crate) fn push(&self, payload: Bytes) {
        let pushed = self.unread.open(|unread| {
            if unread.len() < self.bound {
                unread.push_back(Announcement::Payload(payload));
            } else if unread.back() != Some(&Announcement::Gap) {
                unread.push_back(Announcement::Gap);
            }
        });
        if pushed.is_ok() {
            self.notify.notify_one();
        }
    }

    fn pop(&self) -> Result<Option<Announcement>, BrokerError> {
        self.unread.open(|unread| {
            let first = unread.pop_front();
            if unread.is_empty() && unread.capacity() > 64 {
                // thousands may watch: a burst that has been read must not stay allocated
                *unread = VecDeque::new();
            }
            first
        })
    }
}

pub(crate) struct MemoryWatch {
    topics: Arc<Closable<Topics>>,
    topic: Name,
    watcher: Arc<Watcher>,
}

impl MemoryWatch {
    pub(crate) fn new(topics: &Arc<Closable<Topics>>, topic: &Name, bound: usize) -> Result<Self, BrokerError> {
        let watcher = Arc::new(Watcher { unread: Closable::new(VecDeque::new()), bound, notify: Notify::new() });
        topics.open(|open| open.add(topic.clone(), Arc::clone(&watcher)))?;
        Ok(Self { topics: Arc::clone(topics), topic: topic.clone(), watcher })
    }
}

#[async_trait]
impl Watch for MemoryWatch {
    async fn next(&mut self) -> Result<Announcement, BrokerError> {
        // as in a consumer: one that lags must not keep its thread from other tasks
        consume_budget().await;
        loop {
            if let Some(announcement) = self.watcher.pop()? {
                return Ok(announcement);
            }
            self.watcher.notify.notified().await;
        }
    }
}

impl Drop for MemoryWatch {
    fn drop(&mut self) {
        // closed already: the list is gone
        drop(self.topics.open(|open| open.remove(&self.topic, &self.watcher)));
    }
}
