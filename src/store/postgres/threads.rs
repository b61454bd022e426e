//! Threads, their messages and their logs.

use std::collections::BTreeMap;

use async_trait::async_trait;

use super::PostgresStore;
use crate::run::{Message, RunId, Tenant, ThreadId, Timestamp};
use crate::store::{
    Admission, Admitted, Conversation, HandOff, Moved, NewThread, Patch, StoreError, ThreadCreated, ThreadDeleted,
    ThreadStore,
};
use crate::thread::{Event, Thread, ThreadMessage};

fn missing<T>() -> Result<T, StoreError> {
    Err(StoreError::Misconfigured("threads need a store that keeps them".to_owned()))
}

#[async_trait]
impl ThreadStore for PostgresStore {
    async fn create_thread(&self, _: NewThread) -> Result<ThreadCreated, StoreError> {
        missing()
    }

    async fn thread(&self, _: Option<&Tenant>, _: ThreadId) -> Result<Option<Thread>, StoreError> {
        missing()
    }

    async fn threads(
        &self,
        _: &Tenant,
        _: Option<ThreadId>,
        _: &BTreeMap<String, String>,
        _: usize,
    ) -> Result<Vec<Thread>, StoreError> {
        missing()
    }

    async fn patch_thread(&self, _: &Tenant, _: ThreadId, _: Patch) -> Result<Option<Thread>, StoreError> {
        missing()
    }

    async fn delete_thread(&self, _: &Tenant, _: ThreadId) -> Result<ThreadDeleted, StoreError> {
        missing()
    }

    async fn delete_idle_threads(&self, _: Timestamp, _: usize) -> Result<Vec<ThreadId>, StoreError> {
        missing()
    }

    async fn admit(&self, _: Admission) -> Result<Admitted, StoreError> {
        missing()
    }

    async fn hand_off(&self, _: HandOff) -> Result<Option<Moved>, StoreError> {
        missing()
    }

    async fn release_thread(&self, _: &Tenant, _: ThreadId, _: Timestamp) -> Result<Option<Moved>, StoreError> {
        missing()
    }

    async fn messages(&self, _: ThreadId, _: u64, _: usize) -> Result<Vec<ThreadMessage>, StoreError> {
        missing()
    }

    async fn conversation(&self, _: RunId, _: usize, _: usize) -> Result<Conversation, StoreError> {
        missing()
    }

    async fn take_steers(&self, _: RunId, _: u32, _: u32) -> Result<Vec<Message>, StoreError> {
        missing()
    }

    async fn thread_log(&self, _: ThreadId, _: u64, _: usize) -> Result<Vec<Event>, StoreError> {
        missing()
    }
}
