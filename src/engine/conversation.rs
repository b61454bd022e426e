//! What a live run has to do with its thread: what its agent is shown of it, what is handed to it while it is going
//! on, and what it has said, for when it ends.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::Value;

use super::Node;
use crate::agent::Conversation;
use crate::run::{Backoff, Event, Message, Role, Run, Segment, Spec, Status};
use crate::store::{HandOff, StoreError};

/// The waits between tries to reach a store that is away.
const RETRY: Backoff = Backoff { base: Duration::from_millis(100), max: Duration::from_secs(5) };

/// The most that is kept of what a run says, in bytes of text; what is beyond is left out of the thread's history.
const MOST_SAID: usize = 1 << 20;

/// How much of a log is read at a time, in bytes.
const READ_BYTES: usize = 256 * 1024;

/// About how many bytes a token has.
const TOKEN: usize = 4;

/// What the agent of a run is shown of its thread. Waits for a store that is away.
pub(super) async fn conversation(node: &Arc<Node>, spec: &Spec) -> Result<Conversation, StoreError> {
    let manners = node.agents.card(&spec.agent).map(|card| card.manners.clone()).unwrap_or_default();
    let bytes = manners.history_tokens.saturating_mul(TOKEN);
    for failures in 1.. {
        match node.store.conversation(spec.id, manners.history_messages, bytes).await {
            Ok(found) => return Ok(Conversation { history: found.history, steers: found.steers }),
            Err(error) if error.is_transient() => {
                node.outage.felt("cannot read a conversation; the run waits for the store", &error);
                tokio::time::sleep(RETRY.delay(failures, 1.0, None)).await;
            }
            Err(error) => return Err(error),
        }
    }
    unreachable!("there is always another try")
}

/// What was handed to a run while it was going on and that its agent has been given, in order, each with the last step
/// that was finished then.
pub(super) type Taken = Arc<Mutex<Vec<(u32, Message)>>>;

/// What was handed to the run since it looked last; it is among what is `taken` from now on. Waits for a store that is
/// away: a message must neither be missed nor be given twice.
pub(super) async fn take_steers(
    node: &Arc<Node>,
    spec: &Spec,
    attempt: u32,
    after_step: u32,
    taken: &Taken,
) -> Vec<Message> {
    if spec.thread.is_none() {
        return Vec::new();
    }
    for failures in 1.. {
        let looked = match node.store.take_steers(spec.id, attempt, after_step).await {
            Ok(steers) if failures == 1 => Ok(steers.into_iter().map(|steer| (after_step, steer)).collect::<Vec<_>>()),
            // Some may have been taken by a try whose answer was lost.
            Ok(_) => node.store.conversation(spec.id, 0, 0).await.map(|all| {
                let known = taken.lock().len();
                all.steers.into_iter().skip(known).collect()
            }),
            Err(error) => Err(error),
        };
        match looked {
            Ok(new) => {
                taken.lock().extend(new.iter().cloned());
                return new.into_iter().map(|(_, steer)| steer).collect();
            }
            Err(error) if error.is_transient() => {
                node.outage.felt("cannot look for messages to a run that is going on; it waits for the store", &error);
                tokio::time::sleep(RETRY.delay(failures, 1.0, None)).await;
            }
            Err(error) => {
                tracing::error!(run = %spec.id, %error, "cannot look for messages to a run that is going on");
                break;
            }
        }
    }
    Vec::new()
}

/// Hands the thread of the run to people, as its agent wishes in this attempt.
pub(super) async fn hand_off_by_run(node: &Arc<Node>, spec: &Spec, attempt: u32, reason: String) {
    let Some(thread) = spec.thread else { return };
    let (tenant, by) = (spec.tenant.clone(), Some((spec.id, attempt)));
    let hand_off = HandOff { tenant, thread, reason, by, now: node.clock.now() };
    for failures in 1.. {
        match node.store.hand_off(hand_off.clone()).await {
            Ok(moved) => return moved.into_iter().for_each(|moved| super::threads::moved(node, moved)),
            Err(error) if error.is_transient() => {
                node.outage.felt("cannot hand a thread off; its run waits for the store", &error);
                tokio::time::sleep(RETRY.delay(failures, 1.0, None)).await;
            }
            Err(error) => return tracing::error!(%thread, %error, "cannot hand a thread off"),
        }
    }
}

/// What earlier attempts of the run have said that is not void. Waits for a store that is away.
pub(super) async fn said_before(node: &Arc<Node>, run: &Run) -> Result<Said, StoreError> {
    let (mut spoken, mut bytes, mut after, mut failures) = (Vec::new(), 0, 0, 0);
    if run.attempt == 1 {
        return Ok(Said::default());
    }
    loop {
        let segments = match node.store.segments(run.spec.id, after, READ_BYTES).await {
            Ok(segments) => segments,
            Err(error) if error.is_transient() => {
                node.outage.felt("cannot read what a run has said; it waits for the store", &error);
                failures += 1;
                tokio::time::sleep(RETRY.delay(failures, 1.0, None)).await;
                continue;
            }
            Err(error) => return Err(error),
        };
        // The first segment may begin before what was read already.
        let seen = after;
        for event in segments.iter().flat_map(Segment::events).filter(|event| event.seq > seen) {
            after = event.seq;
            match event.kind {
                "message.delta" | "message.completed" if bytes <= MOST_SAID * 2 => {
                    bytes += event.data.len();
                    spoken.push((event.seq, recorded(event.kind, event.data)));
                }
                "run.retrying" | "step.retrying" => {
                    let data: Value = serde_json::from_str(event.data).unwrap_or_default();
                    let void_after = data["void_after"].as_u64().unwrap_or(u64::MAX);
                    spoken.retain(|(seq, _)| *seq <= void_after);
                }
                _ => {}
            }
        }
        if segments.is_empty() || after >= run.last_seq {
            break;
        }
    }
    let mut said = Said::default();
    spoken.iter().filter_map(|(_, event)| event.as_ref()).for_each(|event| said.hear(event));
    Ok(said)
}

/// What was said, read back from its record.
fn recorded(kind: &str, data: &str) -> Option<Event> {
    let mut data: Value = serde_json::from_str(data).ok()?;
    match kind {
        "message.delta" => Some(Event::MessageDelta { text: data["text"].as_str()?.to_owned() }),
        _ => Some(Event::MessageCompleted { message: serde_json::from_value(data["message"].take()).ok()? }),
    }
}

/// What a run says, as far as it was heard.
#[derive(Debug, Default)]
pub(super) struct Said {
    whole: Vec<Message>,
    begun: String,
    bytes: usize,
}

impl Said {
    /// Hears what its viewers see.
    pub(super) fn hear(&mut self, event: &Event) {
        match event {
            Event::MessageDelta { text } if self.fits(text) => self.begun.push_str(text),
            Event::MessageCompleted { message } => {
                self.bytes -= self.begun.len();
                self.begun.clear();
                if self.fits(&message.content.text()) {
                    self.whole.push(message.clone());
                }
            }
            Event::StepRetrying { .. } => {
                self.bytes -= self.begun.len();
                self.begun.clear();
            }
            Event::MessageDelta { .. }
            | Event::ReasoningDelta { .. }
            | Event::Created { .. }
            | Event::Scheduled { .. }
            | Event::Queued {}
            | Event::Started { .. }
            | Event::StepStarted { .. }
            | Event::ToolStarted { .. }
            | Event::ToolOutput { .. }
            | Event::ToolCompleted { .. }
            | Event::PlanUpdated { .. }
            | Event::StepCompleted { .. }
            | Event::Waiting { .. }
            | Event::Retrying { .. }
            | Event::Log { .. }
            | Event::Custom { .. }
            | Event::Completed { .. }
            | Event::Failed { .. }
            | Event::Cancelled { .. }
            | Event::Expired {} => {}
        }
    }

    fn fits(&mut self, text: &str) -> bool {
        let fits = self.bytes + text.len() <= MOST_SAID;
        self.bytes += if fits { text.len() } else { 0 };
        fits
    }

    /// What belongs into the thread when the run has ended as `run`: its messages, with its output as the last;
    /// or, if it was cut off or waits, what it had said until then.
    pub(super) fn all(&self, run: &Run) -> Vec<Message> {
        match run.status {
            Status::Completed => {
                let output = match &run.output {
                    Some(Value::String(text)) => text.clone(),
                    Some(other) => other.to_string(),
                    None => String::new(),
                };
                self.with_output(output)
            }
            Status::Cancelled | Status::Failed | Status::Waiting if !self.begun.is_empty() => {
                let begun = assistant(self.begun.clone());
                self.whole.iter().cloned().chain([begun]).collect()
            }
            Status::Scheduled
            | Status::Queued
            | Status::Running
            | Status::Waiting
            | Status::Failed
            | Status::Cancelled
            | Status::Expired => self.whole.clone(),
        }
    }

    /// Its messages with its output as the last. What is a piece of the output, said by this attempt or an earlier one, or
    /// before a message that was handed over at the last moment let it go on, is not said twice.
    fn with_output(&self, output: String) -> Vec<Message> {
        let mut said = self.whole.clone();
        said.retain(|message| !output.contains(&*message.content.text()));
        if !output.is_empty() {
            said.push(assistant(output));
        }
        said
    }
}

fn assistant(content: String) -> Message {
    Message { role: Role::Assistant, content: content.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_output_is_said_once_behind_what_is_no_piece_of_it() {
        let texts = |said: &[&str], output: &str| -> Vec<String> {
            let mut heard = Said::default();
            for text in said {
                heard.hear(&Event::MessageDelta { text: (*text).to_owned() });
                heard.hear(&Event::MessageCompleted { message: assistant((*text).to_owned()) });
            }
            heard.with_output(output.to_owned()).iter().map(|message| message.content.text().into_owned()).collect()
        };
        assert_eq!(texts(&["one "], "one "), ["one "]);
        assert_eq!(texts(&["one ", "two "], "one two "), ["one two "], "pieces");
        assert_eq!(texts(&["two "], "one two "), ["one two "], "an earlier attempt said the first");
        assert_eq!(texts(&["one ", "one two "], "one two "), ["one two "], "it had ended, and went on for one more");
        assert_eq!(texts(&["Let me see.", "It is done."], "It is done."), ["Let me see.", "It is done."]);
        assert_eq!(texts(&["Let me see."], ""), ["Let me see."]);
    }
}
