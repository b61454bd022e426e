//! Points in wall-clock time.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A point in wall-clock time, in milliseconds since the Unix epoch. Written and read as RFC 3339 in
/// UTC with milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

impl Timestamp {
    /// The latest time that can be written: the end of the year 9998.
    pub const MAX: Self = Self(253_370_764_799_999);

    /// From milliseconds since the Unix epoch, cut off at the epoch and at [`MAX`](Self::MAX).
    #[must_use]
    pub fn from_millis(millis: i64) -> Self {
        Self(millis.clamp(0, Self::MAX.0))
    }

    /// Milliseconds since the Unix epoch.
    #[must_use]
    pub fn as_millis(self) -> i64 {
        self.0
    }

    /// This time plus `duration`, at most [`MAX`](Self::MAX).
    #[must_use]
    pub fn after(self, duration: Duration) -> Self {
        Self::from_millis(self.0.saturating_add(i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)))
    }

    /// How long from `earlier` to this time; zero if it lies before.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(u64::try_from(self.0 - earlier.0).unwrap_or(0))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_millisecond(self.0) {
            Ok(time) => write!(f, "{time:.3}"),
            Err(_) => write!(f, "{}", self.0),
        }
    }
}

impl std::str::FromStr for Timestamp {
    type Err = jiff::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.parse::<jiff::Timestamp>() {
            Ok(time) => Ok(Self::from_millis(time.as_millisecond())),
            // RFC 3339 goes a little further.
            Err(_) if is_of_the_last_year(text) => Ok(Self::MAX),
            Err(error) => Err(error),
        }
    }
}

/// Whether the text is a time of the year 9999.
fn is_of_the_last_year(text: &str) -> bool {
    let pieces = jiff::fmt::temporal::Pieces::parse(text);
    pieces.is_ok_and(|time| time.date().year() == 9999 && time.time().is_some() && time.offset().is_some())
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(|_| {
            de::Error::custom(format_args!("invalid time {text:?}, expected RFC 3339 such as 2026-01-31T09:30:00Z"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_in_utc_with_milliseconds() {
        assert_eq!(Timestamp::from_millis(1_700_000_000_007).to_string(), "2023-11-14T22:13:20.007Z");
        assert_eq!("2023-11-14T23:13:20.007+01:00".parse::<Timestamp>().unwrap().as_millis(), 1_700_000_000_007);
        assert_eq!(Timestamp::MAX.to_string(), "9998-12-31T23:59:59.999Z");
        for last in ["9999-12-31T23:59:59Z", "9999-12-31T23:59:59.999-12:00", "9999-01-01T00:00:00Z"] {
            assert_eq!(last.parse::<Timestamp>().unwrap(), Timestamp::MAX, "{last}");
        }
        for none in ["9999-12-31", "9999-12-31T23:59:59", "9999-13-31T23:59:59Z"] {
            assert!(none.parse::<Timestamp>().is_err(), "{none}");
        }
    }
}
