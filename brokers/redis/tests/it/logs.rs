//! What is logged, and how often.

use runcast_broker::Broker;
use runcast_broker_conformance::Log;

use crate::server::{Server, eventually, once_back};

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
