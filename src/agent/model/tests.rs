//! The loop, on a model that says what it is told.

use std::collections::VecDeque;

use futures_util::{StreamExt, stream};

use super::*;
use crate::agent::kit::{self, Seen};
use crate::agent::providers::{self, Chat, Piece, ToolCall, ToolCard, Turn};
use crate::agent::tools::{Call, CutOff, Declared, Policy, Tool, ToolError, ToolOutput};
use crate::agent::{Agents, Asked, Conversation};
use crate::run::{Bound, Event, Input, OpenStep, Reason, StepRecord, Usage};

type Pieces = Vec<Result<Piece, AgentError>>;

/// Says one answer after the other, the last one to all who come later, and keeps what it was asked.
struct Fake {
    answers: Mutex<VecDeque<Pieces>>,
    asked: Mutex<Vec<Chat>>,
}

#[async_trait]
impl Provider for Fake {
    fn name(&self) -> &str {
        "fake"
    }

    async fn chat(&self, chat: Chat) -> Result<providers::Pieces, AgentError> {
        self.asked.lock().push(chat);
        let mut answers = self.answers.lock();
        let pieces = if answers.len() > 1 { answers.pop_front() } else { answers.front().cloned() };
        Ok(stream::iter(pieces.unwrap_or_default()).boxed())
    }
}

fn fake(pieces: impl IntoIterator<Item = Result<Piece, AgentError>>) -> Arc<Fake> {
    script([pieces.into_iter().collect()])
}

fn script(answers: impl IntoIterator<Item = Pieces>) -> Arc<Fake> {
    Arc::new(Fake { answers: Mutex::new(answers.into_iter().collect()), asked: Mutex::default() })
}

fn agent(provider: Arc<Fake>) -> ModelAgent {
    let mut options = ModelAgentOptions::new("helper", "small/v1");
    options.system = Some("Be brief.".to_owned());
    options.temperature = Some(0.5);
    options.max_tokens = Some(9);
    ModelAgent::new(options, provider).unwrap()
}

fn context(input: Input, params: Value, steps: Vec<StepRecord>) -> (RunContext, Arc<Seen>) {
    kit::attempt(kit::spec("helper", input, params), steps)
}

/// What the keys of the run's calls begin with.
fn context_key() -> String {
    kit::spec("", Input::Text(String::new()), json!({})).id.to_string()
}

fn message(role: Role, content: &str) -> Message {
    Message { role, content: content.into() }
}

fn said(chat: &Chat) -> Vec<Message> {
    let said = |turn: &Turn| match turn {
        Turn::Said(message) => Some(message.clone()),
        Turn::Called { .. } | Turn::Returned { .. } => None,
    };
    chat.turns.iter().filter_map(said).collect()
}

fn text(text: &str) -> Result<Piece, AgentError> {
    Ok(Piece::Text(text.to_owned()))
}

#[tokio::test]
async fn an_answer_is_shown_as_it_arrives_and_kept_as_a_step() {
    let usage = Usage { input_tokens: 3, output_tokens: 2, estimated: false, ..Usage::default() };
    let provider = fake([
        Ok(Piece::Reasoning("hm".to_owned())),
        text("Hel"),
        text("lo"),
        Ok(Piece::Finish("stop".into())),
        Ok(Piece::Usage(usage)),
    ]);
    let (context, seen) = context(Input::Text("Hi".to_owned()), json!({"max_tokens": 5.0}), Vec::new());
    assert_eq!(agent(provider.clone()).run(context).await, Ok(Answer::finished("Hello")));
    let events = [
        Event::ReasoningDelta { text: "hm".to_owned() },
        Event::MessageDelta { text: "Hel".to_owned() },
        Event::MessageDelta { text: "lo".to_owned() },
        Event::MessageCompleted { message: message(Role::Assistant, "Hello") },
    ];
    assert_eq!(*seen.events.lock(), events);
    let step = StepRecord {
        step: 1,
        kind: StepKind::Model,
        name: "fake/small/v1".to_owned(),
        result: json!({"text": "Hello", "finish_reason": "stop", "key": context_key()}),
        usage,
    };
    assert_eq!(*seen.steps.lock(), [step]);
    let asked = Chat {
        model: "small/v1".to_owned(),
        turns: vec![Turn::Said(message(Role::System, "Be brief.")), Turn::Said(message(Role::User, "Hi"))],
        temperature: Some(0.5),
        max_tokens: Some(5),
        ..Chat::default()
    };
    assert_eq!(*provider.asked.lock(), [asked]);
}

#[tokio::test]
async fn usage_that_is_not_reported_is_estimated_and_a_limit_is_an_outcome() {
    let provider = fake([text("Hello"), Ok(Piece::Finish("length".into()))]);
    let conversation = vec![message(Role::User, "a"), message(Role::Assistant, "b"), message(Role::User, "c")];
    let (context, seen) = context(Input::Messages(conversation.clone()), json!({}), Vec::new());
    let answer = agent(provider.clone()).run(context).await.unwrap();
    assert_eq!((answer.output, answer.outcome.as_str()), (json!("Hello"), "max_tokens"));
    assert_eq!(said(&provider.asked.lock()[0])[1..], conversation);
    assert_eq!(
        seen.steps.lock()[0].usage,
        Usage { input_tokens: 3, output_tokens: 2, estimated: true, ..Usage::default() }
    );
}

#[tokio::test]
async fn a_kept_step_is_not_made_again() {
    let step = StepRecord {
        step: 1,
        kind: StepKind::Model,
        name: "fake/small/v1".to_owned(),
        result: json!({"text": "Hello", "finish_reason": "length"}),
        usage: Usage::default(),
    };
    let provider = fake([]);
    let (context, seen) = context(Input::Text("Hi".to_owned()), json!({}), vec![step]);
    let answer = agent(provider.clone()).run(context).await.unwrap();
    assert_eq!((answer.output, answer.outcome.as_str()), (json!("Hello"), "max_tokens"));
    assert!(provider.asked.lock().is_empty() && seen.events.lock().is_empty() && seen.steps.lock().is_empty());
}

#[tokio::test]
async fn the_history_goes_before_the_input_and_what_is_handed_over_is_another_call() {
    let provider = fake([text("Hello")]);
    let (context, seen) = context(Input::Text("Hi".to_owned()), json!({}), Vec::new());
    let history = vec![message(Role::User, "before"), message(Role::Assistant, "yes")];
    let context = context.in_conversation(Conversation { history: history.clone(), steers: Vec::new() });
    seen.steers.lock().extend([(0, message(Role::User, "louder")), (0, message(Role::User, "please"))]);
    let answer = agent(provider.clone()).run(context).await.unwrap();
    assert_eq!(answer.output, json!("Hello"));
    let asked = provider.asked.lock().clone();
    let mut talk = vec![message(Role::System, "Be brief."), history[0].clone(), history[1].clone()];
    talk.push(message(Role::User, "Hi"));
    assert_eq!(said(&asked[0]), talk);
    talk.extend([message(Role::Assistant, "Hello"), message(Role::User, "louder"), message(Role::User, "please")]);
    assert_eq!(said(&asked[1]), talk);
    assert_eq!(asked.len(), 2);
    let steps: Vec<_> = seen.steps.lock().iter().map(|step| step.step).collect();
    assert_eq!(steps, [1, 2]);
}

#[tokio::test]
async fn what_was_taken_after_a_kept_step_is_answered_from_there() {
    let step = |step, text: &str| StepRecord {
        step,
        kind: StepKind::Model,
        name: "fake/small/v1".to_owned(),
        result: json!({"text": text, "finish_reason": "stop"}),
        usage: Usage::default(),
    };
    let taken = vec![(1, message(Role::User, "louder"))];
    for (kept, calls, output) in [(vec![step(1, "one")], 1, "Hello"), (vec![step(1, "one"), step(2, "TWO")], 0, "TWO")]
    {
        let provider = fake([text("Hello")]);
        let (context, _) = context(Input::Text("Hi".to_owned()), json!({}), kept);
        let conversation = Conversation { history: Vec::new(), steers: taken.clone() };
        let answer = agent(provider.clone()).run(context.in_conversation(conversation)).await.unwrap();
        assert_eq!(answer.output, json!(output));
        let asked = provider.asked.lock();
        assert_eq!(asked.len(), calls);
        for chat in asked.iter() {
            let rest = [message(Role::User, "Hi"), message(Role::Assistant, "one"), message(Role::User, "louder")];
            assert_eq!(said(chat)[1..], rest);
        }
    }
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_not_kept() {
    let cut = AgentError::transient("provider_stream_cut", "cut");
    let provider = fake([text("Hel"), Err(cut.clone())]);
    let (context, seen) = context(Input::Text("Hi".to_owned()), json!({}), Vec::new());
    assert_eq!(agent(provider).run(context).await, Err(cut));
    assert!(seen.steps.lock().is_empty());
}

#[test]
fn params_have_bounds() {
    let mut agents = Agents::default();
    agents.register(Arc::new(agent(fake([])))).unwrap();
    for (params, fits) in [
        (json!({"temperature": 0, "max_tokens": 1}), true),
        (json!({"temperature": 2.1}), false),
        (json!({"max_tokens": 0}), false),
        (json!({"model": "large"}), false),
    ] {
        let checked = agents.check_params("helper", params.as_object().unwrap());
        assert_eq!(checked.is_ok(), fits, "{params}");
    }
}

/// A tool that says how it was called, and keeps the keys.
struct Look {
    name: &'static str,
    keys: Mutex<Vec<String>>,
}

#[async_trait]
impl Tool for Look {
    fn card(&self) -> ToolCard {
        let parameters = json!({"type": "object", "properties": {"at": {"type": "integer"}}});
        ToolCard { name: self.name.to_owned(), description: "Looks.".to_owned(), parameters }
    }

    async fn call(&self, call: Call) -> Result<ToolOutput, ToolError> {
        self.keys.lock().push(call.key.clone());
        call.progress("looking").await?;
        Ok(ToolOutput::new(format!("saw {}", call.arguments["at"])))
    }
}

fn look(name: &'static str) -> Arc<Look> {
    Arc::new(Look { name, keys: Mutex::default() })
}

fn with_tool(look: &Arc<Look>, policy: Policy) -> ModelAgentOptions {
    let declared = Declared::new(Arc::clone(look) as Arc<dyn Tool>, policy).unwrap();
    let mut options = ModelAgentOptions::new("helper", "small");
    options.tools = vec![Arc::new(vec![declared])];
    options
}

fn calls(calls: &[(&str, &str, &str)]) -> Pieces {
    let call = |(id, name, arguments): &(&str, &str, &str)| {
        Ok(Piece::Call(ToolCall { id: (*id).into(), name: (*name).into(), arguments: (*arguments).into() }))
    };
    calls.iter().map(call).chain([Ok(Piece::Finish("tool_calls".into()))]).collect()
}

fn says(words: &str) -> Pieces {
    vec![text(words), Ok(Piece::Finish("stop".into()))]
}

fn first() -> (RunContext, Arc<Seen>) {
    context(Input::Text("Hi".to_owned()), json!({}), Vec::new())
}

fn again(steps: Vec<StepRecord>) -> (RunContext, Arc<Seen>) {
    context(Input::Text("Hi".to_owned()), json!({}), steps)
}

fn returned(chat: &Chat) -> Vec<(String, bool)> {
    let gave = |turn: &Turn| match turn {
        Turn::Returned { content, failed, .. } => Some((content.clone(), *failed)),
        Turn::Said(_) | Turn::Called { .. } => None,
    };
    chat.turns.iter().filter_map(gave).collect()
}

#[tokio::test]
async fn tools_are_called_until_the_model_has_finished() {
    let look = look("look");
    for parallel in [false, true] {
        let mut options = with_tool(&look, Policy::default());
        options.parallel_tools = parallel;
        let both = calls(&[("a", "look", r#"{"at": 1}"#), ("b", "look", r#"{"at": 2}"#)]);
        let provider = script([both, says("done")]);
        let (context, seen) = first();
        let answer = ModelAgent::new(options, provider.clone()).unwrap().run(context).await;
        assert_eq!(answer, Ok(Answer::finished("done")));
        let asked = provider.asked.lock();
        assert_eq!((asked[0].tools.len(), asked[0].parallel_tools, &*asked[0].tools[0].name), (1, parallel, "look"));
        assert_eq!(returned(&asked[1]), [("saw 1".to_owned(), false), ("saw 2".to_owned(), false)]);
        let steps: Vec<_> = seen.steps.lock().iter().map(|step| (step.step, step.kind)).collect();
        let (model, tool) = (StepKind::Model, StepKind::Tool);
        assert_eq!(steps, [(1, model), (2, tool), (3, tool), (4, model)]);
        let begun: Vec<_> = seen.begun.lock().iter().map(|begin| begin.call_id.clone()).collect();
        assert_eq!(begun, [None, Some("a".to_owned()), Some("b".to_owned()), None]);
        assert_eq!(seen.output(), "looking\nlooking\n");
    }
    let key = context_key();
    assert_eq!(look.keys.lock()[..2], [format!("{key}-a"), format!("{key}-b")]);
}

#[tokio::test]
async fn whatever_step_was_the_last_the_next_attempt_goes_on_behind_it_and_repeats_none() {
    let rounds = 9;
    let answers = |from: usize| {
        let call = |round: usize| vec![(format!("c{round}"), format!(r#"{{"at": {round}}}"#))];
        let answers = (from..rounds).map(move |round| {
            let made = call(round);
            calls(&[(&made[0].0, "look", &made[0].1)])
        });
        answers.chain([says("done")]).collect::<Vec<_>>()
    };
    let whole = look("look");
    let (context, seen) = first();
    let agent =
        |look: &Arc<Look>, from| ModelAgent::new(with_tool(look, Policy::default()), script(answers(from))).unwrap();
    agent(&whole, 0).run(context).await.unwrap();
    let steps = seen.steps.lock().clone();
    assert_eq!((steps.len(), whole.keys.lock().len()), (2 * rounds + 1, rounds));
    for kept in 0..=steps.len() {
        let look = look("look");
        let (context, seen) = again(steps[..kept].to_vec());
        let answer = agent(&look, kept.div_ceil(2)).run(context).await;
        assert_eq!(answer, Ok(Answer::finished("done")), "after {kept}");
        assert_eq!(*seen.steps.lock(), steps[kept..], "after {kept}");
        assert_eq!(*look.keys.lock(), whole.keys.lock()[kept / 2..], "after {kept}");
    }
}

#[tokio::test]
async fn mistakes_of_the_model_are_told_to_it() {
    let look = look("look");
    let wrong = calls(&[("a", "look", "{\"at\""), ("b", "look", r#"{"at": "x"}"#), ("c", "nothing", "{}")]);
    let provider = script([wrong, says("sorry")]);
    let (context, _) = first();
    let agent = ModelAgent::new(with_tool(&look, Policy::default()), provider.clone()).unwrap();
    assert_eq!(agent.run(context).await, Ok(Answer::finished("sorry")));
    let told = returned(&provider.asked.lock()[1]);
    assert!(told.iter().all(|(_, failed)| *failed), "{told:?}");
    assert!(told[0].0.contains("not valid JSON") && told[1].0.contains("schema") && told[2].0.contains("look"));
    assert!(look.keys.lock().is_empty());
}

#[tokio::test]
async fn a_call_that_needs_approval_waits_for_a_person_when_all_else_is_done() {
    let (free, guarded) = (look("free"), look("guarded"));
    let options = || {
        let mut options = with_tool(&free, Policy::default());
        let policy = Policy { needs_approval: true, ..Policy::default() };
        options.tools.push(Arc::new(vec![Declared::new(Arc::clone(&guarded) as Arc<dyn Tool>, policy).unwrap()]));
        options.answer_within = Some(Duration::from_secs(60));
        options
    };
    let both = calls(&[("a", "guarded", "{}"), ("b", "free", "{}")]);
    let (context, seen) = first();
    let asked = ModelAgent::new(options(), script([both])).unwrap().run(context).await;
    let Err(AgentError::Ask(Asked { reason, prompt, deadline })) = asked else { panic!("{asked:?}") };
    assert_eq!((reason, deadline), (Reason::Approval, Some(Duration::from_secs(60))));
    assert_eq!((&prompt["tool"], &prompt["call_id"]), (&json!("guarded"), &json!("a")));
    assert_eq!((free.keys.lock().len(), guarded.keys.lock().len()), (1, 0));
    let mut steps = seen.steps.lock().clone();
    for (answer, called) in [(json!("no"), 0), (json!({"approved": true}), 1)] {
        steps.truncate(2);
        steps.push(kit::record(3, StepKind::Ask, "ask", json!({"wait_id": "w7", "input": answer})));
        let provider = script([says("done")]);
        let (context, _) = again(steps.clone());
        let agent = ModelAgent::new(options(), provider.clone()).unwrap();
        assert_eq!(agent.run(context).await, Ok(Answer::finished("done")));
        assert_eq!((free.keys.lock().len(), guarded.keys.lock().len()), (1, called));
        assert_eq!(returned(&provider.asked.lock()[0])[0].1, called == 0, "the model is told");
    }
}

#[tokio::test]
async fn a_call_that_was_cut_off_follows_its_policy() {
    for (cut_off, made, asks) in [(CutOff::Repeat, 1, false), (CutOff::Fail, 0, false), (CutOff::Ask, 0, true)] {
        let look = look("look");
        let options = || with_tool(&look, Policy { cut_off, ..Policy::default() });
        let (context, seen) = first();
        let stopped = ModelAgent::new(options(), script([calls(&[("a", "look", "{}")]), vec![]])).unwrap();
        stopped.run(context).await.unwrap();
        let steps = seen.steps.lock()[..1].to_vec();
        look.keys.lock().clear();
        let open = OpenStep {
            step: 2,
            kind: StepKind::Tool,
            name: "look".into(),
            call_id: Some("a".into()),
            attempt: 1,
            reserved: Usage::default(),
        };
        let provider = script([says("done")]);
        let agent = ModelAgent::new(options(), provider.clone()).unwrap();
        let (context, _) = again(steps.clone());
        let answer = agent.run(context.after(vec![open.clone()])).await;
        assert_eq!(matches!(answer, Err(AgentError::Ask(_))), asks, "{cut_off:?}: {answer:?}");
        assert_eq!(look.keys.lock().len(), made, "{cut_off:?}");
        if asks {
            for (word, made) in [("no", 0), ("yes", 1)] {
                let mut steps = steps.clone();
                steps.push(kit::record(3, StepKind::Ask, "ask", json!({"wait_id": "w7", "input": word})));
                let (context, _) = again(steps);
                assert_eq!(agent.run(context.after(vec![open.clone()])).await, Ok(Answer::finished("done")));
                assert_eq!(look.keys.lock().len(), made, "{word}");
            }
        }
    }
}

#[tokio::test]
async fn a_model_can_end_its_run_ask_people_and_hand_over() {
    let mut options = ModelAgentOptions::new("helper", "small");
    options.own_tools = ["complete", "ask", "hand_off"].map(str::to_owned).to_vec();
    let agent =
        |provider: &Arc<Fake>| ModelAgent::new(options.clone(), Arc::clone(provider) as Arc<dyn Provider>).unwrap();
    let provider = script([
        calls(&[("a", "ask", r#"{"question": "Which?", "options": ["x", "y"]}"#)]),
        calls(&[("b", "hand_off", r#"{"reason": "too hard"}"#)]),
        calls(&[("c", "complete", r#"{"result": {"it": 1}}"#)]),
    ]);
    let (context, seen) = first();
    let asked = agent(&provider).run(context).await;
    let Err(AgentError::Ask(Asked { reason: Reason::Input, prompt, .. })) = asked else { panic!("{asked:?}") };
    assert_eq!(prompt, json!({"question": "Which?", "options": ["x", "y"], "call_id": "a"}));
    let mut steps = seen.steps.lock().clone();
    steps.push(kit::record(2, StepKind::Ask, "ask", json!({"wait_id": "w7", "input": "y"})));
    let (context, seen) = again(steps.clone());
    assert_eq!(agent(&provider).run(context).await, Ok(Answer::finished(json!({"it": 1}))));
    assert_eq!(returned(&provider.asked.lock()[1])[0].0, "y");
    assert_eq!(*seen.handed_off.lock(), 1);
    // What it ended with is done, also when the worker died right behind it.
    steps.extend(seen.steps.lock().clone());
    let calls_before = provider.asked.lock().len();
    let (context, _) = again(steps);
    assert_eq!(agent(&provider).run(context).await, Ok(Answer::finished(json!({"it": 1}))));
    assert_eq!(provider.asked.lock().len(), calls_before);
}

#[tokio::test]
async fn an_answer_that_does_not_follow_the_schema_is_asked_for_again_and_then_refused() {
    let mut options = ModelAgentOptions::new("helper", "small");
    options.output_schema = Some(Arc::new(json!({"type": "object", "required": ["n"]})));
    let provider = script([says("hello"), says("```json\n{\"n\": 1}\n```")]);
    let (context, _) = first();
    let agent = ModelAgent::new(options.clone(), provider.clone()).unwrap();
    assert_eq!(agent.run(context).await, Ok(Answer::finished(json!({"n": 1}))));
    assert!(provider.asked.lock()[0].schema.is_some());
    let told = said(&provider.asked.lock()[1]);
    assert!(told.last().unwrap().content.text().contains("not JSON"), "{told:?}");
    let provider = script([says("never")]);
    let (context, _) = first();
    let refused = ModelAgent::new(options, provider.clone()).unwrap().run(context).await;
    assert!(matches!(&refused, Err(AgentError::Permanent { code, .. }) if code == "invalid_output"), "{refused:?}");
    assert_eq!(provider.asked.lock().len(), 3);
}

#[tokio::test]
async fn a_model_that_goes_round_in_circles_is_stopped() {
    let look = look("look");
    let mut options = with_tool(&look, Policy::default());
    options.max_steps = 6;
    let mut round = calls(&[("a", "look", "{}")]);
    round.insert(0, text("I look."));
    let (context, _) = first();
    let answer = ModelAgent::new(options, script([round])).unwrap().run(context).await.unwrap();
    assert_eq!((answer.outcome.as_str(), answer.output), ("max_steps", json!("I look.")));
    assert_eq!(look.keys.lock().len(), 3);
    let keys: std::collections::BTreeSet<_> = look.keys.lock().iter().cloned().collect();
    assert_eq!(keys.len(), 3, "each call has a key of its own although the model calls all of them a");
}

#[tokio::test]
async fn a_budget_bounds_each_answer_and_ends_the_run_by_its_name() {
    let price = Price { input: 1_000_000, output: 2_000_000 };
    for (budget, bound) in [
        (Budget { tokens: Some(120), ..Budget::NONE }, Bound::Tokens),
        (Budget { cost_micros: Some(200), ..Budget::NONE }, Bound::Cost),
    ] {
        let look = look("look");
        let mut options = with_tool(&look, Policy::default());
        options.price = Some(price);
        let mut round = calls(&[("a", "look", "{}")]);
        let usage = Usage { input_tokens: 10, output_tokens: 5, ..Usage::default() };
        round.push(Ok(Piece::Usage(usage)));
        let provider = script([round]);
        let spec = crate::run::Spec { budget, ..kit::spec("helper", Input::Text("Hi".into()), json!({})) };
        let (context, seen) = kit::attempt(spec, Vec::new());
        let ended = ModelAgent::new(options, provider.clone()).unwrap().run(context).await;
        assert_eq!(ended, Err(AgentError::OutOfBudget(bound)));
        let most: Vec<_> = provider.asked.lock().iter().map(|chat| chat.max_tokens.unwrap()).collect();
        assert!(!most.is_empty() && most.is_sorted_by(|before, after| before > after), "{most:?}");
        assert_eq!(seen.steps.lock()[0].usage.cost_micros, 10 + 5 * 2);
        let reserved = seen.begun.lock()[0].reserve;
        assert!(budget.exceeded(reserved).is_none() && reserved.estimated, "{reserved:?}");
    }
}

#[tokio::test]
async fn an_answer_that_the_budget_cuts_short_says_so() {
    let budget = Budget { tokens: Some(100), ..Budget::NONE };
    let spec = crate::run::Spec { budget, ..kit::spec("helper", Input::Text("Hi".into()), json!({})) };
    let (context, _) = kit::attempt(spec, Vec::new());
    let provider = fake([text("Once upon"), Ok(Piece::Finish("length".into()))]);
    let agent = ModelAgent::new(ModelAgentOptions::new("helper", "small"), provider).unwrap();
    let answer = agent.run(context).await.unwrap();
    assert_eq!((answer.outcome.as_str(), answer.output), ("budget_tokens", json!("Once upon")));
}

#[tokio::test]
async fn what_a_model_said_before_another_took_over_is_void_and_charged() {
    let provider = script([vec![
        Ok(Piece::Model { name: "one/a".into(), price: None }),
        text("half an ans"),
        Ok(Piece::Restart { reason: "overloaded".into() }),
        Ok(Piece::Model { name: "two/b".into(), price: None }),
        text("whole"),
        Ok(Piece::Usage(Usage { input_tokens: 4, output_tokens: 2, ..Usage::default() })),
    ]]);
    let (context, seen) = first();
    let agent = ModelAgent::new(ModelAgentOptions::new("helper", "small"), provider).unwrap();
    assert_eq!(agent.run(context).await, Ok(Answer::finished("whole")));
    assert!(seen.events.lock().contains(&Event::StepRetrying { step: 1, message: "overloaded".into(), void_after: 0 }));
    let step = seen.steps.lock()[0].clone();
    assert_eq!((&step.result["text"], &step.result["model"]), (&json!("whole"), &json!("two/b")));
    // The provider has counted its own part; the other is an estimate.
    assert_eq!(step.usage, Usage { input_tokens: 5, output_tokens: 5, estimated: true, cost_micros: 0 });
}

#[tokio::test]
async fn a_planner_plans_and_a_supervisor_carries_it_out() {
    let mut options = ModelAgentOptions::new("helper", "small");
    options.plan = true;
    let update = r#"{"tasks": [{"task": "look", "status": "done"}, {"task": "say", "status": "active"}]}"#;
    let answers = || [says(r#"{"tasks": ["look", "say"]}"#), calls(&[("a", "update_plan", update)]), says("done")];
    let provider = script(answers());
    let (context, seen) = first();
    let agent = ModelAgent::new(options.clone(), provider.clone()).unwrap();
    assert_eq!(agent.run(context).await, Ok(Answer::finished("done")));
    let plans: Vec<_> = seen.events.lock().iter().filter(|event| event.kind() == "plan.updated").cloned().collect();
    let pending = json!([{"task": "look", "status": "pending"}, {"task": "say", "status": "pending"}]);
    assert_eq!(plans[0], Event::PlanUpdated { plan: pending });
    assert_eq!(plans.len(), 2);
    assert_eq!(seen.said(), ["done"], "a plan is no answer");
    let asked = provider.asked.lock().clone();
    assert!(asked[0].tools.is_empty() && asked[0].schema.is_some());
    assert!(said(&asked[1]).last().unwrap().content.text().contains("1. look\n2. say"));
    // An attempt that goes on has the same conversation, and no other plan is made.
    let steps = seen.steps.lock().clone();
    let provider = script(answers().into_iter().skip(2));
    let (context, _) = again(steps[..2].to_vec());
    let agent = ModelAgent::new(options, provider.clone()).unwrap();
    assert_eq!(agent.run(context).await, Ok(Answer::finished("done")));
    assert_eq!(provider.asked.lock()[0].turns, asked[2].turns);
}

#[tokio::test]
async fn where_no_model_answers_the_fallback_does_and_says_so() {
    let mut options = ModelAgentOptions::new("helper", "small");
    options.fallback = Some(Fallback::new(Some("We got: {input}".into()), Vec::new()).unwrap());
    let away = fake([Err(AgentError::transient("provider_unreachable", "it is away"))]);
    let (context, seen) = first();
    let agent = ModelAgent::new(options.clone(), away).unwrap();
    let answer = agent.run(context).await.unwrap();
    assert_eq!((answer.output, answer.outcome.as_str()), (json!("We got: Hi"), "fallback"));
    assert_eq!(seen.said(), ["We got: Hi"]);
    assert!(agent.stands_in().unwrap().contains("it is away"));
    // Where it is known that there is none, that is said before.
    let mut lacking = options.clone();
    lacking.lacking = Some("provider openai has no key".to_owned());
    let agent = ModelAgent::new(lacking, fake([])).unwrap();
    assert_eq!(agent.stands_in().as_deref(), Some("provider openai has no key"));
    // What is no fault of the provider is not covered up.
    let broken = fake([Err(AgentError::permanent("unknown_model", "no such model"))]);
    let (context, _) = first();
    assert!(ModelAgent::new(options, broken).unwrap().run(context).await.is_err());
}

fn own_tools(names: &[&str]) -> ModelAgentOptions {
    let mut options = ModelAgentOptions::new("helper", "small");
    options.own_tools = names.iter().map(|name| (*name).to_owned()).collect();
    options
}

#[tokio::test]
async fn an_end_that_failed_is_none_and_neither_is_one_behind_which_somebody_spoke() {
    let provider = script([calls(&[("a", "complete", "{\"result\"")]), says("sorry")]);
    let agent = |provider: &Arc<Fake>| ModelAgent::new(own_tools(&["complete"]), provider.clone()).unwrap();
    let (context, seen) = first();
    assert_eq!(agent(&provider).run(context).await, Ok(Answer::finished("sorry")));
    // The worker died behind the call that failed.
    let (context, _) = again(seen.steps.lock()[..2].to_vec());
    assert_eq!(agent(&script([says("sorry")])).run(context).await, Ok(Answer::finished("sorry")));

    let (context, seen) = first();
    let provider = script([calls(&[("a", "complete", r#"{"result": "done"}"#)])]);
    assert_eq!(agent(&provider).run(context).await, Ok(Answer::finished("done")));
    let (context, _) = again(seen.steps.lock().clone());
    let steers = vec![(2, message(Role::User, "wait, louder"))];
    let context = context.in_conversation(Conversation { history: Vec::new(), steers });
    let provider = script([says("DONE")]);
    assert_eq!(agent(&provider).run(context).await, Ok(Answer::finished("DONE")));
    assert_eq!(said(&provider.asked.lock()[0]).last().unwrap().content.text(), "wait, louder");
}

#[tokio::test]
async fn a_result_that_does_not_follow_the_schema_does_not_end_the_run() {
    let mut options = own_tools(&["complete"]);
    options.output_schema = Some(Arc::new(json!({"type": "object", "required": ["n"]})));
    let call = |result: &str| calls(&[("a", "complete", result)]);
    let provider = script([call(r#"{"result": {}}"#), call(r#"{"result": {"n": 1}}"#)]);
    let (context, _) = first();
    let answer = ModelAgent::new(options, provider.clone()).unwrap().run(context).await;
    assert_eq!(answer, Ok(Answer::finished(json!({"n": 1}))));
    assert!(returned(&provider.asked.lock()[1])[0].1, "the model is told");
}

#[tokio::test]
async fn a_question_beside_the_end_is_answered_once_and_then_the_run_ends() {
    let agent = |provider| ModelAgent::new(own_tools(&["complete", "ask"]), provider).unwrap();
    let both = calls(&[("a", "complete", r#"{"result": 1}"#), ("b", "ask", r#"{"question": "Sure?"}"#)]);
    let (context, seen) = first();
    assert!(matches!(agent(script([both])).run(context).await, Err(AgentError::Ask(_))));
    let mut steps = seen.steps.lock().clone();
    steps.push(kit::record(2, StepKind::Ask, "ask", json!({"wait_id": "w7", "input": "yes"})));
    let (context, seen) = again(steps);
    assert_eq!(agent(script([vec![]])).run(context).await, Ok(Answer::finished(1)));
    assert_eq!(seen.steps.lock()[0].result["content"], "yes");
}

#[tokio::test]
async fn an_answer_counts_for_the_call_that_was_cut_off_before_it_alone() {
    let look = look("look");
    let options = || with_tool(&look, Policy { cut_off: CutOff::Ask, ..Policy::default() });
    let (context, seen) = first();
    let begun = ModelAgent::new(options(), script([calls(&[("a", "look", "{}")]), vec![]])).unwrap();
    begun.run(context).await.unwrap();
    let mut steps = seen.steps.lock()[..1].to_vec();
    steps.push(kit::record(3, StepKind::Ask, "ask", json!({"wait_id": "w7", "input": "yes"})));
    let open = OpenStep {
        step: 4,
        kind: StepKind::Tool,
        name: "look".into(),
        call_id: Some("a".into()),
        attempt: 2,
        reserved: Usage::default(),
    };
    let (context, _) = again(steps);
    let agent = ModelAgent::new(options(), script([says("done")])).unwrap();
    assert!(matches!(agent.run(context.after(vec![open])).await, Err(AgentError::Ask(_))), "it is asked anew");
}

#[tokio::test]
async fn a_fallback_takes_over_only_where_nothing_was_done_and_voids_what_was_said() {
    let away = || Err(AgentError::transient("provider_stream_cut", "cut"));
    let look = look("look");
    let mut options = with_tool(&look, Policy::default());
    options.fallback = Some(Fallback::new(Some("later".into()), Vec::new()).unwrap());
    let provider = script([calls(&[("a", "look", "{}")]), vec![away()]]);
    let (context, _) = first();
    let ended = ModelAgent::new(options.clone(), provider).unwrap().run(context).await;
    assert!(matches!(ended, Err(AgentError::Transient { .. })), "the next attempt goes on: {ended:?}");
    let (context, seen) = first();
    let answer = ModelAgent::new(options, script([vec![text("half"), away()]])).unwrap().run(context).await.unwrap();
    assert_eq!((answer.outcome.as_str(), seen.said()), ("fallback", vec!["half".to_owned(), "later".to_owned()]));
    assert!(seen.events.lock().iter().any(|event| event.kind() == "step.retrying"));
}
