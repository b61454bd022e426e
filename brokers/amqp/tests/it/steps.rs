//! The servers of this run, and the steps that tests share.

use std::num::NonZeroU16;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use runcast_broker::{Broker, BrokerError, Consumer, Delivery, Depth, ErrorKind, Name};
use runcast_broker_amqp::{AmqpBroker, AmqpOptions};
use tokio::sync::{Mutex, MutexGuard, OnceCell};

use crate::security::Authority;
use crate::server::Server;

/// How long a test waits for a condition before it fails.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// A namespace on one of the servers, which nobody else uses.
pub(crate) struct Space {
    pub(crate) server: &'static Server,
    pub(crate) namespace: Name,
    /// Whoever has it may do to the server what others would notice.
    _alone: Option<MutexGuard<'static, ()>>,
}

/// What certificates of the servers are issued by.
pub(crate) fn authority() -> &'static Authority {
    static AUTHORITY: OnceLock<Authority> = OnceLock::new();
    AUTHORITY.get_or_init(Authority::new)
}

/// On the server that runs through. `None` when there is none to be had.
pub(crate) async fn shared() -> Option<Space> {
    static SERVER: OnceCell<Option<Server>> = OnceCell::const_new();
    let server = SERVER.get_or_init(async || Server::start(Some(&authority().server(false))).await).await;
    Some(Space { server: server.as_ref()?, namespace: namespace(), _alone: None })
}

/// On the server that may be killed, which runs, and which the test has to itself.
pub(crate) async fn alone() -> Option<Space> {
    static SERVER: OnceCell<Option<Server>> = OnceCell::const_new();
    static ALONE: Mutex<()> = Mutex::const_new(());
    let alone = ALONE.lock().await;
    let server = SERVER.get_or_init(async || Server::start(Some(&authority().server(true))).await).await;
    let server = server.as_ref()?;
    if tokio::net::TcpStream::connect(("127.0.0.1", server.port)).await.is_err() {
        server.kill();
        server.run().await;
    }
    Some(Space { server, namespace: namespace(), _alone: Some(alone) })
}

fn namespace() -> Name {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    name(&format!("test-{}", NUMBER.fetch_add(1, Ordering::Relaxed)))
}

impl Space {
    pub(crate) fn options(&self) -> AmqpOptions {
        self.options_at(&self.server.url())
    }

    pub(crate) fn options_at(&self, url: &str) -> AmqpOptions {
        AmqpOptions { namespace: self.namespace.clone(), ..AmqpOptions::new(url.parse().unwrap()) }
    }

    pub(crate) async fn broker(&self) -> AmqpBroker {
        connect(self.options()).await
    }

    /// A plain connection, as a foreign program would use it.
    pub(crate) async fn raw(&self) -> lapin::Channel {
        let url = self.server.url();
        let connection = lapin::Connection::connect(&url, lapin::ConnectionProperties::default()).await.unwrap();
        // it ends with its last channel
        connection.create_channel().await.unwrap()
    }

    pub(crate) fn queue(&self, name: &str) -> String {
        format!("{}.queue.{name}", self.namespace)
    }
}

pub(crate) async fn connect(options: AmqpOptions) -> AmqpBroker {
    AmqpBroker::connect(options).await.unwrap()
}

pub(crate) fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

pub(crate) fn text(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

pub(crate) async fn publish(broker: &AmqpBroker, queue: &Name, messages: &[&'static str]) {
    for message in messages {
        soon("publish", broker.publish(queue, text(message))).await.unwrap();
    }
}

pub(crate) async fn consume(broker: &AmqpBroker, queues: &[&Name], prefetch: u16) -> Box<dyn Consumer> {
    let queues: Vec<Name> = queues.iter().map(|queue| (*queue).clone()).collect();
    broker.consume(&queues, NonZeroU16::new(prefetch).unwrap()).await.unwrap()
}

/// The next delivery, which has to carry `message`.
pub(crate) async fn take(consumer: &mut dyn Consumer, message: &'static str) -> Delivery {
    let delivery = soon(message, consumer.next()).await.unwrap();
    assert_eq!(delivery.message(), &text(message));
    delivery
}

pub(crate) async fn depth(broker: &AmqpBroker, queue: &Name) -> Depth {
    soon("depths", broker.depths(std::slice::from_ref(queue))).await.unwrap()[0]
}

/// Waits until `queue` holds exactly this much.
pub(crate) async fn depth_becomes(broker: &AmqpBroker, queue: &Name, expected: Depth) {
    eventually("the depth", async || depth(broker, queue).await == expected).await;
}

/// Repeats `call` for as long as it fails as transient.
pub(crate) async fn once_back<T>(what: &str, mut call: impl AsyncFnMut() -> Result<T, BrokerError>) -> T {
    soon(what, async {
        loop {
            match call().await {
                Ok(value) => return value,
                Err(error) if error.kind() == ErrorKind::Transient => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Err(error) => panic!("{what}: {error:?}"),
            }
        }
    })
    .await
}

/// What `future` gives within the deadline.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.unwrap_or_else(|_| panic!("{what}: not within {DEADLINE:?}"))
}

/// Asks until the answer is yes.
pub(crate) async fn eventually(what: &str, mut ask: impl AsyncFnMut() -> bool) {
    soon(what, async {
        while !ask().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}
