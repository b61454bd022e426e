use std::sync::Arc;

use uuid::Uuid;

use super::*;
use crate::agent::kit::{self, Seen, user as message};
use crate::agent::{Asked, Conversation};
use crate::run::{Event, Input, Spec, StepRecord, ThreadId};

fn messages(contents: &[&str]) -> Input {
    Input::Messages(contents.iter().map(|content| message(content)).collect())
}

fn record(step: u32, kind: StepKind, result: Value) -> StepRecord {
    kit::record(step, kind, "script", result)
}

struct Attempt {
    input: Input,
    params: Value,
    in_thread: bool,
    steps: Vec<StepRecord>,
    conversation: Conversation,
    steers: Vec<(u32, Message)>,
}

impl Attempt {
    fn new(input: Input, params: Value) -> Self {
        let (steps, conversation, steers) = (Vec::new(), Conversation::default(), Vec::new());
        Self { input, params, in_thread: true, steps, conversation, steers }
    }

    async fn run(self) -> (Result<Answer, AgentError>, Arc<Seen>) {
        let thread = self.in_thread.then(|| ThreadId::from_uuid(Uuid::nil()));
        let spec = Spec { thread, ..kit::spec("scripted", self.input, self.params) };
        let (context, seen) = kit::attempt(spec, self.steps);
        *seen.steers.lock() = self.steers;
        let context = context.in_conversation(self.conversation);
        (ScriptedAgent::new("scripted").run(context).await, seen)
    }
}

fn output(answer: Result<Answer, AgentError>) -> String {
    answer.unwrap().output.as_str().unwrap().to_owned()
}

#[tokio::test]
async fn outside_of_threads_the_last_message_is_said_and_no_step_made() {
    let attempt = Attempt { in_thread: false, ..Attempt::new(messages(&["a b", "c d"]), json!({})) };
    let (answer, seen) = attempt.run().await;
    assert_eq!(output(answer), "c d");
    assert!(seen.steps.lock().is_empty());
}

#[tokio::test]
async fn in_threads_all_messages_are_said_after_the_count_of_the_history_and_kept() {
    let mut attempt = Attempt::new(messages(&["a b", "c"]), json!({"say_history": true}));
    attempt.conversation.history = vec![message("x"), message("y"), message("z")];
    let (answer, seen) = attempt.run().await;
    assert_eq!(output(answer), "h3 a b c");
    assert_eq!(*seen.steps.lock(), [record(1, StepKind::Model, json!("h3 a b c"))]);
}

#[tokio::test]
async fn what_is_handed_to_it_comes_after_the_step_and_again_in_its_place() {
    let input = Input::Text("a b c d".to_owned());
    let params = json!({"step_tokens": 2});
    let steers = vec![(1, message("turn left")), (3, message("stop"))];
    let (answer, seen) = Attempt { steers, ..Attempt::new(input.clone(), params.clone()) }.run().await;
    let whole = "a b turn left c d stop ";
    // What comes after the last token of the input begins a word of its own.
    assert_eq!(output(answer), whole);
    let steps = seen.steps.lock().clone();
    let texts: Vec<_> = steps.iter().map(|step| step.result.as_str().unwrap()).collect();
    assert_eq!(texts.concat(), whole);
    assert_eq!(texts[..3], ["a b ", "turn left ", "c d"]);
    // A later attempt goes on from any of the steps, without being handed anything again.
    for kept in 1..=steps.len() {
        let taken = [(1, message("turn left")), (3, message("stop"))];
        let (taken, steers) = taken.into_iter().partition(|(after, _)| *after <= kept as u32);
        let mut attempt = Attempt { steers, ..Attempt::new(input.clone(), params.clone()) };
        (attempt.steps, attempt.conversation.steers) = (steps[..kept].to_vec(), taken);
        let (answer, seen) = attempt.run().await;
        assert_eq!(output(answer), whole, "after {kept}");
        assert_eq!(seen.said().concat(), texts[kept..].concat(), "after {kept}");
        assert_eq!(*seen.steps.lock(), steps[kept..], "after {kept}");
    }
}

#[tokio::test]
async fn a_question_keeps_what_was_said_and_the_answer_is_shown() {
    let attempt = || Attempt::new(Input::Text("a b c".to_owned()), json!({"ask_at": 2, "ask_deadline_ms": 7}));
    let (asked, seen) = attempt().run().await;
    let Err(AgentError::Ask(Asked { prompt, deadline, .. })) = asked else { panic!("{asked:?}") };
    assert_eq!((prompt["question"].is_string(), deadline), (true, Some(Duration::from_millis(7))));
    let mut steps = seen.steps.lock().clone();
    assert_eq!(steps, [record(1, StepKind::Model, json!("a "))]);
    steps.push(record(2, StepKind::Ask, json!({"wait_id": "w9", "input": {"yes": true}})));
    let (answer, seen) = Attempt { steps: steps.clone(), ..attempt() }.run().await;
    assert_eq!(output(answer), "a b c");
    let shown = Event::Custom { name: "answer".to_owned(), value: json!({"yes": true}) };
    assert_eq!(seen.events.lock()[0], shown);
    assert_eq!((seen.said().concat().as_str(), seen.steps.lock()[0].step), ("b c", 3));
    // Once.
    steps.push(record(3, StepKind::Model, json!("b c")));
    let (answer, seen) = Attempt { steps, ..attempt() }.run().await;
    assert_eq!((output(answer).as_str(), seen.said().concat().as_str()), ("a b c", ""));
    assert!(!seen.events.lock().contains(&shown));
}

#[tokio::test]
async fn a_thread_is_handed_off_at_its_token_and_the_rest_is_said() {
    let (answer, seen) = Attempt::new(Input::Text("a b".to_owned()), json!({"hand_off_at": 2})).run().await;
    assert_eq!((output(answer).as_str(), *seen.handed_off.lock()), ("a b", 1));
}
