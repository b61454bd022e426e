//! What a conversation is and what may happen to it. PURE: no IO, no clock, no async, and of ours only the
//! types of runs.
//!
//! A [`Thread`] has at most one run that **holds** it: the one that is queued, running, waiting or backing off.
//! Whatever else is to come waits as `scheduled` (for a time, or for the thread), where nobody claims it. All that
//! concerns more than one run of a thread is decided here, from the thread and its open runs as they were found
//! under the thread's lock, and comes out as one [`Change`], which a store writes in the same transaction:
//!
//! - [`Found::admit`]: a message or a run comes in, by the rules of debounce and [`OnBusy`];
//! - [`Found::moved`]: one of its runs has changed, and perhaps ended: the next is promoted, or a follow-up armed;
//! - [`Found::hand_off`] and [`Found::release`]: people take over, and give back.

mod admit;
mod change;
mod follow_up;
pub mod hours;
mod position;
mod state;

#[cfg(test)]
mod tests;

pub use admit::{Ask, Newcomer, Occasion, OnBusy, Quiet, Refusal};
pub use change::{Change, Found, How, Open, Unread};
pub use follow_up::{FollowUp, FollowUpRule, Progress};
pub use position::{MOST_OPEN, NoPosition, Position};
pub use state::{Event, EventKind, HandedOff, Happened, Thread, ThreadMessage};
