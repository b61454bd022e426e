//! A Runcast broker on Redis 7 or newer.
//!
//! Wake-ups travel on streams with a consumer group, announcements by publish/subscribe, presence is a
//! sorted set. Where several steps have to be one they are a script, whose time is the server's.
//!
//! # Keys and channels
//!
//! All of them begin with the namespace in braces, here `{runcast}:`. Braces make Redis Cluster keep
//! them on one node; the broker itself speaks to a single server.
//!
//! | key or channel | type | what it holds |
//! | --- | --- | --- |
//! | `{runcast}:queue:NAME` | stream | the messages of a queue, ready, delayed and outstanding. Field `m`: the message, any bytes; absent means empty. Field `r`: `1` when it was delivered before. Group `runcast`, made from id `0` on demand |
//! | `{runcast}:delayed:NAME` | sorted set | ids of messages that were returned with a delay; score: when they are due, in ms since 1970 |
//! | `{runcast}:dead:NAME` | stream | dead letters. Field `m` as above, field `reason`: UTF-8 text |
//! | `{runcast}:bell:NAME` | stream | at most one entry, meaningless: a new one wakes those who wait, after a message was returned |
//! | `{runcast}:consumers` | sorted set | leases of consumers; score: when they end, in ms since 1970 |
//! | `{runcast}:nodes` | sorted set | nodes; score: when their presence ends, in ms since 1970 |
//! | `{runcast}:payloads` | hash | node to payload; counts only while the node is in `nodes` with a score to come |
//! | `{runcast}:topic:NAME` | channel | announcements, any bytes |
//!
//! Names are 1 to 128 bytes of `a-z A-Z 0-9 . _ : -`; messages and payloads are at most 1 MiB.
//!
//! **A producer in any language** publishes with `XADD {runcast}:queue:NAME * m MESSAGE`, and announces
//! with `PUBLISH {runcast}:topic:NAME PAYLOAD`.
//!
//! **A worker in any language** reads with `XREADGROUP GROUP runcast ITSELF … STREAMS … >`, and settles
//! with `XACK` and `XDEL` in one transaction. It shares the queue with the consumers of this crate, which
//! take over what it has held for longer than their lease, unless it stands in `consumers` with a score
//! to come. It never uses XAUTOCLAIM, which would also take what is delayed: in the group, the consumers
//! `~returned` and `~delayed` stand for messages that nobody holds.
//!
//! # How it keeps its promises
//!
//! - A message is in its stream until it is settled. Who holds it is said by the group; `~returned`
//!   holds what was given back, and is served before anything new, in the old order.
//! - Consumers wait with a plain XREAD, on a connection of their own, and take with a script when
//!   there is news. So a wait that is abandoned, times out or loses its reply has taken nothing. In
//!   return, each consumer that waits looks when a message comes, and one of them finds it.
//! - A consumer takes only when it is asked. What it took in one go and is not asked for within 0.2 s
//!   goes back, so that a busy consumer keeps nothing from an idle one.
//! - Consumers tell the server what they hold, at every third of their lease and whenever in doubt:
//!   all else under their name, such as messages whose delivery was lost on the way, returns. What a
//!   dead consumer held is taken over by any living one of that queue.
//! - A settlement names its consumer. Repeated, it changes nothing.
//!
//! # Permissions
//!
//! An ACL user needs `~{runcast}:* &{runcast}:* +@stream +@sortedset +@hash +@scripting +@pubsub
//! +@connection +exists +time`, and should have `+info` for the checks at start.
//!
//! | file | owns |
//! | --- | --- |
//! | `options`, `keys` | what is configured; how keys are named |
//! | `link` | connecting, time limits, reconnecting |
//! | `scripts`, `lua/` | what happens on the server |
//! | `consumer`, `fetcher` | deliveries and their settlement; taking and leases |
//! | `topics` | subscriptions |
//! | `list`, `stream` | [`RedisList`] and [`RedisStream`]: messages of foreign producers, under keys of their own |

mod consumer;
mod failure;
mod fetcher;
mod keys;
mod link;
mod list;
mod options;
mod scripts;
mod stream;
mod topics;

use std::collections::HashSet;
use std::num::NonZeroU16;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use runcast_broker::{
    Broker, BrokerError, Capabilities, Consumer, DeadLetter, Depth, ErrorKind, Name, NodePresence, Watch,
};
use runcast_broker_remote::{Failure, RemoteWatch, Topics};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use crate::list::RedisList;
pub use crate::options::{RedisOptions, RedisTls, RedisUrl};
pub use crate::stream::{RedisStream, StreamOptions};

use crate::consumer::{RedisConsumer, Settling, Shared};
use crate::fetcher::Fetcher;
use crate::link::Link;

/// The largest message or payload, in bytes.
const MAX_MESSAGE_BYTES: usize = 1024 * 1024;

/// The longest that a health check waits.
const HEALTH: Duration = Duration::from_secs(2);

/// A [`Broker`] on one Redis server. Beyond the contract:
///
/// - Every call ends within [`RedisOptions::command_timeout`]. One that fails as
///   [`ErrorKind::Transient`] may have happened all the same; repeating it does no harm beyond a
///   message, announcement or letter too many.
/// - A message that is returned (by dropping its delivery or its consumer) takes its old place again,
///   so several come back in their old order. One that is nacked joins the end of its queue once it
///   is due.
/// - Messages are as durable as the server's persistence is set to be.
/// - Dropping the broker closes it, without waiting for deliveries to be returned.
pub struct RedisBroker {
    options: RedisOptions,
    consumer: String,
    consumers: AtomicU64,
    settling: Arc<Settling>,
    topics: Arc<Topics>,
    tasks: TaskTracker,
    closed: CancellationToken,
}

impl RedisBroker {
    /// Starts a broker. It does not wait for the server: until that is there, calls fail as
    /// [`ErrorKind::Transient`], and consumers wait.
    ///
    /// Fails with [`ErrorKind::Misconfigured`] when the options make no sense or a certificate cannot
    /// be read. Installs rustls' ring provider for the process if TLS is used and none is installed.
    pub async fn connect(options: RedisOptions) -> Result<Self, BrokerError> {
        let settling = Arc::new(Settling {
            link: Arc::new(Link::open(options.clone())?),
            keys: keys::Keys::new(&options.namespace),
            max_dead_letters: options.max_dead_letters,
        });
        let (topics, tasks, closed) = (Arc::new(Topics::default()), TaskTracker::new(), CancellationToken::new());
        let (endpoint, keys) = (Arc::clone(&settling.link.endpoint), settling.keys.clone());
        let subscribe = topics::subscribe(Arc::clone(&topics), endpoint, keys, options.command_timeout);
        tasks.spawn(closed.clone().run_until_cancelled_owned(subscribe));
        let consumer = options.consumer_name();
        Ok(Self { options, consumer, consumers: AtomicU64::new(0), settling, topics, tasks, closed })
    }

    fn link(&self) -> &Link {
        &self.settling.link
    }

    /// What `call` gives, unless the broker is closed before or meanwhile.
    async fn open<T>(&self, call: impl Future<Output = Result<T, BrokerError>>) -> Result<T, BrokerError> {
        self.closed.run_until_cancelled(call).await.unwrap_or_else(|| Err(BrokerError::closed()))
    }
}

impl Drop for RedisBroker {
    fn drop(&mut self) {
        self.closed.cancel();
    }
}

#[async_trait]
impl Broker for RedisBroker {
    fn capabilities(&self) -> Capabilities {
        Capabilities { name: "redis", shared: true, durable: true, max_message_bytes: MAX_MESSAGE_BYTES }
    }

    async fn publish(&self, queue: &Name, message: Bytes) -> Result<(), BrokerError> {
        self.capabilities().check_size(&message)?;
        let mut script = scripts::PUBLISH.key(self.settling.keys.queue(queue));
        script.arg(self.options.max_messages).arg(&*message);
        if self.open(self.link().script::<bool>(&script)).await? { Ok(()) } else { Err(self.full(queue)) }
    }

    async fn consume(&self, queues: &[Name], prefetch: NonZeroU16) -> Result<Box<dyn Consumer>, BrokerError> {
        if self.closed.is_cancelled() {
            return Err(BrokerError::closed());
        }
        let name = format!("{}.{}", self.consumer, self.consumers.fetch_add(1, Ordering::Relaxed) + 1);
        let mut seen = HashSet::new();
        let queues = queues.iter().filter(|queue| seen.insert(*queue)).cloned().collect();
        let shared = Arc::new(Shared::new(name, queues, prefetch.get().into(), self.closed.child_token()));
        let fetcher = Fetcher {
            shared: Arc::clone(&shared),
            link: Arc::clone(&self.settling.link),
            keys: self.settling.keys.clone(),
            lease: self.options.lease,
            limit: self.options.command_timeout,
        };
        self.tasks.spawn(fetcher.run());
        Ok(Box::new(RedisConsumer::new(shared, Arc::clone(&self.settling))))
    }

    async fn announce(&self, topic: &Name, payload: Bytes) -> Result<(), BrokerError> {
        self.capabilities().check_size(&payload)?;
        let mut publish = redis::cmd("PUBLISH");
        publish.arg(self.settling.keys.topic(topic)).arg(&*payload);
        self.open(self.link().command(&publish)).await
    }

    async fn watch(&self, topic: &Name) -> Result<Box<dyn Watch>, BrokerError> {
        let watch = RemoteWatch::new(&self.topics, topic, self.options.watch_buffer, self.closed.clone());
        let late = |_| BrokerError::from(Failure::transient("redis: the watch was not confirmed in time"));
        let limited = async { timeout(self.options.command_timeout, watch).await.map_err(late)? };
        Ok(Box::new(self.open(limited).await?))
    }

    async fn presence(&self, node: &Name, payload: Bytes, ttl: Duration) -> Result<(), BrokerError> {
        self.capabilities().check_size(&payload)?;
        let keys = &self.settling.keys;
        let mut script = scripts::PRESENCE.key(keys.nodes());
        script.key(keys.payloads()).arg(node.as_str()).arg(&*payload).arg(millis(ttl));
        self.open(self.link().script(&script)).await
    }

    async fn nodes(&self) -> Result<Vec<NodePresence>, BrokerError> {
        let keys = &self.settling.keys;
        let mut script = scripts::NODES.key(keys.nodes());
        script.key(keys.payloads());
        let listed: Vec<(String, Bytes)> = self.open(self.link().script(&script)).await?;
        // a foreign entry whose name is none is nobody's
        let presence = |(node, payload)| Some(NodePresence { node: Name::new(node).ok()?, payload });
        let mut nodes: Vec<NodePresence> = listed.into_iter().filter_map(presence).collect();
        nodes.sort_by(|one, other| one.node.cmp(&other.node));
        Ok(nodes)
    }

    async fn depths(&self, queues: &[Name]) -> Result<Vec<Depth>, BrokerError> {
        let mut script = scripts::DEPTHS.prepare_invoke();
        for queue in queues {
            script.key(self.settling.keys.queue(queue)).key(self.settling.keys.dead(queue));
        }
        let depths: Vec<(u64, u64, u64)> = self.open(self.link().script(&script)).await?;
        let depth = |(all, outstanding, dead): (u64, u64, u64)| Depth {
            ready: all.saturating_sub(outstanding),
            outstanding,
            dead,
        };
        Ok(depths.into_iter().map(depth).collect())
    }

    async fn dead_letters(
        &self,
        queue: &Name,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<DeadLetter>, BrokerError> {
        let start = match after {
            None => "-".to_owned(),
            Some(id) if is_letter(id) => format!("({id}"),
            Some(_) => {
                return Err(BrokerError::new(ErrorKind::Permanent, "not the id of a dead letter of this broker"));
            }
        };
        let mut range = redis::cmd("XRANGE");
        range.arg(self.settling.keys.dead(queue)).arg(start).arg("+").arg("COUNT").arg(limit.min(1 << 31));
        let letters: Vec<(String, Vec<(String, Bytes)>)> = self.open(self.link().command(&range)).await?;
        let letter = |(id, fields): (String, Vec<(String, Bytes)>)| {
            let field = |name| fields.iter().find(|(field, _)| field == name).map(|(_, value)| value.clone());
            let reason = String::from_utf8_lossy(&field("reason").unwrap_or_default()).into_owned();
            DeadLetter { id, message: field("m").unwrap_or_default(), reason }
        };
        Ok(letters.into_iter().map(letter).collect())
    }

    async fn requeue_dead_letter(&self, queue: &Name, id: &str) -> Result<bool, BrokerError> {
        let keys = &self.settling.keys;
        let mut script = scripts::REQUEUE.key(keys.queue(queue));
        script.key(keys.dead(queue)).arg(self.options.max_messages).arg(id);
        let requeued = async { if is_letter(id) { self.link().script(&script).await } else { Ok(0) } };
        match self.open(requeued).await? {
            -1 => Err(self.full(queue)),
            requeued => Ok(requeued == 1),
        }
    }

    async fn purge_dead_letters(&self, queue: &Name) -> Result<u64, BrokerError> {
        let mut trim = redis::cmd("XTRIM");
        trim.arg(self.settling.keys.dead(queue)).arg("MAXLEN").arg(0);
        self.open(self.link().command(&trim)).await
    }

    async fn health(&self) -> Result<(), BrokerError> {
        self.open(self.link().ping(HEALTH)).await
    }

    async fn close(&self) {
        self.closed.cancel();
        self.tasks.close();
        // what cannot be given back in time is taken over when the lease is over
        let _ = timeout(self.options.command_timeout, self.tasks.wait()).await;
        self.link().stop();
    }
}

impl RedisBroker {
    fn full(&self, queue: &Name) -> BrokerError {
        let text = format!("queue {queue} is full: it holds {} messages", self.options.max_messages);
        BrokerError::new(ErrorKind::Transient, text)
    }
}

/// Whether `id` has the form of a stream's ids: one number, or two with a dash between.
fn is_letter(id: &str) -> bool {
    let (ms, seq) = id.split_once('-').unwrap_or((id, "0"));
    let number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()) && text.parse::<u64>().is_ok();
    number(ms) && number(seq)
}

/// Whole milliseconds, rounded up: a wait never ends early. At most thirty years.
fn millis(duration: Duration) -> u64 {
    const LONGEST: u128 = 30 * 365 * 86_400_000;
    duration.as_nanos().div_ceil(1_000_000).min(LONGEST) as u64
}
