//! A server that is not there, stalls, takes no messages, or takes back what it gave.

use std::time::Duration;

use lapin::options::QueueDeleteOptions;
use runcast_broker::{Announcement, Broker, Depth, ErrorKind};
use runcast_broker_amqp::AmqpOptions;
use runcast_broker_conformance::{Log, Proxy};
use tokio::time::{Instant, timeout};

use crate::steps::{
    alone, connect, consume, depth, depth_becomes, eventually, name, once_back, publish, shared, soon, take, text,
};

#[tokio::test]
async fn a_broker_starts_without_its_server_and_finds_it_later_and_logs_it_once() {
    let Some(space) = alone().await else { return };
    space.server.kill();
    let log = Log::default();
    let _gathers = log.gather();
    let (broker, queue, topic) = (space.broker().await, name("queue"), name("topic"));
    let mut failures = 0;
    eventually("calls fail", async || {
        let failed = [
            broker.health().await.unwrap_err().kind(),
            broker.publish(&queue, text("no")).await.unwrap_err().kind(),
            broker.nodes().await.unwrap_err().kind(),
            broker.depths(std::slice::from_ref(&queue)).await.unwrap_err().kind(),
        ];
        assert_eq!(failed, [ErrorKind::Transient; 4]);
        failures += 1;
        failures == 50
    })
    .await;
    assert_eq!(broker.watch(&topic).await.err().unwrap().kind(), ErrorKind::Transient);
    let mut consumer = consume(&broker, &[&queue], 1).await;
    let delivered = take(&mut *consumer, "yes");
    let comes = async {
        space.server.run().await;
        once_back("publish", async || broker.publish(&queue, text("yes")).await).await;
    };
    let (delivery, ()) = tokio::join!(delivered, comes);
    delivery.ack().await.unwrap();
    let mut watch = once_back("watch", async || broker.watch(&topic).await).await;
    broker.announce(&topic, text("news")).await.unwrap();
    assert_eq!(soon("news", watch.next()).await.unwrap(), Announcement::Payload(text("news")));
    // for each of the two connections
    assert_eq!((log.count("rabbitmq is away"), log.count("connected to rabbitmq")), (2, 2), "{}", log.text());
}

#[tokio::test]
async fn a_stalled_server_fails_calls_in_time_and_is_found_again() {
    const LIMIT: Duration = Duration::from_secs(1);
    let Some(space) = alone().await else { return };
    let heartbeat = Duration::from_secs(1);
    let options = AmqpOptions { command_timeout: LIMIT, connect_timeout: LIMIT, heartbeat, ..space.options() };
    let (broker, queue, topic) = (connect(options).await, name("queue"), name("topic"));
    once_back("publish", async || broker.publish(&queue, text("1")).await).await;
    publish(&broker, &queue, &["2"]).await;
    let mut consumer = consume(&broker, &[&queue], 1).await;
    let mut watch = once_back("watch", async || broker.watch(&topic).await).await;
    let held = take(&mut *consumer, "1").await;

    space.server.signal("STOP");
    let calls = async {
        for _ in 0..3 {
            let since = Instant::now();
            let error = broker.publish(&queue, text("late")).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Transient);
            assert!(since.elapsed() < LIMIT * 3, "a call took {:?}", since.elapsed());
        }
        assert_eq!(broker.health().await.unwrap_err().kind(), ErrorKind::Transient);
        assert!(broker.watch(&name("another")).await.is_err());
        held.ack().await.unwrap_err().delivery
    };
    let held = soon("calls", calls).await;
    space.server.signal("CONT");

    once_back("health", async || broker.health().await).await;
    assert_eq!(soon("gap", watch.next()).await.unwrap(), Announcement::Gap);
    // its channel is gone, and the message is back, unless it was acknowledged after all
    assert_eq!(held.ack().await.unwrap_err().error.kind(), ErrorKind::Closed);
    loop {
        let delivery = soon("the rest", consumer.next()).await.unwrap();
        let second = delivery.message() == &text("2");
        delivery.ack().await.unwrap();
        if second {
            break;
        }
    }
    // what failed may have been done all the same
    while depth(&broker, &queue).await.ready > 0 {
        take(&mut *consumer, "late").await.ack().await.unwrap();
    }
    depth_becomes(&broker, &queue, Depth::default()).await;
}

#[tokio::test]
async fn connections_that_went_silent_are_replaced() {
    const LIMIT: Duration = Duration::from_secs(1);
    let Some(space) = shared().await else { return };
    let proxy = Proxy::before(space.server.port).await;
    let options = space.options_at(&format!("amqp://127.0.0.1:{}", proxy.port));
    let options = AmqpOptions { command_timeout: LIMIT, heartbeat: Duration::from_secs(1), ..options };
    let (broker, queue, topic) = (connect(options).await, name("queue"), name("topic"));
    let mut consumer = consume(&broker, &[&queue], 1).await;
    let mut watch = once_back("watch", async || broker.watch(&topic).await).await;
    assert!(timeout(LIMIT, consumer.next()).await.is_err());
    proxy.silence();
    assert_eq!(broker.health().await.unwrap_err().kind(), ErrorKind::Transient);
    once_back("publish", async || broker.publish(&queue, text("1")).await).await;
    take(&mut *consumer, "1").await.ack().await.unwrap();
    assert_eq!(soon("gap", watch.next()).await.unwrap(), Announcement::Gap);
    once_back("announce", async || broker.announce(&topic, text("news")).await).await;
    assert_eq!(soon("news", watch.next()).await.unwrap(), Announcement::Payload(text("news")));
}

#[tokio::test]
async fn closing_is_quick_while_the_server_stalls() {
    const LIMIT: Duration = Duration::from_secs(1);
    let Some(space) = shared().await else { return };
    let proxy = Proxy::before(space.server.port).await;
    let options = space.options_at(&format!("amqp://127.0.0.1:{}", proxy.port));
    let (broker, queue) = (connect(AmqpOptions { command_timeout: LIMIT, ..options }).await, name("queue"));
    once_back("publish", async || broker.publish(&queue, text("1")).await).await;
    let mut consumer = consume(&broker, &[&queue], 2).await;
    let _held = take(&mut *consumer, "1").await;
    proxy.silence();
    let since = Instant::now();
    let (next, ()) = tokio::join!(consumer.next(), broker.close());
    assert_eq!(next.unwrap_err().kind(), ErrorKind::Closed);
    assert!(since.elapsed() < LIMIT * 3, "close took {:?}", since.elapsed());
}

#[tokio::test]
async fn an_alarm_fails_publishers_in_time_and_passes_while_consumers_go_on() {
    const LIMIT: Duration = Duration::from_secs(1);
    let Some(space) = alone().await else { return };
    let log = Log::default();
    let _gathers = log.gather();
    let broker = connect(AmqpOptions { command_timeout: LIMIT, ..space.options() }).await;
    let (queue, topic) = (name("queue"), name("topic"));
    once_back("publish", async || broker.publish(&queue, text("1")).await).await;
    let mut consumer = consume(&broker, &[&queue], 1).await;
    let watermark = async |set| space.server.call("vm_memory_monitor", "set_vm_memory_high_watermark", set).await;
    watermark("[{absolute, 1000000}]").await;
    let blocked = async || {
        let since = Instant::now();
        let error = broker.publish(&queue, text("late")).await.err();
        assert!(since.elapsed() < LIMIT * 2, "a call took {:?}", since.elapsed());
        error.is_some_and(|error| {
            assert_eq!(error.kind(), ErrorKind::Transient, "{error}");
            error.to_string().contains("alarm")
        })
    };
    eventually("the alarm is noticed", blocked).await;
    let error = broker.health().await.unwrap_err();
    assert!(error.kind() == ErrorKind::Transient && error.to_string().contains("alarm"), "{error}");
    assert_eq!(broker.announce(&topic, text("no")).await.unwrap_err().kind(), ErrorKind::Transient);
    // what is there is handed out and settled as ever
    take(&mut *consumer, "1").await.ack().await.unwrap();

    watermark("[{absolute, 4000000000}]").await;
    once_back("publish", async || broker.publish(&queue, text("last")).await).await;
    // what failed may have been done all the same
    let mut last = false;
    while !last {
        let delivery = soon("the rest", consumer.next()).await.unwrap();
        last = delivery.message() == &text("last");
        delivery.ack().await.unwrap();
    }
    assert_eq!(log.count("takes messages again"), 1, "{}", log.text());
}

#[tokio::test]
async fn a_broker_closes_in_time_while_an_alarm_blocks_it() {
    const LIMIT: Duration = Duration::from_secs(1);
    let Some(space) = alone().await else { return };
    let (broker, queue) = (connect(AmqpOptions { command_timeout: LIMIT, ..space.options() }).await, name("queue"));
    once_back("publish", async || broker.publish(&queue, text("1")).await).await;
    let watermark = async |set| space.server.call("vm_memory_monitor", "set_vm_memory_high_watermark", set).await;
    watermark("[{absolute, 1000000}]").await;
    eventually("the alarm is noticed", async || broker.publish(&queue, text("late")).await.is_err()).await;
    let since = Instant::now();
    let (late, ()) = tokio::join!(broker.publish(&queue, text("late")), broker.close());
    assert!(late.is_err());
    assert!(since.elapsed() < LIMIT * 3, "close took {:?}", since.elapsed());
    watermark("[{absolute, 4000000000}]").await;
}

#[tokio::test]
async fn a_queue_that_is_deleted_under_a_consumer_is_made_again() {
    let Some(space) = shared().await else { return };
    let (broker, peer, raw, queue) = (space.broker().await, space.broker().await, space.raw().await, name("queue"));
    publish(&peer, &queue, &["held"]).await;
    let mut consumer = consume(&broker, &[&queue], 2).await;
    let held = take(&mut *consumer, "held").await;
    for message in ["waited for", "and once more"] {
        assert!(timeout(Duration::from_millis(300), consumer.next()).await.is_err());
        let delete = async {
            raw.queue_delete(space.queue("queue").into(), QueueDeleteOptions::default()).await.unwrap();
            // also by one that had declared it
            publish(&peer, &queue, &[message]).await;
        };
        let (delivery, ()) = tokio::join!(take(&mut *consumer, message), delete);
        delivery.ack().await.unwrap();
    }
    // what went with its queue can be settled, or not: it disturbs nobody
    drop(held.ack().await);
    publish(&broker, &queue, &["last"]).await;
    take(&mut *consumer, "last").await.ack().await.unwrap();
    depth_becomes(&broker, &queue, Depth::default()).await;
}

#[tokio::test]
async fn a_delivery_that_is_held_for_too_long_returns_and_the_consumer_goes_on() {
    let Some(space) = alone().await else { return };
    let set = async |name: &str, value: u32| {
        let set = format!("[rabbit, {name}, {value}]");
        assert_eq!(space.server.call("application", "set_env", &set).await, "ok");
    };
    set("consumer_timeout", 1000).await;
    set("channel_tick_interval", 200).await;
    let (broker, queue) = (space.broker().await, name("queue"));
    once_back("publish", async || broker.publish(&queue, text("1")).await).await;
    let mut consumer = consume(&broker, &[&queue], 1).await;
    let held = take(&mut *consumer, "1").await;
    // the server closes the channel with 406
    let again = take(&mut *consumer, "1").await;
    assert!(again.redelivered());
    assert_eq!(held.ack().await.unwrap_err().error.kind(), ErrorKind::Closed);
    again.ack().await.unwrap();
    depth_becomes(&broker, &queue, Depth::default()).await;
    set("consumer_timeout", 1_800_000).await;
    set("channel_tick_interval", 60_000).await;
}

#[tokio::test]
async fn a_queue_that_was_declared_otherwise_is_misconfigured() {
    let Some(space) = shared().await else { return };
    let (broker, raw, queue) = (space.broker().await, space.raw().await, name("queue"));
    let options = lapin::options::QueueDeclareOptions { durable: true, ..Default::default() };
    raw.queue_declare(space.queue("queue").into(), options, Default::default()).await.unwrap();
    let error = soon("publish", broker.publish(&queue, text("no"))).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Misconfigured, "{error}");
    let mut consumer = consume(&broker, &[&queue], 1).await;
    assert_eq!(soon("next", consumer.next()).await.unwrap_err().kind(), ErrorKind::Misconfigured);
    // other queues are not affected, and this one heals
    publish(&broker, &name("another"), &["fine"]).await;
    raw.queue_delete(space.queue("queue").into(), QueueDeleteOptions::default()).await.unwrap();
    publish(&broker, &queue, &["yes"]).await;
    let delivery = soon("yes", async {
        loop {
            if let Ok(delivery) = consumer.next().await {
                return delivery;
            }
        }
    });
    delivery.await.ack().await.unwrap();
}
