//! A thread as it stands, its messages and its own log.

use std::collections::BTreeMap;

use serde_json::{Map, Value};
use uuid::Uuid;

use super::{FollowUp, Progress};
use crate::run::{Message, RunId, Tenant, ThreadId, Timestamp};

/// A conversation as it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Thread {
    /// Its id.
    pub id: ThreadId,
    /// Whose it is.
    pub tenant: Tenant,
    /// The caller's own labels.
    pub metadata: BTreeMap<String, String>,
    /// The caller's own document.
    pub state: Map<String, Value>,
    /// When it began.
    pub created_at: Timestamp,
    /// When something was said or done last.
    pub active_at: Timestamp,
    /// People have taken over.
    pub handed_off: Option<HandedOff>,
    /// The run that holds it: queued, running, waiting or backing off.
    pub holder: Option<RunId>,
    /// What the holder says is dropped when it ends.
    pub dropping: bool,
    /// How many runs have held it. Those who hold it now have this turn.
    pub turns: u64,
    /// The number of its last message, from 1.
    pub last_message: u64,
    /// The number of its last own event, from 1.
    pub last_event: u64,
    /// The follow-up that is armed.
    pub follow_up: Option<FollowUp>,
    /// The follow-ups sent since a person spoke last.
    pub progress: Progress,
    /// How many timers were ever armed: the number of the last.
    pub timers_armed: u64,
}

impl Thread {
    /// A new conversation.
    #[must_use]
    pub fn new(id: ThreadId, tenant: Tenant, now: Timestamp) -> Self {
        Self {
            id,
            tenant,
            metadata: BTreeMap::new(),
            state: Map::new(),
            created_at: now,
            active_at: now,
            handed_off: None,
            holder: None,
            dropping: false,
            turns: 0,
            last_message: 0,
            last_event: 0,
            follow_up: None,
            progress: Progress::default(),
            timers_armed: 0,
        }
    }
}

/// People answer, and no run does by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HandedOff {
    /// Since when.
    pub at: Timestamp,
    /// Why, for people.
    pub reason: String,
    /// The run whose agent did it; absent: a person.
    pub by: Option<RunId>,
}

/// A message of a thread.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ThreadMessage {
    /// Its id.
    pub id: Uuid,
    /// Counts the messages of the thread, from 1.
    pub seq: u64,
    /// Who says what.
    pub message: Message,
    /// The run that was given it, or that said it.
    pub run: Option<RunId>,
    /// The turn it belongs to; absent while its run has not had the thread. A run is shown all messages of earlier
    /// turns, by turn and number.
    pub turn: Option<u64>,
    /// It was handed to a run that was under way, which has not looked at it yet.
    pub unread: bool,
    /// The last step that the run had finished when it looked at this message.
    pub after_step: Option<u32>,
    /// When it came.
    pub at: Timestamp,
}

/// An entry of a thread's own log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Counts them from 1.
    pub seq: u64,
    /// When.
    pub at: Timestamp,
    /// What.
    pub happened: Happened,
}

/// What happened to a thread.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Happened {
    /// A run was created in it.
    Run(RunId),
    /// People have taken over.
    HandedOff {
        /// Why.
        reason: String,
        /// The run whose agent did it; absent: a person.
        by: Option<RunId>,
    },
    /// It was given back.
    Released,
    /// Nobody has spoken for a while: a run follows up.
    FollowUp(RunId),
}

/// The kinds of [`Happened`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    /// A run was created.
    Run,
    /// People have taken over.
    HandedOff,
    /// It was given back.
    Released,
    /// A run follows up.
    FollowUp,
}

impl EventKind {
    /// All kinds.
    pub const ALL: [Self; 4] = [Self::Run, Self::HandedOff, Self::Released, Self::FollowUp];

    /// The type on the wire and in the store.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Run => "thread.run",
            Self::HandedOff => "thread.handed_off",
            Self::Released => "thread.released",
            Self::FollowUp => "thread.follow_up",
        }
    }

    /// The kind spelled `text`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text)
    }
}

impl Happened {
    /// Which kind.
    #[must_use]
    pub fn kind(&self) -> EventKind {
        match self {
            Self::Run(_) => EventKind::Run,
            Self::HandedOff { .. } => EventKind::HandedOff,
            Self::Released => EventKind::Released,
            Self::FollowUp(_) => EventKind::FollowUp,
        }
    }

    /// The run it is about.
    #[must_use]
    pub fn run(&self) -> Option<RunId> {
        match self {
            Self::Run(run) | Self::FollowUp(run) => Some(*run),
            Self::HandedOff { by, .. } => *by,
            Self::Released => None,
        }
    }

    /// What there is to say about it.
    #[must_use]
    pub fn text(&self) -> &str {
        match self {
            Self::HandedOff { reason, .. } => reason,
            Self::Run(_) | Self::Released | Self::FollowUp(_) => "",
        }
    }

    /// What was kept as these parts.
    #[must_use]
    pub fn from_parts(kind: EventKind, run: Option<RunId>, text: String) -> Option<Self> {
        Some(match kind {
            EventKind::Run => Self::Run(run?),
            EventKind::HandedOff => Self::HandedOff { reason: text, by: run },
            EventKind::Released => Self::Released,
            EventKind::FollowUp => Self::FollowUp(run?),
        })
    }
}
