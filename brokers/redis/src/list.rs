//! A list of a foreign producer, whose messages are taken in.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use redis::aio::MultiplexedConnection;
use runcast_broker::{BrokerError, Message, Remove, Source};
use runcast_broker_remote::Failure;
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::link::Link;
use crate::options::RedisOptions;
use crate::scripts::LIST;

/// The longest wait for news. It bounds how long what a dead consumer held goes unnoticed.
const BLOCK: Duration = Duration::from_secs(5);

/// The most messages taken at once.
const BATCH: usize = 64;

/// A [`Source`] on a list to which a foreign producer pushes with LPUSH: the right end is its head.
///
/// Beside the list `LIST` it uses two kinds of keys:
///
/// | key | type | what it holds |
/// | --- | --- | --- |
/// | `LIST:runcast` | sorted set | consumers; score: when their lease ends, in ms since 1970 |
/// | `LIST:runcast:CONSUMER` | list | what the consumer has taken and not yet removed, newest first |
///
/// One script moves messages to the list of the consumer (LMOVE) and renews its lease, so that nobody ever holds
/// something without a lease; the same script moves back what consumers held whose lease is over. A message is removed
/// from the consumer's list (LREM) when it is done. The wait for news is a BLMOVE of the list onto itself, on a
/// connection of its own: it moves nothing, so a wait that is abandoned, times out or loses its reply has taken nothing.
/// When the reply to the script itself is lost, all that the consumer holds goes back, to be taken again.
///
/// The consumer is called [`RedisOptions::consumer`]; one that comes back under its old name gives back at once what it
/// held. What is held for longer than [`RedisOptions::lease`] without anything being taken meanwhile may be handed
/// out a second time. An ACL user needs `~LIST ~LIST:runcast* +@list +@sortedset +@scripting +@connection +time`.
pub struct RedisList {
    shared: Arc<Shared>,
    lease: Duration,
    limit: Duration,
    /// What is under this consumer's name may be more than is known here.
    doubt: bool,
    waiter: Option<MultiplexedConnection>,
}

struct Shared {
    link: Link,
    list: String,
    consumer: String,
    /// Taken, and not handed out or handed back.
    buffer: Mutex<VecDeque<Bytes>>,
    handed_back: Notify,
}

impl RedisList {
    /// Opens the list `list`. It does not wait for the server.
    ///
    /// Fails with [`ErrorKind::Misconfigured`](runcast_broker::ErrorKind::Misconfigured) when the options make no sense
    /// or a certificate cannot be read. Namespace and bounds of queues are not used.
    pub fn open(options: RedisOptions, list: impl Into<String>) -> Result<Self, BrokerError> {
        let (lease, limit, consumer) = (options.lease, options.command_timeout, options.consumer_name());
        let shared = Shared {
            link: Link::open(options)?,
            list: list.into(),
            consumer,
            buffer: Mutex::default(),
            handed_back: Notify::new(),
        };
        Ok(Self { shared: Arc::new(shared), lease, limit, doubt: true, waiter: None })
    }

    async fn take(&mut self, lease: Duration, most: usize) -> Result<(), BrokerError> {
        let shared = &self.shared;
        let mut script = LIST.key(&shared.list);
        script.key(format!("{}:runcast", shared.list));
        script.arg(&shared.consumer).arg(crate::millis(lease)).arg(i32::from(self.doubt)).arg(most);
        if self.doubt {
            shared.buffer.lock().clear();
        }
        self.doubt = true;
        let taken: Vec<Bytes> = shared.link.script(&script).await?;
        self.doubt = false;
        shared.buffer.lock().extend(taken);
        Ok(())
    }

    /// Waits until the list holds something, for a while at most.
    async fn wait(&mut self) -> Result<(), BrokerError> {
        let endpoint = &self.shared.link.endpoint;
        let mut connection = match self.waiter.take() {
            Some(waiter) => waiter,
            None => endpoint.connect().await?,
        };
        let block = BLOCK.min(self.lease / 3);
        let mut command = redis::cmd("BLMOVE");
        command.arg(&self.shared.list).arg(&self.shared.list).arg("RIGHT").arg("RIGHT").arg(block.as_secs_f64());
        match timeout(block + self.limit, command.exec_async(&mut connection)).await {
            Ok(Ok(())) => {
                self.waiter = Some(connection);
                Ok(())
            }
            Ok(Err(error)) => Err(endpoint.failure(&error).into()),
            Err(_) => Err(Failure::transient("redis: no answer in time to a wait for messages").into()),
        }
    }
}

#[async_trait]
impl Source for RedisList {
    async fn next(&mut self) -> Result<Message, BrokerError> {
        loop {
            let ready = self.shared.buffer.lock().pop_front();
            if let Some(payload) = ready {
                let shared = Arc::clone(&self.shared);
                let remove = Held { shared, payload: payload.clone(), removed: false };
                return Ok(Message::new(None, payload, Box::new(remove)));
            }
            self.take(self.lease, BATCH).await?;
            if self.shared.buffer.lock().is_empty() {
                let shared = Arc::clone(&self.shared);
                tokio::select! {
                    waited = self.wait() => waited?,
                    () = shared.handed_back.notified() => {}
                }
            }
        }
    }

    async fn close(mut self: Box<Self>) {
        self.doubt = true;
        if let Err(error) = self.take(Duration::ZERO, 0).await {
            tracing::debug!(%error, list = self.shared.list, "messages return when the lease runs out");
        }
        self.shared.link.stop();
    }
}

struct Held {
    shared: Arc<Shared>,
    payload: Bytes,
    removed: bool,
}

#[async_trait]
impl Remove for Held {
    /// Repeated, it may remove an equal message, which is the same to its consumer.
    async fn remove(&mut self) -> Result<(), BrokerError> {
        let Shared { link, list, consumer, .. } = &*self.shared;
        let mut remove = redis::cmd("LREM");
        // those taken first are at the right
        remove.arg(format!("{list}:runcast:{consumer}")).arg(-1).arg(&*self.payload);
        link.command::<()>(&remove).await?;
        self.removed = true;
        Ok(())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if !self.removed {
            self.shared.buffer.lock().push_front(std::mem::take(&mut self.payload));
            self.shared.handed_back.notify_one();
        }
    }
}
