//! The state machine of a run: every transition there is, and no other place that changes a status.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use uuid::Uuid;

use super::{
    Bound, Command, Effect, Event, Failure, Message, OpenStep, Question, Reason, Rejection, Retry, RetryReason,
    RunError, Segment, Spec, Status, Timestamp, Usage,
};

/// A run as it stands: its specification and the fold of its events.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    /// What it was asked to do.
    pub spec: Arc<Spec>,
    /// Where it stands.
    pub status: Status,
    /// The current or last attempt; 0 before the first. The fence: it rises with every claim.
    pub attempt: u32,
    /// Attempts that failed, charged to the budget.
    pub failures: u32,
    /// Workers that died over it since its last finished step, charged to the budget.
    pub crashes: u32,
    /// The highest number of a finished step.
    pub steps: u32,
    /// The steps that have begun and are not finished, in the order of their numbers.
    pub open: Vec<OpenStep>,
    /// The armed timer of a scheduled or waiting run.
    pub timer: Option<Timer>,
    /// Why it is scheduled or waiting.
    pub reason: Option<Reason>,
    /// How many timers were ever armed: the number of the last.
    pub timers_armed: u64,
    /// When the first attempt began.
    pub started_at: Option<Timestamp>,
    /// When the current attempt began.
    pub attempt_started_at: Option<Timestamp>,
    /// Running time of the attempts that are over, in milliseconds.
    pub ran_ms: u64,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
    /// Everything after this sequence number belongs to a step that is not finished.
    pub checkpoint_seq: u64,
    /// The sequence number of the last event.
    pub last_seq: u64,
    /// What it has used.
    pub usage: Usage,
    /// What it made.
    pub output: Option<Value>,
    /// What it has said before it waited for a person, with the ids of the messages. Its thread keeps it if the run ends
    /// while nobody executes it.
    pub said: Vec<(Uuid, Message)>,
    /// Why it ended as it did.
    pub outcome: Option<String>,
    /// Why it failed.
    pub error: Option<RunError>,
}

/// A timer of a run. Its id tells it from earlier timers of the same run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timer {
    /// When it fires.
    pub due: Timestamp,
    /// Counts the timers of the run from 1.
    pub id: u64,
}

/// What a decision may know besides the run.
#[derive(Debug, Clone, Copy)]
pub struct Context {
    /// The time.
    pub now: Timestamp,
    /// The sequence number that the next event will get.
    pub next_seq: u64,
    /// Another run holds its thread.
    pub busy: bool,
    /// What the open steps have used, as far as their attempt knows; `None`: nobody knows, and what they have reserved
    /// counts.
    pub spent: Option<Usage>,
}

/// How a run begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begin {
    /// Queued at once.
    Now,
    /// Scheduled until then; for a time that has passed, queued.
    At(Timestamp, Reason),
    /// Scheduled until the run that holds its thread has ended.
    Behind,
}

impl From<Option<Timestamp>> for Begin {
    /// A run that its creator wants delayed.
    fn from(due: Option<Timestamp>) -> Self {
        due.map_or(Self::Now, |due| Self::At(due, Reason::Delay))
    }
}

/// What a run takes over from the one that it goes on from.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Kept {
    /// The highest number of a finished step; 0: none is taken over.
    pub steps: u32,
    /// The steps that were cut off.
    pub cut_off: Vec<OpenStep>,
}

/// What follows from a command.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    /// To be journaled, applied and shown, in this order.
    pub events: Vec<Event>,
    /// To be performed after that.
    pub effects: Vec<Effect>,
}

/// A run after a decision.
#[derive(Debug, Clone, PartialEq)]
pub struct Changed {
    /// The run as it stands now.
    pub run: Run,
    /// The events that brought it there.
    pub segment: Segment,
    /// To be performed by whoever has asked for the decision.
    pub effects: Vec<Effect>,
}

impl Run {
    /// A new run, and the events that tell of it. It takes over what is `kept` of the run it goes on from.
    #[must_use]
    pub fn create(spec: Spec, begin: impl Into<Begin>, kept: Kept) -> (Self, Decision) {
        let now = spec.created_at;
        let created = Event::Created {
            agent: spec.agent.clone(),
            retry_of: spec.retry_of,
            steps_kept: kept.steps,
            cut_off: kept.cut_off,
        };
        let (next, effect) = match begin.into() {
            Begin::At(due, reason) if due > now => {
                (Event::Scheduled { due: Some(due), reason, timer: 1 }, Some(Effect::Arm(Timer { due, id: 1 })))
            }
            Begin::Now | Begin::At(..) => (Event::Queued {}, Some(Effect::Wake)),
            Begin::Behind => (BEHIND, None),
        };
        let mut run = Self::unborn(Arc::new(spec));
        let events = vec![created, next];
        for (event, seq) in events.iter().zip(1..) {
            run.apply(event, seq, now);
        }
        (run, Decision { events, effects: Vec::from_iter(effect) })
    }

    /// The state before the first event.
    #[must_use]
    pub fn unborn(spec: Arc<Spec>) -> Self {
        Self {
            spec,
            status: Status::Queued,
            attempt: 0,
            failures: 0,
            crashes: 0,
            steps: 0,
            open: Vec::new(),
            timer: None,
            reason: None,
            timers_armed: 0,
            started_at: None,
            attempt_started_at: None,
            ran_ms: 0,
            finished_at: None,
            checkpoint_seq: 0,
            last_seq: 0,
            usage: Usage::default(),
            output: None,
            said: Vec::new(),
            outcome: None,
            error: None,
        }
    }

    /// What follows from `command`. Pure: changes nothing.
    pub fn decide(&self, command: &Command, context: &Context) -> Result<Decision, Rejection> {
        match self.status {
            Status::Scheduled => self.decide_scheduled(command, context),
            Status::Queued => self.decide_queued(command, context),
            Status::Running => self.decide_running(command, context),
            Status::Waiting => self.decide_waiting(command, context),
            Status::Completed | Status::Failed | Status::Cancelled | Status::Expired => {
                Err(Rejection::Final(self.status))
            }
        }
    }

    fn decide_scheduled(&self, command: &Command, context: &Context) -> Result<Decision, Rejection> {
        let disarm = self.timer.map(Effect::Disarm);
        match command {
            Command::Fire { timer } => match self.timer {
                Some(armed) if armed.id == *timer && armed.due <= context.now => Ok(go(context)),
                _ => Err(Rejection::StaleTimer),
            },
            Command::Promote if self.reason == Some(Reason::ThreadBusy) && !context.busy => Ok(go(context)),
            Command::Join { due } if self.reason == Some(Reason::Debounce) => Ok(self.join(*due, context)),
            Command::Promote | Command::Join { .. } | Command::Resume { .. } => Err(Rejection::NotNow(self.status)),
            Command::Cancel => {
                Ok(Decision { events: vec![Event::Cancelled { usage: self.usage }], effects: Vec::from_iter(disarm) })
            }
            Command::Expire => self.expire(context, Vec::from_iter(disarm)),
            Command::Claim { .. } => Err(Rejection::NotNow(self.status)),
            Command::BeginStep(OpenStep { attempt, .. })
            | Command::FinishStep { attempt, .. }
            | Command::Complete { attempt, .. }
            | Command::Fail { attempt, .. }
            | Command::Wait { attempt, .. }
            | Command::Timeout { attempt }
            | Command::Release { attempt }
            | Command::Suspend { attempt }
            | Command::Crash { attempt, .. } => Err(self.late(*attempt)),
        }
    }

    fn decide_queued(&self, command: &Command, context: &Context) -> Result<Decision, Rejection> {
        match command {
            Command::Claim { node } => Ok(Decision {
                events: vec![Event::Started { attempt: self.attempt + 1, node: node.clone() }],
                effects: vec![Effect::StartAgent],
            }),
            Command::Cancel => {
                Ok(Decision { events: vec![Event::Cancelled { usage: self.usage }], effects: Vec::new() })
            }
            Command::Expire => self.expire(context, Vec::new()),
            Command::Fire { .. } => Err(Rejection::StaleTimer),
            Command::Promote | Command::Join { .. } | Command::Resume { .. } => Err(Rejection::NotNow(self.status)),
            Command::BeginStep(OpenStep { attempt, .. })
            | Command::FinishStep { attempt, .. }
            | Command::Complete { attempt, .. }
            | Command::Fail { attempt, .. }
            | Command::Wait { attempt, .. }
            | Command::Timeout { attempt }
            | Command::Release { attempt }
            | Command::Suspend { attempt }
            | Command::Crash { attempt, .. } => Err(self.late(*attempt)),
        }
    }

    fn decide_running(&self, command: &Command, context: &Context) -> Result<Decision, Rejection> {
        match command {
            Command::BeginStep(open) => {
                self.fence(open.attempt)?;
                self.begin(open)
            }
            Command::FinishStep { attempt, step, usage } => {
                self.fence(*attempt)?;
                let total = self.usage + *usage;
                Ok(Decision {
                    events: vec![Event::StepCompleted { step: *step, usage: *usage, total }],
                    effects: Vec::new(),
                })
            }
            Command::Complete { attempt, output, outcome, usage } => {
                self.fence(*attempt)?;
                let usage = self.settled(context) + *usage;
                let completed = Event::Completed { output: output.clone(), outcome: outcome.clone(), usage };
                // The agent has ended by itself: there is nothing to stop.
                Ok(Decision { events: vec![completed], effects: Vec::new() })
            }
            Command::Fail { attempt, failure } => {
                self.fence(*attempt)?;
                Ok(self.fail(failure, context))
            }
            Command::Timeout { attempt } => {
                self.fence(*attempt)?;
                Ok(Decision { events: vec![self.timed_out(context)], effects: vec![Effect::StopAgent] })
            }
            Command::Cancel => {
                let cancelled = Event::Cancelled { usage: self.settled(context) };
                Ok(Decision { events: vec![cancelled], effects: vec![Effect::StopAgent] })
            }
            Command::Release { attempt } => {
                self.fence(*attempt)?;
                Ok(self.let_go(RetryReason::Released, context))
            }
            Command::Suspend { attempt } => {
                self.fence(*attempt)?;
                Ok(self.let_go(RetryReason::Suspended, context))
            }
            Command::Crash { attempt, cancel } => {
                self.fence(*attempt)?;
                Ok(self.crash(*cancel, context))
            }
            Command::Wait { attempt, question } => {
                self.fence(*attempt)?;
                Ok(self.ask(question, context))
            }
            Command::Claim { .. }
            | Command::Promote
            | Command::Join { .. }
            | Command::Resume { .. }
            | Command::Expire => Err(Rejection::NotNow(self.status)),
            Command::Fire { .. } => Err(Rejection::StaleTimer),
        }
    }

    fn decide_waiting(&self, command: &Command, context: &Context) -> Result<Decision, Rejection> {
        let disarm = self.timer.map(Effect::Disarm);
        match command {
            Command::Resume { wait_id, .. } => {
                let current = self.wait_id().unwrap_or_default();
                if *wait_id != current {
                    return Err(Rejection::StaleWait { current });
                }
                // The number of no step that was cut off: what is known of that has to stay.
                let last = self.open.iter().map(|open| open.step).fold(self.steps, u32::max);
                let answered = Event::StepCompleted { step: last + 1, usage: Usage::default(), total: self.usage };
                let effects = disarm.into_iter().chain([Effect::Wake]).collect();
                Ok(Decision { events: vec![answered, Event::Queued {}], effects })
            }
            Command::Fire { timer } => match self.timer {
                Some(armed) if armed.id == *timer && armed.due <= context.now => {
                    Ok(Decision { events: vec![self.unanswered()], effects: Vec::new() })
                }
                _ => Err(Rejection::StaleTimer),
            },
            Command::Cancel => {
                Ok(Decision { events: vec![Event::Cancelled { usage: self.usage }], effects: Vec::from_iter(disarm) })
            }
            Command::Claim { .. } | Command::Promote | Command::Join { .. } | Command::Expire => {
                Err(Rejection::NotNow(self.status))
            }
            Command::BeginStep(OpenStep { attempt, .. })
            | Command::FinishStep { attempt, .. }
            | Command::Complete { attempt, .. }
            | Command::Fail { attempt, .. }
            | Command::Wait { attempt, .. }
            | Command::Timeout { attempt }
            | Command::Release { attempt }
            | Command::Suspend { attempt }
            | Command::Crash { attempt, .. } => Err(self.late(*attempt)),
        }
    }

    /// Folds `event`, number `seq`, recorded at `at`, into the state.
    pub fn apply(&mut self, event: &Event, seq: u64, at: Timestamp) {
        self.last_seq = seq;
        match event {
            Event::Created { steps_kept, cut_off, .. } => {
                self.steps = *steps_kept;
                self.open.clone_from(cut_off);
            }
            Event::StepStarted { step, kind, name, call_id, reserved } => {
                let begun = OpenStep {
                    step: *step,
                    kind: *kind,
                    name: name.clone(),
                    call_id: call_id.clone(),
                    attempt: self.attempt,
                    reserved: *reserved,
                };
                self.open.retain(|open| open.step != *step && (call_id.is_none() || open.call_id != *call_id));
                self.open.push(begun);
                self.open.sort_by_key(|open| open.step);
            }
            Event::MessageDelta { .. }
            | Event::ReasoningDelta { .. }
            | Event::MessageCompleted { .. }
            | Event::ToolStarted { .. }
            | Event::ToolOutput { .. }
            | Event::ToolCompleted { .. }
            | Event::PlanUpdated { .. }
            | Event::StepRetrying { .. }
            | Event::Log { .. }
            | Event::Custom { .. } => {}
            Event::Scheduled { due, reason, timer } => {
                self.schedule(*reason, due.map(|due| Timer { due, id: *timer }));
            }
            Event::Waiting { reason, due, timer, usage, .. } => {
                self.usage = *usage;
                self.abandon();
                self.stop_running(at);
                self.schedule(*reason, due.map(|due| Timer { due, id: *timer }));
                self.status = Status::Waiting;
            }
            Event::Queued {} => self.queue(),
            Event::Started { attempt, .. } => {
                self.status = Status::Running;
                self.attempt = *attempt;
                self.started_at.get_or_insert(at);
                self.attempt_started_at = Some(at);
                self.checkpoint_seq = seq;
            }
            Event::StepCompleted { step, total, .. } => {
                self.steps = self.steps.max(*step);
                self.open.retain(|open| open.step != *step);
                self.crashes = 0;
                self.usage = *total;
                self.checkpoint_seq = seq;
            }
            Event::Retrying { reason, due, timer, usage, .. } => {
                self.usage = *usage;
                self.abandon();
                match reason {
                    RetryReason::TransientError => self.failures += 1,
                    RetryReason::WorkerLost => {
                        self.crashes += 1;
                        // Nobody knows when the worker died. An hour without one is not running time.
                        self.attempt_started_at = None;
                    }
                    // Nor is an hour in which the worker waited for the store.
                    RetryReason::Suspended => self.attempt_started_at = None,
                    RetryReason::Released => {}
                }
                self.stop_running(at);
                match due {
                    Some(due) => self.schedule(Reason::Backoff, Some(Timer { due: *due, id: *timer })),
                    None => self.queue(),
                }
            }
            Event::Completed { output, outcome, usage } => {
                self.output = Some(output.clone());
                self.end(Status::Completed, outcome, *usage, at);
            }
            Event::Failed { code, message, outcome, usage } => {
                self.error = Some(RunError { code: code.clone(), message: message.clone() });
                self.end(Status::Failed, outcome, *usage, at);
            }
            Event::Cancelled { usage } => self.end(Status::Cancelled, "cancelled", *usage, at),
            Event::Expired {} => self.end(Status::Expired, "expired", self.usage, at),
        }
    }

    /// What a run that goes on from this one takes over.
    #[must_use]
    pub fn kept(&self) -> Kept {
        Kept { steps: self.steps, cut_off: self.open.clone() }
    }

    /// The running time left to the current attempt at its start.
    #[must_use]
    pub fn time_left(&self) -> Duration {
        Duration::from_millis(self.spec.timeout_ms.saturating_sub(self.ran_ms))
    }

    /// When the run expires if it has not started; absent once it has.
    #[must_use]
    pub fn expires_at(&self) -> Option<Timestamp> {
        if self.attempt == 0 && !self.status.is_final() { self.spec.ttl_at } else { None }
    }

    fn fence(&self, attempt: u32) -> Result<(), Rejection> {
        if attempt == self.attempt { Ok(()) } else { Err(Rejection::StaleAttempt { current: self.attempt }) }
    }

    /// Why something from an attempt is refused while none is going on.
    fn late(&self, attempt: u32) -> Rejection {
        self.fence(attempt).err().unwrap_or(Rejection::NotNow(self.status))
    }

    fn expire(&self, context: &Context, effects: Vec<Effect>) -> Result<Decision, Rejection> {
        match self.expires_at() {
            Some(at) if at <= context.now => Ok(Decision { events: vec![Event::Expired {}], effects }),
            _ => Err(Rejection::StaleTimer),
        }
    }

    /// The attempt ends through no fault of the run.
    fn let_go(&self, reason: RetryReason, context: &Context) -> Decision {
        let events = vec![self.retrying(reason, None, None, self.settled(context), context)];
        Decision { events, effects: vec![Effect::StopAgent, Effect::Wake] }
    }

    fn fail(&self, failure: &Failure, context: &Context) -> Decision {
        let usage = self.settled(context) + failure.usage;
        let budget_left = self.failures + self.crashes + 1 < self.spec.max_attempts;
        let (outcome, wait) = match failure.retry {
            Retry::After(wait) if budget_left => (None, wait),
            Retry::After(wait) => (Some("attempts_exhausted"), wait),
            Retry::Never => (Some("error"), Duration::ZERO),
            Retry::OutOfBudget(bound) => (Some(bound.outcome()), Duration::ZERO),
        };
        if let Some(outcome) = outcome {
            let RunError { code, message } = failure.error.clone();
            let failed = Event::Failed { code, message, outcome: outcome.to_owned(), usage };
            return Decision { events: vec![failed], effects: Vec::new() };
        }
        let timer = Timer { due: context.now.after(wait), id: self.timers_armed + 1 };
        let retrying = self.retrying(
            RetryReason::TransientError,
            Some(format!("{}: {}", failure.error.code, failure.error.message)),
            Some(timer),
            usage,
            context,
        );
        Decision { events: vec![retrying], effects: vec![Effect::Arm(timer)] }
    }

    /// A lost worker is nobody's fault until it happens again and again: such a run is poison, and a
    /// wait would not help the next one. So it is tried again at once, while the budget lasts. Also where
    /// nothing is tried any more, the attempt is abandoned first: that is where the numbers jump over
    /// those which may have been shown and lost.
    fn crash(&self, cancel: bool, context: &Context) -> Decision {
        let usage = self.settled(context);
        let mut events = vec![self.retrying(RetryReason::WorkerLost, None, None, usage, context)];
        let mut effects = vec![Effect::StopAgent];
        if cancel {
            events.push(Event::Cancelled { usage });
        } else if self.failures + self.crashes + 1 >= self.spec.max_attempts {
            events.push(Event::Failed {
                code: "worker_lost".to_owned(),
                message: format!("{} attempts in a row were lost with their workers", self.crashes + 1),
                outcome: "attempts_exhausted".to_owned(),
                usage,
            });
        } else {
            effects.push(Effect::Wake);
        }
        Decision { events, effects }
    }

    fn timed_out(&self, context: &Context) -> Event {
        let bound = self.spec.budget.time_ms.is_some_and(|most| most <= self.spec.timeout_ms);
        Event::Failed {
            code: if bound { "out_of_budget" } else { "timeout" }.to_owned(),
            message: "Execution timeout".to_owned(),
            outcome: if bound { Bound::Time.outcome() } else { "deadline" }.to_owned(),
            usage: self.settled(context),
        }
    }

    /// What the step reserves counts as used from now on: what is begun fits into the budget, whatever comes of it.
    fn begin(&self, open: &OpenStep) -> Result<Decision, Rejection> {
        let budget = &self.spec.budget;
        if budget.steps.is_some_and(|most| open.step > most) {
            return Err(Rejection::OutOfBudget(Bound::Steps));
        }
        // What the same step, or call, had reserved before is given back.
        let anew = |other: &&OpenStep| other.step != open.step;
        let reserved: Usage = self.open.iter().filter(anew).map(|open| open.reserved).sum();
        if let Some(bound) = budget.exceeded(self.usage + reserved + open.reserved) {
            return Err(Rejection::OutOfBudget(bound));
        }
        let OpenStep { step, kind, name, call_id, reserved, .. } = open.clone();
        let started = Event::StepStarted { step, kind, name, call_id, reserved };
        Ok(Decision { events: vec![started], effects: Vec::new() })
    }

    /// What the run has used when its attempt ends now.
    fn settled(&self, context: &Context) -> Usage {
        let reserved = || self.open.iter().map(|open| open.reserved).sum();
        let open = context.spent.unwrap_or_else(reserved);
        // It is never more than an estimate: nobody has seen the end of it.
        let estimated = !open.is_nothing();
        self.usage + Usage { estimated, ..open }
    }

    /// The attempt is over: its open steps reserve nothing any more, and were cut off.
    fn abandon(&mut self) {
        self.open.iter_mut().for_each(|open| open.reserved = Usage::default());
    }

    fn retrying(
        &self,
        reason: RetryReason,
        message: Option<String>,
        timer: Option<Timer>,
        usage: Usage,
        context: &Context,
    ) -> Event {
        Event::Retrying {
            reason,
            message,
            due: timer.map(|timer| timer.due),
            timer: timer.map_or(0, |timer| timer.id),
            void_after: self.checkpoint_seq,
            skips_to: context.next_seq,
            usage,
        }
    }

    /// More may come until `due`, but not for longer than the run can be put off.
    fn join(&self, due: Timestamp, context: &Context) -> Decision {
        let due = self.spec.latest_due.map_or(due, |latest| due.min(latest));
        let disarm = self.timer.map(Effect::Disarm);
        let mut decision = if due > context.now {
            let timer = Timer { due, id: self.timers_armed + 1 };
            let again = Event::Scheduled { due: Some(due), reason: Reason::Debounce, timer: timer.id };
            Decision { events: vec![again], effects: vec![Effect::Arm(timer)] }
        } else {
            go(context)
        };
        decision.effects.splice(0..0, disarm);
        decision
    }

    fn ask(&self, question: &Question, context: &Context) -> Decision {
        let timer = question.deadline.map(|due| Timer { due, id: self.timers_armed + 1 });
        let waiting = Event::Waiting {
            wait_id: wait_id(context.next_seq),
            reason: question.reason,
            prompt: question.prompt.clone(),
            due: question.deadline,
            timer: timer.map_or(0, |timer| timer.id),
            usage: self.settled(context),
        };
        Decision { events: vec![waiting], effects: timer.map(Effect::Arm).into_iter().collect() }
    }

    fn unanswered(&self) -> Event {
        Event::Failed {
            code: "wait_expired".to_owned(),
            message: "Nobody answered in time".to_owned(),
            outcome: "deadline".to_owned(),
            usage: self.usage,
        }
    }

    /// Names the question that the run waits for an answer to.
    #[must_use]
    pub fn wait_id(&self) -> Option<String> {
        // Nothing happens to a run while it waits: the question is its last event.
        (self.status == Status::Waiting).then(|| wait_id(self.last_seq))
    }

    /// It is going on in this attempt.
    #[must_use]
    pub fn is_attempt(&self, attempt: u32) -> bool {
        self.status == Status::Running && self.attempt == attempt
    }

    /// It is scheduled, and another message may join its input. Not that of a retry, which may go on from behind it.
    #[must_use]
    pub fn gathers(&self) -> bool {
        self.status == Status::Scheduled
            && self.spec.retry_of.is_none()
            && matches!(self.reason, Some(Reason::Debounce | Reason::ThreadBusy))
    }

    fn schedule(&mut self, reason: Reason, timer: Option<Timer>) {
        self.status = Status::Scheduled;
        self.reason = Some(reason);
        self.timer = timer;
        if let Some(timer) = timer {
            self.timers_armed = timer.id;
        }
    }

    fn queue(&mut self) {
        self.status = Status::Queued;
        self.reason = None;
        self.timer = None;
    }

    fn stop_running(&mut self, at: Timestamp) {
        if let Some(began) = self.attempt_started_at.take() {
            let ran = u64::try_from(at.since(began).as_millis()).unwrap_or(u64::MAX);
            self.ran_ms = self.ran_ms.saturating_add(ran);
        }
    }

    fn end(&mut self, status: Status, outcome: &str, usage: Usage, at: Timestamp) {
        self.stop_running(at);
        self.abandon();
        self.status = status;
        self.reason = None;
        self.timer = None;
        self.outcome = Some(outcome.to_owned());
        self.usage = usage;
        self.finished_at = Some(at);
    }
}

const BEHIND: Event = Event::Scheduled { due: None, reason: Reason::ThreadBusy, timer: 0 };

/// The run's time has come: it is queued, unless another holds its thread.
fn go(context: &Context) -> Decision {
    match context.busy {
        true => Decision { events: vec![BEHIND], effects: Vec::new() },
        false => Decision { events: vec![Event::Queued {}], effects: vec![Effect::Wake] },
    }
}

/// The question that event number `seq` asks.
fn wait_id(seq: u64) -> String {
    format!("w{seq}")
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
