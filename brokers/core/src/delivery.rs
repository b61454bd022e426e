//! A message handed to a consumer, to be settled exactly once.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::{BrokerError, Name};

/// One delivery of a message. It is settled by [`ack`](Self::ack), [`nack`](Self::nack) or
/// [`reject`](Self::reject), each of which consumes it, so that settling twice does not compile.
/// Dropping it unsettled returns the message to the head of its queue.
///
/// A delivery that outlives its consumer, or its broker being closed, has been returned already:
/// settling it fails with [`ErrorKind::Closed`](crate::ErrorKind::Closed) and changes nothing, and
/// dropping it does nothing.
pub struct Delivery {
    queue: Name,
    message: Bytes,
    redelivered: bool,
    settle: Box<dyn Acknowledge>,
}

/// What an adapter implements for [`Delivery`]. Each method may be called again after it failed; once
/// one has returned `Ok` none is called any more. Dropping an unsettled value returns the message.
#[async_trait]
pub trait Acknowledge: Send + Sync {
    /// Removes the message. `Ok` means that the broker has done it, not that it was asked to.
    async fn ack(&mut self) -> Result<(), BrokerError>;
    /// Returns the message; it is delivered again after `after` at the earliest.
    async fn nack(&mut self, after: Duration) -> Result<(), BrokerError>;
    /// Moves the message to the dead letters with `reason`.
    async fn reject(&mut self, reason: &str) -> Result<(), BrokerError>;
}

/// The broker did not settle the delivery, which is handed back with the reason.
#[derive(Debug, thiserror::Error)]
#[error("delivery was not settled: {error}")]
pub struct Refused {
    /// The delivery, still unsettled.
    pub delivery: Delivery,
    /// Why.
    #[source]
    pub error: BrokerError,
}

impl Delivery {
    /// Makes a delivery; for adapters.
    pub fn new(queue: Name, message: Bytes, redelivered: bool, settle: Box<dyn Acknowledge>) -> Self {
        Self { queue, message, redelivered, settle }
    }

    /// The queue it came from.
    #[must_use]
    pub fn queue(&self) -> &Name {
        &self.queue
    }

    /// The message as published.
    #[must_use]
    pub fn message(&self) -> &Bytes {
        &self.message
    }

    /// It may have been delivered before. `false` is a hint as well.
    #[must_use]
    pub fn redelivered(&self) -> bool {
        self.redelivered
    }

    /// Removes the message from its queue.
    pub async fn ack(mut self) -> Result<(), Box<Refused>> {
        let settled = self.settle.ack().await;
        self.settled(settled)
    }

    /// Returns the message to its queue, to be delivered again after `after` at the earliest.
    pub async fn nack(mut self, after: Duration) -> Result<(), Box<Refused>> {
        let settled = self.settle.nack(after).await;
        self.settled(settled)
    }

    /// Moves the message to the dead letters of its queue, with the reason a person will read.
    pub async fn reject(mut self, reason: &str) -> Result<(), Box<Refused>> {
        let settled = self.settle.reject(reason).await;
        self.settled(settled)
    }

    fn settled(self, settled: Result<(), BrokerError>) -> Result<(), Box<Refused>> {
        settled.map_err(|error| Box::new(Refused { delivery: self, error }))
    }
}

impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery")
            .field("queue", &self.queue)
            .field("bytes", &self.message.len())
            .field("redelivered", &self.redelivered)
            .finish_non_exhaustive()
    }
}
