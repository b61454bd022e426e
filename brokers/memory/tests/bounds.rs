//! What the memory broker promises beyond the contract: its bounds, and waking across threads.

use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use runcast_broker::{Announcement, Broker, Delivery, ErrorKind, Name};
use runcast_broker_memory::{MemoryBroker, MemoryOptions};
use tokio::time::timeout;

const DEADLINE: Duration = Duration::from_secs(30);

fn name(text: &str) -> Name {
    Name::new(text).expect("a valid name")
}

fn text(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

async fn rejected(broker: &MemoryBroker, queue: &Name, message: &'static str) {
    broker.publish(queue, text(message)).await.expect("publish");
    let mut consumer = broker.consume(std::slice::from_ref(queue), NonZeroU16::MIN).await.expect("consume");
    consumer.next().await.expect("next").reject("bad").await.expect("reject");
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_refuses_messages_until_one_is_settled() {
    let broker = MemoryBroker::new(MemoryOptions { max_messages: 3, ..MemoryOptions::default() });
    let queue = name("queue");
    let refused = async || broker.publish(&queue, text("more")).await.unwrap_err().kind() == ErrorKind::Transient;
    for _ in 0..3 {
        broker.publish(&queue, text("m")).await.unwrap();
    }
    assert!(refused().await);

    // outstanding and delayed messages count
    let mut consumer = broker.consume(std::slice::from_ref(&queue), NonZeroU16::MIN).await.unwrap();
    consumer.next().await.unwrap().nack(Duration::from_secs(1)).await.unwrap();
    let held = consumer.next().await.unwrap();
    assert!(refused().await);
    held.ack().await.unwrap();
    broker.publish(&queue, text("fits")).await.unwrap();
    assert!(refused().await);
    broker.publish(&name("another"), text("fits")).await.unwrap();

    // so does a letter that is requeued
    consumer.next().await.unwrap().reject("bad").await.unwrap();
    broker.publish(&queue, text("fits")).await.unwrap();
    let id = broker.dead_letters(&queue, None, 1).await.unwrap().remove(0).id;
    assert_eq!(broker.requeue_dead_letter(&queue, &id).await.unwrap_err().kind(), ErrorKind::Transient);
    assert_eq!(broker.depths(&[queue]).await.unwrap()[0].dead, 1, "a refused letter was lost");
}

#[tokio::test]
async fn the_oldest_dead_letter_gives_way() {
    let broker = MemoryBroker::new(MemoryOptions { max_dead_letters: 2, ..MemoryOptions::default() });
    let queue = name("queue");
    for message in ["1", "2", "3"] {
        rejected(&broker, &queue, message).await;
    }
    let letters = broker.dead_letters(&queue, None, 10).await.unwrap();
    assert_eq!(letters.iter().map(|letter| letter.message.clone()).collect::<Vec<_>>(), [text("2"), text("3")]);
    let unknown = broker.dead_letters(&queue, Some("no id"), 1).await.unwrap_err();
    assert_eq!(unknown.kind(), ErrorKind::Permanent);
}

#[tokio::test]
async fn a_watcher_that_falls_behind_reads_a_gap_in_place_of_what_was_dropped() {
    let broker = MemoryBroker::new(MemoryOptions { watch_buffer: 2, ..MemoryOptions::default() });
    let topic = name("topic");
    let mut watch = broker.watch(&topic).await.unwrap();
    for payload in ["1", "2", "dropped", "dropped"] {
        broker.announce(&topic, text(payload)).await.unwrap();
    }
    let read =
        async |watch: &mut Box<dyn runcast_broker::Watch>| timeout(DEADLINE, watch.next()).await.unwrap().unwrap();
    assert_eq!(read(&mut watch).await, Announcement::Payload(text("1")));
    assert_eq!(read(&mut watch).await, Announcement::Payload(text("2")));
    broker.announce(&topic, text("5")).await.unwrap();
    assert_eq!(read(&mut watch).await, Announcement::Gap);
    assert_eq!(read(&mut watch).await, Announcement::Payload(text("5")));
}

#[tokio::test(start_paused = true)]
async fn a_consumer_that_stopped_waiting_does_not_swallow_the_wake_of_another() {
    let broker = MemoryBroker::default();
    let queue = name("queue");
    let mut idle = broker.consume(std::slice::from_ref(&queue), NonZeroU16::MIN).await.unwrap();
    let mut waiting = broker.consume(std::slice::from_ref(&queue), NonZeroU16::MIN).await.unwrap();
    assert!(timeout(Duration::from_millis(1), idle.next()).await.is_err());
    let (delivery, published) = tokio::join!(timeout(DEADLINE, waiting.next()), broker.publish(&queue, text("m")));
    published.unwrap();
    delivery.unwrap().unwrap().ack().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_shorter_delay_shortens_a_wait_that_has_begun() {
    let broker = MemoryBroker::default();
    let queue = name("queue");
    let mut holder = broker.consume(std::slice::from_ref(&queue), NonZeroU16::new(2).unwrap()).await.unwrap();
    broker.publish(&queue, text("later")).await.unwrap();
    broker.publish(&queue, text("sooner")).await.unwrap();
    let (later, sooner) = (holder.next().await.unwrap(), holder.next().await.unwrap());
    later.nack(Duration::MAX).await.unwrap();
    let mut waiting = broker.consume(std::slice::from_ref(&queue), NonZeroU16::MIN).await.unwrap();
    let (delivery, nacked) = tokio::join!(timeout(DEADLINE, waiting.next()), sooner.nack(Duration::from_secs(1)));
    nacked.unwrap();
    assert_eq!(delivery.unwrap().unwrap().message(), &text("sooner"));
}

#[tokio::test(start_paused = true)]
async fn dropping_the_broker_closes_it() {
    let broker = MemoryBroker::default();
    let mut consumer = broker.consume(&[name("queue")], NonZeroU16::MIN).await.unwrap();
    let mut watch = broker.watch(&name("topic")).await.unwrap();
    let (consumer, watch, ()) =
        tokio::join!(timeout(DEADLINE, consumer.next()), timeout(DEADLINE, watch.next()), async { drop(broker) });
    assert_eq!(consumer.expect("the consumer ends").unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(watch.expect("the watch ends").unwrap_err().kind(), ErrorKind::Closed);
}

#[tokio::test]
async fn a_consumer_with_a_backlog_lets_other_tasks_run() {
    let broker = Arc::new(MemoryBroker::default());
    let queue = name("queue");
    for _ in 0..10_000 {
        broker.publish(&queue, Bytes::new()).await.unwrap();
    }
    let mut consumer = broker.consume(std::slice::from_ref(&queue), NonZeroU16::MIN).await.unwrap();
    let drained = tokio::spawn(async move {
        for _ in 0..10_000 {
            consumer.next().await.unwrap().ack().await.unwrap();
        }
    });
    tokio::task::yield_now().await;
    assert!(!drained.is_finished(), "the consumer kept the thread until it was done");
    drained.await.unwrap();
}

#[test]
fn threads_publish_and_consume_without_losing_a_message() {
    const PUBLISHERS: usize = 2;
    const CONSUMERS: usize = 2;
    const MESSAGES: usize = 20_000;
    let broker = Arc::new(MemoryBroker::default());
    let queue = name("queue");
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    std::thread::scope(|scope| {
        for _ in 0..PUBLISHERS {
            scope.spawn(|| {
                runtime().block_on(async {
                    for _ in 0..MESSAGES {
                        broker.publish(&queue, Bytes::new()).await.unwrap();
                    }
                });
            });
        }
        for _ in 0..CONSUMERS {
            scope.spawn(|| {
                runtime().block_on(async {
                    let prefetch = NonZeroU16::new(8).unwrap();
                    let mut consumer = broker.consume(std::slice::from_ref(&queue), prefetch).await.unwrap();
                    for _ in 0..PUBLISHERS * MESSAGES / CONSUMERS {
                        let next = timeout(DEADLINE, consumer.next()).await.expect("a wake was lost");
                        Delivery::ack(next.unwrap()).await.unwrap();
                    }
                });
            });
        }
    });
    let depths = runtime().block_on(broker.depths(&[queue])).unwrap();
    assert_eq!(depths, [runcast_broker::Depth::default()]);
}
