//! Leases: what dead consumers held, what living ones keep, and what got lost on the way.

use std::collections::BTreeSet;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use runcast_broker::{Broker, Depth, ErrorKind};
use runcast_broker_redis::{RedisBroker, RedisOptions};
use tokio::runtime::Builder;
use tokio::time::{Instant, timeout};

use crate::server::{Server, consume, depth, eventually, name, publish, soon, take};

const LEASE: Duration = Duration::from_secs(1);

/// Takes `message` in a process that dies: nothing of it runs any more, and nothing was said.
async fn die_with(options: RedisOptions, message: &'static str) {
    let died = std::thread::spawn(move || {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let broker = RedisBroker::connect(options).await.unwrap();
            let mut consumer = consume(&broker, &[&name("queue")], 9).await;
            std::mem::forget(take(&mut *consumer, message).await);
            std::mem::forget((broker, consumer));
        });
        runtime.shutdown_background();
    });
    eventually("the process has died", async || died.is_finished()).await;
    died.join().unwrap();
}

async fn consumers(raw: &mut MultiplexedConnection) -> Vec<String> {
    let mut info = redis::cmd("XINFO");
    info.arg("CONSUMERS").arg("{test}:queue:queue").arg("runcast");
    let listed: Vec<std::collections::HashMap<String, redis::Value>> = info.query_async(raw).await.unwrap();
    listed.into_iter().map(|mut one| redis::from_redis_value(one.remove("name").unwrap()).unwrap()).collect()
}

#[tokio::test]
async fn what_a_dead_process_held_is_taken_over_after_its_lease() {
    let Some(server) = Server::start(&[]).await else { return };
    let options = RedisOptions { lease: LEASE, ..server.options() };
    let (broker, queue) = (RedisBroker::connect(options.clone()).await.unwrap(), name("queue"));
    publish(&broker, &queue, &["1", "2"]).await;
    die_with(options, "1").await;
    let died = Instant::now();
    let mut consumer = consume(&broker, &[&queue], 1).await;
    // "2" was taken in the same go as "1"
    let delivery = take(&mut *consumer, "1").await;
    assert!(delivery.redelivered());
    assert!(died.elapsed() < LEASE * 3, "only after {:?}", died.elapsed());
    delivery.ack().await.unwrap();
    take(&mut *consumer, "2").await.ack().await.unwrap();
    let mut raw = server.raw().await;
    eventually("the dead consumer is forgotten", async || {
        consumers(&mut raw).await.iter().filter(|consumer| !consumer.starts_with('~')).count() == 1
    })
    .await;
}

#[tokio::test]
async fn a_process_that_comes_back_under_its_name_has_its_deliveries_at_once() {
    let Some(server) = Server::start(&[]).await else { return };
    let options = RedisOptions { lease: Duration::from_secs(3600), consumer: Some(name("node")), ..server.options() };
    let queue = name("queue");
    publish(&server.broker().await, &queue, &["1"]).await;
    die_with(options.clone(), "1").await;
    let broker = RedisBroker::connect(options).await.unwrap();
    take(&mut *consume(&broker, &[&queue], 1).await, "1").await.ack().await.unwrap();
}

#[tokio::test]
async fn a_living_consumer_keeps_what_it_holds_longer_than_its_lease() {
    let Some(server) = Server::start(&[]).await else { return };
    let options = RedisOptions { lease: LEASE, ..server.options() };
    let (broker, peer) =
        (RedisBroker::connect(options.clone()).await.unwrap(), RedisBroker::connect(options).await.unwrap());
    let queue = name("queue");
    publish(&broker, &queue, &["1"]).await;
    let mut holder = consume(&broker, &[&queue], 1).await;
    let held = take(&mut *holder, "1").await;
    let mut other = consume(&peer, &[&queue], 1).await;
    assert!(timeout(LEASE * 3, other.next()).await.is_err(), "a living consumer lost its delivery");
    held.ack().await.unwrap();
    assert_eq!(depth(&broker, &queue).await, Depth::default());
}

#[tokio::test]
async fn a_message_whose_delivery_was_lost_on_the_way_comes_back() {
    let Some(server) = Server::start(&[]).await else { return };
    let options = RedisOptions { lease: LEASE, consumer: Some(name("node")), ..server.options() };
    let (broker, mut raw, queue) = (RedisBroker::connect(options).await.unwrap(), server.raw().await, name("queue"));
    let mut consumer = consume(&broker, &[&queue], 2).await;
    publish(&broker, &queue, &["held", "lost"]).await;
    // taken under its name, but it never heard of it
    let mut lost = redis::cmd("XREADGROUP");
    lost.arg("GROUP")
        .arg("runcast")
        .arg("node.1")
        .arg("COUNT")
        .arg(2)
        .arg("STREAMS")
        .arg("{test}:queue:queue")
        .arg(">");
    eventually("the group is there", async || lost.exec_async(&mut raw).await.is_ok()).await;
    let held = take(&mut *consumer, "held").await;
    take(&mut *consumer, "lost").await.ack().await.unwrap();
    held.ack().await.unwrap();
}

#[tokio::test]
async fn a_delivery_that_was_taken_over_cannot_be_settled() {
    let Some(server) = Server::start(&[]).await else { return };
    let (broker, mut raw, queue) = (server.broker().await, server.raw().await, name("queue"));
    publish(&broker, &queue, &["1"]).await;
    let mut consumer = consume(&broker, &[&queue], 2).await;
    let held = take(&mut *consumer, "1").await;
    let mut pending = redis::cmd("XPENDING");
    pending.arg("{test}:queue:queue").arg("runcast").arg("-").arg("+").arg(9);
    let pending: Vec<(String, String, i64, i64)> = pending.query_async(&mut raw).await.unwrap();
    let mut claim = redis::cmd("XCLAIM");
    claim.arg("{test}:queue:queue").arg("runcast").arg("other").arg(0).arg(&pending[0].0);
    claim.exec_async(&mut raw).await.unwrap();
    let refused = held.ack().await.unwrap_err();
    assert_eq!(refused.error.kind(), ErrorKind::Closed);
    let refused = refused.delivery.nack(Duration::ZERO).await.unwrap_err();
    let refused = refused.delivery.reject("late").await.unwrap_err();
    drop(refused);
    assert_eq!(depth(&broker, &queue).await, Depth { outstanding: 1, ..Depth::default() });
}

#[tokio::test]
async fn what_is_delayed_comes_back_once_however_many_look() {
    const MESSAGES: usize = 300;
    let Some(server) = Server::start(&[]).await else { return };
    let (broker, peer, queue) = (server.broker().await, server.broker().await, name("queue"));
    for number in 0..MESSAGES {
        broker.publish(&queue, number.to_string().into()).await.unwrap();
    }
    let (mut one, mut two) = (consume(&broker, &[&queue], 400).await, consume(&peer, &[&queue], 400).await);
    for _ in 0..MESSAGES {
        soon("first", one.next()).await.unwrap().nack(Duration::from_secs(1)).await.unwrap();
    }
    assert_eq!(depth(&broker, &queue).await, Depth { ready: MESSAGES as u64, ..Depth::default() });
    let mut seen = BTreeSet::new();
    while seen.len() < MESSAGES {
        let next = async {
            tokio::select! { next = one.next() => next, next = two.next() => next }
        };
        let delivery = soon("again", next).await.unwrap();
        assert!(delivery.redelivered());
        assert!(seen.insert(delivery.message().clone()), "{delivery:?} came twice");
        delivery.ack().await.unwrap();
    }
    assert_eq!(depth(&broker, &queue).await, Depth::default());
}
