//! What is wrong with a configuration, and where each value came from.

use std::{fmt, path::PathBuf};

/// Where the value of a key came from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Origin {
    /// Nobody set it.
    #[default]
    Default,
    /// A line of the configuration file, counted from 1.
    File {
        /// The file, as it was named.
        path: PathBuf,
        /// The line of the key.
        line: usize,
    },
    /// A `RUNCAST_*` environment variable, or such a line of `.env`.
    Env(String),
    /// A variable that other software uses too, such as `PORT`.
    Alias(String),
    /// A command-line flag, without its dashes.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Env(name) => write!(f, "env {name}"),
            Self::Alias(name) => write!(f, "alias {name}"),
            Self::Flag(name) => write!(f, "flag --{name}"),
        }
    }
}

/// One thing wrong with a configuration. It never holds the value of a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The key, the variable or the place in a file that is wrong.
    pub subject: String,
    /// Where the value came from; `None` when the subject says so itself.
    pub origin: Option<Origin>,
    /// What is wrong, and what was expected.
    pub problem: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.origin {
            Some(origin) => write!(f, "{} ({origin}): {}", self.subject, self.problem),
            None => write!(f, "{}: {}", self.subject, self.problem),
        }
    }
}

/// Everything that is wrong with a configuration, at once; displayed one fault a line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .faults.iter().map(Fault::to_string).collect::<Vec<_>>().join("\n"))]
pub struct ConfigError {
    /// The faults, at least one.
    pub faults: Vec<Fault>,
}

/// Finds the candidate that somebody who wrote `name` most likely meant: one that ends in `tail` (the right name in the
/// wrong section), else the one with the fewest different letters, if they are few for the length of `tail`.
pub(super) fn nearest<'c>(name: &str, tail: &str, candidates: impl Iterator<Item = &'c str>) -> Option<&'c str> {
    let rank = |candidate: &&'c str| {
        let distance = distance(name, candidate);
        (if candidate.ends_with(tail) { 0 } else { distance }, distance)
    };
    candidates.min_by_key(rank).filter(|candidate| rank(candidate).0 <= (tail.len() / 3).min(3))
}

/// Counts the letters to insert, delete or replace between two names (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.chars().enumerate() {
            let replaced = diagonal + usize::from(from != to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row.last().copied().unwrap_or_default()
}
