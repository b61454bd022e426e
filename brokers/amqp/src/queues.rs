//! Queues on the server: how they are declared, and how messages get into them.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use lapin::options::BasicPublishOptions;
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};
use lapin::{BasicProperties, Channel, Confirmation};
use runcast_broker::{BrokerError, ErrorKind, Name};

use crate::link::{DURABLE, Lane, Link, Open};
use crate::names::{Delay, Names};

/// Header: the message was delivered before.
const REDELIVERED: &str = "redelivered";

/// Header: why a message is a dead letter.
const REASON: &str = "reason";

/// The longest reason, in bytes: headers have to fit into one frame.
const MAX_REASON: usize = 32 * 1024;

/// How often a message may be returned before the server makes a dead letter of it. Without a
/// number the server would put what is returned at the end of its queue.
const RETURNS: i32 = 1_000_000;

/// Letters are returned each time somebody looks at them.
const LOOKS: i32 = 1_000_000_000;

/// A queue that is declared once on a channel stays declared.
const ONCE: Duration = Duration::MAX;

/// How long a queue for delayed messages need not be declared again.
const AGAIN: Duration = Duration::from_secs(60);

/// How long to wait before a message that was not stored is sent again, at first and at last.
const PAUSE: Duration = Duration::from_millis(25);
const LAST_PAUSE: Duration = Duration::from_millis(400);

/// How long a queue that somebody has deleted stays so: when it is there again before its subscribers
/// were told, the server counts them in and sends them nothing.
const GONE: Duration = Duration::from_millis(300);

/// Appends messages to queues; knows how all of them are declared.
pub(crate) struct Queues {
    pub(crate) names: Names,
    lane: Lane,
}

/// What a message carries besides its bytes.
#[derive(Debug, Clone, Default)]
pub(crate) struct Marks {
    pub(crate) redelivered: bool,
    pub(crate) letter: Option<(String, String)>,
}

impl Queues {
    pub(crate) fn new(names: Names, link: &Arc<Link>) -> Self {
        Self { names, lane: Lane::new(link, true) }
    }

    /// Returns when the server has the message.
    pub(crate) async fn publish(&self, queue: &Name, message: &[u8], marks: Marks) -> Result<(), BrokerError> {
        let target = self.names.queue(queue);
        self.append(queue, None, &target, message, marks).await
    }

    /// Returns when the server has the message, which comes back to its queue after `delay`.
    pub(crate) async fn delay(&self, queue: &Name, message: &[u8], delay: Delay) -> Result<(), BrokerError> {
        let target = self.names.delayed(queue, delay);
        let marks = Marks { redelivered: true, letter: None };
        self.append(queue, Some(delay), &target, message, marks).await
    }

    /// Returns when the server has the message as a dead letter.
    pub(crate) async fn bury(&self, queue: &Name, message: &[u8], id: &str, reason: &str) -> Result<(), BrokerError> {
        let mut end = reason.len().min(MAX_REASON);
        while !reason.is_char_boundary(end) {
            end -= 1;
        }
        let marks = Marks { redelivered: false, letter: Some((id.to_owned(), reason[..end].to_owned())) };
        let target = self.names.dead(queue);
        self.append(queue, None, &target, message, marks).await
    }

    async fn append(
        &self,
        queue: &Name,
        delay: Option<Delay>,
        target: &ShortString,
        message: &[u8],
        marks: Marks,
    ) -> Result<(), BrokerError> {
        let properties = properties(marks);
        let confirmed = self.lane.call(async |open| {
            let mut pause = PAUSE;
            loop {
                self.declare_on(open, queue, delay).await?;
                let confirmed = publish(&open.channel, target, message, properties.clone()).await?;
                if let Some((key, data, properties)) = returned(&confirmed) {
                    // somebody has deleted the queue. Which of the messages on their way this one is, the
                    // driver may mistake: so it is this one that goes out again, whosever it is
                    tokio::time::sleep(GONE).await;
                    open.forget_all();
                    self.declare_on(open, queue, delay).await?;
                    return publish(&open.channel, &key, &data, properties).await;
                }
                // a queue that another process is just declaring is known before it takes anything
                if confirmed.is_ack() || pause > LAST_PAUSE {
                    return Ok(confirmed);
                }
                tokio::time::sleep(pause).await;
                pause *= 2;
            }
        });
        match confirmed.await? {
            confirmed if returned(&confirmed).is_some() => Err(refused(target, "has gone")),
            Confirmation::Ack(_) => Ok(()),
            Confirmation::Nack(_) => Err(refused(target, "is full or could not store the message")),
            Confirmation::NotRequested => Err(refused(target, "gave no confirmation")),
        }
    }

    async fn declare_on(&self, open: &Open, queue: &Name, delay: Option<Delay>) -> lapin::Result<()> {
        open.declare(&self.names.dead(queue), Self::dead, ONCE).await?;
        open.declare(&self.names.queue(queue), || self.arguments(queue), ONCE).await?;
        if let Some(delay) = delay {
            open.declare(&self.names.delayed(queue, delay), || self.delayed(queue, delay), AGAIN).await?;
        }
        Ok(())
    }

    /// Declares a queue and its dead letters; returns how many messages each has ready.
    pub(crate) async fn declare(&self, channel: &Channel, queue: &Name) -> lapin::Result<(u32, u32)> {
        let dead = channel.queue_declare(self.names.dead(queue), DURABLE, Self::dead()).await?;
        let queue = channel.queue_declare(self.names.queue(queue), DURABLE, self.arguments(queue)).await?;
        Ok((queue.message_count(), dead.message_count()))
    }

    /// Declares a queue; returns how many messages it has ready, and how many subscriptions.
    pub(crate) async fn look(&self, channel: &Channel, queue: &Name) -> lapin::Result<(u32, u32)> {
        let queue = channel.queue_declare(self.names.queue(queue), DURABLE, self.arguments(queue)).await?;
        Ok((queue.message_count(), queue.consumer_count()))
    }

    /// Declares the queue of a delay; returns how many messages wait in it.
    pub(crate) async fn declare_delayed(&self, channel: &Channel, queue: &Name, delay: Delay) -> lapin::Result<u32> {
        let delayed = self.names.delayed(queue, delay);
        Ok(channel.queue_declare(delayed, DURABLE, self.delayed(queue, delay)).await?.message_count())
    }

    fn arguments(&self, queue: &Name) -> FieldTable {
        let mut arguments = quorum(RETURNS);
        dead_letters_to(&mut arguments, &self.names.dead(queue));
        arguments
    }

    fn dead() -> FieldTable {
        quorum(LOOKS)
    }

    fn delayed(&self, queue: &Name, delay: Delay) -> FieldTable {
        let mut arguments = quorum(RETURNS);
        dead_letters_to(&mut arguments, &self.names.queue(queue));
        let ms = |duration: Duration| AMQPValue::LongLongInt(i64::try_from(duration.as_millis()).unwrap_or(i64::MAX));
        arguments.insert("x-message-ttl".into(), ms(delay.duration()));
        arguments.insert("x-expires".into(), ms(delay.duration() + Delay::MARGIN));
        arguments
    }
}

fn quorum(returns: i32) -> FieldTable {
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), text("quorum"));
    arguments.insert("x-delivery-limit".into(), returns.into());
    arguments
}

/// What leaves a queue by itself is confirmed by the next one before it is gone from the first.
fn dead_letters_to(arguments: &mut FieldTable, next: &ShortString) {
    arguments.insert("x-dead-letter-exchange".into(), text(""));
    arguments.insert("x-dead-letter-routing-key".into(), text(next.as_str()));
    arguments.insert("x-dead-letter-strategy".into(), text("at-least-once"));
    arguments.insert("x-overflow".into(), text("reject-publish"));
}

pub(crate) fn text(text: &str) -> AMQPValue {
    AMQPValue::LongString(LongString::from(text))
}

/// A header as text.
pub(crate) fn header(properties: &BasicProperties, name: &str) -> Option<String> {
    let value = properties.headers().as_ref()?.inner().get(name)?;
    value.as_long_string().map(|text| String::from_utf8_lossy(text.as_bytes()).into_owned())
}

/// Whether the headers say that the message was delivered before.
pub(crate) fn redelivered(properties: &BasicProperties) -> bool {
    let value = properties.headers().as_ref().and_then(|headers| headers.inner().get(REDELIVERED));
    value.and_then(AMQPValue::as_bool).unwrap_or(false)
}

/// The id of a dead letter and why it is one. What others put there, or the server by itself, has
/// the name of a message or none.
pub(crate) fn letter(properties: &BasicProperties, message: &[u8]) -> (String, String) {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let id = properties.message_id().as_ref().map(ShortString::to_string);
    let id = id.filter(|id| !id.is_empty()).unwrap_or_else(|| {
        let mut hasher = DefaultHasher::new();
        message.hash(&mut hasher);
        format!("~{:016x}", hasher.finish())
    });
    let reason = header(properties, REASON).or_else(|| header(properties, "x-first-death-reason"));
    (id, reason.unwrap_or_default())
}

fn properties(marks: Marks) -> BasicProperties {
    const PERSISTENT: u8 = 2;
    let mut headers = FieldTable::default();
    let mut properties = BasicProperties::default().with_delivery_mode(PERSISTENT);
    if marks.redelivered {
        headers.insert(REDELIVERED.into(), AMQPValue::Boolean(true));
    }
    if let Some((id, reason)) = marks.letter {
        headers.insert(REASON.into(), text(&reason));
        properties = properties.with_message_id(id.into());
    }
    if headers.inner().is_empty() { properties } else { properties.with_headers(headers) }
}

async fn publish(
    channel: &Channel,
    key: &ShortString,
    message: &[u8],
    properties: BasicProperties,
) -> lapin::Result<Confirmation> {
    let options = BasicPublishOptions { mandatory: true, immediate: false };
    channel.basic_publish("".into(), key.clone(), options, message, properties).await?.await
}

/// A message that no queue took.
fn returned(confirmed: &Confirmation) -> Option<(ShortString, Bytes, BasicProperties)> {
    let (Confirmation::Ack(Some(message)) | Confirmation::Nack(Some(message))) = confirmed else { return None };
    let delivery = &message.delivery;
    Some((delivery.routing_key.clone(), Bytes::copy_from_slice(&delivery.data), delivery.properties.clone()))
}

fn refused(queue: &ShortString, what: &str) -> BrokerError {
    BrokerError::new(ErrorKind::Transient, format!("rabbitmq: queue {queue} {what}"))
}
