//! Follow-ups: what an agent says when the person has gone quiet.

use std::time::Duration;

use super::hours::{Hours, next_within};
use crate::run::{Timer, Timestamp};

/// What an agent declares: after so long a silence it speaks again.
#[derive(Debug, Clone, PartialEq)]
pub struct FollowUpRule {
    /// How long nobody has spoken.
    pub after: Duration,
    /// What the agent is told to do.
    pub instruction: String,
    /// How often in a row, at least 1.
    pub times: u32,
    /// Only within these hours; what is due outside of them waits for their beginning.
    pub hours: Option<Hours>,
}

/// How many follow-ups were sent since a person spoke last.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// The rule that is on, by its place.
    pub rule: u32,
    /// How often it was sent.
    pub sent: u32,
}

/// A follow-up that is armed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FollowUp {
    /// Fires when it is due.
    pub timer: Timer,
    /// The agent that declared it.
    pub agent: String,
}

impl Progress {
    /// The rule that is on and when it is due after a silence that begins at `now`; none when all were sent.
    #[must_use]
    pub fn next<'r>(&self, rules: &'r [FollowUpRule], now: Timestamp) -> Option<(&'r FollowUpRule, Timestamp)> {
        let rule = self.rule(rules)?;
        let due = now.after(rule.after);
        Some((rule, rule.hours.as_ref().map_or(due, |hours| next_within(due, hours))))
    }

    /// The rule that is on.
    #[must_use]
    pub fn rule<'r>(&self, rules: &'r [FollowUpRule]) -> Option<&'r FollowUpRule> {
        rules.get(self.rule as usize)
    }

    /// One more was sent.
    #[must_use]
    pub fn sent(self, rules: &[FollowUpRule]) -> Self {
        match self.rule(rules) {
            Some(rule) if self.sent + 1 < rule.times => Self { sent: self.sent + 1, ..self },
            Some(_) | None => Self { rule: self.rule + 1, sent: 0 },
        }
    }
}
