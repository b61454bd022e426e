//! The one way in which a tool is called: what the model wrote is read and checked, time, retries and output are
//! bounded, and whatever goes wrong becomes words that the model can do something with.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt as _;
use serde_json::{Map, Value};
use tokio::time::{sleep, timeout};

use super::super::providers::ToolCall;
use super::super::{RunContext, Stopped};
use super::{Call, Declared, ToolError};
use crate::run::Backoff;

/// The waits before a call is made again. A tool that fails for longer than some seconds is better left to the model.
const BACKOFF: Backoff = Backoff { base: Duration::from_millis(500), max: Duration::from_secs(10) };

/// The most bytes of a failure that the model is told, unless the tool's own bound is lower.
const MAX_FAILURE: usize = 4 << 10;

/// How many faults of its arguments a model is told at once.
const MAX_FAULTS: usize = 5;

/// The most bytes of each of these.
const MAX_FAULT: usize = 300;

/// What a call has come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// What the model is shown: at most `max_output` bytes of its policy, and a line that says what is left out.
    pub content: String,
    /// It did not work; the content says why.
    pub failed: bool,
}

impl Outcome {
    fn failed(text: &str, most: usize) -> Self {
        Self { content: bounded(text.to_owned(), most.min(MAX_FAILURE)), failed: true }
    }
}

impl Declared {
    /// Makes a call that a model has asked for: reads its arguments and checks them against the tool's schema, then
    /// calls the tool within `timeout`, again after a wait for each of `retries` while it fails transiently, always
    /// under the same `key`. A panic in the tool is a failure of the call. Dropping the future drops the tool's own at
    /// once, wherever it stands.
    ///
    /// # Errors
    /// The attempt is over. All other trouble is an [`Outcome`] for the model.
    pub async fn make(&self, asked: &ToolCall, key: &str, context: &RunContext) -> Result<Outcome, Stopped> {
        let most = self.policy.max_output;
        let arguments = match self.read(&asked.arguments) {
            Ok(arguments) => arguments,
            Err(problem) => return Ok(Outcome::failed(&problem, most)),
        };
        let mut failures = 0;
        loop {
            let call = Call {
                id: asked.id.clone(),
                arguments: arguments.clone(),
                key: key.to_owned(),
                context: context.clone(),
            };
            let problem = match self.once(call).await {
                Ok(content) => return Ok(Outcome { content: bounded(content, most), failed: false }),
                Err(ToolError::Stopped) => return Err(Stopped),
                Err(ToolError::Permanent(problem)) => return Ok(Outcome::failed(&problem, most)),
                Err(ToolError::Transient(problem)) => problem,
            };
            failures += 1;
            if failures > self.policy.retries {
                return Ok(Outcome::failed(&problem, most));
            }
            tracing::debug!(
                tool = asked.name,
                failures,
                problem = bounded(problem, MAX_FAULT),
                "a tool is called again"
            );
            sleep(BACKOFF.delay(failures, rand::random(), None)).await;
        }
    }

    /// One try. What panics is not polled again: nothing sees the state that it leaves.
    async fn once(&self, call: Call) -> Result<String, ToolError> {
        let limit = self.policy.timeout;
        let caught = timeout(limit, AssertUnwindSafe(self.tool.call(call)).catch_unwind()).await;
        let output = match caught {
            Ok(Ok(output)) => output?,
            // The panic itself is in the node's log, and no business of the model's.
            Ok(Err(_)) => return Err(ToolError::Permanent("the tool broke".to_owned())),
            Err(_) => {
                let limit = humantime::format_duration(limit);
                return Err(ToolError::Transient(format!(
                    "the tool did not answer within {limit}; it may have worked"
                )));
            }
        };
        Ok(match output.content {
            Value::String(text) => text,
            other @ (Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_)) => {
                other.to_string()
            }
        })
    }

    /// The arguments, if they are what the tool's schema asks for; else what is wrong with them, for the model.
    fn read(&self, text: &str) -> Result<Value, String> {
        let arguments = match text.trim() {
            // What some models write for none.
            "" => Value::Object(Map::new()),
            text => serde_json::from_str(text)
                .map_err(|error| format!("the arguments are not valid JSON: {error}; nothing was called"))?,
        };
        if !arguments.is_object() {
            return Err("the arguments are not a JSON object; nothing was called".to_owned());
        }
        let faults: Vec<String> = self
            .schema
            .iter_errors(&arguments)
            .take(MAX_FAULTS)
            .map(|fault| {
                let path = fault.instance_path().to_string();
                let text = bounded(fault.to_string(), MAX_FAULT);
                if path.is_empty() { text } else { format!("{path}: {text}") }
            })
            .collect();
        match &faults[..] {
            [] => Ok(arguments),
            _ => Err(format!("the arguments do not fit the tool's schema: {}; nothing was called", faults.join("; "))),
        }
    }
}

/// At most `most` bytes of a text, cut between two characters, and a line that says how much is left out; a tool may have stopped to read before.
pub(super) fn bounded(mut text: String, most: usize) -> String {
    if text.len() > most {
        let kept = text.floor_char_boundary(most);
        let left_out = text.len() - kept;
        text.truncate(kept);
        text += &format!("\n[at least {left_out} bytes more are left out]");
    }
    text
}

#[cfg(test)]
#[path = "calling_tests.rs"]
mod tests;
