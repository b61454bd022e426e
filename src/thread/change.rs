//! A thread under its lock, and what is to be written when something has happened to it.

use std::sync::Arc;

use uuid::Uuid;

use super::admit::{Ask, Newcomer, Occasion, OnBusy, Refusal};
use super::{Event, FollowUp, FollowUpRule, HandedOff, Happened, Progress, Thread, ThreadMessage};
use crate::run::{
    Begin, Changed, Command, Context, Input, Kept, Message, Reason, Run, RunId, Segment, Status, Timer, Timestamp,
};

/// An open run of a thread: one that has not ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Open {
    /// The run.
    pub run: Run,
    /// No number beyond this one has been shown.
    pub reserved_seq: u64,
    /// A cancel waits for its owner.
    pub cancel_requested: bool,
}

/// A thread and all of its open runs, oldest first, as they were found under the thread's lock.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// The thread.
    pub thread: Thread,
    /// Its open runs.
    pub open: Vec<Open>,
    /// What the holder was handed and has not looked at; known when more may be handed to it.
    pub unread: Unread,
}

/// Messages that a run has not looked at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Unread {
    /// How many.
    pub messages: u64,
    /// How long they are together, in bytes.
    pub bytes: u64,
}

impl Unread {
    /// More may be added: a run that does not look, while it waits, say, gathers no more than waits in a thread, and
    /// no more than comes together in one run.
    fn has_room(self, ask: &Ask) -> bool {
        let bytes = self.bytes.saturating_add(ask.newcomer.spec.input.bytes() as u64);
        self.messages < ask.max_pending as u64 && (self.messages == 0 || bytes <= ask.max_input as u64)
    }
}

/// What is to be written, all in one transaction.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// The thread as it stands now.
    pub thread: Thread,
    /// The run that is created.
    pub created: Option<Changed>,
    /// Runs that were open and have changed, in order.
    pub changed: Vec<Changed>,
    /// A run that was open and whose input has grown; it may be among the changed, too.
    pub grown: Option<Run>,
    /// The run whose owner has to be told of a cancel.
    pub cancel: Option<RunId>,
    /// New messages.
    pub messages: Vec<ThreadMessage>,
    /// Runs that got the thread: their messages have this turn from now on.
    pub turns: Vec<(RunId, u64)>,
    /// The messages that the first run was given are the second's from now on.
    pub taken_over: Option<(RunId, RunId)>,
    /// New entries of the thread's log.
    pub events: Vec<Event>,
    /// What became of what came in.
    pub how: How,
}

/// What became of something that came into a thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// It was no message and no run.
    Nothing,
    /// A run was created.
    Created(RunId),
    /// It joined this run, which was there.
    Joined(RunId),
    /// It was handed to this run, which is going on.
    Steered(RunId),
    /// It is kept, and no run is given it: people answer.
    Kept,
}

impl How {
    /// The run that is given it.
    #[must_use]
    pub fn run(self) -> Option<RunId> {
        match self {
            Self::Created(run) | Self::Joined(run) | Self::Steered(run) => Some(run),
            Self::Nothing | Self::Kept => None,
        }
    }
}

impl Change {
    /// The first message that came in; not what a run said that ended by it.
    #[must_use]
    pub fn came_in(&self) -> Option<&ThreadMessage> {
        self.messages.iter().find(|message| message.run == self.how.run())
    }
}

impl Found {
    /// Something comes in.
    pub fn admit(self, ask: &Ask) -> Result<Change, Refusal> {
        let spoken = match &ask.occasion {
            Occasion::Message { .. } | Occasion::Run { .. } => true,
            Occasion::Retry { .. } => false,
            Occasion::FollowUp { timer, .. } => {
                let armed = self.thread.follow_up.as_ref().map(|follow_up| follow_up.timer);
                if !armed.is_some_and(|armed| armed.id == *timer && armed.due <= ask.now) || !self.open.is_empty() {
                    return Err(Refusal::StaleTimer);
                }
                false
            }
        };
        let mut work = Work::new(self, ask.now);
        if work.thread.handed_off.is_some() {
            return match ask.occasion {
                Occasion::Message { .. } => Ok(work.keep(ask)),
                Occasion::Run { .. } | Occasion::Retry { .. } => Err(Refusal::HandedOff),
                Occasion::FollowUp { .. } => Err(Refusal::StaleTimer),
            };
        }
        if let (OnBusy::Reject, Some(holder)) = (ask.on_busy, work.thread.holder) {
            return Err(Refusal::Busy { holder });
        }
        work.thread.follow_up = None;
        if spoken {
            work.thread.progress = Progress::default();
        }
        work.thread.active_at = ask.now;
        match &ask.occasion {
            Occasion::Message { quiet } => match work.thread.holder {
                Some(holder) => work.while_busy(holder, ask, *quiet),
                None => match (work.gathering(ask), quiet) {
                    (Some(at), quiet) => Ok(work.join(at, ask, quiet.map(|quiet| ask.now.after(quiet.quiet)))),
                    (None, Some(quiet)) => work.create(ask, Some((quiet.quiet, quiet.longest)), None, Kept::default()),
                    (None, None) => work.create(ask, None, None, Kept::default()),
                },
            },
            Occasion::Run { due } => match work.thread.holder {
                Some(holder) if due.is_none_or(|due| due <= ask.now) => work.while_busy(holder, ask, None),
                Some(_) | None => work.create(ask, None, *due, Kept::default()),
            },
            Occasion::Retry { of, kept } => {
                let change = work.create(ask, None, None, kept.clone())?;
                Ok(Change { taken_over: change.how.run().map(|new| (*of, new)), ..change })
            }
            Occasion::FollowUp { rules, .. } => {
                work.thread.progress = work.thread.progress.sent(rules);
                work.events.push(Happened::FollowUp(ask.newcomer.spec.id));
                work.create(ask, None, None, Kept::default())
            }
        }
    }

    /// Run `id` stands as `after` now: it was queued, or it has ended. `said` is what it said, to be kept, as its owner
    /// knows; without one, it is what the run itself remembers. `rules` are the follow-ups that its agent declares, if it completed. Nothing changes unless that concerns the thread.
    #[must_use]
    pub fn moved(self, after: &Run, said: Vec<(Uuid, Message)>, rules: &[FollowUpRule], now: Timestamp) -> Change {
        let id = after.spec.id;
        let holds = self.thread.holder == Some(id);
        let mut work = Work::new(self, now);
        work.open.retain(|open| open.run.spec.id != id);
        if after.status.is_final() && holds {
            work.released(id, if said.is_empty() { after.said.clone() } else { said });
            if after.status == Status::Completed {
                work.arm(&after.spec.agent, rules);
            }
        } else if after.status.is_final() {
            work.unanswered(id);
        } else if after.status == Status::Queued && !holds {
            work.take(id);
        }
        work.done(How::Nothing)
    }

    /// People take over: nothing that waits is answered any more. What is going on is cancelled, unless its own
    /// agent asks for this, in the attempt `by`.
    #[must_use]
    pub fn hand_off(self, reason: String, by: Option<(RunId, u32)>, now: Timestamp) -> Change {
        let holder = self.thread.holder;
        let goes_on = |(id, attempt): (RunId, u32)| {
            let holds = |open: &Open| holder == Some(id) && open.run.spec.id == id;
            self.open.iter().any(|open| holds(open) && open.run.is_attempt(attempt))
        };
        if by.is_some_and(|by| !goes_on(by)) {
            // An attempt that does not know yet that it is over.
            return Work::new(self, now).done(How::Nothing);
        }
        let by = by.map(|(run, _)| run);
        let mut work = Work::new(self, now);
        if work.thread.handed_off.is_none() {
            work.events.push(Happened::HandedOff { reason: reason.clone(), by });
            work.thread.handed_off = Some(HandedOff { at: now, reason, by });
        }
        work.thread.follow_up = None;
        work.thread.active_at = now;
        let waiting: Vec<_> =
            work.open.iter().map(|open| open.run.spec.id).filter(|id| Some(*id) != work.thread.holder).collect();
        for id in waiting {
            work.cancel(id);
        }
        if let Some(holder) = work.thread.holder
            && by != Some(holder)
        {
            work.cancel(holder);
        }
        work.done(How::Nothing)
    }

    /// The thread is given back.
    #[must_use]
    pub fn release(self, now: Timestamp) -> Change {
        let mut work = Work::new(self, now);
        if work.thread.handed_off.take().is_some() {
            work.events.push(Happened::Released);
            work.thread.active_at = now;
        }
        work.done(How::Nothing)
    }
}

/// A change that is being made.
struct Work {
    thread: Thread,
    open: Vec<Open>,
    unread: Unread,
    now: Timestamp,
    created: Option<Changed>,
    changed: Vec<Changed>,
    grown: Option<Run>,
    cancel: Option<RunId>,
    messages: Vec<ThreadMessage>,
    turns: Vec<(RunId, u64)>,
    events: Vec<Happened>,
}

impl Work {
    fn new(Found { thread, open, unread }: Found, now: Timestamp) -> Self {
        let (created, grown, cancel) = (None, None, None);
        let (changed, messages, turns, events) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Self { thread, open, unread, now, created, changed, grown, cancel, messages, turns, events }
    }

    fn done(mut self, how: How) -> Change {
        let mut events = Vec::with_capacity(self.events.len());
        for happened in self.events {
            self.thread.last_event += 1;
            events.push(Event { seq: self.thread.last_event, at: self.now, happened });
        }
        Change {
            thread: self.thread,
            created: self.created,
            changed: self.changed,
            grown: self.grown,
            cancel: self.cancel,
            messages: self.messages,
            turns: self.turns,
            taken_over: None,
            events,
            how,
        }
    }

    /// What the thread's holder is told or asked.
    fn while_busy(mut self, holder: RunId, ask: &Ask, quiet: Option<super::Quiet>) -> Result<Change, Refusal> {
        let due = quiet.map(|quiet| ask.now.after(quiet.quiet));
        match ask.on_busy {
            OnBusy::Reject => Err(Refusal::Busy { holder }),
            OnBusy::Steer if !self.is_cancelled(holder) && self.unread.has_room(ask) => Ok(self.steer(holder, ask)),
            OnBusy::Interrupt | OnBusy::Rollback => {
                self.thread.dropping |= ask.on_busy == OnBusy::Rollback;
                self.cancel(holder);
                self.create(ask, None, None, Kept::default())
            }
            OnBusy::Debounce => match self.gathering(ask) {
                Some(at) => Ok(self.join(at, ask, due)),
                None => self.create(ask, quiet.map(|quiet| (quiet.quiet, quiet.longest)), None, Kept::default()),
            },
            OnBusy::Enqueue | OnBusy::Steer => match (self.debounced(ask), quiet) {
                // Quick messages belong together whatever goes on.
                (Some(at), Some(_)) => Ok(self.join(at, ask, due)),
                (_, Some(quiet)) => self.create(ask, Some((quiet.quiet, quiet.longest)), None, Kept::default()),
                (_, None) => self.create(ask, None, None, Kept::default()),
            },
        }
    }

    /// The youngest run that the newcomer could join, by its place.
    fn gathering(&self, ask: &Ask) -> Option<usize> {
        self.open.iter().rposition(|open| ask.newcomer.fits(&open.run, ask.max_input))
    }

    /// The youngest of these that waits for more to be said.
    fn debounced(&self, ask: &Ask) -> Option<usize> {
        let fits =
            |open: &Open| open.run.reason == Some(Reason::Debounce) && ask.newcomer.fits(&open.run, ask.max_input);
        self.open.iter().rposition(fits)
    }

    fn create(
        mut self,
        ask: &Ask,
        quiet: Option<(std::time::Duration, std::time::Duration)>,
        due: Option<Timestamp>,
        kept: Kept,
    ) -> Result<Change, Refusal> {
        let pending = self.open.iter().filter(|open| open.run.status == Status::Scheduled).count();
        if pending >= ask.max_pending {
            return Err(Refusal::Full { limit: ask.max_pending });
        }
        let mut spec = ask.newcomer.spec.clone();
        let busy = self.thread.holder.is_some();
        let begin = match (quiet, due.filter(|due| *due > self.now)) {
            (Some((quiet, longest)), _) => {
                spec.latest_due = Some(self.now.after(longest));
                Begin::At(self.now.after(quiet.min(longest)), Reason::Debounce)
            }
            (None, Some(due)) => Begin::At(due, Reason::Delay),
            (None, None) if busy => Begin::Behind,
            (None, None) => Begin::Now,
        };
        let id = spec.id;
        let (run, decision) = Run::create(spec, begin, kept);
        let segment = Segment::encode(1, &decision.events, self.now);
        self.say(&ask.newcomer, Some(id), None, false);
        if run.status == Status::Queued {
            self.take(id);
            let own = self.messages.iter_mut().filter(|message| message.run == Some(id));
            own.for_each(|message| message.turn = Some(self.thread.turns));
        }
        self.created = Some(Changed { run, segment, effects: decision.effects });
        self.events.push(Happened::Run(id));
        Ok(self.done(How::Created(id)))
    }

    /// What is said joins the input of the open run at `at`, which waits until `due` for more, or not at all.
    fn join(mut self, at: usize, ask: &Ask, due: Option<Timestamp>) -> Change {
        let id = self.open[at].run.spec.id;
        self.say(&ask.newcomer, Some(id), None, false);
        let spec = Arc::make_mut(&mut self.open[at].run.spec);
        let input = std::mem::replace(&mut spec.input, Input::Messages(Vec::new()));
        let mut messages = input.into_messages();
        messages.extend(ask.newcomer.spec.input.clone().into_messages());
        spec.input = Input::Messages(messages);
        self.grown = Some(self.open[at].run.clone());
        // One that waits for the thread alone goes on doing so.
        if self.open[at].run.reason == Some(Reason::Debounce) {
            self.tell(at, &Command::Join { due: due.unwrap_or(self.now) });
        }
        self.done(How::Joined(id))
    }

    /// The run is to end, so nothing more can be handed to it.
    fn is_cancelled(&self, id: RunId) -> bool {
        self.open.iter().any(|open| open.run.spec.id == id && open.cancel_requested)
    }

    fn steer(mut self, holder: RunId, ask: &Ask) -> Change {
        self.say(&ask.newcomer, Some(holder), Some(self.thread.turns), true);
        self.done(How::Steered(holder))
    }

    fn keep(mut self, ask: &Ask) -> Change {
        self.thread.active_at = self.now;
        self.say(&ask.newcomer, None, Some(self.thread.turns), false);
        self.done(How::Kept)
    }

    fn say(&mut self, newcomer: &Newcomer, run: Option<RunId>, turn: Option<u64>, unread: bool) {
        for (id, message) in newcomer.said() {
            self.append(id, message, run, turn, unread);
        }
    }

    fn append(&mut self, id: Uuid, message: Message, run: Option<RunId>, turn: Option<u64>, unread: bool) {
        self.thread.last_message += 1;
        let (seq, at) = (self.thread.last_message, self.now);
        self.messages.push(ThreadMessage { id, seq, message, run, turn, unread, after_step: None, at });
    }

    /// Run `id` has the thread from now on.
    fn take(&mut self, id: RunId) {
        self.thread.holder = Some(id);
        self.thread.dropping = false;
        self.thread.turns += 1;
        self.turns.push((id, self.thread.turns));
    }

    /// Run `id` has ended without ever having the thread. What was said to it was said all the same: whoever comes
    /// next is shown it.
    fn unanswered(&mut self, id: RunId) {
        self.turns.push((id, self.thread.turns));
    }

    /// The holder has ended.
    fn released(&mut self, id: RunId, said: Vec<(Uuid, Message)>) {
        self.thread.holder = None;
        self.thread.active_at = self.now;
        if !std::mem::take(&mut self.thread.dropping) {
            for (message_id, message) in said {
                self.append(message_id, message, Some(id), Some(self.thread.turns), false);
            }
        }
        if self.thread.handed_off.is_some() {
            return;
        }
        let next = self.open.iter().position(|open| open.run.reason == Some(Reason::ThreadBusy));
        if let Some(next) = next {
            self.tell(next, &Command::Promote);
        }
    }

    /// Lets the machine decide about the open run at `at`, and follows what that means for the thread.
    fn tell(&mut self, at: usize, command: &Command) {
        let open = &mut self.open[at];
        let (id, next_seq) = (open.run.spec.id, open.reserved_seq + 1);
        let busy = self.thread.holder.is_some_and(|holder| holder != id);
        let context = Context { now: self.now, next_seq, busy, spent: None };
        let Ok(decision) = open.run.decide(command, &context) else { return };
        for (event, seq) in decision.events.iter().zip(next_seq..) {
            open.run.apply(event, seq, self.now);
        }
        open.reserved_seq = open.run.last_seq;
        let (run, said) = (open.run.clone(), open.run.said.clone());
        let segment = Segment::encode(next_seq, &decision.events, self.now);
        let status = run.status;
        self.changed.push(Changed { run, segment, effects: decision.effects });
        if status.is_final() {
            self.open.remove(at);
            match self.thread.holder == Some(id) {
                true => self.released(id, said),
                false => self.unanswered(id),
            }
        } else if status == Status::Queued && self.thread.holder != Some(id) {
            self.take(id);
        }
    }

    fn cancel(&mut self, id: RunId) {
        let Some(at) = self.open.iter().position(|open| open.run.spec.id == id) else { return };
        match self.open[at].run.status {
            Status::Running => self.cancel = Some(id),
            Status::Scheduled | Status::Queued | Status::Waiting => self.tell(at, &Command::Cancel),
            Status::Completed | Status::Failed | Status::Cancelled | Status::Expired => {}
        }
    }

    /// Arms the next follow-up, unless something is going on or to come.
    fn arm(&mut self, agent: &str, rules: &[FollowUpRule]) {
        if self.thread.handed_off.is_some() || self.thread.holder.is_some() || !self.open.is_empty() {
            return;
        }
        if let Some((_, due)) = self.thread.progress.next(rules, self.now) {
            self.thread.timers_armed += 1;
            let timer = Timer { due, id: self.thread.timers_armed };
            self.thread.follow_up = Some(FollowUp { timer, agent: agent.to_owned() });
        }
    }
}
