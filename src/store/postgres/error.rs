//! Errors of PostgreSQL in the words of the contract.

use std::error::Error as _;

use tokio_postgres::error::SqlState;

use crate::store::StoreError;

/// Why something on a connection failed.
#[derive(Debug, Clone)]
pub(super) struct Failure {
    /// In the words of the contract.
    pub(super) error: StoreError,
    /// What has to be done about it.
    pub(super) blame: Blame,
}

/// What failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Blame {
    /// The connection is of no more use, and others may not be either.
    Connection,
    /// The statement: the server has refused it, and another one may fare better.
    Statement,
    /// Neither.
    Other,
}

impl Failure {
    /// The server cannot be reached, or does not answer.
    pub(super) fn away(text: impl Into<String>) -> Self {
        Self { error: StoreError::Unavailable(text.into()), blame: Blame::Connection }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self { error, blame: Blame::Other }
    }
}

impl From<Failure> for StoreError {
    fn from(failure: Failure) -> Self {
        failure.error
    }
}

/// The server's own words, without its `detail`, which quotes what is stored. The driver never puts the
/// password into an error; what a server might repeat of it is taken out where the URL is known.
impl From<tokio_postgres::Error> for Failure {
    fn from(error: tokio_postgres::Error) -> Self {
        let Some(db) = error.as_db_error() else {
            let mut text = error.to_string();
            let mut source = error.source();
            while let Some(cause) = source {
                text.push_str(": ");
                text.push_str(&cause.to_string());
                source = cause.source();
            }
            // A value of another type than was written, or one that cannot be written.
            let local = text.starts_with("error serializing") || text.starts_with("error deserializing");
            if local {
                return Self { error: StoreError::Corrupt(text), blame: Blame::Statement };
            }
            return Self::away(text);
        };
        let (code, text) = (db.code(), format!("{} (code {})", db.message(), db.code().code()));
        let elsewhere = *code == SqlState::READ_ONLY_SQL_TRANSACTION
            || *code == SqlState::INVALID_SQL_STATEMENT_NAME
            || *code == SqlState::FEATURE_NOT_SUPPORTED;
        let class = &code.code()[..2];
        let connection = elsewhere || class == "08" || code.code().starts_with("57P");
        let error = match class {
            _ if *code == SqlState::DISK_FULL => StoreError::Full(text),
            _ if *code == SqlState::READ_ONLY_SQL_TRANSACTION || *code == SqlState::INSUFFICIENT_PRIVILEGE => {
                StoreError::ReadOnly(text)
            }
            // A connection that has forgotten its statements, or whose tables have changed under them.
            _ if elsewhere => StoreError::Unavailable(text),
            // Connections, log-ins, conflicts of transactions, resources, operators; and trouble of its own.
            "08" | "28" | "3D" | "3F" | "25" | "40" | "53" | "54" | "55" | "57" | "58" => StoreError::Unavailable(text),
            _ if *code == SqlState::INTERNAL_ERROR => StoreError::Unavailable(text),
            // Data that is damaged, and what only a bug or a damaged schema can cause.
            _ => StoreError::Corrupt(text),
        };
        Self { error, blame: if connection { Blame::Connection } else { Blame::Statement } }
    }
}
