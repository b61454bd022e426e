//! A queue of a foreign producer, whose messages are taken in.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicQosOptions, BasicRejectOptions, ChannelFlowOptions,
    QueueDeclareOptions,
};
use lapin::protocol::{AMQPErrorKind, AMQPSoftError};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Acker, Channel, Consumer};
use runcast_broker::{BrokerError, ErrorKind, Message, Remove, Source};
use runcast_broker_remote::Failure;
use tokio::runtime::Handle;
use tokio::time::timeout;

use crate::link::{DURABLE, Endpoint, Link};
use crate::options::AmqpOptions;

/// How many messages are pushed to us before the first is done.
const PREFETCH: u16 = 128;

/// How often an idle channel is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// A [`Source`] on a queue to which a foreign producer publishes.
///
/// A queue that is there is taken as it is, whatever its type; a missing one is declared as a durable quorum queue.
/// Messages are acknowledged one by one when they are done; what is not returns to its place with the channel, at the
/// latest after two heartbeats without a sign of life. [`Message::id`] is the property `message-id`. An
/// acknowledgement has no answer: one that gets lost with its connection makes the message come again.
///
/// A user needs to read the queue, and to configure it where it has to be declared.
pub struct AmqpQueue {
    link: Arc<Link>,
    queue: ShortString,
    open: Option<(Channel, Consumer)>,
}

impl AmqpQueue {
    /// Opens the queue `queue`. It does not wait for the server.
    ///
    /// Fails with [`ErrorKind::Misconfigured`] when the options make no sense, a certificate cannot be read, or the
    /// name is longer than 255 bytes. The namespace is not used.
    pub fn open(options: AmqpOptions, queue: &str) -> Result<Self, BrokerError> {
        options.check()?;
        if queue.len() > 255 {
            return Err(BrokerError::new(ErrorKind::Misconfigured, "the name of a queue has at most 255 bytes"));
        }
        if options.url.tls() {
            // an error means that the process has chosen one
            let _ = rustls::crypto::ring::default_provider().install_default();
        }
        let name = options.consumer.as_ref().map_or("runcast", |name| name.as_str()).to_owned();
        let endpoint = Arc::new(Endpoint::new(options, name));
        endpoint.tls()?;
        Ok(Self { link: Link::new(endpoint, "ingest"), queue: queue.into(), open: None })
    }

    async fn subscribe(&self) -> Result<(Channel, Consumer), Failure> {
        let subscribed = self.link.within(self.link.limit, async |session| {
            let subscribed = async {
                let mut channel = session.connection.create_channel().await?;
                let there = QueueDeclareOptions { passive: true, ..DURABLE };
                match channel.queue_declare(self.queue.clone(), there, FieldTable::default()).await {
                    // which closes the channel
                    Err(error) if is_not_found(&error) => {
                        channel = session.connection.create_channel().await?;
                        let mut arguments = FieldTable::default();
                        arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
                        channel.queue_declare(self.queue.clone(), DURABLE, arguments).await?;
                    }
                    declared => drop(declared?),
                }
                channel.basic_qos(PREFETCH, BasicQosOptions::default()).await?;
                let (options, arguments) = (BasicConsumeOptions::default(), FieldTable::default());
                let consumer = channel.basic_consume(self.queue.clone(), "".into(), options, arguments).await?;
                Ok((channel, consumer))
            };
            subscribed.await.map_err(|error| self.link.failure(&error))
        });
        subscribed.await
    }
}

fn is_not_found(error: &lapin::Error) -> bool {
    matches!(error.kind(), lapin::ErrorKind::ProtocolError(error)
        if *error.kind() == AMQPErrorKind::Soft(AMQPSoftError::NOTFOUND))
}

#[async_trait]
impl Source for AmqpQueue {
    async fn next(&mut self) -> Result<Message, BrokerError> {
        if self.open.is_none() {
            self.open = Some(self.subscribe().await?);
        }
        let Some((channel, consumer)) = &mut self.open else { return Err(BrokerError::closed()) };
        let failure = loop {
            match timeout(LOOK, consumer.next()).await {
                Ok(Some(Ok(delivery))) => {
                    let id = delivery.properties.message_id().as_ref().map(ToString::to_string);
                    let remove = Held { link: Arc::clone(&self.link), acker: Some(delivery.acker) };
                    return Ok(Message::new(id, delivery.data.into(), Box::new(remove)));
                }
                Ok(Some(Err(error))) => break self.link.failure(&error),
                Ok(None) => break Failure::transient("rabbitmq has ended the subscription"),
                Err(_) if channel.status().connected() => {}
                Err(_) => break Failure::transient("rabbitmq: the channel has closed"),
            }
        };
        self.open = None;
        Err(failure.into())
    }

    /// What was acknowledged is gone when this returns, unless RabbitMQ takes longer than the time limit.
    ///
    /// A channel has some 30 acknowledgements on their way to a quorum queue at a time. It keeps the rest back until
    /// the queue answers, and forgets them when it is closed. So the subscription ends first, which the channel asks
    /// the queue for and waits: behind what is on its way, and with the queue's answers the rest follows.
    async fn close(self: Box<Self>) {
        if let Some((channel, consumer)) = &self.open {
            let closed = async {
                channel.basic_cancel(consumer.tag(), BasicCancelOptions::default()).await?;
                // It has no effect, and is answered when the channel has done all that came before.
                channel.channel_flow(ChannelFlowOptions { active: true }).await?;
                channel.close(200, "done".into()).await
            };
            drop(timeout(self.link.limit, closed).await);
        }
        self.link.stop();
    }
}

struct Held {
    link: Arc<Link>,
    /// `None` once it is acknowledged.
    acker: Option<Acker>,
}

#[async_trait]
impl Remove for Held {
    async fn remove(&mut self) -> Result<(), BrokerError> {
        let Some(acker) = &self.acker else { return Ok(()) };
        match timeout(self.link.limit, acker.ack(BasicAckOptions::default())).await {
            Ok(Ok(true)) => {
                self.acker = None;
                Ok(())
            }
            // it has returned to its queue with its channel
            Ok(Ok(false) | Err(_)) => Err(BrokerError::new(ErrorKind::Closed, "the channel of the message has closed")),
            Err(_) => Err(Failure::transient("rabbitmq: no acknowledgement in time").into()),
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // best effort: with the channel, all returns
        if let (Some(acker), Ok(runtime)) = (self.acker.take(), Handle::try_current()) {
            runtime.spawn(async move { acker.reject(BasicRejectOptions { requeue: true }).await });
        }
    }
}
