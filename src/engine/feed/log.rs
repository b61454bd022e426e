//! One run's log in memory: the end of it, as frames that are shared with every viewer.
//!
//! A viewer is a cursor: it takes all that is visible after its number and waits for more. A slow viewer
//! costs no memory and loses nothing, since what has left the memory is in the store. Numbers are given
//! here, and nowhere else while the run is live.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Poll, Waker};

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use slab::Slab;
use tokio::sync::Notify;

use crate::engine::leases::Lease;
use crate::run::segment::{encode, end_of};
use crate::run::{Event, Mark, RunId, Segment, Tenant, Timestamp};

/// One run's log. Shared by its writer (the run's actor), its viewers and the feed.
pub(crate) struct RunLog {
    pub(crate) id: RunId,
    pub(crate) tenant: Tenant,
    inner: Mutex<Inner>,
    /// Tells an agent that waits in [`RunLog::room`] that the journal has caught up.
    room: Notify,
    /// Tells the task that follows the owner to look at the store, or that nobody watches any more.
    nudge: Notify,
}

struct Inner {
    /// Memory holds every visible event after this number. `None`: nothing is known of the log yet.
    after: Option<u64>,
    /// Encoded segments, oldest first.
    frozen: VecDeque<Segment>,
    frozen_bytes: usize,
    /// Frames that follow the last frozen segment.
    tail: BytesMut,
    tail_marks: Vec<Mark>,
    tail_first: u64,
    /// The number of the last event that viewers may see.
    visible: u64,
    /// The number of the next event.
    next: u64,
    /// No number beyond this one may be shown.
    reserved: u64,
    /// Everything up to this number is in the store, or on its way there.
    journaled: u64,
    /// Everything up to this number is in the store.
    stored: u64,
    unjournaled_bytes: usize,
    /// A live run's actor writes here.
    owned: bool,
    /// How many owners there have been.
    ownership: u64,
    /// What the owner holds the run by, where a store is shared.
    lease: Option<Arc<Lease>>,
    /// A task follows the owner, who is on another node.
    mirrored: bool,
    /// The attempt is over: agents are told so.
    sealed: bool,
    /// Frames are waiting for the commit they are part of, so nothing new is shown meanwhile.
    held: bool,
    end: Option<End>,
    /// Everybody who reads here.
    readers: usize,
    /// Those of them whose leaving matters to a run that wants to be watched.
    viewers: usize,
    cancel_unwatched: bool,
    wakers: Slab<Option<Waker>>,
}

/// Why no more will come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// The final event is in the log.
    Final,
    /// The run was removed, or this process shuts down: the stream ends without a final event.
    Cut,
}

/// What [`RunLog::push`] did with an event.
#[derive(Debug)]
pub(crate) enum Pushed {
    /// Shown. `first`: it is the first since the journal last looked.
    Shown { first: bool },
    /// Handed back: more must be journaled first. `first`: nobody has been told yet.
    Full(Event),
    /// The attempt is over.
    Sealed,
}

/// What a cursor finds.
pub(crate) enum Read {
    /// Frames, and the number of the last of them.
    Frames(Bytes, u64),
    /// What follows is only in the store; memory begins after this number.
    Stored { until: u64 },
    /// Nothing yet; the waker is kept.
    Wait,
    /// Nothing more will come.
    End(End),
}

impl RunLog {
    pub(super) fn new(id: RunId, tenant: Tenant) -> Arc<Self> {
        let inner = Inner {
            after: None,
            frozen: VecDeque::new(),
            frozen_bytes: 0,
            tail: BytesMut::new(),
            tail_marks: Vec::new(),
            tail_first: 0,
            visible: 0,
            next: 0,
            reserved: 0,
            journaled: 0,
            stored: 0,
            unjournaled_bytes: 0,
            owned: false,
            ownership: 0,
            lease: None,
            mirrored: false,
            sealed: false,
            held: false,
            end: None,
            readers: 0,
            viewers: 0,
            cancel_unwatched: false,
            wakers: Slab::new(),
        };
        Arc::new(Self { id, tenant, inner: Mutex::new(inner), room: Notify::new(), nudge: Notify::new() })
    }

    /// What is known of the log: it reaches `last_seq`, and whether the run has ended. Ignored when
    /// something has been added already, which is newer.
    pub(super) fn loaded(&self, last_seq: u64, ended: bool) {
        let mut inner = self.inner.lock();
        if inner.after.is_none() {
            inner.after = Some(last_seq);
            inner.visible = last_seq;
            inner.next = last_seq + 1;
            if ended {
                inner.end = Some(End::Final);
            }
        }
    }

    /// Adds journaled events that somebody else than an owner has caused. What is known already is
    /// ignored; what leaves a gap (events added out of order) makes viewers read the store.
    pub(super) fn append(&self, segment: &Segment, ended: bool) {
        let mut inner = self.inner.lock();
        if inner.owned || inner.after.is_some() && segment.first_seq() <= inner.visible {
            return;
        }
        inner.append(segment.clone());
        if ended {
            inner.end = Some(End::Final);
        }
        inner.wake();
    }

    /// A run's actor takes the log over, to write the attempt that `started` begins, as long as `lease`
    /// is not over. Returns a number that tells this ownership from others.
    pub(super) fn own(&self, started: &Segment, reserved: u64, lease: Option<Arc<Lease>>) -> u64 {
        let mut inner = self.inner.lock();
        inner.owned = true;
        inner.ownership += 1;
        inner.lease = lease;
        inner.sealed = false;
        inner.held = false;
        inner.reserved = reserved;
        if inner.after.is_none() || started.first_seq() > inner.visible {
            inner.append(started.clone());
        }
        // What was shown before the claim is in the store, or void.
        inner.journaled = inner.visible;
        inner.stored = inner.visible;
        inner.wake();
        inner.ownership
    }

    /// Gives `event` the next number and shows it, unless more must be journaled first.
    pub(crate) fn push(&self, event: Event, at: Timestamp, max_unjournaled: usize) -> Pushed {
        let mut inner = self.inner.lock();
        if inner.sealed || inner.lease.as_ref().is_some_and(|lease| lease.is_over()) {
            return Pushed::Sealed;
        }
        if inner.next > inner.reserved || inner.unjournaled_bytes >= max_unjournaled {
            return Pushed::Full(event);
        }
        let first = inner.unjournaled_bytes == 0;
        inner.encode(&event, at);
        if !inner.held {
            inner.visible = inner.next - 1;
            inner.wake();
        }
        Pushed::Shown { first }
    }

    /// Waits until something has been journaled, or the attempt is over.
    pub(crate) async fn room(&self, max_unjournaled: usize) {
        let notified = self.room.notified();
        tokio::pin!(notified);
        notified.as_mut().enable();
        {
            let inner = self.inner.lock();
            if inner.sealed || inner.next <= inner.reserved && inner.unjournaled_bytes < max_unjournaled {
                return;
            }
        }
        notified.await;
    }

    /// The number that the next event will get.
    pub(crate) fn next_seq(&self) -> u64 {
        self.inner.lock().next
    }

    /// From now on agents are told that the attempt is over. Returns false if they were told before.
    pub(crate) fn seal(&self) -> bool {
        let mut inner = self.inner.lock();
        self.room.notify_waiters();
        !std::mem::replace(&mut inner.sealed, true)
    }

    /// The attempt is over.
    pub(crate) fn is_sealed(&self) -> bool {
        self.inner.lock().sealed
    }

    /// The attempt goes on after all.
    pub(crate) fn unseal(&self) {
        self.inner.lock().sealed = false;
    }

    /// Adds events that must be journaled before anyone sees them; until [`reveal`](Self::reveal), what
    /// is pushed queues up behind them. Returns the number of the first.
    pub(crate) fn hold(&self, events: &[Event], at: Timestamp) -> u64 {
        let mut inner = self.inner.lock();
        inner.held = true;
        let first = inner.next;
        for event in events {
            inner.encode(event, at);
        }
        first
    }

    /// Takes back what was held, and the commit it was taken for: it was never shown, so its numbers are
    /// free again. Only for a sealed log, in which nothing has queued up behind.
    pub(crate) fn retract(&self) {
        let mut inner = self.inner.lock();
        inner.retract();
    }

    /// Everything not journaled yet, as one segment.
    pub(crate) fn take_unjournaled(&self) -> Option<Segment> {
        self.inner.lock().take_unjournaled()
    }

    /// The journal has everything up to `journaled`; numbers up to `reserved` may be shown; whatever was
    /// held is visible. `ended`: the last event is the run's final one.
    pub(crate) fn reveal(&self, journaled: u64, reserved: u64, ended: bool, keep_bytes: usize) {
        let mut inner = self.inner.lock();
        inner.stored = journaled;
        inner.reserved = reserved;
        inner.held = false;
        inner.visible = inner.next - 1;
        if ended {
            inner.end = Some(End::Final);
        }
        inner.trim(keep_bytes);
        inner.wake();
        self.room.notify_waiters();
    }

    /// The owner lets the log go. `lost`: what it has shown or taken may not be in the store, so memory
    /// must not serve it to viewers that come later, whom the store would contradict.
    pub(crate) fn disown(&self, lost: bool) {
        let mut inner = self.inner.lock();
        inner.owned = false;
        inner.lease = None;
        inner.sealed = true;
        inner.retract();
        if lost {
            inner.frozen.clear();
            inner.frozen_bytes = 0;
            inner.tail.clear();
            inner.tail_marks.clear();
            inner.unjournaled_bytes = 0;
            inner.after = Some(inner.visible);
        }
        inner.wake();
        self.room.notify_waiters();
    }

    /// Ends every stream without a final event.
    pub(crate) fn cut(&self) {
        let mut inner = self.inner.lock();
        inner.end.get_or_insert(End::Cut);
        inner.wake();
    }

    /// What a cursor that has seen everything up to `seen` finds. When there is nothing it is woken,
    /// under `slot`, as soon as there is.
    pub(super) fn read(&self, seen: u64, slot: usize, waker: &Waker) -> Read {
        let mut inner = self.inner.lock();
        let Some(after) = inner.after else {
            inner.wakers[slot] = Some(waker.clone());
            return Read::Wait;
        };
        if seen < after {
            return Read::Stored { until: after };
        }
        if seen < inner.visible {
            inner.freeze();
            let visible = inner.visible;
            let index = inner.frozen.partition_point(|segment| segment.last_seq() <= seen);
            if let Some(segment) = inner.frozen.get(index) {
                let last = segment.last_seq().min(visible);
                return Read::Frames(between(segment, seen, last), last);
            }
        }
        if let Some(end) = inner.end {
            return Read::End(end);
        }
        inner.wakers[slot] = Some(waker.clone());
        Read::Wait
    }

    /// What is visible after number `sent`, as one segment, for whoever announces what the owner of that
    /// `ownership` writes. Wakes up under `slot`.
    pub(super) fn poll_announced(
        &self,
        sent: u64,
        ownership: u64,
        slot: usize,
        waker: &Waker,
    ) -> Poll<Option<Segment>> {
        let mut inner = self.inner.lock();
        if inner.ownership != ownership {
            return Poll::Ready(None);
        }
        if inner.visible > sent {
            inner.freeze();
            if let Some(segment) = inner.visible_after(sent) {
                return Poll::Ready(Some(segment));
            }
        }
        if !inner.owned {
            return Poll::Ready(None);
        }
        inner.wakers[slot] = Some(waker.clone());
        Poll::Pending
    }

    /// Somebody listens who is no reader; the answer is its slot.
    pub(super) fn listen(&self) -> usize {
        self.inner.lock().wakers.insert(None)
    }

    /// A listener leaves.
    pub(super) fn unlisten(&self, slot: usize) {
        self.inner.lock().wakers.remove(slot);
    }

    /// The caller is to follow the owner, who is on another node: somebody reads here, and nobody follows
    /// yet.
    pub(super) fn begin_mirror(&self) -> bool {
        let mut inner = self.inner.lock();
        let begin = !inner.mirrored && inner.wants_mirror();
        inner.mirrored |= begin;
        begin
    }

    /// Whether it still is to; false is said once.
    pub(super) fn goes_on_mirroring(&self) -> bool {
        let mut inner = self.inner.lock();
        inner.mirrored = inner.wants_mirror();
        inner.mirrored
    }

    pub(super) fn is_mirrored(&self) -> bool {
        self.inner.lock().mirrored
    }

    pub(super) fn is_owned(&self) -> bool {
        self.inner.lock().owned
    }

    /// Makes whoever follows the owner look again.
    pub(super) fn nudge(&self) {
        self.nudge.notify_one();
    }

    pub(super) async fn nudged(&self) {
        self.nudge.notified().await;
    }

    /// The number of the last event that viewers may see.
    pub(super) fn visible(&self) -> u64 {
        self.inner.lock().visible
    }

    /// Adds what the owner, on another node, has announced. False: something is missing before it.
    pub(super) fn announced(&self, segment: &Segment, keep_bytes: usize) -> bool {
        let mut inner = self.inner.lock();
        if inner.owned || inner.end.is_some() || segment.last_seq() <= inner.visible {
            return true;
        }
        let follows = inner.after.is_some() && segment.first_seq() <= inner.visible + 1;
        if follows {
            inner.extend(segment, keep_bytes);
        }
        follows
    }

    /// Adds what was read from the store after [`visible`](Self::visible). Numbers may jump here: only
    /// where an attempt was abandoned, and the events themselves say so.
    pub(super) fn restored(&self, segment: &Segment, keep_bytes: usize) {
        let mut inner = self.inner.lock();
        if !inner.owned && inner.end.is_none() {
            if segment.last_seq() > inner.visible {
                inner.extend(segment, keep_bytes);
            }
            inner.stored = inner.stored.max(segment.last_seq());
        }
    }

    /// Everything up to `last_seq` can be read from the store.
    pub(super) fn stored_up_to(&self, last_seq: u64, keep_bytes: usize) {
        let mut inner = self.inner.lock();
        if !inner.owned {
            inner.stored = inner.stored.max(last_seq);
            inner.trim(keep_bytes);
        }
    }

    /// A reader comes, who merely waits; the answer is its slot.
    pub(super) fn enter(&self) -> usize {
        let mut inner = self.inner.lock();
        inner.readers += 1;
        inner.wakers.insert(None)
    }

    /// A reader begins to watch.
    pub(super) fn watch(&self) {
        self.inner.lock().viewers += 1;
    }

    /// A reader leaves.
    pub(super) fn leave(&self, slot: usize, watches: bool) -> Left {
        let mut inner = self.inner.lock();
        inner.wakers.remove(slot);
        inner.readers -= 1;
        inner.viewers -= usize::from(watches);
        let last_viewer = watches && inner.viewers == 0;
        Left { unwatched: last_viewer && inner.cancel_unwatched && inner.end.is_none(), deserted: inner.readers == 0 }
    }

    /// The run is to be cancelled when its last viewer has gone.
    pub(crate) fn cancel_unwatched(&self) {
        self.inner.lock().cancel_unwatched = true;
    }

    pub(super) fn is_watched(&self) -> bool {
        self.inner.lock().viewers > 0
    }

    pub(super) fn readers(&self) -> usize {
        self.inner.lock().readers
    }

    /// Nobody needs the log in memory.
    pub(super) fn is_idle(&self) -> bool {
        let inner = self.inner.lock();
        inner.readers == 0 && !inner.owned
    }

    /// About how many bytes the log holds.
    pub(super) fn bytes(&self) -> usize {
        let inner = self.inner.lock();
        inner.frozen_bytes + inner.tail.len() + size_of::<Self>() + inner.frozen.len() * size_of::<Segment>()
    }

    /// The number of the last event that viewers may see, and the last that may ever have been shown;
    /// `None` if nothing is known of the log yet.
    pub(super) fn shown(&self) -> Option<Shown> {
        let inner = self.inner.lock();
        inner.after?;
        Some(Shown { visible: inner.visible, reserved: inner.reserved.max(inner.visible), end: inner.end })
    }
}

/// What a reader leaves behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Left {
    /// It was the last viewer of a run that is to be cancelled without one.
    pub(super) unwatched: bool,
    /// It was the last reader.
    pub(super) deserted: bool,
}

/// How far a log is shown.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shown {
    pub(super) visible: u64,
    pub(super) reserved: u64,
    pub(super) end: Option<End>,
}

fn between(segment: &Segment, seen: u64, last: u64) -> Bytes {
    let frames = segment.after(seen);
    let beyond = segment.after(last).len();
    frames.slice(..frames.len() - beyond)
}

impl Inner {
    fn wants_mirror(&self) -> bool {
        self.readers > 0 && self.end.is_none() && !self.owned && self.after.is_some()
    }

    /// Adds the part of `segment` that is not visible yet, for viewers that follow from afar.
    fn extend(&mut self, segment: &Segment, keep_bytes: usize) {
        let Some(segment) = segment.since(self.visible) else { return };
        self.visible = segment.last_seq();
        self.next = self.visible + 1;
        if segment.ends_the_run() {
            self.end = Some(End::Final);
        }
        self.frozen_bytes += segment.bytes().len();
        self.frozen.push_back(segment);
        self.trim(keep_bytes);
        self.wake();
    }

    /// What memory holds of the visible events after number `sent`, up to where the numbers jump.
    fn visible_after(&self, sent: u64) -> Option<Segment> {
        let start = self.frozen.partition_point(|segment| segment.last_seq() <= sent);
        let end = self.frozen.partition_point(|segment| segment.first_seq() <= self.visible);
        let first = self.frozen.get(start)?.since(sent)?;
        let mut pieces = vec![first];
        for segment in self.frozen.range(start + 1..end.max(start + 1)) {
            if segment.first_seq() != pieces[pieces.len() - 1].last_seq() + 1 {
                break;
            }
            pieces.push(segment.clone());
        }
        let joined = Segment::join(pieces.iter())?;
        let beyond = joined.last_seq().saturating_sub(self.visible);
        if beyond == 0 {
            return Some(joined);
        }
        // The last piece holds events that wait for their commit.
        let count = joined.marks().len().checked_sub(usize::try_from(beyond).ok()?).filter(|count| *count > 0)?;
        let marks = joined.marks()[..count].to_vec();
        let bytes = joined.bytes().slice(..marks[count - 1].end as usize);
        Some(Segment::new(joined.first_seq(), bytes, marks))
    }

    /// Adds a journaled segment at the end.
    fn append(&mut self, segment: Segment) {
        let gap = self.after.is_none() || segment.first_seq() != self.next;
        if gap {
            self.frozen.clear();
            self.frozen_bytes = 0;
            self.after = Some(segment.first_seq() - 1);
        }
        self.visible = segment.last_seq();
        self.next = self.visible + 1;
        self.journaled = self.visible;
        self.stored = self.visible;
        self.frozen_bytes += segment.bytes().len();
        self.frozen.push_back(segment);
    }

    fn encode(&mut self, event: &Event, at: Timestamp) {
        if self.tail_marks.is_empty() {
            self.tail_first = self.next;
        }
        let before = self.tail.len();
        encode(&mut self.tail, self.next, event);
        self.tail_marks.push(Mark { end: end_of(&self.tail), at });
        self.unjournaled_bytes += self.tail.len() - before;
        self.next += 1;
    }

    fn freeze(&mut self) {
        if !self.tail_marks.is_empty() {
            let marks = std::mem::take(&mut self.tail_marks);
            self.frozen_bytes += self.tail.len();
            self.frozen.push_back(Segment::new(self.tail_first, self.tail.split().freeze(), marks));
        }
    }

    fn take_unjournaled(&mut self) -> Option<Segment> {
        self.freeze();
        self.unjournaled_bytes = 0;
        let journaled = self.journaled;
        let start = self.frozen.partition_point(|segment| segment.last_seq() <= journaled);
        if self.frozen.len() - start > 1 {
            // One segment from now on, also for viewers that are behind.
            let joined = Segment::join(self.frozen.range(start..))?;
            self.frozen.truncate(start);
            self.frozen.push_back(joined);
        }
        let segment = self.frozen.get(start)?.clone();
        self.journaled = segment.last_seq();
        Some(segment)
    }

    fn retract(&mut self) {
        if !self.held {
            return;
        }
        self.held = false;
        self.freeze();
        let visible = self.visible;
        while let Some(last) = self.frozen.back().filter(|segment| segment.last_seq() > visible) {
            let keep = between(last, 0, visible);
            let (first, marks) = (last.first_seq(), last.marks().to_vec());
            self.frozen_bytes -= last.bytes().len();
            self.frozen.pop_back();
            if !keep.is_empty() {
                let count = usize::try_from(visible + 1 - first).unwrap_or(marks.len());
                self.frozen_bytes += keep.len();
                self.frozen.push_back(Segment::new(first, keep, marks[..count].to_vec()));
            }
        }
        self.next = visible + 1;
        // The commit that was refused has to be made again, with what was taken for it.
        self.journaled = self.stored;
    }

    /// Drops journaled segments that viewers can read from the store, down to about `keep_bytes`.
    fn trim(&mut self, keep_bytes: usize) {
        while self.frozen_bytes > keep_bytes {
            match self.frozen.front() {
                Some(front) if front.last_seq() <= self.stored => {
                    self.after = Some(front.last_seq());
                    self.frozen_bytes -= front.bytes().len();
                    self.frozen.pop_front();
                }
                _ => break,
            }
        }
    }

    fn wake(&mut self) {
        for (_, slot) in &mut self.wakers {
            if let Some(waker) = slot.take() {
                waker.wake();
            }
        }
    }
}

#[cfg(test)]
#[path = "log_tests.rs"]
mod tests;
