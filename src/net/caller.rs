//! The clients of a guard, and words for what went wrong that show no address, no user and no query.

use std::sync::OnceLock;
use std::time::Duration;

use reqwest::{Method, RequestBuilder, Response};

use super::guard::{Guard, Refused};

/// Calls URLs, to where its guard lets it go. Follows no redirect, uses no proxy.
#[derive(Debug)]
pub struct Caller {
    guard: Guard,
    connect_timeout: Duration,
    /// Made when it is first needed: the certificates of the machine may be missing, and nobody may care.
    https: OnceLock<reqwest::Client>,
    http: OnceLock<reqwest::Client>,
}

/// Why a call has no answer. The text names no address, no user and no query.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The URL must not be called.
    #[error("{0}")]
    Refused(Refused),
    /// It could not be connected to, or the connection broke.
    #[error("{0}")]
    Broken(String),
}

impl Caller {
    /// A caller that takes at most `connect_timeout` to connect.
    #[must_use]
    pub fn new(guard: Guard, connect_timeout: Duration) -> Self {
        Self { guard, connect_timeout, https: OnceLock::new(), http: OnceLock::new() }
    }

    /// What decides where calls may go.
    #[must_use]
    pub fn guard(&self) -> &Guard {
        &self.guard
    }

    /// A request to `url`, unless it is refused already. To be sent with [`send`](Self::send).
    ///
    /// # Errors
    /// The URL must not be called, or the machine's CA certificates cannot be loaded.
    pub fn request(&self, method: Method, url: &str) -> Result<RequestBuilder, CallError> {
        let url = self.guard.check(url).map_err(CallError::Refused)?;
        let client = self.client(url.scheme() == "http")?;
        Ok(client.request(method, url))
    }

    /// The client for URLs that the guard has passed, `plain` for those of `http`.
    ///
    /// # Errors
    /// The machine's CA certificates cannot be loaded.
    pub fn client(&self, plain: bool) -> Result<&reqwest::Client, CallError> {
        let slot = if plain { &self.http } else { &self.https };
        if let Some(client) = slot.get() {
            return Ok(client);
        }
        let made = self.guard.client(plain, self.connect_timeout).map_err(|error| CallError::of(&error))?;
        Ok(slot.get_or_init(|| made))
    }

    /// Sends a request; the answer as soon as it begins, whatever its status. Dropping the call closes its connection;
    /// it may have arrived all the same.
    ///
    /// # Errors
    /// There is no answer; it may have arrived all the same.
    pub async fn send(request: RequestBuilder) -> Result<Response, CallError> {
        request.send().await.map_err(|error| CallError::of(&error))
    }
}

impl CallError {
    /// What the error of a guard's client comes to.
    pub(crate) fn of(error: &reqwest::Error) -> Self {
        let refused = causes(error).find_map(|cause| cause.downcast_ref::<Refused>().cloned());
        refused.map_or_else(|| Self::Broken(said(error)), Self::Refused)
    }
}

fn causes<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error), |error| error.source())
}

/// The innermost cause. The outer ones repeat the URL, and the names of libraries.
fn said(error: &reqwest::Error) -> String {
    if error.is_connect() && causes(error).any(|cause| cause.to_string().contains("dns error")) {
        return "the host has no address".to_owned();
    }
    causes(error).last().map_or_else(|| "the connection broke".to_owned(), ToString::to_string)
}
