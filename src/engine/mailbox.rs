//! The one place that sends to an actor without waiting.

use actix::dev::ToEnvelope;
use actix::{Actor, Addr, Handler, Message};

/// Sends `message` whatever the mailbox holds, and does not mind an actor that is gone.
///
/// For signals that must not be lost while their receiver lives, must not wait, and are bounded by
/// something else: each caller says by what.
pub(crate) fn post<A, M>(to: &Addr<A>, message: M)
where
    A: Actor + Handler<M>,
    A::Context: ToEnvelope<A, M>,
    M: Message + Send + 'static,
    M::Result: Send,
{
    #[expect(clippy::disallowed_methods, reason = "see above")]
    to.do_send(message);
}
