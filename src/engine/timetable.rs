//! What is to fire, in the order of its time: the ordered structure of the timers actor.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::run::Timestamp;
use crate::store::TimerKey;

/// Timers in the order in which they are fired here. About 100 bytes each.
#[derive(Debug, Default)]
pub struct Timetable {
    ordered: BTreeSet<(Timestamp, TimerKey)>,
}

impl Timetable {
    /// How much later a timer is fired that another node may have armed.
    pub const COURTESY: Duration = Duration::from_millis(500);

    /// Fires `timer` when it is due, also if it was to be fired a little later. Returns whether it is the first now.
    pub fn arm(&mut self, timer: TimerKey) -> bool {
        self.ordered.remove(&(timer.due.after(Self::COURTESY), timer));
        self.ordered.insert((timer.due, timer));
        self.ordered.first() == Some(&(timer.due, timer))
    }

    /// Fires `timer`, which was found in the store, `courtesy` after it is due, unless it is known already.
    pub fn learn(&mut self, timer: TimerKey, courtesy: Duration) {
        if !self.ordered.contains(&(timer.due, timer)) {
            self.ordered.insert((timer.due.after(courtesy), timer));
        }
    }

    /// Does not fire `timer`.
    pub fn disarm(&mut self, timer: TimerKey) {
        self.ordered.remove(&(timer.due, timer));
        self.ordered.remove(&(timer.due.after(Self::COURTESY), timer));
    }

    /// Takes out up to `most` timers that are to be fired until `now`, in order.
    pub fn take_due(&mut self, now: Timestamp, most: usize) -> Vec<TimerKey> {
        let mut due = Vec::new();
        while due.len() < most
            && let Some((at, timer)) = self.ordered.first().copied()
            && at <= now
        {
            self.ordered.pop_first();
            due.push(timer);
        }
        due
    }

    /// When the first is to be fired.
    #[must_use]
    pub fn first(&self) -> Option<Timestamp> {
        self.ordered.first().map(|(at, _)| *at)
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ordered.len()
    }

    /// There are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ordered.is_empty()
    }
}
