//! What tests of tools stand on.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use serde_json::Map;
use uuid::Uuid;

use super::super::{Push, Sink, Stopped};
use super::*;
use crate::run::{Event, Input, OnDisconnect, RunId, Spec, StepRecord, Tenant, Timestamp};

/// Shows everything to nobody.
struct Nobody;

impl Sink for Nobody {
    fn push(&self, _: Event) -> Push {
        Push::Shown
    }

    fn room(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }

    fn finish_step(&self, _: StepRecord) -> BoxFuture<'_, Result<(), Stopped>> {
        Box::pin(std::future::ready(Ok(())))
    }
}

/// A run's context.
pub(super) fn context() -> RunContext {
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
    RunContext::new(Arc::new(spec), 1, Vec::new(), Arc::new(Nobody))
}

/// Calls `tool` as a model would, with key `key-1`.
pub(super) async fn make(tool: &Declared, arguments: impl ToString) -> Outcome {
    tool.make(&asked(arguments), "key-1", &context()).await.unwrap()
}

/// What a model wants to be called.
pub(super) fn asked(arguments: impl ToString) -> crate::agent::providers::ToolCall {
    crate::agent::providers::ToolCall {
        id: "call-1".to_owned(),
        name: "tool".to_owned(),
        arguments: arguments.to_string(),
    }
}
