//! Private throw-away servers.

use std::io::Write;
use std::net::TcpListener;
use std::num::NonZeroU16;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use runcast_broker::{Broker, BrokerError, Consumer, Delivery, Depth, ErrorKind, Name};
use runcast_broker_redis::{RedisBroker, RedisOptions};
use tempfile::TempDir;

/// How long a test waits for a condition before it fails.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// A server on a free port, with its data in a directory of its own. Ends when dropped, or when the
/// thread that started it does.
pub(crate) struct Server {
    pub(crate) port: u16,
    arguments: Vec<String>,
    child: Mutex<Option<Child>>,
    data: TempDir,
}

impl Server {
    /// `None` when there is no redis-server here, which fails instead if servers are required.
    pub(crate) async fn start(arguments: &[&str]) -> Option<Self> {
        let server = Self::reserve(arguments)?;
        server.run().await;
        Some(server)
    }

    /// A server that does not run yet.
    pub(crate) fn reserve(arguments: &[&str]) -> Option<Self> {
        if Command::new("redis-server").arg("--version").stdout(Stdio::null()).status().is_err() {
            assert!(std::env::var("RUNCAST_REQUIRE_SERVERS").as_deref() != Ok("1"), "redis-server is not installed");
            let _ = std::io::stderr().write_all(b"skipped: needs redis-server\n");
            return None;
        }
        // never freed within this process: the port stays ours over restarts
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let data = TempDir::new().unwrap();
        let arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        Some(Self { port, arguments, child: Mutex::new(None), data })
    }

    /// Starts it, also again, with the data it had, and returns when it answers.
    pub(crate) async fn run(&self) {
        let tls = self.arguments.iter().any(|argument| argument == "--tls-port");
        let port = if tls { 0 } else { self.port }.to_string();
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "redis-server", "--bind", "127.0.0.1", "--port", &port, "--dir"]);
        command.arg(self.data.path()).args(["--save", "", "--appendonly", "yes", "--appendfsync", "everysec"]);
        if tls {
            command.arg("--tls-port").arg(self.port.to_string());
        }
        command.args(self.arguments.iter().filter(|argument| *argument != "--tls-port"));
        let log = std::fs::File::create(self.data.path().join("log")).unwrap();
        let child = command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        *self.child.lock() = Some(child);
        soon("the server accepts connections", async {
            while tokio::net::TcpStream::connect(("127.0.0.1", self.port)).await.is_err() {
                if let Some(status) = self.child.lock().as_mut().unwrap().try_wait().unwrap() {
                    panic!("{status}: {}", std::fs::read_to_string(self.data.path().join("log")).unwrap());
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    }

    pub(crate) fn kill(&self) {
        if let Some(mut child) = self.child.lock().take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Stops or continues it, its sockets staying open.
    pub(crate) fn signal(&self, signal: &str) {
        let pid = self.child.lock().as_ref().unwrap().id().to_string();
        assert!(Command::new("kill").args(["-s", signal, &pid]).status().unwrap().success());
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub(crate) fn options(&self) -> RedisOptions {
        RedisOptions { namespace: name("test"), ..RedisOptions::new(self.url().parse().unwrap()) }
    }

    pub(crate) async fn broker(&self) -> RedisBroker {
        RedisBroker::connect(self.options()).await.unwrap()
    }

    /// A plain connection, as a foreign program would use it.
    pub(crate) async fn raw(&self) -> redis::aio::MultiplexedConnection {
        redis::Client::open(self.url()).unwrap().get_multiplexed_async_connection().await.unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

pub(crate) fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

pub(crate) fn text(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

pub(crate) async fn publish(broker: &RedisBroker, queue: &Name, messages: &[&'static str]) {
    for message in messages {
        soon("publish", broker.publish(queue, text(message))).await.unwrap();
    }
}

pub(crate) async fn consume(broker: &RedisBroker, queues: &[&Name], prefetch: u16) -> Box<dyn Consumer> {
    let queues: Vec<Name> = queues.iter().map(|queue| (*queue).clone()).collect();
    broker.consume(&queues, NonZeroU16::new(prefetch).unwrap()).await.unwrap()
}

/// The next delivery, which has to carry `message`.
pub(crate) async fn take(consumer: &mut dyn Consumer, message: &'static str) -> Delivery {
    let delivery = soon(message, consumer.next()).await.unwrap();
    assert_eq!(delivery.message(), &text(message));
    delivery
}

pub(crate) async fn depth(broker: &RedisBroker, queue: &Name) -> Depth {
    soon("depths", broker.depths(std::slice::from_ref(queue))).await.unwrap()[0]
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
