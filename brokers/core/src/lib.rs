//! The contract between Runcast and its message brokers.
//!
//! A broker carries three kinds of traffic, all of them opaque bytes; it never knows what a run is:
//!
//! - **wake-ups**: [`Broker::publish`] and [`Broker::consume`], at least once, through named queues;
//! - **announcements**: [`Broker::announce`] and [`Broker::watch`], at most once, without history;
//! - **presence**: [`Broker::presence`] and [`Broker::nodes`], entries that vanish unless renewed.
//!
//! Beside it stands [`Source`]: a queue that belongs to somebody else, whose messages are taken in.
//!
//! Nothing that must survive lives here alone. The store decides what runs; a broker that forgets
//! everything costs time, never a run. Adapters depend on this crate (and on `runcast-broker-remote`, if
//! their broker is on another machine), and prove themselves with the suite in `runcast-broker-conformance`.

mod backoff;
mod delivery;
mod error;
mod name;
mod source;

use std::num::NonZeroU16;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

pub use backoff::{Backoff, random};
pub use delivery::{Acknowledge, Delivery, Refused};
pub use error::{BrokerError, ErrorKind};
pub use name::{InvalidName, Name};
pub use source::{Message, NotRemoved, Remove, Source};

/// A message broker.
///
/// Every method may be called from any task at any time, also while the connection is down: a call
/// then either waits for a bounded time or fails with [`ErrorKind::Transient`]. Adapters reconnect by
/// themselves, for ever, with backoff and jitter.
///
/// All futures are cancellation safe in this sense: dropping one leaves the broker usable. A dropped
/// `publish` may or may not have reached the queue.
#[async_trait]
pub trait Broker: Send + Sync + 'static {
    /// What this broker can do. Constant for the life of the value; compared with the configuration
    /// at start.
    fn capabilities(&self) -> Capabilities;

    /// Appends `message` to the end of `queue`, creating the queue if need be. When this returns
    /// `Ok`, the message will be delivered at least once as long as the broker keeps its promise of
    /// durability ([`Capabilities::durable`]).
    async fn publish(&self, queue: &Name, message: Bytes) -> Result<(), BrokerError>;

    /// Starts a consumer on `queues`. A message of an earlier queue is handed out before one of a
    /// later queue whenever both are ready. At most `prefetch` deliveries of this consumer are
    /// outstanding (neither acknowledged nor returned) at any time.
    ///
    /// Several consumers of one queue, in one process or many, compete: each message goes to one.
    async fn consume(&self, queues: &[Name], prefetch: NonZeroU16) -> Result<Box<dyn Consumer>, BrokerError>;

    /// Sends `payload` to everyone who watches `topic` right now, at most once, keeping nothing.
    /// Announcements of one sender on one topic arrive in order, but some may be missing.
    async fn announce(&self, topic: &Name, payload: Bytes) -> Result<(), BrokerError>;

    /// Watches `topic`. When this returns `Ok` the watch is in place: whatever is announced from now
    /// on arrives, unless the connection is lost or the watcher falls behind the adapter's bound.
    async fn watch(&self, topic: &Name) -> Result<Box<dyn Watch>, BrokerError>;

    /// Publishes or renews this node's presence entry, which vanishes after `ttl` unless renewed.
    /// A zero `ttl` removes it.
    async fn presence(&self, node: &Name, payload: Bytes, ttl: Duration) -> Result<(), BrokerError>;

    /// The presence entries that have not vanished, ordered by node name.
    async fn nodes(&self) -> Result<Vec<NodePresence>, BrokerError>;

    /// How much each of `queues` holds, in the same order. A queue nobody has used is empty.
    async fn depths(&self, queues: &[Name]) -> Result<Vec<Depth>, BrokerError>;

    /// Up to `limit` dead letters of `queue`, oldest first, starting after the letter `after`.
    async fn dead_letters(
        &self,
        queue: &Name,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<DeadLetter>, BrokerError>;

    /// Moves a dead letter to the end of its queue. `Ok(false)`: there is no such letter (any more).
    async fn requeue_dead_letter(&self, queue: &Name, id: &str) -> Result<bool, BrokerError>;

    /// Removes all dead letters of `queue` and returns how many there were.
    async fn purge_dead_letters(&self, queue: &Name) -> Result<u64, BrokerError>;

    /// Checks that the broker answers, within a few seconds at the most.
    async fn health(&self) -> Result<(), BrokerError>;

    /// Closes the broker: every consumer and watch ends with [`ErrorKind::Closed`], also those that
    /// are waiting; outstanding deliveries return to their queues. Idempotent.
    async fn close(&self);
}

/// Receives the deliveries of one [`Broker::consume`].
///
/// Dropping a consumer returns its outstanding deliveries to the head of their queues.
#[async_trait]
pub trait Consumer: Send {
    /// Waits for the next delivery. Cancellation safe: no delivery is lost when the future is
    /// dropped. Reconnects inside; an error is final for this consumer only when its kind is
    /// [`ErrorKind::Closed`] or [`ErrorKind::Misconfigured`].
    async fn next(&mut self) -> Result<Delivery, BrokerError>;

    /// A delivery that is ready without waiting, if there is one.
    fn try_next(&mut self) -> Option<Delivery>;
}

/// Receives the announcements of one [`Broker::watch`].
#[async_trait]
pub trait Watch: Send {
    /// Waits for the next announcement. Cancellation safe.
    async fn next(&mut self) -> Result<Announcement, BrokerError>;
}

/// What a watcher receives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Announcement {
    /// A payload, as announced.
    Payload(Bytes),
    /// Announcements may have been lost here (a reconnection, or a watcher that fell behind): repair
    /// from the store.
    Gap,
}

/// What an adapter can do beyond the contract's minimum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// The adapter's name, as used in configuration URLs and logs: `memory`, `redis`, `amqp`.
    pub name: &'static str,
    /// Other processes see the same queues, topics and presence.
    pub shared: bool,
    /// Published messages survive a restart of the broker.
    pub durable: bool,
    /// The largest message or payload in bytes; a larger one is refused as [`ErrorKind::Permanent`].
    pub max_message_bytes: usize,
}

impl Capabilities {
    /// Refuses a message or payload that is larger than the adapter takes, as [`ErrorKind::Permanent`].
    pub fn check_size(&self, bytes: &[u8]) -> Result<(), BrokerError> {
        if bytes.len() <= self.max_message_bytes {
            return Ok(());
        }
        let text = format!("{} bytes are over the limit of {}", bytes.len(), self.max_message_bytes);
        Err(BrokerError::new(ErrorKind::Permanent, text))
    }
}

/// How much a queue holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Depth {
    /// Messages ready to be delivered, including those returned with a delay that has not passed.
    pub ready: u64,
    /// Messages delivered and neither acknowledged nor returned.
    pub outstanding: u64,
    /// Dead letters.
    pub dead: u64,
}

/// One node's presence entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodePresence {
    /// The node's name.
    pub node: Name,
    /// What the node said of itself.
    pub payload: Bytes,
}

/// A message that was rejected and is kept for a person to look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// Names the letter within its queue; letters of one queue sort by age in the order listed.
    pub id: String,
    /// The message as published.
    pub message: Bytes,
    /// Why it was rejected.
    pub reason: String,
}
