//! What the cases are made of.

use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use crate::run::{
    Command, Context, Event, Failure, Input, Kept, OnDisconnect, Retry, Run, RunError, RunId, Segment, Spec, Status,
    StepKind, StepRecord, Tenant, Timestamp, Usage,
};
use crate::store::{
    Claim, Claimed, Commit, Committed, Created, IdempotencyKey, Limits, NewRun, RunStore, Share, Stored, TimerKey,
    Transition,
};

/// How many numbers a claim reserves.
pub(crate) const RESERVE: u64 = 100;

/// For how long: longer than any case takes.
pub(crate) const LEASE: Duration = Duration::from_secs(600);

/// What the runs of the cases have used when they end.
pub(crate) const USED: Usage = Usage { input_tokens: 7, output_tokens: 5, estimated: true, cost_micros: 0 };

pub(crate) fn seconds(seconds: i64) -> Timestamp {
    Timestamp::from_millis(seconds * 1_000)
}

/// When everything happens that has no time of its own.
pub(crate) fn now() -> Timestamp {
    seconds(1_000)
}

pub(crate) fn tenant() -> Tenant {
    Tenant::default()
}

pub(crate) fn id(number: u64) -> RunId {
    RunId::from_uuid(Uuid::from_u128(number.into()))
}

/// A plain specification for run `number`.
pub(crate) fn spec(number: u64) -> Spec {
    Spec {
        id: id(number),
        tenant: tenant(),
        agent: "chat".into(),
        agent_version: "1".into(),
        input: Input::Text("hello".into()),
        params: serde_json::Map::new(),
        priority: 0,
        ttl_at: None,
        timeout_ms: 60_000,
        max_attempts: 3,
        on_disconnect: OnDisconnect::Continue,
        metadata: Default::default(),
        thread: None,
        latest_due: None,
        retry_of: None,
        concurrency_key: None,
        correlation_id: None,
        webhook: None,
        budget: crate::run::Budget::NONE,
        created_at: now(),
    }
}

pub(crate) fn new_run(spec: Spec, due: Option<Timestamp>, steps_kept: u32) -> NewRun {
    let (run, decision) = Run::create(spec, due, Kept { steps: steps_kept, ..Kept::default() });
    let segment = Segment::encode(1, &decision.events, run.spec.created_at);
    NewRun { run, segment, key: None, max_waiting: u64::MAX, share: Share::default() }
}

/// A new run under a key that counts from time 0.
pub(crate) fn keyed(number: u64, key: &str, body: u8) -> NewRun {
    let key = IdempotencyKey {
        route: "/runs",
        key: key.to_owned(),
        fingerprint: [body; 32],
        valid_after: Timestamp::from_millis(0),
    };
    NewRun { key: Some(key), ..new_run(spec(number), None, 0) }
}

/// Creates a run and returns it.
pub(crate) async fn create(store: &dyn RunStore, spec: Spec) -> Run {
    create_due(store, spec, None).await
}

pub(crate) async fn create_due(store: &dyn RunStore, spec: Spec, due: Option<Timestamp>) -> Run {
    let new = new_run(spec, due, 0);
    let run = new.run.clone();
    assert_eq!(store.create(new).await.unwrap(), Created::New);
    run
}

pub(crate) async fn get(store: &dyn RunStore, id: RunId) -> Stored {
    store.get(&tenant(), id).await.unwrap().expect("the run is there")
}

pub(crate) async fn status(store: &dyn RunStore, id: RunId) -> Status {
    get(store, id).await.run.status
}

/// Claims by a worker that has the agent `chat` in version 1.
pub(crate) async fn claim(store: &dyn RunStore, room: usize) -> Vec<Claimed> {
    claim_agents(store, room, &[("chat", "1")]).await
}

pub(crate) async fn claim_agents(store: &dyn RunStore, room: usize, agents: &[(&str, &str)]) -> Vec<Claimed> {
    store.claim(claim_of(room, agents, Limits::default())).await.unwrap()
}

pub(crate) fn claim_of(room: usize, agents: &[(&str, &str)], limits: Limits) -> Claim {
    let agents: Arc<[_]> = agents.iter().map(|(name, version)| ((*name).to_owned(), (*version).to_owned())).collect();
    let limits = Arc::new(limits);
    Claim { node: "node-1".into(), agents, turn: 0, limits, room, reserve: RESERVE, lease: LEASE, now: now() }
}

pub(crate) async fn transition(store: &dyn RunStore, id: RunId, command: Command, now: Timestamp) -> Transition {
    store.transition(Some(&tenant()), id, command, now).await.unwrap()
}

pub(crate) async fn timers(store: &dyn RunStore) -> Vec<TimerKey> {
    store.timers(Timestamp::MAX, None, 1_000).await.unwrap()
}

/// The types of the events in a run's log, with their numbers.
pub(crate) async fn log(store: &dyn RunStore, id: RunId) -> Vec<(u64, String)> {
    let segments = store.segments(id, 0, usize::MAX).await.unwrap();
    let mut log = Vec::new();
    for segment in &segments {
        log.extend(segment.events().map(|event| (event.seq, event.kind.to_owned())));
    }
    log
}

/// A run that is claimed, and what its owner knows.
#[derive(Clone)]
pub(crate) struct Owner {
    pub(crate) run: Run,
    pub(crate) number: u64,
    pub(crate) reserved_seq: u64,
}

impl Owner {
    /// Creates run `number` and claims it.
    pub(crate) async fn of_new(store: &dyn RunStore, number: u64) -> Self {
        create(store, spec(number)).await;
        Self::next(store).await
    }

    /// Claims the next run.
    pub(crate) async fn next(store: &dyn RunStore) -> Self {
        let claimed = claim(store, 1).await.pop().expect("there is a run to claim");
        Self::from(claimed)
    }

    pub(crate) fn id(&self) -> RunId {
        self.run.spec.id
    }

    /// The commit of these events, which become part of the owner's state.
    pub(crate) fn events(&mut self, events: &[Event], at: Timestamp) -> Commit {
        let first = self.run.last_seq + 1;
        for (event, seq) in events.iter().zip(first..) {
            self.run.apply(event, seq, at);
        }
        self.number += 1;
        Commit {
            run: self.run.clone(),
            number: self.number,
            segment: Some(Segment::encode(first, events, at)),
            reserved_seq: self.reserved_seq,
            step: None,
            farewell: None,
        }
    }

    /// The commit of some tokens.
    pub(crate) fn tokens(&mut self, texts: &[&str]) -> Commit {
        let events: Vec<_> = texts.iter().map(|text| Event::MessageDelta { text: (*text).to_owned() }).collect();
        self.events(&events, now())
    }

    /// The commit of what `command` leads to.
    pub(crate) fn decide(&mut self, command: &Command) -> Commit {
        let context = Context { now: now(), next_seq: self.run.last_seq + 1, busy: false, spent: None };
        let decision = self.run.decide(command, &context).expect("the machine accepts the command");
        self.events(&decision.events, context.now)
    }

    /// The commit of a finished step.
    pub(crate) fn step(&mut self) -> Commit {
        let record = step_record(self.run.steps + 1);
        let finish = Command::FinishStep { attempt: self.run.attempt, step: record.step, usage: record.usage };
        Commit { step: Some(record), ..self.decide(&finish) }
    }

    pub(crate) fn complete(&mut self) -> Commit {
        let output = serde_json::json!({"text": "done", "numbers": [1, 2.5, null]});
        let attempt = self.run.attempt;
        self.decide(&Command::Complete { attempt, output, outcome: "finished".into(), usage: USED })
    }

    pub(crate) fn fail(&mut self, retry: Retry) -> Commit {
        let error = RunError { code: "provider_error".into(), message: "it said \"no\"".into() };
        let attempt = self.run.attempt;
        self.decide(&Command::Fail { attempt, failure: Failure { error, retry, usage: USED } })
    }
}

impl From<Claimed> for Owner {
    fn from(claimed: Claimed) -> Self {
        Self { run: claimed.run, number: 0, reserved_seq: claimed.reserved_seq }
    }
}

pub(crate) fn step_record(step: u32) -> StepRecord {
    StepRecord {
        step,
        kind: if step % 2 == 1 { StepKind::Model } else { StepKind::Tool },
        name: format!("step-{step}"),
        result: serde_json::json!({"content": "ä\n", "step": step}),
        usage: USED,
    }
}

/// Commits, and expects it to be done.
pub(crate) async fn commit(store: &dyn RunStore, commit: Commit) {
    assert_eq!(store.commit(commit).await.unwrap(), Committed::Done);
}

/// Puts run `number` into `status` by the usual way.
pub(crate) async fn run_in(store: &dyn RunStore, number: u64, status: Status) -> Run {
    match status {
        Status::Scheduled => return create_due(store, spec(number), Some(seconds(2_000))).await,
        Status::Queued => return create(store, spec(number)).await,
        Status::Running => return Owner::of_new(store, number).await.run,
        Status::Waiting => panic!("no command leads there yet"),
        Status::Completed => {
            let done = Owner::of_new(store, number).await.complete();
            commit(store, done).await;
        }
        Status::Failed => {
            let failed = Owner::of_new(store, number).await.fail(Retry::Never);
            commit(store, failed).await;
        }
        Status::Cancelled => {
            create(store, spec(number)).await;
            transition(store, id(number), Command::Cancel, now()).await;
        }
        Status::Expired => {
            create(store, Spec { ttl_at: Some(now()), ..spec(number) }).await;
            transition(store, id(number), Command::Expire, now()).await;
        }
    }
    let run = get(store, id(number)).await.run;
    assert_eq!(run.status, status);
    run
}

pub(crate) fn after(wait: u64) -> Retry {
    Retry::After(Duration::from_secs(wait))
}

pub(crate) fn done(transition: Transition) -> crate::store::Changed {
    match transition {
        Transition::Done(changed) => *changed,
        other @ (Transition::Followed(..) | Transition::Handed(_) | Transition::Rejected(..) | Transition::Missing) => {
            panic!("expected a change, got {other:?}")
        }
    }
}
