//! What the tests stand on: a node in a process of its own, a client, a reader of event streams, and the checks of
//! the promise that every test can make.

mod model;
mod node;
mod promise;
mod sse;
mod stack;
mod tool;

use std::time::Duration;

use tokio::time::Instant;

pub(crate) use model::{FakeModel, Script, WRITTEN, Wanted};
pub(crate) use node::{Answer, Finished, Node, Options, database, finished_process, id_of};
pub(crate) use promise::{assert_log, assert_log_so_far, assert_promise, assert_seen, said};
pub(crate) use sse::{Event, Stream, parse};
pub(crate) use stack::{environment as stack_env, is_embedded};
pub(crate) use tool::{FakeTool, Reply};

/// Nothing that a test awaits takes this long on a machine that works.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// Polls `condition` until it gives something, for at most [`DEADLINE`].
pub(crate) async fn eventually<T>(what: &str, mut condition: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(Instant::now() < deadline, "not within {DEADLINE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(4)).await;
    }
}

/// Awaits `future` for at most [`DEADLINE`].
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(DEADLINE, future).await {
        Ok(value) => value,
        Err(_) => panic!("not within {DEADLINE:?}: {what}"),
    }
}
