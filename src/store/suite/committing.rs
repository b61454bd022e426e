//! What the owners of running runs write.

use serde_json::json;

use super::Harness;
use super::kit::*;
use crate::run::{
    Budget, Command, Event, Kept, OpenStep, Retry, Run, RunError, Segment, Spec, Status, StepKind, Usage,
};
use crate::store::{Commit, Committed, Created, NewRun, Share, TimerKey, TimerKind, Transition};

pub(crate) async fn commits_are_written_in_order(harness: &mut dyn Harness) {
    let store = harness.store();
    let mut owner = Owner::of_new(&*store, 1).await;
    let tokens = owner.tokens(&["a", "b"]);
    commit(&*store, tokens).await;
    owner.reserved_seq = 500;
    let step = owner.step();
    commit(&*store, step).await;
    // A commit may raise the reservation only.
    owner.reserved_seq = 900;
    let mut empty = owner.events(&[], now());
    empty.segment = None;
    commit(&*store, empty).await;
    let stored = get(&*store, id(1)).await;
    assert_eq!((stored.run, stored.reserved_seq), (owner.run, 900));
    let kinds: Vec<_> = log(&*store, id(1)).await.into_iter().map(|(_, kind)| kind).collect();
    let expected = ["run.created", "run.queued", "run.started", "message.delta", "message.delta", "step.completed"];
    assert_eq!(kinds, expected);
}

pub(crate) async fn a_run_is_found_as_it_ended(harness: &mut dyn Harness) {
    let store = harness.store();
    let mut owner = Owner::of_new(&*store, 1).await;
    let step = owner.step();
    commit(&*store, step).await;
    let complete = owner.complete();
    commit(&*store, complete).await;
    let stored = get(&*store, id(1)).await;
    assert_eq!(stored.run, owner.run);
    assert_eq!(stored.run.output, Some(json!({"text": "done", "numbers": [1, 2.5, null]})));
    assert_eq!(stored.reserved_seq, stored.run.last_seq, "what was reserved beyond is given back");

    let mut owner = Owner::of_new(&*store, 2).await;
    let fail = owner.fail(Retry::Never);
    commit(&*store, fail).await;
    let stored = get(&*store, id(2)).await;
    assert_eq!(stored.run, owner.run);
    let error = RunError { code: "provider_error".into(), message: "it said \"no\"".into() };
    assert_eq!(stored.run.error, Some(error));
}

pub(crate) async fn an_older_attempt_is_fenced_off(harness: &mut dyn Harness) {
    let store = harness.store();
    let mut old = Owner::of_new(&*store, 1).await;
    let mut gone = old.clone();
    let release = old.decide(&Command::Release { attempt: 1 });
    commit(&*store, release).await;
    // The number is the next one: only the status tells.
    gone.number = 1;
    let late = gone.tokens(&["late"]);
    assert_eq!(store.commit(late).await.unwrap(), Committed::Fenced);

    let mut new = Owner::next(&*store).await;
    assert_eq!(new.run.attempt, 2);
    // The same number as one of the old attempt's commits.
    let first = new.tokens(&["again"]);
    commit(&*store, first).await;
    let before = (get(&*store, id(1)).await, log(&*store, id(1)).await);
    for number in [0, 1] {
        gone.number = number;
        for commit in [gone.clone().tokens(&["late"]), gone.clone().step(), gone.clone().complete()] {
            assert_eq!(store.commit(commit).await.unwrap(), Committed::Fenced);
        }
    }
    assert_eq!((get(&*store, id(1)).await, log(&*store, id(1)).await), before);

    let mut nobodys = new;
    nobodys.run.spec = std::sync::Arc::new(spec(99));
    let unknown = nobodys.tokens(&["x"]);
    assert_eq!(store.commit(unknown).await.unwrap(), Committed::Fenced);
}

pub(crate) async fn a_commit_whose_answer_was_lost_is_done(harness: &mut dyn Harness) {
    let store = harness.store();
    let mut owner = Owner::of_new(&*store, 1).await;
    let makes: [fn(&mut Owner) -> crate::store::Commit; 3] =
        [|owner| owner.tokens(&["a"]), Owner::step, |owner| owner.fail(after(5))];
    for make in makes {
        let made = make(&mut owner);
        commit(&*store, made.clone()).await;
        let written = (get(&*store, id(1)).await, log(&*store, id(1)).await, timers(&*store).await);
        commit(&*store, made).await;
        let again = (get(&*store, id(1)).await, log(&*store, id(1)).await, timers(&*store).await);
        assert_eq!(again, written, "it is written once");
    }
    assert_eq!(store.counts().await.unwrap()[&Status::Scheduled], 1);
}

pub(crate) async fn a_commit_out_of_turn_is_fenced_off(harness: &mut dyn Harness) {
    let store = harness.store();
    let mut owner = Owner::of_new(&*store, 1).await;
    let tokens = owner.tokens(&["a"]);
    commit(&*store, tokens).await;
    let before = (get(&*store, id(1)).await, log(&*store, id(1)).await);
    for number in [1, 7] {
        // It will be number 2 or 8: the first is next, the second is not.
        let mut other = Owner { number, ..owner.clone() };
        let (tokens, complete) = (other.tokens(&["b"]), other.complete());
        if number == 7 {
            assert_eq!(store.commit(tokens).await.unwrap(), Committed::Fenced);
        }
        assert_eq!(store.commit(complete).await.unwrap(), Committed::Fenced);
    }
    assert_eq!((get(&*store, id(1)).await, log(&*store, id(1)).await), before);
}

pub(crate) async fn a_cancel_stops_a_finish_and_no_token(harness: &mut dyn Harness) {
    let store = harness.store();
    let mut owner = Owner::of_new(&*store, 1).await;
    let handed = transition(&*store, id(1), Command::Cancel, now()).await;
    assert!(matches!(handed, Transition::Handed(_)));
    let (tokens, step) = (owner.tokens(&["a"]), owner.step());
    commit(&*store, tokens).await;
    commit(&*store, step).await;
    let before = (get(&*store, id(1)).await, log(&*store, id(1)).await);
    let finishes = [
        owner.clone().complete(),
        owner.clone().fail(Retry::Never),
        owner.clone().fail(after(5)),
        owner.clone().decide(&Command::Release { attempt: 1 }),
    ];
    for finish in finishes {
        assert_eq!(store.commit(finish).await.unwrap(), Committed::CancelWaits);
    }
    assert_eq!((get(&*store, id(1)).await, log(&*store, id(1)).await), before);
    assert!(before.0.cancel_requested);

    let cancel = owner.decide(&Command::Cancel);
    commit(&*store, cancel.clone()).await;
    let stored = get(&*store, id(1)).await;
    assert_eq!((stored.run.status, stored.cancel_requested), (Status::Cancelled, false));
    commit(&*store, cancel).await;
}

pub(crate) async fn a_stale_finish_is_fenced_off_though_a_cancel_waits(harness: &mut dyn Harness) {
    let store = harness.store();
    let mut owner = Owner::of_new(&*store, 1).await;
    let mut gone = owner.clone();
    let release = owner.decide(&Command::Release { attempt: 1 });
    commit(&*store, release).await;
    Owner::next(&*store).await;
    transition(&*store, id(1), Command::Cancel, now()).await;
    let (mut same_number, late) = (gone.clone(), gone.complete());
    same_number.number = 7;
    assert_eq!(store.commit(late).await.unwrap(), Committed::Fenced);
    assert_eq!(store.commit(same_number.complete()).await.unwrap(), Committed::Fenced);
}

pub(crate) async fn a_failed_attempt_waits_for_its_timer(harness: &mut dyn Harness) {
    let store = harness.store();
    let mut owner = Owner::of_new(&*store, 1).await;
    let step = owner.step();
    commit(&*store, step).await;
    let fail = owner.fail(after(5));
    commit(&*store, fail).await;
    let stored = get(&*store, id(1)).await;
    assert_eq!((stored.run.status, &stored.run), (Status::Scheduled, &owner.run));
    assert_eq!(stored.reserved_seq, stored.run.last_seq);
    let due = seconds(1_005);
    assert_eq!(timers(&*store).await, [TimerKey { due, owner: *id(1).as_uuid(), kind: TimerKind::Due(1) }]);

    let fired = done(transition(&*store, id(1), Command::Fire { timer: 1 }, due).await);
    assert_eq!(fired.run.status, Status::Queued);
    assert_eq!(timers(&*store).await, []);
    let claimed = claim(&*store, 1).await.pop().unwrap();
    assert_eq!((claimed.run.attempt, claimed.run.failures), (2, 1));
    assert_eq!(claimed.steps, [step_record(1)]);
    let mut second = Owner::from(claimed);
    let tokens = second.tokens(&["again"]);
    commit(&*store, tokens).await;
}

pub(crate) async fn a_released_run_can_be_claimed_at_once(harness: &mut dyn Harness) {
    let store = harness.store();
    let mut owner = Owner::of_new(&*store, 1).await;
    let tokens = owner.events(&[Event::MessageDelta { text: "a".into() }], now());
    commit(&*store, tokens).await;
    let release = owner.decide(&Command::Release { attempt: 1 });
    commit(&*store, release).await;
    let again = Owner::next(&*store).await;
    assert_eq!((again.run.attempt, again.run.failures, again.run.crashes), (2, 0, 0));
    let numbers: Vec<_> = log(&*store, id(1)).await.into_iter().map(|(seq, _)| seq).collect();
    assert_eq!(numbers, [1, 2, 3, 4, 5, 6]);
}

/// The command that begins a step of the first attempt.
fn begin(step: u32) -> Command {
    let reserved = Usage { input_tokens: 40, output_tokens: 60, cost_micros: 900, estimated: true };
    let (name, call_id) = ("mail \"x\"".to_owned(), Some(format!("call-{step}")));
    Command::BeginStep(OpenStep { step, kind: StepKind::Tool, name, call_id, attempt: 1, reserved })
}

pub(crate) async fn what_is_open_is_kept_and_charged_when_it_is_lost(harness: &mut dyn Harness) {
    let store = harness.store();
    let budget = Budget { tokens: Some(1_000), cost_micros: Some(u64::MAX), steps: Some(5), time_ms: None };
    create(&*store, Spec { budget, ..spec(1) }).await;
    let mut owner = Owner::next(&*store).await;
    assert_eq!(owner.run.spec.budget, budget);
    let begun = owner.decide(&begin(1));
    commit(&*store, begun).await;
    assert_eq!(get(&*store, id(1)).await.run, owner.run);
    assert_eq!(owner.run.open.len(), 1);
    done(store.give_up(id(1), 1, now()).await.unwrap());
    let again = Owner::next(&*store).await.run;
    let charged = Usage { input_tokens: 40, output_tokens: 60, cost_micros: 900, estimated: true };
    assert_eq!((again.usage, again.spec.budget), (charged, budget));
    let open = OpenStep { reserved: Usage::default(), ..owner.run.open[0].clone() };
    assert_eq!(again.open, [open], "the next attempt knows what was cut off");
    assert_eq!(get(&*store, id(1)).await.run, again);
}

pub(crate) async fn a_retry_knows_what_was_cut_off(harness: &mut dyn Harness) {
    let store = harness.store();
    let mut owner = Owner::of_new(&*store, 1).await;
    for command in [begin(1), begin(2), begin(3)] {
        let begun = owner.decide(&command);
        commit(&*store, begun).await;
    }
    // The second of three at once is still under way when the run fails.
    for step in [3, 1] {
        let record = step_record(step);
        let finish = Command::FinishStep { attempt: 1, step, usage: record.usage };
        let finished = Commit { step: Some(record), ..owner.decide(&finish) };
        commit(&*store, finished).await;
    }
    let failed = owner.fail(Retry::Never);
    commit(&*store, failed).await;
    let kept = get(&*store, id(1)).await.run.kept();
    assert_eq!((kept.steps, kept.cut_off.len(), kept.cut_off[0].step), (3, 1, 2));
    let (run, decision) = Run::create(Spec { retry_of: Some(id(1)), ..spec(2) }, None, Kept::clone(&kept));
    let segment = Segment::encode(1, &decision.events, now());
    let retry = NewRun { run, segment, key: None, max_waiting: u64::MAX, share: Share::default() };
    assert_eq!(store.create(retry).await.unwrap(), Created::New);
    let claimed = claim(&*store, 1).await.pop().unwrap();
    assert_eq!(claimed.steps, [step_record(1), step_record(3)]);
    assert_eq!(claimed.run.open, kept.cut_off);
}
