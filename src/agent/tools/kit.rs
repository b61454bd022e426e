//! What tests of tools stand on.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use serde_json::Map;
use uuid::Uuid;

use super::super::{Push, Sink, Stopped};
use super::*;
use crate::run::{Event, Input, OnDisconnect, RunId, Spec, StepRecord, Tenant, Timestamp};

/// Keeps what viewers would see.
#[derive(Default)]
pub(super) struct Seen(Mutex<Vec<Event>>);

impl Seen {
    /// What the tool called `call_id` said while it worked.
    pub(super) fn output(&self) -> String {
        let events = self.0.lock();
        let text = |event: &Event| match event {
            Event::ToolOutput { text, .. } => Some(text.clone() + "\n"),
            _ => None,
        };
        events.iter().filter_map(text).collect()
    }
}

impl Sink for Seen {
    fn push(&self, event: Event) -> Push {
        self.0.lock().push(event);
        Push::Shown
    }

    fn room(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }

    fn finish_step(&self, _: StepRecord) -> BoxFuture<'_, Result<(), Stopped>> {
        Box::pin(std::future::ready(Ok(())))
    }
}

/// A run's context, and what its viewers see.
pub(super) fn context() -> (RunContext, Arc<Seen>) {
    let spec = Spec {
        id: RunId::from_uuid(Uuid::nil()),
        tenant: Tenant::default(),
        agent: "test".to_owned(),
        agent_version: "1".to_owned(),
        input: Input::Text(String::new()),
        params: Map::new(),
        priority: 0,
        ttl_at: None,
        timeout_ms: 1_000,
        max_attempts: 1,
        on_disconnect: OnDisconnect::Continue,
        metadata: BTreeMap::new(),
        thread: None,
        latest_due: None,
        retry_of: None,
        concurrency_key: None,
        webhook: None,
        correlation_id: None,
        created_at: Timestamp::from_millis(0),
    };
    let seen = Arc::new(Seen::default());
    (RunContext::new(Arc::new(spec), 1, Vec::new(), seen.clone()), seen)
}

/// Calls `tool` as a model would, with key `key-1`.
pub(super) async fn make(tool: &Declared, arguments: impl ToString) -> Outcome {
    let (context, _) = context();
    tool.make(&asked(arguments), "key-1", &context).await.unwrap()
}

/// What a model wants to be called.
pub(super) fn asked(arguments: impl ToString) -> crate::agent::providers::ToolCall {
    crate::agent::providers::ToolCall {
        id: "call-1".to_owned(),
        name: "tool".to_owned(),
        arguments: arguments.to_string(),
    }
}
