//! A server that is not there, forgets, or stalls.

use std::time::Duration;

use runcast_broker::{Announcement, Broker, Depth, ErrorKind};
use runcast_broker_redis::{RedisBroker, RedisOptions};
use tokio::time::{Instant, timeout};

use crate::server::{Server, consume, depth, name, once_back, publish, soon, take, text};
use runcast_broker_conformance::Proxy;

#[tokio::test]
async fn a_broker_starts_without_its_server_and_finds_it_later() {
    let Some(server) = Server::reserve(&[]) else { return };
    let (broker, queue, topic) = (server.broker().await, name("queue"), name("topic"));
    assert_eq!(broker.health().await.unwrap_err().kind(), ErrorKind::Transient);
    assert_eq!(broker.publish(&queue, text("no")).await.unwrap_err().kind(), ErrorKind::Transient);
    assert_eq!(broker.watch(&topic).await.err().unwrap().kind(), ErrorKind::Transient);
    let mut consumer = consume(&broker, &[&queue], 1).await;
    let delivered = take(&mut *consumer, "yes");
    let comes = async {
        server.run().await;
        once_back("publish", async || broker.publish(&queue, text("yes")).await).await;
    };
    let (delivery, ()) = tokio::join!(delivered, comes);
    delivery.ack().await.unwrap();
    let mut watch = once_back("watch", async || broker.watch(&topic).await).await;
    broker.announce(&topic, text("news")).await.unwrap();
    assert_eq!(soon("news", watch.next()).await.unwrap(), Announcement::Payload(text("news")));
}

#[tokio::test]
async fn flushall_heals() {
    let Some(server) = Server::start(&[]).await else { return };
    let (broker, mut raw) = (server.broker().await, server.raw().await);
    let (waited, held) = (name("waited"), name("held"));
    publish(&broker, &held, &["forgotten", "forgotten too"]).await;
    let mut holder = consume(&broker, &[&held], 1).await;
    let forgotten = take(&mut *holder, "forgotten").await;
    let mut waiting = consume(&broker, &[&waited], 1).await;
    assert!(timeout(Duration::from_millis(200), waiting.next()).await.is_err());
    let flushed = async {
        redis::cmd("FLUSHALL").exec_async(&mut raw).await.unwrap();
        publish(&broker, &waited, &["after"]).await;
    };
    let (delivery, ()) = tokio::join!(take(&mut *waiting, "after"), flushed);
    delivery.ack().await.unwrap();
    // settling what is forgotten is no error, and changes nothing
    forgotten.ack().await.unwrap();
    publish(&broker, &held, &["new"]).await;
    take(&mut *holder, "new").await.ack().await.unwrap();
    for queue in [&waited, &held] {
        assert_eq!(depth(&broker, queue).await, Depth::default());
    }
}

#[tokio::test]
async fn a_stalled_server_fails_calls_in_time_and_is_found_again() {
    const LIMIT: Duration = Duration::from_millis(300);
    let Some(server) = Server::start(&[]).await else { return };
    let options = RedisOptions { command_timeout: LIMIT, connect_timeout: LIMIT, ..server.options() };
    let (broker, queue, topic) = (RedisBroker::connect(options).await.unwrap(), name("queue"), name("topic"));
    publish(&broker, &queue, &["1", "2"]).await;
    let mut consumer = consume(&broker, &[&queue], 1).await;
    let mut watch = broker.watch(&topic).await.unwrap();
    let held = take(&mut *consumer, "1").await;

    server.signal("STOP");
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
    // for longer than it takes to see that the subscriptions are dead as well
    let mut gap = std::pin::pin!(watch.next());
    assert!(timeout(Duration::from_secs(4), &mut gap).await.is_err());
    server.signal("CONT");

    once_back("health", async || broker.health().await).await;
    assert_eq!(soon("gap", gap).await.unwrap(), Announcement::Gap);
    // done already or not: an acknowledgement that is repeated does no harm
    once_back_ack(held).await;
    take(&mut *consumer, "2").await.ack().await.unwrap();
    // what failed may have been done all the same
    while depth(&broker, &queue).await.ready > 0 {
        take(&mut *consumer, "late").await.ack().await.unwrap();
    }
    assert_eq!(depth(&broker, &queue).await, Depth::default());
}

async fn once_back_ack(delivery: runcast_broker::Delivery) {
    let mut delivery = Some(delivery);
    while let Err(refused) = delivery.take().unwrap().ack().await {
        assert_eq!(refused.error.kind(), ErrorKind::Transient);
        delivery = Some(refused.delivery);
    }
}

#[tokio::test]
async fn connections_that_went_silent_are_replaced() {
    const LIMIT: Duration = Duration::from_millis(300);
    let Some(server) = Server::start(&[]).await else { return };
    let proxy = Proxy::before(server.port).await;
    let url = format!("redis://127.0.0.1:{}", proxy.port).parse().unwrap();
    let options = RedisOptions { url, command_timeout: LIMIT, ..server.options() };
    let (broker, queue, topic) = (RedisBroker::connect(options).await.unwrap(), name("queue"), name("topic"));
    let mut consumer = consume(&broker, &[&queue], 1).await;
    let mut watch = broker.watch(&topic).await.unwrap();
    // the consumer waits on its own connection by then
    assert!(timeout(LIMIT, consumer.next()).await.is_err());
    proxy.silence();
    assert_eq!(broker.health().await.unwrap_err().kind(), ErrorKind::Transient);
    once_back("publish", async || broker.publish(&queue, text("1")).await).await;
    take(&mut *consumer, "1").await.ack().await.unwrap();
    assert_eq!(soon("gap", watch.next()).await.unwrap(), Announcement::Gap);
    broker.announce(&topic, text("news")).await.unwrap();
    assert_eq!(soon("news", watch.next()).await.unwrap(), Announcement::Payload(text("news")));
}

#[tokio::test]
async fn closing_is_quick_while_the_server_stalls() {
    const LIMIT: Duration = Duration::from_millis(300);
    let Some(server) = Server::start(&[]).await else { return };
    let options = RedisOptions { command_timeout: LIMIT, ..server.options() };
    let (broker, queue) = (RedisBroker::connect(options).await.unwrap(), name("queue"));
    publish(&broker, &queue, &["1"]).await;
    let mut consumer = consume(&broker, &[&queue], 1).await;
    let _held = take(&mut *consumer, "1").await;
    server.signal("STOP");
    let since = Instant::now();
    let (next, ()) = tokio::join!(consumer.next(), broker.close());
    assert_eq!(next.unwrap_err().kind(), ErrorKind::Closed);
    assert!(since.elapsed() < LIMIT * 3, "close took {:?}", since.elapsed());
}
