//! When a delivery is tried again.

use std::time::Duration;

/// The waits between the attempts, in seconds: soon at first, for receivers that were just restarted, then for the
/// length of a working day and a night. The last one holds for all further ones.
const WAITS: [u64; 9] = [5, 60, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000];

/// How long to wait after `attempts` failed ones, at least 1. `jitter`, from 0 to 1, makes it up to a tenth longer, so
/// that what failed together does not come back together.
#[must_use]
pub fn delay(attempts: u32, jitter: f64) -> Duration {
    let index = usize::try_from(attempts.saturating_sub(1)).unwrap_or(usize::MAX).min(WAITS.len() - 1);
    Duration::from_secs(WAITS[index]).mul_f64(1.0 + jitter.clamp(0.0, 1.0) / 10.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_up_to_the_longest_and_jitter_makes_them_longer() {
        let waits: Vec<u64> = (1..=10).map(|attempts| delay(attempts, 0.0).as_secs()).collect();
        assert_eq!(waits, [5, 60, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 72_000]);
        assert!(waits.is_sorted());
        assert_eq!(delay(0, 0.0), delay(1, 0.0));
        assert_eq!(delay(u32::MAX, 0.0), delay(10, 0.0));
        assert_eq!(delay(1, 1.0), Duration::from_millis(5_500));
        assert_eq!(delay(1, 9.0), delay(1, 1.0), "cut off");
        assert_eq!(delay(1, f64::NAN.max(0.0)), delay(1, 0.0));
    }
}
