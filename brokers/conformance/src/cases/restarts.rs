//! A server that is restarted in the middle.

use bytes::Bytes;
use runcast_broker::{Announcement, Broker, Consumer, Delivery, Name};

use crate::harness::{ONE, announce, consume, name, once_back, prefetch, publish, see, text, watch};
use crate::{Backend, Missing};

async fn publish_once_back(broker: &dyn Broker, queue: &Name, message: &'static str) {
    once_back("publish", async || broker.publish(queue, Bytes::from_static(message.as_bytes())).await).await;
}

/// The next delivery of `message`; a redelivery of what was acknowledged before is allowed, because
/// delivery is at least once and the acknowledgement may have been lost with the connection.
async fn take_once_back(consumer: &mut dyn Consumer, message: &str, before: &[&str]) -> Delivery {
    loop {
        let delivery = once_back(message, async || consumer.next().await).await;
        if text(delivery.message()) == message {
            return delivery;
        }
        assert!(before.contains(&text(delivery.message())), "{delivery:?} came before {message}");
        // a refusal brings it back once more
        let _ = delivery.ack().await;
    }
}

/// What a durable broker has accepted is there after the restart, in order.
pub async fn messages_survive_a_broker_restart(backend: Backend) -> Result<(), Missing> {
    backend.durable()?;
    let (broker, restart, queue) = (backend.broker(), backend.restart()?, name("queue"));
    publish(broker, &queue, &["1", "2", "3"]).await;
    restart().await;
    let queues = [queue];
    let mut consumer = once_back("consume", async || broker.consume(&queues, prefetch(10)).await).await;
    let mut before = Vec::new();
    for message in ["1", "2", "3"] {
        let delivery = take_once_back(&mut *consumer, message, &before).await;
        delivery.ack().await.expect("ack");
        before.push(message);
    }
    Ok(())
}

/// The same consumer goes on, whether it held something or not.
pub async fn a_consumer_goes_on_after_a_broker_restart(backend: Backend) -> Result<(), Missing> {
    let (broker, restart, queue) = (backend.broker(), backend.restart()?, name("queue"));
    let mut consumer = consume(broker, &[&queue], ONE).await;
    publish(broker, &queue, &["before"]).await;
    let held = take_once_back(&mut *consumer, "before", &[]).await;
    restart().await;
    // refused or not: a delivery from before the restart blocks nothing
    let _ = held.ack().await;
    publish_once_back(broker, &queue, "after").await;
    let delivery = take_once_back(&mut *consumer, "after", &["before"]).await;
    delivery.ack().await.expect("ack");
    Ok(())
}

/// The same watch goes on, and says that something may be missing.
pub async fn a_watch_reports_a_gap_after_a_broker_restart(backend: Backend) -> Result<(), Missing> {
    let (broker, restart, topic) = (backend.broker(), backend.restart()?, name("topic"));
    let mut watcher = watch(broker, &topic).await;
    announce(broker, &topic, &["before"]).await;
    see(&mut *watcher, &["before"]).await;
    restart().await;
    assert_eq!(once_back("the gap", async || watcher.next().await).await, Announcement::Gap);
    once_back("announce", async || broker.announce(&topic, Bytes::from_static(b"after")).await).await;
    see(&mut *watcher, &["after"]).await;
    Ok(())
}
