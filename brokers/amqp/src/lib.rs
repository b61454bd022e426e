//! A Runcast broker on RabbitMQ 3.10 or newer.
//!
//! Wake-ups travel through quorum queues with publisher confirms, announcements through a topic
//! exchange, presence by what processes tell each other on a fanout exchange. No plugin is needed.
//!
//! # Exchanges and queues
//!
//! All of them begin with the namespace and a dot, here `runcast.`. Queues of messages are declared by
//! whoever uses them first, always with the same arguments.
//!
//! | exchange | type | what goes through it |
//! | --- | --- | --- |
//! | the default one | | messages, to their queue by its name; answers, to the queue of a process |
//! | `runcast.topics` | topic, durable | announcements; the routing key is the topic, the body is the payload |
//! | `runcast.nodes` | fanout, durable | what processes tell each other |
//!
//! | queue | what it holds | arguments |
//! | --- | --- | --- |
//! | `runcast.queue.NAME` | the messages of a queue | `x-queue-type` `quorum`, `x-delivery-limit` 1000000, `x-dead-letter-exchange` empty, `x-dead-letter-routing-key` `runcast.dead.NAME`, `x-dead-letter-strategy` `at-least-once`, `x-overflow` `reject-publish` |
//! | `runcast.dead.NAME` | its dead letters | `x-queue-type` `quorum`, `x-delivery-limit` 1000000000 |
//! | `runcast.delayed.NAME.MS` | messages that were returned with a delay of so many milliseconds: one queue for each of some ninety delays, while it is in use | as `runcast.queue.NAME`, but `x-dead-letter-routing-key` `runcast.queue.NAME`, and `x-message-ttl` MS, `x-expires` MS + 600000 |
//! | `runcast.node.PROCESS.RANDOM` | what one connection hears: it is bound to `runcast.nodes`, and to `runcast.topics` with each topic that is watched | exclusive, auto-delete, not durable |
//!
//! All queues that stay are durable. Names are 1 to 128 bytes of `a-z A-Z 0-9 . _ : -`, the namespace
//! at most 100; messages and payloads are at most 1 MiB.
//!
//! A message is the body, any bytes, with delivery mode 2. Properties and headers:
//!
//! | where | what | meaning |
//! | --- | --- | --- |
//! | message | header `redelivered`, boolean | it was delivered before; absent means no |
//! | dead letter | property `message-id` | its id; ids sort by age |
//! | dead letter | header `reason`, text | why it was rejected. A letter that the server made has `x-first-death-reason` instead |
//!
//! **A producer in any language** publishes to the default exchange with the routing key
//! `runcast.queue.NAME`, and waits for the confirm; with the flag mandatory it learns when nobody has
//! declared the queue yet. It announces on `runcast.topics`.
//!
//! **A worker in any language** gets from `runcast.queue.NAME` or subscribes to it, and acknowledges. It
//! shares the queue with the consumers of this crate. What it rejects without requeueing becomes a dead
//! letter.
//!
//! # What processes tell each other
//!
//! Messages on `runcast.nodes`, or straight to the queue of a process, with these values of the
//! property `type`. `reply-to` names the queue of the sender. A process that does not know a type
//! ignores it.
//!
//! | type | to | what it says |
//! | --- | --- | --- |
//! | `presence` | all | the node in header `node` (text) is there for `ttl` (integer, ms) from now, 0: it has gone; the body is its payload |
//! | `who` | all | a process has come; others answer with `here` and, as far as they have some, `presence` and `delay` |
//! | `here` | one | the answer |
//! | `bye` | all | the sender leaves |
//! | `delay` | all | for the queue in header `queue` (text) a delay of `ms` (integer) is in use |
//! | `count` | all | how much do you hold? `correlation-id` is to be repeated |
//! | `counted` | one | the answer: a line for each queue: its name, messages handed out, messages waiting to be |
//! | `mark` | itself | comes back after all that was confirmed before: so who asks for presence has heard it |
//!
//! # How it keeps its promises
//!
//! - A message is published when the server has confirmed it. One that was returned, because somebody
//!   has deleted the queue, is published again.
//! - A consumer gets messages when it is asked for them, in order of priority, so that one that is busy
//!   keeps nothing from an idle one: one by one, and in growing batches for as long as it is asked in
//!   time. When all its queues are empty and it waits, it has the server push one message from each.
//!   What is not asked for within 0.2 s goes back.
//! - An acknowledgement is done when the server has answered a question asked after it.
//! - A delay is a queue whose messages expire into the queue they came from: so messages with
//!   different delays do not wait for each other, and none is lost with a process.
//! - Deliveries belong to the channel they came over. When it is lost the server returns them, and what
//!   is settled later is refused.
//! - Dead letters are listed by taking and returning them. While one process looks at the letters of a
//!   queue, others see fewer; at most 65,535 are looked at.
//! - What is outstanding is known to the consumers only. For [`depths`](runcast_broker::Broker::depths)
//!   all processes are asked; one that does not answer within 0.25 s, and every foreign worker, is left
//!   out. Delayed messages are left out when every process that knew of their delay has gone.
//! - Two connections: one to publish, one for all else, since an alarm (memory, disk) stops the one that
//!   publishes. Both are replaced by fresh ones when they break or do not answer in time.
//!
//! # Setting up the server
//!
//! A user needs `^runcast\. ^(runcast\.|amq\.default$) ^runcast\.` to configure, write and read.
//!
//! How long queues may get is for policies to say: `max-length` on `^runcast\.queue\.` has `publish` fail
//! as transient while a queue is full, on `^runcast\.dead\.` the oldest letter gives way.
//!
//! RabbitMQ 3.10 writes the name of a new quorum queue to disk half a second after it was declared. When
//! it is killed in between, the queue has no leader from then on, calls on it time out, and it has to be
//! deleted by hand.
//!
//! At level trace, and only there, the driver writes all it sends into the log under the target `lapin`,
//! the login among it: that target should not be let beyond debug.
//!
//! | file | owns |
//! | --- | --- |
//! | `options`, `names` | what is configured; how queues and exchanges are named |
//! | `link` | connecting, time limits, reconnecting, shared channels |
//! | `queues` | declaring queues and publishing to them |
//! | `consumer`, `fetcher` | deliveries and their settlement; getting and subscribing |
//! | `letters` | dead letters |
//! | `bus` | what processes tell each other |
//! | `foreign` | [`AmqpQueue`]: the messages of foreign producers |

mod bus;
mod consumer;
mod failure;
mod fetcher;
mod foreign;
mod letters;
mod link;
mod names;
mod options;
mod queues;

use std::collections::HashSet;
use std::num::NonZeroU16;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use runcast_broker::{Broker, BrokerError, Capabilities, Consumer, DeadLetter, Depth, Name, NodePresence, Watch};
use runcast_broker_remote::{Failure, RemoteWatch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use crate::foreign::AmqpQueue;
pub use crate::options::{AmqpOptions, AmqpTls, AmqpUrl};

use crate::bus::{Bus, Counts};
use crate::consumer::{AmqpConsumer, Settling, Shared};
use crate::fetcher::Fetcher;
use crate::letters::Letters;
use crate::link::{Endpoint, Lane, Link};
use crate::names::Names;
use crate::queues::{Marks, Queues};

/// The largest message or payload, in bytes.
const MAX_MESSAGE_BYTES: usize = 1024 * 1024;

/// The longest that a health check waits.
const HEALTH: Duration = Duration::from_secs(2);

/// A [`Broker`] on one RabbitMQ server or cluster. Beyond the contract:
///
/// - Every call ends within [`AmqpOptions::command_timeout`], also while the server has raised an
///   alarm and takes no messages. One that fails as
///   [`ErrorKind::Transient`](runcast_broker::ErrorKind::Transient) may have happened all the same;
///   repeating it does no harm beyond a message, announcement or letter too many.
/// - A message that is returned takes its old place again, so several come back in their old order,
///   also one that is nacked without a delay. One that is nacked with a delay joins the end of its
///   queue once it is due, which is at most a third later than asked for.
/// - Dropping the broker closes it, without waiting for deliveries to be returned.
pub struct AmqpBroker {
    options: AmqpOptions,
    consumer: String,
    consumers: AtomicU64,
    settling: Arc<Settling>,
    /// Carries what is published: an alarm stops it, and only it.
    publishing: Arc<Link>,
    letters: Letters,
    asks: Lane,
    tells: Lane,
    tasks: TaskTracker,
    closed: CancellationToken,
}

impl AmqpBroker {
    /// Starts a broker. It does not wait for the server: until that is there, calls fail as
    /// [`ErrorKind::Transient`](runcast_broker::ErrorKind::Transient), and consumers wait.
    ///
    /// Fails with [`ErrorKind::Misconfigured`](runcast_broker::ErrorKind::Misconfigured) when the
    /// options make no sense or a certificate cannot be read. Installs rustls' ring provider for the
    /// process if TLS is used and none is installed.
    pub async fn connect(options: AmqpOptions) -> Result<Self, BrokerError> {
        options.check()?;
        if options.url.tls() {
            // an error means that the process has chosen one
            let _ = rustls::crypto::ring::default_provider().install_default();
        }
        let consumer =
            options.consumer.as_ref().map_or_else(|| format!("{:016x}", runcast_broker::random()), Name::to_string);
        let endpoint = Arc::new(Endpoint::new(options.clone(), consumer.clone()));
        endpoint.tls()?;
        let (publishing, consuming) =
            (Link::new(Arc::clone(&endpoint), "publishing"), Link::new(endpoint, "consuming"));
        let names = Names::new(&options.namespace);
        let queues = Arc::new(Queues::new(names.clone(), &publishing));
        let bus = Bus::new(names, &publishing, &consuming, consumer.clone());
        let letters = Letters::new(&consuming, &queues);
        let (asks, tells) = (Lane::new(&consuming, false), Lane::new(&publishing, false));
        let (tasks, closed) = (TaskTracker::new(), CancellationToken::new());
        tasks.spawn(closed.clone().run_until_cancelled_owned(Arc::clone(&bus).listen()));
        let settling = Arc::new(Settling { link: consuming, queues, bus });
        let consumers = AtomicU64::new(0);
        Ok(Self { options, consumer, consumers, settling, publishing, letters, asks, tells, tasks, closed })
    }

    /// What `call` gives, unless the broker is closed before or meanwhile.
    async fn open<T>(&self, call: impl Future<Output = Result<T, BrokerError>>) -> Result<T, BrokerError> {
        self.closed.run_until_cancelled(call).await.unwrap_or_else(|| Err(BrokerError::closed()))
    }

    /// How much a queue has ready, delayed messages included, and how many letters.
    async fn ready(&self, queue: &Name) -> Result<(u64, u64), BrokerError> {
        let (queues, delays) = (&self.settling.queues, self.settling.bus.delays_of(queue));
        let counted = self.asks.call(async |open| {
            let (ready, dead) = queues.declare(&open.channel, queue).await?;
            let mut ready = u64::from(ready);
            for delay in delays {
                ready += u64::from(queues.declare_delayed(&open.channel, queue, delay).await?);
            }
            Ok((ready, u64::from(dead)))
        });
        counted.await
    }
}

impl Drop for AmqpBroker {
    fn drop(&mut self) {
        self.closed.cancel();
    }
}

#[async_trait]
impl Broker for AmqpBroker {
    fn capabilities(&self) -> Capabilities {
        Capabilities { name: "amqp", shared: true, durable: true, max_message_bytes: MAX_MESSAGE_BYTES }
    }

    async fn publish(&self, queue: &Name, message: Bytes) -> Result<(), BrokerError> {
        self.capabilities().check_size(&message)?;
        self.open(self.settling.queues.publish(queue, &message, Marks::default())).await
    }

    async fn consume(&self, queues: &[Name], prefetch: NonZeroU16) -> Result<Box<dyn Consumer>, BrokerError> {
        if self.closed.is_cancelled() {
            return Err(BrokerError::closed());
        }
        let name = format!("{}.{}", self.consumer, self.consumers.fetch_add(1, Ordering::Relaxed) + 1);
        let mut seen = HashSet::new();
        let queues = queues.iter().filter(|queue| seen.insert(*queue)).cloned().collect();
        let shared = Arc::new(Shared::new(name, queues, prefetch.get().into(), self.closed.child_token()));
        self.settling.bus.register(&shared);
        let fetcher = Fetcher {
            shared: Arc::clone(&shared),
            link: Arc::clone(&self.settling.link),
            queues: Arc::clone(&self.settling.queues),
        };
        self.tasks.spawn(fetcher.run());
        Ok(Box::new(AmqpConsumer::new(shared, Arc::clone(&self.settling))))
    }

    async fn announce(&self, topic: &Name, payload: Bytes) -> Result<(), BrokerError> {
        self.capabilities().check_size(&payload)?;
        self.open(self.settling.bus.announce(topic, &payload)).await
    }

    async fn watch(&self, topic: &Name) -> Result<Box<dyn Watch>, BrokerError> {
        let topics = &self.settling.bus.topics;
        let watch = RemoteWatch::new(topics, topic, self.options.watch_buffer, self.closed.clone());
        let late = |_| BrokerError::from(Failure::transient("rabbitmq: the watch was not confirmed in time"));
        let limited = async { timeout(self.options.command_timeout, watch).await.map_err(late)? };
        Ok(Box::new(self.open(limited).await?))
    }

    async fn presence(&self, node: &Name, payload: Bytes, ttl: Duration) -> Result<(), BrokerError> {
        self.capabilities().check_size(&payload)?;
        self.open(self.settling.bus.presence(node, payload, ttl)).await
    }

    async fn nodes(&self) -> Result<Vec<NodePresence>, BrokerError> {
        self.open(self.settling.bus.nodes()).await
    }

    async fn depths(&self, queues: &[Name]) -> Result<Vec<Depth>, BrokerError> {
        self.open(async {
            let counts: Counts = self.settling.bus.counts().await?;
            let mut depths = Vec::with_capacity(queues.len());
            for queue in queues {
                let (ready, dead) = self.ready(queue).await?;
                let (outstanding, waiting) = counts.get(queue).copied().unwrap_or_default();
                depths.push(Depth { ready: ready + waiting, outstanding, dead });
            }
            Ok(depths)
        })
        .await
    }

    async fn dead_letters(
        &self,
        queue: &Name,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<DeadLetter>, BrokerError> {
        self.open(self.letters.list(queue, after, limit)).await
    }

    async fn requeue_dead_letter(&self, queue: &Name, id: &str) -> Result<bool, BrokerError> {
        self.open(self.letters.requeue(queue, id)).await
    }

    async fn purge_dead_letters(&self, queue: &Name) -> Result<u64, BrokerError> {
        self.open(self.letters.purge(queue)).await
    }

    async fn health(&self) -> Result<(), BrokerError> {
        self.open(async {
            for lane in [&self.tells, &self.asks] {
                lane.call_within(HEALTH.min(self.options.command_timeout), async |open| {
                    open.channel.basic_qos(0, lapin::options::BasicQosOptions::default()).await
                })
                .await?;
            }
            Ok(())
        })
        .await
    }

    async fn close(&self) {
        let first = !self.closed.is_cancelled();
        self.closed.cancel();
        self.tasks.close();
        // what cannot be given back in time returns with the connection
        let _ = timeout(self.options.command_timeout, self.tasks.wait()).await;
        if first {
            self.settling.bus.leave().await;
        }
        self.publishing.stop();
        self.settling.link.stop();
    }
}
