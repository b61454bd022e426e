//! How long an adapter waits before it tries to reach its server again; one way for all.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(5);

/// Doubles from 0.1 s to 5 s. Each wait is shortened by up to a half at random, so that nodes that
/// lost their server together do not come back together.
#[derive(Debug, Default)]
pub struct Backoff(u32);

impl Backoff {
    /// The next wait.
    #[expect(clippy::should_implement_trait, reason = "it is no iterator: it never ends, and is not looped over")]
    pub fn next(&mut self) -> Duration {
        let full = FIRST.saturating_mul(1 << self.0.min(6)).min(LONGEST);
        self.0 = self.0.saturating_add(1);
        full.mul_f64(0.5 + (random() % 1024) as f64 / 2048.0)
    }
}

/// A number nobody can foresee: the seed that the standard library gives to each new hasher.
#[must_use]
pub fn random() -> u64 {
    RandomState::new().hash_one(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_and_stay_within_their_bounds() {
        let mut backoff = Backoff::default();
        let waits: Vec<Duration> = (0..40).map(|_| backoff.next()).collect();
        assert!(waits[0] >= FIRST / 2 && waits[0] <= FIRST);
        assert!(waits[20..].iter().all(|wait| *wait >= LONGEST / 2 && *wait <= LONGEST));
    }
}
