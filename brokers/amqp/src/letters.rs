//! Dead letters. A queue shows its messages only to who takes them: so they are taken, looked at, and
//! returned with the channel they came over, which keeps their order.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::StreamExt;
use lapin::Channel;
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions, QueuePurgeOptions};
use lapin::types::{FieldTable, ShortString};
use runcast_broker::{BrokerError, DeadLetter, Name};
use runcast_broker_remote::Failure;
use tokio::time::{Instant, timeout};

use crate::link::Link;
use crate::queues::{Marks, Queues, letter};

/// How long the server may take to show the next of the letters it has.
const SHOWN: Duration = Duration::from_secs(1);

/// How long letters may take to return.
const RETURN: Duration = Duration::from_secs(1);

pub(crate) struct Letters {
    link: Arc<Link>,
    queues: Arc<Queues>,
    /// One at a time: whoever looks has the letters, and others would see none.
    looking: tokio::sync::Mutex<()>,
}

impl Letters {
    pub(crate) fn new(link: &Arc<Link>, queues: &Arc<Queues>) -> Self {
        Self { link: Arc::clone(link), queues: Arc::clone(queues), looking: tokio::sync::Mutex::default() }
    }

    pub(crate) async fn list(
        &self,
        queue: &Name,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<DeadLetter>, BrokerError> {
        // from the beginning, no more are taken than asked for
        let most = after.is_none().then_some(limit);
        self.look(queue, async |channel, dead, letters| {
            let mut page = Page { after, limit, exact: Vec::new(), later: Vec::new(), seen: after.is_none() };
            let most = most.map_or(letters, |most| u32::try_from(most).unwrap_or(u32::MAX).min(letters));
            read(channel, dead, most, |delivery| page.turn(delivery)).await?;
            Ok((page.letters(), 0))
        })
        .await
    }

    pub(crate) async fn requeue(&self, queue: &Name, id: &str) -> Result<bool, BrokerError> {
        let moved = self.look(queue, async |channel, dead, letters| {
            let mut found = None;
            read(channel, dead, letters, |delivery| {
                if letter(&delivery.properties, &delivery.data).0 == id {
                    found = Some((delivery.delivery_tag, std::mem::take(&mut delivery.data)));
                }
                found.is_none()
            })
            .await?;
            let Some((tag, message)) = found else { return Ok((Ok(false), 0)) };
            let marks = Marks { redelivered: true, letter: None };
            if let Err(error) = self.queues.publish(queue, &message, marks).await {
                return Ok((Err(error), 0));
            }
            channel.basic_ack(tag, BasicAckOptions::default()).await?;
            // its answer comes after the letter has gone
            channel.basic_qos(0, BasicQosOptions::default()).await?;
            Ok((Ok(true), 1))
        });
        moved.await?
    }

    pub(crate) async fn purge(&self, queue: &Name) -> Result<u64, BrokerError> {
        self.look(queue, async |channel, dead, letters| {
            let purged = channel.queue_purge(dead.clone(), QueuePurgeOptions::default()).await?;
            Ok((u64::from(purged), letters))
        })
        .await
    }

    /// What `look` gives on a channel of its own, told how many letters there are; it says how many of
    /// them it has removed. However it ends, all others return; usually before this does.
    async fn look<T>(
        &self,
        queue: &Name,
        look: impl AsyncFnOnce(&Channel, &ShortString, u32) -> lapin::Result<(T, u32)>,
    ) -> Result<T, BrokerError> {
        let late = || Failure::transient("rabbitmq: the dead letters are being looked at");
        let looking = timeout(self.link.limit, self.looking.lock()).await.map_err(|_| late())?;
        let looked = self.link.within(self.link.limit, async |session| {
            let looked = async {
                let channel = session.connection.create_channel().await?;
                let (_, letters) = self.queues.declare(&channel, queue).await?;
                let (looked, removed) = look(&channel, &self.queues.names.dead(queue), letters).await?;
                channel.close(200, "done".into()).await?;
                let channel = session.connection.create_channel().await?;
                let since = Instant::now();
                while since.elapsed() < RETURN
                    && self.queues.declare(&channel, queue).await?.1 < letters.saturating_sub(removed)
                {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                Ok(looked)
            };
            looked.await.map_err(|error| self.link.failure(&error))
        });
        let looked = looked.await;
        drop(looking);
        Ok(looked?)
    }
}

/// The letters of one page, while they are read.
struct Page<'a> {
    after: Option<&'a str>,
    limit: usize,
    /// What comes after the letter named.
    exact: Vec<DeadLetter>,
    /// In case it is gone: what is younger.
    later: Vec<DeadLetter>,
    seen: bool,
}

impl Page<'_> {
    /// Whether to go on.
    fn turn(&mut self, delivery: &mut Delivery) -> bool {
        let (id, reason) = letter(&delivery.properties, &delivery.data);
        if self.after == Some(&*id) {
            self.seen = true;
            self.later.clear();
            return self.limit > 0;
        }
        let younger = self.after.is_none_or(|after| *id > *after);
        let page = if self.seen { &mut self.exact } else { &mut self.later };
        if (self.seen || younger) && page.len() < self.limit {
            page.push(DeadLetter { id, message: Bytes::from(std::mem::take(&mut delivery.data)), reason });
        }
        self.exact.len() < self.limit
    }

    fn letters(self) -> Vec<DeadLetter> {
        if self.seen { self.exact } else { self.later }
    }
}

/// Takes letters, oldest first, until it has `most` or `turn` says that this was enough.
async fn read(
    channel: &Channel,
    queue: &ShortString,
    most: u32,
    mut turn: impl FnMut(&mut Delivery) -> bool,
) -> lapin::Result<()> {
    if most == 0 {
        return Ok(());
    }
    // one subscription for all: the letters of each return in order
    let most = u16::try_from(most).unwrap_or(u16::MAX);
    channel.basic_qos(most, BasicQosOptions::default()).await?;
    let options = BasicConsumeOptions::default();
    let mut shown = channel.basic_consume(queue.clone(), "letters".into(), options, FieldTable::default()).await?;
    for _ in 0..most {
        // fewer come when somebody else takes some
        let Ok(Some(delivery)) = timeout(SHOWN, shown.next()).await else { return Ok(()) };
        if !turn(&mut delivery?) {
            return Ok(());
        }
    }
    Ok(())
}

/// An id for a letter of now: ids sort by age, as far as clocks agree.
#[expect(clippy::disallowed_methods, reason = "letters of several processes sort by the one clock they share")]
pub(crate) fn new_id() -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    format!("{:013}-{number:08x}-{:04x}", now.as_millis(), runcast_broker::random() % 0x1_0000)
}
