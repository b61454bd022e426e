//! Driver errors as broker errors.

use std::error::Error;
use std::io;
use std::sync::Arc;

use redis::{ErrorKind as Driver, RedisError, ServerErrorKind};
use runcast_broker::ErrorKind;
use runcast_broker_remote::Failure;

use crate::options::RedisUrl;

/// The driver's own error is not kept as a source: its text might hold the password.
pub(crate) fn failure(error: &RedisError, url: &RedisUrl) -> Failure {
    Failure { kind: kind(error), text: url.scrub(format!("redis: {error}")).into() }
}

/// Whether the connection that gave this error is of no more use.
pub(crate) fn breaks_connection(error: &RedisError) -> bool {
    let demoted = error.kind() == Driver::Server(ServerErrorKind::ReadOnly);
    error.is_io_error() || error.is_unrecoverable_error() || demoted
}

fn kind(error: &RedisError) -> ErrorKind {
    #[expect(clippy::wildcard_enum_match_arm, reason = "the driver's enum is not exhaustive")]
    match error.kind() {
        Driver::Io if is_tls(error) => ErrorKind::Misconfigured,
        Driver::Io | Driver::Parse | Driver::Client => ErrorKind::Transient,
        Driver::Server(
            ServerErrorKind::BusyLoading
            | ServerErrorKind::TryAgain
            | ServerErrorKind::ClusterDown
            | ServerErrorKind::MasterDown
            | ServerErrorKind::ReadOnly
            | ServerErrorKind::ExecAbort
            | ServerErrorKind::NoScript,
        ) => ErrorKind::Transient,
        // out of memory; cannot write to its disk; a script runs too long; too few replicas
        Driver::Extension if matches!(error.code(), Some("OOM" | "MISCONF" | "BUSY" | "NOREPLICAS")) => {
            ErrorKind::Transient
        }
        // credentials, permissions, a key of another type, a server that lacks a command, a cluster
        // node that the keys do not belong to
        _ => ErrorKind::Misconfigured,
    }
}

/// A certificate was refused by one side or the other. The driver hides the cause behind an `Arc`.
fn is_tls(error: &RedisError) -> bool {
    error
        .source()
        .and_then(|source| source.downcast_ref::<Arc<dyn Error + Send + Sync>>())
        .and_then(|shared| shared.downcast_ref::<io::Error>())
        .and_then(io::Error::get_ref)
        .is_some_and(|inner| inner.is::<rustls::Error>())
}
