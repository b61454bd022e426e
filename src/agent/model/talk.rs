//! The conversation with the model, and what it wants to be done next: the fold of the run's finished steps. PURE: no
//! IO, no clock. An attempt that begins after a crash folds what is kept, and stands where the one before it stood.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::act::COMPLETE;
use crate::agent::providers::{ToolCall, Turn};
use crate::run::{Content, Message, Role, StepKind, StepRecord};

/// What is kept of a model call: the result of its step.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Said {
    /// Its text.
    #[serde(default)]
    pub(super) text: String,
    /// Why it stopped.
    #[serde(default)]
    pub(super) finish_reason: Option<String>,
    /// Who answered, as `provider/model`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) model: Option<String>,
    /// What it wants to be called.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) calls: Vec<ToolCall>,
    /// See [`crate::agent::providers::Piece::Echo`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) echo: Option<Value>,
    /// What the keys of its calls begin with. It goes with the step into a run that goes on from this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) key: Option<String>,
    /// It is the plan of the run, and no part of the conversation.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) plan: bool,
}

/// What is kept of a tool call: the result of its step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Returned {
    /// Which call it was.
    pub(super) call_id: String,
    /// What the model is shown.
    pub(super) content: String,
    /// It did not work.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) failed: bool,
}

/// A call that the model wants and that has not been returned to it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Pending {
    pub(super) call: ToolCall,
    /// The idempotency key of the call.
    pub(super) key: String,
    pub(super) returned: Option<Returned>,
    /// What a person has answered about it, the first answer first, each with the number of its step.
    pub(super) answers: Vec<(u32, Value)>,
}

/// The conversation so far.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Talk {
    /// What the model is shown.
    pub(super) turns: Vec<Turn>,
    /// The calls of its last answer, unless all were returned.
    pub(super) pending: Vec<Pending>,
    /// The highest number of a finished step.
    pub(super) step: u32,
    /// Its last answer, if that is the last that was said: nothing is to be done unless somebody says more.
    pub(super) last: Option<Said>,
    /// Its plan.
    pub(super) plan: Option<Said>,
    /// How many of its answers in a row were not what was asked for.
    pub(super) refused: u32,
}

impl Talk {
    /// A conversation that begins with what is known before the model says anything.
    pub(super) fn new(opening: impl IntoIterator<Item = Message>) -> Self {
        Self { turns: opening.into_iter().map(Turn::Said).collect(), ..Self::default() }
    }

    /// Takes over a finished step. Steps come in the order of their numbers.
    pub(super) fn take(&mut self, record: &StepRecord) {
        self.step = self.step.max(record.step);
        match record.kind {
            StepKind::Model => {
                // Of another program than this one; whatever it was, a text can be shown.
                let said = serde_json::from_value(record.result.clone())
                    .unwrap_or_else(|_| Said { text: record.result.to_string(), ..Said::default() });
                self.answered(said);
            }
            StepKind::Tool => {
                if let Ok(returned) = serde_json::from_value::<Returned>(record.result.clone()) {
                    self.returned(returned);
                }
            }
            StepKind::Ask => {
                let answer = record.result.get("input").cloned().unwrap_or_default();
                self.person_answered(record.step, answer);
            }
        }
    }

    /// The model has answered.
    pub(super) fn answered(&mut self, said: Said) {
        if said.plan {
            self.plan = Some(said);
            return;
        }
        if said.calls.is_empty() {
            // Some providers refuse empty messages.
            if !said.text.is_empty() {
                let content = Content::Text(said.text.clone());
                self.turns.push(Turn::Said(Message { role: Role::Assistant, content }));
            }
            self.last = Some(said);
            return;
        }
        self.last = None;
        self.refused = 0;
        let Said { text, calls, echo, key, .. } = said;
        let prefix = key.unwrap_or_default();
        let pending = |call: &ToolCall| Pending {
            key: format!("{prefix}-{}", call.id),
            call: call.clone(),
            returned: None,
            answers: Vec::new(),
        };
        self.pending = calls.iter().map(pending).collect();
        self.turns.push(Turn::Called { text, calls, echo });
    }

    /// A tool has given something. The model is shown all together, in the order of its calls.
    pub(super) fn returned(&mut self, returned: Returned) {
        let call = self.pending.iter_mut().find(|pending| pending.call.id == returned.call_id);
        if let Some(pending) = call {
            pending.returned = Some(returned);
        }
        if self.pending.iter().all(|pending| pending.returned.is_some()) {
            for Pending { call, returned, .. } in self.pending.drain(..) {
                let Some(Returned { call_id, content, failed }) = returned else { continue };
                self.turns.push(Turn::Returned { call_id, name: call.name, content, failed });
            }
        }
    }

    /// A person has answered the question that was open: the one about the first call that has not been returned.
    /// A question is asked only when whatever needs no person has been done, but for the end of the run.
    fn person_answered(&mut self, step: u32, answer: Value) {
        let asked = |pending: &&mut Pending| pending.returned.is_none() && pending.call.name != COMPLETE;
        if let Some(pending) = self.pending.iter_mut().find(asked) {
            pending.answers.push((step, answer));
        }
    }

    /// Somebody says something; the model has to answer.
    pub(super) fn say(&mut self, messages: impl IntoIterator<Item = Message>) {
        let before = self.turns.len();
        self.turns.extend(messages.into_iter().map(Turn::Said));
        if self.turns.len() > before {
            self.last = None;
        }
    }

    /// The last answer is not what was asked for; the model is told why, and has to answer again.
    pub(super) fn refuse(&mut self, why: String) {
        self.refused += 1;
        self.say([Message { role: Role::User, content: Content::Text(why) }]);
    }

    /// About how many bytes the model is shown.
    pub(super) fn bytes(&self) -> usize {
        let bytes = |turn: &Turn| match turn {
            Turn::Said(message) => message.content.weight(),
            Turn::Called { text, calls, .. } => {
                text.len() + calls.iter().map(|call| call.name.len() + call.arguments.len()).sum::<usize>()
            }
            Turn::Returned { content, .. } => content.len(),
        };
        self.turns.iter().map(bytes).sum()
    }

    /// The texts of the conversation that the model has said last, until its last call of a tool.
    pub(super) fn last_text(&self) -> &str {
        let text = |turn: &Turn| match turn {
            Turn::Called { text, .. } => Some(text.len()),
            Turn::Said(_) | Turn::Returned { .. } => None,
        };
        let found = self.turns.iter().rposition(|turn| text(turn).is_some_and(|length| length > 0));
        match found.map(|index| &self.turns[index]) {
            Some(Turn::Called { text, .. }) => text,
            _ => "",
        }
    }

    /// Ids that tell the calls of an answer from all calls before: some servers count anew with each answer.
    pub(super) fn distinct(&self, calls: &mut [ToolCall], step: u32) {
        let known: Vec<_> = self
            .turns
            .iter()
            .flat_map(|turn| match turn {
                Turn::Called { calls, .. } => &calls[..],
                Turn::Said(_) | Turn::Returned { .. } => &[],
            })
            .map(|call| call.id.clone())
            .collect();
        for index in 0..calls.len() {
            let (before, rest) = calls.split_at_mut(index);
            let id = &mut rest[0].id;
            if id.is_empty() || known.contains(id) || before.iter().any(|call| call.id == *id) {
                *id = format!("{id}-{step}-{index}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::agent::kit::{record, user};

    fn call(id: &str) -> ToolCall {
        ToolCall { id: id.to_owned(), name: "look".to_owned(), arguments: "{}".to_owned() }
    }

    fn calls(ids: &[&str]) -> Value {
        let calls = ids.iter().map(|id| call(id)).collect();
        serde_json::to_value(Said { text: "hm".into(), calls, key: Some("run".into()), ..Said::default() }).unwrap()
    }

    fn gave(id: &str) -> Value {
        json!({"call_id": id, "content": format!("saw {id}")})
    }

    #[test]
    fn what_tools_gave_is_shown_in_the_order_of_their_calls_whatever_ended_first() {
        let mut talk = Talk::new([user("look")]);
        talk.take(&record(1, StepKind::Model, "m", calls(&["a", "b"])));
        assert_eq!(talk.pending.iter().map(|pending| &*pending.key).collect::<Vec<_>>(), ["run-a", "run-b"]);
        talk.take(&record(2, StepKind::Tool, "look", gave("b")));
        assert_eq!((talk.turns.len(), talk.pending.len()), (2, 2));
        talk.take(&record(3, StepKind::Tool, "look", gave("a")));
        let shown = |id: &str| Turn::Returned {
            call_id: id.into(),
            name: "look".into(),
            content: format!("saw {id}"),
            failed: false,
        };
        assert_eq!(talk.turns[2..], [shown("a"), shown("b")]);
        assert!(talk.pending.is_empty() && talk.step == 3 && talk.last_text() == "hm");
    }

    #[test]
    fn an_answer_belongs_to_the_first_call_that_was_not_returned() {
        let mut talk = Talk::new([]);
        talk.take(&record(1, StepKind::Model, "m", calls(&["a", "b", "c"])));
        talk.take(&record(2, StepKind::Tool, "look", gave("a")));
        talk.take(&record(3, StepKind::Ask, "ask", json!({"wait_id": "w9", "input": "yes"})));
        assert_eq!(talk.pending[1].answers, [(3, json!("yes"))]);
        assert!(talk.pending[0].answers.is_empty() && talk.pending[2].answers.is_empty());
    }

    #[test]
    fn calls_of_servers_that_count_anew_are_told_apart() {
        let mut talk = Talk::new([]);
        talk.take(&record(1, StepKind::Model, "m", calls(&["call_0"])));
        let mut again = vec![call("call_0"), call("x"), call("x"), call("")];
        talk.distinct(&mut again, 3);
        let ids: Vec<_> = again.iter().map(|call| &*call.id).collect();
        assert_eq!(ids, ["call_0-3-0", "x", "x-3-2", "-3-3"]);
    }

    #[test]
    fn a_last_answer_is_one_until_somebody_says_more() {
        let mut talk = Talk::new([user("hi")]);
        talk.take(&record(1, StepKind::Model, "m", json!({"text": "hello", "finish_reason": "stop"})));
        assert_eq!(talk.last.as_ref().map(|said| &*said.text), Some("hello"));
        talk.say([]);
        assert!(talk.last.is_some());
        talk.say([user("more")]);
        assert!(talk.last.is_none() && talk.turns.len() == 3);
    }
}
