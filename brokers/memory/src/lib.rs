//! A Runcast broker inside one process: the reference adapter.
//!
//! It needs no server and survives no restart; the store republishes what a restart lost. Time is
//! tokio's, so that tests can pause it. Nothing is spawned: a waiting consumer keeps the time of
//! delayed messages itself, and presence is swept when it is touched.
//!
//! Consumers that wait for a delayed message need a tokio runtime with its time driver; everything
//! else runs anywhere.
//!
//! | file | owns |
//! | --- | --- |
//! | `queues` | messages, dead letters, who consumes what; no waiting |
//! | `consumer` | waiting for a message, settling a delivery |
//! | `topics` | announcements and their watchers |
//! | `nodes` | presence |
//! | `closable` | the lock around each of them |

mod closable;
mod consumer;
mod nodes;
mod queues;
mod topics;

use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use runcast_broker::{
    Broker, BrokerError, Capabilities, Consumer, DeadLetter, Depth, ErrorKind, Name, NodePresence, Watch,
};
use tokio::time::Instant;

use crate::closable::Closable;
use crate::consumer::MemoryConsumer;
use crate::nodes::Nodes;
use crate::queues::Queues;
use crate::topics::{MemoryWatch, Topics};

/// The largest message or payload, in bytes.
const MAX_MESSAGE_BYTES: usize = 1024 * 1024;

/// The bounds of a [`MemoryBroker`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryOptions {
    /// How many messages a queue holds at most: ready, delayed and outstanding. Beyond that
    /// `publish` and `requeue_dead_letter` fail with [`ErrorKind::Transient`]. Default 1,000,000.
    pub max_messages: usize,
    /// How many dead letters a queue keeps at most; the oldest is dropped for a new one, with a
    /// warning in the log. Default 10,000.
    pub max_dead_letters: usize,
    /// How many unread announcements each watcher keeps at most. What comes while it is full is
    /// dropped and read as one [`Announcement::Gap`](runcast_broker::Announcement::Gap) in its
    /// place. Default 1,024.
    pub watch_buffer: usize,
}

impl Default for MemoryOptions {
    fn default() -> Self {
        Self { max_messages: 1_000_000, max_dead_letters: 10_000, watch_buffer: 1024 }
    }
}

/// A [`Broker`] inside one process.
///
/// No method waits; only [`Consumer::next`] and [`Watch::next`] do. Beyond the contract:
///
/// - A message that is returned (by dropping its delivery or its consumer) takes its old place again,
///   so several come back in their old order. One that is nacked joins the end of its queue once it
///   is due.
/// - [`close`](Broker::close) drops all messages, and every call after it fails with
///   [`ErrorKind::Closed`]. Dropping the broker closes it.
pub struct MemoryBroker {
    options: MemoryOptions,
    queues: Arc<Closable<Queues>>,
    topics: Arc<Closable<Topics>>,
    nodes: Closable<Nodes>,
}

impl MemoryBroker {
    /// An empty broker with the given bounds.
    #[must_use]
    pub fn new(options: MemoryOptions) -> Self {
        Self {
            options,
            queues: Arc::new(Closable::new(Queues::new(options))),
            topics: Arc::new(Closable::new(Topics::default())),
            nodes: Closable::new(Nodes::default()),
        }
    }

    fn close_now(&self) {
        if let Some(queues) = self.queues.close() {
            queues.wake_all().wake();
        }
        if let Some(topics) = self.topics.close() {
            topics.close();
        }
        self.nodes.close();
    }
}

impl Default for MemoryBroker {
    fn default() -> Self {
        Self::new(MemoryOptions::default())
    }
}

impl Drop for MemoryBroker {
    fn drop(&mut self) {
        self.close_now();
    }
}

#[async_trait]
impl Broker for MemoryBroker {
    fn capabilities(&self) -> Capabilities {
        Capabilities { name: "memory", shared: false, durable: false, max_message_bytes: MAX_MESSAGE_BYTES }
    }

    async fn publish(&self, queue: &Name, message: Bytes) -> Result<(), BrokerError> {
        self.capabilities().check_size(&message)?;
        self.queues.open(|open| open.publish(queue, message))??.wake();
        Ok(())
    }

    async fn consume(&self, queues: &[Name], prefetch: NonZeroU16) -> Result<Box<dyn Consumer>, BrokerError> {
        Ok(Box::new(MemoryConsumer::new(&self.queues, queues, prefetch)?))
    }

    async fn announce(&self, topic: &Name, payload: Bytes) -> Result<(), BrokerError> {
        self.capabilities().check_size(&payload)?;
        if let Some(watchers) = self.topics.open(|open| open.watchers(topic))? {
            watchers.iter().for_each(|watcher| watcher.push(payload.clone()));
        }
        Ok(())
    }

    async fn watch(&self, topic: &Name) -> Result<Box<dyn Watch>, BrokerError> {
        Ok(Box::new(MemoryWatch::new(&self.topics, topic, self.options.watch_buffer)?))
    }

    async fn presence(&self, node: &Name, payload: Bytes, ttl: Duration) -> Result<(), BrokerError> {
        self.capabilities().check_size(&payload)?;
        self.nodes.open(|open| open.set(node, payload, ttl))
    }

    async fn nodes(&self) -> Result<Vec<NodePresence>, BrokerError> {
        self.nodes.open(Nodes::list)
    }

    async fn depths(&self, queues: &[Name]) -> Result<Vec<Depth>, BrokerError> {
        self.queues.open(|open| queues.iter().map(|queue| open.depth(queue)).collect())
    }

    async fn dead_letters(
        &self,
        queue: &Name,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<DeadLetter>, BrokerError> {
        let after = after.map_or(Ok(0), str::parse).map_err(|error| {
            BrokerError::new(ErrorKind::Permanent, "not the id of a dead letter of this broker").with_source(error)
        })?;
        self.queues.open(|open| open.dead_letters(queue, after, limit))
    }

    async fn requeue_dead_letter(&self, queue: &Name, id: &str) -> Result<bool, BrokerError> {
        let Ok(id) = id.parse() else { return Ok(false) };
        let Some(wake) = self.queues.open(|open| open.requeue(queue, id))?? else { return Ok(false) };
        wake.wake();
        Ok(true)
    }

    async fn purge_dead_letters(&self, queue: &Name) -> Result<u64, BrokerError> {
        Ok(self.queues.open(|open| open.purge(queue))? as u64)
    }

    async fn health(&self) -> Result<(), BrokerError> {
        self.queues.open(|_| ())
    }

    async fn close(&self) {
        self.close_now();
    }
}

/// The moment `after` from now. A duration too long for the clock counts as thirty years, which is
/// also tokio's idea of a far future.
fn deadline(after: Duration) -> Instant {
    const FAR: Duration = Duration::from_secs(30 * 365 * 86_400);
    let now = Instant::now();
    now.checked_add(after).unwrap_or(now + FAR)
}
