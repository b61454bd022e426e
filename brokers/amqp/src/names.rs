//! The names of queues and exchanges, and how long messages that were returned with a delay wait.

use std::time::Duration;

use lapin::types::ShortString;
use runcast_broker::Name;

/// Prefixes with the namespace. The kind stands before the name, so that none can be another's.
#[derive(Debug, Clone)]
pub(crate) struct Names(String);

impl Names {
    pub(crate) fn new(namespace: &Name) -> Self {
        Self(namespace.to_string())
    }

    /// The exchange of announcements.
    pub(crate) fn topics(&self) -> ShortString {
        format!("{}.topics", self.0).into()
    }

    /// The exchange on which processes speak to each other.
    pub(crate) fn nodes(&self) -> ShortString {
        format!("{}.nodes", self.0).into()
    }

    pub(crate) fn queue(&self, queue: &Name) -> ShortString {
        format!("{}.queue.{queue}", self.0).into()
    }

    pub(crate) fn dead(&self, queue: &Name) -> ShortString {
        format!("{}.dead.{queue}", self.0).into()
    }

    pub(crate) fn delayed(&self, queue: &Name, delay: Delay) -> ShortString {
        format!("{}.delayed.{queue}.{}", self.0, delay.0).into()
    }

    /// The queue of one connection.
    pub(crate) fn node(&self, consumer: &str, random: u64) -> ShortString {
        format!("{}.node.{consumer}.{random:016x}", self.0).into()
    }
}

/// One of the few delays that messages wait for, each in a queue of its own: a queue lets its
/// messages go in the order they came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Delay(pub(crate) u64);

impl Delay {
    /// The shortest that is not below `after`; it is at most a third longer.
    pub(crate) fn at_least(after: Duration) -> Self {
        const STEPS: [u64; 10] = [10, 12, 15, 20, 25, 30, 40, 50, 60, 80];
        let ms = after.as_nanos().div_ceil(1_000_000);
        let mut power = 1;
        while power < Self::LONGEST / 10 {
            if let Some(step) = STEPS.iter().find(|step| u128::from(*step * power) >= ms) {
                return Self((step * power).min(Self::LONGEST));
            }
            power *= 10;
        }
        Self(Self::LONGEST)
    }

    /// Some 46 days. The server counts in 32 bits, and keeps the queue for [`MARGIN`](Self::MARGIN)
    /// longer.
    const LONGEST: u64 = 4_000_000_000;

    /// For how long after the last declaration and the delay itself the queue is kept.
    pub(crate) const MARGIN: Duration = Duration::from_secs(600);

    pub(crate) fn duration(self) -> Duration {
        Duration::from_millis(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_are_never_shorter_than_asked_for_and_few() {
        let mut delays = std::collections::HashSet::new();
        let mut after = Duration::from_nanos(1);
        while after < Duration::from_secs(40 * 86_400) {
            let delay = Delay::at_least(after).duration();
            assert!(delay >= after, "{after:?} became {delay:?}");
            assert!(delay < after * 4 / 3 + Duration::from_millis(11), "{after:?} became {delay:?}");
            delays.insert(delay);
            after = after * 101 / 100 + Duration::from_nanos(1);
        }
        assert!(delays.len() < 100, "{}", delays.len());
        assert_eq!(Delay::at_least(Duration::from_secs(1)).0, 1000);
        assert_eq!(Delay::at_least(Duration::MAX).0, Delay::LONGEST);
    }

    #[test]
    fn the_longest_names_are_within_what_the_server_takes() {
        let names = Names::new(&Name::new("n".repeat(crate::AmqpOptions::MAX_NAMESPACE)).unwrap());
        let queue = Name::new("q".repeat(Name::MAX_BYTES)).unwrap();
        assert!(names.delayed(&queue, Delay::at_least(Duration::MAX)).as_str().len() <= 255);
        assert!(names.node(queue.as_str(), u64::MAX).as_str().len() <= 255);
    }
}
