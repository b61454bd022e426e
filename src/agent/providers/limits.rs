//! What a provider bears: so many calls at once, so many a minute, and none for as long as it asks to be left alone.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::{StreamExt, stream};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::{Chat, Pieces, Provider};
use crate::agent::AgentError;

/// The longest that a provider is left alone, whatever it asks for: what it says may be wrong, and the attempts of
/// the runs have waits of their own.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// When to come again if all calls are taken, and nobody knows when one ends.
const WHEN_BUSY: Duration = Duration::from_secs(1);

const MINUTE: Duration = Duration::from_secs(60);

/// The bounds of a [`Limited`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The most calls at once, each from its request to the end of its answer.
    pub max_concurrent: Option<usize>,
    /// The most requests within any minute.
    pub requests_per_minute: Option<usize>,
    /// The longest that a call waits for its turn.
    pub longest_wait: Duration,
}

/// A provider whose calls wait for their turn, in the order in which they came, on this node. A call that is dropped
/// gives up its place, or its part of the bounds, at once. One that would wait too long fails, in a way that may pass.
///
/// When the provider asks to be left alone (`retry-after`), no call is made until then.
pub struct Limited {
    inner: Arc<dyn Provider>,
    limits: Limits,
    /// The calls that may be under way. Fair.
    calls: Option<Arc<Semaphore>>,
    /// Whose turn it is. Fair.
    turn: tokio::sync::Mutex<()>,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// The requests of the last minute, oldest first.
    requests: VecDeque<Instant>,
    paused_until: Option<Instant>,
}

impl Limited {
    /// `inner` within `limits`.
    pub fn new(inner: Arc<dyn Provider>, limits: Limits) -> Self {
        let calls = limits.max_concurrent.map(|most| Arc::new(Semaphore::new(most)));
        Self { inner, limits, calls, turn: tokio::sync::Mutex::default(), state: Arc::default() }
    }

    /// Waits for the turn of a call. Cancellation safe: whoever stops waiting has taken nothing.
    async fn admit(&self) -> Result<Option<OwnedSemaphorePermit>, AgentError> {
        let deadline = Instant::now() + self.limits.longest_wait;
        let permit = match &self.calls {
            Some(calls) => match timeout_at(deadline, Arc::clone(calls).acquire_owned()).await {
                Ok(permit) => permit.ok(),
                Err(_) => return Err(self.busy("all its max_concurrent calls are taken", WHEN_BUSY)),
            },
            None => None,
        };
        let Ok(_turn) = timeout_at(deadline, self.turn.lock()).await else {
            let until = self.state.lock().due(self.limits.requests_per_minute).unwrap_or_else(Instant::now);
            return Err(self.busy("others wait before", until.saturating_duration_since(Instant::now()).max(WHEN_BUSY)));
        };
        loop {
            let due = self.state.lock().admit(self.limits.requests_per_minute);
            let Some((due, why)) = due else { return Ok(permit) };
            if due > deadline {
                return Err(self.busy(why, due.saturating_duration_since(Instant::now())));
            }
            sleep_until(due).await;
        }
    }

    fn busy(&self, why: &str, retry_after: Duration) -> AgentError {
        AgentError::Transient {
            code: "provider_busy".to_owned(),
            message: format!("provider {} takes no call: {why}", self.inner.name()),
            retry_after: Some(retry_after),
        }
    }
}

impl State {
    /// When the next request may be made, if that is not now, and why.
    fn next(&mut self, per_minute: Option<usize>) -> Option<(Instant, &'static str)> {
        let now = Instant::now();
        while self.requests.front().is_some_and(|request| *request + MINUTE <= now) {
            self.requests.pop_front();
        }
        self.paused_until = self.paused_until.filter(|until| *until > now);
        let full = per_minute.filter(|most| self.requests.len() >= *most).and(self.requests.front());
        let full = full.map(|first| (*first + MINUTE, "its requests_per_minute are used up"));
        let paused = self.paused_until.map(|until| (until, "it asked to be left alone"));
        full.max(paused)
    }

    fn due(&mut self, per_minute: Option<usize>) -> Option<Instant> {
        self.next(per_minute).map(|(due, _)| due)
    }

    /// Counts a request, unless it may not be made yet.
    fn admit(&mut self, per_minute: Option<usize>) -> Option<(Instant, &'static str)> {
        let wait = self.next(per_minute);
        if wait.is_none() && per_minute.is_some() {
            self.requests.push_back(Instant::now());
        }
        wait
    }

    /// Heeds what an error asks for. A later moment that was asked for before stays.
    fn heed(&mut self, error: &AgentError) {
        if let AgentError::Transient { retry_after: Some(wait), .. } = error {
            let until = Instant::now() + (*wait).min(LONGEST_PAUSE);
            self.paused_until = self.paused_until.max(Some(until));
        }
    }
}

#[async_trait]
impl Provider for Limited {
    fn name(&self) -> &str {
        self.inner.name()
    }

    async fn chat(&self, chat: Chat) -> Result<Pieces, AgentError> {
        let permit = self.admit().await?;
        let pieces = self.inner.chat(chat).await.inspect_err(|error| self.state.lock().heed(error))?;
        let state = Arc::clone(&self.state);
        // The permit goes with the pieces: when they end, fail, or are dropped.
        let pieces = stream::unfold(Some((pieces, permit)), move |held| {
            let state = Arc::clone(&state);
            async move {
                let (mut pieces, permit) = held?;
                match pieces.next().await? {
                    Ok(piece) => Some((Ok(piece), Some((pieces, permit)))),
                    Err(error) => {
                        state.lock().heed(&error);
                        Some((Err(error), None))
                    }
                }
            }
        });
        Ok(pieces.boxed())
    }
}

#[cfg(test)]
#[path = "limits_tests.rs"]
mod tests;
