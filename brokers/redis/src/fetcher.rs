//! The task behind a consumer: takes messages when they are asked for, and keeps its lease.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{BoxFuture, OptionFuture};
use redis::aio::MultiplexedConnection;
use runcast_broker::{Backoff, BrokerError};
use runcast_broker_remote::Failure;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until, timeout};

use crate::consumer::{Place, Shared, Step, Taken};
use crate::keys::Keys;
use crate::link::Link;
use crate::scripts::{KEEP, TAKE};

/// The longest wait for news. It bounds what a lost wake-up costs.
const BLOCK: Duration = Duration::from_secs(5);

pub(crate) struct Fetcher {
    pub(crate) shared: Arc<Shared>,
    pub(crate) link: Arc<Link>,
    pub(crate) keys: Keys,
    pub(crate) lease: Duration,
    pub(crate) limit: Duration,
}

/// A wait for news, which gives its connection back.
type Wait = BoxFuture<'static, Result<MultiplexedConnection, Failure>>;

/// Where news would show: the ids after which something is new, and when to look in any case.
struct News {
    ids: Vec<String>,
    within: Duration,
}

impl Fetcher {
    /// Works until the consumer is gone; then gives back what it held.
    pub(crate) async fn run(self) {
        let gone = self.shared.gone.clone();
        gone.run_until_cancelled(self.work()).await;
        // best effort: what cannot be given back now is taken over when the lease is over
        if let Err(error) = self.keep(&[], true).await {
            tracing::debug!(%error, consumer = self.shared.name, "deliveries return when the lease runs out");
        }
    }

    async fn work(&self) {
        let third = self.lease / 3;
        let mut renew = interval_at(Instant::now() + third, third);
        renew.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut backoff = Backoff::default();
        // at most one wait at a time, and its connection in between
        let mut wait = OptionFuture::<Wait>::default();
        let (mut waits, mut waiter) = (false, None);
        loop {
            let done = match self.shared.step(waits) {
                Step::End => return,
                Step::Keep(held) => self.keep(&held, false).await,
                Step::Take(most) => self.take(most).await.map(|(taken, news)| {
                    if self.shared.took(taken) {
                        wait = Some(self.wait(waiter.take(), news)).into();
                        waits = true;
                    }
                }),
                Step::Idle(lingers) => {
                    let lingers = OptionFuture::from(lingers.map(sleep_until));
                    tokio::select! {
                        () = self.shared.work.notified() => Ok(()),
                        _ = renew.tick() => {
                            self.shared.check();
                            Ok(())
                        }
                        Some(waited) = &mut wait, if waits => {
                            waits = false;
                            waited.map_err(BrokerError::from).map(|connection| {
                                waiter = Some(connection);
                                self.shared.recovered();
                                backoff = Backoff::default();
                            })
                        }
                        Some(()) = lingers => Ok(()),
                    }
                }
            };
            if let Err(error) = done {
                self.shared.failed(&error);
                tokio::time::sleep(backoff.next()).await;
                self.link.up().await;
            }
        }
    }

    /// Takes up to `room` messages; without any, says where to wait for news.
    async fn take(&self, room: usize) -> Result<(Vec<Taken>, News), BrokerError> {
        let mut script = TAKE.key(self.keys.consumers());
        for queue in &self.shared.queues {
            script.key(self.keys.queue(queue)).key(self.keys.bell(queue)).key(self.keys.delayed(queue));
        }
        script.arg(&self.shared.name).arg(crate::millis(self.lease)).arg(room);
        type Reply = (Vec<(usize, bool, String, Bytes)>, Vec<String>, i64);
        let (taken, ids, due) = self.link.script::<Reply>(&script).await?;
        let taken = taken.into_iter().map(|(queue, redelivered, id, message)| Taken {
            place: (queue, id),
            redelivered,
            message,
        });
        let within = u64::try_from(due).map_or(BLOCK, |due| BLOCK.min(Duration::from_millis(due)));
        Ok((taken.collect(), News { ids, within }))
    }

    /// Renews the lease and says what is held: everything else returns to its queues. With `leaves`
    /// the consumer is forgotten.
    async fn keep(&self, held: &[Place], leaves: bool) -> Result<(), BrokerError> {
        let mut script = KEEP.key(self.keys.consumers());
        script.arg(&self.shared.name).arg(crate::millis(self.lease)).arg(i32::from(leaves));
        for (number, queue) in self.shared.queues.iter().enumerate() {
            script.key(self.keys.queue(queue)).key(self.keys.bell(queue));
            let ids: Vec<&str> = held.iter().filter(|place| place.0 == number).map(|place| &*place.1).collect();
            script.arg(ids.len()).arg(ids);
        }
        self.link.script::<()>(&script).await
    }

    /// Waits for news on a connection of its own, because a command that blocks holds up all others
    /// behind it. It takes nothing, so a reply that gets lost loses nothing. Gives the connection
    /// back.
    fn wait(&self, waiter: Option<MultiplexedConnection>, news: News) -> Wait {
        let (endpoint, limit) = (Arc::clone(&self.link.endpoint), self.limit);
        // BLOCK 0 would wait for ever
        let block = news.within.as_millis().max(1) as u64;
        let mut command = redis::cmd("XREAD");
        command.arg("COUNT").arg(1).arg("BLOCK").arg(block).arg("STREAMS");
        for queue in &self.shared.queues {
            command.arg(self.keys.queue(queue)).arg(self.keys.bell(queue));
        }
        command.arg(news.ids);
        Box::pin(async move {
            let mut connection = match waiter {
                Some(waiter) => waiter,
                None => endpoint.connect().await?,
            };
            match timeout(news.within + limit, command.exec_async(&mut connection)).await {
                Ok(Ok(())) => Ok(connection),
                Ok(Err(error)) => Err(endpoint.failure(&error)),
                Err(_) => Err(Failure::transient("redis: no answer in time to a wait for messages")),
            }
        })
    }
}
