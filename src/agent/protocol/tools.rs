//! Calls of Runcast's tools on behalf of a program. A finished call is a step: a program that asks for it again, in
//! this attempt or in a later one, is given the same result.

use serde_json::{Value, json};

use super::{Reply, Session};
use crate::agent::AgentError;
use crate::agent::providers::ToolCall;
use crate::agent::tools::{CutOff, Declared, Outcome, Toolbox};
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
        // It is begun where viewers and budgets see it, and what an earlier attempt has begun is known before.
        let cut_off = self.context.cut_off().iter().any(|open| open.call_id.as_deref() == Some(&call_id));
        self.begin(StepKind::Tool, &name, Some(call_id.clone())).await?;
        let arguments = arguments.to_string();
        self.context.tool_started(&call_id, &name, &arguments).await?;
        let asked = ToolCall { id: call_id.clone(), name: name.clone(), arguments };
        let Outcome { content, failed } = self.give(&tools, &asked, cut_off).await?;
        let output = Value::from(content);
        self.context.tool_completed(&call_id, &name, output.clone(), failed).await?;
        let result = json!({"call_id": call_id, "output": output, "failed": failed});
        let record = StepRecord { step: self.next_step(), kind: StepKind::Tool, name, result, usage: Usage::default() };
        self.keep(record.clone()).await?;
        let reply = reply(call_id.clone(), &record);
        self.calls.insert(call_id, record);
        Ok(reply)
    }

    /// What the tool gives, or why it is not called.
    async fn give(&self, tools: &[Declared], asked: &ToolCall, cut_off: bool) -> Result<Outcome, AgentError> {
        let refused = |why: String| Ok(Outcome { content: why, failed: true });
        let name = &asked.name;
        let known: Vec<_> = tools.iter().map(|declared| declared.tool.card().name).collect();
        let Some(declared) = known.iter().position(|known| known == name).map(|index| &tools[index]) else {
            return refused(format!("there is no tool {name:?}; there are: {}", known.join(", ")));
        };
        if declared.policy.needs_approval {
            // The program can ask a person itself; nobody could tell here which call was approved.
            return refused(format!("the tool {name} needs approval, which programs cannot give"));
        }
        if cut_off && declared.policy.cut_off != CutOff::Repeat {
            return refused(format!("{name} was called when a worker died: nobody knows whether it was done"));
        }
        let key = format!("{}:{}", self.context.spec().id, asked.id);
        Ok(declared.make(asked, &key, &self.context).await?)
    }
}

fn reply(call_id: String, record: &StepRecord) -> Reply {
    let field = |name| record.result.get(name).cloned().unwrap_or_default();
    Reply::ToolResult { call_id, output: field("output"), failed: field("failed") == Value::Bool(true) }
}
