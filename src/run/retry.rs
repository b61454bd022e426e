//! How long to wait before the next attempt.

use std::time::Duration;

/// Exponential backoff with jitter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// The wait after the first failure, before jitter.
    pub base: Duration,
    /// The longest wait, before jitter.
    pub max: Duration,
}

impl Backoff {
    /// However long a provider asks to wait, not longer than this.
    pub const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(3600);

    /// The wait after `failures` failures (counted from 1): `base * 2^(failures-1)`, at most `max`, of
    /// which `jitter` (0 to 1) picks a point in the upper half ("equal jitter": spreads a herd, and
    /// never comes back at once). `retry_after`, what the provider asked for, is a lower bound.
    #[must_use]
    pub fn delay(&self, failures: u32, jitter: f64, retry_after: Option<Duration>) -> Duration {
        let doublings = failures.saturating_sub(1).min(31);
        let full = self.base.saturating_mul(1 << doublings).min(self.max);
        let waited = full.mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0);
        waited.max(retry_after.unwrap_or_default().min(Self::LONGEST_RETRY_AFTER))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BACKOFF: Backoff = Backoff { base: Duration::from_secs(1), max: Duration::from_secs(60) };

    #[test]
    fn the_wait_doubles_up_to_its_bound_and_stays_in_the_upper_half() {
        for (failures, full) in [(1, 1), (2, 2), (3, 4), (6, 32), (7, 60), (1000, 60)] {
            assert_eq!(BACKOFF.delay(failures, 1.0, None), Duration::from_secs(full));
            assert_eq!(BACKOFF.delay(failures, 0.0, None), Duration::from_secs(full) / 2);
        }
    }

    #[test]
    fn a_retry_after_is_honoured_within_reason() {
        assert_eq!(BACKOFF.delay(1, 0.5, Some(Duration::from_secs(7))), Duration::from_secs(7));
        assert_eq!(BACKOFF.delay(1, 0.5, Some(Duration::from_secs(1 << 40))), Backoff::LONGEST_RETRY_AFTER);
    }
}
