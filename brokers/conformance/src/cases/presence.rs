//! Presence entries.

use std::time::Duration;

use bytes::Bytes;
use runcast_broker::Broker;
use tokio::time::Instant;

use crate::Backend;
use crate::harness::{GRANULARITY, eventually, name, nodes, soon};

async fn present(broker: &dyn Broker, node: &str, payload: &'static str, ttl: Duration) {
    let payload = Bytes::from_static(payload.as_bytes());
    soon("presence", broker.presence(&name(node), payload, ttl)).await.expect("presence");
}

fn entry(node: &str, payload: &str) -> (String, String) {
    (node.to_owned(), payload.to_owned())
}

/// Entries are ordered by node; a renewal replaces the payload and starts a new time to live.
pub async fn presence_is_listed_renewed_and_vanishes(backend: Backend) {
    const TTL: Duration = Duration::from_secs(2);
    let broker = backend.broker();
    assert_eq!(nodes(broker).await, []);
    let long = Duration::from_secs(3600);
    present(broker, "node-2", "stays", long).await;
    present(broker, "node-1", "old", TTL).await;
    present(broker, "node-3", "goes", TTL).await;
    assert_eq!(nodes(broker).await, [entry("node-1", "old"), entry("node-2", "stays"), entry("node-3", "goes")]);

    tokio::time::sleep(TTL / 2).await;
    let renewed = Instant::now();
    present(broker, "node-1", "new", TTL).await;
    let one_gone = [entry("node-1", "new"), entry("node-2", "stays")];
    eventually("an entry that is not renewed vanishes", async || nodes(broker).await == one_gone).await;
    assert!(renewed.elapsed() < TTL, "the renewed entry was there by chance only");

    eventually("the renewed entry vanishes too", async || nodes(broker).await == [entry("node-2", "stays")]).await;
    let lived = renewed.elapsed();
    assert!(lived + GRANULARITY >= TTL, "the renewed entry vanished after {lived:?}");
}

/// At once, and without an error when there is none.
pub async fn a_zero_ttl_removes_presence(backend: Backend) {
    let broker = backend.broker();
    let long = Duration::from_secs(3600);
    present(broker, "node-1", "goes", long).await;
    present(broker, "node-2", "stays", long).await;
    present(broker, "node-1", "", Duration::ZERO).await;
    present(broker, "node-3", "", Duration::ZERO).await;
    assert_eq!(nodes(broker).await, [entry("node-2", "stays")]);
    present(broker, "node-1", "back", long).await;
    assert_eq!(nodes(broker).await, [entry("node-1", "back"), entry("node-2", "stays")]);
}
