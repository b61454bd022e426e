//! A stream of a foreign producer, whose entries are taken in.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use redis::aio::MultiplexedConnection;
use redis::{Cmd, FromRedisValue};
use runcast_broker::{BrokerError, Message, Remove, Source};
use runcast_broker_remote::Failure;
use serde_json::{Map, Value};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use crate::link::Link;
use crate::options::RedisOptions;
use crate::scripts::STREAM_LEAVE;

/// The longest wait for entries.
const BLOCK: Duration = Duration::from_secs(5);

/// The most entries read at once.
const BATCH: usize = 64;

/// Which stream a [`RedisStream`] reads, and how.
#[derive(Debug, Clone)]
pub struct StreamOptions {
    /// Its key.
    pub stream: String,
    /// The consumer group; made when it is missing, to begin with the oldest entry.
    pub group: String,
    /// The field that holds the message. Without it, and for entries that lack it, the message is a JSON object of all
    /// fields, each a text.
    pub field: Option<String>,
}

/// A [`Source`] on a stream to which a foreign producer adds with XADD.
///
/// Entries are read by a consumer group, which can be the producer's own, on a connection of its own (XREADGROUP), and
/// acknowledged when they are done (XACK). They stay in the stream: to trim it is the producer's business. What a
/// dead consumer held, or whose reply was lost, is claimed once it has been idle for [`RedisOptions::lease`]
/// (XAUTOCLAIM); so is, by another consumer, what is held for longer. [`Message::id`] is the entry's.
///
/// The consumer is called [`RedisOptions::consumer`]. An ACL user needs `~STREAM +@stream +@scripting +@connection`.
pub struct RedisStream {
    shared: Arc<Shared>,
    field: Option<String>,
    lease: Duration,
    limit: Duration,
    reader: Option<MultiplexedConnection>,
    /// Where the search for what dead consumers held goes on, and when.
    cursor: String,
    claim_at: Instant,
}

struct Shared {
    link: Link,
    stream: String,
    group: String,
    consumer: String,
    state: Mutex<State>,
    handed_back: Notify,
}

#[derive(Default)]
struct State {
    /// Read, and not handed out or handed back.
    buffer: VecDeque<(String, Bytes)>,
    /// Read and not acknowledged: the buffer, and all messages that were handed out.
    held: BTreeSet<String>,
}

/// An entry: its id, and names and values of its fields.
type Entry = (String, Vec<(Bytes, Bytes)>);

const BEGINNING: &str = "0-0";

impl RedisStream {
    /// Opens the stream. It does not wait for the server.
    ///
    /// Fails with [`ErrorKind::Misconfigured`](runcast_broker::ErrorKind::Misconfigured) when the options make no sense
    /// or a certificate cannot be read. Namespace and bounds of queues are not used.
    pub fn open(options: RedisOptions, stream: StreamOptions) -> Result<Self, BrokerError> {
        let (lease, limit, consumer) = (options.lease, options.command_timeout, options.consumer_name());
        let StreamOptions { stream, group, field } = stream;
        let (link, state, handed_back) = (Link::open(options)?, Mutex::default(), Notify::new());
        let shared = Arc::new(Shared { link, stream, group, consumer, state, handed_back });
        let (cursor, claim_at) = (BEGINNING.to_owned(), Instant::now());
        Ok(Self { shared, field, lease, limit, reader: None, cursor, claim_at })
    }

    /// Runs a command on the connection of its own, which blocks for `block` at most, and is given up when anything
    /// goes wrong.
    async fn ask<T: FromRedisValue>(&mut self, command: &Cmd, block: Duration) -> Result<T, BrokerError> {
        let endpoint = &self.shared.link.endpoint;
        let mut connection = match self.reader.take() {
            Some(reader) => reader,
            None => {
                let mut connection = endpoint.connect().await?;
                let mut create = redis::cmd("XGROUP");
                create.arg("CREATE").arg(&self.shared.stream).arg(&self.shared.group).arg(0).arg("MKSTREAM");
                match timeout(self.limit, create.exec_async(&mut connection)).await {
                    Ok(Err(error)) if error.code() != Some("BUSYGROUP") => return Err(endpoint.failure(&error).into()),
                    Ok(_) => connection,
                    Err(_) => return Err(Failure::transient("redis: no answer in time").into()),
                }
            }
        };
        match timeout(block + self.limit, command.query_async(&mut connection)).await {
            Ok(Ok(answer)) => {
                self.reader = Some(connection);
                Ok(answer)
            }
            Ok(Err(error)) => Err(endpoint.failure(&error).into()),
            Err(_) => Err(Failure::transient("redis: no answer in time to a wait for messages").into()),
        }
    }

    /// Claims some of what has been idle for the lease.
    async fn claim(&mut self) -> Result<(), BrokerError> {
        let Shared { stream, group, consumer, .. } = &*self.shared;
        let mut claim = redis::cmd("XAUTOCLAIM");
        claim.arg(stream).arg(group).arg(consumer).arg(crate::millis(self.lease)).arg(&self.cursor);
        claim.arg("COUNT").arg(BATCH);
        let (cursor, entries, _): (String, Vec<Entry>, Vec<String>) = self.ask(&claim, Duration::ZERO).await?;
        if cursor == BEGINNING {
            self.claim_at = Instant::now() + self.lease / 3;
        }
        self.cursor = cursor;
        self.keep(entries);
        Ok(())
    }

    async fn read(&mut self) -> Result<(), BrokerError> {
        let block = BLOCK.min(self.claim_at.saturating_duration_since(Instant::now())).max(Duration::from_millis(1));
        let Shared { stream, group, consumer, .. } = &*self.shared;
        let mut read = redis::cmd("XREADGROUP");
        read.arg("GROUP").arg(group).arg(consumer).arg("COUNT").arg(BATCH).arg("BLOCK").arg(crate::millis(block));
        read.arg("STREAMS").arg(stream).arg(">");
        let streams: Option<Vec<(Bytes, Vec<Entry>)>> = self.ask(&read, block).await?;
        streams.into_iter().flatten().for_each(|(_, entries)| self.keep(entries));
        Ok(())
    }

    fn keep(&self, entries: Vec<Entry>) {
        let mut state = self.shared.state.lock();
        for (id, fields) in entries {
            // claimed again while it is held here
            if state.held.insert(id.clone()) {
                state.buffer.push_back((id, self.payload(fields)));
            }
        }
    }

    fn payload(&self, mut fields: Vec<(Bytes, Bytes)>) -> Bytes {
        let named = self.field.as_ref().and_then(|name| fields.iter().position(|(field, _)| field == name.as_bytes()));
        if let Some(index) = named {
            return fields.swap_remove(index).1;
        }
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let object: Map<_, _> = fields.iter().map(|(name, value)| (text(name), Value::String(text(value)))).collect();
        Value::Object(object).to_string().into()
    }
}

#[async_trait]
impl Source for RedisStream {
    async fn next(&mut self) -> Result<Message, BrokerError> {
        loop {
            let ready = self.shared.state.lock().buffer.pop_front();
            if let Some((id, payload)) = ready {
                let shared = Arc::clone(&self.shared);
                let remove = Held { shared, entry: Some((id.clone(), payload.clone())) };
                return Ok(Message::new(Some(id), payload, Box::new(remove)));
            }
            if self.claim_at <= Instant::now() {
                self.claim().await?;
            } else {
                let shared = Arc::clone(&self.shared);
                tokio::select! {
                    read = self.read() => read?,
                    () = shared.handed_back.notified() => {}
                }
            }
        }
    }

    async fn close(self: Box<Self>) {
        let Shared { link, stream, group, consumer, .. } = &*self.shared;
        let mut script = STREAM_LEAVE.key(stream);
        script.arg(group).arg(consumer).arg(crate::millis(self.lease));
        if let Err(error) = link.script::<()>(&script).await {
            tracing::debug!(%error, stream, "messages return when the lease runs out");
        }
        link.stop();
    }
}

struct Held {
    shared: Arc<Shared>,
    /// `None` once it is acknowledged.
    entry: Option<(String, Bytes)>,
}

#[async_trait]
impl Remove for Held {
    async fn remove(&mut self) -> Result<(), BrokerError> {
        let Shared { link, stream, group, state, .. } = &*self.shared;
        if let Some((id, _)) = &self.entry {
            link.command::<()>(redis::cmd("XACK").arg(stream).arg(group).arg(id)).await?;
            state.lock().held.remove(id);
            self.entry = None;
        }
        Ok(())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(entry) = self.entry.take() {
            self.shared.state.lock().buffer.push_front(entry);
            self.shared.handed_back.notify_one();
        }
    }
}
