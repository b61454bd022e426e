//! The waiting side of a queue: a consumer, its deliveries, and what it shares with its fetcher.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use runcast_broker::{Acknowledge, BrokerError, Consumer, Delivery, ErrorKind, Name};
use runcast_broker_remote::Failure;
use tokio::sync::Notify;
use tokio::task::coop::consume_budget;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::keys::Keys;
use crate::link::Link;
use crate::scripts::SETTLE;

/// How long a message that was taken may wait here to be asked for, before it goes back to where
/// another consumer can have it.
const LINGER: Duration = Duration::from_millis(200);

/// The most messages taken at once.
const BATCH: usize = 128;

/// A queue's place in the consumer's order, and the id of an entry of its stream.
pub(crate) type Place = (usize, String);

/// A message that was taken from its queue.
pub(crate) struct Taken {
    pub(crate) place: Place,
    pub(crate) redelivered: bool,
    pub(crate) message: Bytes,
}

/// What a consumer, its deliveries and its fetcher know of each other. The lock is held for moments
/// and never across an await.
pub(crate) struct Shared {
    pub(crate) name: String,
    pub(crate) queues: Vec<Name>,
    pub(crate) prefetch: usize,
    state: Mutex<State>,
    /// Wakes the fetcher.
    pub(crate) work: Notify,
    /// Wakes the consumer.
    ready: Notify,
    /// The consumer was dropped or the broker closed: what it held goes back.
    pub(crate) gone: CancellationToken,
}

struct State {
    /// Taken and not yet handed out.
    buffer: VecDeque<Taken>,
    /// Taken and not settled: the buffer, and all deliveries that were handed out.
    held: BTreeSet<Place>,
    wanted: Wanted,
    asked: Instant,
    /// How many to take at once: few after some went back unasked for, or did not come in time.
    batch: usize,
    /// The server may count something as held by this consumer that is not.
    stray: bool,
    /// For the next call of `next`.
    failure: Option<Failure>,
}

/// What the consumer is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Nothing,
    /// By `try_next`, which does not wait: one look.
    Look,
    /// By `next`.
    Wait,
}

/// What the fetcher has to do now.
pub(crate) enum Step {
    End,
    /// Tell the server what is held.
    Keep(Vec<Place>),
    /// Take up to so many.
    Take(usize),
    /// Nothing, unless a buffer is left unasked for until then.
    Idle(Option<Instant>),
}

impl State {
    /// Has everything go back that was not handed out.
    fn empty_buffer(&mut self) {
        for taken in self.buffer.drain(..) {
            self.held.remove(&taken.place);
        }
        self.stray = true;
    }
}

impl Shared {
    pub(crate) fn new(name: String, queues: Vec<Name>, prefetch: usize, gone: CancellationToken) -> Self {
        let state = State {
            buffer: VecDeque::new(),
            held: BTreeSet::new(),
            wanted: Wanted::Nothing,
            asked: Instant::now(),
            batch: BATCH,
            // a former life under the same name may have left something
            stray: true,
            failure: None,
        };
        let (work, ready) = (Notify::new(), Notify::new());
        Self { name, queues, prefetch, state: Mutex::new(state), work, ready, gone }
    }

    /// `waits`: a wait for news is under way, so there is no use in looking.
    pub(crate) fn step(&self, waits: bool) -> Step {
        if self.gone.is_cancelled() {
            return Step::End;
        }
        let mut guard = self.state.lock();
        let state = &mut *guard;
        let lingers = (!state.buffer.is_empty()).then(|| state.asked + LINGER);
        if lingers.is_some_and(|until| until <= Instant::now()) {
            state.empty_buffer();
            state.batch = 1;
        }
        if state.stray {
            state.stray = false;
            return Step::Keep(state.held.iter().cloned().collect());
        }
        let room = self.prefetch.saturating_sub(state.held.len());
        if waits && state.wanted == Wanted::Look {
            state.wanted = Wanted::Nothing;
        }
        if state.wanted != Wanted::Nothing && room > 0 && !waits && state.buffer.is_empty() {
            return Step::Take(room.min(state.batch));
        }
        Step::Idle(lingers)
    }

    /// Returns whether to wait for news, after nothing was there.
    pub(crate) fn took(&self, taken: Vec<Taken>) -> bool {
        let mut state = self.state.lock();
        if taken.is_empty() {
            if state.wanted == Wanted::Look {
                state.wanted = Wanted::Nothing;
            }
            return state.wanted == Wanted::Wait;
        }
        state.batch = (state.batch * 2).min(BATCH);
        state.failure = None;
        state.held.extend(taken.iter().map(|taken| taken.place.clone()));
        state.buffer.extend(taken);
        state.wanted = Wanted::Nothing;
        state.asked = Instant::now();
        drop(state);
        self.ready.notify_one();
        false
    }

    /// Something went wrong on the way to the server or back.
    pub(crate) fn failed(&self, error: &BrokerError) {
        let mut state = self.state.lock();
        state.stray = true;
        // large messages over a slow line: fewer of them may come in time
        state.batch = 1;
        // others pass, and the fetcher waits until they have
        if error.kind() == ErrorKind::Misconfigured {
            state.failure = Some(Failure { kind: error.kind(), text: error.to_string().into() });
            drop(state);
            self.ready.notify_one();
        }
    }

    pub(crate) fn recovered(&self) {
        self.state.lock().failure = None;
    }

    /// Has the fetcher compare what is held.
    pub(crate) fn check(&self) {
        self.state.lock().stray = true;
    }

    /// The next message; without one, notes that it is wanted.
    fn pop(&self, wanted: Wanted) -> Result<Option<Taken>, BrokerError> {
        if self.gone.is_cancelled() {
            return Err(BrokerError::closed());
        }
        let mut state = self.state.lock();
        state.asked = Instant::now();
        if let Some(taken) = state.buffer.pop_front() {
            return Ok(Some(taken));
        }
        if wanted == Wanted::Wait
            && let Some(failure) = state.failure.take()
        {
            return Err(failure.into());
        }
        if state.wanted != wanted {
            state.wanted = wanted;
            self.work.notify_one();
        }
        Ok(None)
    }

    fn stop_waiting(&self) {
        let mut state = self.state.lock();
        state.wanted = Wanted::Nothing;
    }

    /// Forgets a delivery, which makes room for another.
    fn release(&self, place: &Place, settled: bool) {
        let mut state = self.state.lock();
        state.held.remove(place);
        if !settled {
            // what goes back may belong before what waits here
            state.empty_buffer();
        }
        drop(state);
        self.work.notify_one();
    }
}

/// How deliveries reach the server.
pub(crate) struct Settling {
    pub(crate) link: Arc<Link>,
    pub(crate) keys: Keys,
    pub(crate) max_dead_letters: u64,
}

pub(crate) struct RedisConsumer {
    shared: Arc<Shared>,
    settling: Arc<Settling>,
}

impl RedisConsumer {
    pub(crate) fn new(shared: Arc<Shared>, settling: Arc<Settling>) -> Self {
        Self { shared, settling }
    }

    fn delivery(&self, taken: Taken) -> Delivery {
        let Taken { place, redelivered, message } = taken;
        let queue = self.shared.queues[place.0].clone();
        let (shared, settling) = (Arc::clone(&self.shared), Arc::clone(&self.settling));
        Delivery::new(queue, message, redelivered, Box::new(Held { shared, settling, place, settled: false }))
    }
}

#[async_trait]
impl Consumer for RedisConsumer {
    async fn next(&mut self) -> Result<Delivery, BrokerError> {
        // a consumer with a backlog never waits, and would keep its thread from other tasks
        consume_budget().await;
        let waiting = Waiting(&self.shared);
        loop {
            if let Some(taken) = self.shared.pop(Wanted::Wait)? {
                drop(waiting);
                return Ok(self.delivery(taken));
            }
            tokio::select! {
                () = self.shared.ready.notified() => {}
                () = self.shared.gone.cancelled() => {}
            }
        }
    }

    fn try_next(&mut self) -> Option<Delivery> {
        let taken = self.shared.pop(Wanted::Look).ok()??;
        Some(self.delivery(taken))
    }
}

impl Drop for RedisConsumer {
    fn drop(&mut self) {
        self.shared.gone.cancel();
    }
}

/// A call of `next` that is under way. One that is dropped wants nothing any more.
struct Waiting<'a>(&'a Shared);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.stop_waiting();
    }
}

/// The right to settle one delivery.
struct Held {
    shared: Arc<Shared>,
    settling: Arc<Settling>,
    place: Place,
    settled: bool,
}

impl Held {
    async fn settle(&mut self, how: &str, argument: &str) -> Result<(), BrokerError> {
        let outlived = || BrokerError::new(ErrorKind::Closed, "the consumer of this delivery is gone");
        if self.shared.gone.is_cancelled() {
            return Err(outlived());
        }
        let Settling { link, keys, max_dead_letters } = &*self.settling;
        let queue = &self.shared.queues[self.place.0];
        let mut script = SETTLE.key(keys.queue(queue));
        script.key(keys.bell(queue)).key(keys.delayed(queue)).key(keys.dead(queue));
        script.arg(&self.shared.name).arg(&self.place.1).arg(how).arg(argument).arg(max_dead_letters);
        let done = tokio::select! {
            done = link.script::<i64>(&script) => done?,
            () = self.shared.gone.cancelled() => return Err(outlived()),
        };
        match done {
            0 => {
                let text = "the lease of this delivery had run out, and another consumer has taken it over";
                return Err(BrokerError::new(ErrorKind::Closed, text));
            }
            2 => tracing::warn!(%queue, limit = max_dead_letters, "dropped the oldest dead letter"),
            _ => {}
        }
        self.settled = true;
        self.shared.release(&self.place, true);
        Ok(())
    }
}

#[async_trait]
impl Acknowledge for Held {
    async fn ack(&mut self) -> Result<(), BrokerError> {
        self.settle("ack", "").await
    }

    async fn nack(&mut self, after: Duration) -> Result<(), BrokerError> {
        self.settle("nack", &crate::millis(after).to_string()).await
    }

    async fn reject(&mut self, reason: &str) -> Result<(), BrokerError> {
        self.settle("reject", reason).await
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if !self.settled {
            self.shared.release(&self.place, false);
        }
    }
}
