//! The task behind a consumer: gets messages when they are asked for, and gives them back.

use runcast_broker::Backoff;
use runcast_broker_remote::Failure;
use std::collections::BTreeSet;
use std::future::ready;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{SelectAll, Stream, once};
use futures_util::{FutureExt, StreamExt};
use lapin::message::Delivery;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicGetOptions, BasicQosOptions, BasicRejectOptions};
use lapin::types::{FieldTable, ShortString};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use crate::consumer::{Life, Shared, Step, Taken};
use crate::link::Link;
use crate::queues::{self, Queues};

/// How often an idle channel is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// How often subscriptions are compared with their queues. It bounds what a lost one costs.
const COMPARE: Duration = Duration::from_secs(5);

/// How long messages that are there may take to come.
const COMING: Duration = Duration::from_millis(100);

/// How many messages are given back before the server has to answer. When too many are on their way
/// it collects them, and loses their order.
const BACK: usize = 16;

pub(crate) struct Fetcher {
    pub(crate) shared: Arc<Shared>,
    pub(crate) link: Arc<Link>,
    pub(crate) queues: Arc<Queues>,
}

/// What the server pushes: which subscription, of which queue, and `None` when it has ended.
type Push = (u64, usize, Option<lapin::Result<Delivery>>);

/// The subscriptions of one channel. One ends with its first message, so that nothing comes that is
/// not wanted.
#[derive(Default)]
struct Subscriptions {
    streams: SelectAll<Pin<Box<dyn Stream<Item = Push> + Send>>>,
    /// For each queue the number of the one that is on.
    on: Vec<Option<u64>>,
    last: u64,
    /// How many messages the server pushes to those that are made now.
    pushed: u16,
}

impl Fetcher {
    /// Works until the consumer is gone; then gives back what it held.
    pub(crate) async fn run(self) {
        let mut backoff = Backoff::default();
        while !self.shared.gone.is_cancelled() {
            let Err(failure) = self.live(&mut backoff).await else { break };
            self.shared.begin(None);
            self.shared.failed(&failure);
            tracing::debug!(consumer = self.shared.name, error = &*failure.text, "a consumer is interrupted");
            let again = async {
                tokio::time::sleep(backoff.next()).await;
                self.link.up(failure.kind).await;
            };
            self.shared.gone.run_until_cancelled(again).await;
        }
    }

    /// The life of one channel. `Ok` when the consumer is gone.
    async fn live(&self, backoff: &mut Backoff) -> Result<(), Failure> {
        let gone = &self.shared.gone;
        let Some(life) = gone.run_until_cancelled(self.begin()).await else { return Ok(()) };
        let life = life?;
        self.shared.begin(Some(Arc::clone(&life)));
        *backoff = Backoff::default();
        let mut subscriptions = Subscriptions { on: vec![None; self.shared.queues.len()], ..Default::default() };
        let worked = self.work(&life, &mut subscriptions).await;
        if worked.is_ok() {
            // best effort: with the channel, all returns
            let (_, held) = self.shared.end();
            let ended = async {
                self.rest(&life, &mut subscriptions).await?;
                let (_, pushed) = self.shared.end();
                self.give_back(&life, held.into_iter().chain(pushed).collect()).await
            };
            if let Err(failure) = ended.await {
                tracing::debug!(
                    consumer = self.shared.name,
                    error = &*failure.text,
                    "deliveries return with the channel"
                );
            }
        }
        let closed = life.channel.close(200, "done".into());
        drop(timeout(Duration::from_secs(1), closed).await);
        worked
    }

    async fn begin(&self) -> Result<Arc<Life>, Failure> {
        let session = self.link.session(Instant::now() + self.link.limit).await?;
        let opened = async {
            let channel = session.connection.create_channel().await?;
            for queue in &self.shared.queues {
                self.queues.declare(&channel, queue).await?;
            }
            lapin::Result::Ok(channel)
        };
        let number = session.number;
        let channel = self.limited_on(number, opened).await?;
        Ok(Arc::new(Life { number, channel }))
    }

    async fn work(&self, life: &Life, subscriptions: &mut Subscriptions) -> Result<(), Failure> {
        let (mut compared, mut suspect) = (Instant::now(), false);
        loop {
            match self.shared.step() {
                Step::End => return Ok(()),
                Step::Return(tags) => self.give_back(life, tags).await?,
                Step::Look { queues, wait } => self.look(life, subscriptions, queues, wait).await?,
                Step::Rest => {
                    self.rest(life, subscriptions).await?;
                    self.shared.rest();
                }
                Step::Idle(until) => {
                    let look = Instant::now() + LOOK;
                    tokio::select! {
                        biased;
                        () = self.shared.gone.cancelled() => {}
                        Some(push) = subscriptions.streams.next() => self.pushed(life, subscriptions, push).await?,
                        () = self.shared.work.notified() => {}
                        () = sleep_until(until.unwrap_or(look).min(look)) => {}
                    }
                    if !life.channel.status().connected() {
                        return Err(Failure::transient("rabbitmq: the channel of a consumer has closed"));
                    }
                    if compared.elapsed() >= COMPARE {
                        suspect = self.compare(life, suspect).await?;
                        compared = Instant::now();
                    }
                }
            }
        }
    }

    /// Looks for a message in the first queues, in order of priority, leaving out those that the
    /// server pushes from.
    async fn look(
        &self,
        life: &Life,
        subscriptions: &mut Subscriptions,
        queues: usize,
        wait: bool,
    ) -> Result<(), Failure> {
        for number in (0..queues).filter(|number| !self.shared.pushes_from(*number)) {
            let name = self.queues.names.queue(&self.shared.queues[number]);
            let got = self.limited(life, life.channel.basic_get(name, BasicGetOptions::default())).await?;
            if let Some(got) = got {
                let more = self.shared.more(got.message_count);
                let mut found = vec![taken(got.delivery)];
                if more > 0 {
                    // while these are handed out, what comes in an earlier queue shows by itself
                    for earlier in (0..number).filter(|earlier| !self.shared.pushes_from(*earlier)) {
                        self.subscribe(life, subscriptions, earlier).await?;
                    }
                    found.extend(self.take(life, subscriptions, number, more).await?);
                }
                self.shared.looked(Some((number, found)));
                return Ok(());
            }
        }
        self.shared.looked(None);
        if wait && queues == self.shared.queues.len() {
            for number in 0..queues {
                if !self.shared.pushes_from(number) {
                    self.subscribe(life, subscriptions, number).await?;
                }
            }
        }
        Ok(())
    }

    /// Takes up to so many messages, by a subscription that is over when they have come.
    async fn take(
        &self,
        life: &Life,
        subscriptions: &mut Subscriptions,
        number: usize,
        most: u16,
    ) -> Result<Vec<Taken>, Failure> {
        let (id, mut consumer) = self.consume(life, subscriptions, number, most).await?;
        let (mut found, until) = (Vec::new(), Instant::now() + COMING);
        while found.len() < usize::from(most) {
            // fewer come when others take some
            let Ok(Some(delivery)) = timeout_at(until, consumer.next()).await else { break };
            found.push(taken(delivery.map_err(|error| self.link.failure(&error))?));
        }
        self.limited(life, life.channel.basic_cancel(self.tag(id), BasicCancelOptions::default())).await?;
        while let Some(Some(Ok(delivery))) = consumer.next().now_or_never() {
            found.push(taken(delivery));
        }
        Ok(found)
    }

    async fn consume(
        &self,
        life: &Life,
        subscriptions: &mut Subscriptions,
        number: usize,
        pushed: u16,
    ) -> Result<(u64, lapin::Consumer), Failure> {
        if subscriptions.pushed != pushed {
            self.limited(life, life.channel.basic_qos(pushed, BasicQosOptions::default())).await?;
            subscriptions.pushed = pushed;
        }
        subscriptions.last += 1;
        let id = subscriptions.last;
        let name = self.queues.names.queue(&self.shared.queues[number]);
        let (options, tag) = (BasicConsumeOptions::default(), self.tag(id));
        let consumer = life.channel.basic_consume(name, tag, options, FieldTable::default());
        Ok((id, self.limited(life, consumer).await?))
    }

    async fn subscribe(&self, life: &Life, subscriptions: &mut Subscriptions, number: usize) -> Result<(), Failure> {
        let (id, consumer) = self.consume(life, subscriptions, number, 1).await?;
        let stream = consumer.map(move |delivery| (id, number, Some(delivery)));
        subscriptions.streams.push(Box::pin(stream.chain(once(ready((id, number, None))))));
        subscriptions.on[number] = Some(id);
        self.shared.pushes(number, true);
        Ok(())
    }

    fn tag(&self, id: u64) -> ShortString {
        format!("{}.{id}", self.shared.name).into()
    }

    async fn pushed(&self, life: &Life, subscriptions: &mut Subscriptions, push: Push) -> Result<(), Failure> {
        let (id, number, delivery) = push;
        let on = subscriptions.on[number] == Some(id);
        match delivery {
            Some(Ok(delivery)) => {
                if on {
                    // before the message can be settled, which would have the next one pushed
                    self.unsubscribe(life, subscriptions, number).await?;
                }
                self.shared.came(number, taken(delivery));
            }
            Some(Err(error)) => return Err(self.link.failure(&error)),
            // the queue is gone or moves
            None if on => return Err(Failure::transient("rabbitmq: the server has ended a subscription")),
            None => {}
        }
        Ok(())
    }

    async fn unsubscribe(&self, life: &Life, subscriptions: &mut Subscriptions, number: usize) -> Result<(), Failure> {
        let Some(id) = subscriptions.on[number].take() else { return Ok(()) };
        self.shared.pushes(number, false);
        let cancelled = life.channel.basic_cancel(self.tag(id), BasicCancelOptions::default());
        self.limited(life, cancelled).await
    }

    /// Ends all subscriptions, and takes what was still on its way.
    async fn rest(&self, life: &Life, subscriptions: &mut Subscriptions) -> Result<(), Failure> {
        for number in 0..self.shared.queues.len() {
            self.unsubscribe(life, subscriptions, number).await?;
        }
        while let Some(Some((_, number, delivery))) = subscriptions.streams.next().now_or_never() {
            if let Some(Ok(delivery)) = delivery {
                self.shared.came(number, taken(delivery));
            }
        }
        Ok(())
    }

    /// Fails when a subscription is none any more. Returns whether there are messages that were not
    /// pushed, or not yet: the next time that is a failure too.
    async fn compare(&self, life: &Life, suspect: bool) -> Result<bool, Failure> {
        let mut missed = false;
        for number in (0..self.shared.queues.len()).filter(|number| self.shared.pushes_from(*number)) {
            let queue = &self.shared.queues[number];
            let (ready, consumers) = self.limited(life, self.queues.look(&life.channel, queue)).await?;
            missed |= ready > 0;
            if consumers == 0 || (suspect && ready > 0) {
                return Err(Failure::transient("rabbitmq: a subscription has ended unheard"));
            }
        }
        Ok(missed)
    }

    async fn give_back(&self, life: &Life, tags: BTreeSet<u64>) -> Result<(), Failure> {
        let tags: Vec<u64> = tags.into_iter().collect();
        for tags in tags.chunks(BACK) {
            for tag in tags {
                let rejected = life.channel.basic_reject(*tag, BasicRejectOptions { requeue: true });
                self.limited(life, rejected).await?;
            }
            self.limited(life, life.answer()).await?;
        }
        Ok(())
    }

    async fn limited<T>(&self, life: &Life, call: impl Future<Output = lapin::Result<T>>) -> Result<T, Failure> {
        self.limited_on(life.number, call).await
    }

    async fn limited_on<T>(&self, number: u64, call: impl Future<Output = lapin::Result<T>>) -> Result<T, Failure> {
        match timeout(self.link.limit, call).await {
            Ok(done) => done.map_err(|error| self.link.failure(&error)),
            Err(_) => {
                self.link.broke(number);
                Err(Failure::transient("rabbitmq: no answer in time to a consumer"))
            }
        }
    }
}

fn taken(delivery: Delivery) -> Taken {
    let redelivered = delivery.redelivered || queues::redelivered(&delivery.properties);
    Taken { tag: delivery.delivery_tag, redelivered, message: Bytes::from(delivery.data) }
}
