//! Time zones by their IANA names.

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::{AmbiguousOffset, TimeZone};

/// The time zone called `name` in the IANA database: the machine's, or, where it has none, the one that is part
/// of the program. Fixed offsets and POSIX descriptions are no names.
#[must_use]
pub fn named(name: &str) -> Option<TimeZone> {
    TimeZone::get(name).ok()
}

/// The first instant whose local time is `time` or, where a gap skips it, the first one after the gap. Later times
/// never have earlier instants. None at the ends of the calendar.
#[must_use]
pub fn first_instant(zone: &TimeZone, time: DateTime) -> Option<Timestamp> {
    match zone.to_ambiguous_timestamp(time).offset() {
        AmbiguousOffset::Unambiguous { offset } | AmbiguousOffset::Fold { before: offset, .. } => {
            offset.to_timestamp(time).ok()
        }
        AmbiguousOffset::Gap { before, .. } => {
            // By the offset before it, the time lies behind the turn, by less than the gap is long.
            let behind = before.to_timestamp(time).ok()?.as_second();
            let behind = Timestamp::from_second(behind + 1).ok()?;
            zone.preceding(behind).find(|turn| turn.offset() != before).map(|turn| turn.timestamp())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zones_go_by_their_names_and_are_there_without_the_machine() {
        for name in ["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu"] {
            assert!(named(name).is_some(), "{name}");
            assert!(jiff::tz::TimeZoneDatabase::bundled().get(name).is_ok(), "{name} is in the program");
        }
        for name in ["", "Berlin", "+02:00", "CET-1CEST,M3.5.0,M10.5.0/3", "Europe/Berlin ", "../etc/passwd"] {
            assert!(named(name).is_none(), "{name}");
        }
    }
}
