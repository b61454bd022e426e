//! What is logged, and how often.

use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use runcast_broker::Broker;
use tracing::subscriber::DefaultGuard;

use crate::server::{Server, eventually, once_back};

/// Gathers the log of this thread until the guard is dropped.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    pub(crate) fn gather(&self) -> DefaultGuard {
        let log = self.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_max_level(tracing::Level::TRACE)
            .with_writer(move || log.clone())
            .finish();
        tracing::subscriber::set_default(subscriber)
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.0.lock().clone()).unwrap()
    }

    fn count(&self, what: &str) -> usize {
        self.text().matches(what).count()
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_server_that_may_forget_is_warned_of() {
    let policy = ["--maxmemory-policy", "allkeys-lru", "--appendonly", "no"];
    let Some(server) = Server::start(&policy).await else { return };
    let log = Log::default();
    let _gathers = log.gather();
    let _broker = server.broker().await;
    eventually("both are warned of", async || {
        log.count("may evict queues") == 1 && log.count("keeps no append-only file") == 1
    })
    .await;

    let Some(server) = Server::start(&["--maxmemory-policy", "noeviction"]).await else { return };
    let log = Log::default();
    let _gathers = log.gather();
    let broker = server.broker().await;
    once_back("health", async || broker.health().await).await;
    assert_eq!(log.count("WARN"), 0, "{}", log.text());
}

#[tokio::test]
async fn an_outage_is_logged_once_however_long_it_takes() {
    let Some(server) = Server::start(&[]).await else { return };
    let log = Log::default();
    let _gathers = log.gather();
    let broker = server.broker().await;
    once_back("health", async || broker.health().await).await;
    server.kill();
    let mut failures = 0;
    eventually("calls fail at once", async || {
        failures += usize::from(broker.health().await.is_err());
        failures == 50
    })
    .await;
    server.run().await;
    once_back("health", async || broker.health().await).await;
    assert_eq!((log.count("redis is away"), log.count("connected to redis")), (1, 2), "{}", log.text());
}
