//! Does what the model wants to be done: calls tools, several at once where the agent allows it, and asks people.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use serde_json::{Value, json};

use super::talk::{Pending, Returned, Talk};
use crate::agent::providers::ToolCard;
use crate::agent::tools::{CutOff, Declared, Outcome};
use crate::agent::{AgentError, BeginStep, RunContext};
use crate::run::{OpenStep, Reason, StepKind, StepRecord, Usage};

/// How many calls of one answer are made at once at the most.
const MAX_AT_ONCE: usize = 16;

/// The tool with which a model ends its run.
pub(super) const COMPLETE: &str = "complete";
/// The tool with which a model asks a person.
pub(super) const ASK: &str = "ask";
/// The tool with which a model hands its thread to people.
pub(super) const HAND_OFF: &str = "hand_off";
/// The tool with which a model changes its plan.
pub(super) const UPDATE_PLAN: &str = "update_plan";

/// What an agent's models may call.
#[derive(Default)]
pub(super) struct Tools {
    /// Those that are Runcast's own, by name.
    pub(super) own: BTreeMap<&'static str, ToolCard>,
    /// The others, by name.
    pub(super) declared: BTreeMap<String, Declared>,
    /// Several may be called at once.
    pub(super) parallel: bool,
    /// How long people have to answer.
    pub(super) answer_within: Option<Duration>,
    /// What the run's output has to follow.
    pub(super) schema: Option<Arc<jsonschema::Validator>>,
}

/// What follows from what was done.
#[derive(Debug, PartialEq)]
pub(super) enum Done {
    /// The model is shown what its calls gave.
    Returned,
    /// The model has ended the run with this.
    Completed(Value),
}

/// What is to be done about a call.
enum Next {
    /// It is made.
    Call(Declared),
    /// Nothing more: this is what it gave.
    Gave(Outcome),
    /// A person is asked first.
    Ask(Reason, Value),
    /// The thread is handed to people.
    HandOff(String),
    /// The plan is changed.
    Plan(Value),
    /// The run ends.
    Complete(Value),
}

impl Tools {
    /// All that the model is told of.
    pub(super) fn cards(&self) -> Vec<ToolCard> {
        self.own.values().cloned().chain(self.declared.values().map(|declared| declared.tool.card())).collect()
    }

    /// Does what is pending. Calls that need nobody are made first, so that a question finds everything else done.
    ///
    /// # Errors
    /// The attempt is over, the budget is, or a person is asked.
    pub(super) async fn act(&self, context: &RunContext, talk: &mut Talk) -> Result<Done, AgentError> {
        let mut completed = None;
        let mut question = None;
        let mut calls = Vec::new();
        // Numbers of steps that were cut off are not used for others: what is known of those has to stay.
        let mut step = context.cut_off().iter().map(|open| open.step).fold(talk.step, u32::max);
        for pending in talk.pending.iter().filter(|pending| pending.returned.is_none()) {
            let next = self.next(pending, context);
            match next {
                Next::Ask(reason, prompt) => {
                    question.get_or_insert((reason, prompt));
                }
                Next::Complete(result) => {
                    completed.get_or_insert((pending.clone(), result));
                }
                Next::Call(_) | Next::Gave(_) | Next::HandOff(_) | Next::Plan(_) => {
                    step += 1;
                    calls.push((step, pending.clone(), next));
                }
            }
        }
        let at_once = if self.parallel { MAX_AT_ONCE } else { 1 };
        let mut made = stream::iter(calls)
            .map(|(step, pending, next)| make(context, step, pending, next))
            .buffer_unordered(at_once);
        // What has begun is finished, whatever happens to the others.
        let mut stopped = None;
        while let Some(record) = made.next().await {
            match record {
                Ok(record) => talk.take(&record),
                Err(error) => stopped = stopped.or(Some(error)),
            }
        }
        drop(made);
        if let Some(error) = stopped {
            return Err(error);
        }
        if let Some((reason, prompt)) = question {
            return Err(AgentError::Ask(crate::agent::Asked { reason, prompt, deadline: self.answer_within }));
        }
        if let Some((pending, result)) = completed {
            // What it ends with is a finished step, so that a crash behind it does not let the model speak again.
            let gave = Next::Gave(Outcome { content: result.to_string(), failed: false });
            talk.take(&make(context, step + 1, pending, gave).await?);
            return Ok(Done::Completed(result));
        }
        Ok(Done::Returned)
    }

    fn next(&self, pending: &Pending, context: &RunContext) -> Next {
        let Pending { call, answers, .. } = pending;
        let failed = |content: String| Next::Gave(Outcome { content, failed: true });
        if self.own.contains_key(&*call.name) {
            let arguments = match serde_json::from_str::<Value>(&call.arguments) {
                Ok(arguments @ Value::Object(_)) => arguments,
                Ok(_) | Err(_) => return failed("the arguments are not a JSON object; nothing was done".to_owned()),
            };
            return match (own(&call.name, arguments, answers, &call.id), &self.schema) {
                (Next::Complete(result), Some(schema)) => match schema.validate(&result) {
                    Ok(()) => Next::Complete(result),
                    Err(error) => {
                        failed(format!("the result is not what was asked for: {error}; nothing is completed"))
                    }
                },
                (next, _) => next,
            };
        }
        let Some(declared) = self.declared.get(&call.name) else {
            let known: Vec<_> = self.cards().into_iter().map(|card| card.name).collect();
            return failed(format!("there is no tool {:?}; there are: {}", call.name, known.join(", ")));
        };
        let arguments = || serde_json::from_str(&call.arguments).unwrap_or_else(|_| Value::from(&*call.arguments));
        let prompt = |question: String| json!({"question": question, "call_id": call.id, "tool": call.name, "arguments": arguments()});
        if declared.policy.needs_approval {
            match answers.first().map(|(_, answer)| answer) {
                None => return Next::Ask(Reason::Approval, prompt(format!("May {} be called?", call.name))),
                Some(answer) if !approves(answer) => {
                    return failed(format!("a person did not approve this call, and said: {}", plain(answer)));
                }
                Some(_) => {}
            }
        }
        if let Some(begun) = cut_off_at(context.cut_off(), &call.id) {
            // An answer to an earlier question says nothing of a call that was made since.
            let answer = answers.iter().find(|(step, _)| *step > begun).map(|(_, answer)| answer);
            match (declared.policy.cut_off, answer) {
                (CutOff::Repeat, _) => {}
                (CutOff::Fail, _) => {
                    return failed(
                        "the worker died while this was called: nobody knows whether it was done; it was not called again"
                            .to_owned(),
                    );
                }
                (CutOff::Ask, None) => {
                    let question = format!(
                        "The worker died while {} was called, and nobody knows whether it was done. Call it again?",
                        call.name
                    );
                    return Next::Ask(Reason::Approval, prompt(question));
                }
                (CutOff::Ask, Some(answer)) if approves(answer) => {}
                (CutOff::Ask, Some(answer)) => {
                    return failed(format!(
                        "the worker died while this was called; a person said: {}; it was not called again",
                        plain(answer)
                    ));
                }
            }
        }
        Next::Call(declared.clone())
    }
}

/// What is to be done about a call of one of Runcast's own tools.
fn own(name: &str, arguments: Value, answers: &[(u32, Value)], call_id: &str) -> Next {
    let missing = |field: &str| Next::Gave(Outcome { content: format!("{field} is missing"), failed: true });
    let field = |field: &str| arguments.get(field).cloned();
    match name {
        COMPLETE => Next::Complete(field("result").unwrap_or(arguments)),
        ASK => match (answers.first(), field("question")) {
            (Some((_, answer)), _) => Next::Gave(Outcome { content: plain(answer), failed: false }),
            (None, Some(question)) => {
                let mut prompt = json!({"question": question, "call_id": call_id});
                if let Some(options) = field("options") {
                    prompt["options"] = options;
                }
                Next::Ask(Reason::Input, prompt)
            }
            (None, None) => missing("question"),
        },
        HAND_OFF => Next::HandOff(field("reason").as_ref().map_or_else(String::new, plain)),
        _ => field("tasks").map_or_else(|| missing("tasks"), Next::Plan),
    }
}

/// The step that the call was, if the attempt that began it ended before it returned.
fn cut_off_at(open: &[OpenStep], call_id: &str) -> Option<u32> {
    let open = open.iter().find(|open| open.kind == StepKind::Tool && open.call_id.as_deref() == Some(call_id));
    open.map(|open| open.step)
}

/// Makes one call as step number `step`; it is kept before this returns.
async fn make(context: &RunContext, step: u32, pending: Pending, next: Next) -> Result<StepRecord, AgentError> {
    let Pending { call, key, .. } = pending;
    let begin = BeginStep {
        step,
        kind: StepKind::Tool,
        name: call.name.clone(),
        call_id: Some(call.id.clone()),
        reserve: Usage::default(),
    };
    context.begin_step(begin).await?;
    context.tool_started(&call.id, &call.name, &call.arguments).await?;
    let outcome = match next {
        Next::Call(declared) => declared.make(&call, &key, context).await?,
        Next::Gave(outcome) => outcome,
        Next::HandOff(reason) => {
            context.hand_off(reason).await?;
            Outcome { content: "people have the conversation now".to_owned(), failed: false }
        }
        Next::Plan(tasks) => {
            context.plan(tasks).await?;
            Outcome { content: "noted".to_owned(), failed: false }
        }
        Next::Ask(..) | Next::Complete(_) => Outcome { content: String::new(), failed: false },
    };
    let Outcome { content, failed } = outcome;
    context.tool_completed(&call.id, &call.name, Value::from(content.as_str()), failed).await?;
    let returned = Returned { call_id: call.id, content, failed };
    let result = serde_json::to_value(returned).unwrap_or_default();
    let record = StepRecord { step, kind: StepKind::Tool, name: call.name, result, usage: Usage::default() };
    let StepRecord { step, kind, name, result, usage } = record.clone();
    context.step_finished(step, kind, name, result, usage).await?;
    Ok(record)
}

/// A person's answer means yes: `true`, a plain word for it, or `{"approved": true}`.
fn approves(answer: &Value) -> bool {
    match answer {
        Value::Bool(yes) => *yes,
        Value::String(word) => {
            let word = word.trim().to_lowercase();
            matches!(&*word, "yes" | "y" | "ok" | "true" | "approve" | "approved")
        }
        Value::Object(fields) => fields.get("approved").is_some_and(|approved| *approved == Value::Bool(true)),
        Value::Null | Value::Number(_) | Value::Array(_) => false,
    }
}

/// A value as a model reads it.
fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Whether `name` is one of Runcast's own tools, which an agent's list can name without a declaration.
#[must_use]
pub fn is_own_tool(name: &str) -> bool {
    matches!(name, COMPLETE | ASK | HAND_OFF)
}

/// Runcast's own tools, by their names in an agent's list. `schema` is what the run's output has to follow.
pub(super) fn own_tool(name: &str, schema: Option<&Value>) -> Option<(&'static str, ToolCard)> {
    let text = |description: &str| json!({"type": "string", "description": description});
    let (name, description, properties, required) = match name {
        COMPLETE => {
            let result = schema.cloned().unwrap_or_else(|| json!({"description": "What the task was to give."}));
            let description = "Ends the task. Call it when everything is done, with the result.";
            (COMPLETE, description, json!({"result": result}), json!(["result"]))
        }
        ASK => {
            let properties = json!({
                "question": text("What the person is asked."),
                "options": {"type": "array", "items": {"type": "string"}, "description": "Answers to choose from."},
            });
            let description = "Asks the person that you work for, and waits for the answer, however long that takes.";
            (ASK, description, properties, json!(["question"]))
        }
        HAND_OFF => {
            let description = "Hands the conversation to people: you are not asked again until they give it back.";
            (HAND_OFF, description, json!({"reason": text("Why.")}), json!(["reason"]))
        }
        UPDATE_PLAN => {
            let task = json!({
                "type": "object",
                "properties": {"task": text("What is to be done."), "status": {"enum": ["pending", "active", "done", "dropped"]}},
                "required": ["task", "status"],
            });
            let description = "Replaces the plan: all tasks with their statuses. Call it whenever a task is done, or the plan has to change.";
            (
                UPDATE_PLAN,
                description,
                json!({"tasks": {"type": "array", "items": task, "maxItems": 50}}),
                json!(["tasks"]),
            )
        }
        _ => return None,
    };
    let parameters = json!({"type": "object", "properties": properties, "required": required});
    Some((name, ToolCard { name: name.to_owned(), description: description.to_owned(), parameters }))
}
