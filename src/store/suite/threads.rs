//! Threads: what comes in, what follows, and what remains.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::json;
use uuid::Uuid;

use super::Harness;
use super::kit::{self, Owner, claim, get, id, now, seconds, spec, status, tenant, timers, transition};
use crate::run::{
    Command, Input, Message, Question, Reason, Rejection, Retry, Role, RunId, Spec, Status, StepKind, Tenant, ThreadId,
};
use crate::store::{
    Admission, Admitted, Commit, Committed, Created, Farewell, Followed, HandOff, IdempotencyKey, Moved, NewThread,
    Patch, RunFilter, Store, StoreError, ThreadCreated, ThreadDeleted, TimerKey, TimerKind, Transition,
};
use crate::thread::{Ask, FollowUpRule, Happened, How, Newcomer, Occasion, OnBusy, Quiet, Refusal, Thread};

pub(super) fn thread_id(number: u64) -> ThreadId {
    ThreadId::from_uuid(Uuid::from_u128(u128::from(number) << 64))
}

pub(crate) async fn thread(store: &dyn Store, number: u64) -> ThreadId {
    let id = thread_id(number);
    let new = NewThread { thread: Thread::new(id, tenant(), now()), key: None };
    assert_eq!(store.create_thread(new).await.unwrap(), ThreadCreated::New);
    id
}

pub(super) async fn found(store: &dyn Store, id: ThreadId) -> Thread {
    store.thread(Some(&tenant()), id).await.unwrap().expect("the thread is there")
}

/// Message `number`, which may become run `number`.
pub(super) fn message(thread: ThreadId, number: u64, on_busy: OnBusy) -> Admission {
    let spec = Spec { thread: Some(thread), input: Input::Text(format!("m{number}")), ..spec(number) };
    let newcomer = Newcomer { spec, messages: vec![Uuid::from_u128(u128::from(number) << 32)] };
    let ask = Ask {
        occasion: Occasion::Message { quiet: None },
        on_busy,
        newcomer,
        max_pending: 1_000,
        max_input: 1_000_000,
        now: now(),
    };
    Admission { tenant: tenant(), thread, ask, key: None, max_waiting: u64::MAX, share: crate::store::Share::default() }
}

pub(super) fn quiet(mut admission: Admission) -> Admission {
    let quiet = Quiet { quiet: Duration::from_secs(5), longest: Duration::from_secs(8) };
    admission.ask.occasion = Occasion::Message { quiet: Some(quiet) };
    admission
}

pub(crate) async fn say(store: &dyn Store, thread: ThreadId, number: u64, on_busy: OnBusy) -> Moved {
    done(store.admit(message(thread, number, on_busy)).await.unwrap())
}

fn done(admitted: Admitted) -> Moved {
    let Admitted::Done(moved) = admitted else { panic!("expected it to come in, got {admitted:?}") };
    *moved
}

fn rules() -> Arc<[FollowUpRule]> {
    [FollowUpRule { after: Duration::from_secs(60), instruction: "ask".into(), times: 2, hours: None }].into()
}

fn words(role: Role, content: &str) -> Message {
    Message { role, content: content.into() }
}

/// The last commit of a run, which has said `said`.
pub(super) fn last(commit: Commit, said: &str) -> Commit {
    let id = Uuid::from_u128(commit.run.spec.id.as_uuid().as_u128() << 32 | 1);
    let said = vec![(id, words(Role::Assistant, said))];
    Commit { farewell: Some(Farewell { said, rules: [].into(), now: now() }), ..commit }
}

fn followed(committed: Committed) -> Followed {
    let Committed::Followed(followed) = committed else { panic!("expected more to follow, got {committed:?}") };
    followed
}

/// The status of the run, and what followed from it.
fn led_on(transition: Transition) -> (Status, Followed) {
    let Transition::Followed(changed, followed) = transition else {
        panic!("expected more to follow, got {transition:?}")
    };
    (changed.run.status, followed)
}

async fn complete(store: &dyn Store, mut owner: Owner) -> Followed {
    let said = format!("r{}", owner.id().as_uuid().as_u128());
    followed(store.commit(last(owner.complete(), &said)).await.unwrap())
}

fn ids(followed: &Followed) -> Vec<(RunId, Status)> {
    followed.changed.iter().map(|changed| (changed.run.spec.id, changed.run.status)).collect()
}

async fn said(store: &dyn Store, thread: ThreadId) -> Vec<(String, Option<RunId>, Option<u64>)> {
    let messages = store.messages(thread, 0, 1_000).await.unwrap();
    messages
        .into_iter()
        .map(|message| (message.message.content.text().into_owned(), message.run, message.turn))
        .collect()
}

fn texts(messages: &[Message]) -> Vec<String> {
    messages.iter().map(|message| message.content.text().into_owned()).collect()
}

async fn runs_of(store: &dyn Store, thread: ThreadId) -> Vec<RunId> {
    let filter = RunFilter { thread: Some(thread), ..RunFilter::default() };
    store.list(&tenant(), filter, 1_000).await.unwrap().into_iter().map(|stored| stored.run.spec.id).collect()
}

pub(crate) async fn threads_are_created_listed_changed_and_removed(harness: &mut impl Harness) {
    let store = &*harness.store();
    let key = |body| {
        let key =
            IdempotencyKey { route: "/threads", key: "k".into(), fingerprint: [body; 32], valid_after: seconds(0) };
        Some(key)
    };
    let metadata: BTreeMap<_, _> = [("color".to_owned(), "red\0".to_owned())].into();
    let state = serde_json::Map::from_iter([("a".to_owned(), json!([1, "\0"]))]);
    let first = Thread { metadata: metadata.clone(), state, ..Thread::new(thread_id(1), tenant(), now()) };
    let new = |thread: &Thread, body| NewThread { thread: thread.clone(), key: key(body) };
    assert_eq!(store.create_thread(new(&first, 1)).await.unwrap(), ThreadCreated::New);
    let again = Thread::new(thread_id(9), tenant(), now());
    let existing = ThreadCreated::Existing(Box::new(first.clone()));
    assert_eq!(store.create_thread(new(&again, 1)).await.unwrap(), existing, "the same key");
    assert_eq!(store.create_thread(new(&again, 2)).await.unwrap(), ThreadCreated::Taken);
    let unkeyed = |thread| NewThread { thread, key: None };
    assert_eq!(store.create_thread(unkeyed(first.clone())).await.unwrap(), existing, "the same id");
    let others = Thread { tenant: Tenant::new("other"), ..first.clone() };
    assert_eq!(store.create_thread(unkeyed(others)).await.unwrap(), ThreadCreated::Taken);

    for number in 2..=4 {
        thread(store, number).await;
    }
    let page = store.threads(&tenant(), None, &BTreeMap::new(), 2).await.unwrap();
    assert_eq!(page.iter().map(|thread| thread.id).collect::<Vec<_>>(), [4, 3].map(thread_id));
    let page = store.threads(&tenant(), Some(thread_id(3)), &BTreeMap::new(), 9).await.unwrap();
    assert_eq!(page.iter().map(|thread| thread.id).collect::<Vec<_>>(), [2, 1].map(thread_id));
    let labelled = store.threads(&tenant(), None, &metadata, 9).await.unwrap();
    assert_eq!(labelled, std::slice::from_ref(&first));
    assert_eq!(store.threads(&Tenant::new("other"), None, &BTreeMap::new(), 9).await.unwrap(), []);

    let other = Tenant::new("other");
    let state = serde_json::Map::from_iter([("b".to_owned(), json!(true))]);
    let patch = Patch { metadata: None, state: Some(state.clone()) };
    let patched = Thread { state, ..first.clone() };
    assert_eq!(store.patch_thread(&other, first.id, patch.clone()).await.unwrap(), None);
    assert_eq!(store.patch_thread(&tenant(), first.id, patch).await.unwrap(), Some(patched.clone()));
    assert_eq!(store.thread(None, first.id).await.unwrap(), Some(patched));
    assert_eq!(store.thread(Some(&other), first.id).await.unwrap(), None);

    assert_eq!(store.delete_thread(&other, first.id).await.unwrap(), ThreadDeleted::Missing);
    say(store, first.id, 1, OnBusy::Enqueue).await;
    assert_eq!(store.delete_thread(&tenant(), first.id).await.unwrap(), ThreadDeleted::Busy(id(1)));
    complete(store, Owner::next(store).await).await;
    assert_eq!(store.delete_thread(&tenant(), first.id).await.unwrap(), ThreadDeleted::Done(vec![id(1)]));
    assert_eq!(store.delete_thread(&tenant(), first.id).await.unwrap(), ThreadDeleted::Missing);
    assert_eq!(store.get(&tenant(), id(1)).await.unwrap(), None);
    assert_eq!(store.messages(first.id, 0, 9).await.unwrap(), []);
    assert_eq!(store.thread_log(first.id, 0, 9).await.unwrap(), []);
    assert_eq!(store.create_thread(new(&again, 2)).await.unwrap(), ThreadCreated::New, "its key is gone, too");
}

pub(crate) async fn a_run_is_shown_what_was_said_before_it(harness: &mut impl Harness) {
    let store = &*harness.store();
    let thread = thread(store, 1).await;
    for number in 1..=3 {
        let moved = say(store, thread, number, OnBusy::Enqueue).await;
        assert_eq!((moved.how, moved.thread.holder), (How::Created(id(number)), Some(id(number))));
        assert_eq!(moved.run, Some(get(store, id(number)).await.run));
        let message = moved.message.unwrap();
        assert_eq!((message.run, message.turn, message.seq), (Some(id(number)), Some(number), number * 2 - 1));
        let owner = Owner::next(store).await;
        assert_eq!(owner.run.spec.thread, Some(thread));
        let shown = store.conversation(id(number), 100, 10_000).await.unwrap();
        let expected: &[&str] = match number {
            1 => &[],
            2 => &["m1", "r1"],
            _ => &["m1", "r1", "m2", "r2"],
        };
        assert_eq!(texts(&shown.history), expected);
        if number < 3 {
            assert_eq!(ids(&complete(store, owner).await), []);
            assert_eq!(found(store, thread).await.holder, None);
        }
    }
    let shown = store.conversation(id(3), 3, 10_000).await.unwrap();
    assert_eq!(texts(&shown.history), ["r1", "m2", "r2"]);
    assert_eq!(shown.history[0], words(Role::Assistant, "r1"));
    let shown = store.conversation(id(3), 100, 1).await.unwrap();
    assert_eq!(texts(&shown.history), ["r2"], "at least one");
    assert_eq!(runs_of(store, thread).await, [3, 2, 1].map(id));
    let filter = RunFilter { thread: Some(thread), statuses: vec![Status::Completed], ..RunFilter::default() };
    assert_eq!(store.list(&tenant(), filter, 1).await.unwrap()[0].run.spec.id, id(2));
    let log = store.thread_log(thread, 1, 9).await.unwrap();
    assert_eq!(log.iter().map(|event| event.seq).collect::<Vec<_>>(), [2, 3]);
    assert_eq!(log[1].happened, Happened::Run(id(3)));
}

pub(crate) async fn messages_that_come_quickly_become_one_run(harness: &mut impl Harness) {
    let store = &*harness.store();
    let thread = thread(store, 1).await;
    let moved = done(store.admit(quiet(message(thread, 1, OnBusy::Enqueue))).await.unwrap());
    let run = moved.run.unwrap();
    assert_eq!((run.status, run.reason, moved.thread.holder), (Status::Scheduled, Some(Reason::Debounce), None));
    for number in 2..=3 {
        let moved = done(store.admit(quiet(message(thread, number, OnBusy::Enqueue))).await.unwrap());
        assert_eq!(moved.how, How::Joined(id(1)));
        assert_eq!(moved.run, Some(get(store, id(1)).await.run));
    }
    let stored = get(store, id(1)).await.run;
    assert_eq!(texts(&stored.spec.input.clone().into_messages()), ["m1", "m2", "m3"]);
    assert_eq!(stored.spec.latest_due, Some(seconds(1_008)));
    let timer = TimerKey { due: seconds(1_005), owner: *id(1).as_uuid(), kind: TimerKind::Due(3) };
    assert_eq!(timers(store).await, [timer]);
    let stale = transition(store, id(1), Command::Fire { timer: 2 }, seconds(1_010)).await;
    assert!(matches!(stale, Transition::Rejected(_, Rejection::StaleTimer)), "{stale:?}");
    let fired = transition(store, id(1), Command::Fire { timer: 3 }, seconds(1_010)).await;
    assert_eq!(led_on(fired).0, Status::Queued);
    assert_eq!(found(store, thread).await.holder, Some(id(1)));
    assert_eq!(timers(store).await, []);
    assert_eq!(said(store, thread).await.iter().map(|said| said.2).collect::<Vec<_>>(), [Some(1); 3]);
    let moved = done(store.admit(quiet(message(thread, 4, OnBusy::Enqueue))).await.unwrap());
    assert_eq!(moved.how, How::Created(id(4)), "it came too late");
}

pub(crate) async fn a_run_whose_time_has_come_waits_for_its_thread(harness: &mut impl Harness) {
    let store = &*harness.store();
    let thread = thread(store, 1).await;
    say(store, thread, 1, OnBusy::Enqueue).await;
    done(store.admit(quiet(message(thread, 2, OnBusy::Enqueue))).await.unwrap());
    let fired = kit::done(transition(store, id(2), Command::Fire { timer: 1 }, seconds(1_010)).await);
    assert_eq!((fired.run.status, fired.run.reason), (Status::Scheduled, Some(Reason::ThreadBusy)));
    let moved = done(store.admit(message(thread, 3, OnBusy::Debounce)).await.unwrap());
    assert_eq!(moved.how, How::Joined(id(2)), "it still gathers");
    let owner = Owner::next(store).await;
    assert_eq!(claim(store, 9).await.len(), 0, "nobody claims what waits for its thread");
    let after = complete(store, owner).await;
    assert_eq!((ids(&after), after.armed), (vec![(id(2), Status::Queued)], None));
    let next = Owner::next(store).await;
    assert_eq!(texts(&next.run.spec.input.clone().into_messages()), ["m2", "m3"]);
    assert_eq!(get(store, id(2)).await.run, next.run);
    let turns: Vec<_> = said(store, thread).await.into_iter().map(|said| said.2).collect();
    assert_eq!(turns, [Some(1), Some(2), Some(2), Some(1)]);
    let shown = store.conversation(id(2), 100, 10_000).await.unwrap();
    assert_eq!(texts(&shown.history), ["m1", "r1"]);
}

pub(crate) async fn a_busy_thread_takes_what_comes_as_it_is_told(harness: &mut impl Harness) {
    let store = &*harness.store();
    let thread = thread(store, 1).await;
    say(store, thread, 1, OnBusy::Reject).await;
    let mut owner = Owner::next(store).await;
    let refused = store.admit(message(thread, 2, OnBusy::Reject)).await.unwrap();
    assert_eq!(refused, Admitted::Refused(Refusal::Busy { holder: id(1) }));
    assert_eq!(store.get(&tenant(), id(2)).await.unwrap(), None);
    let moved = say(store, thread, 3, OnBusy::Enqueue).await;
    assert_eq!(moved.run.unwrap().reason, Some(Reason::ThreadBusy));
    assert_eq!(say(store, thread, 4, OnBusy::Debounce).await.how, How::Joined(id(3)));
    let mut full = message(thread, 5, OnBusy::Enqueue);
    full.ask.max_pending = 1;
    assert_eq!(store.admit(full).await.unwrap(), Admitted::Refused(Refusal::Full { limit: 1 }));
    let many = Admission { max_waiting: 1, ..message(thread, 5, OnBusy::Enqueue) };
    assert_eq!(store.admit(many).await.unwrap(), Admitted::TooManyWaiting);
    assert_eq!(store.get(&tenant(), id(5)).await.unwrap(), None);
    assert_eq!(said(store, thread).await.len(), 3);
    let moved = say(store, thread, 6, OnBusy::Interrupt).await;
    assert_eq!((moved.how, moved.cancel), (How::Created(id(6)), Some(id(1))));
    assert!(get(store, id(1)).await.cancel_requested);
    assert_eq!(store.commit(last(owner.clone().complete(), "late")).await.unwrap(), Committed::CancelWaits);
    let stopped = owner.decide(&Command::Cancel);
    let after = followed(store.commit(last(stopped, "half")).await.unwrap());
    assert_eq!(ids(&after), [(id(3), Status::Queued)]);
    assert!(said(store, thread).await.contains(&("half".to_owned(), Some(id(1)), Some(1))));
    let missing = store.admit(message(thread_id(7), 7, OnBusy::Enqueue)).await.unwrap();
    assert_eq!(missing, Admitted::Missing);
    let others = Admission { tenant: Tenant::new("other"), ..message(thread, 7, OnBusy::Enqueue) };
    assert_eq!(store.admit(others).await.unwrap(), Admitted::Missing);
}

pub(crate) async fn a_holder_that_has_no_owner_makes_room_at_once(harness: &mut impl Harness) {
    let store = &*harness.store();
    let thread = thread(store, 1).await;
    say(store, thread, 1, OnBusy::Enqueue).await;
    let moved = say(store, thread, 2, OnBusy::Interrupt).await;
    assert_eq!((moved.thread.holder, moved.cancel), (Some(id(2)), None));
    assert_eq!((status(store, id(1)).await, status(store, id(2)).await), (Status::Cancelled, Status::Queued));
    let mut owner = Owner::next(store).await;
    let question = Question { reason: Reason::Input, prompt: json!("?"), deadline: Some(seconds(2_000)) };
    kit::commit(store, owner.decide(&Command::Wait { attempt: 1, question })).await;
    assert_eq!(say(store, thread, 3, OnBusy::Rollback).await.thread.holder, Some(id(3)));
    assert_eq!((status(store, id(2)).await, status(store, id(3)).await), (Status::Cancelled, Status::Queued));
    assert_eq!(timers(store).await, []);
    say(store, thread, 4, OnBusy::Enqueue).await;
    let (is, after) = led_on(transition(store, id(3), Command::Cancel, now()).await);
    assert_eq!((is, ids(&after)), (Status::Cancelled, vec![(id(4), Status::Queued)]));
    assert_eq!(claim(store, 9).await.len(), 1);
}

pub(crate) async fn what_a_run_said_is_dropped_if_that_is_wanted(harness: &mut impl Harness) {
    let store = &*harness.store();
    let thread = thread(store, 1).await;
    say(store, thread, 1, OnBusy::Enqueue).await;
    let mut owner = Owner::next(store).await;
    say(store, thread, 2, OnBusy::Rollback).await;
    let stopped = owner.decide(&Command::Cancel);
    let after = followed(store.commit(last(stopped, "half")).await.unwrap());
    assert_eq!(ids(&after), [(id(2), Status::Queued)]);
    assert_eq!(said(store, thread).await.len(), 2, "what it said is not kept");
    assert!(!found(store, thread).await.dropping);
}

pub(crate) async fn a_run_looks_at_what_it_was_handed_before_it_completes(harness: &mut impl Harness) {
    let store = &*harness.store();
    let thread = thread(store, 1).await;
    say(store, thread, 1, OnBusy::Enqueue).await;
    let mut owner = Owner::next(store).await;
    kit::commit(store, owner.step()).await;
    let moved = say(store, thread, 2, OnBusy::Steer).await;
    assert_eq!((moved.how, moved.run.map(|run| run.spec.id)), (How::Steered(id(1)), Some(id(1))));
    say(store, thread, 3, OnBusy::Steer).await;
    assert_eq!(store.commit(last(owner.clone().complete(), "r1")).await.unwrap(), Committed::SteerWaits);
    assert_eq!(store.take_steers(id(1), 2, 1).await.unwrap(), [], "not this attempt's");
    assert_eq!(texts(&store.take_steers(id(1), 1, 1).await.unwrap()), ["m2", "m3"]);
    assert_eq!(store.take_steers(id(1), 1, 1).await.unwrap(), []);
    let shown = store.conversation(id(1), 9, 1_000).await.unwrap();
    assert_eq!(shown.steers, [(1, words(Role::User, "m2")), (1, words(Role::User, "m3"))]);
    // One that fails need not look.
    say(store, thread, 4, OnBusy::Steer).await;
    let mut failing = owner.clone();
    assert_eq!(store.commit(last(owner.complete(), "r1")).await.unwrap(), Committed::SteerWaits);
    followed(store.commit(last(failing.fail(Retry::Never), "")).await.unwrap());
    assert_eq!(status(store, id(1)).await, Status::Failed);
    assert_eq!(say(store, thread, 5, OnBusy::Steer).await.how, How::Created(id(5)), "nobody is there to be told");
}

pub(crate) async fn people_take_a_thread_over_and_give_it_back(harness: &mut impl Harness) {
    let store = &*harness.store();
    let thread = thread(store, 1).await;
    say(store, thread, 1, OnBusy::Enqueue).await;
    let mut owner = Owner::next(store).await;
    say(store, thread, 2, OnBusy::Enqueue).await;
    let taken = HandOff { tenant: tenant(), thread, reason: "angry\0".into(), by: None, now: now() };
    let others = HandOff { tenant: Tenant::new("other"), ..taken.clone() };
    assert_eq!(store.hand_off(others).await.unwrap(), None);
    let moved = store.hand_off(taken).await.unwrap().unwrap();
    assert_eq!(moved.cancel, Some(id(1)));
    assert_eq!(moved.changed.iter().map(|changed| changed.run.status).collect::<Vec<_>>(), [Status::Cancelled]);
    assert_eq!(status(store, id(2)).await, Status::Cancelled);
    assert!(get(store, id(1)).await.cancel_requested);
    let kept = say(store, thread, 3, OnBusy::Interrupt).await;
    assert_eq!((kept.how, kept.run), (How::Kept, None));
    let mut asked = message(thread, 4, OnBusy::Enqueue);
    asked.ask.occasion = Occasion::Run { due: None };
    assert_eq!(store.admit(asked).await.unwrap(), Admitted::Refused(Refusal::HandedOff));
    let stopped = owner.decide(&Command::Cancel);
    assert_eq!(ids(&followed(store.commit(last(stopped, "half")).await.unwrap())), []);
    let handed = found(store, thread).await.handed_off.unwrap();
    assert!(handed.reason.starts_with("angry") && handed.at == now());
    assert_eq!(store.release_thread(&tenant(), thread, now()).await.unwrap().unwrap().thread.handed_off, None);
    assert_eq!(store.release_thread(&tenant(), thread_id(2), now()).await.unwrap(), None);
    assert_eq!(say(store, thread, 5, OnBusy::Enqueue).await.how, How::Created(id(5)));
    let shown = store.conversation(id(5), 9, 1_000).await.unwrap();
    assert_eq!(texts(&shown.history), ["m1", "m2", "m3", "half"], "also what was never answered");
    let log = store.thread_log(thread, 0, 9).await.unwrap();
    assert_eq!(log.len(), 5);
    assert!(matches!(&log[2].happened, Happened::HandedOff { by: None, .. }));
    assert_eq!(log[3].happened, Happened::Released);
}

pub(crate) async fn what_a_run_said_before_it_waited_is_kept_whoever_ends_it(harness: &mut impl Harness) {
    let store = &*harness.store();
    for number in [10, 20, 30, 40] {
        let thread = thread(store, number).await;
        say(store, thread, number, OnBusy::Enqueue).await;
        let mut owner = Owner::next(store).await;
        let question = Question { reason: Reason::Input, prompt: json!("?"), deadline: None };
        let mut waits = owner.decide(&Command::Wait { attempt: 1, question });
        let message = (Uuid::from_u128(number.into()), words(Role::Assistant, "may I?\0"));
        waits.run.said = vec![message.clone()];
        assert_eq!(store.commit(waits).await.unwrap(), Committed::Done);
        assert_eq!(get(store, id(number)).await.run.said, [message]);
        assert_eq!(said(store, thread).await.len(), 1, "it may go on");
        match number {
            10 => {
                let cancelled = transition(store, id(number), Command::Cancel, now()).await;
                assert_eq!(led_on(cancelled).0, Status::Cancelled);
            }
            20 => {
                let moved = say(store, thread, number + 1, OnBusy::Interrupt).await;
                assert_eq!(moved.message.unwrap().run, Some(id(number + 1)), "the message that came in");
            }
            30 => drop(say(store, thread, number + 1, OnBusy::Rollback).await),
            _ => {
                let taken = HandOff { tenant: tenant(), thread, reason: String::new(), by: None, now: now() };
                assert!(store.hand_off(taken).await.unwrap().is_some());
            }
        }
        assert_eq!(status(store, id(number)).await, Status::Cancelled);
        let kept =
            said(store, thread).await.into_iter().filter(|(text, ..)| text.starts_with("may I?")).collect::<Vec<_>>();
        let expected: &[_] = if number == 30 { &[] } else { &[(Some(id(number)), Some(1))] };
        assert_eq!(kept.iter().map(|(_, run, turn)| (*run, *turn)).collect::<Vec<_>>(), expected, "run {number}");
        if let 20 | 30 = number {
            assert_eq!(claim(store, 1).await.len(), 1, "the next run is no other's to claim");
        }
    }
}

pub(crate) async fn a_follow_up_is_armed_until_someone_speaks(harness: &mut impl Harness) {
    let store = &*harness.store();
    let thread = thread(store, 1).await;
    let finish = async |mut owner: Owner| {
        let mut commit = last(owner.complete(), "r");
        commit.farewell.as_mut().unwrap().rules = rules();
        commit.farewell.as_mut().unwrap().said.clear();
        followed(store.commit(commit).await.unwrap())
    };
    say(store, thread, 1, OnBusy::Enqueue).await;
    let armed = finish(Owner::next(store).await).await.armed.unwrap();
    let timer = |number, due| TimerKey { due, owner: *thread.as_uuid(), kind: TimerKind::FollowUp(number) };
    assert_eq!(armed, timer(1, seconds(1_060)));
    assert_eq!(timers(store).await, [armed]);
    let follow_up = |number, timer, now| {
        let mut admission = message(thread, number, OnBusy::Enqueue);
        admission.ask.occasion = Occasion::FollowUp { timer, rules: rules() };
        admission.ask.now = now;
        admission
    };
    let early = store.admit(follow_up(2, 1, now())).await.unwrap();
    assert_eq!(early, Admitted::Refused(Refusal::StaleTimer));
    let moved = done(store.admit(follow_up(2, 1, seconds(1_060))).await.unwrap());
    assert_eq!((moved.how, moved.thread.progress.sent), (How::Created(id(2)), 1));
    assert_eq!(timers(store).await, []);
    let again = store.admit(follow_up(3, 1, seconds(1_060))).await.unwrap();
    assert_eq!(again, Admitted::Refused(Refusal::StaleTimer));
    assert_eq!(finish(Owner::next(store).await).await.armed, Some(timer(2, seconds(1_060))));
    assert_eq!(found(store, thread).await.follow_up.unwrap().agent, "chat");
    let moved = say(store, thread, 4, OnBusy::Enqueue).await;
    assert_eq!((moved.thread.follow_up, moved.thread.progress.sent), (None, 0));
    assert_eq!(timers(store).await, []);
}

pub(crate) async fn a_retry_takes_its_messages_over(harness: &mut impl Harness) {
    let store = &*harness.store();
    let thread = thread(store, 1).await;
    say(store, thread, 1, OnBusy::Enqueue).await;
    let mut owner = Owner::next(store).await;
    kit::commit(store, owner.step()).await;
    followed(store.commit(last(owner.fail(Retry::Never), "half")).await.unwrap());
    say(store, thread, 2, OnBusy::Enqueue).await;
    complete(store, Owner::next(store).await).await;
    let mut retry = message(thread, 3, OnBusy::Enqueue);
    retry.ask.occasion = Occasion::Retry { of: id(1), kept: crate::run::Kept { steps: 1, ..Default::default() } };
    retry.ask.newcomer.spec.retry_of = Some(id(1));
    retry.ask.newcomer.messages.clear();
    assert_eq!(done(store.admit(retry).await.unwrap()).how, How::Created(id(3)));
    let claimed = claim(store, 1).await.pop().unwrap();
    assert_eq!(claimed.steps.len(), 1);
    let of = |text: &str, run, turn| (text.to_owned(), Some(id(run)), Some(turn));
    let all = [of("m1", 3, 3), of("half", 1, 1), of("m2", 2, 2), of("r2", 2, 2)];
    assert_eq!(said(store, thread).await, all);
    let shown = store.conversation(id(3), 9, 1_000).await.unwrap();
    assert_eq!(texts(&shown.history), ["half", "m2", "r2"]);
    // Another retry of the same run is shown as much, though its messages are the first's.
    let mut owner = Owner::from(claimed);
    followed(store.commit(last(owner.fail(Retry::Never), "")).await.unwrap());
    let mut again = message(thread, 4, OnBusy::Enqueue);
    again.ask.occasion = Occasion::Retry { of: id(1), kept: crate::run::Kept { steps: 1, ..Default::default() } };
    again.ask.newcomer.spec.retry_of = Some(id(1));
    again.ask.newcomer.messages.clear();
    assert_eq!(done(store.admit(again).await.unwrap()).how, How::Created(id(4)));
    claim(store, 1).await.pop().unwrap();
    let shown = store.conversation(id(4), 9, 1_000).await.unwrap();
    assert!(texts(&shown.history).starts_with(&["half", "m2", "r2"].map(str::to_owned)), "{shown:?}");
}

pub(crate) async fn a_follow_up_can_be_put_off_or_off_altogether(harness: &mut impl Harness) {
    let store = &*harness.store();
    let thread = thread(store, 1).await;
    say(store, thread, 1, OnBusy::Enqueue).await;
    let mut owner = Owner::next(store).await;
    let mut commit = last(owner.complete(), "r");
    commit.farewell.as_mut().unwrap().rules = rules();
    let armed = followed(store.commit(commit).await.unwrap()).armed.unwrap();
    store.put_off_follow_up(thread, 7, None).await.unwrap();
    assert_eq!(timers(store).await, [armed], "that is another one");
    let later = TimerKey { due: seconds(5_000), ..armed };
    store.put_off_follow_up(thread, 1, Some(later.due)).await.unwrap();
    assert_eq!(timers(store).await, [later]);
    assert_eq!(found(store, thread).await.follow_up.unwrap().timer.due, later.due);
    store.put_off_follow_up(thread, 1, None).await.unwrap();
    assert_eq!((timers(store).await, found(store, thread).await.follow_up), (vec![], None));
}

pub(crate) async fn where_nothing_is_let_in_nothing_is_counted(harness: &mut impl Harness) {
    let store = &*harness.store();
    let thread = thread(store, 1).await;
    for number in 1..=3 {
        say(store, thread, number, OnBusy::Enqueue).await;
    }
    let bounded = |number, max_waiting| Admission { max_waiting, ..message(thread, number, OnBusy::Enqueue) };
    assert_eq!(store.admit(bounded(4, 0)).await.unwrap(), Admitted::TooManyWaiting);
    assert_eq!(store.admit(bounded(5, 3)).await.unwrap(), Admitted::TooManyWaiting);
    done(store.admit(bounded(6, 4)).await.unwrap());
}

pub(crate) async fn a_message_comes_in_once_under_its_key(harness: &mut impl Harness) {
    let (store, other) = (harness.store(), harness.another());
    let thread = thread(&*store, 1).await;
    let keyed = |number, body| {
        let key = IdempotencyKey { route: "/m", key: "k\0".into(), fingerprint: [body; 32], valid_after: seconds(0) };
        Admission { key: Some(key), ..message(thread, number, OnBusy::Enqueue) }
    };
    let all = join_all((1..=8).map(|number| {
        let store = if number % 2 == 0 { &store } else { &other };
        store.admit(keyed(number, 1))
    }));
    let all: Vec<_> = all.await.into_iter().map(Result::unwrap).collect();
    let (first, rest): (Vec<_>, Vec<_>) = all.into_iter().partition(|admitted| matches!(admitted, Admitted::Done(_)));
    assert_eq!(first.len(), 1);
    let first = done(first.into_iter().next().unwrap());
    for admitted in rest {
        let Admitted::Existing { message, run } = admitted else { panic!("{admitted:?}") };
        assert_eq!((message, run.map(|run| run.run)), (first.message.clone(), first.run.clone()));
    }
    assert_eq!(store.admit(keyed(9, 2)).await.unwrap(), Admitted::KeyReused);
    assert_eq!(runs_of(&*store, thread).await.len(), 1);
    let second = self::thread(&*store, 2).await;
    let elsewhere = Admission { thread: second, ..keyed(10, 1) };
    assert!(matches!(store.admit(elsewhere).await.unwrap(), Admitted::Existing { .. }));
    let mut asked = keyed(11, 3);
    asked.ask.occasion = Occasion::Run { due: None };
    asked.key = asked.key.map(|key| IdempotencyKey { route: "/runs", ..key });
    done(store.admit(asked.clone()).await.unwrap());
    let again = store.admit(asked).await.unwrap();
    let Admitted::Existing { message: None, run } = again else { panic!("{again:?}") };
    assert_eq!(run.unwrap().run.spec.id, id(11));
}

pub(crate) async fn a_question_is_answered_once(harness: &mut impl Harness) {
    let (store, other) = (harness.store(), harness.another());
    let thread = thread(&*store, 1).await;
    say(&*store, thread, 1, OnBusy::Enqueue).await;
    kit::create(&*store, spec(2)).await;
    for claimed in claim(&*store, 2).await {
        let mut owner = Owner::from(claimed);
        let run = owner.id();
        let question = Question { reason: Reason::Approval, prompt: json!({"a": 1}), deadline: None };
        kit::commit(&*store, owner.decide(&Command::Wait { attempt: 1, question })).await;
        let wait_id = get(&*store, run).await.run.wait_id().unwrap();
        let answer = |wait_id: &str| Command::Resume { wait_id: wait_id.to_owned(), input: json!("yes\0") };
        let wrong = transition(&*store, run, answer("w0"), now()).await;
        let Transition::Rejected(_, rejection) = wrong else { panic!("{wrong:?}") };
        assert_eq!(rejection, Rejection::StaleWait { current: wait_id.clone() });
        let both = join_all([&store, &other].map(|store| transition(&**store, run, answer(&wait_id), now()))).await;
        let done = both.iter().filter(|answered| matches!(answered, Transition::Done(_))).count();
        assert_eq!(done, 1, "{both:?}");
        let next = claim(&*store, 1).await.pop().unwrap();
        assert_eq!((next.run.spec.id, next.run.attempt, next.steps.len()), (run, 2, 1));
        assert_eq!((next.steps[0].kind, next.steps[0].step), (StepKind::Ask, 1));
        assert_eq!(next.steps[0].result, json!({"wait_id": wait_id, "input": "yes\0"}));
    }
    assert_eq!(found(&*store, thread).await.holder, Some(id(1)));
}

pub(crate) async fn a_question_that_nobody_answers_ends_its_run(harness: &mut impl Harness) {
    let store = &*harness.store();
    let thread = thread(store, 1).await;
    say(store, thread, 1, OnBusy::Enqueue).await;
    say(store, thread, 2, OnBusy::Enqueue).await;
    let mut owner = Owner::next(store).await;
    let question = Question { reason: Reason::Input, prompt: json!("?"), deadline: Some(seconds(2_000)) };
    kit::commit(store, owner.decide(&Command::Wait { attempt: 1, question })).await;
    let due = TimerKey { due: seconds(2_000), owner: *id(1).as_uuid(), kind: TimerKind::Due(1) };
    assert_eq!(timers(store).await, [due]);
    let (is, after) = led_on(transition(store, id(1), Command::Fire { timer: 1 }, seconds(2_000)).await);
    assert_eq!((is, ids(&after)), (Status::Failed, vec![(id(2), Status::Queued)]));
    assert_eq!(timers(store).await, []);
    assert_eq!(store.dead_letters(None, 9).await.unwrap().len(), 1);
}

pub(crate) async fn a_lost_holder_makes_room_for_the_next(harness: &mut impl Harness) {
    let store = harness.store();
    let thread = thread(&*store, 1).await;
    let mut once = message(thread, 1, OnBusy::Enqueue);
    once.ask.newcomer.spec.max_attempts = 1;
    done(store.admit(once).await.unwrap());
    say(&*store, thread, 2, OnBusy::Enqueue).await;
    say(&*store, thread, 3, OnBusy::Enqueue).await;
    let mut owner = Owner::next(&*store).await;
    let store = harness.restart().await;
    let mut recovered = store.recover(now(), 9).await.unwrap();
    assert_eq!(recovered.len(), 1);
    let (is, after) = led_on(recovered.remove(0));
    assert_eq!((is, ids(&after)), (Status::Failed, vec![(id(2), Status::Queued)]));
    assert_eq!(store.recover(now(), 9).await.unwrap(), []);
    assert_eq!(store.commit(last(owner.complete(), "late")).await.unwrap(), Committed::Fenced);
    // One with attempts left keeps the thread.
    assert_eq!(Owner::next(&*store).await.id(), id(2));
    kit::done(store.give_up(id(2), 1, now()).await.unwrap());
    let again = Owner::next(&*store).await;
    assert_eq!((again.id(), again.run.attempt), (id(2), 2));
    let strays = store.let_go_strays("node-1", &[], now(), 9).await.unwrap();
    assert_eq!(strays.len(), 1);
    assert_eq!(status(&*store, id(2)).await, Status::Queued);
    Owner::next(&*store).await;
    transition(&*store, id(2), Command::Cancel, now()).await;
    let mut strays = store.let_go_strays("node-1", &[], now(), 9).await.unwrap();
    assert_eq!(strays.len(), 1);
    let (is, after) = led_on(strays.remove(0));
    assert_eq!((is, ids(&after)), (Status::Cancelled, vec![(id(3), Status::Queued)]));
}

pub(crate) async fn no_thread_has_two_active_runs(harness: &mut impl Harness) {
    let store = &*harness.store();
    let thread = thread(store, 1).await;
    for number in 1..=2 {
        let new = kit::new_run(Spec { thread: Some(thread), ..spec(number) }, None, 0);
        assert_eq!(store.create(new).await.unwrap(), Created::New);
    }
    assert_eq!(Owner::next(store).await.id(), id(1));
    let agents = Arc::new([("chat".to_owned(), "1".to_owned())]);
    let node = "node-1".into();
    let claim = crate::store::Claim {
        node,
        agents,
        room: 1,
        reserve: 1,
        lease: kit::LEASE,
        now: now(),
        turn: 0,
        limits: Arc::default(),
    };
    assert!(matches!(store.claim(claim).await, Err(StoreError::Corrupt(_))));
    assert_eq!(status(store, id(2)).await, Status::Queued);
}

pub(crate) async fn the_end_of_a_run_is_written_once(harness: &mut impl Harness) {
    let store = &*harness.store();
    let thread = thread(store, 1).await;
    say(store, thread, 1, OnBusy::Enqueue).await;
    let mut owner = Owner::next(store).await;
    kit::commit(store, owner.tokens(&["a"])).await;
    let early = last(owner.clone().complete(), "r1");
    let early = Commit { number: early.number + 1, ..early };
    assert_eq!(store.commit(early).await.unwrap(), Committed::Fenced, "out of turn");
    let end = last(owner.complete(), "r1");
    followed(store.commit(end.clone()).await.unwrap());
    assert_eq!(store.commit(end.clone()).await.unwrap(), Committed::Done);
    assert_eq!(said(store, thread).await.len(), 2);
    assert_eq!(get(store, id(1)).await.run, end.run);
    let stale = Commit { run: crate::run::Run { attempt: 9, ..end.run.clone() }, ..end };
    assert_eq!(store.commit(stale).await.unwrap(), Committed::Fenced);
}

pub(crate) async fn threads_that_are_idle_are_removed(harness: &mut impl Harness) {
    let store = &*harness.store();
    for number in 1..=5 {
        thread(store, number).await;
    }
    say(store, thread_id(1), 1, OnBusy::Enqueue).await;
    complete(store, Owner::next(store).await).await;
    say(store, thread_id(2), 2, OnBusy::Enqueue).await;
    done(store.admit(quiet(message(thread_id(3), 3, OnBusy::Enqueue))).await.unwrap());
    let mut later = message(thread_id(4), 4, OnBusy::Enqueue);
    later.ask.now = seconds(3_000);
    done(store.admit(later).await.unwrap());
    transition(store, id(4), Command::Cancel, seconds(3_000)).await;
    assert_eq!(store.delete_idle_threads(now(), 9).await.unwrap(), [], "not before that time");
    let removed: BTreeSet<_> = store.delete_idle_threads(seconds(2_000), 9).await.unwrap().into_iter().collect();
    assert_eq!(removed, [1, 5].map(thread_id).into());
    assert_eq!(store.get(&tenant(), id(1)).await.unwrap(), None);
    assert_eq!(store.threads(&tenant(), None, &BTreeMap::new(), 9).await.unwrap().len(), 3);
}
