//! A viewer: a cursor into one run's log, as a stream of bytes for a socket.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, Stream, StreamExt};
use tokio::time::{Instant, Sleep};

use super::log::{End, Read, RunLog};
use super::{Feed, Shown};
use crate::run::Segment;
use crate::store::StoreError;

/// What a viewer is sent when nothing has happened for a while: a comment, which keeps proxies awake
/// and shows peers that have vanished.
const HEARTBEAT: Bytes = Bytes::from_static(b": still here\n\n");

/// How much a viewer that is behind reads from the store at a time, in bytes.
const READ_BYTES: usize = 128 * 1024;

/// A cursor into one run's log. As a stream it yields the frames after the cursor, everything that is
/// ready in as few pieces as there are, and ends after the final event, or without one when the log is
/// cut (shutdown, removal) or cannot be read. It never keeps anything from going on: it is polled by
/// its socket alone. Dropping it is leaving.
pub struct Viewer {
    feed: Feed,
    log: Arc<RunLog>,
    slot: usize,
    watches: bool,
    seen: u64,
    reading: Option<BoxFuture<'static, Result<Option<Vec<Segment>>, StoreError>>>,
    loaded: VecDeque<Segment>,
    heartbeat: Option<(Duration, Pin<Box<Sleep>>)>,
    end: Option<End>,
}

impl Viewer {
    pub(super) fn new(feed: Feed, log: Arc<RunLog>, slot: usize) -> Self {
        let loaded = VecDeque::new();
        Self { feed, log, slot, watches: false, seen: 0, reading: None, loaded, heartbeat: None, end: None }
    }

    pub(super) fn log(&self) -> &Arc<RunLog> {
        &self.log
    }

    pub(super) fn shown(&self) -> Option<Shown> {
        self.log.shown()
    }

    /// The cursor stands after event number `seen`.
    #[must_use]
    pub(crate) fn after(mut self, seen: u64) -> Self {
        self.seen = seen;
        self
    }

    /// From now on it is one who watches.
    #[must_use]
    pub(super) fn watching(mut self) -> Self {
        if !self.watches {
            self.log.watch();
            self.watches = true;
        }
        self
    }

    /// Sends a comment whenever nothing has been sent for `every`.
    #[must_use]
    pub fn with_heartbeat(mut self, every: Duration) -> Self {
        self.heartbeat = Some((every, Box::pin(tokio::time::sleep(every))));
        self
    }

    /// Waits until the log has ended and says whether with a final event.
    pub async fn ended(mut self) -> bool {
        self.heartbeat = None;
        while self.next().await.is_some() {}
        self.end == Some(End::Final)
    }

    fn poll_frames(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        loop {
            if let Some(segment) = self.loaded.pop_front() {
                let frames = segment.after(self.seen);
                self.seen = self.seen.max(segment.last_seq());
                if !frames.is_empty() {
                    return Poll::Ready(Some(frames));
                }
                continue;
            }
            match self.log.read(self.seen, self.slot, context.waker()) {
                Read::Frames(frames, last) => {
                    self.seen = last;
                    return Poll::Ready(Some(frames));
                }
                Read::Wait => return Poll::Pending,
                Read::End(end) => {
                    self.end = Some(end);
                    return Poll::Ready(None);
                }
                Read::Stored { until } => match ready!(self.poll_store(context)) {
                    Ok(Some(segments)) if segments.is_empty() => self.seen = until,
                    Ok(Some(segments)) => self.loaded = segments.into(),
                    // What memory still holds of it would lack what lies between.
                    Ok(None) => {
                        // Nor is it to be shown to who comes back.
                        self.feed.removed(self.log.id);
                        self.end = Some(End::Cut);
                        return Poll::Ready(None);
                    }
                    Err(error) => {
                        // The viewer comes back with its number, and by then the store may answer.
                        tracing::debug!(run = %self.log.id, %error, "cannot read the log for a viewer");
                        return Poll::Ready(None);
                    }
                },
            }
        }
    }

    /// The next segments; none of a run that was removed.
    fn poll_store(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<Vec<Segment>>, StoreError>> {
        let reading = self.reading.get_or_insert_with(|| {
            let (store, id, seen) = (self.feed.store(), self.log.id, self.seen);
            async move {
                let segments = store.segments(id, seen, READ_BYTES).await?;
                let removed = segments.is_empty() && store.heads(&[id]).await?.is_empty();
                Ok(Some(segments).filter(|_| !removed))
            }
            .boxed()
        });
        let read = ready!(reading.poll_unpin(context));
        self.reading = None;
        Poll::Ready(read)
    }
}

impl Stream for Viewer {
    type Item = Bytes;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let viewer = &mut *self;
        let frames = viewer.poll_frames(context);
        let Some((every, timer)) = &mut viewer.heartbeat else { return frames };
        match frames {
            Poll::Ready(frames) => {
                timer.as_mut().reset(Instant::now() + *every);
                Poll::Ready(frames)
            }
            Poll::Pending => {
                ready!(timer.as_mut().poll(context));
                timer.as_mut().reset(Instant::now() + *every);
                Poll::Ready(Some(HEARTBEAT))
            }
        }
    }
}

impl Drop for Viewer {
    fn drop(&mut self) {
        self.feed.leave(&self.log, self.slot, self.watches);
    }
}
