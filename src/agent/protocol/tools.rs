//! Calls of Runcast's tools on behalf of a program. A finished call is a step: a program that asks for it again, in
//! this attempt or in a later one, is given the same result.

use serde_json::{Value, json};
use tokio::time::timeout;

use super::{Reply, Session};
use crate::agent::AgentError;
use crate::agent::tools::{Call, Declared, ToolError, Toolbox};
use crate::run::{StepKind, StepRecord, Usage};

/// The id of the call that a step is.
pub(super) fn call_id(record: &StepRecord) -> Option<&str> {
    record.result.get("call_id")?.as_str()
}

impl Session {
    /// Calls a tool, unless that was done already, and keeps what it gave. Not cancellation safe.
    pub(super) async fn call(
        &mut self,
        tools: &dyn Toolbox,
        call_id: String,
        name: String,
        arguments: Value,
    ) -> Result<Reply, AgentError> {
        if let Some(record) = self.calls.get(&call_id) {
            return Ok(reply(call_id, record));
        }
        let tools = tools.tools().await.map_err(|why| AgentError::transient("tools_unavailable", why))?;
        self.begin(StepKind::Tool, &name).await?;
        self.context.tool_started(&call_id, &name, &arguments.to_string()).await?;
        let (output, failed) = match self.give(&tools, &call_id, &name, arguments).await {
            Ok(output) => (output, false),
            Err(ToolError::Stopped) => return Err(AgentError::Stopped),
            Err(ToolError::Transient(why) | ToolError::Permanent(why)) => (Value::from(why), true),
        };
        self.context.tool_completed(&call_id, &name, output.clone(), failed).await?;
        let result = json!({"call_id": call_id, "output": output, "failed": failed});
        let record = StepRecord { step: self.next_step(), kind: StepKind::Tool, name, result, usage: Usage::default() };
        self.keep(record.clone()).await?;
        let reply = reply(call_id.clone(), &record);
        self.calls.insert(call_id, record);
        Ok(reply)
    }

    /// Calls the tool as often as its policy allows.
    async fn give(&self, tools: &[Declared], id: &str, name: &str, arguments: Value) -> Result<Value, ToolError> {
        let cards: Vec<_> = tools.iter().map(|declared| (declared.tool.card(), declared)).collect();
        let Some((card, Declared { tool, policy })) = cards.iter().find(|(card, _)| card.name == name) else {
            let known: Vec<_> = cards.iter().map(|(card, _)| card.name.as_str()).collect();
            return Err(ToolError::Permanent(format!("there is no tool {name:?}; there are: {}", known.join(", "))));
        };
        if policy.needs_approval {
            // The program can ask a person itself; nobody could tell here which call was approved.
            return Err(ToolError::Permanent(format!("the tool {name} needs approval, which programs cannot give")));
        }
        let schema = jsonschema::validator_for(&card.parameters)
            .map_err(|error| ToolError::Permanent(format!("the tool {name} has no valid schema: {error}")))?;
        if let Err(error) = schema.validate(&arguments) {
            return Err(ToolError::Permanent(format!("the arguments do not fit the tool's schema: {error}")));
        }
        let mut tries = 0;
        loop {
            let key = format!("{}:{id}", self.context.spec().id);
            let call = Call { id: id.to_owned(), arguments: arguments.clone(), key, context: self.context.clone() };
            let given = timeout(policy.timeout, tool.call(call)).await.unwrap_or_else(|_| {
                let limit = humantime::format_duration(policy.timeout);
                Err(ToolError::Transient(format!("the tool {name} gave nothing within {limit}")))
            });
            match given {
                Ok(output) => return Ok(cut(output.content, policy.max_output)),
                Err(ToolError::Transient(_)) if tries < policy.retries => tries += 1,
                Err(error) => return Err(error),
            }
        }
    }
}

fn reply(call_id: String, record: &StepRecord) -> Reply {
    let field = |name| record.result.get(name).cloned().unwrap_or_default();
    Reply::ToolResult { call_id, output: field("output"), failed: field("failed") == Value::Bool(true) }
}

/// What may be shown of an output: all of it, or the beginning of its text.
fn cut(content: Value, most: usize) -> Value {
    let text = content.as_str().map_or_else(|| content.to_string(), str::to_owned);
    if text.len() <= most {
        return content;
    }
    let end = text.floor_char_boundary(most);
    Value::from(format!("{}… ({} bytes left out)", &text[..end], text.len() - end))
}
