//! Live events between nodes: the owner of a run announces what it shows, and nodes with viewers follow.
//!
//! Announcements may get lost, and may begin in the middle. So a follower has its watch confirmed first,
//! then reads the log from the store, then adds what is announced. What is announced ahead of a gap is
//! held until the store has filled it. The store is asked again whenever something seems to be missing,
//! and [`check`] looks from time to time how the logs stand there: a lost final event hangs nobody, and
//! without the broker streams go on at the pace of the journal.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use runcast_broker::{Announcement, Broker, BrokerError, Name, Watch};
use tokio::time::timeout;

use super::Feed;
use super::log::RunLog;
use crate::run::{Backoff, RunId, Segment};
use crate::store::StoreError;

/// How often the logs that are followed are looked up in the store.
pub(super) const CHECK: Duration = Duration::from_secs(1);

/// So many logs are looked up at a time.
const HEADS: usize = 1_000;

/// How much is read from the store at a time, in bytes.
const READ_BYTES: usize = 256 * 1024;

/// How much is held ahead of a gap, in bytes; what comes beyond that is read from the store.
const HELD_BYTES: usize = 1 << 20;

/// The first announcements of an attempt do not wait for more to come along: its first tokens are not
/// held back.
const PROMPT: u32 = 4;

/// How long the broker may take to take an announcement, or to confirm a watch.
const PATIENCE: Duration = Duration::from_secs(5);

/// The waits for a gap to be filled, and for a broker that is away.
const RETRY: Backoff = Backoff { base: Duration::from_millis(5), max: Duration::from_secs(5) };

/// The format of an announcement. Another one is not understood, and read from the store instead.
const FORMAT: u8 = 1;

/// How live events travel.
pub(crate) struct Live {
    /// What carries them.
    pub(crate) broker: Arc<dyn Broker>,
    /// How long events gather before they are announced.
    pub(crate) window: Duration,
}

/// The topic of the live events of run `id`.
fn topic(id: RunId) -> Name {
    Name::new(format!("run:{id}")).unwrap_or_else(|_| unreachable!("ids are names"))
}

/// `FORMAT`, the first number (8 bytes, big endian), the length of the marks (4 bytes), the marks, the
/// frames.
fn encode(segment: &Segment) -> Bytes {
    let marks = segment.encode_marks();
    let mut out = BytesMut::with_capacity(13 + marks.len() + segment.bytes().len());
    out.put_u8(FORMAT);
    out.put_u64(segment.first_seq());
    out.put_u32(u32::try_from(marks.len()).unwrap_or(u32::MAX));
    out.put_slice(&marks);
    out.put_slice(segment.bytes());
    out.freeze()
}

fn decode(mut payload: Bytes) -> Option<Segment> {
    if payload.try_get_u8().ok()? != FORMAT {
        return None;
    }
    let first = payload.try_get_u64().ok()?;
    let marks = payload.try_get_u32().ok()? as usize;
    let marks = (marks <= payload.len()).then(|| payload.split_to(marks))?;
    Segment::decode(first, payload, &marks)
}

impl Live {
    /// Announces a segment of run `id`. What does not arrive is read from the store.
    pub(super) async fn announce(&self, id: RunId, segment: &Segment) {
        let mut payload = encode(segment);
        if payload.len() > self.broker.capabilities().max_message_bytes {
            // An empty one: there is something to be read.
            payload = Bytes::new();
        }
        match timeout(PATIENCE, self.broker.announce(&topic(id), payload)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(run = %id, %error, "cannot announce events"),
            Err(_) => tracing::debug!(run = %id, "announcing events takes too long"),
        }
    }
}

/// Announces what the owner writes to `log`, from event number `first` on, until it lets the log go.
pub(super) async fn announce(live: Arc<Live>, log: Arc<RunLog>, ownership: u64, first: u64) {
    let slot = log.listen();
    let mut sent = first - 1;
    let mut prompt = PROMPT;
    while let Some(segment) = poll_fn(|context| log.poll_announced(sent, ownership, slot, context.waker())).await {
        sent = segment.last_seq();
        live.announce(log.id, &segment).await;
        match prompt {
            _ if segment.ends_the_run() => break,
            0 => tokio::time::sleep(live.window).await,
            _ => prompt -= 1,
        }
    }
    log.unlisten(slot);
}

/// Follows the owner of a log, who is on another node, as long as somebody reads here.
pub(super) async fn follow(feed: Feed, live: Arc<Live>, log: Arc<RunLog>) {
    Follower { feed, live, log, held: VecDeque::new(), held_bytes: 0, gaps: 0 }.follow().await;
}

struct Follower {
    feed: Feed,
    live: Arc<Live>,
    log: Arc<RunLog>,
    /// What was announced ahead of a gap.
    held: VecDeque<Segment>,
    held_bytes: usize,
    /// How often in a row the store could not fill it.
    gaps: u32,
}

impl Follower {
    async fn follow(mut self) {
        let mut watch = None;
        let mut refused = 0;
        // What happened before the watch was in place is in the store.
        let mut look = true;
        while self.log.goes_on_mirroring() {
            if watch.is_none() {
                watch = self.watch(refused).await;
                refused = if watch.is_some() { 0 } else { refused + 1 };
                look = true;
            }
            if look {
                self.read_store().await;
            }
            look = tokio::select! {
                announced = next(&mut watch) => match announced {
                    Ok(Announcement::Payload(payload)) => self.take(payload),
                    Ok(Announcement::Gap) => true,
                    Err(error) => {
                        tracing::debug!(run = %self.log.id, %error, "the watch has ended");
                        watch = None;
                        true
                    }
                },
                () = self.log.nudged() => true,
                () = tokio::time::sleep(RETRY.delay(self.gaps.max(1), 1.0, None)), if !self.held.is_empty() => true,
                () = tokio::time::sleep(CHECK), if watch.is_none() => true,
            };
        }
    }

    async fn watch(&self, refused: u32) -> Option<Box<dyn Watch>> {
        if refused > 0 {
            // Reading the store goes on meanwhile.
            let wait = RETRY.delay(refused + 4, rand::random::<f64>(), None).min(CHECK);
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.log.nudged() => {}
            }
        }
        match timeout(PATIENCE, self.live.broker.watch(&topic(self.log.id))).await {
            Ok(Ok(watch)) => return Some(watch),
            Ok(Err(error)) => tracing::debug!(run = %self.log.id, %error, "cannot watch a run"),
            Err(_) => tracing::debug!(run = %self.log.id, "watching a run takes too long"),
        }
        None
    }

    /// Adds what was announced. True: the store has to be read.
    fn take(&mut self, payload: Bytes) -> bool {
        let Some(segment) = decode(payload) else { return true };
        if self.log.announced(&segment, self.feed.settings().log_memory) {
            return false;
        }
        let first = self.held.is_empty();
        if self.held_bytes + segment.bytes().len() <= HELD_BYTES {
            self.held_bytes += segment.bytes().len();
            self.held.push_back(segment);
        }
        first
    }

    /// Adds what the store has, then what was held.
    async fn read_store(&mut self) {
        if let Err(error) = self.restore().await {
            tracing::debug!(run = %self.log.id, %error, "cannot read the log for its viewers; trying again");
        }
        while let Some(segment) = self.held.pop_front() {
            if !self.log.announced(&segment, self.feed.settings().log_memory) {
                self.held.push_front(segment);
                self.gaps += 1;
                return;
            }
            self.held_bytes -= segment.bytes().len();
        }
        self.gaps = 0;
    }

    async fn restore(&self) -> Result<(), StoreError> {
        loop {
            let segments = self.feed.shared.store.segments(self.log.id, self.log.visible(), READ_BYTES).await?;
            if segments.is_empty() {
                return Ok(());
            }
            for segment in &segments {
                self.log.restored(segment, self.feed.settings().log_memory);
            }
            if self.log.is_owned() {
                return Ok(());
            }
        }
    }
}

async fn next(watch: &mut Option<Box<dyn Watch>>) -> Result<Announcement, BrokerError> {
    match watch {
        Some(watch) => watch.next().await,
        None => std::future::pending().await,
    }
}

/// Looks up how the logs that are followed stand in the store, and lets those be read that are behind.
pub(super) async fn check(feed: &Feed) {
    let followed: Vec<_> = feed.logs().into_iter().filter(|log| log.is_mirrored()).collect();
    for logs in followed.chunks(HEADS) {
        let ids: Vec<_> = logs.iter().map(|log| log.id).collect();
        let heads = match feed.shared.store.heads(&ids).await {
            Ok(heads) => heads,
            Err(error) => return tracing::debug!(%error, "cannot look up the logs that are followed"),
        };
        let heads: std::collections::HashMap<_, _> = heads.into_iter().map(|head| (head.run, head)).collect();
        for log in logs {
            match heads.get(&log.id) {
                Some(head) => {
                    log.stored_up_to(head.last_seq, feed.settings().log_memory);
                    if head.last_seq > log.visible() {
                        log.nudge();
                    }
                }
                None => feed.removed(log.id),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::{Event, Timestamp};

    #[test]
    fn what_is_announced_arrives_and_rubbish_is_refused() {
        let events = ["a", "ü"].map(|text| Event::MessageDelta { text: text.to_owned() });
        let segment = Segment::encode(41, &events, Timestamp::from_millis(7));
        let payload = encode(&segment);
        assert_eq!(decode(payload.clone()), Some(segment));
        for cut in 0..payload.len() {
            assert_eq!(decode(payload.slice(..cut)), None, "cut after {cut}");
        }
        let mut other = payload.to_vec();
        other[0] = 2;
        assert_eq!(decode(other.into()), None);
    }
}
