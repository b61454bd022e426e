//! Queues, dead letters and who consumes what: every message of the broker is owned here.
//!
//! Plain data without waiting: an operation that makes a message or room available returns whom to
//! [`Wake`], and the caller does so after it has released the lock.

use std::collections::{BTreeMap, VecDeque};
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use runcast_broker::{BrokerError, DeadLetter, Depth, ErrorKind, Name};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::{MemoryOptions, deadline};

pub(crate) struct Queues {
    options: MemoryOptions,
    /// The last number given to a place, a consumer or a dead letter.
    last: u64,
    /// Those that hold something or have a consumer. Ordered maps throughout, because they give
    /// their memory back as they drain.
    queues: BTreeMap<Name, Queue>,
    consumers: BTreeMap<u64, Subscription>,
}

#[derive(Default)]
struct Queue {
    /// By place. A message keeps its place while it is held, so that one that is given back is at
    /// the head again, and several are in their old order.
    ready: BTreeMap<u64, Message>,
    /// By the time they are due, then by the order of their return.
    delayed: BTreeMap<(Instant, u64), Message>,
    outstanding: usize,
    /// Ids rise from front to back.
    dead: VecDeque<Dead>,
    consumers: Vec<u64>,
}

struct Subscription {
    queues: Box<[Name]>,
    prefetch: usize,
    /// Outstanding deliveries by place, with the index of their queue.
    held: BTreeMap<u64, (usize, Message)>,
    waits: Option<Waits>,
    notify: Arc<Notify>,
}

/// What a consumer that found nothing waits for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Waits {
    Message,
    /// As many deliveries as `prefetch` are outstanding.
    Room,
}

#[derive(Clone)]
struct Message {
    body: Bytes,
    redelivered: bool,
}

struct Dead {
    id: u64,
    body: Bytes,
    reason: String,
}

/// A message that a consumer now holds.
pub(crate) struct Taken {
    pub(crate) place: u64,
    pub(crate) queue: Name,
    pub(crate) body: Bytes,
    pub(crate) redelivered: bool,
}

/// Nothing can be taken before a wake, or before a returned message is due.
pub(crate) struct Nothing {
    pub(crate) due: Option<Instant>,
}

/// How a delivery ends.
pub(crate) enum Settlement<'a> {
    Ack,
    Nack(Duration),
    Reject(&'a str),
    /// Back to its place.
    Return,
}

/// Consumers to be woken once the lock is released. Everyone who waits for the queue is woken, not
/// one: a consumer whose `next` was dropped meanwhile would swallow the only wake.
#[derive(Default)]
#[must_use]
pub(crate) struct Wake(Vec<Arc<Notify>>);

impl Wake {
    pub(crate) fn wake(self) {
        self.0.iter().for_each(|notify| notify.notify_one());
    }
}

impl Queues {
    pub(crate) fn new(options: MemoryOptions) -> Self {
        Self { options, last: 0, queues: BTreeMap::new(), consumers: BTreeMap::new() }
    }

    pub(crate) fn publish(&mut self, name: &Name, body: Bytes) -> Result<Wake, BrokerError> {
        let queue = self.queues.entry(name.clone()).or_default();
        queue.check_room(self.options.max_messages, name)?;
        queue.ready.insert(number(&mut self.last), Message { body, redelivered: false });
        Ok(queue.wake(&mut self.consumers))
    }

    pub(crate) fn subscribe(&mut self, names: &[Name], prefetch: NonZeroU16) -> (u64, Arc<Notify>) {
        let id = number(&mut self.last);
        for name in names {
            let consumers = &mut self.queues.entry(name.clone()).or_default().consumers;
            if consumers.last() != Some(&id) {
                consumers.push(id);
            }
        }
        let notify = Arc::new(Notify::new());
        self.consumers.insert(
            id,
            Subscription {
                queues: names.into(),
                prefetch: prefetch.get().into(),
                held: BTreeMap::new(),
                waits: None,
                notify: Arc::clone(&notify),
            },
        );
        (id, notify)
    }

    /// Ends a consumer and puts what it held back in its place.
    pub(crate) fn unsubscribe(&mut self, id: u64) -> Wake {
        let mut wake = Wake::default();
        let Some(gone) = self.consumers.remove(&id) else { return wake };
        for (place, (index, message)) in gone.held {
            if let Some(queue) = self.queues.get_mut(&gone.queues[index]) {
                queue.outstanding -= 1;
                queue.put_back(place, message);
            }
        }
        for name in &gone.queues {
            if let Some(queue) = self.queues.get_mut(name) {
                queue.consumers.retain(|consumer| *consumer != id);
                if !queue.ready.is_empty() {
                    wake.0.append(&mut queue.wake(&mut self.consumers).0);
                }
                self.forget_if_idle(name);
            }
        }
        wake
    }

    /// Takes the next message for a consumer. When there is none and `wait` is set, the consumer is
    /// noted as waiting.
    pub(crate) fn take(&mut self, id: u64, wait: bool) -> Result<Taken, Nothing> {
        let mut due = None;
        let Some(consumer) = self.consumers.get_mut(&id) else { return Err(Nothing { due }) };
        if consumer.held.len() >= consumer.prefetch {
            consumer.waits = wait.then_some(Waits::Room);
            return Err(Nothing { due });
        }
        for (index, name) in consumer.queues.iter().enumerate() {
            let Some(queue) = self.queues.get_mut(name) else { continue };
            let next_due = queue.promote(&mut self.last);
            if let Some((place, message)) = queue.ready.pop_first() {
                queue.outstanding += 1;
                consumer.waits = None;
                consumer.held.insert(place, (index, message.clone()));
                let Message { body, redelivered } = message;
                return Ok(Taken { place, queue: name.clone(), body, redelivered });
            }
            due = due.into_iter().chain(next_due).min();
        }
        consumer.waits = wait.then_some(Waits::Message);
        Err(Nothing { due })
    }

    /// Settles what consumer `id` holds in `place`. Fails with `Closed` when that consumer is gone,
    /// which has put the message back already.
    pub(crate) fn settle(&mut self, id: u64, place: u64, how: Settlement<'_>) -> Result<Wake, BrokerError> {
        let outlived = || BrokerError::new(ErrorKind::Closed, "the consumer of this delivery is gone");
        let consumer = self.consumers.get_mut(&id).ok_or_else(outlived)?;
        let (index, message) = consumer.held.remove(&place).ok_or_else(outlived)?;
        let mut wake = Wake::default();
        if consumer.waits == Some(Waits::Room) {
            consumer.waits = None;
            wake.0.push(Arc::clone(&consumer.notify));
        }
        let name = &consumer.queues[index];
        let queue = self.queues.get_mut(name).ok_or_else(outlived)?;
        queue.outstanding -= 1;
        match how {
            Settlement::Ack => return Ok(wake),
            Settlement::Reject(reason) => {
                let id = number(&mut self.last);
                queue.dead.push_back(Dead { id, body: message.body, reason: reason.to_owned() });
                if queue.dead.len() > self.options.max_dead_letters {
                    queue.dead.pop_front();
                    tracing::warn!(queue = %name, limit = self.options.max_dead_letters, "dropped the oldest dead letter");
                }
                return Ok(wake);
            }
            Settlement::Nack(after) => {
                let message = Message { redelivered: true, ..message };
                queue.delayed.insert((deadline(after), number(&mut self.last)), message);
            }
            Settlement::Return => queue.put_back(place, message),
        }
        wake.0.append(&mut queue.wake(&mut self.consumers).0);
        Ok(wake)
    }

    pub(crate) fn depth(&self, name: &Name) -> Depth {
        self.queues.get(name).map_or_else(Depth::default, |queue| Depth {
            ready: (queue.ready.len() + queue.delayed.len()) as u64,
            outstanding: queue.outstanding as u64,
            dead: queue.dead.len() as u64,
        })
    }

    pub(crate) fn dead_letters(&self, name: &Name, after: u64, limit: usize) -> Vec<DeadLetter> {
        let Some(queue) = self.queues.get(name) else { return Vec::new() };
        let start = queue.dead.partition_point(|letter| letter.id <= after);
        let letter = |letter: &Dead| DeadLetter {
            // padded, so that ids sort by age as text too
            id: format!("{:020}", letter.id),
            message: letter.body.clone(),
            reason: letter.reason.clone(),
        };
        queue.dead.range(start..).take(limit).map(letter).collect()
    }

    /// `None`: there is no such letter.
    pub(crate) fn requeue(&mut self, name: &Name, id: u64) -> Result<Option<Wake>, BrokerError> {
        let Some(queue) = self.queues.get_mut(name) else { return Ok(None) };
        let Ok(index) = queue.dead.binary_search_by_key(&id, |letter| letter.id) else { return Ok(None) };
        queue.check_room(self.options.max_messages, name)?;
        if let Some(letter) = queue.dead.remove(index) {
            queue.ready.insert(number(&mut self.last), Message { body: letter.body, redelivered: true });
        }
        Ok(Some(queue.wake(&mut self.consumers)))
    }

    pub(crate) fn purge(&mut self, name: &Name) -> usize {
        let purged = self.queues.get_mut(name).map_or(0, |queue| std::mem::take(&mut queue.dead).len());
        self.forget_if_idle(name);
        purged
    }

    /// Everyone, so that they notice that the broker is closed.
    pub(crate) fn wake_all(&self) -> Wake {
        Wake(self.consumers.values().map(|consumer| Arc::clone(&consumer.notify)).collect())
    }

    fn forget_if_idle(&mut self, name: &Name) {
        if self
            .queues
            .get(name)
            .is_some_and(|queue| queue.held() == 0 && queue.dead.is_empty() && queue.consumers.is_empty())
        {
            self.queues.remove(name);
        }
    }
}

impl Queue {
    fn held(&self) -> usize {
        self.ready.len() + self.delayed.len() + self.outstanding
    }

    fn check_room(&self, max_messages: usize, name: &Name) -> Result<(), BrokerError> {
        if self.held() < max_messages {
            return Ok(());
        }
        Err(BrokerError::new(ErrorKind::Transient, format!("queue {name} is full: it holds {max_messages} messages")))
    }

    fn put_back(&mut self, place: u64, message: Message) {
        self.ready.insert(place, Message { redelivered: true, ..message });
    }

    /// Moves what is due to the end of the queue and returns when the next one is.
    fn promote(&mut self, last: &mut u64) -> Option<Instant> {
        if self.delayed.is_empty() {
            return None;
        }
        let now = Instant::now();
        while let Some(first) = self.delayed.first_entry() {
            let (at, _) = *first.key();
            if at > now {
                return Some(at);
            }
            self.ready.insert(number(last), first.remove());
        }
        None
    }

    fn wake(&self, consumers: &mut BTreeMap<u64, Subscription>) -> Wake {
        let mut wake = Wake::default();
        for id in &self.consumers {
            if let Some(consumer) = consumers.get_mut(id)
                && consumer.waits == Some(Waits::Message)
            {
                consumer.waits = None;
                wake.0.push(Arc::clone(&consumer.notify));
            }
        }
        wake
    }
}

fn number(last: &mut u64) -> u64 {
    *last += 1;
    *last
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drained_queue_leaves_nothing() {
        let name = Name::new("q").unwrap();
        let mut queues = Queues::new(MemoryOptions::default());
        for _ in 0..100 {
            queues.publish(&name, Bytes::new()).unwrap().wake();
        }
        let (id, _notify) = queues.subscribe(std::slice::from_ref(&name), NonZeroU16::MIN);
        while let Ok(taken) = queues.take(id, true) {
            queues.settle(id, taken.place, Settlement::Ack).unwrap().wake();
        }
        assert!(queues.queues[&name].ready.is_empty());
        assert!(queues.consumers[&id].held.is_empty());
        queues.unsubscribe(id).wake();
        assert!(queues.queues.is_empty() && queues.consumers.is_empty());
    }
}
