//! What can be told to a URL, and the wish to be told it of one run.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Status;

/// Something that webhooks tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema)]
pub enum WebhookEvent {
    /// A run has ended: the agent finished.
    #[serde(rename = "run.completed")]
    RunCompleted,
    /// A run has ended: an error, a deadline or too many attempts.
    #[serde(rename = "run.failed")]
    RunFailed,
    /// A run has ended: someone cancelled it.
    #[serde(rename = "run.cancelled")]
    RunCancelled,
    /// A run has ended: its time-to-live passed before it started.
    #[serde(rename = "run.expired")]
    RunExpired,
    /// A run waits for input or approval.
    #[serde(rename = "run.waiting")]
    RunWaiting,
    /// A person has taken a thread over.
    #[serde(rename = "thread.handed_off")]
    ThreadHandedOff,
    /// A person has given a thread back.
    #[serde(rename = "thread.released")]
    ThreadReleased,
    /// A thread's follow-up was due.
    #[serde(rename = "thread.follow_up")]
    ThreadFollowUp,
}

impl WebhookEvent {
    /// All of them, in the order of the documentation.
    pub const ALL: [Self; 8] = [
        Self::RunCompleted,
        Self::RunFailed,
        Self::RunCancelled,
        Self::RunExpired,
        Self::RunWaiting,
        Self::ThreadHandedOff,
        Self::ThreadReleased,
        Self::ThreadFollowUp,
    ];

    /// The ends of a run: what is told unless something else is asked for.
    pub const FINAL: [Self; 4] = [Self::RunCompleted, Self::RunFailed, Self::RunCancelled, Self::RunExpired];

    /// What is told of a run that has come to be `status`, if anything.
    #[must_use]
    pub fn of(status: Status) -> Option<Self> {
        match status {
            Status::Scheduled | Status::Queued | Status::Running => None,
            Status::Waiting => Some(Self::RunWaiting),
            Status::Completed => Some(Self::RunCompleted),
            Status::Failed => Some(Self::RunFailed),
            Status::Cancelled => Some(Self::RunCancelled),
            Status::Expired => Some(Self::RunExpired),
        }
    }

    /// It is about a run, and not about a thread.
    #[must_use]
    pub fn is_of_run(self) -> bool {
        self.as_str().starts_with("run.")
    }

    /// The spelling used everywhere.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RunCompleted => "run.completed",
            Self::RunFailed => "run.failed",
            Self::RunCancelled => "run.cancelled",
            Self::RunExpired => "run.expired",
            Self::RunWaiting => "run.waiting",
            Self::ThreadHandedOff => "thread.handed_off",
            Self::ThreadReleased => "thread.released",
            Self::ThreadFollowUp => "thread.follow_up",
        }
    }

    /// The event spelled `text`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|event| event.as_str() == text)
    }
}

impl fmt::Display for WebhookEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Where the news of one run go, besides its tenant's endpoints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Webhook {
    /// An `https://` URL.
    pub url: String,
    /// What is told; the four ends of a run unless given.
    #[serde(default = "ends")]
    pub events: Vec<WebhookEvent>,
}

fn ends() -> Vec<WebhookEvent> {
    WebhookEvent::FINAL.to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_spelled_alike_everywhere() {
        for event in WebhookEvent::ALL {
            assert_eq!(serde_json::to_value(event).unwrap(), event.as_str());
            assert_eq!(WebhookEvent::parse(event.as_str()), Some(event));
        }
        assert_eq!(WebhookEvent::parse("run.started"), None);
    }

    #[test]
    fn every_final_status_is_told_as_what_it_is_called() {
        for status in Status::ALL {
            let event = WebhookEvent::of(status);
            let told = status.is_final() || status == Status::Waiting;
            assert_eq!(event.map(|event| event.to_string()), told.then(|| format!("run.{status}")));
            assert_eq!(event.is_some_and(|event| WebhookEvent::FINAL.contains(&event)), status.is_final());
        }
    }

    #[test]
    fn the_ends_are_told_unless_something_else_is_asked_for() {
        let webhook: Webhook = serde_json::from_str(r#"{"url":"https://h"}"#).unwrap();
        assert_eq!(webhook.events, WebhookEvent::FINAL);
        let webhook: Webhook = serde_json::from_str(r#"{"url":"https://h","events":["run.waiting"]}"#).unwrap();
        assert_eq!(webhook.events, [WebhookEvent::RunWaiting]);
    }
}
