//! The waiting side of a queue: one consumer and its deliveries.

use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use runcast_broker::{Acknowledge, BrokerError, Consumer, Delivery, Name};
use tokio::sync::Notify;
use tokio::task::coop::consume_budget;
use tokio::time::timeout_at;

use crate::closable::Closable;
use crate::queues::{Nothing, Queues, Settlement, Taken};

pub(crate) struct MemoryConsumer {
    queues: Arc<Closable<Queues>>,
    id: u64,
    notify: Arc<Notify>,
}

impl MemoryConsumer {
    pub(crate) fn new(
        queues: &Arc<Closable<Queues>>,
        names: &[Name],
        prefetch: NonZeroU16,
    ) -> Result<Self, BrokerError> {
        let (id, notify) = queues.open(|open| open.subscribe(names, prefetch))?;
        Ok(Self { queues: Arc::clone(queues), id, notify })
    }

    fn take(&mut self, wait: bool) -> Result<Result<Delivery, Nothing>, BrokerError> {
        let taken = self.queues.open(|open| open.take(self.id, wait))?;
        Ok(taken.map(|Taken { place, queue, body, redelivered }| {
            let held = Held { queues: Arc::clone(&self.queues), consumer: self.id, place, settled: false };
            Delivery::new(queue, body, redelivered, Box::new(held))
        }))
    }
}

#[async_trait]
impl Consumer for MemoryConsumer {
    async fn next(&mut self) -> Result<Delivery, BrokerError> {
        // a consumer with a backlog never waits, and would keep its thread from other tasks
        consume_budget().await;
        loop {
            match self.take(true)? {
                Ok(delivery) => return Ok(delivery),
                Err(Nothing { due: None }) => self.notify.notified().await,
                // the consumer that waits is the timer: there is no task to spawn, own or stop
                Err(Nothing { due: Some(at) }) => drop(timeout_at(at, self.notify.notified()).await),
            }
        }
    }

    fn try_next(&mut self) -> Option<Delivery> {
        self.take(false).ok()?.ok()
    }
}

impl Drop for MemoryConsumer {
    fn drop(&mut self) {
        // closed already: nothing to return to
        if let Ok(wake) = self.queues.open(|open| open.unsubscribe(self.id)) {
            wake.wake();
        }
    }
}

/// The right to settle one delivery.
struct Held {
    queues: Arc<Closable<Queues>>,
    consumer: u64,
    place: u64,
    /// Spares the drop of a settled delivery the lock.
    settled: bool,
}

impl Held {
    fn settle(&mut self, how: Settlement<'_>) -> Result<(), BrokerError> {
        self.queues.open(|open| open.settle(self.consumer, self.place, how))??.wake();
        self.settled = true;
        Ok(())
    }
}

#[async_trait]
impl Acknowledge for Held {
    async fn ack(&mut self) -> Result<(), BrokerError> {
        self.settle(Settlement::Ack)
    }

    async fn nack(&mut self, after: Duration) -> Result<(), BrokerError> {
        self.settle(Settlement::Nack(after))
    }

    async fn reject(&mut self, reason: &str) -> Result<(), BrokerError> {
        self.settle(Settlement::Reject(reason))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if !self.settled {
            // refused when the broker is closed or the consumer gone: the message is back by then
            drop(self.settle(Settlement::Return));
        }
    }
}
