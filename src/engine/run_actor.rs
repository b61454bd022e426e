//! One live run: the actor around the pure state machine, and the only writer of its run.
//!
//! Whatever happens becomes a [`Change`]; changes are journaled one after the other, and each in this
//! order: decide, journal, apply, show, perform. Tokens take the short way: the agent's task puts them
//! into the log, where viewers see them at once, and a flush journals them soon after.
//!
//! The actor ends when the run leaves `running`, when the store says that the attempt is no longer the
//! run's, or when the store cannot be written to any more. Its supervisor sees it go.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use rand::RngExt;
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::task::{AbortHandle, JoinError};
use uuid::Uuid;

use super::Node;
use super::conversation::{Said, Taken, conversation, hand_off_by_run, said_before, take_steers};
use super::effects::perform;
use super::feed::{Pushed, RunLog};
use super::mailbox::post;
use super::recovery::follow;
use super::sharing::relieve;
use super::supervisor::{Gone, Start, Supervisor};
use crate::agent::{
    Agent, AgentError, Answer, Asked, BeginStep, Conversation, NotBegun, Push, RunContext, Sink, Stopped,
};
use crate::run::{
    Command, Context as Moment, Decision, Event, Failure, Message, OpenStep, Question, Rejection, Retry, Run, RunError,
    Spec, StepRecord, Timestamp, Usage,
};
use crate::store::{Claimed, Commit, Committed, Farewell, StoreError};

/// The waits between tries to reach a store that is away.
const STORE_RETRY: crate::run::Backoff =
    crate::run::Backoff { base: Duration::from_millis(100), max: Duration::from_secs(5) };

/// The actor of one live run.
pub(crate) struct RunActor {
    node: Arc<Node>,
    supervisor: Addr<Supervisor>,
    run: Run,
    steps: Vec<StepRecord>,
    history: Vec<Message>,
    taken: Taken,
    said: Arc<Mutex<Said>>,
    meter: Arc<Mutex<Meter>>,
    log: Arc<RunLog>,
    reserved_seq: u64,
    commits: u64,
    /// What waits to be journaled, in order.
    changes: VecDeque<Change>,
    committing: bool,
    flushing: Option<SpawnHandle>,
    agent: Option<AbortHandle>,
    /// What would have ended the attempt while another end was on its way to the store.
    late_end: Option<Command>,
    ending: Ending,
    /// The run belongs to somebody else; what is on its way to the store will be told so.
    lost: bool,
    /// Dropped with the actor: room for the next run.
    _permit: OwnedSemaphorePermit,
}

/// How the actor ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// Nobody has decided it: the attempt is to be given up.
    Unforeseen,
    /// The run has another owner, or none.
    Fenced,
    /// The run has left `running`, and the store knows.
    Settled,
}

/// What the run has used, as its agent asks for it and reports it.
struct Meter {
    /// What is used for good, and what is reserved.
    used: Usage,
    /// What the open steps of this attempt have used until now.
    open: BTreeMap<u32, Usage>,
}

/// Something that wants to be journaled.
enum Change {
    /// The tokens that have gathered.
    Tokens,
    /// A step that is to begin, and who waits for it.
    Begin(BeginStep, oneshot::Sender<Result<u64, NotBegun>>),
    /// A finished step, and who waits for it.
    Step(StepRecord, oneshot::Sender<Result<(), Stopped>>),
    /// The attempt is over.
    End(Command),
}

/// A change that has been decided and is on its way to the store.
struct Decided {
    commit: Commit,
    decision: Option<Decision>,
    told: Told,
    ends: bool,
}

/// Who waits for a change to be in the store.
enum Told {
    Nobody,
    /// The step has begun, with the event of this number.
    Begun(oneshot::Sender<Result<u64, NotBegun>>, u64),
    /// The step is finished.
    Finished(oneshot::Sender<Result<(), Stopped>>),
}

/// The first of some tokens has been shown. At most one is under way.
#[derive(Message)]
#[rtype(result = "()")]
struct Dirty;

/// The agent waits for room. At most one is under way for each waiting call.
#[derive(Message)]
#[rtype(result = "()")]
struct Full;

/// The agent begins a step.
#[derive(Message)]
#[rtype(result = "()")]
struct StartStep(BeginStep, oneshot::Sender<Result<u64, NotBegun>>);

/// The agent has finished a step.
#[derive(Message)]
#[rtype(result = "()")]
struct FinishStep(StepRecord, oneshot::Sender<Result<(), Stopped>>);

/// The attempt must end, from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Message)]
#[rtype(result = "()")]
pub(crate) enum Stop {
    /// Someone cancelled the run.
    Cancel,
    /// The node shuts down.
    Release,
    /// The lease could not be extended in time.
    Suspend,
    /// The run belongs to somebody else.
    Lost,
}

impl RunActor {
    pub(crate) fn new(node: Arc<Node>, supervisor: Addr<Supervisor>, Start { claimed, lease, permit }: Start) -> Self {
        let Claimed { run, segment, reserved_seq, steps } = claimed;
        let log = node.feed.own(&run, &segment, reserved_seq, lease);
        node.metrics.live_runs.inc();
        let meter = Meter { used: run.usage, open: BTreeMap::new() };
        Self {
            node,
            supervisor,
            run,
            steps,
            history: Vec::new(),
            taken: Taken::default(),
            said: Arc::default(),
            meter: Arc::new(Mutex::new(meter)),
            log,
            reserved_seq,
            commits: 0,
            changes: VecDeque::new(),
            committing: false,
            flushing: None,
            agent: None,
            late_end: None,
            ending: Ending::Unforeseen,
            lost: false,
            _permit: permit,
        }
    }

    fn start_agent(&mut self, context: &mut Context<Self>) {
        let spec = Arc::clone(&self.run.spec);
        let Some(agent) = self.node.agents.get(&spec.agent).cloned() else {
            let error = AgentError::permanent("unknown_agent", "this node does not have the run's agent");
            return self.attempt_over(Ok(Err(error)), context);
        };
        let sink = AttemptSink {
            actor: context.address(),
            log: Arc::clone(&self.log),
            node: Arc::clone(&self.node),
            spec: Arc::clone(&spec),
            attempt: self.run.attempt,
            said: Arc::clone(&self.said),
            meter: Arc::clone(&self.meter),
            taken: Arc::clone(&self.taken),
        };
        let attempt = RunContext::new(spec, self.run.attempt, self.steps.clone(), Arc::new(sink))
            .in_conversation(Conversation { history: self.history.clone(), steers: self.taken.lock().clone() })
            .after(self.run.open.clone());
        // A task of its own: a panic stays in it, and dropping it is possible at any await.
        let task = tokio::spawn(async move { Agent::run(&*agent, attempt).await });
        self.agent = Some(task.abort_handle());
        context.spawn(task.into_actor(self).map(|result, actor, context| actor.attempt_over(result, context)));
    }

    /// Closes the agent's sockets and ends its processes, by dropping its task.
    fn stop_agent(&mut self) {
        if let Some(agent) = self.agent.take() {
            agent.abort();
        }
    }

    fn attempt_over(&mut self, result: Result<Result<Answer, AgentError>, JoinError>, context: &mut Context<Self>) {
        self.agent = None;
        let attempt = self.run.attempt;
        let command = match result {
            Ok(Ok(Answer { output, outcome, usage })) => Command::Complete { attempt, output, outcome, usage },
            // Whatever stopped it has been told already.
            Ok(Err(AgentError::Stopped)) => return,
            Ok(Err(AgentError::Ask(Asked { reason, prompt, deadline }))) => {
                let deadline = deadline.map(|wait| self.node.clock.now().after(wait));
                Command::Wait { attempt, question: Question { reason, prompt, deadline } }
            }
            Ok(Err(AgentError::OutOfBudget(bound))) => {
                let message = format!("what is left of the run's budget is not enough: {}", bound.outcome());
                let error = RunError { code: "out_of_budget".to_owned(), message };
                let failure = Failure { error, retry: Retry::OutOfBudget(bound), usage: Usage::default() };
                Command::Fail { attempt, failure }
            }
            Ok(Err(AgentError::Permanent { code, message })) => self.failed(RunError { code, message }, None),
            Ok(Err(AgentError::Transient { code, message, retry_after })) => {
                self.failed(RunError { code, message }, Some(retry_after))
            }
            Err(error) if error.is_cancelled() => return,
            Err(_) => {
                // The panic hook has logged it, with its place.
                self.node.metrics.agent_panics.inc();
                let message = "the agent panicked; the log of the node has the details".to_owned();
                self.failed(RunError { code: "agent_panic".to_owned(), message }, Some(None))
            }
        };
        self.end(command, context);
    }

    /// The command for a failed attempt; `transient` holds what its provider asked to wait.
    fn failed(&self, error: RunError, transient: Option<Option<Duration>>) -> Command {
        let retry = match transient {
            None => Retry::Never,
            Some(retry_after) => {
                let failures = self.run.failures + 1;
                Retry::After(self.node.settings.backoff.delay(failures, rand::rng().random(), retry_after))
            }
        };
        let failure = Failure { error, retry, usage: Usage::default() };
        Command::Fail { attempt: self.run.attempt, failure }
    }

    /// The attempt ends by `command`, unless it is ending already.
    fn end(&mut self, command: Command, context: &mut Context<Self>) {
        if self.log.seal() {
            self.change(Change::End(command), context);
        } else {
            self.late_end.get_or_insert(command);
        }
    }

    /// Messages were handed to the run at the last moment: its agent goes on with them, or begins another attempt, if
    /// it would say again what it has said.
    fn go_on(&mut self, context: &mut Context<Self>) {
        let (node, run, taken) = (Arc::clone(&self.node), self.run.clone(), Arc::clone(&self.taken));
        let take = async move { take_steers(&node, &run.spec, run.attempt, run.steps, &taken).await };
        context.spawn(take.into_actor(self).map(|_, actor, context| {
            if actor.lost {
                return actor.fenced(context);
            }
            match actor.late_end.take() {
                Some(command) => actor.change(Change::End(command), context),
                None if actor.node.agents.get(&actor.run.spec.agent).is_some_and(|agent| agent.goes_on()) => {
                    actor.log.unseal();
                    actor.start_agent(context);
                }
                None => {
                    let attempt = actor.run.attempt;
                    actor.change(Change::End(Command::Release { attempt }), context);
                }
            }
        }));
    }

    /// What the run leaves to its thread if it ends as `run`.
    fn farewell(&self, run: &Run, now: Timestamp) -> Option<Farewell> {
        run.spec.thread.filter(|_| run.status.is_final())?;
        let said = self.said_as(run);
        let card = self.node.agents.card(&run.spec.agent);
        let rules = card.map(|card| Arc::clone(&card.manners.follow_ups)).unwrap_or_default();
        Some(Farewell { said, rules, now })
    }

    /// What it has said when it stands as `run`, as new messages.
    fn said_as(&self, run: &Run) -> Vec<(Uuid, Message)> {
        self.said.lock().all(run).into_iter().map(|said| (self.node.clock.id(), said)).collect()
    }

    fn change(&mut self, change: Change, context: &mut Context<Self>) {
        self.changes.push_back(change);
        self.journal_next(context);
    }

    fn journal_next(&mut self, context: &mut Context<Self>) {
        if self.committing {
            return;
        }
        while let Some(change) = self.changes.pop_front() {
            if let Some(decided) = self.decide(change, context) {
                self.commits += 1;
                self.committing = true;
                return self.commit(decided, 0, context);
            }
        }
    }

    /// What `change` leads to; `None`: nothing.
    fn decide(&mut self, change: Change, context: &mut Context<Self>) -> Option<Decided> {
        if let Some(flush) = self.flushing.take() {
            context.cancel_future(flush);
        }
        let now = self.node.clock.now();
        let attempt = self.run.attempt;
        let (command, step, mut told) = match change {
            Change::Tokens => (None, None, Told::Nobody),
            Change::Begin(begin, waiting) => {
                let BeginStep { step, kind, name, call_id, reserve } = begin;
                let open = OpenStep { step, kind, name, call_id, attempt, reserved: reserve };
                (Some(Command::BeginStep(open)), None, Told::Begun(waiting, 0))
            }
            Change::Step(record, waiting) => {
                let command = Command::FinishStep { attempt, step: record.step, usage: record.usage };
                (Some(command), Some(record), Told::Finished(waiting))
            }
            Change::End(command) => (Some(command), None, Told::Nobody),
        };
        let mut run = self.run.clone();
        let mut decision = None;
        if let Some(command) = &command {
            let spent = Some(self.meter.lock().open.values().copied().sum());
            let moment = Moment { now, next_seq: self.log.next_seq(), busy: false, spent };
            let decided = match run.decide(command, &moment) {
                Ok(decided) => decided,
                Err(Rejection::OutOfBudget(bound)) => {
                    if let Told::Begun(waiting, _) = told {
                        // An agent that has been dropped meanwhile does not want to know.
                        waiting.send(Err(NotBegun::OutOfBudget(bound))).unwrap_or_default();
                    }
                    // What has gathered is journaled all the same.
                    self.flush_soon(context);
                    return None;
                }
                Err(rejection) => {
                    // Only something of another attempt can come here, and nothing is owed to it.
                    tracing::warn!(run = %run.spec.id, attempt = run.attempt, %rejection, "command rejected");
                    self.node.metrics.stale_commands.inc();
                    return None;
                }
            };
            let first_seq = self.log.hold(&decided.events, now);
            for (event, seq) in decided.events.iter().zip(first_seq..) {
                run.apply(event, seq, now);
            }
            if let Told::Begun(_, seq) = &mut told {
                *seq = first_seq;
            }
            decision = Some(decided);
        }
        let segment = self.log.take_unjournaled();
        if segment.is_none() && decision.is_none() {
            return None;
        }
        if let Some(segment) = &segment {
            run.last_seq = segment.last_seq();
        }
        let ends = run.status != crate::run::Status::Running;
        if run.status == crate::run::Status::Waiting && run.spec.thread.is_some() {
            run.said = self.said_as(&run);
        }
        let reserved_seq = if ends { run.last_seq } else { run.last_seq + self.node.settings.reserve };
        let farewell = self.farewell(&run, now);
        let commit = Commit { run, number: self.commits + 1, segment, reserved_seq, step, farewell };
        Some(Decided { commit, decision, told, ends })
    }

    fn commit(&mut self, decided: Decided, failures: u32, context: &mut Context<Self>) {
        let store = Arc::clone(&self.node.store);
        let commit = decided.commit.clone();
        context.spawn(
            async move { store.commit(commit).await }
                .into_actor(self)
                .map(move |result, actor, context| actor.committed(result, decided, failures, context)),
        );
    }

    fn committed(
        &mut self,
        result: Result<Committed, StoreError>,
        decided: Decided,
        failures: u32,
        context: &mut Context<Self>,
    ) {
        match result {
            Ok(Committed::Done) => self.written(decided, context),
            Ok(Committed::Followed(followed)) => {
                self.written(decided, context);
                follow(&self.node, followed);
            }
            Ok(Committed::CancelWaits | Committed::SteerWaits) if self.lost => self.fenced(context),
            Ok(Committed::SteerWaits) => {
                // What was decided has not happened, and nobody has seen it.
                self.committing = false;
                self.commits -= 1;
                self.log.retract();
                self.changes.clear();
                self.go_on(context);
            }
            Ok(Committed::CancelWaits) => {
                // What was decided has not happened, and nobody has seen it. The cancel goes first.
                self.committing = false;
                self.commits -= 1;
                self.log.retract();
                self.changes.clear();
                self.change(Change::End(Command::Cancel), context);
            }
            Ok(Committed::Fenced) => self.fenced(context),
            Err(error) if error.is_transient() => {
                let wait = STORE_RETRY.delay(failures + 1, rand::rng().random(), None);
                self.node.outage.felt("cannot journal; the runs wait for the store", &error);
                let later = actix::clock::sleep(wait).into_actor(self);
                context.spawn(later.map(move |(), actor, context| actor.commit(decided, failures + 1, context)));
            }
            Err(error) => {
                tracing::error!(run = %self.run.spec.id, %error, "cannot journal; the attempt is given up");
                self.stop(context);
            }
        }
    }

    fn written(&mut self, decided: Decided, context: &mut Context<Self>) {
        self.node.outage.is_over();
        self.committing = false;
        self.done(decided, context);
        if self.lost && self.ending != Ending::Settled {
            return self.fenced(context);
        }
        self.journal_next(context);
    }

    /// The decision is in the store: apply it, show it, perform what follows.
    fn done(&mut self, decided: Decided, context: &mut Context<Self>) {
        let Decided { commit, decision, told, ends } = decided;
        self.run = commit.run;
        self.reserved_seq = commit.reserved_seq;
        let keep = self.node.feed.settings().log_memory;
        self.log.reveal(self.run.last_seq, self.reserved_seq, self.run.status.is_final(), keep);
        self.steps.extend(commit.step);
        self.measure();
        // An agent that has been dropped meanwhile does not want to know.
        match told {
            Told::Nobody => {}
            Told::Begun(waiting, seq) => waiting.send(Ok(seq)).unwrap_or_default(),
            Told::Finished(waiting) => waiting.send(Ok(())).unwrap_or_default(),
        }
        if let Some(decision) = decision {
            perform(&self.node, &self.run, decision.effects);
        }
        if ends {
            self.ending = Ending::Settled;
            self.node.metrics.run_left(&self.run);
            relieve(&self.node, &self.run);
            self.stop(context);
        }
    }

    /// The run stands as it does now, for whoever asks what it has used.
    fn measure(&self) {
        let mut meter = self.meter.lock();
        let reserved: Usage = self.run.open.iter().map(|open| open.reserved).sum();
        meter.used = self.run.usage + reserved;
        meter.open.retain(|step, _| self.run.open.iter().any(|open| open.step == *step));
    }

    /// The run belongs to somebody else: nothing more is shown or written.
    fn lose(&mut self, context: &mut Context<Self>) {
        self.log.seal();
        self.changes.clear();
        self.lost = true;
        // What is on its way may be the end of the run, which is why it is not found running any more.
        if !self.committing {
            self.fenced(context);
        }
    }

    fn fenced(&mut self, context: &mut Context<Self>) {
        tracing::warn!(run = %self.run.spec.id, attempt = self.run.attempt, "fenced off: the run has another owner");
        self.node.metrics.fenced.inc();
        self.ending = Ending::Fenced;
        self.stop(context);
    }

    fn stop(&mut self, context: &mut Context<Self>) {
        self.stop_agent();
        self.changes.clear();
        context.stop();
    }

    fn flush_soon(&mut self, context: &mut Context<Self>) {
        if self.flushing.is_none() {
            let wait = self.node.settings.flush_interval;
            self.flushing = Some(context.run_later(wait, |actor, context| {
                actor.flushing = None;
                actor.change(Change::Tokens, context);
            }));
        }
    }
}

impl Actor for RunActor {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Self::Context) {
        let attempt = self.run.attempt;
        context.run_later(self.run.time_left(), move |actor, context| {
            actor.stop_agent();
            actor.end(Command::Timeout { attempt }, context);
        });
        if self.run.spec.thread.is_none() {
            return self.start_agent(context);
        }
        let (node, run) = (Arc::clone(&self.node), self.run.clone());
        let load = async move { Ok((conversation(&node, &run.spec).await?, said_before(&node, &run).await?)) };
        let load = load.boxed() as BoxFuture<'static, Result<(Conversation, Said), StoreError>>;
        context.spawn(load.into_actor(self).map(|loaded, actor, context| match loaded {
            Ok((conversation, said)) => {
                // It may have been stopped meanwhile; what follows from that is on its way.
                if actor.log.is_sealed() {
                    return;
                }
                actor.history = conversation.history;
                *actor.taken.lock() = conversation.steers;
                *actor.said.lock() = said;
                actor.start_agent(context);
            }
            Err(error) => {
                let error = AgentError::transient("conversation_unreadable", error.to_string());
                actor.attempt_over(Ok(Err(error)), context);
            }
        }));
    }
}

/// Runs however the actor ends, also by a panic in one of its handlers.
impl Drop for RunActor {
    fn drop(&mut self) {
        self.stop_agent();
        self.node.metrics.live_runs.dec();
        self.log.disown(self.ending != Ending::Settled);
        self.node.leases.end(self.run.spec.id, self.run.attempt);
        self.node.feed.disowned(&self.log);
        let foreseen = self.ending != Ending::Unforeseen;
        let gone = Gone { run: self.run.spec.id, attempt: self.run.attempt, foreseen };
        // Bounded by the number of actors.
        post(&self.supervisor, gone);
    }
}

impl Handler<Dirty> for RunActor {
    type Result = ();

    fn handle(&mut self, Dirty: Dirty, context: &mut Self::Context) {
        self.flush_soon(context);
    }
}

impl Handler<Full> for RunActor {
    type Result = ();

    fn handle(&mut self, Full: Full, context: &mut Self::Context) {
        // One flush is enough, and those that wait behind a commit come by themselves.
        if !self.committing {
            self.change(Change::Tokens, context);
        }
    }
}

impl Handler<StartStep> for RunActor {
    type Result = ();

    fn handle(&mut self, StartStep(begin, waiting): StartStep, context: &mut Self::Context) {
        self.change(Change::Begin(begin, waiting), context);
    }
}

impl Handler<FinishStep> for RunActor {
    type Result = ();

    fn handle(&mut self, FinishStep(record, waiting): FinishStep, context: &mut Self::Context) {
        self.change(Change::Step(record, waiting), context);
    }
}

impl Handler<Stop> for RunActor {
    type Result = ();

    fn handle(&mut self, stop: Stop, context: &mut Self::Context) {
        // The wish is in the store already, so the model's socket need not wait for another commit.
        self.stop_agent();
        let attempt = self.run.attempt;
        match stop {
            Stop::Cancel => self.end(Command::Cancel, context),
            Stop::Release => self.end(Command::Release { attempt }, context),
            Stop::Suspend => {
                self.node.metrics.suspended.inc();
                self.end(Command::Suspend { attempt }, context);
            }
            Stop::Lost => self.lose(context),
        }
    }
}

/// Where the agent's events go.
struct AttemptSink {
    actor: Addr<RunActor>,
    log: Arc<RunLog>,
    node: Arc<Node>,
    spec: Arc<Spec>,
    attempt: u32,
    said: Arc<Mutex<Said>>,
    meter: Arc<Mutex<Meter>>,
    taken: Taken,
}

impl AttemptSink {
    fn now(&self) -> Timestamp {
        self.node.clock.now()
    }
}

impl Sink for AttemptSink {
    fn push(&self, event: Event) -> Push {
        let heard = self.spec.thread.is_some().then(|| event.clone());
        match self.log.push(event, self.now(), self.node.settings.max_unflushed) {
            Pushed::Shown { first } => {
                heard.inspect(|event| self.said.lock().hear(event));
                if first {
                    // Bounded: one until the journal has looked.
                    post(&self.actor, Dirty);
                }
                Push::Shown
            }
            Pushed::Full(event) => Push::Full(event),
            Pushed::Sealed => Push::Stopped,
        }
    }

    fn room(&self) -> BoxFuture<'_, ()> {
        // Bounded by the agent's own concurrency: each waiting call sends one.
        post(&self.actor, Full);
        self.log.room(self.node.settings.max_unflushed).boxed()
    }

    fn begin_step(&self, begin: BeginStep) -> BoxFuture<'_, Result<u64, NotBegun>> {
        async move {
            let (tell, told) = oneshot::channel();
            self.actor.send(StartStep(begin, tell)).await.map_err(|_| NotBegun::Stopped)?;
            told.await.unwrap_or(Err(NotBegun::Stopped))
        }
        .boxed()
    }

    fn spent(&self, step: u32, usage: Usage) {
        self.meter.lock().open.insert(step, usage);
    }

    fn used(&self) -> Usage {
        self.meter.lock().used
    }

    fn finish_step(&self, record: StepRecord) -> BoxFuture<'_, Result<(), Stopped>> {
        async move {
            let (tell, told) = oneshot::channel();
            self.actor.send(FinishStep(record, tell)).await.map_err(|_| Stopped)?;
            told.await.unwrap_or(Err(Stopped))
        }
        .boxed()
    }

    fn take_steers(&self, after_step: u32) -> BoxFuture<'_, Result<Vec<Message>, Stopped>> {
        async move { Ok(take_steers(&self.node, &self.spec, self.attempt, after_step, &self.taken).await) }.boxed()
    }

    fn hand_off(&self, reason: String) -> BoxFuture<'_, Result<(), Stopped>> {
        async move {
            hand_off_by_run(&self.node, &self.spec, self.attempt, reason).await;
            Ok(())
        }
        .boxed()
    }
}
