//! The rules one by one, under a manual clock; and random interleavings of all of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use serde_json::json;
use uuid::Uuid;

use super::*;
use crate::run::{
    Command, Context, Effect, Failure, Input, Kept, Message, OnDisconnect, Question, Reason, Retry, Role, Run,
    RunError, RunId, Spec, Status, Tenant, ThreadId, Timestamp, Usage,
};

fn at(millis: i64) -> Timestamp {
    Timestamp::from_millis(millis)
}

fn quiet(quiet: u64, longest: u64) -> Option<Quiet> {
    Some(Quiet { quiet: Duration::from_millis(quiet), longest: Duration::from_millis(longest) })
}

fn user(content: &str) -> Message {
    Message { role: Role::User, content: content.into() }
}

/// A thread in a store that consists of maps.
struct World {
    thread: Thread,
    runs: BTreeMap<RunId, Run>,
    cancels: BTreeSet<RunId>,
    /// Those that had the thread.
    held: BTreeSet<RunId>,
    messages: Vec<ThreadMessage>,
    log: Vec<Event>,
    now: i64,
    ids: u128,
    rules: Arc<[FollowUpRule]>,
    max_pending: usize,
}

impl World {
    fn new() -> Self {
        let id = ThreadId::from_uuid(Uuid::from_u128(1));
        Self {
            thread: Thread::new(id, Tenant::default(), at(1_000)),
            runs: BTreeMap::new(),
            cancels: BTreeSet::new(),
            held: BTreeSet::new(),
            messages: Vec::new(),
            log: Vec::new(),
            now: 1_000,
            ids: 1,
            rules: Arc::from([]),
            max_pending: 100,
        }
    }

    fn id(&mut self) -> Uuid {
        self.ids += 1;
        Uuid::from_u128(self.ids)
    }

    fn found(&self) -> Found {
        let open = self.runs.values().filter(|run| !run.status.is_final()).map(|run| Open {
            run: run.clone(),
            reserved_seq: run.last_seq,
            cancel_requested: self.cancels.contains(&run.spec.id),
        });
        let unread = self.messages.iter().filter(|message| message.unread && message.run == self.thread.holder);
        let unread = unread.fold(Unread::default(), |unread, message| Unread {
            messages: unread.messages + 1,
            bytes: unread.bytes + message.message.content.bytes() as u64,
        });
        Found { thread: self.thread.clone(), open: open.collect(), unread }
    }

    fn ask(&mut self, occasion: Occasion, on_busy: OnBusy, content: &str) -> Result<How, Refusal> {
        let (id, message) = (RunId::from_uuid(self.id()), self.id());
        let spec = Spec {
            id,
            tenant: Tenant::default(),
            agent: "a".into(),
            agent_version: "1".into(),
            input: Input::Messages(vec![user(content)]),
            params: serde_json::Map::new(),
            priority: 0,
            ttl_at: None,
            timeout_ms: 60_000,
            max_attempts: 2,
            on_disconnect: OnDisconnect::Continue,
            metadata: BTreeMap::new(),
            thread: Some(self.thread.id),
            latest_due: None,
            retry_of: match occasion {
                Occasion::Retry { of, .. } => Some(of),
                Occasion::Message { .. } | Occasion::Run { .. } | Occasion::FollowUp { .. } => None,
            },
            concurrency_key: None,
            webhook: None,
            correlation_id: None,
            budget: crate::run::Budget::NONE,
            created_at: at(self.now),
        };
        let messages = if matches!(occasion, Occasion::Retry { .. }) { Vec::new() } else { vec![message] };
        let newcomer = Newcomer { spec, messages };
        let ask =
            Ask { occasion, on_busy, newcomer, max_pending: self.max_pending, max_input: 1_000, now: at(self.now) };
        let change = self.found().admit(&ask)?;
        let how = change.how;
        self.write(change);
        Ok(how)
    }

    fn say(&mut self, content: &str, on_busy: OnBusy, quiet: Option<Quiet>) -> Result<How, Refusal> {
        self.ask(Occasion::Message { quiet }, on_busy, content)
    }

    fn write(&mut self, change: Change) {
        self.thread = change.thread;
        self.held.extend(self.thread.holder);
        for changed in change.changed.into_iter().chain(change.created) {
            self.runs.insert(changed.run.spec.id, changed.run);
        }
        if let Some(grown) = change.grown {
            let run = self.runs.get_mut(&grown.spec.id).unwrap();
            Arc::make_mut(&mut run.spec).input = grown.spec.input.clone();
        }
        self.cancels.extend(change.cancel);
        self.messages.extend(change.messages);
        if let Some((from, to)) = change.taken_over {
            let theirs = self.messages.iter_mut().filter(|message| message.run == Some(from));
            for message in theirs.filter(|message| message.message.role != Role::Assistant) {
                (message.run, message.turn) = (Some(to), None);
            }
        }
        for (run, turn) in change.turns {
            let its = self.messages.iter_mut().filter(|message| message.run == Some(run));
            its.filter(|message| message.turn.is_none()).for_each(|message| message.turn = Some(turn));
        }
        self.log.extend(change.events);
    }

    /// As a store does it: the machine decides about the run, then the thread follows.
    fn tell(&mut self, id: RunId, command: &Command) -> Option<Vec<Effect>> {
        let mut run = self.runs.get(&id)?.clone();
        let busy = self.thread.holder.is_some_and(|holder| holder != id);
        let context = Context { now: at(self.now), next_seq: run.last_seq + 1, busy, spent: None };
        let decision = run.decide(command, &context).ok()?;
        for event in &decision.events {
            run.apply(event, run.last_seq + 1, at(self.now));
        }
        let found = self.found();
        self.runs.insert(id, run.clone());
        if run.status.is_final() || run.status == Status::Queued {
            let said = vec![(self.id(), Message { role: Role::Assistant, content: format!("said by {id}").into() })];
            let rules = Arc::clone(&self.rules);
            let said = if run.status.is_final() && run.attempt > 0 { said } else { Vec::new() };
            self.write(found.moved(&run, said, &rules, at(self.now)));
        }
        Some(decision.effects)
    }

    /// What a run has said before it waited.
    fn remembers(&mut self, id: RunId, content: &str) {
        let said = (self.id(), Message { role: Role::Assistant, content: content.into() });
        self.runs.get_mut(&id).expect("a run").said = vec![said];
    }

    fn holder(&self) -> RunId {
        self.thread.holder.expect("some run holds the thread")
    }

    fn claim(&mut self) {
        let holder = self.holder();
        self.tell(holder, &Command::Claim { node: "n".into() }).expect("the holder is queued");
    }

    fn complete(&mut self) {
        let holder = self.holder();
        let attempt = self.runs[&holder].attempt;
        // What was handed over is looked at before the end.
        self.messages
            .iter_mut()
            .filter(|message| message.run == Some(holder))
            .for_each(|message| message.unread = false);
        let complete =
            Command::Complete { attempt, output: json!("x"), outcome: "finished".into(), usage: Usage::default() };
        self.tell(holder, &complete).expect("the holder is running");
    }

    /// Fires what is due.
    fn fire(&mut self) {
        let due: Vec<_> = self.runs.values().filter_map(|run| Some((run.spec.id, run.timer?))).collect();
        let now = at(self.now);
        for (run, timer) in due.into_iter().filter(|(_, timer)| timer.due <= now) {
            self.tell(run, &Command::Fire { timer: timer.id });
        }
        let follow_up = self.thread.follow_up.clone().filter(|follow_up| follow_up.timer.due <= at(self.now));
        if let Some(follow_up) = follow_up {
            let rules = Arc::clone(&self.rules);
            let occasion = Occasion::FollowUp { timer: follow_up.timer.id, rules };
            let content = format!("follow up {}", self.ids);
            self.ask(occasion, OnBusy::Reject, &content).expect("an armed follow-up is due");
        }
    }

    fn run(&self, how: How) -> &Run {
        &self.runs[&how.run().expect("there is a run")]
    }

    fn words(&self, run: RunId) -> Vec<String> {
        let Input::Messages(messages) = &self.runs[&run].spec.input else { panic!("messages") };
        messages.iter().map(|message| message.content.text().into_owned()).collect()
    }

    fn check(&self) {
        let holding = |run: &&Run| match run.status {
            Status::Queued | Status::Running | Status::Waiting => true,
            Status::Scheduled => run.reason == Some(Reason::Backoff),
            Status::Completed | Status::Failed | Status::Cancelled | Status::Expired => false,
        };
        let holders: Vec<_> = self.runs.values().filter(holding).map(|run| run.spec.id).collect();
        assert_eq!(holders, Vec::from_iter(self.thread.holder), "exactly the holder is going on");
        let behind = self.runs.values().filter(|run| run.reason == Some(Reason::ThreadBusy)).count();
        assert!(behind == 0 || self.thread.holder.is_some(), "nobody waits for a thread that is free");
        assert!(self.thread.handed_off.is_none() || behind == 0, "nobody waits for a thread that people have");
        let armed = self.thread.follow_up.is_some();
        assert!(!armed || (self.thread.holder.is_none() && self.thread.handed_off.is_none()), "silence is silence");
        for (number, message) in (1..).zip(&self.messages) {
            assert_eq!(message.seq, number);
        }
        for (number, event) in (1..).zip(&self.log) {
            assert_eq!(event.seq, number);
        }
        // Each message of a person is in the input of exactly its run, or was handed to it, or is kept.
        for message in self.messages.iter().filter(|message| message.message.role == Role::User) {
            let content = &*message.message.content.text();
            let within: Vec<_> =
                self.runs.keys().filter(|run| self.words(**run).iter().any(|word| word == content)).copied().collect();
            let steered = message.unread || within.is_empty();
            match message.run {
                Some(run) if !steered => assert!(within.contains(&run), "{content} is in {within:?}, not {run}"),
                Some(_) => assert_eq!(within, [], "{content} was handed over"),
                None => assert_eq!(within, [], "{content} is kept"),
            }
            assert!(within.len() <= 1, "{content} is in {within:?}");
            let to_come = message.run.is_some_and(|run| self.runs[&run].status == Status::Scheduled);
            assert!(to_come || message.turn.is_some(), "{content} is shown to whoever comes next");
        }
    }
}

#[test]
fn messages_within_the_quiet_period_become_one_run_in_order() {
    let mut world = World::new();
    let first = world.say("one", OnBusy::Enqueue, quiet(100, 250)).unwrap();
    assert_eq!(world.run(first).timer.unwrap().due, at(1_100));
    world.now = 1_090;
    world.fire();
    let second = world.say("two", OnBusy::Enqueue, quiet(100, 250)).unwrap();
    assert_eq!(second, How::Joined(first.run().unwrap()));
    assert_eq!(world.run(second).timer.unwrap().due, at(1_190));
    world.now = 1_180;
    world.say("three", OnBusy::Enqueue, quiet(100, 250)).unwrap();
    assert_eq!(world.run(first).timer.unwrap().due, at(1_250), "the longest wait");
    world.now = 1_250;
    world.fire();
    world.check();
    assert_eq!(world.words(world.holder()), ["one", "two", "three"]);
    let late = world.say("four", OnBusy::Enqueue, quiet(100, 250)).unwrap();
    assert!(matches!(late, How::Created(_)), "what has fired takes nothing more");
}

#[test]
fn a_message_without_a_quiet_period_takes_along_what_waits() {
    let mut world = World::new();
    let first = world.say("one", OnBusy::Enqueue, quiet(100, 250)).unwrap();
    let second = world.say("two", OnBusy::Enqueue, None).unwrap();
    assert_eq!(second, How::Joined(first.run().unwrap()));
    assert_eq!(world.run(first).status, Status::Queued);
    assert_eq!(world.words(world.holder()), ["one", "two"]);
    world.check();
}

#[test]
fn what_comes_while_a_run_goes_on_follows_on_busy() {
    let busy = || {
        let mut world = World::new();
        let first = world.say("one", OnBusy::Enqueue, None).unwrap().run().unwrap();
        world.claim();
        (world, first)
    };
    let (mut world, first) = busy();
    assert_eq!(world.say("two", OnBusy::Reject, None), Err(Refusal::Busy { holder: first }));
    assert_eq!(world.messages.len(), 1);

    let (mut world, _) = busy();
    let second = world.say("two", OnBusy::Enqueue, None).unwrap();
    assert_eq!(world.run(second).reason, Some(Reason::ThreadBusy));
    let third = world.say("three", OnBusy::Enqueue, None).unwrap();
    assert_ne!(second, third);
    world.complete();
    assert_eq!(Some(world.holder()), second.run(), "the oldest is next");
    world.check();

    let (mut world, first) = busy();
    let second = world.say("two", OnBusy::Interrupt, None).unwrap();
    assert!(world.cancels.contains(&first) && !world.thread.dropping);
    world.tell(first, &Command::Cancel).unwrap();
    assert_eq!(Some(world.holder()), second.run());
    assert!(world.messages.iter().any(|message| message.message.role == Role::Assistant), "what it said is kept");

    let (mut world, first) = busy();
    world.say("two", OnBusy::Rollback, None).unwrap();
    world.tell(first, &Command::Cancel).unwrap();
    assert!(world.messages.iter().all(|message| message.message.role == Role::User), "what it said is dropped");
    assert!(!world.thread.dropping);

    let (mut world, _) = busy();
    let second = world.say("two", OnBusy::Debounce, None).unwrap();
    let third = world.say("three", OnBusy::Debounce, quiet(100, 100)).unwrap();
    assert_eq!(third, How::Joined(second.run().unwrap()));
    assert_eq!(world.words(second.run().unwrap()), ["two", "three"]);
    world.check();

    let (mut world, first) = busy();
    assert_eq!(world.say("two", OnBusy::Steer, None), Ok(How::Steered(first)));
    assert!(world.messages[1].unread);
    assert_eq!(world.messages[1].turn, Some(1));
    world.cancels.insert(first);
    let third = world.say("three", OnBusy::Steer, None).unwrap();
    assert!(matches!(third, How::Created(_)), "a run that is being cancelled can do nothing with it");
    world.check();
}

#[test]
fn interrupting_what_has_not_started_or_waits_ends_it_at_once() {
    let mut world = World::new();
    let first = world.say("one", OnBusy::Enqueue, None).unwrap();
    let second = world.say("two", OnBusy::Interrupt, None).unwrap();
    assert_eq!(world.run(first).status, Status::Cancelled);
    assert_eq!(Some(world.holder()), second.run());
    world.claim();
    let question = Question { reason: Reason::Input, prompt: json!("?"), deadline: None };
    world.tell(world.holder(), &Command::Wait { attempt: 1, question }).unwrap();
    world.remembers(world.holder(), "may I?");
    let third = world.say("three", OnBusy::Interrupt, None).unwrap();
    assert_eq!(world.run(second).status, Status::Cancelled);
    assert_eq!(Some(world.holder()), third.run());
    let mut said = world.messages.iter().map(|message| (message.message.content.text(), message.run, message.turn));
    assert_eq!(said.next_back(), Some(("three".into(), third.run(), Some(3))));
    assert!(
        world.messages.iter().any(|message| *message.message.content.text() == *"may I?" && message.turn == Some(2))
    );
    world.check();
}

#[test]
fn a_thread_takes_only_so_many() {
    let mut world = World::new();
    world.max_pending = 2;
    for content in ["one", "two", "three"] {
        world.say(content, OnBusy::Enqueue, None).unwrap();
    }
    assert_eq!(world.say("four", OnBusy::Enqueue, None), Err(Refusal::Full { limit: 2 }));
    world.check();
}

#[test]
fn a_delayed_run_finds_its_thread_busy_or_free() {
    let mut world = World::new();
    let delayed = world.ask(Occasion::Run { due: Some(at(1_500)) }, OnBusy::Enqueue, "later").unwrap();
    assert_eq!(world.run(delayed).reason, Some(Reason::Delay));
    world.say("now", OnBusy::Enqueue, None).unwrap();
    world.claim();
    world.now = 1_500;
    world.fire();
    assert_eq!(world.run(delayed).reason, Some(Reason::ThreadBusy));
    world.complete();
    assert_eq!(Some(world.holder()), delayed.run());
    world.check();
}

#[test]
fn follow_ups_come_in_silence_as_often_as_declared_and_stop_when_somebody_speaks() {
    let rule = |after, times| FollowUpRule {
        after: Duration::from_millis(after),
        instruction: "ask again".to_owned(),
        times,
        hours: None,
    };
    let mut world = World::new();
    world.rules = Arc::from([rule(100, 2), rule(1_000, 1)]);
    world.say("one", OnBusy::Enqueue, None).unwrap();
    for due in [1_100, 1_200, 2_200] {
        world.claim();
        world.complete();
        assert_eq!(world.thread.follow_up.as_ref().unwrap().timer.due, at(due));
        world.now = due;
        world.fire();
        world.check();
    }
    world.claim();
    world.complete();
    assert_eq!(world.thread.follow_up, None, "all were sent");
    world.say("two", OnBusy::Enqueue, None).unwrap();
    world.claim();
    world.complete();
    assert_eq!(world.thread.follow_up.as_ref().unwrap().timer.due, at(2_300), "from the beginning");
    let stale = world.thread.follow_up.as_ref().unwrap().timer.id;
    world.say("three", OnBusy::Enqueue, quiet(500, 500)).unwrap();
    assert_eq!(world.thread.follow_up, None);
    world.now = 2_400;
    let occasion = Occasion::FollowUp { timer: stale, rules: Arc::clone(&world.rules) };
    assert_eq!(world.ask(occasion, OnBusy::Reject, "x"), Err(Refusal::StaleTimer));
}

#[test]
fn people_who_have_a_thread_are_not_interfered_with() {
    let mut world = World::new();
    let first = world.say("one", OnBusy::Enqueue, None).unwrap();
    world.claim();
    let second = world.say("two", OnBusy::Enqueue, None).unwrap();
    let change = world.found().hand_off("angry".to_owned(), None, at(world.now));
    world.write(change);
    assert_eq!(world.run(second).status, Status::Cancelled);
    assert!(world.cancels.contains(&first.run().unwrap()));
    world.tell(first.run().unwrap(), &Command::Cancel).unwrap();
    assert_eq!(world.say("three", OnBusy::Enqueue, quiet(5, 5)), Ok(How::Kept));
    assert_eq!(world.ask(Occasion::Run { due: None }, OnBusy::Enqueue, "x"), Err(Refusal::HandedOff));
    world.check();
    let again = world.found().hand_off("again".to_owned(), None, at(world.now));
    assert_eq!((again.events.len(), &again.thread), (0, &world.thread));
    let change = world.found().release(at(world.now));
    world.write(change);
    world.say("four", OnBusy::Enqueue, None).unwrap();
    world.check();
    let kinds: Vec<_> = world.log.iter().map(|event| event.happened.kind()).collect();
    assert_eq!(kinds, [EventKind::Run, EventKind::Run, EventKind::HandedOff, EventKind::Released, EventKind::Run]);
}

#[test]
fn what_was_said_to_a_run_that_ended_before_its_turn_is_shown_to_the_next() {
    let mut world = World::new();
    world.say("one", OnBusy::Enqueue, None).unwrap();
    world.claim();
    let cancelled = world.say("two", OnBusy::Enqueue, None).unwrap().run().unwrap();
    world.tell(cancelled, &Command::Cancel).unwrap();
    world.say("three", OnBusy::Enqueue, quiet(5, 5)).unwrap();
    let change = world.found().hand_off(String::new(), None, at(world.now));
    world.write(change);
    let turns: Vec<_> = world.messages.iter().map(|message| message.turn).collect();
    assert_eq!(turns, [Some(1); 3], "the next turn is the second");
    // And one that nobody held the thread for.
    let mut world = World::new();
    let debounced = world.say("one", OnBusy::Enqueue, quiet(5, 5)).unwrap().run().unwrap();
    world.tell(debounced, &Command::Cancel).unwrap();
    world.say("two", OnBusy::Enqueue, None).unwrap();
    assert_eq!(world.messages.iter().map(|message| message.turn).collect::<Vec<_>>(), [Some(0), Some(1)]);
}

#[test]
fn a_run_that_does_not_look_is_handed_no_more_than_may_wait() {
    let mut world = World::new();
    world.max_pending = 2;
    let holder = world.say("one", OnBusy::Enqueue, None).unwrap().run().unwrap();
    world.claim();
    assert_eq!(world.say("two", OnBusy::Steer, None), Ok(How::Steered(holder)));
    assert_eq!(world.say("three", OnBusy::Steer, None), Ok(How::Steered(holder)));
    assert!(matches!(world.say("four", OnBusy::Steer, None), Ok(How::Created(_))));
    let mut world = World::new();
    let holder = world.say("one", OnBusy::Enqueue, None).unwrap().run().unwrap();
    world.claim();
    assert_eq!(world.say(&"x".repeat(600), OnBusy::Steer, None), Ok(How::Steered(holder)));
    assert_eq!(world.say(&"x".repeat(400), OnBusy::Steer, None), Ok(How::Steered(holder)));
    assert!(matches!(world.say("x", OnBusy::Steer, None), Ok(How::Created(_))));
}

#[test]
fn nothing_joins_a_retry() {
    let mut world = World::new();
    let failed = world.say("one", OnBusy::Enqueue, None).unwrap().run().unwrap();
    world.tell(failed, &Command::Cancel).unwrap();
    world.say("two", OnBusy::Enqueue, None).unwrap();
    let retry = world.ask(Occasion::Retry { of: failed, kept: Kept::default() }, OnBusy::Enqueue, "one").unwrap();
    assert!(matches!(world.say("three", OnBusy::Debounce, None), Ok(How::Created(run)) if Some(run) != retry.run()));
}

#[test]
fn an_agent_that_hands_its_thread_off_may_finish() {
    let mut world = World::new();
    world.say("one", OnBusy::Enqueue, None).unwrap();
    world.claim();
    let holder = world.holder();
    let change = world.found().hand_off("too hard".to_owned(), Some((holder, 1)), at(world.now));
    world.write(change);
    assert!(world.cancels.is_empty());
    world.rules = Arc::from([FollowUpRule {
        after: Duration::from_millis(1),
        instruction: String::new(),
        times: 1,
        hours: None,
    }]);
    world.complete();
    assert_eq!((world.thread.holder, &world.thread.follow_up), (None, &None));
    world.check();
}

#[test]
fn an_attempt_that_is_over_hands_nothing_off() {
    let mut world = World::new();
    let first = world.say("one", OnBusy::Enqueue, None).unwrap().run().unwrap();
    world.claim();
    let nothing = |world: &World, by| {
        let change = world.found().hand_off("late".to_owned(), Some(by), at(world.now));
        assert_eq!((change.thread, change.cancel, change.changed), (world.thread.clone(), None, vec![]));
    };
    nothing(&world, (first, 2));
    world.complete();
    let second = world.say("two", OnBusy::Enqueue, None).unwrap().run().unwrap();
    nothing(&world, (first, 1));
    nothing(&world, (second, 0));
}

#[test]
fn quick_messages_to_a_busy_thread_join_those_that_wait_for_more() {
    let mut world = World::new();
    world.say("one", OnBusy::Enqueue, None).unwrap();
    world.claim();
    let second = world.say("two", OnBusy::Enqueue, quiet(100, 500)).unwrap();
    world.say("three", OnBusy::Enqueue, None).unwrap();
    let fourth = world.say("four", OnBusy::Enqueue, quiet(100, 500)).unwrap();
    assert_eq!(fourth, How::Joined(second.run().unwrap()));
    world.check();
}

#[test]
fn a_retry_takes_the_messages_over() {
    let mut world = World::new();
    let first = world.say("one", OnBusy::Enqueue, None).unwrap().run().unwrap();
    world.claim();
    let failure = Failure {
        error: RunError { code: "x".into(), message: String::new() },
        retry: Retry::Never,
        usage: Usage::default(),
    };
    world.tell(first, &Command::Fail { attempt: 1, failure }).unwrap();
    let second =
        world.ask(Occasion::Retry { of: first, kept: crate::run::Kept::default() }, OnBusy::Enqueue, "one").unwrap();
    assert_eq!(world.messages[0].run, second.run());
    assert_eq!(world.messages[0].turn, Some(2));
    assert_eq!(world.messages.iter().filter(|message| message.message.role == Role::User).count(), 1);
}

#[derive(Debug, Clone)]
enum Act {
    Say(OnBusy, Option<(u64, u64)>),
    Run(OnBusy, Option<i64>),
    Pass(i64),
    Claim,
    Complete,
    Fail(bool),
    Wait,
    Resume,
    Crash,
    Cancel(usize),
    HandOff,
    Release,
}

fn any_act() -> impl Strategy<Value = Act> {
    let on_busy = || prop::sample::select(OnBusy::ALL.to_vec());
    prop_oneof![
        8 => (on_busy(), prop::option::of((1..200_u64, 1..600_u64))).prop_map(|(on_busy, quiet)| Act::Say(on_busy, quiet)),
        2 => (on_busy(), prop::option::of(0..300_i64)).prop_map(|(on_busy, delay)| Act::Run(on_busy, delay)),
        6 => (0..150_i64).prop_map(Act::Pass),
        6 => Just(Act::Claim),
        4 => Just(Act::Complete),
        2 => any::<bool>().prop_map(Act::Fail),
        1 => Just(Act::Wait),
        1 => Just(Act::Resume),
        1 => Just(Act::Crash),
        1 => (0..8_usize).prop_map(Act::Cancel),
        1 => Just(Act::HandOff),
        2 => Just(Act::Release),
    ]
}

impl World {
    fn act(&mut self, act: &Act, said: &mut u32) {
        *said += 1;
        let content = format!("m{said}");
        let holder = self.thread.holder;
        let status = holder.map(|holder| self.runs[&holder].status);
        let attempt = holder.map_or(0, |holder| self.runs[&holder].attempt);
        match act {
            Act::Say(on_busy, wait) => {
                let before = self.messages.len();
                let wait = wait.and_then(|(period, longest)| quiet(period, longest.max(period)));
                let told = self.say(&content, *on_busy, wait);
                let kept = self.messages[before..].iter().filter(|message| message.message.content == content).count();
                assert_eq!(kept, usize::from(told.is_ok()), "accepted is kept, refused is not");
            }
            Act::Run(on_busy, delay) => {
                let due = delay.map(|delay| at(self.now + delay));
                self.ask(Occasion::Run { due }, *on_busy, &content).ok();
            }
            Act::Pass(millis) => {
                self.now += millis;
                self.fire();
            }
            Act::Claim if status == Some(Status::Queued) => self.claim(),
            Act::Complete if status == Some(Status::Running) && !self.cancels.contains(&self.holder()) => {
                self.complete()
            }
            Act::Complete if status == Some(Status::Running) => drop(self.tell(self.holder(), &Command::Cancel)),
            Act::Fail(retry) if status == Some(Status::Running) => {
                let retry = if *retry { Retry::After(Duration::from_millis(50)) } else { Retry::Never };
                let error = RunError { code: "x".into(), message: String::new() };
                let failure = Failure { error, retry, usage: Usage::default() };
                self.tell(self.holder(), &Command::Fail { attempt, failure });
            }
            Act::Wait if status == Some(Status::Running) => {
                let question =
                    Question { reason: Reason::Input, prompt: json!("?"), deadline: Some(at(self.now + 300)) };
                self.tell(self.holder(), &Command::Wait { attempt, question });
            }
            Act::Resume if status == Some(Status::Waiting) => {
                let wait_id = self.runs[&self.holder()].wait_id().unwrap();
                self.tell(self.holder(), &Command::Resume { wait_id, input: json!("!") });
            }
            Act::Crash if status == Some(Status::Running) => {
                let cancel = self.cancels.contains(&self.holder());
                self.tell(self.holder(), &Command::Crash { attempt, cancel });
            }
            Act::Cancel(which) => {
                if let Some((id, run)) = self.runs.iter().nth_back(*which)
                    && run.status != Status::Running
                {
                    let id = *id;
                    self.tell(id, &Command::Cancel);
                }
            }
            Act::HandOff => {
                let change = self.found().hand_off(String::new(), None, at(self.now));
                self.write(change);
            }
            Act::Release => {
                let change = self.found().release(at(self.now));
                self.write(change);
            }
            Act::Claim | Act::Complete | Act::Fail(_) | Act::Wait | Act::Resume | Act::Crash => {}
        }
        self.check();
    }
}

proptest! {
    #[test]
    fn whatever_happens_each_message_is_in_one_run_and_every_run_ends(
        acts in prop::collection::vec(any_act(), 0..80),
        follow_up in prop::option::of(1..300_u64),
    ) {
        let mut world = World::new();
        world.rules = follow_up
            .map(|after| FollowUpRule {
                after: Duration::from_millis(after),
                instruction: "again".to_owned(),
                times: 1,
                hours: None,
            })
            .into_iter()
            .collect();
        let mut said = 0;
        for act in &acts {
            world.act(act, &mut said);
        }
        // In the end everybody gives back, answers and finishes.
        for _ in 0..1_000 {
            if world.runs.values().all(|run| run.status.is_final()) && world.thread.follow_up.is_none() {
                break;
            }
            for act in [Act::Release, Act::Pass(100), Act::Claim, Act::Resume, Act::Complete] {
                world.act(&act, &mut said);
            }
        }
        for run in world.runs.values() {
            prop_assert!(run.status.is_final(), "{} is {}", run.spec.id, run.status);
        }
        prop_assert_eq!(world.thread.holder, None);
        let mut turns = BTreeMap::<u64, BTreeSet<RunId>>::new();
        for message in &world.messages {
            if let (Some(turn), Some(run)) = (message.turn, message.run.filter(|run| world.held.contains(run))) {
                turns.entry(turn).or_default().insert(run);
            }
        }
        prop_assert!(turns.values().all(|runs| runs.len() == 1), "each turn is one run's: {turns:?}");
    }
}
