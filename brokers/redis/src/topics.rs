//! Announcements: one connection for all subscriptions of this process.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use redis::aio::{PubSubSink, PubSubStream};
use redis::{Msg, RedisResult, Value};
use runcast_broker::{Backoff, Name};
use runcast_broker_remote::{Change, Failure, Topics};
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::keys::Keys;
use crate::link::Endpoint;

/// How many channels one SUBSCRIBE names.
const CHUNK: usize = 512;

/// Keeps one connection subscribed to what is watched, for ever.
pub(crate) async fn subscribe(topics: Arc<Topics>, endpoint: Arc<Endpoint>, keys: Keys, limit: Duration) {
    let mut backoff = Backoff::default();
    loop {
        while !topics.is_watched() {
            topics.changed().await;
        }
        let failure = match endpoint.subscriber().await {
            Ok(connection) => {
                let (sink, stream) = connection.split();
                let on = HashSet::new();
                let session = Session { topics: &topics, endpoint: &endpoint, keys: &keys, limit, sink, on };
                session.run(stream, &mut backoff).await
            }
            Err(failure) => failure,
        };
        tracing::debug!(error = &*failure.text, "announcements are interrupted");
        topics.failed(&failure);
        tokio::time::sleep(backoff.next()).await;
    }
}

/// The life of one connection.
struct Session<'a> {
    topics: &'a Topics,
    endpoint: &'a Endpoint,
    keys: &'a Keys,
    limit: Duration,
    sink: PubSubSink,
    /// What the server has confirmed.
    on: HashSet<Name>,
}

impl Session<'_> {
    /// Returns why the connection is of no more use.
    async fn run(mut self, stream: PubSubStream, backoff: &mut Backoff) -> Failure {
        self.topics.begin();
        if let Err(failure) = self.reconcile(true).await {
            return failure;
        }
        *backoff = Backoff::default();
        self.listen(stream).await
    }

    async fn listen(mut self, mut stream: PubSubStream) -> Failure {
        // a connection that has gone silent is found out by asking
        let mut heartbeat = interval(self.limit.max(Duration::from_secs(1)) * 2);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let step = tokio::select! {
                message = stream.next() => match message {
                    Some(message) => {
                        self.hand_out(&message);
                        Ok(())
                    }
                    None => Err(Failure::transient("redis: the connection for announcements has ended")),
                },
                () = self.topics.changed() => self.reconcile(false).await,
                _ = heartbeat.tick() => self.ping().await,
            };
            if let Err(failure) = step {
                return failure;
            }
        }
    }

    fn hand_out(&self, message: &Msg) {
        let Some(topic) = self.keys.topic_of(message.get_channel_name()) else { return };
        let payload = Bytes::copy_from_slice(message.get_payload_bytes());
        self.topics.hand_out(&topic, &payload);
    }

    /// Subscribes to what came and unsubscribes from what went, then tells those who wait for it. On
    /// a `fresh` connection the others read a gap: they have missed what came in between.
    async fn reconcile(&mut self, fresh: bool) -> Result<(), Failure> {
        let Change { came: wanted, went: unwanted } = self.topics.change();
        let channels = |topics: &[Name], on: bool| -> Vec<String> {
            topics.iter().filter(|topic| self.on.contains(*topic) == on).map(|topic| self.keys.topic(topic)).collect()
        };
        let (came, went) = (channels(&wanted, false), channels(&unwanted, true));
        for channels in came.chunks(CHUNK) {
            self.limited(self.sink.clone().subscribe(channels)).await?;
        }
        for channels in went.chunks(CHUNK) {
            self.limited(self.sink.clone().unsubscribe(channels)).await?;
        }
        for topic in &unwanted {
            self.on.remove(topic);
        }
        self.topics.bound(&wanted, fresh);
        self.on.extend(wanted);
        Ok(())
    }

    async fn ping(&self) -> Result<(), Failure> {
        self.limited(self.sink.clone().ping::<Value>()).await.map(drop)
    }

    async fn limited<T>(&self, call: impl Future<Output = RedisResult<T>>) -> Result<T, Failure> {
        match timeout(self.limit, call).await {
            Ok(done) => done.map_err(|error| self.endpoint.failure(&error)),
            Err(_) => Err(Failure::transient("redis: no answer in time on the connection for announcements")),
        }
    }
}
