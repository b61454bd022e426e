//! Hours within which something may happen, such as those in which a person may be written to. PURE.

use std::fmt;

use jiff::civil::{Date, DateTime, Time, Weekday};
use jiff::tz::TimeZone;

use crate::run::Timestamp;
use crate::schedule::zone;

/// How many days ahead hours are looked for: each weekday twice, as a day may be missing from a calendar.
const DAYS: i64 = 14;

/// Hours of the day in a time zone. They begin at `from`, which is within, and end at `to`, which is not; they go
/// over midnight if `to` is not later, and the whole day round if it is the same.
#[derive(Debug, Clone, PartialEq)]
pub struct Hours {
    /// When they begin.
    pub from: Time,
    /// When they end.
    pub to: Time,
    /// The days on which they begin; none: on every day.
    pub weekdays: Option<Vec<Weekday>>,
    /// Where.
    pub zone: TimeZone,
}

/// Why there are no hours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InvalidHours {
    /// The text is no hours.
    Hours(String),
    /// There is no time zone of that name.
    Zone(String),
}

impl fmt::Display for InvalidHours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hours(text) => write!(f, "expected hours such as \"09:00-18:00\", got {text:?}"),
            Self::Zone(name) => write!(f, "expected an IANA time zone such as \"Europe/Berlin\", got {name:?}"),
        }
    }
}

impl std::error::Error for InvalidHours {}

impl Hours {
    /// Reads `09:00-18:00` in the zone called `zone`, for every day. `24:00` is an end, too.
    pub fn parse(hours: &str, zone: &str) -> Result<Self, InvalidHours> {
        let invalid = || InvalidHours::Hours(hours.chars().take(64).collect());
        let (from, to) = hours.split_once('-').ok_or_else(invalid)?;
        let to = if to.trim() == "24:00" { "00:00" } else { to };
        let (from, to) = (time(from).ok_or_else(invalid)?, time(to).ok_or_else(invalid)?);
        let zone = zone::named(zone).ok_or_else(|| InvalidHours::Zone(zone.chars().take(64).collect()))?;
        Ok(Self { from, to, weekdays: None, zone })
    }

    /// Those that begin on these days only.
    #[must_use]
    pub fn on(self, weekdays: Vec<Weekday>) -> Self {
        Self { weekdays: Some(weekdays), ..self }
    }

    /// Whether a local time lies within.
    fn hold(&self, local: DateTime) -> bool {
        let on = |day: Date| self.weekdays.as_ref().is_none_or(|days| days.contains(&day.weekday()));
        let (today, time) = (local.date(), local.time());
        if self.from < self.to {
            return (self.from..self.to).contains(&time) && on(today);
        }
        // Over midnight: those of today, or what is left of yesterday's.
        (time >= self.from && on(today)) || (time < self.to && today.yesterday().is_ok_and(on))
    }
}

/// The earliest instant at `at` or later whose local time lies within `hours`. `at` itself if there is none in the two
/// weeks to come, as there is none without any day.
#[must_use]
pub fn next_within(at: Timestamp, hours: &Hours) -> Timestamp {
    let Ok(instant) = jiff::Timestamp::from_millisecond(at.as_millis()) else { return at };
    let zone = &hours.zone;
    let held = |instant: jiff::Timestamp| hours.hold(zone.to_datetime(instant));
    if held(instant) {
        return at;
    }
    // What is not within comes to be when the hours begin, or when the clocks are changed.
    let today = zone.to_datetime(instant).date();
    let days = (0..=DAYS).filter_map(|days| today.checked_add(jiff::Span::new().days(days)).ok());
    let beginnings = days.flat_map(|day| {
        let begin = zone.to_ambiguous_timestamp(DateTime::from_parts(day, hours.from));
        [begin.earlier().ok(), begin.later().ok()].into_iter().flatten()
    });
    let until = instant.checked_add(jiff::SignedDuration::from_hours(24 * DAYS)).unwrap_or(instant);
    let changes = zone.following(instant).map(|change| change.timestamp()).take_while(|change| *change <= until);
    let next = beginnings.chain(changes).filter(|next| *next > instant && held(*next)).min();
    next.map_or(at, |next| Timestamp::from_millis(next.as_millisecond()))
}

fn time(text: &str) -> Option<Time> {
    let (hour, minute) = text.trim().split_once(':')?;
    let number = |text: &str| text.parse::<i8>().ok().filter(|_| text.len() == 2 && !text.starts_with(['+', '-']));
    Time::new(number(hour)?, number(minute)?, 0, 0).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn next(hours: &Hours, at: &str, expected: &str) {
        let at: Timestamp = at.parse().unwrap();
        let next = next_within(at, hours);
        assert_eq!(next, expected.parse().unwrap(), "expected {expected}, got {next}");
        assert_eq!(next_within(next, hours), next, "what is within is within");
    }

    fn berlin(hours: &str) -> Hours {
        Hours::parse(hours, "Europe/Berlin").unwrap()
    }

    #[test]
    fn within_the_hours_is_at_once_and_before_them_their_beginning() {
        let day = berlin("09:00-18:00");
        next(&day, "2026-01-15T07:59:59.999Z", "2026-01-15T08:00:00Z");
        next(&day, "2026-01-15T08:00:00Z", "2026-01-15T08:00:00Z");
        next(&day, "2026-01-15T12:34:56.789Z", "2026-01-15T12:34:56.789Z");
        next(&day, "2026-01-15T16:59:59.999Z", "2026-01-15T16:59:59.999Z");
        next(&day, "2026-01-15T17:00:00Z", "2026-01-16T08:00:00Z");
        // The clocks change in between.
        next(&day, "2026-03-28T20:00:00Z", "2026-03-29T07:00:00Z");
        next(&day, "2026-10-24T20:00:00Z", "2026-10-25T08:00:00Z");
    }

    #[test]
    fn hours_may_go_over_midnight_and_round_the_day() {
        let night = berlin("22:00-06:00");
        next(&night, "2026-01-15T12:00:00Z", "2026-01-15T21:00:00Z");
        next(&night, "2026-01-15T23:30:00Z", "2026-01-15T23:30:00Z");
        next(&night, "2026-01-16T04:59:00Z", "2026-01-16T04:59:00Z");
        next(&night, "2026-01-16T05:00:00Z", "2026-01-16T21:00:00Z");
        let evening = berlin("18:00-24:00");
        next(&evening, "2026-01-15T22:59:59Z", "2026-01-15T22:59:59Z");
        next(&evening, "2026-01-15T23:00:00Z", "2026-01-16T17:00:00Z");
        for always in ["00:00-24:00", "09:00-09:00"] {
            next(&berlin(always), "2026-03-29T01:00:00Z", "2026-03-29T01:00:00Z");
        }
    }

    #[test]
    fn weekdays_are_those_on_which_the_hours_begin() {
        let night = berlin("22:00-06:00").on(vec![Weekday::Friday]);
        // Thursday, the night to Saturday, Saturday.
        next(&night, "2026-01-15T22:00:00Z", "2026-01-16T21:00:00Z");
        next(&night, "2026-01-17T03:00:00Z", "2026-01-17T03:00:00Z");
        next(&night, "2026-01-17T05:00:00Z", "2026-01-23T21:00:00Z");
        let nobody = berlin("09:00-18:00").on(Vec::new());
        next(&nobody, "2026-01-15T00:00:00Z", "2026-01-15T00:00:00Z");
    }

    #[test]
    fn clocks_that_change_within_the_hours() {
        // 02:00 to 03:00 is skipped.
        next(&berlin("02:30-04:00"), "2026-03-29T00:00:00Z", "2026-03-29T01:00:00Z");
        next(&berlin("01:00-02:30"), "2026-03-29T00:59:00Z", "2026-03-29T00:59:00Z");
        next(&berlin("02:10-02:50"), "2026-03-29T00:30:00Z", "2026-03-30T00:10:00Z");
        // 02:00 to 03:00 occurs twice.
        next(&berlin("02:30-04:00"), "2026-10-25T00:00:00Z", "2026-10-25T00:30:00Z");
        next(&berlin("01:00-02:30"), "2026-10-25T00:29:00Z", "2026-10-25T00:29:00Z");
        next(&berlin("01:00-02:30"), "2026-10-25T00:30:00Z", "2026-10-25T01:00:00Z");
        next(&berlin("01:00-02:30"), "2026-10-25T01:29:00Z", "2026-10-25T01:29:00Z");
        next(&berlin("02:30-04:00"), "2026-10-25T01:00:00Z", "2026-10-25T01:30:00Z");
        next(&berlin("01:00-02:30"), "2026-10-25T01:30:00Z", "2026-10-26T00:00:00Z");
        let lord_howe = Hours::parse("02:15-03:00", "Australia/Lord_Howe").unwrap();
        next(&lord_howe, "2026-10-03T14:00:00Z", "2026-10-03T15:30:00Z");
    }

    #[test]
    fn what_is_no_hours_is_refused() {
        for text in
            ["", "9-18", "09:00", "09:00-25:00", "9:00-18:00", "09:60-18:00", "-1:00-02:00", "09:00-18:00-19:00"]
        {
            assert!(matches!(Hours::parse(text, "UTC"), Err(InvalidHours::Hours(_))), "{text}");
        }
        assert!(matches!(Hours::parse("09:00-18:00", "Nowhere"), Err(InvalidHours::Zone(_))));
    }
}
