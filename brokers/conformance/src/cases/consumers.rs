//! Prefetch, competition, and what is returned when something is dropped.

use std::collections::BTreeSet;
use std::time::Duration;

use runcast_broker::{Depth, ErrorKind};
use tokio::time::timeout;

use crate::Backend;
use crate::harness::{
    ONE, ack, consume, depth_becomes, drain, eventually, name, prefetch, publish, quiet, soon, take, text,
};

/// A full consumer gets nothing, and goes on waiting until one of its deliveries is settled.
pub async fn prefetch_bounds_outstanding_deliveries(backend: Backend) {
    let (broker, queue) = (backend.broker(), name("queue"));
    publish(broker, &queue, &["1", "2", "3", "4", "5", "6"]).await;
    let mut consumer = consume(broker, &[&queue], prefetch(2)).await;
    let (first, second) = (take(&mut *consumer, "1").await, take(&mut *consumer, "2").await);
    assert!(consumer.try_next().is_none(), "a full consumer took a third delivery");
    quiet("a full consumer was given a third delivery", consumer.next()).await;

    let (third, ()) = tokio::join!(take(&mut *consumer, "3"), ack(first));
    let (fourth, rejected) = tokio::join!(take(&mut *consumer, "4"), second.reject("makes room too"));
    rejected.expect("reject");
    let (fifth, nacked) = tokio::join!(take(&mut *consumer, "5"), third.nack(Duration::from_secs(3600)));
    nacked.expect("nack");
    let (again, ()) = tokio::join!(take(&mut *consumer, "4"), async { drop(fourth) });
    ack(fifth).await;
    ack(again).await;
    drain(&mut *consumer, &["6"]).await;
}

/// Every message goes to exactly one of the two.
pub async fn two_consumers_share_a_queue_without_duplicates(backend: Backend) {
    const MESSAGES: usize = 100;
    let (broker, queue) = (backend.broker(), name("queue"));
    let mut one = consume(broker, &[&queue], prefetch(3)).await;
    let mut two = consume(broker, &[&queue], prefetch(3)).await;
    let messages: Vec<String> = (0..MESSAGES).map(|n| n.to_string()).collect();
    let published = async {
        let messages: Vec<&str> = messages.iter().map(String::as_str).collect();
        publish(broker, &queue, &messages).await;
    };
    let mut seen = BTreeSet::new();
    let consumed = async {
        while seen.len() < MESSAGES {
            let delivery = tokio::select! { delivery = one.next() => delivery, delivery = two.next() => delivery };
            let delivery = delivery.expect("next");
            assert!(seen.insert(text(delivery.message()).to_owned()), "{:?} was delivered twice", delivery.message());
            ack(delivery).await;
        }
    };
    soon("all messages", async { tokio::join!(published, consumed) }).await;
    depth_becomes(broker, &queue, Depth::default()).await;

    // both of them are served: each holds one
    publish(broker, &queue, &["left", "right"]).await;
    let (left, right) = tokio::join!(soon("one", one.next()), soon("two", two.next()));
    ack(left.expect("next")).await;
    ack(right.expect("next")).await;
}

/// An unsettled delivery that is dropped is the next to be delivered.
pub async fn a_dropped_delivery_returns_to_the_head(backend: Backend) {
    let (broker, queue) = (backend.broker(), name("queue"));
    publish(broker, &queue, &["1", "2", "3"]).await;
    let mut consumer = consume(broker, &[&queue], ONE).await;
    drop(take(&mut *consumer, "1").await);
    let first = take(&mut *consumer, "1").await;
    assert!(first.redelivered());
    ack(first).await;
    let second = take(&mut *consumer, "2").await;
    assert!(!second.redelivered());
    ack(second).await;
    drain(&mut *consumer, &["3"]).await;
}

/// All of it, in order and to whoever waits already, also while the deliveries themselves live on.
pub async fn a_dropped_consumer_returns_what_it_held(backend: Backend) {
    let (broker, queue) = (backend.broker(), name("queue"));
    publish(broker, &queue, &["1", "2"]).await;
    let mut consumer = consume(broker, &[&queue], prefetch(2)).await;
    let held = [take(&mut *consumer, "1").await, take(&mut *consumer, "2").await];
    let mut other = consume(broker, &[&queue], ONE).await;
    let (first, ()) = tokio::join!(take(&mut *other, "1"), async { drop(consumer) });
    assert!(first.redelivered());
    depth_becomes(broker, &queue, Depth { ready: 1, outstanding: 1, dead: 0 }).await;
    publish(broker, &queue, &["3"]).await;
    ack(first).await;
    drain(&mut *other, &["2"]).await;

    // nothing comes back a second time
    drop(held);
    drain(&mut *other, &["3"]).await;
    depth_becomes(broker, &queue, Depth::default()).await;
}

/// Its message belongs to others by then, so the call fails as closed and changes nothing.
pub async fn a_delivery_that_outlives_its_consumer_cannot_be_settled(backend: Backend) {
    let (broker, queue) = (backend.broker(), name("queue"));
    publish(broker, &queue, &["1", "2"]).await;
    let mut consumer = consume(broker, &[&queue], ONE).await;
    let held = take(&mut *consumer, "1").await;
    drop(consumer);
    let mut other = consume(broker, &[&queue], ONE).await;
    let taken_over = take(&mut *other, "1").await;

    let refused = soon("ack", held.ack()).await.expect_err("a late ack was accepted");
    assert_eq!(refused.error.kind(), ErrorKind::Closed);
    let refused = soon("reject", refused.delivery.reject("late")).await.expect_err("a late reject was accepted");
    assert_eq!(refused.error.kind(), ErrorKind::Closed);
    drop(refused);
    depth_becomes(broker, &queue, Depth { ready: 1, outstanding: 1, dead: 0 }).await;
    ack(taken_over).await;
    drain(&mut *other, &["2"]).await;
}

/// However often a wait is abandoned, every message arrives, once and in order.
pub async fn next_is_cancellation_safe(backend: Backend) {
    let (broker, queue) = (backend.broker(), name("queue"));
    let mut consumer = consume(broker, &[&queue], prefetch(4)).await;
    let messages: Vec<String> = (0..50).map(|n| n.to_string()).collect();
    let published = async {
        for message in &messages {
            publish(broker, &queue, &[message]).await;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let consumed = async {
        for message in &messages {
            let delivery = loop {
                // polled once and dropped, then dropped after a while
                tokio::select! { biased; delivery = consumer.next() => break delivery, () = async {} => {} }
                if let Ok(delivery) = timeout(Duration::from_millis(1), consumer.next()).await {
                    break delivery;
                }
            };
            let delivery = delivery.expect("next");
            assert_eq!(text(delivery.message()), message);
            ack(delivery).await;
        }
    };
    soon("all messages", async { tokio::join!(published, consumed) }).await;
    depth_becomes(broker, &queue, Depth::default()).await;
}

/// A consumer that was waiting and no longer is does not keep a message from one that is.
pub async fn a_cancelled_wait_leaves_the_message_to_others(backend: Backend) {
    let (broker, queue) = (backend.broker(), name("queue"));
    let mut idle = consume(broker, &[&queue], ONE).await;
    let mut busy = consume(broker, &[&queue], ONE).await;
    quiet("an empty queue delivered something", idle.next()).await;
    drop(idle);
    let (delivery, ()) = tokio::join!(take(&mut *busy, "mine"), publish(broker, &queue, &["mine"]));
    ack(delivery).await;
}

/// Nothing when there is nothing, and what there is without waiting.
pub async fn try_next_takes_what_is_ready(backend: Backend) {
    let (broker, queue) = (backend.broker(), name("queue"));
    let mut consumer = consume(broker, &[&queue], prefetch(2)).await;
    assert!(consumer.try_next().is_none());
    publish(broker, &queue, &["1", "2"]).await;
    for message in ["1", "2"] {
        let mut taken = None;
        eventually("something is ready", async || {
            taken = consumer.try_next();
            taken.is_some()
        })
        .await;
        let delivery = taken.expect("a delivery");
        assert_eq!(text(delivery.message()), message);
        ack(delivery).await;
    }
    assert!(consumer.try_next().is_none());
}
