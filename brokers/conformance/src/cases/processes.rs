//! Several processes on one namespace; for shared brokers.

use std::time::Duration;

use bytes::Bytes;
use runcast_broker::Depth;

use crate::harness::{ONE, ack, announce, consume, depth_becomes, drain, name, nodes, publish, see, soon, take, watch};
use crate::{Backend, Missing};

/// Queues are the same for all, and so is what is left in them.
pub async fn another_process_consumes_what_was_published(backend: Backend) -> Result<(), Missing> {
    let (broker, peer, queue) = (backend.broker(), backend.peer()?, name("queue"));
    let mut consumer = consume(peer, &[&queue], ONE).await;
    publish(broker, &queue, &["1", "2"]).await;
    let held = take(&mut *consumer, "1").await;
    depth_becomes(broker, &queue, Depth { ready: 1, outstanding: 1, dead: 0 }).await;
    ack(held).await;
    drain(&mut *consumer, &["2"]).await;
    depth_becomes(broker, &queue, Depth::default()).await;
    Ok(())
}

/// Topics are the same for all.
pub async fn another_process_watches_what_was_announced(backend: Backend) -> Result<(), Missing> {
    let (broker, peer, topic) = (backend.broker(), backend.peer()?, name("topic"));
    let (mut here, mut there) = (watch(broker, &topic).await, watch(peer, &topic).await);
    announce(broker, &topic, &["1"]).await;
    see(&mut *there, &["1"]).await;
    announce(peer, &topic, &["2"]).await;
    see(&mut *there, &["2"]).await;
    see(&mut *here, &["1", "2"]).await;
    Ok(())
}

/// Presence is the same for all.
pub async fn another_process_sees_presence(backend: Backend) -> Result<(), Missing> {
    let (broker, peer) = (backend.broker(), backend.peer()?);
    let payload = Bytes::from_static(b"here");
    soon("presence", broker.presence(&name("node"), payload, Duration::from_secs(60))).await.expect("presence");
    assert_eq!(nodes(peer).await, [("node".to_owned(), "here".to_owned())]);
    Ok(())
}

/// What a closed broker held goes to the others, in its old place.
pub async fn close_returns_outstanding_deliveries(backend: Backend) -> Result<(), Missing> {
    let (broker, peer, queue) = (backend.broker(), backend.peer()?, name("queue"));
    publish(broker, &queue, &["1", "2"]).await;
    let mut consumer = consume(broker, &[&queue], ONE).await;
    let _held = take(&mut *consumer, "1").await;
    soon("close", broker.close()).await;
    let mut other = consume(peer, &[&queue], ONE).await;
    let first = take(&mut *other, "1").await;
    assert!(first.redelivered());
    ack(first).await;
    drain(&mut *other, &["2"]).await;
    Ok(())
}
