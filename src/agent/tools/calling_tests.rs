use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use parking_lot::Mutex;
use serde_json::json;
use tokio::time::Instant;

use super::super::kit::{asked, context, make};
use super::super::{Policy, Tool, ToolOutput};
use super::*;
use crate::agent::providers::ToolCard;

type Answer = Result<ToolOutput, ToolError>;

/// Does what `script` says at each of its calls, counted from 1.
struct Scripted {
    script: fn(usize) -> Option<Answer>,
    calls: Mutex<Vec<(String, Value)>>,
    /// Calls that are under way.
    open: Arc<AtomicUsize>,
}

/// Counts down when it is dropped.
struct Open(Arc<AtomicUsize>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[async_trait]
impl Tool for Scripted {
    fn card(&self) -> ToolCard {
        ToolCard {
            name: "tool".to_owned(),
            description: String::new(),
            parameters: json!({
                "type": "object",
                "properties": {"city": {"type": "string"}, "days": {"type": "integer", "maximum": 7}},
                "additionalProperties": false,
            }),
        }
    }

    async fn call(&self, call: Call) -> Answer {
        self.open.fetch_add(1, Ordering::SeqCst);
        let _open = Open(Arc::clone(&self.open));
        let count = {
            let mut calls = self.calls.lock();
            calls.push((call.key, call.arguments));
            calls.len()
        };
        match (self.script)(count) {
            Some(answer) => answer,
            // Says nothing.
            None => std::future::pending().await,
        }
    }
}

fn tool(policy: Policy, script: fn(usize) -> Option<Answer>) -> (Declared, Arc<Scripted>) {
    let tool = Arc::new(Scripted { script, calls: Mutex::default(), open: Arc::default() });
    (Declared::new(tool.clone(), policy).unwrap(), tool)
}

fn fine(_: usize) -> Option<Answer> {
    Some(Ok(ToolOutput::new("sunny")))
}

#[tokio::test]
async fn arguments_are_read_checked_and_handed_over() {
    let (declared, tool) = tool(Policy::default(), fine);
    for arguments in [r#"{"city": "Bern", "days": 2}"#, "", "  ", "{}"] {
        assert_eq!(make(&declared, arguments).await, Outcome { content: "sunny".to_owned(), failed: false });
    }
    let calls = tool.calls.lock();
    assert_eq!(calls[0], ("key-1".to_owned(), json!({"city": "Bern", "days": 2})));
    assert_eq!(calls[1].1, json!({}));
}

#[tokio::test]
async fn wrong_arguments_are_told_to_the_model_and_nothing_is_called() {
    let (declared, tool) = tool(Policy::default(), fine);
    for (arguments, expected) in [
        (r#"{"city": "#.to_owned(), "not valid JSON"),
        ("[1]".to_owned(), "not a JSON object"),
        ("null".to_owned(), "not a JSON object"),
        (r#"{"days": 9}"#.to_owned(), "/days: 9 is greater than the maximum of 7"),
        (r#"{"town": "Bern"}"#.to_owned(), "'town' was unexpected"),
        (format!(r#"{{"days": "{}"}}"#, "x".repeat(100_000)), "/days: "),
        ("x".repeat(100_000), "not valid JSON"),
    ] {
        let outcome = make(&declared, arguments).await;
        assert!(outcome.failed && outcome.content.contains(expected), "{outcome:?}");
        assert!(outcome.content.contains("nothing was called") && outcome.content.len() < 1_000, "{outcome:?}");
    }
    assert!(tool.calls.lock().is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_may_pass_is_tried_again_after_waits_under_the_same_key() {
    let policy = Policy { retries: 2, ..Policy::default() };
    let (declared, tool) = tool(policy, |count| match count {
        1 | 2 => Some(Err(ToolError::Transient("busy".to_owned()))),
        _ => fine(count),
    });
    let begun = Instant::now();
    assert_eq!(make(&declared, "{}").await.content, "sunny");
    assert!((750..1_500).contains(&begun.elapsed().as_millis()), "{:?}", begun.elapsed());
    assert_eq!(*tool.calls.lock(), vec![("key-1".to_owned(), json!({})); 3]);
}

#[tokio::test(start_paused = true)]
async fn tries_are_bounded_and_what_is_permanent_is_not_tried_again() {
    let policy = Policy { retries: 2, ..Policy::default() };
    let (declared, busy) = tool(policy.clone(), |_| Some(Err(ToolError::Transient("busy".to_owned()))));
    assert_eq!(make(&declared, "{}").await, Outcome { content: "busy".to_owned(), failed: true });
    assert_eq!(busy.calls.lock().len(), 3);
    let (declared, gone) = tool(policy, |_| Some(Err(ToolError::Permanent("gone".to_owned()))));
    assert_eq!(make(&declared, "{}").await, Outcome { content: "gone".to_owned(), failed: true });
    assert_eq!(gone.calls.lock().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn each_try_has_its_time_and_ends_with_it() {
    let policy = Policy { retries: 1, timeout: Duration::from_secs(60), ..Policy::default() };
    let (declared, tool) = tool(policy, |_| None);
    let begun = Instant::now();
    let outcome = make(&declared, "{}").await;
    assert!(outcome.failed && outcome.content.contains("within 1m"), "{outcome:?}");
    assert!((120..122).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
    assert_eq!((tool.calls.lock().len(), tool.open.load(Ordering::SeqCst)), (2, 0));
}

#[tokio::test]
async fn a_panic_is_a_failure_of_the_call_alone() {
    let (declared, tool) = tool(Policy { retries: 5, ..Policy::default() }, |count| match count {
        1 => panic!("on purpose, with a secret"),
        _ => fine(count),
    });
    assert_eq!(make(&declared, "{}").await, Outcome { content: "the tool broke".to_owned(), failed: true });
    assert_eq!(tool.open.load(Ordering::SeqCst), 0);
    assert_eq!(make(&declared, "{}").await.content, "sunny");
}

#[tokio::test]
async fn output_is_cut_between_characters_and_the_model_is_told() {
    let policy = Policy { max_output: 10, ..Policy::default() };
    let (declared, _) = tool(policy.clone(), |_| Some(Ok(ToolOutput::new("ééééééé"))));
    let outcome = make(&declared, "{}").await;
    assert_eq!(outcome.content, "ééééé\n[at least 4 bytes more are left out]");
    let (declared, _) = tool(policy.clone(), |_| Some(Ok(ToolOutput::new("aéééééé"))));
    assert_eq!(make(&declared, "{}").await.content, "aéééé\n[at least 4 bytes more are left out]");
    let (declared, _) = tool(policy.clone(), |_| Some(Ok(ToolOutput::new(json!({"a": 1})))));
    assert_eq!(make(&declared, "{}").await.content, r#"{"a":1}"#);
    let (declared, _) = tool(policy, |_| Some(Err(ToolError::Permanent("f".repeat(1 << 20)))));
    assert_eq!(
        make(&declared, "{}").await.content,
        format!("{}\n[at least 1048566 bytes more are left out]", "f".repeat(10))
    );
    let (declared, _) = tool(Policy::default(), |_| Some(Err(ToolError::Permanent("f".repeat(1 << 20)))));
    assert!(make(&declared, "{}").await.content.len() < MAX_FAILURE + 100);
}

#[tokio::test]
async fn a_dropped_call_is_dropped_in_the_tool_at_once() {
    let (declared, tool) = tool(Policy::default(), |_| None);
    let context = context();
    let asked = asked("{}");
    let mut call = Box::pin(declared.make(&asked, "key-1", &context));
    assert!(futures_util::poll!(&mut call).is_pending());
    assert_eq!(tool.open.load(Ordering::SeqCst), 1);
    drop(call);
    assert_eq!(tool.open.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn an_attempt_that_is_over_is_no_failure() {
    let (declared, _) = tool(Policy { retries: 3, ..Policy::default() }, |_| Some(Err(ToolError::Stopped)));
    let context = context();
    assert_eq!(declared.make(&asked("{}"), "key-1", &context).await, Err(Stopped));
}

#[test]
fn schemas_that_are_none_or_refer_elsewhere_are_refused() {
    struct Odd(Value);

    #[async_trait]
    impl Tool for Odd {
        fn card(&self) -> ToolCard {
            ToolCard { name: "odd".to_owned(), description: String::new(), parameters: self.0.clone() }
        }

        async fn call(&self, _: Call) -> Answer {
            Ok(ToolOutput::new(""))
        }
    }

    for schema in [json!({"type": 5}), json!({"$ref": "http://127.0.0.1/x"}), json!({"$ref": "file:///etc/passwd"})] {
        let refused = Declared::new(Arc::new(Odd(schema)), Policy::default()).err().unwrap();
        assert!(refused.starts_with("tool odd: parameters are not a JSON Schema"), "{refused}");
    }
}
