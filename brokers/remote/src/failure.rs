use std::sync::Arc;

use runcast_broker::{BrokerError, ErrorKind};

/// A [`BrokerError`] that can be handed to several callers. Its text names no secret: whoever makes one sees to that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What kind of error.
    pub kind: ErrorKind,
    /// What to tell people.
    pub text: Arc<str>,
}

impl Failure {
    /// Something that may pass.
    #[must_use]
    pub fn transient(text: &str) -> Self {
        Self { kind: ErrorKind::Transient, text: text.into() }
    }

    /// Something that only people can mend.
    #[must_use]
    pub fn misconfigured(text: &str) -> Self {
        Self { kind: ErrorKind::Misconfigured, text: text.into() }
    }

    /// The broker was closed.
    #[must_use]
    pub fn closed() -> Self {
        Self { kind: ErrorKind::Closed, text: "the broker is closed".into() }
    }
}

impl From<Failure> for BrokerError {
    fn from(failure: Failure) -> Self {
        Self::new(failure.kind, &*failure.text)
    }
}
