//! The bodies of the API about threads: what is asked for, and what a thread and its messages look like from outside.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::input::kept;
use super::object::RunObject;
use crate::engine::{CreateRun, Key, Send};
use crate::run::{Budget, Content, Input, OnDisconnect, Role, Tenant, ThreadId, Timestamp};
use crate::thread::{How, OnBusy, Thread, ThreadMessage};

/// The body of `POST /v1/threads`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct CreateThreadBody {
    /// A UUID of the caller's choice; made when it is absent. A thread of this id that is there already is the answer.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub(super) id: Option<ThreadId>,
    /// The caller's own labels.
    #[serde(default)]
    pub(super) metadata: BTreeMap<String, String>,
    /// The caller's own document, at most 256 KiB.
    #[serde(default)]
    pub(super) state: Map<String, Value>,
}

/// The body of `PATCH /v1/threads/{id}`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct PatchThreadBody {
    /// Labels in place of all those it had.
    #[serde(default, deserialize_with = "kept")]
    #[schema(nullable = false)]
    pub(super) metadata: Option<BTreeMap<String, String>>,
    /// A document in place of the one it had.
    #[serde(default, deserialize_with = "kept")]
    #[schema(nullable = false)]
    pub(super) state: Option<Map<String, Value>>,
}

/// The body of `POST /v1/threads/{id}/handoff`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct HandOffBody {
    /// Why, for people; at most 2,048 bytes.
    #[serde(default)]
    pub(super) reason: String,
}

/// The body of `POST /v1/threads/{id}/messages`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct MessageBody {
    /// The agent that answers; `GET /v1/agents` lists them.
    agent: String,
    /// A text of the user's, or several messages.
    content: Input,
    /// What happens when a run holds the thread; as the agent says unless given.
    #[serde(default)]
    on_busy: Option<OnBusy>,
    /// How long the message waits for others, 0: not at all; as the agent says unless given.
    #[serde(default)]
    debounce_ms: Option<u64>,
    /// The longest that it waits for others; as the agent says unless given, or ten times `debounce_ms`.
    #[serde(default)]
    debounce_max_ms: Option<u64>,
    /// The agent's own options, checked against its JSON Schema.
    #[serde(default)]
    params: Map<String, Value>,
    /// Higher goes first; -100 to 100.
    #[serde(default)]
    priority: i32,
    /// The run expires if it has not started so long after its creation.
    #[serde(default)]
    ttl_ms: Option<u64>,
    /// Bounds the run's time over all attempts.
    #[serde(default)]
    timeout_ms: Option<u64>,
    /// How many attempts may fail; 1 to 100.
    #[serde(default)]
    max_attempts: Option<u32>,
    /// What the run may use at most, over all attempts; its agent may allow less.
    #[serde(default)]
    budget: Budget,
    /// What happens when the run's last viewer hangs up.
    #[serde(default)]
    on_disconnect: OnDisconnect,
    /// The caller's own labels of the run.
    #[serde(default)]
    metadata: BTreeMap<String, String>,
    /// The answer is the run's event stream itself.
    #[serde(default)]
    pub(super) stream: bool,
}

impl MessageBody {
    /// The message this body says.
    pub(super) fn send(
        self,
        tenant: Tenant,
        thread: ThreadId,
        key: Option<Key>,
        correlation_id: Option<String>,
    ) -> Send {
        let run = CreateRun {
            params: self.params,
            priority: self.priority,
            ttl: self.ttl_ms.map(Duration::from_millis),
            timeout: self.timeout_ms.map(Duration::from_millis),
            max_attempts: self.max_attempts,
            budget: self.budget,
            on_disconnect: self.on_disconnect,
            thread: Some(thread),
            on_busy: self.on_busy,
            metadata: self.metadata,
            key,
            correlation_id,
            ..CreateRun::new(tenant, self.agent, self.content)
        };
        Send {
            run,
            debounce: self.debounce_ms.map(Duration::from_millis),
            debounce_max: self.debounce_max_ms.map(Duration::from_millis),
        }
    }
}

/// What a thread is doing.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum ThreadStatus {
    /// No run holds it.
    Idle,
    /// A run holds it.
    Busy,
    /// People answer, and no run does by itself.
    HandedOff,
}

/// A thread.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ThreadObject<'a> {
    /// A UUID.
    id: String,
    tenant: &'a str,
    status: ThreadStatus,
    /// The run that holds it: queued, running, waiting or backing off.
    holder: Option<String>,
    handed_off: Option<HandedOffObject<'a>>,
    /// The agent speaks again then, unless somebody has spoken before.
    follow_up: Option<FollowUpObject<'a>>,
    metadata: &'a BTreeMap<String, String>,
    #[schema(value_type = Object)]
    state: &'a Map<String, Value>,
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    /// When something was said or done last.
    #[schema(value_type = String, format = DateTime)]
    active_at: Timestamp,
    /// The number of its last message; 0: there is none.
    last_message: u64,
    links: ThreadLinks,
}

/// People have taken over.
#[derive(Debug, Serialize, ToSchema)]
struct HandedOffObject<'a> {
    #[schema(value_type = String, format = DateTime)]
    at: Timestamp,
    reason: &'a str,
    /// The run whose agent did it; absent: a person.
    by: Option<String>,
}

/// A follow-up that is armed.
#[derive(Debug, Serialize, ToSchema)]
struct FollowUpObject<'a> {
    #[schema(value_type = String, format = DateTime)]
    due_at: Timestamp,
    agent: &'a str,
}

/// Where to go from a thread.
#[derive(Debug, Serialize, ToSchema)]
struct ThreadLinks {
    #[serde(rename = "self")]
    this: String,
    messages: String,
    stream: String,
    runs: String,
}

impl<'a> ThreadObject<'a> {
    /// `threads` and `runs` are the paths of the two, as the client sees them.
    pub(super) fn new(thread: &'a Thread, threads: &str, runs: &str) -> Self {
        let id = thread.id;
        let link = |tail: &str| format!("{threads}/{id}{tail}");
        Self {
            id: id.to_string(),
            tenant: thread.tenant.as_str(),
            status: match (&thread.handed_off, thread.holder) {
                (Some(_), _) => ThreadStatus::HandedOff,
                (None, Some(_)) => ThreadStatus::Busy,
                (None, None) => ThreadStatus::Idle,
            },
            holder: thread.holder.map(|run| run.to_string()),
            handed_off: thread.handed_off.as_ref().map(|handed| HandedOffObject {
                at: handed.at,
                reason: &handed.reason,
                by: handed.by.map(|run| run.to_string()),
            }),
            follow_up: thread
                .follow_up
                .as_ref()
                .map(|follow_up| FollowUpObject { due_at: follow_up.timer.due, agent: &follow_up.agent }),
            metadata: &thread.metadata,
            state: &thread.state,
            created_at: thread.created_at,
            active_at: thread.active_at,
            last_message: thread.last_message,
            links: ThreadLinks {
                this: link(""),
                messages: link("/messages"),
                stream: link("/stream"),
                runs: format!("{runs}?thread_id={id}"),
            },
        }
    }
}

/// A page of threads, youngest first.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ThreadPage<'a> {
    pub(super) data: Vec<ThreadObject<'a>>,
    /// Give it as `cursor` to get the next page; absent on the last.
    pub(super) next_cursor: Option<String>,
}

/// A message of a thread.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct MessageObject<'a> {
    /// UUID version 7.
    id: String,
    /// Counts the messages of the thread, from 1.
    seq: u64,
    role: Role,
    content: &'a Content,
    /// The run that was given it, or that said it; absent: people were to answer it.
    run_id: Option<String>,
    #[schema(value_type = String, format = DateTime)]
    at: Timestamp,
}

impl<'a> From<&'a ThreadMessage> for MessageObject<'a> {
    fn from(message: &'a ThreadMessage) -> Self {
        Self {
            id: message.id.to_string(),
            seq: message.seq,
            role: message.message.role,
            content: &message.message.content,
            run_id: message.run.map(|run| run.to_string()),
            at: message.at,
        }
    }
}

/// A page of a thread's messages, oldest first.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct MessagePage<'a> {
    pub(super) data: Vec<MessageObject<'a>>,
    /// Give it as `after` to get what follows.
    pub(super) next_after: u64,
}

/// What became of a message.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct SentObject<'a> {
    /// The message, the first if there were several.
    pub(super) message: MessageObject<'a>,
    /// The run that is given it, as it stands; absent while people have the thread.
    pub(super) run: Option<RunObject<'a>>,
    /// How; absent for a repeated request, whose first answer said it.
    pub(super) how: Option<HowObject>,
}

/// How a run is given a message.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum HowObject {
    /// A run was created.
    Created,
    /// It joined a run that has not started.
    Joined,
    /// It was handed to the run that is going on.
    Steered,
    /// It is kept, and no run is given it: people answer.
    Kept,
}

impl HowObject {
    /// `None` when it was no message.
    pub(super) fn new(how: How) -> Option<Self> {
        match how {
            How::Nothing => None,
            How::Created(_) => Some(Self::Created),
            How::Joined(_) => Some(Self::Joined),
            How::Steered(_) => Some(Self::Steered),
            How::Kept => Some(Self::Kept),
        }
    }
}
