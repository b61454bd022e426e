//! Where somebody stands who watches a thread.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// How many runs of a thread are watched at once.
pub const MOST_OPEN: usize = 64;

/// A place in the events of a thread and of all its runs: everything up to entry `last` of the thread's own log was
/// seen, but for the `open` entries: of the run that each of them tells of, the events up to a number.
///
/// Its text is `last`, then `.entry-number` for each that is open, in order: `12.3-45.7-2`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Position {
    /// The last entry of the thread's own log that was seen.
    pub last: u64,
    /// By the numbers of their entries, the runs that were not shown to their end, each with the number of the last
    /// event that was shown.
    pub open: BTreeMap<u64, u64>,
}

/// The text is no position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected the id of an event of the thread's stream")]
pub struct NoPosition;

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.last)?;
        self.open.iter().try_for_each(|(entry, seq)| write!(f, ".{entry}-{seq}"))
    }
}

impl FromStr for Position {
    type Err = NoPosition;

    fn from_str(text: &str) -> Result<Self, NoPosition> {
        let mut parts = text.split('.');
        let last = parts.next().and_then(number).ok_or(NoPosition)?;
        let mut open = BTreeMap::new();
        for part in parts {
            let (entry, seq) = part.split_once('-').ok_or(NoPosition)?;
            let (entry, seq) = number(entry).zip(number(seq)).ok_or(NoPosition)?;
            let rises = open.last_key_value().is_none_or(|(before, _)| *before < entry);
            if !rises || !(1..=last).contains(&entry) || open.len() == MOST_OPEN {
                return Err(NoPosition);
            }
            open.insert(entry, seq);
        }
        Ok(Self { last, open })
    }
}

/// A number as it is written, and no other spelling of it.
fn number(text: &str) -> Option<u64> {
    let canonical = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    text.parse().ok().filter(|_| canonical)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_position_is_written_as_documented() {
        let position = Position { last: 12, open: BTreeMap::from([(3, 45), (7, 2)]) };
        assert_eq!(position.to_string(), "12.3-45.7-2");
        assert_eq!("12.3-45.7-2".parse(), Ok(position));
        assert_eq!("0".parse(), Ok(Position::default()));
    }

    #[test]
    fn what_is_no_position_is_refused() {
        for text in [
            "",
            ".",
            "-",
            "a",
            "+1",
            "01",
            "-1",
            "1.",
            "1.1",
            "1.1-",
            "1.-1",
            "1.0-1",
            "1.2-1",
            "2.2-1.1-1",
            "2.1-1.1-1",
            "1.1-01",
            "1 ",
            " 1",
            "1.1-1-1",
            "1..1-1",
            "99999999999999999999",
            "1.1-99999999999999999999",
            "1,1-1",
        ] {
            assert_eq!(text.parse::<Position>(), Err(NoPosition), "{text:?}");
        }
        let many = |count: u64| (1..=count).fold("100".to_owned(), |text, entry| format!("{text}.{entry}-1"));
        assert!(many(MOST_OPEN as u64).parse::<Position>().is_ok());
        assert_eq!(many(MOST_OPEN as u64 + 1).parse::<Position>(), Err(NoPosition));
    }

    proptest! {
        #[test]
        fn every_position_survives_its_text(
            beyond in 0..u64::MAX / 2,
            open in prop::collection::btree_map(1..u64::MAX / 2, any::<u64>(), 0..=MOST_OPEN),
        ) {
            let last = open.last_key_value().map_or(0, |(entry, _)| *entry) + beyond;
            let position = Position { last, open };
            prop_assert_eq!(position.to_string().parse(), Ok(position));
        }

        #[test]
        fn whatever_is_read_is_written_the_same(text in "[0-9.+a-]{0,24}") {
            if let Ok(position) = text.parse::<Position>() {
                prop_assert_eq!(position.to_string(), text);
            }
        }
    }
}
