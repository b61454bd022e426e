//! Why a store call failed.

/// Why a store call failed. Nothing of the call was written; but of a store at the other end of a network it may be
/// that it was, and that only the answer got lost ([`Unavailable`](Self::Unavailable)).
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The store is busy or away; the same call may succeed later.
    #[error("the store is not available: {0}")]
    Unavailable(String),
    /// There is no room left to write to.
    #[error("the store has no room left: {0}")]
    Full(String),
    /// The store cannot be written to.
    #[error("the store is read-only: {0}")]
    ReadOnly(String),
    /// What is stored does not make sense.
    #[error("the store is damaged: {0}")]
    Corrupt(String),
    /// The data belongs to another version of Runcast, or to another program.
    #[error("{0}")]
    Foreign(String),
    /// What the store was told makes no sense: a URL, a certificate file.
    #[error("{0}")]
    Misconfigured(String),
    /// Another process uses the data.
    #[error("{0}")]
    InUse(String),
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
}

impl StoreError {
    /// The same call may succeed later without anyone changing the set-up.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unavailable(_) | Self::Full(_) | Self::ReadOnly(_) => true,
            Self::Corrupt(_) | Self::Foreign(_) | Self::Misconfigured(_) | Self::InUse(_) | Self::Closed => false,
        }
    }
}
