//! What processes tell each other: announcements, presence, and how much each of them holds.
//!
//! A process has one queue, which goes with its connection. All it hears comes through that, in
//! order: so what it sent to itself says that it has heard all that was confirmed before.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use lapin::message::Delivery;
use lapin::options::{
    BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ExchangeDeclareOptions, QueueBindOptions,
    QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Channel, ExchangeKind};
use parking_lot::Mutex;
use runcast_broker::{Backoff, BrokerError, Name, NodePresence, random};
use runcast_broker_remote::{Failure, Topics};
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tokio_util::task::TaskTracker;

use crate::consumer::Shared;
use crate::link::{Lane, Link};
use crate::names::{Delay, Names};
use crate::queues::{header, text};

/// How long a process that has just come waits for the others to answer.
const SETTLE: Duration = Duration::from_millis(250);

/// How often an idle channel is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// How often a delay that is in use is spoken of.
const SPEAK: Duration = Duration::from_secs(30);

/// Property `type` of what processes tell each other. Those who send it stand in `reply_to`.
mod kind {
    /// To all, by one that has come: all answer with `here`, their presence and the delays in use.
    pub(super) const WHO: &str = "who";
    /// To one: the answer of one that has no presence either.
    pub(super) const HERE: &str = "here";
    /// To all: the sender leaves.
    pub(super) const BYE: &str = "bye";
    /// Headers `node` and `ttl` (ms); the payload is the body.
    pub(super) const PRESENCE: &str = "presence";
    /// Headers `queue` and `ms`: a queue for messages with this delay is in use.
    pub(super) const DELAY: &str = "delay";
    /// To all: how much do you hold?
    pub(super) const COUNT: &str = "count";
    /// To one: lines of queue, messages handed out, messages that wait to be.
    pub(super) const COUNTED: &str = "counted";
    /// To itself.
    pub(super) const MARK: &str = "mark";
}

/// How much of each queue is handed out, and how much waits to be.
pub(crate) type Counts = HashMap<Name, (u64, u64)>;

pub(crate) struct Bus {
    pub(crate) names: Names,
    pub(crate) topics: Arc<Topics>,
    /// What is said goes over a connection other than that on which it is heard: alarms stop the
    /// one, not the other.
    said: Lane,
    heard: Arc<Link>,
    state: Mutex<State>,
    /// The queue of this process, and since when, while there is one.
    place: watch::Sender<Option<(ShortString, Instant)>>,
    /// Answers that are under way.
    tasks: TaskTracker,
    consumer: String,
}

#[derive(Default)]
struct State {
    /// The payload of each node, and until when.
    nodes: BTreeMap<Name, (Bytes, Instant)>,
    /// Of these, what this process said.
    own: BTreeMap<Name, (Bytes, Instant)>,
    /// The queues of the other processes.
    peers: HashSet<ShortString>,
    /// Delays in use: until when, and when this process last spoke of it.
    delays: HashMap<(Name, Delay), (Instant, Option<Instant>)>,
    /// Calls that wait for what they sent to come back.
    marks: HashMap<ShortString, oneshot::Sender<()>>,
    /// Calls that wait for counts.
    counts: HashMap<ShortString, Asked>,
    consumers: Vec<Weak<Shared>>,
}

/// A call that waits for counts.
struct Asked {
    missing: HashSet<ShortString>,
    counted: Counts,
    done: Option<oneshot::Sender<()>>,
}

impl Bus {
    pub(crate) fn new(names: Names, said: &Arc<Link>, heard: &Arc<Link>, consumer: String) -> Arc<Self> {
        Arc::new(Self {
            names,
            topics: Arc::default(),
            said: Lane::new(said, true),
            heard: Arc::clone(heard),
            state: Mutex::default(),
            place: watch::channel(None).0,
            tasks: TaskTracker::new(),
            consumer,
        })
    }

    pub(crate) fn register(&self, consumer: &Arc<Shared>) {
        let mut state = self.state.lock();
        state.consumers.retain(|consumer| consumer.strong_count() > 0);
        state.consumers.push(Arc::downgrade(consumer));
    }

    pub(crate) async fn announce(&self, topic: &Name, payload: &[u8]) -> Result<(), BrokerError> {
        let (exchange, key) = (self.names.topics(), ShortString::from(topic.as_str()));
        self.send(exchange, key, payload, BasicProperties::default()).await
    }

    pub(crate) async fn presence(&self, node: &Name, payload: Bytes, ttl: Duration) -> Result<(), BrokerError> {
        let ttl = ttl.min(Duration::from_secs(u32::MAX.into()));
        {
            let mut state = self.state.lock();
            if ttl.is_zero() {
                state.own.remove(node);
            } else {
                state.own.insert(node.clone(), (payload.clone(), Instant::now() + ttl));
            }
        }
        let properties = presence(node, ttl);
        self.say(self.names.nodes(), "".into(), kind::PRESENCE, properties, &payload).await
    }

    pub(crate) async fn nodes(&self) -> Result<Vec<NodePresence>, BrokerError> {
        let deadline = Instant::now() + self.heard.limit;
        let place = self.place(deadline).await?;
        let id = new_id();
        let (sender, came) = oneshot::channel();
        self.state.lock().marks.insert(id.clone(), sender);
        let _forget = Forget { bus: self, id: id.clone() };
        let properties = BasicProperties::default().with_correlation_id(id);
        self.say("".into(), place, kind::MARK, properties, b"").await?;
        match timeout_at(deadline, came).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) | Err(_) => {
                return Err(Failure::transient("rabbitmq: presence was not heard in time").into());
            }
        }
        let mut state = self.state.lock();
        let now = Instant::now();
        state.nodes.retain(|_, (_, until)| *until > now);
        let presence = |(node, (payload, _)): (&Name, &(Bytes, Instant))| NodePresence {
            node: node.clone(),
            payload: payload.clone(),
        };
        Ok(state.nodes.iter().map(presence).collect())
    }

    /// How much all processes hold.
    pub(crate) async fn counts(&self) -> Result<Counts, BrokerError> {
        let deadline = Instant::now() + self.heard.limit;
        self.place(deadline).await?;
        let id = new_id();
        let (done, answered) = oneshot::channel();
        {
            let mut state = self.state.lock();
            let mut counted = Counts::new();
            add(&mut counted, own_counts(&mut state));
            let missing = state.peers.clone();
            if missing.is_empty() {
                return Ok(counted);
            }
            state.counts.insert(id.clone(), Asked { missing, counted, done: Some(done) });
        }
        let _forget = Forget { bus: self, id: id.clone() };
        let properties = BasicProperties::default().with_correlation_id(id.clone());
        self.say(self.names.nodes(), "".into(), kind::COUNT, properties, b"").await?;
        let _ = timeout(SETTLE.min(self.heard.limit), answered).await;
        let mut state = self.state.lock();
        let Some(asked) = state.counts.remove(&id) else { return Ok(Counts::new()) };
        // who does not answer is gone, or will be heard of again
        for silent in asked.missing {
            state.peers.remove(&silent);
        }
        Ok(asked.counted)
    }

    /// Notes that a delay is in use, and tells the others now and then.
    pub(crate) fn delays(self: &Arc<Self>, queue: &Name, delay: Delay) {
        let now = Instant::now();
        {
            let mut state = self.state.lock();
            let (until, spoken) = state.delays.entry((queue.clone(), delay)).or_insert((now, None));
            *until = (*until).max(in_use(now, delay));
            if spoken.is_some_and(|spoken| spoken + SPEAK > now) {
                return;
            }
            *spoken = Some(now);
        }
        let (bus, properties) = (Arc::clone(self), delayed(queue, delay));
        self.tasks.spawn(async move {
            let all = bus.names.nodes();
            // who does not hear it counts too few messages for a while
            drop(bus.say(all, "".into(), kind::DELAY, properties, b"").await);
        });
    }

    /// The delays in use for messages of `queue`.
    pub(crate) fn delays_of(&self, queue: &Name) -> Vec<Delay> {
        let mut state = self.state.lock();
        let now = Instant::now();
        state.delays.retain(|_, (until, _)| *until > now);
        state.delays.keys().filter(|(name, _)| name == queue).map(|(_, delay)| *delay).collect()
    }

    /// Says goodbye.
    pub(crate) async fn leave(&self) {
        if self.place.borrow().is_some() {
            let goodbye = self.say(self.names.nodes(), "".into(), kind::BYE, BasicProperties::default(), b"");
            drop(timeout(Duration::from_secs(1), goodbye).await);
        }
    }

    /// The queue of this process, once those that are there have had the time to answer it.
    async fn place(&self, deadline: Instant) -> Result<ShortString, BrokerError> {
        let mut places = self.place.subscribe();
        let away = || Failure::transient("rabbitmq: not yet connected to the other processes");
        let settled = async {
            loop {
                let place = places.wait_for(Option::is_some).await.ok().and_then(|place| place.clone());
                let Some((place, since)) = place else { return Err(away()) };
                if since.elapsed() >= SETTLE {
                    return Ok(place);
                }
                sleep_until(since + SETTLE).await;
            }
        };
        // fails at once while the server is away
        let up = async {
            self.heard.session(deadline).await?;
            timeout_at(deadline, settled).await.unwrap_or_else(|_| Err(away()))
        };
        Ok(up.await?)
    }

    async fn say(
        &self,
        exchange: ShortString,
        key: ShortString,
        kind: &str,
        properties: BasicProperties,
        body: &[u8],
    ) -> Result<(), BrokerError> {
        let properties = properties.with_type(kind.into());
        let properties = match &*self.place.borrow() {
            Some((place, _)) => properties.with_reply_to(place.clone()),
            None => properties,
        };
        self.send(exchange, key, body, properties).await
    }

    async fn send(
        &self,
        exchange: ShortString,
        key: ShortString,
        body: &[u8],
        properties: BasicProperties,
    ) -> Result<(), BrokerError> {
        let sent = self.said.call(async |open| {
            open.once("exchanges", async |channel| self.exchanges(channel).await).await?;
            let options = BasicPublishOptions::default();
            open.channel.basic_publish(exchange, key, options, body, properties).await?.await
        });
        // nobody may have heard it: that is no error
        sent.await.map(drop)
    }

    async fn exchanges(&self, channel: &Channel) -> lapin::Result<()> {
        let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        channel.exchange_declare(self.names.topics(), ExchangeKind::Topic, options, FieldTable::default()).await?;
        channel.exchange_declare(self.names.nodes(), ExchangeKind::Fanout, options, FieldTable::default()).await
    }

    /// Listens, for ever.
    pub(crate) async fn listen(self: Arc<Self>) {
        let mut backoff = Backoff::default();
        loop {
            let failure = self.session(&mut backoff).await;
            self.place.send_replace(None);
            {
                let mut state = self.state.lock();
                state.marks.clear();
                state.counts.clear();
            }
            tracing::debug!(error = &*failure.text, "announcements are interrupted");
            self.topics.failed(&failure);
            tokio::time::sleep(backoff.next()).await;
        }
    }

    /// The life of one queue. Returns why it ended.
    async fn session(self: &Arc<Self>, backoff: &mut Backoff) -> Failure {
        let session = match self.heard.session(Instant::now() + self.heard.limit).await {
            Ok(session) => session,
            Err(failure) => return failure,
        };
        let number = session.number;
        let place = self.names.node(&self.consumer, random());
        let opened = async {
            let channel = session.connection.create_channel().await?;
            drop(session);
            self.exchanges(&channel).await?;
            let options = QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
            channel.queue_declare(place.clone(), options, FieldTable::default()).await?;
            let (nodes, none) = (self.names.nodes(), FieldTable::default());
            channel.queue_bind(place.clone(), nodes, "".into(), QueueBindOptions::default(), none).await?;
            Ok(channel)
        };
        let channel = match self.limited(number, opened).await {
            Ok(channel) => channel,
            Err(failure) => return failure,
        };
        self.topics.begin();
        if let Err(failure) = self.reconcile(number, &channel, &place, true).await {
            return failure;
        }
        let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
        let consumed = channel.basic_consume(place.clone(), "".into(), options, FieldTable::default());
        let mut deliveries = match self.limited(number, consumed).await {
            Ok(deliveries) => deliveries,
            Err(failure) => return failure,
        };
        *backoff = Backoff::default();
        self.place.send_replace(Some((place.clone(), Instant::now())));
        let bus = Arc::clone(self);
        self.tasks.spawn(async move {
            let all = bus.names.nodes();
            // the others will be heard of when they say something
            drop(bus.say(all, "".into(), kind::WHO, BasicProperties::default(), b"").await);
            bus.introduce(bus.names.nodes(), "".into()).await;
        });
        loop {
            let done = tokio::select! {
                delivery = deliveries.next() => match delivery {
                    Some(Ok(delivery)) => {
                        self.hear(&place, delivery);
                        Ok(())
                    }
                    Some(Err(error)) => Err(self.heard.failure(&error)),
                    None => Err(Failure::transient("rabbitmq: the queue of this process has gone")),
                },
                () = self.topics.changed() => self.reconcile(number, &channel, &place, false).await,
                () = tokio::time::sleep(LOOK) => {
                    if channel.status().connected() {
                        Ok(())
                    } else {
                        Err(Failure::transient("rabbitmq: the channel for announcements has closed"))
                    }
                }
            };
            if let Err(failure) = done {
                return failure;
            }
        }
    }

    /// Binds what came and unbinds what went, then tells those who wait for it.
    async fn reconcile(&self, number: u64, channel: &Channel, place: &ShortString, fresh: bool) -> Result<(), Failure> {
        let change = self.topics.change();
        let bound = async {
            let options = QueueBindOptions { nowait: true };
            for topic in &change.came {
                let (key, none) = (topic.as_str().into(), FieldTable::default());
                channel.queue_bind(place.clone(), self.names.topics(), key, options, none).await?;
            }
            for topic in &change.went {
                let (key, none) = (topic.as_str().into(), FieldTable::default());
                channel.queue_unbind(place.clone(), self.names.topics(), key, none).await?;
            }
            // its answer comes after all of them were done
            channel.basic_qos(0, BasicQosOptions::default()).await
        };
        self.limited(number, bound).await?;
        self.topics.bound(&change.came, fresh);
        Ok(())
    }

    async fn limited<T>(&self, number: u64, call: impl Future<Output = lapin::Result<T>>) -> Result<T, Failure> {
        match timeout(self.heard.limit, call).await {
            Ok(done) => done.map_err(|error| self.heard.failure(&error)),
            Err(_) => {
                self.heard.broke(number);
                Err(Failure::transient("rabbitmq: no answer in time on the channel for announcements"))
            }
        }
    }

    fn hear(self: &Arc<Self>, place: &ShortString, delivery: Delivery) {
        let Delivery { exchange, routing_key, properties, data, .. } = delivery;
        let body = Bytes::from(data);
        if exchange == self.names.topics() {
            if let Ok(topic) = Name::new(routing_key.as_str()) {
                self.topics.hand_out(&topic, &body);
            }
            return;
        }
        let sender = properties.reply_to().clone();
        let others = sender.clone().filter(|sender| sender != place);
        let kind = properties.kind().as_ref().map_or("", ShortString::as_str);
        let mut guard = self.state.lock();
        let state = &mut *guard;
        if let Some(sender) = &others
            && kind != kind::BYE
        {
            state.peers.insert(sender.clone());
        }
        match kind {
            kind::PRESENCE => {
                let Some(node) = header(&properties, "node").and_then(|node| Name::new(node).ok()) else { return };
                let ttl = number(&properties, "ttl").unwrap_or(0);
                if ttl == 0 {
                    state.nodes.remove(&node);
                } else {
                    let ttl = Duration::from_millis(ttl).min(Duration::from_secs(u32::MAX.into()));
                    state.nodes.insert(node, (body, Instant::now() + ttl));
                }
            }
            kind::DELAY => {
                let queue = header(&properties, "queue").and_then(|queue| Name::new(queue).ok());
                let (Some(queue), Some(ms)) = (queue, number(&properties, "ms")) else { return };
                let (now, delay) = (Instant::now(), Delay(ms));
                // what is no delay of ours must not become a queue
                if Delay::at_least(delay.duration()) == delay {
                    let (until, _) = state.delays.entry((queue, delay)).or_insert((now, None));
                    *until = (*until).max(in_use(now, delay));
                }
            }
            kind::WHO => {
                drop(guard);
                if let Some(other) = others {
                    let bus = Arc::clone(self);
                    self.tasks.spawn(async move {
                        let none = BasicProperties::default();
                        drop(bus.say("".into(), other.clone(), kind::HERE, none, b"").await);
                        bus.introduce("".into(), other).await;
                    });
                }
            }
            kind::BYE => {
                if let Some(sender) = sender {
                    state.peers.remove(&sender);
                    state.counts.values_mut().for_each(|asked| asked.answered(&sender, Counts::new()));
                }
            }
            kind::COUNT => {
                let counted = lines(&own_counts(state));
                drop(guard);
                if let (Some(other), Some(id)) = (others, properties.correlation_id().clone()) {
                    let bus = Arc::clone(self);
                    self.tasks.spawn(async move {
                        let properties = BasicProperties::default().with_correlation_id(id);
                        drop(bus.say("".into(), other, kind::COUNTED, properties, counted.as_bytes()).await);
                    });
                }
            }
            kind::COUNTED => {
                let asked = properties.correlation_id().as_ref().and_then(|id| state.counts.get_mut(id));
                if let (Some(asked), Some(sender)) = (asked, sender) {
                    asked.answered(&sender, parse(&body));
                }
            }
            kind::MARK => {
                let mark = properties.correlation_id().as_ref().and_then(|id| state.marks.remove(id));
                // an error means that the call has given up
                mark.map(|mark| mark.send(()));
            }
            // what a later version says
            _ => {}
        }
    }

    /// Says what this process has to say, to one or to all.
    async fn introduce(&self, exchange: ShortString, key: ShortString) {
        let now = Instant::now();
        let (own, delays) = {
            let state = self.state.lock();
            let own: Vec<_> = state.own.iter().map(|(node, own)| (node.clone(), own.clone())).collect();
            let delays: Vec<_> = state.delays.iter().filter(|(_, (until, _))| *until > now).collect();
            (own, delays.into_iter().map(|((queue, delay), _)| delayed(queue, *delay)).collect::<Vec<_>>())
        };
        for (node, (payload, until)) in own {
            let left = until.saturating_duration_since(now);
            if !left.is_zero() {
                let properties = presence(&node, left);
                drop(self.say(exchange.clone(), key.clone(), kind::PRESENCE, properties, &payload).await);
            }
        }
        for properties in delays {
            drop(self.say(exchange.clone(), key.clone(), kind::DELAY, properties, b"").await);
        }
    }
}

impl Asked {
    fn answered(&mut self, sender: &ShortString, counted: Counts) {
        if !self.missing.remove(sender) {
            return;
        }
        add(&mut self.counted, counted);
        if self.missing.is_empty()
            && let Some(done) = self.done.take()
        {
            // an error means that the call has given up
            let _ = done.send(());
        }
    }
}

/// Forgets a call that waits when it ends, however it does.
struct Forget<'a> {
    bus: &'a Bus,
    id: ShortString,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        let mut state = self.bus.state.lock();
        state.marks.remove(&self.id);
        state.counts.remove(&self.id);
    }
}

fn new_id() -> ShortString {
    format!("{:016x}", random()).into()
}

fn presence(node: &Name, ttl: Duration) -> BasicProperties {
    let mut headers = FieldTable::default();
    headers.insert("node".into(), text(node.as_str()));
    headers.insert("ttl".into(), ms(ttl));
    BasicProperties::default().with_headers(headers)
}

fn delayed(queue: &Name, delay: Delay) -> BasicProperties {
    let mut headers = FieldTable::default();
    headers.insert("queue".into(), text(queue.as_str()));
    headers.insert("ms".into(), ms(delay.duration()));
    BasicProperties::default().with_headers(headers)
}

/// Whole milliseconds, rounded up: nothing ends early.
fn ms(duration: Duration) -> AMQPValue {
    AMQPValue::LongLongInt(i64::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(i64::MAX))
}

/// A header as a number, whatever width its sender gave it.
fn number(properties: &BasicProperties, name: &str) -> Option<u64> {
    let value = properties.headers().as_ref()?.inner().get(name)?;
    #[expect(clippy::wildcard_enum_match_arm, reason = "all else is no whole number")]
    match value {
        AMQPValue::LongLongInt(number) => u64::try_from(*number).ok(),
        AMQPValue::LongInt(number) => u64::try_from(*number).ok(),
        AMQPValue::LongUInt(number) => Some((*number).into()),
        AMQPValue::ShortInt(number) => u64::try_from(*number).ok(),
        AMQPValue::ShortUInt(number) => Some((*number).into()),
        AMQPValue::ShortShortInt(number) => u64::try_from(*number).ok(),
        AMQPValue::ShortShortUInt(number) => Some((*number).into()),
        _ => None,
    }
}

/// Until when messages with a delay that is used now may wait, with some allowance for the server.
fn in_use(now: Instant, delay: Delay) -> Instant {
    now + delay.duration() + Duration::from_secs(60)
}

fn own_counts(state: &mut State) -> Counts {
    let mut counts = Counts::new();
    for consumer in state.consumers.iter().filter_map(Weak::upgrade) {
        for (queue, held, waiting) in consumer.counts() {
            add(&mut counts, Counts::from([(queue, (held, waiting))]));
        }
    }
    counts
}

fn add(counts: &mut Counts, more: Counts) {
    for (queue, (held, waiting)) in more {
        let sum = counts.entry(queue).or_default();
        *sum = (sum.0.saturating_add(held), sum.1.saturating_add(waiting));
    }
}

fn lines(counts: &Counts) -> String {
    let counts = counts.iter().filter(|(_, counts)| **counts != (0, 0));
    counts.map(|(queue, (held, waiting))| format!("{queue} {held} {waiting}\n")).collect()
}

fn parse(body: &[u8]) -> Counts {
    let line = |line: &str| {
        let mut words = line.split(' ');
        let queue = Name::new(words.next()?).ok()?;
        Some((queue, (words.next()?.parse().ok()?, words.next()?.parse().ok()?)))
    };
    String::from_utf8_lossy(body).lines().filter_map(line).collect()
}
