use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;
use secrecy::SecretString;
use serde_json::{Value, json};
use uuid::Uuid;

use super::*;
pub(crate) use crate::agent::kit::Seen;
use crate::agent::masks::Masks;
use crate::agent::providers::ToolCard;
use crate::agent::tools::{Call, Declared, Policy, Tool, ToolError, ToolOutput};
use crate::agent::{AgentError, Answer, Asked, RunContext, kit};
use crate::run::{Event, Input, Reason, StepKind, StepRecord, Usage};

/// An attempt that has these steps behind it.
pub(crate) fn context(steps: Vec<StepRecord>) -> (RunContext, Arc<Seen>) {
    kit::attempt(kit::spec("mine", Input::Text("Hi".to_owned()), json!({})), steps)
}

const SOURCE: Source<'static> = Source { unit: "line", number: 7, who: "the program of agent mine" };

fn session(talk: Talk, steps: Vec<StepRecord>) -> (Session, Arc<Seen>) {
    let (context, seen) = context(steps);
    let secret = SecretString::from("hush-hush");
    (Session::new(context, talk, Masks::new([&secret])), seen)
}

async fn hear(session: &mut Session, message: Value) -> Result<Heard, AgentError> {
    session.hear(message.to_string().as_bytes(), SOURCE).await
}

#[tokio::test]
async fn steps_are_numbered_after_those_that_are_finished_and_begin_once() {
    let before = StepRecord {
        step: 4,
        kind: StepKind::Ask,
        name: "ask".to_owned(),
        result: json!({"wait_id": "w", "input": 1}),
        usage: Usage::default(),
    };
    let (mut session, seen) = session(Talk::OneWay, vec![before]);
    for (message, heard) in [
        (json!({"type": "step_started", "kind": "model", "name": "a"}), Heard::Nothing),
        (json!({"type": "step", "kind": "model", "name": "a", "result": 1}), Heard::Reply(Reply::StepKept { step: 5 })),
        (json!({"type": "step", "name": "b"}), Heard::Reply(Reply::StepKept { step: 6 })),
    ] {
        assert_eq!(hear(&mut session, message).await, Ok(heard));
    }
    let begun: Vec<_> = seen.begun.lock().iter().map(|begin| (begin.step, begin.kind, begin.name.clone())).collect();
    assert_eq!(begun, [(5, StepKind::Model, "a".to_owned()), (6, StepKind::Tool, "b".to_owned())]);
    assert_eq!(seen.steps.lock().iter().map(|record| record.step).collect::<Vec<_>>(), [5, 6]);
}

#[tokio::test]
async fn endings_say_all_that_an_attempt_can_end_with() {
    let millis = std::time::Duration::from_millis;
    let asked = |reason, deadline: Option<u64>| {
        AgentError::Ask(Asked { reason, prompt: json!("?"), deadline: deadline.map(millis) })
    };
    let transient =
        AgentError::Transient { code: "busy".to_owned(), message: "m".to_owned(), retry_after: Some(millis(5)) };
    let limited = Answer { outcome: "max_steps".to_owned(), ..Answer::finished(1) };
    for (message, ending) in [
        (json!({"type": "complete", "output": "x"}), Ok(Answer::finished("x"))),
        (json!({"type": "complete", "output": 1, "outcome": "max_steps"}), Ok(limited)),
        (json!({"type": "ask", "prompt": "?"}), Err(asked(Reason::Input, None))),
        (
            json!({"type": "ask", "prompt": "?", "reason": "approval", "deadline_ms": 9}),
            Err(asked(Reason::Approval, Some(9))),
        ),
        (
            json!({"type": "fail", "code": "no", "message": "the hush-hush is wrong"}),
            Err(AgentError::permanent("no", "the *** is wrong")),
        ),
        (
            json!({"type": "fail", "code": "busy", "message": "m", "transient": true, "retry_after_ms": 5}),
            Err(transient),
        ),
    ] {
        let (mut session, _) = session(Talk::OneWay, Vec::new());
        assert_eq!(hear(&mut session, message).await, Ok(Heard::End(ending)));
    }
}

#[tokio::test]
async fn what_is_no_message_is_refused_in_words_that_help() {
    let year = 31_536_000_001_u64;
    for (message, words) in [
        ("hello", "expected value at line 1 column 1; expected a JSON object with a type, such as"),
        ("[1]", "line 7 of the program of agent mine is no message"),
        ("{}", "missing field `type`"),
        (r#"{"type":"token"}"#, "missing field `text`"),
        (r#"{"type":"token","text":1}"#, "invalid type: integer `1`, expected a string"),
        (r#"{"type":"token","text":"x","more":1}"#, "unknown field `more`"),
        (r#"{"type":"log","level":"loud","message":"x"}"#, "unknown variant `loud`"),
        (r#"{"type":"step","kind":"ask","name":"x"}"#, "unknown variant `ask`"),
        (r#"{"type":"fail","code":"No","message":"x"}"#, "code is not 1 to 64 of the characters a-z 0-9 _"),
        (r#"{"type":"complete","output":1,"outcome":""}"#, "outcome is not 1 to 64 of the characters a-z 0-9 _"),
        (&format!(r#"{{"type":"ask","prompt":1,"deadline_ms":{year}}}"#), "deadline_ms is more than 31536000000"),
        (&"hush-hush ".repeat(1_000), "got *** *** "),
        (r#"{"type":"tool","call_id":"1","name":"x","arguments":{}}"#, "a service cannot be given one"),
        (r#"{"type":"steer"}"#, "a service cannot be given one"),
    ] {
        let (mut session, _) = session(Talk::OneWay, Vec::new());
        let error = session.hear(message.as_bytes(), SOURCE).await.unwrap_err();
        let AgentError::Permanent { code, message } = error else { panic!("{error}") };
        assert_eq!(code, "program_bad_message");
        assert!(message.contains(words) && !message.contains("hush") && message.len() < 1_200, "{message}");
    }
}

/// Gives back what it is given, the second time.
#[derive(Default)]
struct Echo {
    keys: Mutex<Vec<String>>,
}

#[async_trait]
impl Tool for Echo {
    fn card(&self) -> ToolCard {
        let parameters = json!({"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]});
        ToolCard { name: "echo".to_owned(), description: String::new(), parameters }
    }

    async fn call(&self, call: Call) -> Result<ToolOutput, ToolError> {
        self.keys.lock().push(call.key);
        if self.keys.lock().len() == 1 {
            return Err(ToolError::Transient("not yet".to_owned()));
        }
        Ok(ToolOutput::new(call.arguments["text"].clone()))
    }
}

#[tokio::test]
async fn a_tool_is_called_for_a_program_and_its_result_is_kept_for_later_attempts() {
    let echo = Arc::new(Echo::default());
    let policy = Policy { retries: 1, max_output: 4, ..Policy::default() };
    let approved = Policy { needs_approval: true, ..Policy::default() };
    let tools = Arc::new(vec![Declared::new(echo.clone(), policy).unwrap()]);
    let (mut session, seen) = session(Talk::TwoWay(tools.clone()), Vec::new());
    let ask = |id: &str, name: &str, arguments: Value| json!({"type": "tool", "call_id": id, "name": name, "arguments": arguments});
    let result = |id: &str, output: &str, failed| {
        Ok(Heard::Reply(Reply::ToolResult { call_id: id.to_owned(), output: output.into(), failed }))
    };
    let given = result("c1", "Hell\n[at least 1 bytes more are left out]", false);
    let call = ask("c1", "echo", json!({"text": "Hello"}));
    assert_eq!(hear(&mut session, call.clone()).await, given);
    assert_eq!(hear(&mut session, call.clone()).await, given, "asked for again");
    let unknown = result("c2", "there is no tool \"sing\"; there are: echo", true);
    assert_eq!(hear(&mut session, ask("c2", "sing", json!({}))).await, unknown);
    let Ok(Heard::Reply(Reply::ToolResult { output, failed: true, .. })) =
        hear(&mut session, ask("c3", "echo", json!({"text": 1}))).await
    else {
        panic!("the arguments do not fit")
    };
    assert!(output.as_str().unwrap().starts_with("the "), "{output}");
    let key = format!("{}:c1", Uuid::nil());
    assert_eq!(*echo.keys.lock(), [key.clone(), key], "the same for all tries, and for none of the others");
    let kinds: Vec<_> = seen.events.lock().iter().take(3).map(Event::kind).collect();
    assert_eq!(kinds, ["tool.started", "tool.completed", "tool.started"]);

    let steps = seen.steps.lock().clone();
    let (mut later, _) = self::session(Talk::TwoWay(tools), steps);
    assert_eq!(hear(&mut later, call).await, given);
    assert_eq!(echo.keys.lock().len(), 2, "an earlier attempt has made the call");

    let tools = Arc::new(vec![Declared::new(echo.clone(), approved).unwrap()]);
    let (mut careful, _) = self::session(Talk::TwoWay(tools), Vec::new());
    let refused = result("c1", "the tool echo needs approval, which programs cannot give", true);
    assert_eq!(hear(&mut careful, ask("c1", "echo", json!({"text": "Hello"}))).await, refused);
}
