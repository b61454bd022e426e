//! Conversations: what comes into a thread, what people do with it, and the answers that runs wait for.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use runcast_broker::Name;
use serde_json::{Map, Value};

use super::create::{CreateError, CreateRun, Key, check_metadata, invalid, stored_key};
use super::mailbox::post;
use super::recovery::show;
use super::sharing::settle;
use super::timers::Arm;
use super::{Engine, Node};
use crate::run::{
    Command, Input, Message, OnDisconnect, Rejection, Role, Run, RunId, Spec, Status, Tenant, ThreadId, Timestamp,
};
use crate::store::{
    Admission, Admitted, HandOff, Moved, NewThread, Patch, StoreError, Stored, ThreadCreated, ThreadDeleted, TimerKey,
    TimerKind, Transition,
};
use crate::thread::hours::next_within;
use crate::thread::{Ask, Event, How, Newcomer, Occasion, OnBusy, Quiet, Refusal, Thread, ThreadMessage};

/// The longest quiet period, and the longest that a debounced message waits.
const LONGEST_DEBOUNCE: Duration = Duration::from_secs(24 * 3600);

/// A message waits no longer than so many quiet periods: the longest wait of a debounce that names none.
pub(crate) const LONGEST_WAIT: u32 = 10;

/// The largest state document of a thread, in bytes of JSON.
const MAX_STATE: usize = 256 * 1024;

/// The longest reason of a handoff, in bytes.
const MAX_REASON: usize = 2_048;

/// A wish for a thread.
#[derive(Debug, Clone, Default)]
pub struct CreateThread {
    /// Whose it is.
    pub tenant: Tenant,
    /// Its id, of the caller's choice; a thread of this id that is there already is the answer.
    pub id: Option<ThreadId>,
    /// The caller's labels.
    pub metadata: BTreeMap<String, String>,
    /// The caller's document.
    pub state: Map<String, Value>,
    /// Makes the wish safe to repeat.
    pub key: Option<Key>,
}

/// A message to a thread.
#[derive(Debug, Clone)]
pub struct Send {
    /// The run that it becomes if it becomes one; its `thread` is the thread, its input what is said.
    pub run: CreateRun,
    /// How long it waits for others; zero: not at all. The agent's own period unless given.
    pub debounce: Option<Duration>,
    /// The longest that it waits for others. The agent's own bound unless given, or ten periods.
    pub debounce_max: Option<Duration>,
}

/// What became of a message.
#[derive(Debug, Clone, PartialEq)]
pub struct Sent {
    /// The message, the first if there were several.
    pub message: ThreadMessage,
    /// The run that is given it; none while people have the thread.
    pub run: Option<Run>,
    /// How the run got it; none for a repeated request.
    pub how: Option<How>,
}

/// Why a request about a thread was refused.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ThreadRequestError {
    /// There is no such thread, or it is another tenant's.
    #[error("there is no such thread")]
    Missing,
    /// A run of it has not ended.
    #[error("run {0} of the thread has not ended")]
    Busy(RunId),
    /// A field does not make sense.
    #[error("{field}: {message}")]
    Invalid {
        /// Which one.
        field: String,
        /// What was expected.
        message: String,
    },
    /// The idempotency key was used for another request, or the id is taken.
    #[error("the idempotency key was used before with another body, or the id is taken")]
    Taken,
    /// The node shuts down.
    #[error("the node is shutting down")]
    Draining,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why an answer was refused. Nothing has changed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ResumeError {
    /// There is no such run, or it is another tenant's.
    #[error("there is no such run")]
    Missing,
    /// The run does not wait.
    #[error("the run is {0}, not waiting")]
    NotWaiting(Status),
    /// The run waits for an answer to another question.
    #[error("the run waits for an answer to {current:?}, not to this question")]
    Stale {
        /// The `wait_id` of the open question.
        current: String,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What was accepted into a thread.
enum Accepted {
    /// It came in now.
    Now(Box<Moved>),
    /// It came in before, under the same key.
    Before { message: Option<ThreadMessage>, run: Option<Box<Stored>> },
}

fn invalid_thread(field: &str, message: impl Into<String>) -> ThreadRequestError {
    ThreadRequestError::Invalid { field: field.to_owned(), message: message.into() }
}

impl Engine {
    /// Creates a thread. The flag says whether it was there before.
    pub async fn create_thread(&self, wish: CreateThread) -> Result<(Thread, bool), ThreadRequestError> {
        if self.is_draining() {
            return Err(ThreadRequestError::Draining);
        }
        let now = self.now();
        let id = wish.id.unwrap_or_else(|| ThreadId::from_uuid(self.node.clock.id()));
        self.check_thread(Some(&wish.metadata), Some(&wish.state))?;
        let thread = Thread { metadata: wish.metadata, state: wish.state, ..Thread::new(id, wish.tenant, now) };
        let new = NewThread { thread: thread.clone(), key: wish.key.map(|key| stored_key(key, now)) };
        match self.node.store.create_thread(new).await? {
            ThreadCreated::New => Ok((thread, false)),
            ThreadCreated::Existing(thread) => Ok((*thread, true)),
            ThreadCreated::Taken => Err(ThreadRequestError::Taken),
        }
    }

    /// The tenant's thread `id`.
    pub async fn thread(&self, tenant: &Tenant, id: ThreadId) -> Result<Thread, ThreadRequestError> {
        self.node.store.thread(Some(tenant), id).await?.ok_or(ThreadRequestError::Missing)
    }

    /// The tenant's threads, youngest first, at most `limit`, only those older than `before`, with all of `metadata`.
    pub async fn threads(
        &self,
        tenant: &Tenant,
        before: Option<ThreadId>,
        metadata: &BTreeMap<String, String>,
        limit: usize,
    ) -> Result<Vec<Thread>, StoreError> {
        self.node.store.threads(tenant, before, metadata, limit).await
    }

    /// Changes what belongs to the caller.
    pub async fn patch_thread(
        &self,
        tenant: &Tenant,
        id: ThreadId,
        patch: Patch,
    ) -> Result<Thread, ThreadRequestError> {
        self.check_thread(patch.metadata.as_ref(), patch.state.as_ref())?;
        self.node.store.patch_thread(tenant, id, patch).await?.ok_or(ThreadRequestError::Missing)
    }

    /// Removes a thread whose runs have ended, with all that belongs to it.
    pub async fn delete_thread(&self, tenant: &Tenant, id: ThreadId) -> Result<(), ThreadRequestError> {
        match self.node.store.delete_thread(tenant, id).await? {
            ThreadDeleted::Done(runs) => {
                runs.into_iter().for_each(|run| self.node.feed.removed(run));
                announce(&self.node, id);
                Ok(())
            }
            ThreadDeleted::Missing => Err(ThreadRequestError::Missing),
            ThreadDeleted::Busy(run) => Err(ThreadRequestError::Busy(run)),
        }
    }

    /// The thread's messages after number `after`, oldest first, at most `limit`.
    pub async fn messages(
        &self,
        tenant: &Tenant,
        id: ThreadId,
        after: u64,
        limit: usize,
    ) -> Result<Vec<ThreadMessage>, ThreadRequestError> {
        self.thread(tenant, id).await?;
        Ok(self.node.store.messages(id, after, limit).await?)
    }

    /// The thread's own log after entry `after`, oldest first, at most `limit`.
    pub async fn thread_log(
        &self,
        tenant: &Tenant,
        id: ThreadId,
        after: u64,
        limit: usize,
    ) -> Result<Vec<Event>, ThreadRequestError> {
        self.thread(tenant, id).await?;
        Ok(self.node.store.thread_log(id, after, limit).await?)
    }

    /// A message comes in. When this returns `Ok` it is in the store, and in exactly one run, or kept for people.
    pub async fn send(&self, send: Send) -> Result<Sent, CreateError> {
        let now = self.now();
        let Some(card) = self.node.agents.card(&send.run.agent) else {
            return Err(self.unknown(&send.run.agent));
        };
        let quiet = quiet(card.manners.debounce, send.debounce, send.debounce_max)?;
        let on_busy = send.run.on_busy.unwrap_or(card.manners.on_busy);
        let (spec, _, key) = self.check(send.run, now)?;
        let thread = spec.thread.ok_or(CreateError::ThreadMissing)?;
        let first = self.newcomer(spec);
        match self.admit(thread, Occasion::Message { quiet }, on_busy, first, key, now).await? {
            Accepted::Now(moved) => {
                let message = moved.message.ok_or(CreateError::Missing)?;
                Ok(Sent { message, run: moved.run, how: Some(moved.how) })
            }
            Accepted::Before { message, run } => {
                // It was accepted once, and its thread has been removed since.
                let message = message.ok_or(CreateError::ThreadMissing)?;
                Ok(Sent { message, run: run.map(|stored| stored.run), how: None })
            }
        }
    }

    /// Accepts a run of a thread.
    pub(super) async fn create_in_thread(
        &self,
        spec: Spec,
        occasion: Occasion,
        on_busy: OnBusy,
        key: Option<Key>,
        now: Timestamp,
    ) -> Result<(Stored, bool), CreateError> {
        let thread = spec.thread.ok_or(CreateError::ThreadMissing)?;
        let newcomer = match occasion {
            // Its messages are there.
            Occasion::Retry { .. } => Newcomer { spec, messages: Vec::new() },
            Occasion::Message { .. } | Occasion::Run { .. } | Occasion::FollowUp { .. } => self.newcomer(spec),
        };
        match self.admit(thread, occasion, on_busy, newcomer, key, now).await? {
            Accepted::Before { run, .. } => Ok((*run.ok_or(CreateError::Missing)?, true)),
            Accepted::Now(moved) => {
                let run = moved.run.ok_or(CreateError::Missing)?;
                let reserved_seq = run.last_seq;
                Ok((Stored { run, reserved_seq, cancel_requested: false }, false))
            }
        }
    }

    fn newcomer(&self, spec: Spec) -> Newcomer {
        let count = match &spec.input {
            Input::Text(_) => 1,
            Input::Messages(messages) => messages.len(),
        };
        Newcomer { spec, messages: (0..count).map(|_| self.node.clock.id()).collect() }
    }

    async fn admit(
        &self,
        thread: ThreadId,
        occasion: Occasion,
        on_busy: OnBusy,
        newcomer: Newcomer,
        key: Option<Key>,
        now: Timestamp,
    ) -> Result<Accepted, CreateError> {
        if self.is_draining() {
            return Err(CreateError::Draining);
        }
        self.check_available(&newcomer.spec)?;
        let node = &self.node;
        let settings = &node.settings;
        let (max_pending, max_input) = (settings.max_pending, settings.max_input);
        let tenant = newcomer.spec.tenant.clone();
        let ask = Ask { occasion, on_busy, newcomer, max_pending, max_input, now };
        let key = key.map(|key| stored_key(key, now));
        let (charge, share) = (node.rates.take(&tenant, node.peers.serving()), settings.sharing.share(&tenant));
        // What was accepted before is found all the same, and what joins a run makes none.
        let max_waiting = if charge.is_ok() { settings.max_waiting } else { 0 };
        let admission = Admission { tenant: tenant.clone(), thread, ask, key, max_waiting, share };
        let admitted = node.store.admit(admission).await;
        let created = matches!(&admitted, Ok(Admitted::Done(moved)) if moved.created.is_some());
        let retry_after = settle(charge, created);
        match admitted? {
            Admitted::Done(admitted) => {
                moved(node, (*admitted).clone());
                Ok(Accepted::Now(admitted))
            }
            Admitted::Existing { message, run } => Ok(Accepted::Before { message, run }),
            Admitted::KeyReused => Err(CreateError::KeyReused),
            Admitted::TooManyWaiting => Err(node.too_many(&tenant, retry_after)),
            Admitted::TooManyOfTenant => Err(node.too_many_of(&tenant)),
            Admitted::Missing => Err(CreateError::ThreadMissing),
            Admitted::Refused(refusal) => Err(CreateError::Refused(refusal)),
        }
    }

    /// People take the thread over: nobody is answered by itself any more, and what is going on is cancelled.
    pub async fn hand_off(&self, tenant: &Tenant, id: ThreadId, reason: String) -> Result<Thread, ThreadRequestError> {
        if reason.len() > MAX_REASON {
            return Err(invalid_thread("reason", format!("expected at most {MAX_REASON} bytes")));
        }
        let hand_off = HandOff { tenant: tenant.clone(), thread: id, reason, by: None, now: self.now() };
        let handed = self.node.store.hand_off(hand_off).await?.ok_or(ThreadRequestError::Missing)?;
        let thread = handed.thread.clone();
        moved(&self.node, handed);
        Ok(thread)
    }

    /// The thread is given back.
    pub async fn release_thread(&self, tenant: &Tenant, id: ThreadId) -> Result<Thread, ThreadRequestError> {
        let released = self.node.store.release_thread(tenant, id, self.now()).await?;
        let released = released.ok_or(ThreadRequestError::Missing)?;
        let thread = released.thread.clone();
        moved(&self.node, released);
        Ok(thread)
    }

    /// Gives a waiting run the answer to its open question. Of several calls at once one is heard.
    pub async fn resume(
        &self,
        tenant: &Tenant,
        id: RunId,
        wait_id: String,
        input: Value,
    ) -> Result<Stored, ResumeError> {
        let command = Command::Resume { wait_id, input };
        match self.node.store.transition(Some(tenant), id, command, self.now()).await? {
            Transition::Done(changed) => Ok(self.settled(*changed, None)),
            Transition::Followed(changed, followed) => Ok(self.settled(*changed, Some(followed))),
            Transition::Rejected(_, Rejection::StaleWait { current }) => Err(ResumeError::Stale { current }),
            Transition::Rejected(stored, _) | Transition::Handed(stored) => {
                Err(ResumeError::NotWaiting(stored.run.status))
            }
            Transition::Missing => Err(ResumeError::Missing),
        }
    }

    fn check_thread(
        &self,
        metadata: Option<&BTreeMap<String, String>>,
        state: Option<&Map<String, Value>>,
    ) -> Result<(), ThreadRequestError> {
        if let Some(metadata) = metadata {
            check_metadata(metadata, self.node.settings.max_metadata_entries).map_err(|error| {
                if let CreateError::Invalid { field, message } = error {
                    return ThreadRequestError::Invalid { field, message };
                }
                invalid_thread("metadata", error.to_string())
            })?;
        }
        let bytes = state.map_or(0, |state| serde_json::to_string(state).map_or(usize::MAX, |text| text.len()));
        match bytes > MAX_STATE {
            true => Err(invalid_thread("state", format!("expected at most {MAX_STATE} bytes of JSON"))),
            false => Ok(()),
        }
    }
}

/// How long a message waits for others: as it says itself, or as its agent does.
fn quiet(
    agents: Option<Quiet>,
    period: Option<Duration>,
    longest: Option<Duration>,
) -> Result<Option<Quiet>, CreateError> {
    for (field, given) in [("debounce_ms", period), ("debounce_max_ms", longest)] {
        if given.is_some_and(|given| given > LONGEST_DEBOUNCE) {
            return Err(invalid(field, "expected at most 24 hours"));
        }
    }
    let Some(quiet) = period.or(agents.map(|agents| agents.quiet)).filter(|quiet| !quiet.is_zero()) else {
        return Ok(None);
    };
    let longest = longest.or(agents.map(|agents| agents.longest)).unwrap_or(quiet.saturating_mul(LONGEST_WAIT));
    Ok(Some(Quiet { quiet, longest: longest.max(quiet) }))
}

/// Shows what has become of a thread and its runs, and performs what follows from it.
pub(super) fn moved(node: &Arc<Node>, moved: Moved) {
    let id = moved.thread.id;
    if let Some(created) = moved.created {
        let spec = &created.run.spec;
        node.metrics.runs_created.inc();
        node.feed.created(spec.id, &spec.tenant, &created.segment, spec.on_disconnect == OnDisconnect::Cancel);
        if let Some(due) = created.run.expires_at() {
            // Bounded by the timers that exist.
            post(&node.timers, Arm(TimerKey { due, owner: *spec.id.as_uuid(), kind: TimerKind::Ttl }));
        }
        super::effects::perform(node, &created.run, created.effects);
    }
    moved.changed.into_iter().for_each(|changed| show(node, changed));
    if let Some(run) = moved.cancel {
        node.signal_cancel(run);
    }
    if !moved.events.is_empty() {
        node.webhooks.wake_for_thread();
        announce(node, id);
    }
}

/// The topic on which nodes say that a thread's own log has grown.
pub(super) fn topic(thread: ThreadId) -> Name {
    Name::new(format!("thread:{thread}")).unwrap_or_else(|_| unreachable!("an id is a name"))
}

/// Tells whoever watches the thread, on any node. What gets lost is found by looking at the store.
fn announce(node: &Arc<Node>, thread: ThreadId) {
    let node = Arc::clone(node);
    actix::spawn(async move {
        if let Err(error) = node.broker.announce(&topic(thread), Bytes::new()).await {
            tracing::debug!(%thread, %error, "cannot announce that a thread has changed");
        }
    });
}

/// The follow-up is due at another time, or not at all. Hands the timer back when the store could not be told.
async fn put_off(node: &Arc<Node>, timer: TimerKey, number: u64, due: Option<Timestamp>) -> Option<TimerKey> {
    if let Err(error) = node.store.put_off_follow_up(ThreadId::from_uuid(timer.owner), number, due).await {
        node.outage.felt("cannot put a follow-up off", &error);
        return Some(timer);
    }
    if let Some(due) = due {
        // Bounded by the timers that exist.
        post(&node.timers, Arm(TimerKey { due, ..timer }));
    }
    None
}

/// Nobody has spoken in a thread for a while. Hands the timer back when the store could not be told.
pub(super) async fn follow_up(engine: &Engine, timer: TimerKey, number: u64) -> Option<TimerKey> {
    let node = &engine.node;
    let id = ThreadId::from_uuid(timer.owner);
    let thread = match node.store.thread(None, id).await {
        Ok(thread) => thread,
        Err(error) => {
            node.outage.felt("cannot read the thread of a follow-up", &error);
            return Some(timer);
        }
    };
    let fired = match thread.as_ref().and_then(|thread| Some((thread, thread.follow_up.as_ref()?))) {
        Some((thread, follow_up)) if follow_up.timer.id == number => {
            // It was due when it was taken, whatever has become of the clock since.
            let now = engine.now().max(timer.due);
            let Some(card) = node.agents.card(&follow_up.agent) else {
                // A node that has the agent will do it; none may come any more.
                return if node.peers.have(&follow_up.agent) { None } else { put_off(node, timer, number, None).await };
            };
            let rules = Arc::clone(&card.manners.follow_ups);
            let Some(rule) = thread.progress.rule(&rules) else {
                // The agent declares fewer by now.
                return put_off(node, timer, number, None).await;
            };
            let within = rule.hours.as_ref().map_or(now, |hours| next_within(now, hours));
            if within > now {
                // Nobody was there when it was due.
                return put_off(node, timer, number, Some(within)).await;
            }
            let message = Message { role: Role::System, content: rule.instruction.as_str().into() };
            let wish = CreateRun::new(thread.tenant.clone(), follow_up.agent.clone(), Input::Messages(vec![message]));
            let checked = engine.check(CreateRun { thread: Some(id), ..wish }, now);
            let occasion = Occasion::FollowUp { timer: number, rules };
            match checked {
                Ok((spec, ..)) => engine.create_in_thread(spec, occasion, OnBusy::Reject, None, now).await.map(drop),
                Err(error) => Err(error),
            }
        }
        Some(_) | None => Err(CreateError::Refused(Refusal::StaleTimer)),
    };
    match fired {
        Ok(()) => {
            node.metrics.timer_lateness.observe(engine.now().since(timer.due).as_secs_f64());
            return None;
        }
        Err(CreateError::Store(error)) if error.is_transient() => {
            node.outage.felt("cannot fire a follow-up", &error);
            return Some(timer);
        }
        Err(
            CreateError::Draining
            | CreateError::TooManyWaiting { .. }
            | CreateError::TooManyOfTenant { .. }
            | CreateError::RateLimited { .. }
            | CreateError::AgentUnavailable { .. },
        ) => {
            return Some(timer);
        }
        Err(CreateError::Refused(_)) => node.metrics.stale_timers.inc(),
        Err(error) => {
            tracing::error!(thread = %id, %error, "a follow-up cannot be run");
            return put_off(node, timer, number, None).await;
        }
    };
    if let Err(error) = node.store.drop_timer(timer).await {
        node.outage.felt("cannot drop a stale timer", &error);
    }
    None
}
