//! What the Redis broker promises beyond the contract: bounds, fairness, and its key layout.

use std::time::Duration;

use redis::AsyncCommands as _;
use runcast_broker::{Announcement, Broker, Depth, ErrorKind};
use runcast_broker_redis::{RedisBroker, RedisOptions};
use tokio::time::timeout;

use crate::server::{Server, consume, depth, name, publish, soon, take, text};

#[tokio::test]
async fn a_full_queue_refuses_messages_until_one_is_settled() {
    let Some(server) = Server::start(&[]).await else { return };
    let options = RedisOptions { max_messages: 2, max_dead_letters: 1, ..server.options() };
    let (broker, queue) = (RedisBroker::connect(options).await.unwrap(), name("queue"));
    let refused = async || broker.publish(&queue, text("more")).await.unwrap_err().kind() == ErrorKind::Transient;
    publish(&broker, &queue, &["1", "2"]).await;
    assert!(refused().await);
    let mut consumer = consume(&broker, &[&queue], 2).await;
    take(&mut *consumer, "1").await.reject("bad").await.unwrap();
    publish(&broker, &queue, &["3"]).await;
    let held = take(&mut *consumer, "2").await;
    assert!(refused().await);

    // so is a letter that is requeued, which stays
    let letter = broker.dead_letters(&queue, None, 9).await.unwrap().remove(0);
    assert_eq!(broker.requeue_dead_letter(&queue, &letter.id).await.unwrap_err().kind(), ErrorKind::Transient);
    assert_eq!(broker.dead_letters(&queue, None, 9).await.unwrap(), [letter]);

    // the oldest letter gives way
    held.reject("worse").await.unwrap();
    let letters = broker.dead_letters(&queue, None, 9).await.unwrap();
    assert_eq!(letters.iter().map(|letter| letter.reason.as_str()).collect::<Vec<_>>(), ["worse"]);
    let unknown = broker.dead_letters(&queue, Some("no id"), 1).await.unwrap_err();
    assert_eq!(unknown.kind(), ErrorKind::Permanent);
    assert!(!broker.requeue_dead_letter(&queue, "no id").await.unwrap());
}

#[tokio::test]
async fn a_watcher_that_falls_behind_reads_a_gap_in_place_of_what_was_dropped() {
    let Some(server) = Server::start(&[]).await else { return };
    let options = RedisOptions { watch_buffer: 2, ..server.options() };
    let broker = RedisBroker::connect(options).await.unwrap();
    let (slow, fast) = (name("slow"), name("fast"));
    let (mut slowly, mut fastly) = (broker.watch(&slow).await.unwrap(), broker.watch(&fast).await.unwrap());
    for payload in ["1", "2", "dropped", "dropped"] {
        broker.announce(&slow, text(payload)).await.unwrap();
    }
    // one connection carries both, in order
    broker.announce(&fast, text("done")).await.unwrap();
    assert_eq!(soon("done", fastly.next()).await.unwrap(), Announcement::Payload(text("done")));
    for expected in [Announcement::Payload(text("1")), Announcement::Payload(text("2")), Announcement::Gap] {
        assert_eq!(soon("unread", slowly.next()).await.unwrap(), expected);
    }
}

#[tokio::test]
async fn a_consumer_that_does_not_ask_keeps_nothing_from_others() {
    let Some(server) = Server::start(&[]).await else { return };
    let (broker, peer, queue) = (server.broker().await, server.broker().await, name("queue"));
    publish(&broker, &queue, &["1", "2", "3"]).await;
    let mut busy = consume(&broker, &[&queue], 100).await;
    let _held = take(&mut *busy, "1").await;
    let mut idle = consume(&peer, &[&queue], 100).await;
    let others = async {
        for message in ["2", "3"] {
            take(&mut *idle, message).await.ack().await.unwrap();
        }
    };
    timeout(Duration::from_secs(2), others).await.expect("soon");
}

#[tokio::test]
async fn an_earlier_queue_goes_first_whatever_the_prefetch() {
    let Some(server) = Server::start(&[]).await else { return };
    let (broker, high, low) = (server.broker().await, name("high"), name("low"));
    publish(&broker, &low, &["low 1", "low 2", "low 3"]).await;
    let mut consumer = consume(&broker, &[&high, &low], 100).await;
    let _low = take(&mut *consumer, "low 1").await;
    publish(&broker, &high, &["high 1"]).await;
    let _high = take(&mut *consumer, "high 1").await;
    take(&mut *consumer, "low 2").await.ack().await.unwrap();
}

#[tokio::test]
async fn a_wait_that_was_given_up_takes_nothing() {
    let Some(server) = Server::start(&[]).await else { return };
    let (broker, queue) = (server.broker().await, name("queue"));
    let mut consumer = consume(&broker, &[&queue], 9).await;
    assert!(timeout(Duration::from_millis(100), consumer.next()).await.is_err());
    publish(&broker, &queue, &["1"]).await;
    let seen = timeout(Duration::from_millis(300), async { while depth(&broker, &queue).await.outstanding == 0 {} });
    assert!(seen.await.is_err(), "nobody asks, and yet the message was taken");
    take(&mut *consumer, "1").await.ack().await.unwrap();
}

#[tokio::test]
async fn what_is_returned_wakes_those_who_wait_at_once() {
    let Some(server) = Server::start(&[]).await else { return };
    let (broker, peer, queue) = (server.broker().await, server.broker().await, name("queue"));
    publish(&broker, &queue, &["1", "2"]).await;
    let mut holder = consume(&broker, &[&queue], 2).await;
    let (dropped, delayed) = (take(&mut *holder, "1").await, take(&mut *holder, "2").await);
    let mut other = consume(&peer, &[&queue], 2).await;
    assert!(timeout(Duration::from_millis(200), other.next()).await.is_err());
    // well before a wait looks by itself
    let at_once = async {
        let (_one, ()) = tokio::join!(take(&mut *other, "1"), async { drop(dropped) });
        let late = delayed.nack(Duration::from_millis(100));
        let (_two, nacked) = tokio::join!(take(&mut *other, "2"), late);
        nacked.unwrap();
    };
    timeout(Duration::from_secs(2), at_once).await.expect("at once");
}

#[tokio::test]
async fn the_key_layout_is_as_documented() {
    let Some(server) = Server::start(&[]).await else { return };
    let (broker, mut raw, queue) = (server.broker().await, server.raw().await, name("queue"));
    // a foreign producer, before anybody consumed
    let _: String = redis::cmd("XADD")
        .arg("{test}:queue:queue")
        .arg("*")
        .arg("m")
        .arg("foreign")
        .query_async(&mut raw)
        .await
        .unwrap();
    let mut watch = broker.watch(&name("topic")).await.unwrap();
    let _: i64 = raw.publish("{test}:topic:topic", "news").await.unwrap();
    assert_eq!(soon("news", watch.next()).await.unwrap(), Announcement::Payload(text("news")));
    let mut consumer = consume(&broker, &[&queue], 1).await;
    take(&mut *consumer, "foreign").await.reject("why").await.unwrap();
    publish(&broker, &queue, &["late"]).await;
    take(&mut *consumer, "late").await.nack(Duration::from_secs(3600)).await.unwrap();
    broker.presence(&name("node"), text("here"), Duration::from_secs(60)).await.unwrap();
    assert_eq!(depth(&broker, &queue).await, Depth { ready: 1, outstanding: 0, dead: 1 });

    let mut keys: Vec<String> = raw.keys("*").await.unwrap();
    keys.sort();
    let kinds = ["bell:queue", "consumers", "dead:queue", "delayed:queue", "nodes", "payloads", "queue:queue"];
    assert_eq!(keys, kinds.map(|kind| format!("{{test}}:{kind}")));
    let payload: String = raw.hget("{test}:payloads", "node").await.unwrap();
    assert_eq!(payload, "here");

    // a foreign worker, which takes, acknowledges and leaves nothing
    publish(&broker, &queue, &["for you"]).await;
    let mut read = redis::cmd("XREADGROUP");
    read.arg("GROUP").arg("runcast").arg("foreign").arg("STREAMS").arg("{test}:queue:queue").arg(">");
    type Entries = Vec<(String, Vec<(String, String)>)>;
    let read: Vec<(String, Entries)> = read.query_async(&mut raw).await.unwrap();
    let (id, fields) = &read[0].1[0];
    assert_eq!(fields[0], ("m".to_owned(), "for you".to_owned()));
    assert_eq!(depth(&broker, &queue).await.outstanding, 1);
    let mut settle = redis::pipe();
    settle.atomic().cmd("XACK").arg("{test}:queue:queue").arg("runcast").arg(id);
    settle.cmd("XDEL").arg("{test}:queue:queue").arg(id);
    let _: (i64, i64) = settle.query_async(&mut raw).await.unwrap();
    assert_eq!(depth(&broker, &queue).await, Depth { ready: 1, outstanding: 0, dead: 1 });
}
