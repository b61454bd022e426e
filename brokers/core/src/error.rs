//! Broker errors: a closed kind to match on, a source to read.

use std::error::Error;

/// What a caller can do about a [`BrokerError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// Try again later: the broker is away, busy or restarting.
    Transient,
    /// This call will never succeed (for example a message over the size bound).
    Permanent,
    /// The configuration or the broker's set-up is wrong (credentials, permissions, a queue declared
    /// with other properties). A person has to act.
    Misconfigured,
    /// [`Broker::close`](crate::Broker::close) was called, or the consumer that a delivery came from
    /// is gone.
    Closed,
}

/// Why a broker call failed. The text never contains credentials.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct BrokerError {
    kind: ErrorKind,
    message: String,
    #[source]
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl BrokerError {
    /// An error of `kind` that says `message`, which must not contain credentials.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None }
    }

    /// Adds what caused it. Its text must not contain credentials either.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The error after [`Broker::close`](crate::Broker::close).
    #[must_use]
    pub fn closed() -> Self {
        Self::new(ErrorKind::Closed, "the broker is closed")
    }

    /// What the caller can do about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}
