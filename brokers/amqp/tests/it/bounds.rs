//! What the RabbitMQ broker promises beyond the contract: bounds, fairness, and its layout.

use std::time::Duration;

use futures_util::StreamExt;
use lapin::BasicProperties;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicGetOptions, BasicPublishOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::FieldTable;
use runcast_broker::{Announcement, Broker, Depth, Name};
use runcast_broker_amqp::AmqpOptions;
use tokio::time::timeout;

use crate::steps::{connect, consume, depth, depth_becomes, eventually, name, publish, shared, soon, take, text};

#[tokio::test]
async fn a_watcher_that_falls_behind_reads_a_gap_in_place_of_what_was_dropped() {
    let Some(space) = shared().await else { return };
    let broker = connect(AmqpOptions { watch_buffer: 2, ..space.options() }).await;
    let (slow, fast) = (name("slow"), name("fast"));
    let (mut slowly, mut fastly) = (broker.watch(&slow).await.unwrap(), broker.watch(&fast).await.unwrap());
    for payload in ["1", "2", "dropped", "dropped"] {
        broker.announce(&slow, text(payload)).await.unwrap();
    }
    // one queue carries both, in order
    broker.announce(&fast, text("done")).await.unwrap();
    assert_eq!(soon("done", fastly.next()).await.unwrap(), Announcement::Payload(text("done")));
    for expected in [Announcement::Payload(text("1")), Announcement::Payload(text("2")), Announcement::Gap] {
        assert_eq!(soon("unread", slowly.next()).await.unwrap(), expected);
    }
}

#[tokio::test]
async fn a_consumer_that_does_not_ask_keeps_nothing_from_others() {
    let Some(space) = shared().await else { return };
    let (broker, peer, queue) = (space.broker().await, space.broker().await, name("queue"));
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
    let Some(space) = shared().await else { return };
    let (broker, high, low) = (space.broker().await, name("high"), name("low"));
    publish(&broker, &low, &["low 1", "low 2", "low 3"]).await;
    let mut consumer = consume(&broker, &[&high, &low], 100).await;
    let _low = take(&mut *consumer, "low 1").await;
    publish(&broker, &high, &["high 1"]).await;
    let _high = take(&mut *consumer, "high 1").await;
    take(&mut *consumer, "low 2").await.ack().await.unwrap();
}

#[tokio::test]
async fn a_backlog_taken_in_batches_holds_up_neither_an_earlier_queue_nor_other_consumers() {
    const MESSAGES: usize = 200;
    let Some(space) = shared().await else { return };
    let (broker, peer, high, low) = (space.broker().await, space.broker().await, name("high"), name("low"));
    for number in 0..MESSAGES {
        broker.publish(&low, number.to_string().into()).await.unwrap();
    }
    let mut consumer = consume(&broker, &[&high, &low], 100).await;
    for number in 0..MESSAGES / 2 {
        let delivery = soon("low", consumer.next()).await.unwrap();
        assert_eq!(delivery.message(), number.to_string().as_bytes());
        delivery.ack().await.unwrap();
    }
    // by now it has taken more than it was asked for
    publish(&broker, &high, &["high"]).await;
    eventually("the earlier queue is pushed from", async || depth(&broker, &high).await.ready == 1).await;
    take(&mut *consumer, "high").await.ack().await.unwrap();
    let mut other = consume(&peer, &[&low], 100).await;
    let mut left: std::collections::BTreeSet<_> = (MESSAGES / 2..MESSAGES).map(|number| number.to_string()).collect();
    while !left.is_empty() {
        let delivery = timeout(Duration::from_secs(2), other.next()).await.expect("soon").unwrap();
        assert!(left.remove(std::str::from_utf8(delivery.message()).unwrap()), "{delivery:?} came twice");
        delivery.ack().await.unwrap();
    }
    depth_becomes(&broker, &low, Depth::default()).await;
}

#[tokio::test]
async fn a_wait_that_was_given_up_keeps_no_message() {
    let Some(space) = shared().await else { return };
    let (broker, peer, queue) = (space.broker().await, space.broker().await, name("queue"));
    let mut given_up = consume(&broker, &[&queue], 9).await;
    assert!(timeout(Duration::from_millis(300), given_up.next()).await.is_err());
    publish(&broker, &queue, &["1"]).await;
    let mut other = consume(&peer, &[&queue], 9).await;
    let held = timeout(Duration::from_secs(2), take(&mut *other, "1")).await.expect("soon");
    assert_eq!(depth(&peer, &queue).await, Depth { outstanding: 1, ..Depth::default() });
    held.ack().await.unwrap();
}

#[tokio::test]
async fn a_message_that_is_not_asked_for_goes_back_before_anything_newer() {
    let Some(space) = shared().await else { return };
    let (broker, queue) = (space.broker().await, name("queue"));
    let mut consumer = consume(&broker, &[&queue], 9).await;
    // the server pushes from now on, though nobody waits any more
    assert!(timeout(Duration::from_millis(300), consumer.next()).await.is_err());
    publish(&broker, &queue, &["1", "2", "3"]).await;
    depth_becomes(&broker, &queue, Depth { ready: 3, ..Depth::default() }).await;
    for message in ["1", "2", "3"] {
        take(&mut *consumer, message).await.ack().await.unwrap();
    }
}

#[tokio::test]
async fn what_is_delayed_is_counted_by_all_and_comes_back_once() {
    const MESSAGES: u64 = 40;
    let Some(space) = shared().await else { return };
    let (broker, peer, queue) = (space.broker().await, space.broker().await, name("queue"));
    for number in 0..MESSAGES {
        broker.publish(&queue, number.to_string().into()).await.unwrap();
    }
    let (mut one, mut two) = (consume(&broker, &[&queue], 400).await, consume(&peer, &[&queue], 400).await);
    for _ in 0..MESSAGES {
        soon("first", one.next()).await.unwrap().nack(Duration::from_secs(3)).await.unwrap();
    }
    let all = Depth { ready: MESSAGES, ..Depth::default() };
    depth_becomes(&broker, &queue, all).await;
    depth_becomes(&peer, &queue, all).await;
    // one that comes later is told
    depth_becomes(&space.broker().await, &queue, all).await;
    let mut seen = std::collections::BTreeSet::new();
    while seen.len() < MESSAGES as usize {
        let next = async {
            tokio::select! { next = one.next() => next, next = two.next() => next }
        };
        let delivery = soon("again", next).await.unwrap();
        assert!(delivery.redelivered());
        assert!(seen.insert(delivery.message().clone()), "{delivery:?} came twice");
        delivery.ack().await.unwrap();
    }
    depth_becomes(&peer, &queue, Depth::default()).await;
}

#[tokio::test]
async fn what_a_process_that_vanished_held_returns_and_is_not_counted() {
    let Some(space) = shared().await else { return };
    let (broker, queue) = (space.broker().await, name("queue"));
    publish(&broker, &queue, &["1", "2"]).await;
    let options = space.options();
    // a runtime that ends takes the connections with it, and nothing was said
    let vanished = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let broker = connect(options).await;
            let mut consumer = consume(&broker, &[&name("queue")], 9).await;
            std::mem::forget(take(&mut *consumer, "1").await);
            std::mem::forget((broker, consumer));
        });
        runtime.shutdown_background();
    });
    eventually("the process has gone", async || vanished.is_finished()).await;
    depth_becomes(&broker, &queue, Depth { ready: 2, ..Depth::default() }).await;
    let mut consumer = consume(&broker, &[&queue], 1).await;
    let delivery = take(&mut *consumer, "1").await;
    assert!(delivery.redelivered());
    delivery.ack().await.unwrap();
    take(&mut *consumer, "2").await.ack().await.unwrap();
}

#[tokio::test]
async fn letters_keep_their_order_however_often_they_are_looked_at() {
    const LETTERS: usize = 600;
    let Some(space) = shared().await else { return };
    let (broker, queue) = (space.broker().await, name("queue"));
    let mut consumer = consume(&broker, &[&queue], 1).await;
    for number in 0..LETTERS {
        broker.publish(&queue, number.to_string().into()).await.unwrap();
        soon("next", consumer.next()).await.unwrap().reject("no").await.unwrap();
    }
    let mut seen = Vec::new();
    let mut after: Option<String> = None;
    loop {
        let page = broker.dead_letters(&queue, after.as_deref(), 250).await.unwrap();
        let Some(last) = page.last() else { break };
        after = Some(last.id.clone());
        seen.extend(page.into_iter().map(|letter| String::from_utf8(letter.message.to_vec()).unwrap()));
    }
    assert_eq!(seen, (0..LETTERS).map(|number| number.to_string()).collect::<Vec<_>>());
    let long = "ü".repeat(40_000);
    broker.publish(&queue, text("long")).await.unwrap();
    take(&mut *consumer, "long").await.reject(&long).await.unwrap();
    let letter = broker.dead_letters(&queue, after.as_deref(), 1).await.unwrap().remove(0);
    assert!(long.starts_with(&letter.reason) && letter.reason.len() > 30_000);
    assert_eq!(broker.purge_dead_letters(&queue).await.unwrap(), LETTERS as u64 + 1);
}

#[tokio::test]
async fn the_longest_names_and_the_largest_payloads_go_through() {
    let Some(space) = shared().await else { return };
    let namespace = format!("{}-{}", space.namespace, "n".repeat(AmqpOptions::MAX_NAMESPACE));
    let namespace = name(&namespace[..AmqpOptions::MAX_NAMESPACE]);
    let broker = connect(AmqpOptions { namespace, consumer: Some(longest()), ..space.options() }).await;
    let (queue, payload) = (longest(), bytes::Bytes::from(vec![b'x'; broker.capabilities().max_message_bytes]));
    let mut consumer = consume(&broker, &[&queue], 1).await;
    broker.publish(&queue, payload.clone()).await.unwrap();
    soon("largest", consumer.next()).await.unwrap().nack(Duration::from_secs(1)).await.unwrap();
    let delivery = soon("largest", consumer.next()).await.unwrap();
    assert!(delivery.message() == &payload);
    delivery.reject("no").await.unwrap();
    assert!(broker.dead_letters(&queue, None, 1).await.unwrap()[0].message == payload);
    let mut watch = broker.watch(&queue).await.unwrap();
    broker.announce(&queue, payload.clone()).await.unwrap();
    assert!(soon("largest", watch.next()).await.unwrap() == Announcement::Payload(payload.clone()));
    broker.presence(&queue, payload.clone(), Duration::from_secs(60)).await.unwrap();
    assert!(broker.nodes().await.unwrap()[0].payload == payload);
}

fn longest() -> Name {
    name(&"x".repeat(Name::MAX_BYTES))
}

#[tokio::test]
async fn presence_is_heard_by_those_who_come_later_and_outlives_nobody() {
    let Some(space) = shared().await else { return };
    let (one, two) = (space.broker().await, space.broker().await);
    one.presence(&name("one"), text("1"), Duration::from_secs(3600)).await.unwrap();
    two.presence(&name("two"), text("2"), Duration::from_secs(3600)).await.unwrap();
    let late = space.broker().await;
    let nodes = |nodes: Vec<runcast_broker::NodePresence>| -> Vec<String> {
        nodes.iter().map(|presence| presence.node.to_string()).collect()
    };
    assert_eq!(nodes(late.nodes().await.unwrap()), ["one", "two"]);
    one.presence(&name("one"), text(""), Duration::ZERO).await.unwrap();
    assert_eq!(nodes(late.nodes().await.unwrap()), ["two"]);
    assert_eq!(nodes(space.broker().await.nodes().await.unwrap()), ["two"]);
}

#[tokio::test]
async fn the_layout_is_as_documented() {
    let Some(space) = shared().await else { return };
    let (broker, raw, queue, ns) = (space.broker().await, space.raw().await, name("queue"), space.namespace.as_str());
    // a foreign producer, for a queue that somebody has declared
    let mut consumer = consume(&broker, &[&queue], 1).await;
    assert_eq!(depth(&broker, &queue).await, Depth::default());
    let publish_raw = async |exchange: String, key: String, properties, body: &'static [u8]| {
        let options = BasicPublishOptions::default();
        raw.basic_publish(exchange.into(), key.into(), options, body, properties).await.unwrap();
    };
    publish_raw(String::new(), space.queue("queue"), BasicProperties::default(), b"foreign").await;
    take(&mut *consumer, "foreign").await.reject("why").await.unwrap();
    let options = BasicGetOptions::default();
    let letter = raw.basic_get(format!("{ns}.dead.queue").into(), options).await.unwrap().unwrap().delivery;
    assert_eq!(letter.data, b"foreign");
    let reason = letter.properties.headers().as_ref().unwrap().inner()["reason"].as_long_string().unwrap().to_string();
    assert_eq!(reason, "why");
    raw.basic_ack(letter.delivery_tag, BasicAckOptions::default()).await.unwrap();

    // a foreign worker, and one that lets the server make a letter of it
    publish(&broker, &queue, &["for you", "not for you"]).await;
    drop(consumer);
    for (body, ack) in [("for you", true), ("not for you", false)] {
        let mut got = None;
        eventually("it is there", async || {
            got = raw.basic_get(space.queue("queue").into(), options).await.unwrap();
            got.is_some()
        })
        .await;
        let got = got.unwrap().delivery;
        assert_eq!(got.data, body.as_bytes());
        if ack {
            raw.basic_ack(got.delivery_tag, BasicAckOptions::default()).await.unwrap();
        } else {
            raw.basic_reject(got.delivery_tag, Default::default()).await.unwrap();
        }
    }
    depth_becomes(&broker, &queue, Depth { dead: 1, ..Depth::default() }).await;
    let letter = broker.dead_letters(&queue, None, 9).await.unwrap().remove(0);
    assert_eq!((&letter.message, &*letter.reason), (&text("not for you"), "rejected"));
    assert!(broker.requeue_dead_letter(&queue, &letter.id).await.unwrap());
    let mut consumer = consume(&broker, &[&queue], 1).await;
    let again = take(&mut *consumer, "not for you").await;
    assert!(again.redelivered());

    // a delay is a queue
    again.nack(Duration::from_secs(3600)).await.unwrap();
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let delayed = format!("{ns}.delayed.queue.4000000");
    let delayed = raw.queue_declare(delayed.into(), passive, FieldTable::default()).await.unwrap();
    assert_eq!(delayed.message_count(), 1);

    // announcements and presence, from and to somebody else
    let mut watch = broker.watch(&name("topic")).await.unwrap();
    publish_raw(format!("{ns}.topics"), "topic".to_owned(), BasicProperties::default(), b"news").await;
    assert_eq!(soon("news", watch.next()).await.unwrap(), Announcement::Payload(text("news")));
    let mine = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
    let mine = raw.queue_declare("".into(), mine, FieldTable::default()).await.unwrap().name().clone();
    for (exchange, key) in [("topics", "topic"), ("nodes", "")] {
        let (exchange, options) = (format!("{ns}.{exchange}"), QueueBindOptions::default());
        raw.queue_bind(mine.clone(), exchange.into(), key.into(), options, FieldTable::default()).await.unwrap();
    }
    let (options, none) = (BasicConsumeOptions { no_ack: true, ..Default::default() }, FieldTable::default());
    let mut heard = raw.basic_consume(mine, "".into(), options, none).await.unwrap();
    broker.announce(&name("topic"), text("out")).await.unwrap();
    broker.presence(&name("node"), text("here"), Duration::from_secs(60)).await.unwrap();
    for (kind, body) in [(None, "out"), (Some("presence"), "here")] {
        let delivery = soon(body, heard.next()).await.unwrap().unwrap();
        assert_eq!(delivery.data, body.as_bytes());
        assert_eq!(delivery.properties.kind().as_ref().map(|kind| kind.as_str()), kind);
    }
    let mut headers = FieldTable::default();
    headers.insert("node".into(), lapin::types::AMQPValue::LongString("foreign".into()));
    headers.insert("ttl".into(), lapin::types::AMQPValue::LongInt(60_000));
    let properties = BasicProperties::default().with_type("presence".into()).with_headers(headers);
    publish_raw(format!("{ns}.nodes"), String::new(), properties, b"hello").await;
    eventually("it is listed", async || broker.nodes().await.unwrap().iter().any(|one| one.payload == "hello")).await;
}
