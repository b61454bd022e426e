//! Queues that belong to others, whose messages are taken in.

use std::fmt;

use async_trait::async_trait;
use bytes::Bytes;

use crate::BrokerError;

/// A queue of a foreign producer. Its name and its format are the producer's own; nothing is prefixed.
///
/// A message is handed out at least once, and stays with the source until [`Message::done`] has removed it: what a
/// process held that has died, or whose connection was lost, is handed out again, to whoever asks. So is, while its
/// holder lives, what is held for longer than the source's lease, if it has one. Several sources of one queue, in one
/// process or many, compete: each message goes to one.
#[async_trait]
pub trait Source: Send {
    /// Waits for the next message. Cancellation safe: no message is lost when the future is dropped. Reconnects
    /// inside; an error is final only when its kind is [`ErrorKind::Closed`](crate::ErrorKind::Closed), after any
    /// other it may be called again, and should not be at once.
    async fn next(&mut self) -> Result<Message, BrokerError>;

    /// Lets go of the queue: what was handed out and not removed can be had by others at once, as far as the server
    /// can be reached. Bounded in time. Messages that are still there can no longer be removed with certainty.
    async fn close(self: Box<Self>);
}

/// A message of a foreign producer. [`done`](Self::done) removes it; dropping it leaves it to be handed out again.
pub struct Message {
    id: Option<String>,
    payload: Bytes,
    remove: Box<dyn Remove>,
}

/// What an adapter implements for [`Message`]. It may be called again after it failed, and is not after it has
/// returned `Ok`. Dropping it without leaves the message to be handed out again.
#[async_trait]
pub trait Remove: Send + Sync {
    /// Removes the message; that it was gone before is no error. A removal that is lost with its connection makes the
    /// message come again. [`ErrorKind::Closed`](crate::ErrorKind::Closed): it has been handed back, and will come again.
    async fn remove(&mut self) -> Result<(), BrokerError>;
}

/// The source did not remove the message, which is handed back with the reason.
#[derive(Debug, thiserror::Error)]
#[error("message was not removed: {error}")]
pub struct NotRemoved {
    /// The message, still there.
    pub message: Message,
    /// Why.
    #[source]
    pub error: BrokerError,
}

impl Message {
    /// Makes a message; for adapters.
    pub fn new(id: Option<String>, payload: Bytes, remove: Box<dyn Remove>) -> Self {
        Self { id, payload, remove }
    }

    /// Its name within the source, the same whenever it is handed out; `None` where the source gives it none.
    #[must_use]
    pub fn id(&self) -> Option<&str> {
        self.id.as_deref()
    }

    /// The message as its producer wrote it.
    #[must_use]
    pub fn payload(&self) -> &Bytes {
        &self.payload
    }

    /// Removes the message from its source.
    pub async fn done(mut self) -> Result<(), Box<NotRemoved>> {
        let removed = self.remove.remove().await;
        removed.map_err(|error| Box::new(NotRemoved { message: self, error }))
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Message").field("id", &self.id).field("bytes", &self.payload.len()).finish_non_exhaustive()
    }
}
