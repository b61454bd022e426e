//! Driver errors as broker errors.

use lapin::protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError};
use runcast_broker::ErrorKind;
use runcast_broker_remote::Failure;

use crate::options::AmqpUrl;

/// The driver's own error is not kept as a source: its text might hold the password.
pub(crate) fn failure(error: &lapin::Error, url: &AmqpUrl) -> Failure {
    Failure { kind: kind(error), text: url.scrub(format!("rabbitmq: {error}")).into() }
}

fn kind(error: &lapin::Error) -> ErrorKind {
    #[expect(clippy::wildcard_enum_match_arm, reason = "the driver's enum is not exhaustive")]
    match error.kind() {
        // a certificate was refused by one side or the other
        lapin::ErrorKind::IOError(error) if error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>()) => {
            ErrorKind::Misconfigured
        }
        lapin::ErrorKind::ProtocolError(error) => match error.kind() {
            // credentials or permissions
            AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED) => ErrorKind::Misconfigured,
            // one code for a queue that was declared with other properties, and for what heals with the
            // channel, such as an acknowledgement that took too long
            AMQPErrorKind::Soft(AMQPSoftError::PRECONDITIONFAILED)
                if error.get_message().as_str().contains("inequivalent arg") =>
            {
                ErrorKind::Misconfigured
            }
            // a virtual host that is not there, or not for this user; a server that lacks a method
            AMQPErrorKind::Hard(
                AMQPHardError::NOTALLOWED | AMQPHardError::INVALIDPATH | AMQPHardError::NOTIMPLEMENTED,
            ) => ErrorKind::Misconfigured,
            AMQPErrorKind::Soft(_) | AMQPErrorKind::Hard(_) => ErrorKind::Transient,
        },
        lapin::ErrorKind::InvalidProtocolVersion(_) | lapin::ErrorKind::AuthProviderError(_) => {
            ErrorKind::Misconfigured
        }
        _ => ErrorKind::Transient,
    }
}
