//! Queues of foreign producers: nothing is lost, whoever dies.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::join_all;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use runcast_broker::{ErrorKind, Message, Source};
use runcast_broker_amqp::{AmqpOptions, AmqpQueue};
use tokio::time::timeout;

use crate::server::Server;
use runcast_broker_conformance::Proxy;

const QUEUE: &str = "orders";

const DEADLINE: Duration = Duration::from_secs(60);

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(DEADLINE, future).await.unwrap_or_else(|_| panic!("{what}: not within {DEADLINE:?}"))
}

fn open(port: u16) -> Box<dyn Source> {
    let options = AmqpOptions::new(format!("amqp://127.0.0.1:{port}").parse().unwrap());
    Box::new(AmqpQueue::open(options, QUEUE).unwrap())
}

/// A channel of a foreign program.
async fn channel(server: &Server) -> Channel {
    let connection =
        Connection::connect(&format!("{}/%2f", server.url()), ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    channel
}

async fn push(channel: &Channel, messages: impl IntoIterator<Item = String>) {
    for message in messages {
        let properties =
            BasicProperties::default().with_delivery_mode(2).with_message_id(format!("id-{message}").into());
        let options = BasicPublishOptions::default();
        let published = channel.basic_publish("".into(), QUEUE.into(), options, message.as_bytes(), properties);
        assert!(published.await.unwrap().await.unwrap().is_ack());
    }
}

fn numbers(count: usize) -> impl Iterator<Item = String> {
    (0..count).map(|number| number.to_string())
}

/// The next message, through all errors.
async fn next(source: &mut Box<dyn Source>) -> Message {
    soon("a message", async {
        loop {
            match source.next().await {
                Ok(message) => return message,
                Err(error) => assert_ne!(error.kind(), ErrorKind::Closed, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
}

fn text(message: &Message) -> String {
    String::from_utf8(message.payload().to_vec()).unwrap()
}

/// Takes and removes until `count` have come.
async fn drain(source: &mut Box<dyn Source>, seen: &mut BTreeSet<String>, count: usize) {
    while seen.len() < count {
        let message = next(source).await;
        let text = text(&message);
        // what was not removed comes again
        drop(message.done().await);
        seen.insert(text);
    }
}

/// Nothing is left once all acknowledgements have arrived.
async fn assert_empty(server: &Server) {
    let channel = channel(server).await;
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    soon("the queue is empty", async {
        while channel.queue_declare(QUEUE.into(), passive, FieldTable::default()).await.unwrap().message_count() > 0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_missing_queue_is_declared_and_its_messages_come_in_order_and_go_when_they_are_done() {
    let Some(server) = Server::start(None).await else { return };
    let mut source = open(server.port);
    // it is declared by whoever waits for it
    assert!(timeout(Duration::from_secs(3), source.next()).await.is_err());
    push(&channel(&server).await, numbers(300)).await;
    for number in 0..300 {
        let message = next(&mut source).await;
        assert_eq!((text(&message), message.id()), (number.to_string(), Some(format!("id-{number}").as_str())));
        message.done().await.unwrap();
    }
    soon("close", source.close()).await;
    assert_empty(&server).await;
}

#[tokio::test]
async fn what_is_done_by_the_hundred_right_before_the_close_does_not_come_again() {
    let Some(server) = Server::start(None).await else { return };
    let mut source = open(server.port);
    assert!(timeout(Duration::from_secs(3), source.next()).await.is_err());
    push(&channel(&server).await, numbers(128)).await;
    let mut taken = Vec::new();
    while taken.len() < 100 {
        taken.push(next(&mut source).await);
    }
    // More than RabbitMQ has under way at a time.
    for done in join_all(taken.into_iter().map(Message::done)).await {
        done.unwrap();
    }
    soon("close", source.close()).await;
    let mut other = open(server.port);
    for number in 100..128 {
        assert_eq!(text(&next(&mut other).await), number.to_string());
    }
}

#[tokio::test]
async fn a_queue_of_another_type_is_taken_as_it_is_and_what_is_dropped_comes_again() {
    let Some(server) = Server::start(None).await else { return };
    let channel = channel(&server).await;
    let classic = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(QUEUE.into(), classic, FieldTable::default()).await.unwrap();
    push(&channel, numbers(2)).await;
    let mut source = open(server.port);
    let (first, second) = (next(&mut source).await, next(&mut source).await);
    drop(first);
    let again = next(&mut source).await;
    assert_eq!(text(&again), "0");
    again.done().await.unwrap();
    // what is held when it closes returns
    soon("close", source.close()).await;
    assert_eq!(second.done().await.unwrap_err().error.kind(), ErrorKind::Closed);
    let mut other = open(server.port);
    assert_eq!(text(&next(&mut other).await), "1");
}

#[tokio::test]
async fn a_connection_that_goes_silent_and_a_server_that_is_killed_lose_nothing() {
    let Some(server) = Server::start(None).await else { return };
    let proxy = Proxy::before(server.port).await;
    let options = AmqpOptions {
        heartbeat: Duration::from_secs(1),
        ..AmqpOptions::new(format!("amqp://127.0.0.1:{}", proxy.port).parse().unwrap())
    };
    let mut source: Box<dyn Source> = Box::new(AmqpQueue::open(options, QUEUE).unwrap());
    let declared = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    let producer = channel(&server).await;
    producer.queue_declare(QUEUE.into(), declared, FieldTable::default()).await.unwrap();
    push(&producer, numbers(400)).await;
    let held = next(&mut source).await;
    proxy.silence();
    let mut seen = BTreeSet::new();
    drain(&mut source, &mut seen, 200).await;
    drop(held);
    let held = next(&mut source).await;
    server.kill();
    server.run().await;
    // what was pushed to us and not removed comes again
    drop(held);
    drain(&mut source, &mut seen, 400).await;
    eventually_empty(&mut source, &server).await;
}

/// Removes what comes again until nothing is left.
async fn eventually_empty(source: &mut Box<dyn Source>, server: &Server) {
    while let Ok(message) = timeout(Duration::from_secs(2), next(source)).await {
        drop(message.done().await);
    }
    assert_empty(server).await;
}
