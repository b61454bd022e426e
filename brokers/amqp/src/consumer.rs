//! The waiting side of a queue: a consumer, its deliveries, and what it shares with its fetcher.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use lapin::Channel;
use lapin::options::{BasicAckOptions, BasicRejectOptions, ChannelFlowOptions};
use parking_lot::Mutex;
use runcast_broker::{Acknowledge, BrokerError, Consumer, Delivery, ErrorKind, Name};
use runcast_broker_remote::Failure;
use tokio::sync::Notify;
use tokio::task::coop::consume_budget;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::bus::Bus;
use crate::link::Link;
use crate::names::Delay;
use crate::queues::Queues;

/// How long a message that came may wait here to be asked for, before it goes back to where another
/// consumer can have it; and for how long after the last wait others may come.
pub(crate) const LINGER: Duration = Duration::from_millis(200);

/// The most messages taken at once.
const BATCH: usize = 64;

/// A message that came from its queue.
pub(crate) struct Taken {
    pub(crate) tag: u64,
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
    /// The channel that deliveries came over. With it they all return.
    life: Option<Arc<Life>>,
    /// Came and not yet handed out, for each queue.
    buffer: Vec<VecDeque<Taken>>,
    /// Which queues the server pushes from: nothing is ready in them that is not on its way.
    pushed: Vec<bool>,
    /// All queues before the first buffered message have been looked at since it was asked for.
    looked: bool,
    /// Handed out and not settled: the queue of each.
    held: HashMap<u64, usize>,
    /// To be given back to their queues.
    returning: BTreeSet<u64>,
    wanted: Wanted,
    asked: Instant,
    /// How many to take at once: few after some went back unasked for.
    batch: usize,
    /// For the next call of `next`.
    failure: Option<Failure>,
}

/// A channel of a consumer.
pub(crate) struct Life {
    /// Of the connection.
    pub(crate) number: u64,
    pub(crate) channel: Channel,
}

impl Life {
    /// Asks for something that changes nothing: the answer comes when all that was said before has
    /// been done.
    pub(crate) async fn answer(&self) -> lapin::Result<()> {
        self.channel.channel_flow(ChannelFlowOptions { active: true }).await.map(drop)
    }
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
    /// Give these back, in this order.
    Return(BTreeSet<u64>),
    /// Look at the queues that are not pushed from, the first so many of them; with `wait`, have the
    /// server push from all when there was nothing.
    Look {
        queues: usize,
        wait: bool,
    },
    /// Have the server push no more, and give back what is not asked for.
    Rest,
    /// Nothing until something happens, or until then.
    Idle(Option<Instant>),
}

impl State {
    fn first(&self) -> Option<usize> {
        self.buffer.iter().position(|buffer| !buffer.is_empty())
    }

    /// Has everything go back that was not handed out.
    fn empty_buffer(&mut self) {
        for taken in self.buffer.iter_mut().flat_map(|buffer| buffer.drain(..)) {
            self.returning.insert(taken.tag);
        }
        self.looked = false;
    }
}

impl Shared {
    pub(crate) fn new(name: String, queues: Vec<Name>, prefetch: usize, gone: CancellationToken) -> Self {
        let state = State {
            life: None,
            buffer: queues.iter().map(|_| VecDeque::new()).collect(),
            pushed: vec![false; queues.len()],
            looked: false,
            held: HashMap::new(),
            returning: BTreeSet::new(),
            wanted: Wanted::Nothing,
            asked: Instant::now(),
            batch: 1,
            failure: None,
        };
        let (work, ready) = (Notify::new(), Notify::new());
        Self { name, queues, prefetch, state: Mutex::new(state), work, ready, gone }
    }

    pub(crate) fn step(&self) -> Step {
        if self.gone.is_cancelled() {
            return Step::End;
        }
        let mut guard = self.state.lock();
        let state = &mut *guard;
        if !state.returning.is_empty() {
            return Step::Return(std::mem::take(&mut state.returning));
        }
        let room = state.held.len() < self.prefetch;
        let first = state.first();
        if state.wanted != Wanted::Nothing && room {
            let queues = first.unwrap_or(self.queues.len());
            if state.pushed[..queues].iter().any(|pushed| !pushed) {
                return Step::Look { queues, wait: state.wanted == Wanted::Wait };
            }
            if state.wanted == Wanted::Look {
                state.wanted = Wanted::Nothing;
            }
            return Step::Idle(None);
        }
        if first.is_none() && state.pushed.iter().all(|pushed| !pushed) {
            return Step::Idle(None);
        }
        let until = state.asked + LINGER;
        if until > Instant::now() { Step::Idle(Some(until)) } else { Step::Rest }
    }

    /// A new channel: what came over the one before has returned.
    pub(crate) fn begin(&self, life: Option<Arc<Life>>) {
        let mut state = self.state.lock();
        state.life = life;
        state.buffer.iter_mut().for_each(VecDeque::clear);
        state.pushed.fill(false);
        state.held.clear();
        state.returning.clear();
        state.looked = false;
        if state.life.is_some() {
            state.failure = None;
        }
    }

    /// After one message was found, and so many are behind it: how many more to take.
    pub(crate) fn more(&self, behind: u32) -> u16 {
        let state = self.state.lock();
        let room = self.prefetch.saturating_sub(state.held.len());
        let most = state.batch.min(room).saturating_sub(1);
        u16::try_from(most).unwrap_or(u16::MAX).min(u16::try_from(behind).unwrap_or(u16::MAX))
    }

    /// The first so many queues were looked at, and this was found in one of them.
    pub(crate) fn looked(&self, found: Option<(usize, Vec<Taken>)>) {
        let mut state = self.state.lock();
        if let Some((queue, taken)) = found {
            state.buffer[queue].extend(taken);
            state.batch = (state.batch * 2).min(BATCH);
        } else if state.wanted == Wanted::Look && state.first().is_none() {
            state.wanted = Wanted::Nothing;
        }
        state.looked = state.first().is_some();
        if state.looked {
            state.wanted = Wanted::Nothing;
            drop(state);
            self.ready.notify_one();
        }
    }

    pub(crate) fn pushes(&self, queue: usize, pushed: bool) {
        self.state.lock().pushed[queue] = pushed;
    }

    pub(crate) fn pushes_from(&self, queue: usize) -> bool {
        self.state.lock().pushed[queue]
    }

    /// The server has pushed a message.
    pub(crate) fn came(&self, queue: usize, taken: Taken) {
        let mut state = self.state.lock();
        state.buffer[queue].push_back(taken);
        drop(state);
        self.ready.notify_one();
    }

    /// Nobody asks: what is here goes back.
    pub(crate) fn rest(&self) {
        let mut state = self.state.lock();
        if state.first().is_some() {
            state.batch = 1;
        }
        state.empty_buffer();
    }

    /// Everything that came and was not settled, in the order it came.
    pub(crate) fn end(&self) -> (Option<Arc<Life>>, BTreeSet<u64>) {
        let mut state = self.state.lock();
        state.empty_buffer();
        let mut all = std::mem::take(&mut state.returning);
        all.extend(state.held.drain().map(|(tag, _)| tag));
        (state.life.take(), all)
    }

    /// Something went wrong on the way to the server or back.
    pub(crate) fn failed(&self, failure: &Failure) {
        // others pass, and the fetcher waits until they have
        if failure.kind == ErrorKind::Misconfigured {
            self.state.lock().failure = Some(failure.clone());
            self.ready.notify_one();
        }
    }

    /// How many messages of each queue are handed out, and how many wait here.
    pub(crate) fn counts(&self) -> Vec<(Name, u64, u64)> {
        let state = self.state.lock();
        let count = |(number, queue): (usize, &Name)| {
            let held = state.held.values().filter(|held| **held == number).count();
            (queue.clone(), held as u64, state.buffer[number].len() as u64)
        };
        self.queues.iter().enumerate().map(count).collect()
    }

    /// The next message; without one, notes that it is wanted.
    fn pop(&self, wanted: Wanted) -> Result<Option<(usize, Taken, Arc<Life>)>, BrokerError> {
        if self.gone.is_cancelled() {
            return Err(BrokerError::closed());
        }
        let mut guard = self.state.lock();
        let state = &mut *guard;
        state.asked = Instant::now();
        if state.held.len() < self.prefetch
            && let Some(first) = state.first()
            && (state.looked || state.pushed[..first].iter().all(|pushed| *pushed))
            && let Some(life) = &state.life
            && let Some(taken) = state.buffer[first].pop_front()
        {
            state.held.insert(taken.tag, first);
            state.looked = false;
            state.wanted = Wanted::Nothing;
            return Ok(Some((first, taken, Arc::clone(life))));
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
        // the fetcher gives up when this has lasted
        self.work.notify_one();
    }

    /// Whether a delivery has not returned by itself.
    fn holds(&self, life: &Arc<Life>, tag: u64) -> bool {
        let state = self.state.lock();
        state.life.as_ref().is_some_and(|current| Arc::ptr_eq(current, life)) && state.held.contains_key(&tag)
    }

    /// Forgets a delivery, which makes room for another.
    fn release(&self, life: &Arc<Life>, tag: u64, settled: bool) {
        if !self.holds(life, tag) {
            return;
        }
        let mut state = self.state.lock();
        state.held.remove(&tag);
        if !settled {
            // what goes back may belong before what waits here
            state.empty_buffer();
            state.returning.insert(tag);
        }
        drop(state);
        self.work.notify_one();
    }
}

/// How deliveries are settled.
pub(crate) struct Settling {
    pub(crate) link: Arc<Link>,
    pub(crate) queues: Arc<Queues>,
    pub(crate) bus: Arc<Bus>,
}

pub(crate) struct AmqpConsumer {
    shared: Arc<Shared>,
    settling: Arc<Settling>,
}

impl AmqpConsumer {
    pub(crate) fn new(shared: Arc<Shared>, settling: Arc<Settling>) -> Self {
        Self { shared, settling }
    }

    fn delivery(&self, (number, taken, life): (usize, Taken, Arc<Life>)) -> Delivery {
        let Taken { tag, redelivered, message } = taken;
        let queue = self.shared.queues[number].clone();
        let held = Held {
            shared: Arc::clone(&self.shared),
            settling: Arc::clone(&self.settling),
            queue: queue.clone(),
            message: message.clone(),
            life,
            tag,
            copied: false,
            sent: false,
            settled: false,
        };
        Delivery::new(queue, message, redelivered, Box::new(held))
    }
}

#[async_trait]
impl Consumer for AmqpConsumer {
    async fn next(&mut self) -> Result<Delivery, BrokerError> {
        // a consumer with a backlog must not keep its thread from other tasks
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

impl Drop for AmqpConsumer {
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
    queue: Name,
    message: Bytes,
    life: Arc<Life>,
    tag: u64,
    /// The message is elsewhere as well: it only has to go from here.
    copied: bool,
    /// The server was told, and may not be told again.
    sent: bool,
    settled: bool,
}

/// What the server is told about a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Word {
    Gone,
    Back,
}

impl Held {
    fn check(&self) -> Result<(), BrokerError> {
        if self.shared.gone.is_cancelled() {
            return Err(BrokerError::new(ErrorKind::Closed, "the consumer of this delivery is gone"));
        }
        if !self.shared.holds(&self.life, self.tag) {
            let text = "the channel of this delivery has closed, and the message has returned";
            return Err(BrokerError::new(ErrorKind::Closed, text));
        }
        Ok(())
    }

    /// What `call` gives, unless the delivery returns meanwhile.
    async fn unless_gone<T>(
        gone: &CancellationToken,
        call: impl Future<Output = Result<T, BrokerError>>,
    ) -> Result<T, BrokerError> {
        let outlived = || BrokerError::new(ErrorKind::Closed, "the consumer of this delivery is gone");
        gone.run_until_cancelled(call).await.unwrap_or_else(|| Err(outlived()))
    }

    /// An acknowledgement has no answer; that of a question asked after it says that it was done.
    async fn say(&mut self, word: Word) -> Result<(), BrokerError> {
        self.check()?;
        let (channel, link) = (&self.life.channel, &self.settling.link);
        let first = !std::mem::replace(&mut self.sent, true);
        let said = async {
            match word {
                _ if !first => {}
                Word::Gone => channel.basic_ack(self.tag, BasicAckOptions::default()).await?,
                Word::Back => channel.basic_reject(self.tag, BasicRejectOptions { requeue: true }).await?,
            }
            self.life.answer().await
        };
        let limited = async {
            match timeout(link.limit, said).await {
                Ok(Ok(())) => Ok(()),
                Ok(Err(error)) => {
                    let text = format!("the channel of this delivery has closed: {}", link.failure(&error).text);
                    Err(BrokerError::new(ErrorKind::Closed, text))
                }
                Err(_) => {
                    link.broke(self.life.number);
                    Err(Failure::transient("rabbitmq: no answer in time to an acknowledgement").into())
                }
            }
        };
        Self::unless_gone(&self.shared.gone, limited).await?;
        self.settled = true;
        self.shared.release(&self.life, self.tag, true);
        Ok(())
    }
}

#[async_trait]
impl Acknowledge for Held {
    async fn ack(&mut self) -> Result<(), BrokerError> {
        self.say(Word::Gone).await
    }

    async fn nack(&mut self, after: Duration) -> Result<(), BrokerError> {
        if after.is_zero() {
            return self.say(Word::Back).await;
        }
        self.check()?;
        if !self.copied {
            let (queues, delay) = (&self.settling.queues, Delay::at_least(after));
            self.settling.bus.delays(&self.queue, delay);
            let copied = queues.delay(&self.queue, &self.message, delay);
            Self::unless_gone(&self.shared.gone, copied).await?;
            self.copied = true;
        }
        self.say(Word::Gone).await
    }

    async fn reject(&mut self, reason: &str) -> Result<(), BrokerError> {
        self.check()?;
        if !self.copied {
            let id = crate::letters::new_id();
            let copied = self.settling.queues.bury(&self.queue, &self.message, &id, reason);
            Self::unless_gone(&self.shared.gone, copied).await?;
            self.copied = true;
        }
        self.say(Word::Gone).await
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if !self.settled {
            // what was said cannot be taken back, and what is elsewhere need not return
            let leave = self.sent;
            self.shared.release(&self.life, self.tag, leave);
        }
    }
}
