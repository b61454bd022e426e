//! The whole table of (status, command), and properties over random histories.

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::run::{Budget, Input, OnDisconnect, RunId, StepKind, Tenant};

fn at(millis: i64) -> Timestamp {
    Timestamp::from_millis(millis)
}

fn spec(max_attempts: u32, ttl_at: Option<Timestamp>) -> Spec {
    Spec {
        id: RunId::from_uuid(uuid::Uuid::nil()),
        tenant: Tenant::default(),
        agent: "a".into(),
        agent_version: "1".into(),
        input: Input::Text("hello".into()),
        params: serde_json::Map::new(),
        priority: 0,
        ttl_at,
        timeout_ms: 60_000,
        max_attempts,
        on_disconnect: OnDisconnect::Continue,
        metadata: Default::default(),
        thread: None,
        latest_due: None,
        retry_of: None,
        concurrency_key: None,
        correlation_id: None,
        webhook: None,
        budget: crate::run::Budget::NONE,
        created_at: at(1_000),
    }
}

/// A run driven by commands as its callers drive it, keeping the log.
#[derive(Clone)]
struct Driven {
    run: Run,
    log: Vec<(u64, Timestamp, Event)>,
    now: i64,
    /// Another run holds its thread.
    busy: bool,
    /// What the open steps have used, as far as their attempt knows.
    spent: Option<Usage>,
}

impl Driven {
    fn new(spec: Spec, begin: impl Into<Begin>) -> Self {
        let (run, decision) = Run::create(spec, begin, Kept::default());
        let log = (1..).zip(decision.events).map(|(seq, event)| (seq, at(1_000), event)).collect();
        Self { run, log, now: 1_000, busy: false, spent: None }
    }

    fn tell(&mut self, command: &Command) -> Result<Vec<Effect>, Rejection> {
        let context =
            Context { now: at(self.now), next_seq: self.run.last_seq + 1, busy: self.busy, spent: self.spent };
        let decision = self.run.decide(command, &context)?;
        for event in decision.events {
            let seq = self.run.last_seq + 1;
            self.run.apply(&event, seq, at(self.now));
            self.log.push((seq, at(self.now), event));
        }
        Ok(decision.effects)
    }

    fn in_status(status: Status) -> Self {
        let due = (status == Status::Scheduled).then(|| at(9_000));
        let mut driven = Self::new(spec(3, Some(at(5_000))), due);
        let claim = Command::Claim { node: "n".into() };
        match status {
            Status::Scheduled | Status::Queued => {}
            Status::Running => drop(driven.tell(&claim).unwrap()),
            Status::Waiting => {
                driven.tell(&claim).unwrap();
                driven.tell(&wait(1, Some(9_000))).unwrap();
            }
            Status::Completed => {
                driven.tell(&claim).unwrap();
                driven.tell(&complete(1)).unwrap();
            }
            Status::Failed => {
                driven.tell(&claim).unwrap();
                driven.tell(&fail(1, Retry::Never)).unwrap();
            }
            Status::Cancelled => drop(driven.tell(&Command::Cancel).unwrap()),
            Status::Expired => {
                driven.now = 5_000;
                driven.tell(&Command::Expire).unwrap();
            }
        }
        assert_eq!(driven.run.status, status);
        driven.now = 10_000;
        driven
    }
}

fn complete(attempt: u32) -> Command {
    Command::Complete { attempt, output: json!("done"), outcome: "finished".into(), usage: Usage::default() }
}

fn fail(attempt: u32, retry: Retry) -> Command {
    let error = RunError { code: "broken".into(), message: "it broke".into() };
    Command::Fail { attempt, failure: Failure { error, retry, usage: Usage::default() } }
}

fn wait(attempt: u32, deadline: Option<i64>) -> Command {
    let question = Question { reason: Reason::Input, prompt: json!("which?"), deadline: deadline.map(at) };
    Command::Wait { attempt, question }
}

fn begin(attempt: u32, step: u32, tokens: u64) -> Command {
    let reserved = Usage { output_tokens: tokens, cost_micros: tokens * 10, ..Usage::default() };
    let name = "small".to_owned();
    Command::BeginStep(OpenStep { step, kind: StepKind::Model, name, call_id: None, attempt, reserved })
}

fn finish(attempt: u32, step: u32, tokens: u64) -> Command {
    let usage = Usage { output_tokens: tokens, cost_micros: tokens * 10, ..Usage::default() };
    Command::FinishStep { attempt, step, usage }
}

fn resume(wait_id: &str) -> Command {
    Command::Resume { wait_id: wait_id.to_owned(), input: json!("this") }
}

/// One command of each kind, from attempt 1 and timer 1.
fn commands() -> Vec<(&'static str, Command)> {
    vec![
        ("claim", Command::Claim { node: "n".into() }),
        ("fire", Command::Fire { timer: 1 }),
        ("expire", Command::Expire),
        ("cancel", Command::Cancel),
        ("promote", Command::Promote),
        ("join", Command::Join { due: at(20_000) }),
        ("resume", resume("w4")),
        ("begin_step", begin(1, 1, 0)),
        ("finish_step", Command::FinishStep { attempt: 1, step: 1, usage: Usage::default() }),
        ("complete", complete(1)),
        ("fail", fail(1, Retry::Never)),
        ("retry", fail(1, Retry::After(Duration::from_secs(1)))),
        ("wait", wait(1, None)),
        ("timeout", Command::Timeout { attempt: 1 }),
        ("release", Command::Release { attempt: 1 }),
        ("suspend", Command::Suspend { attempt: 1 }),
        ("crash", Command::Crash { attempt: 1, cancel: false }),
    ]
}

/// What becomes of a run in `status` that is told `command`; `None`: it is rejected.
fn expected(status: Status, command: &str) -> Option<Status> {
    match (status, command) {
        (Status::Scheduled, "fire") => Some(Status::Queued),
        (Status::Queued, "claim") => Some(Status::Running),
        (Status::Scheduled | Status::Queued, "expire") => Some(Status::Expired),
        (Status::Scheduled | Status::Queued | Status::Running | Status::Waiting, "cancel") => Some(Status::Cancelled),
        (Status::Waiting, "resume") => Some(Status::Queued),
        (Status::Waiting, "fire") => Some(Status::Failed),
        (Status::Running, "wait") => Some(Status::Waiting),
        (Status::Running, "begin_step" | "finish_step") => Some(Status::Running),
        (Status::Running, "complete") => Some(Status::Completed),
        (Status::Running, "fail" | "timeout") => Some(Status::Failed),
        (Status::Running, "retry") => Some(Status::Scheduled),
        (Status::Running, "release" | "suspend" | "crash") => Some(Status::Queued),
        _ => None,
    }
}

#[test]
fn every_status_answers_every_command_as_the_table_says() {
    for status in Status::ALL {
        for (name, command) in commands() {
            let mut driven = Driven::in_status(status);
            let before = driven.run.clone();
            let told = driven.tell(&command);
            match expected(status, name) {
                Some(next) => {
                    told.unwrap_or_else(|rejection| panic!("{status} refused {name}: {rejection}"));
                    assert_eq!(driven.run.status, next, "{status} after {name}");
                }
                None => {
                    let rejection = told.expect_err(&format!("{status} took {name}"));
                    assert_eq!(rejection == Rejection::Final(status), status.is_final(), "{status} {name}");
                    assert_eq!(driven.run, before, "{status} changed by a rejected {name}");
                }
            }
        }
    }
}

#[test]
fn a_command_of_an_older_attempt_is_stale_everywhere() {
    for status in [Status::Scheduled, Status::Queued, Status::Running, Status::Waiting] {
        for (name, command) in commands().into_iter().skip(7) {
            let mut driven = Driven::in_status(status);
            driven.run.attempt = 2;
            assert_eq!(driven.tell(&command), Err(Rejection::StaleAttempt { current: 2 }), "{status} {name}");
        }
    }
}

#[test]
fn a_timer_fires_only_when_it_is_the_armed_one_and_due() {
    let mut driven = Driven::in_status(Status::Scheduled);
    assert_eq!(driven.tell(&Command::Fire { timer: 2 }), Err(Rejection::StaleTimer));
    driven.now = 8_999;
    assert_eq!(driven.tell(&Command::Fire { timer: 1 }), Err(Rejection::StaleTimer));
    driven.now = 9_000;
    assert_eq!(driven.tell(&Command::Fire { timer: 1 }), Ok(vec![Effect::Wake]));
}

#[test]
fn cancel_while_backing_off_clears_the_timer() {
    let mut driven = Driven::in_status(Status::Running);
    driven.tell(&fail(1, Retry::After(Duration::from_secs(1)))).unwrap();
    let timer = driven.run.timer.unwrap();
    assert_eq!(timer, Timer { due: at(11_000), id: 1 });
    assert_eq!(driven.tell(&Command::Cancel), Ok(vec![Effect::Disarm(timer)]));
    assert_eq!(driven.run.timer, None);
}

#[test]
fn a_run_that_has_started_does_not_expire() {
    let mut driven = Driven::in_status(Status::Running);
    driven.tell(&Command::Release { attempt: 1 }).unwrap();
    assert_eq!(driven.tell(&Command::Expire), Err(Rejection::StaleTimer));
}

#[test]
fn failures_and_crashes_share_the_budget_and_letting_go_is_free() {
    let mut driven = Driven::in_status(Status::Queued);
    let claim = Command::Claim { node: "n".into() };
    for attempt in 1..=20 {
        driven.tell(&claim).unwrap();
        let free = [Command::Release { attempt }, Command::Suspend { attempt }];
        driven.tell(&free[attempt as usize % 2]).unwrap();
    }
    driven.tell(&claim).unwrap();
    driven.tell(&Command::Crash { attempt: 21, cancel: false }).unwrap();
    driven.tell(&claim).unwrap();
    driven.tell(&fail(22, Retry::After(Duration::ZERO))).unwrap();
    driven.tell(&Command::Fire { timer: 1 }).unwrap();
    driven.tell(&claim).unwrap();
    driven.tell(&Command::Crash { attempt: 23, cancel: false }).unwrap();
    assert_eq!(driven.run.status, Status::Failed);
    assert_eq!(driven.run.outcome.as_deref(), Some("attempts_exhausted"));
}

#[test]
fn a_finished_step_forgives_the_crashes_before_it() {
    let mut driven = Driven::in_status(Status::Queued);
    for attempt in 1..=10 {
        driven.tell(&Command::Claim { node: "n".into() }).unwrap();
        driven.tell(&Command::FinishStep { attempt, step: attempt, usage: Usage::default() }).unwrap();
        driven.tell(&Command::Crash { attempt, cancel: false }).unwrap();
        assert_eq!(driven.run.status, Status::Queued);
    }
}

#[test]
fn an_abandoned_attempt_is_told_before_the_run_ends_for_it() {
    for (cancel, max_attempts, end) in [(true, 3, Status::Cancelled), (false, 1, Status::Failed)] {
        let mut driven = Driven::new(spec(max_attempts, None), None);
        driven.tell(&Command::Claim { node: "n".into() }).unwrap();
        assert_eq!(driven.tell(&Command::Crash { attempt: 1, cancel }), Ok(vec![Effect::StopAgent]));
        assert_eq!(driven.run.status, end);
        let kinds: Vec<_> = driven.log.iter().map(|(_, _, event)| event.kind()).collect();
        assert_eq!(kinds[3], "run.retrying");
        assert_eq!(kinds.len(), 5);
    }
}

#[test]
fn the_time_without_a_worker_is_not_running_time() {
    let mut driven = Driven::in_status(Status::Running);
    driven.now += 3_600_000;
    driven.tell(&Command::Crash { attempt: 1, cancel: false }).unwrap();
    assert_eq!(driven.run.ran_ms, 0);
    driven.tell(&Command::Claim { node: "n".into() }).unwrap();
    driven.now += 3_600_000;
    driven.tell(&Command::Suspend { attempt: 2 }).unwrap();
    assert_eq!(driven.run.ran_ms, 0);
    driven.tell(&Command::Claim { node: "n".into() }).unwrap();
    driven.now += 500;
    driven.tell(&Command::Release { attempt: 3 }).unwrap();
    assert_eq!(driven.run.time_left(), Duration::from_millis(59_500));
}

#[test]
fn the_text_after_the_last_finished_step_is_void() {
    let mut driven = Driven::in_status(Status::Running);
    driven.tell(&Command::FinishStep { attempt: 1, step: 1, usage: Usage::default() }).unwrap();
    let checkpoint = driven.run.last_seq;
    let context = Context { now: at(10_000), next_seq: 500, busy: false, spent: None };
    let decision = driven.run.decide(&Command::Crash { attempt: 1, cancel: false }, &context).unwrap();
    let [Event::Retrying { void_after, skips_to, .. }] = decision.events[..] else { panic!("{decision:?}") };
    assert_eq!((void_after, skips_to), (checkpoint, 500));
}

#[test]
fn an_answer_is_taken_once_and_only_for_its_question() {
    let mut driven = Driven::in_status(Status::Waiting);
    let Timer { due, id } = driven.run.timer.unwrap();
    assert_eq!((due, id), (at(9_000), 1));
    let stale = Rejection::StaleWait { current: "w4".to_owned() };
    assert_eq!(driven.tell(&resume("w3")), Err(stale));
    let answered = driven.tell(&resume("w4")).unwrap();
    assert_eq!(answered, [Effect::Disarm(Timer { due, id }), Effect::Wake]);
    assert_eq!((driven.run.steps, driven.run.wait_id(), driven.run.timer), (1, None, None));
    assert_eq!(driven.tell(&resume("w4")), Err(Rejection::NotNow(Status::Queued)));
    assert_eq!(driven.tell(&Command::Fire { timer: 1 }), Err(Rejection::StaleTimer));
    driven.tell(&Command::Claim { node: "n".into() }).unwrap();
    driven.tell(&wait(2, None)).unwrap();
    let current = driven.run.wait_id().unwrap();
    assert_eq!(driven.tell(&resume("w4")), Err(Rejection::StaleWait { current: current.clone() }));
    driven.tell(&resume(&current)).unwrap();
    assert_eq!(driven.run.ran_ms, 0, "waiting is no running time");
}

#[test]
fn a_question_that_nobody_answers_in_time_fails_the_run() {
    let mut driven = Driven::in_status(Status::Waiting);
    driven.now = 8_999;
    assert_eq!(driven.tell(&Command::Fire { timer: 1 }), Err(Rejection::StaleTimer));
    driven.now = 9_000;
    driven.tell(&Command::Fire { timer: 1 }).unwrap();
    assert_eq!(driven.run.error.as_ref().unwrap().code, "wait_expired");
    assert_eq!(driven.run.outcome.as_deref(), Some("deadline"));
}

#[test]
fn a_debounced_run_is_put_off_by_each_message_but_no_longer_than_its_longest_wait() {
    let spec = Spec { latest_due: Some(at(3_000)), ..spec(3, None) };
    let mut driven = Driven::new(spec, Begin::At(at(2_000), Reason::Debounce));
    driven.now = 1_900;
    let effects = driven.tell(&Command::Join { due: at(2_900) }).unwrap();
    let (first, second) = (Timer { due: at(2_000), id: 1 }, Timer { due: at(2_900), id: 2 });
    assert_eq!(effects, [Effect::Disarm(first), Effect::Arm(second)]);
    driven.now = 2_000;
    assert_eq!(driven.tell(&Command::Fire { timer: 1 }), Err(Rejection::StaleTimer));
    driven.now = 2_800;
    driven.tell(&Command::Join { due: at(3_800) }).unwrap();
    assert_eq!(driven.run.timer.unwrap().due, at(3_000));
    driven.now = 2_900;
    assert_eq!(driven.tell(&Command::Join { due: at(2_900) }).unwrap().last(), Some(&Effect::Wake));
    assert_eq!(driven.run.status, Status::Queued);
    assert_eq!(driven.tell(&Command::Join { due: at(9_000) }), Err(Rejection::NotNow(Status::Queued)));
}

#[test]
fn a_run_whose_thread_is_busy_waits_for_it_and_for_no_time() {
    let mut driven = Driven::new(spec(3, None), Begin::At(at(2_000), Reason::Debounce));
    (driven.now, driven.busy) = (2_000, true);
    assert_eq!(driven.tell(&Command::Fire { timer: 1 }), Ok(vec![]));
    assert_eq!((driven.run.reason, driven.run.timer), (Some(Reason::ThreadBusy), None));
    assert_eq!(driven.tell(&Command::Promote), Err(Rejection::NotNow(Status::Scheduled)));
    driven.busy = false;
    assert_eq!(driven.tell(&Command::Promote), Ok(vec![Effect::Wake]));
    assert_eq!(driven.tell(&Command::Promote), Err(Rejection::NotNow(Status::Queued)));
}

fn running(budget: Budget) -> Driven {
    let mut driven = Driven::new(Spec { budget, ..spec(3, None) }, Begin::Now);
    driven.tell(&Command::Claim { node: "n".into() }).unwrap();
    driven
}

#[test]
fn a_step_that_would_exceed_the_budget_does_not_begin() {
    let mut driven = running(Budget { tokens: Some(100), steps: Some(3), ..Budget::NONE });
    assert_eq!(driven.tell(&begin(1, 1, 101)), Err(Rejection::OutOfBudget(Bound::Tokens)));
    driven.tell(&begin(1, 1, 60)).unwrap();
    // What is reserved counts as used.
    assert_eq!(driven.tell(&begin(1, 2, 41)), Err(Rejection::OutOfBudget(Bound::Tokens)));
    driven.tell(&begin(1, 2, 40)).unwrap();
    // What is not used is given back.
    driven.tell(&finish(1, 1, 10)).unwrap();
    driven.tell(&begin(1, 3, 50)).unwrap();
    assert_eq!(driven.tell(&begin(1, 4, 0)), Err(Rejection::OutOfBudget(Bound::Steps)));
    let mut driven = running(Budget { cost_micros: Some(100), ..Budget::NONE });
    assert_eq!(driven.tell(&begin(1, 1, 11)), Err(Rejection::OutOfBudget(Bound::Cost)));
    driven.tell(&fail(1, Retry::OutOfBudget(Bound::Cost))).unwrap();
    assert_eq!(driven.run.outcome.as_deref(), Some("budget_cost"));
}

#[test]
fn a_lost_attempt_is_charged_what_it_has_reserved_and_one_that_ends_what_it_has_used() {
    let lost = Command::Crash { attempt: 1, cancel: false };
    for (command, spent, charged) in [
        (lost.clone(), None, 60),
        (Command::Cancel, Some(7), 7),
        (Command::Cancel, None, 60),
        (Command::Timeout { attempt: 1 }, Some(7), 7),
        (Command::Release { attempt: 1 }, Some(7), 7),
        (Command::Suspend { attempt: 1 }, Some(0), 0),
        (fail(1, Retry::Never), Some(7), 7),
        (fail(1, Retry::After(Duration::ZERO)), Some(7), 7),
        (complete(1), Some(7), 7),
        (wait(1, None), Some(7), 7),
    ] {
        let mut driven = running(Budget::NONE);
        driven.tell(&begin(1, 1, 5)).unwrap();
        driven.tell(&finish(1, 1, 5)).unwrap();
        driven.tell(&begin(1, 2, 60)).unwrap();
        driven.spent = spent.map(|tokens| Usage { output_tokens: tokens, ..Usage::default() });
        driven.tell(&command).unwrap();
        let run = &driven.run;
        assert_eq!((run.usage.output_tokens, run.usage.estimated), (5 + charged, charged > 0), "{command:?}");
        assert!(run.open.iter().all(|open| open.reserved.is_nothing()), "{command:?}");
        assert_eq!(run.open.len(), 1, "{command:?}: the step was cut off");
    }
}

#[test]
fn a_step_that_was_cut_off_is_known_until_it_or_its_call_is_begun_anew() {
    let call = |attempt, step| {
        let Command::BeginStep(open) = begin(attempt, step, 0) else { unreachable!() };
        Command::BeginStep(OpenStep { kind: StepKind::Tool, call_id: Some("c1".into()), ..open })
    };
    let mut driven = running(Budget::NONE);
    driven.tell(&call(1, 1)).unwrap();
    driven.tell(&Command::Crash { attempt: 1, cancel: false }).unwrap();
    driven.tell(&Command::Claim { node: "n".into() }).unwrap();
    assert_eq!((driven.run.open.len(), driven.run.open[0].attempt), (1, 1));
    driven.tell(&call(2, 2)).unwrap();
    assert_eq!((driven.run.open.len(), driven.run.open[0].attempt), (1, 2));
    let kept = driven.run.kept();
    assert_eq!(kept.cut_off, driven.run.open);
    driven.tell(&finish(2, 2, 0)).unwrap();
    assert!(driven.run.open.is_empty());
    // A run that goes on from another knows what that was doing when it ended.
    let (retry, _) = Run::create(spec(3, None), Begin::Now, kept.clone());
    assert_eq!(retry.open, kept.cut_off);
}

#[test]
fn time_that_the_budget_bounds_is_an_outcome_of_its_own() {
    for (time_ms, outcome) in [(None, "deadline"), (Some(1), "budget_time")] {
        let mut driven = running(Budget { time_ms, ..Budget::NONE });
        driven.tell(&Command::Timeout { attempt: 1 }).unwrap();
        assert_eq!(driven.run.outcome.as_deref(), Some(outcome));
    }
}

fn any_command() -> impl Strategy<Value = (Command, i64)> {
    let attempt = 0..6_u32;
    let usage = (0..9_u64).prop_map(|n| Usage { input_tokens: n, output_tokens: n, estimated: false, cost_micros: 0 });
    let command = prop_oneof![
        4 => Just(Command::Claim { node: "n".into() }),
        2 => (1..6_u64).prop_map(|timer| Command::Fire { timer }),
        1 => Just(Command::Expire),
        2 => Just(Command::Promote),
        2 => (0..400_i64).prop_map(|wait| Command::Join { due: at(1_000 + wait) }),
        2 => (3..12_u64).prop_map(|seq| resume(&format!("w{seq}"))),
        2 => (attempt.clone(), prop::option::of(1_000..3_000_i64)).prop_map(|(attempt, due)| wait(attempt, due)),
        1 => Just(Command::Cancel),
        3 => (attempt.clone(), 1..9_u32, usage)
            .prop_map(|(attempt, step, usage)| Command::FinishStep { attempt, step, usage }),
        3 => (attempt.clone(), 1..9_u32, 0..9_u64).prop_map(|(attempt, step, n)| begin(attempt, step, n)),
        1 => attempt.clone().prop_map(complete),
        1 => attempt.clone().prop_map(|attempt| fail(attempt, Retry::Never)),
        3 => attempt.clone().prop_map(|attempt| fail(attempt, Retry::After(Duration::from_millis(50)))),
        1 => attempt.clone().prop_map(|attempt| Command::Timeout { attempt }),
        3 => attempt.clone().prop_map(|attempt| Command::Release { attempt }),
        2 => attempt.clone().prop_map(|attempt| Command::Suspend { attempt }),
        3 => (attempt, prop::bool::weighted(0.2)).prop_map(|(attempt, cancel)| Command::Crash { attempt, cancel }),
    ];
    (command, 0..200_i64)
}

fn any_begin() -> impl Strategy<Value = Begin> {
    prop_oneof![
        Just(Begin::Now),
        Just(Begin::Behind),
        Just(Begin::At(at(1_100), Reason::Delay)),
        Just(Begin::At(at(1_100), Reason::Debounce)),
    ]
}

proptest! {
    #[test]
    fn random_histories_keep_the_promises(
        steps in prop::collection::vec(any_command(), 0..60),
        begin in any_begin(),
        ttl in prop::option::of(1_000..3_000_i64),
    ) {
        let mut driven = Driven::new(spec(3, ttl.map(at)), begin);
        for (command, pause) in steps {
            driven.now += pause;
            driven.busy = pause % 3 == 0;
            let before = driven.clone();
            match driven.tell(&command) {
                Err(_) => prop_assert_eq!(&driven.run, &before.run),
                Ok(effects) => {
                    prop_assert!(!before.run.status.is_final(), "final is final");
                    prop_assert!(driven.run.attempt >= before.run.attempt, "attempts never fall");
                    let woken = effects.contains(&Effect::Wake);
                    prop_assert_eq!(woken, driven.run.status == Status::Queued, "queued is woken");
                    let started = effects.contains(&Effect::StartAgent);
                    prop_assert_eq!(started, before.run.status == Status::Queued && driven.run.status == Status::Running);
                    let left = before.run.status == Status::Running && driven.run.status != Status::Running;
                    let by_itself = matches!(command, Command::Complete { .. } | Command::Fail { .. } | Command::Wait { .. });
                    prop_assert_eq!(effects.contains(&Effect::StopAgent), left && !by_itself);
                }
            }
            let run = &driven.run;
            let waits_for_a_time = run.status == Status::Scheduled && run.reason != Some(Reason::ThreadBusy);
            prop_assert!(!waits_for_a_time || run.timer.is_some());
            prop_assert!(run.timer.is_none() || waits_for_a_time || run.status == Status::Waiting);
            prop_assert_eq!(run.reason.is_some(), matches!(run.status, Status::Scheduled | Status::Waiting));
            prop_assert_eq!(run.finished_at.is_some(), run.status.is_final());
            prop_assert_eq!(run.error.is_some(), run.status == Status::Failed);
            prop_assert!(run.failures + run.crashes <= run.spec.max_attempts);
            prop_assert_eq!(run.attempt_started_at.is_some(), run.status == Status::Running);
            let reserved: Usage = run.open.iter().map(|open| open.reserved).sum();
            prop_assert!(reserved.is_nothing() || run.status == Status::Running, "nothing stays reserved");
            prop_assert!(run.usage.tokens() >= before.run.usage.tokens(), "what was used stays used");
        }
        let mut folded = Run::unborn(driven.run.spec.clone());
        for (seq, at, event) in &driven.log {
            prop_assert_eq!(*seq, folded.last_seq + 1);
            folded.apply(event, *seq, *at);
        }
        prop_assert_eq!(folded, driven.run);
        let finals = driven.log.iter().filter(|(_, _, event)| event.is_final()).count();
        prop_assert!(finals <= 1);
    }
}
