//! A value behind a lock that can be closed for good.

use parking_lot::Mutex;
use runcast_broker::BrokerError;

/// Guards a `T` until it is closed. The lock is held for the length of one closure and never across
/// an await; wakers run outside it.
pub(crate) struct Closable<T>(Mutex<Option<T>>);

impl<T> Closable<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(Mutex::new(Some(value)))
    }

    /// Runs `with` on the value, or fails with `Closed`.
    pub(crate) fn open<R>(&self, with: impl FnOnce(&mut T) -> R) -> Result<R, BrokerError> {
        self.0.lock().as_mut().map(with).ok_or_else(BrokerError::closed)
    }

    /// Closes and hands out the value; `None` when that happened before.
    pub(crate) fn close(&self) -> Option<T> {
        self.0.lock().take()
    }
}
