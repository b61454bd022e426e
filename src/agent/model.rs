//! An agent that is a system prompt and a model: one model call, streamed.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use serde::Deserialize;
use serde_json::{Value, json};

use super::providers::{Chat, Piece, Provider, Turn};
use super::{Agent, AgentCard, AgentError, Answer, Manners, RunContext};
use crate::run::{Message, Role, StepKind, Usage};

/// What a [`ModelAgent`] is made of.
#[derive(Debug, Clone)]
pub struct ModelAgentOptions {
    /// The agent's name.
    pub name: String,
    /// The model, without its provider; `auto` is the provider's first.
    pub model: String,
    /// See [`AgentCard::version`].
    pub version: String,
    /// What the agent is good for.
    pub description: String,
    /// The system prompt.
    pub system: Option<String>,
    /// 0 to 2; the provider's own default when absent.
    pub temperature: Option<f64>,
    /// The most tokens of an answer.
    pub max_tokens: Option<u32>,
    /// See [`AgentCard::timeout`].
    pub timeout: Option<Duration>,
    /// See [`AgentCard::max_attempts`].
    pub max_attempts: Option<u32>,
    /// See [`AgentCard::manners`].
    pub manners: Manners,
}

impl ModelAgentOptions {
    /// An agent of version `1` called `name` on `model`, with nothing else said.
    pub fn new(name: impl Into<String>, model: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            model: model.into(),
            version: "1".to_owned(),
            description: String::new(),
            system: None,
            temperature: None,
            max_tokens: None,
            timeout: None,
            max_attempts: None,
            manners: Manners::default(),
        }
    }
}

/// The agent.
pub struct ModelAgent {
    options: ModelAgentOptions,
    provider: Arc<dyn Provider>,
}

/// The params of a run; they go before the agent's own settings.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Params {
    temperature: Option<f64>,
    /// A float because to JSON Schema 5.0 is an integer too.
    max_tokens: Option<f64>,
}

impl ModelAgent {
    /// An agent whose model `provider` serves.
    pub fn new(options: ModelAgentOptions, provider: Arc<dyn Provider>) -> Self {
        Self { options, provider }
    }

    fn model(&self) -> String {
        format!("{}/{}", self.provider.name(), self.options.model)
    }

    fn params(&self, context: &RunContext) -> Result<Params, AgentError> {
        serde_json::from_value(Value::Object(context.spec().params.clone()))
            .map_err(|error| AgentError::permanent("invalid_params", error.to_string()))
    }

    /// What the first model call is given: the instructions, what was said before in the thread, and the input.
    fn opening(&self, context: &RunContext) -> Vec<Message> {
        let system =
            self.options.system.iter().map(|system| Message { role: Role::System, content: system.as_str().into() });
        system.chain(context.history().iter().cloned()).chain(context.input().clone().into_messages()).collect()
    }

    /// Makes the model call and keeps it as step number `step`.
    async fn call(&self, context: &RunContext, step: u32, messages: Vec<Message>) -> Result<Value, AgentError> {
        let params = self.params(context)?;
        let asked: usize = messages.iter().map(|message| message.content.bytes()).sum();
        let chat = Chat {
            model: self.options.model.clone(),
            turns: messages.into_iter().map(Turn::Said).collect(),
            temperature: params.temperature.or(self.options.temperature),
            max_tokens: params.max_tokens.map(|number| number as u32).or(self.options.max_tokens),
            ..Chat::default()
        };
        context.step_started(step, StepKind::Model, self.model()).await?;
        let mut pieces = self.provider.chat(chat).await?;
        let (mut text, mut thought, mut finish, mut usage) = (String::new(), 0, None, None);
        while let Some(piece) = pieces.next().await {
            match piece? {
                Piece::Text(more) => {
                    text.push_str(&more);
                    context.delta(more).await?;
                }
                Piece::Reasoning(more) => {
                    thought += more.len();
                    context.reasoning(more).await?;
                }
                Piece::Finish(reason) => finish = Some(reason.as_str().to_owned()),
                Piece::Restart { .. } => (text, thought) = (String::new(), 0),
                Piece::Model { .. } | Piece::Call(_) | Piece::Echo(_) => {}
                Piece::Usage(counted) => usage = Some(counted),
            }
        }
        let usage = usage.unwrap_or_else(|| estimate(asked, text.len() + thought));
        context.message(text.as_str()).await?;
        let result = json!({"text": text, "finish_reason": finish});
        context.step_finished(step, StepKind::Model, self.model(), result.clone(), usage).await?;
        Ok(result)
    }
}

/// Adds the answer of a model call, unless there is none: some providers refuse empty messages.
fn answered(talk: &mut Vec<Message>, result: &Value) {
    if let Some(text) = result.get("text").and_then(Value::as_str).filter(|text| !text.is_empty()) {
        talk.push(Message { role: Role::Assistant, content: text.into() });
    }
}

/// What a call has used whose provider does not say: about one token for four bytes.
fn estimate(asked: usize, said: usize) -> Usage {
    Usage {
        input_tokens: asked.div_ceil(4) as u64,
        output_tokens: said.div_ceil(4) as u64,
        estimated: true,
        ..Usage::default()
    }
}

#[async_trait]
impl Agent for ModelAgent {
    fn card(&self) -> AgentCard {
        let options = &self.options;
        AgentCard {
            version: options.version.clone(),
            description: options.description.clone(),
            model: Some(self.model()),
            params_schema: json!({
                "$schema": "https://json-schema.org/draft/2020-12/schema",
                "type": "object",
                "additionalProperties": false,
                "properties": {
                    "temperature": {"type": "number", "minimum": 0, "maximum": 2,
                        "description": "How freely the model chooses; the agent's own unless given."},
                    "max_tokens": {"type": "integer", "minimum": 1, "maximum": u32::MAX,
                        "description": "The most tokens of the answer; the agent's own bound unless given."},
                },
            }),
            timeout: options.timeout,
            max_attempts: options.max_attempts,
            manners: options.manners.clone(),
            ..AgentCard::new(&options.name, "model")
        }
    }

    async fn run(&self, context: RunContext) -> Result<Answer, AgentError> {
        let mut talk = self.opening(&context);
        let taken = |step: u32| context.taken_steers().iter().filter(move |(after, _)| *after == step);
        let (mut step, mut result, mut open) = (0, None, true);
        talk.extend(taken(0).map(|(_, message)| message.clone()));
        // Steps that earlier attempts have finished are not made again; what was handed to the run goes to its place.
        for record in context.finished_steps() {
            step = record.step;
            if record.kind == StepKind::Model {
                answered(&mut talk, &record.result);
                result = Some(record.result.clone());
                open = false;
            }
            let before = talk.len();
            talk.extend(taken(step).map(|(_, message)| message.clone()));
            open |= talk.len() > before;
        }
        let result = loop {
            if let Some(result) = result.take_if(|_| !open) {
                let steers = context.take_steers(step).await?;
                if steers.is_empty() {
                    break result;
                }
                talk.extend(steers);
            }
            step += 1;
            let made = self.call(&context, step, talk.clone()).await?;
            answered(&mut talk, &made);
            (result, open) = (Some(made), false);
        };
        let text = result.get("text").cloned().unwrap_or_default();
        let outcome = match result.get("finish_reason").and_then(Value::as_str) {
            Some("length") => "max_tokens",
            _ => "finished",
        };
        Ok(Answer { outcome: outcome.to_owned(), ..Answer::finished(text) })
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{StreamExt, stream};
    use parking_lot::Mutex;

    use super::*;
    use crate::agent::kit::{self, Seen};
    use crate::agent::providers::Pieces;
    use crate::agent::{Agents, Conversation};
    use crate::run::{Event, Input, StepRecord};

    /// Says the same to everyone, and keeps what it was asked.
    struct Fake {
        pieces: Vec<Result<Piece, AgentError>>,
        asked: Mutex<Vec<Chat>>,
    }

    #[async_trait]
    impl Provider for Fake {
        fn name(&self) -> &str {
            "fake"
        }

        async fn chat(&self, chat: Chat) -> Result<Pieces, AgentError> {
            self.asked.lock().push(chat);
            Ok(stream::iter(self.pieces.clone()).boxed())
        }
    }

    fn fake(pieces: impl IntoIterator<Item = Result<Piece, AgentError>>) -> Arc<Fake> {
        Arc::new(Fake { pieces: pieces.into_iter().collect(), asked: Mutex::default() })
    }

    fn agent(provider: Arc<Fake>) -> ModelAgent {
        let mut options = ModelAgentOptions::new("helper", "small/v1");
        options.system = Some("Be brief.".to_owned());
        options.temperature = Some(0.5);
        options.max_tokens = Some(9);
        ModelAgent::new(options, provider)
    }

    fn context(input: Input, params: Value, steps: Vec<StepRecord>) -> (RunContext, Arc<Seen>) {
        kit::attempt(kit::spec("helper", input, params), steps)
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
            Event::StepStarted {
                step: 1,
                kind: StepKind::Model,
                name: "fake/small/v1".to_owned(),
                call_id: None,
                reserved: Usage::default(),
            },
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
            result: json!({"text": "Hello", "finish_reason": "stop"}),
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
        for (kept, calls, output) in
            [(vec![step(1, "one")], 1, "Hello"), (vec![step(1, "one"), step(2, "TWO")], 0, "TWO")]
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
}
