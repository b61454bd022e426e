//! Names of queues, topics and nodes.

use std::fmt;
use std::sync::Arc;

/// The name of a queue, a topic or a node: 1 to 128 bytes of `a-z A-Z 0-9 . _ : -`, which every
/// broker can carry without escaping. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(Arc<str>);

impl Name {
    /// The longest name, in bytes.
    pub const MAX_BYTES: usize = 128;

    /// Checks and wraps `name`.
    pub fn new(name: impl AsRef<str>) -> Result<Self, InvalidName> {
        let name = name.as_ref();
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._:-".contains(&byte);
        if name.is_empty() || name.len() > Self::MAX_BYTES || !name.bytes().all(allowed) {
            return Err(InvalidName { name: name.chars().take(64).collect() });
        }
        Ok(Self(name.into()))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A text that is no [`Name`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid name {name:?}: expected 1 to 128 bytes of a-z A-Z 0-9 . _ : -")]
pub struct InvalidName {
    /// The first characters of what was given.
    pub name: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_takes_the_portable_alphabet_and_nothing_else() {
        for good in ["a", "runs:queue", "node-7.eu_1", &"x".repeat(128)] {
            assert_eq!(Name::new(good).expect(good).as_str(), good);
        }
        for bad in ["", " ", "a b", "ü", "a/b", "a*", "{a}", &"x".repeat(129)] {
            assert!(Name::new(bad).is_err(), "{bad:?} passed");
        }
    }
}
