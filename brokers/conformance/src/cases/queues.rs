//! Publishing, order, delay and counts.

use std::time::Duration;

use bytes::Bytes;
use runcast_broker::{Depth, ErrorKind};
use tokio::time::Instant;

use crate::Backend;
use crate::harness::{
    GRANULARITY, ONE, ack, consume, depth_becomes, drain, name, prefetch, publish, refusal, soon, take,
};

/// An acknowledged message is neither delivered again nor counted.
pub async fn a_published_message_is_delivered_once_and_gone_after_ack(backend: Backend) {
    let (broker, queue) = (backend.broker(), name("queue"));
    publish(broker, &queue, &["only"]).await;
    let mut consumer = consume(broker, &[&queue], prefetch(10)).await;
    let delivery = take(&mut *consumer, "only").await;
    assert_eq!(delivery.queue(), &queue);
    assert!(!delivery.redelivered());
    ack(delivery).await;
    depth_becomes(broker, &queue, Depth::default()).await;

    // what is published next is what is delivered next, also to a new consumer
    publish(broker, &queue, &["second"]).await;
    drain(&mut *consumer, &["second"]).await;
    drop(consumer);
    publish(broker, &queue, &["third"]).await;
    drain(&mut *consume(broker, &[&queue], prefetch(10)).await, &["third"]).await;
}

/// One publisher's messages arrive in order; an empty one is a message too.
pub async fn deliveries_follow_publish_order(backend: Backend) {
    let (broker, queue) = (backend.broker(), name("queue"));
    let messages: Vec<String> = (0..50).map(|n| if n == 7 { String::new() } else { n.to_string() }).collect();
    let messages: Vec<&str> = messages.iter().map(String::as_str).collect();
    publish(broker, &queue, &messages).await;
    drain(&mut *consume(broker, &[&queue], prefetch(10)).await, &messages).await;
}

/// A later queue is served only when the earlier ones are empty.
pub async fn an_earlier_queue_goes_first(backend: Backend) {
    let (broker, high, low) = (backend.broker(), name("high"), name("low"));
    publish(broker, &low, &["low 1", "low 2"]).await;
    publish(broker, &high, &["high 1", "high 2"]).await;
    let mut consumer = consume(broker, &[&high, &low], ONE).await;
    drain(&mut *consumer, &["high 1", "high 2"]).await;
    let held = take(&mut *consumer, "low 1").await;
    assert_eq!(held.queue(), &low);
    publish(broker, &high, &["high 3"]).await;
    ack(held).await;
    drain(&mut *consumer, &["high 3", "low 2"]).await;
}

/// A consumer that already waits gets what is published, on any of its queues.
pub async fn a_publish_wakes_a_waiting_consumer(backend: Backend) {
    let (broker, first, second) = (backend.broker(), name("first"), name("second"));
    let mut consumer = consume(broker, &[&first, &second], ONE).await;
    for (queue, message) in [(&second, "a"), (&first, "b"), (&second, "c")] {
        let messages = [message];
        let (delivery, ()) = tokio::join!(take(&mut *consumer, message), publish(broker, queue, &messages));
        assert_eq!(delivery.queue(), queue);
        ack(delivery).await;
    }
}

/// A returned message is counted at once, and delivered when its delay has passed, not before.
pub async fn a_nacked_message_comes_back_after_its_delay(backend: Backend) {
    const DELAY: Duration = Duration::from_secs(1);
    let (broker, queue) = (backend.broker(), name("queue"));
    let mut consumer = consume(broker, &[&queue], ONE).await;
    publish(broker, &queue, &["late"]).await;
    let delivery = take(&mut *consumer, "late").await;

    // the consumer waits when the message is returned, and goes on with others meanwhile
    let since = Instant::now();
    soon("nack", delivery.nack(DELAY)).await.expect("nack");
    depth_becomes(broker, &queue, Depth { ready: 1, ..Depth::default() }).await;
    publish(broker, &queue, &["meanwhile"]).await;
    drain(&mut *consumer, &["meanwhile"]).await;

    let delivery = take(&mut *consumer, "late").await;
    let waited = since.elapsed();
    assert!(waited + GRANULARITY >= DELAY, "came back after {waited:?}");
    assert!(waited < DELAY * 5, "came back only after {waited:?}");
    assert!(delivery.redelivered());
    ack(delivery).await;
    depth_becomes(broker, &queue, Depth::default()).await;
}

/// Without a delay the message is ready again at once.
pub async fn a_message_nacked_without_delay_comes_back_at_once(backend: Backend) {
    let (broker, queue) = (backend.broker(), name("queue"));
    publish(broker, &queue, &["again"]).await;
    let mut consumer = consume(broker, &[&queue], ONE).await;
    for _ in 0..3 {
        let delivery = take(&mut *consumer, "again").await;
        soon("nack", delivery.nack(Duration::ZERO)).await.expect("nack");
    }
    let delivery = take(&mut *consumer, "again").await;
    assert!(delivery.redelivered());
    ack(delivery).await;
}

/// Asking about a queue that nobody has used is no error, and consuming from it waits.
pub async fn an_unknown_queue_is_empty(backend: Backend) {
    let (broker, queue) = (backend.broker(), name("unknown"));
    let depths = soon("depths", broker.depths(std::slice::from_ref(&queue))).await.expect("depths");
    assert_eq!(depths, [Depth::default()]);
    assert_eq!(soon("dead letters", broker.dead_letters(&queue, None, 10)).await.expect("dead letters"), []);
    assert_eq!(soon("purge", broker.purge_dead_letters(&queue)).await.expect("purge"), 0);
    assert!(!soon("requeue", broker.requeue_dead_letter(&queue, "1")).await.expect("requeue"));
    assert!(consume(broker, &[&queue], ONE).await.try_next().is_none());
}

/// Each count is of its own queue, and depths come in the order asked.
pub async fn depths_count_ready_outstanding_and_dead(backend: Backend) {
    let (broker, queue, other) = (backend.broker(), name("queue"), name("other"));
    publish(broker, &queue, &["dead", "held", "ready 1", "ready 2"]).await;
    publish(broker, &other, &["ready"]).await;
    let mut consumer = consume(broker, &[&queue], ONE).await;
    let dead = take(&mut *consumer, "dead").await;
    soon("reject", dead.reject("bad")).await.expect("reject");
    let held = take(&mut *consumer, "held").await;
    depth_becomes(broker, &queue, Depth { ready: 2, outstanding: 1, dead: 1 }).await;

    let asked = [other.clone(), name("unknown"), queue.clone()];
    let depths = soon("depths", broker.depths(&asked)).await.expect("depths");
    let ready = |ready| Depth { ready, ..Depth::default() };
    assert_eq!(depths, [ready(1), ready(0), Depth { ready: 2, outstanding: 1, dead: 1 }]);

    ack(held).await;
    drain(&mut *consumer, &["ready 1", "ready 2"]).await;
    depth_becomes(broker, &queue, Depth { dead: 1, ..Depth::default() }).await;
}

/// The bound in the capabilities is exact, for messages and payloads.
pub async fn an_oversized_message_is_refused_as_permanent(backend: Backend) {
    let (broker, queue) = (backend.broker(), name("queue"));
    let bound = broker.capabilities().max_message_bytes;
    let largest = Bytes::from(vec![b'x'; bound]);
    let oversized = Bytes::from(vec![b'x'; bound + 1]);
    let ttl = Duration::from_secs(5);
    let refusals = [
        refusal("publish", soon("publish", broker.publish(&queue, oversized.clone())).await),
        refusal("announce", soon("announce", broker.announce(&name("topic"), oversized.clone())).await),
        refusal("presence", soon("presence", broker.presence(&name("node"), oversized, ttl)).await),
    ];
    assert_eq!(refusals, [ErrorKind::Permanent; 3]);

    soon("publish", broker.publish(&queue, largest.clone())).await.expect("publish");
    let mut consumer = consume(broker, &[&queue], ONE).await;
    let delivery = soon("the largest", consumer.next()).await.expect("next");
    assert!(delivery.message() == &largest, "the largest message was changed");
    ack(delivery).await;
}
