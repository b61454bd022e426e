//! Health and closing.

use std::time::Duration;

use bytes::Bytes;
use runcast_broker::ErrorKind;

use crate::Backend;
use crate::harness::{ONE, consume, name, publish, refusal, soon, take, watch};

/// A broker that is there says so.
pub async fn health_answers(backend: Backend) {
    soon("health", backend.broker().health()).await.expect("health");
}

/// Those that wait already, those that are full, and those that ask again.
pub async fn close_ends_waiting_consumers_and_watches(backend: Backend) {
    let (broker, queue, full) = (backend.broker(), name("queue"), name("full"));
    publish(broker, &full, &["held", "ready"]).await;
    let mut waiting = consume(broker, &[&queue], ONE).await;
    let mut filled = consume(broker, &[&full], ONE).await;
    let mut watching = watch(broker, &name("topic")).await;
    let _held = take(&mut *filled, "held").await;

    let (consumer, full, watch, ()) = tokio::join!(
        soon("the consumer ends", waiting.next()),
        soon("the full consumer ends", filled.next()),
        soon("the watch ends", watching.next()),
        soon("close", broker.close()),
    );
    let ends = [refusal("a consumer", consumer), refusal("a full consumer", full), refusal("a watch", watch)];
    assert_eq!(ends, [ErrorKind::Closed; 3]);
    assert!(filled.try_next().is_none());
    assert_eq!(refusal("a consumer", soon("next", filled.next()).await), ErrorKind::Closed);
    assert_eq!(refusal("a watch", soon("next", watching.next()).await), ErrorKind::Closed);
}

/// Twice at the same time, and once more later.
pub async fn close_is_idempotent(backend: Backend) {
    let broker = backend.broker();
    soon("close", async { tokio::join!(broker.close(), broker.close()) }).await;
    soon("close", broker.close()).await;
}

/// Every call is, and by the same kind of error.
pub async fn publish_after_close_is_refused(backend: Backend) {
    let (broker, queue, topic) = (backend.broker(), name("queue"), name("topic"));
    let (empty, ttl) = (Bytes::new(), Duration::from_secs(5));
    soon("close", broker.close()).await;
    let refusals = [
        refusal("publish", soon("publish", broker.publish(&queue, empty.clone())).await),
        refusal("consume", soon("consume", broker.consume(std::slice::from_ref(&queue), ONE)).await),
        refusal("announce", soon("announce", broker.announce(&topic, empty.clone())).await),
        refusal("watch", soon("watch", broker.watch(&topic)).await),
        refusal("presence", soon("presence", broker.presence(&name("node"), empty, ttl)).await),
        refusal("nodes", soon("nodes", broker.nodes()).await),
        refusal("depths", soon("depths", broker.depths(std::slice::from_ref(&queue))).await),
        refusal("dead letters", soon("dead letters", broker.dead_letters(&queue, None, 1)).await),
        refusal("requeue", soon("requeue", broker.requeue_dead_letter(&queue, "1")).await),
        refusal("purge", soon("purge", broker.purge_dead_letters(&queue)).await),
        refusal("health", soon("health", broker.health()).await),
    ];
    assert_eq!(refusals, [ErrorKind::Closed; 11]);
}

/// A delivery that was outstanding has been returned, so it can be neither acknowledged nor nacked.
pub async fn settling_after_close_is_refused(backend: Backend) {
    let (broker, queue) = (backend.broker(), name("queue"));
    publish(broker, &queue, &["held"]).await;
    let mut consumer = consume(broker, &[&queue], ONE).await;
    let held = take(&mut *consumer, "held").await;
    soon("close", broker.close()).await;
    let refused = soon("ack", held.ack()).await.expect_err("an ack was accepted");
    assert_eq!(refused.error.kind(), ErrorKind::Closed);
    let refused = soon("nack", refused.delivery.nack(Duration::ZERO)).await.expect_err("a nack was accepted");
    assert_eq!(refused.error.kind(), ErrorKind::Closed);
}
