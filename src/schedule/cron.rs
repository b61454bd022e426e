//! When a cron expression fires in a time zone.
//!
//! [`croner`] parses and matches: it is maintained, searches the calendar of `jiff`, which is the one here already,
//! takes seconds or none, and knows `L`, `W` and `#`. `cronexpr` has no seconds, and `jiff-cron` wants them always.
//! croner's own handling of daylight saving time has changed in several releases (the last time in 4.0.3), and treats
//! `0,30 2 * * *` otherwise than `0 2 * * *`, so it is asked about plain calendars only, where there is none; what
//! follows is decided here:
//!
//! - **Gap.** A time that the zone skips fires at the first instant after the gap: once, however many times were
//!   skipped, and whatever else fires at that instant.
//! - **Fold.** A time that occurs twice fires once, at its first occurrence. Only an expression for every hour
//!   names no hour but an interval (`*/15 * * * *`): it goes on through the repeated hour, whose instants are
//!   others, rather than pause for it.

use std::fmt;
use std::str::FromStr;

use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use jiff::civil::DateTime;
use jiff::tz::{AmbiguousOffset, Offset, TimeZone};

use super::zone;
use crate::run::Timestamp;

/// How far ahead a firing is looked for. The rarest dates (29 February on a given day of the week, around a
/// century without a leap day) are 40 years apart.
const HORIZON_YEARS: i16 = 50;

/// The longest expression, in bytes.
const LONGEST: usize = 256;

/// A cron expression in a time zone.
#[derive(Debug, Clone)]
pub struct Timetable {
    cron: Cron,
    zone: TimeZone,
    every_hour: bool,
}

/// Why there is no timetable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InvalidTimetable {
    /// It is no cron expression; the text says why.
    Cron(String),
    /// There is no time zone of that name.
    Zone(String),
}

impl fmt::Display for InvalidTimetable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cron(why) => write!(f, "expected a cron expression such as \"30 9 * * MON-FRI\": {why}"),
            Self::Zone(name) => write!(f, "expected an IANA time zone such as \"Europe/Berlin\", got {name:?}"),
        }
    }
}

impl std::error::Error for InvalidTimetable {}

impl Timetable {
    /// Reads `cron`, of five fields (minute, hour, day of the month, month, day of the week) or six with seconds in
    /// front, or a nickname such as `@daily`, in the zone called `zone`. If both days are restricted, either
    /// suffices, as in every cron.
    pub fn parse(cron: &str, zone: &str) -> Result<Self, InvalidTimetable> {
        let refused = |why: &str| InvalidTimetable::Cron(why.trim_end_matches('.').to_owned());
        if cron.len() > LONGEST {
            return Err(refused(&format!("at most {LONGEST} characters are accepted")));
        }
        let parser = CronParser::builder().seconds(Seconds::Optional).year(Year::Disallowed).build();
        let cron = parser.parse(cron).map_err(|error| refused(&error.to_string()))?;
        let named = zone::named(zone);
        let zone = named.ok_or_else(|| InvalidTimetable::Zone(zone.chars().take(64).collect()))?;
        let every_hour = cron.pattern.hours.values().len() == 24;
        Ok(Self { cron, zone, every_hour })
    }

    /// The first firing after `after`, strictly; none if there is none within 50 years.
    #[must_use]
    pub fn next(&self, after: Timestamp) -> Option<Timestamp> {
        let after = jiff::Timestamp::from_millisecond(after.as_millis()).ok()?;
        let next = self.repeated(after).or_else(|| self.first(after))?;
        Some(Timestamp::from_millis(next.as_millisecond()))
    }

    /// The firings after `after`, in their order.
    pub fn upcoming(&self, after: Timestamp) -> impl Iterator<Item = Timestamp> {
        std::iter::successors(self.next(after), |last| self.next(*last))
    }

    /// The first instant after `after` at which a matching time occurs for the first time, or a gap ends that
    /// has skipped one.
    fn first(&self, after: jiff::Timestamp) -> Option<jiff::Timestamp> {
        let mut time = self.zone.to_datetime(after);
        let last = time.year().saturating_add(HORIZON_YEARS);
        loop {
            time = self.matching(time, false).filter(|time| time.year() <= last)?;
            // In the second pass of a fold the next ones have all been.
            let instant = zone::first_instant(&self.zone, time)?;
            if instant > after {
                return Some(instant);
            }
        }
    }

    /// For an expression for every hour, the next firing of the second pass, if `after` is in a fold.
    fn repeated(&self, after: jiff::Timestamp) -> Option<jiff::Timestamp> {
        let now = self.zone.to_datetime(after);
        let AmbiguousOffset::Fold { before, after: then } = self.zone.to_ambiguous_timestamp(now).offset() else {
            return None;
        };
        if !self.every_hour {
            return None;
        }
        let time = if self.zone.to_offset(after) == then {
            self.matching(now, false)?
        } else {
            let turn = self.turn(after, then)?;
            let last_of_first = self.matching(now, false)?;
            let still_first = before.to_timestamp(last_of_first).ok()?;
            if still_first < turn {
                return None;
            }
            self.matching(then.to_datetime(turn), true)?
        };
        let in_fold = matches!(self.zone.to_ambiguous_timestamp(time).offset(), AmbiguousOffset::Fold { .. });
        then.to_timestamp(time).ok().filter(|_| in_fold)
    }

    /// The first time that matches after `time`, or from it on, on the calendar alone.
    fn matching(&self, time: DateTime, inclusive: bool) -> Option<DateTime> {
        let plain = time.to_zoned(TimeZone::UTC).ok()?;
        self.cron.find_next_occurrence(&plain, inclusive).ok().map(|found| found.datetime())
    }

    /// When the zone's offset becomes `then`, after `after`.
    fn turn(&self, after: jiff::Timestamp, then: Offset) -> Option<jiff::Timestamp> {
        self.zone.following(after).find(|turn| turn.offset() == then).map(|turn| turn.timestamp())
    }
}

/// What a schedule does about firings that were missed, because no node was up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Missed {
    /// One run for all of them, as soon as a node is up.
    #[default]
    RunOnce,
    /// None.
    Skip,
}

impl Missed {
    /// The name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RunOnce => "run_once",
            Self::Skip => "skip",
        }
    }
}

impl FromStr for Missed {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        [Self::RunOnce, Self::Skip].into_iter().find(|missed| missed.as_str() == text).ok_or(())
    }
}

/// What to do about a firing that is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Firing {
    /// A run is made.
    pub runs: bool,
    /// The next firing; none if there is none.
    pub next: Option<Timestamp>,
}

/// Decides about the firing that was planned for `planned` and is found due at `now`. One that is late by no more
/// than `grace` fires, and so does each that follows it; beyond that it counts as missed with all that follow up
/// to now, and `missed` decides.
#[must_use]
pub fn due(
    timetable: &Timetable,
    missed: Missed,
    planned: Timestamp,
    now: Timestamp,
    grace: std::time::Duration,
) -> Firing {
    if now.since(planned) <= grace {
        return Firing { runs: true, next: timetable.next(planned) };
    }
    Firing { runs: missed == Missed::RunOnce, next: timetable.next(now) }
}
