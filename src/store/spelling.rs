//! How the adapters write what has no type of theirs: documents, words, numbers. One way for all, so that what one
//! has written, another could read.

use std::borrow::Cow;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::StoreError;
use crate::run::{Budget, Content, Message, OnDisconnect, OpenStep, Role, Run, Status, StepKind};

/// The parts of a run that are stored as JSON. Whoever asked for the run parses them, so that a long input does not
/// hold up a store's threads.
#[derive(Debug)]
pub(super) struct Documents {
    pub(super) input: String,
    pub(super) params: String,
    pub(super) metadata: String,
    pub(super) output: Option<String>,
}

impl Documents {
    /// The run with these documents.
    pub(super) fn complete(self, mut run: Run) -> Result<Run, StoreError> {
        let spec = Arc::make_mut(&mut run.spec);
        spec.input = parse(&self.input)?;
        spec.params = parse(&self.params)?;
        spec.metadata = parse(&self.metadata)?;
        run.output = self.output.as_deref().map(parse).transpose()?;
        Ok(run)
    }
}

/// What a run may use, what it has cost and what it has reserved, and what it has said if it waits: one document, which
/// most runs do not have.
#[derive(Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct Ledger {
    #[serde(skip_serializing_if = "is_unbounded")]
    budget: Budget,
    #[serde(skip_serializing_if = "is_zero")]
    cost_micros: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    open: Vec<OpenStep>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    said: Vec<(Uuid, Message)>,
}

fn is_unbounded(budget: &Budget) -> bool {
    *budget == Budget::NONE
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature serde asks for")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// The ledger of a run, unless there is nothing in it.
pub(super) fn ledger(run: &Run) -> Option<String> {
    let (budget, cost_micros) = (run.spec.budget, run.usage.cost_micros);
    // The thread of one that has ended has it, and the owner of one that is running; nobody is to write it all the time.
    let kept = run.status != Status::Running && !run.status.is_final();
    let said = if kept { run.said.clone() } else { Vec::new() };
    if run.open.is_empty() && said.is_empty() && cost_micros == 0 && budget == Budget::NONE {
        return None;
    }
    // Numbers, names and texts: there is nothing in it that JSON could not write.
    serde_json::to_string(&Ledger { budget, cost_micros, open: run.open.clone(), said }).ok()
}

/// Reads a run's ledger back into it.
pub(super) fn read_ledger(run: &mut Run, text: Option<&str>) -> Result<(), StoreError> {
    let Some(text) = text else { return Ok(()) };
    let Ledger { budget, cost_micros, open, said } = parse(text)?;
    Arc::make_mut(&mut run.spec).budget = budget;
    run.usage.cost_micros = cost_micros;
    (run.open, run.said) = (open, said);
    Ok(())
}

/// A value as the JSON that is stored. JSON has a way to write every character, so every database takes it.
pub(super) fn json(value: &impl Serialize) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|error| unreadable("a document cannot be written", error))
}

/// A stored document.
pub(super) fn parse<T: DeserializeOwned>(text: &str) -> Result<T, StoreError> {
    serde_json::from_str(text).map_err(|error| unreadable("a document does not parse", error))
}

/// The error of something stored that cannot be read back.
pub(super) fn unreadable(what: &str, why: impl std::fmt::Display) -> StoreError {
    StoreError::Corrupt(format!("{what}: {why}"))
}

/// A number as databases keep it. Nothing of ours comes near the bound.
pub(super) fn integer(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// A number that was kept by [`integer`].
pub(super) fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

/// The stored spelling.
pub(super) fn on_disconnect_text(on_disconnect: OnDisconnect) -> &'static str {
    match on_disconnect {
        OnDisconnect::Continue => "continue",
        OnDisconnect::Cancel => "cancel",
    }
}

/// What is spelled so.
pub(super) fn on_disconnect(text: &str) -> Option<OnDisconnect> {
    [OnDisconnect::Continue, OnDisconnect::Cancel].into_iter().find(|known| on_disconnect_text(*known) == text)
}

/// How a message is stored: who speaks, and what is said. One of parts is a document, which its role tells.
pub(super) fn words(message: &Message) -> Result<(&'static str, Cow<'_, str>), StoreError> {
    Ok(match &message.content {
        Content::Text(text) => (role_text(message.role, false), Cow::Borrowed(text)),
        Content::Parts(parts) => (role_text(message.role, true), Cow::Owned(json(parts)?)),
    })
}

/// The message that was stored so.
pub(super) fn message(role: &str, content: String) -> Result<Message, StoreError> {
    let roles = [Role::System, Role::User, Role::Assistant];
    let known = roles.into_iter().flat_map(|role| [(role, false), (role, true)]);
    let Some((role, parts)) = known.into_iter().find(|(known, parts)| role_text(*known, *parts) == role) else {
        return Err(unreadable("a message", format_args!("unknown role {role:?}")));
    };
    let content = if parts { Content::Parts(parse(&content)?) } else { Content::Text(content) };
    Ok(Message { role, content })
}

fn role_text(role: Role, parts: bool) -> &'static str {
    match (role, parts) {
        (Role::System, false) => "system",
        (Role::System, true) => "system_parts",
        (Role::User, false) => "user",
        (Role::User, true) => "user_parts",
        (Role::Assistant, false) => "assistant",
        (Role::Assistant, true) => "assistant_parts",
    }
}

/// The stored spelling.
pub(super) fn step_kind_text(kind: StepKind) -> &'static str {
    match kind {
        StepKind::Model => "model",
        StepKind::Tool => "tool",
        StepKind::Ask => "ask",
    }
}

/// What is spelled so.
pub(super) fn step_kind(text: &str) -> Option<StepKind> {
    [StepKind::Model, StepKind::Tool, StepKind::Ask].into_iter().find(|known| step_kind_text(*known) == text)
}
