//! Keeps the secrets that programs, services and tools are given out of what is shown of them.

use secrecy::{ExposeSecret, SecretString};

/// Shorter values are not looked for: they would be found in ordinary words, and guessed anyway.
const SHORTEST: usize = 6;

/// Secrets, the longest first: one may be a part of another.
#[derive(Debug, Clone, Default)]
pub(crate) struct Masks(Vec<SecretString>);

impl Masks {
    /// Masks these values, also without what stands before their last word, such as "Bearer".
    pub(crate) fn new<'a>(secrets: impl IntoIterator<Item = &'a SecretString>) -> Self {
        let parts = |secret: &'a SecretString| {
            let whole = secret.expose_secret();
            [whole, whole.rsplit(' ').next().unwrap_or_default()]
        };
        let mut secrets: Vec<_> = secrets.into_iter().flat_map(parts).filter(|part| part.len() >= SHORTEST).collect();
        secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        secrets.dedup();
        Self(secrets.into_iter().map(SecretString::from).collect())
    }

    /// The text without the secrets, as far as it has them as they are.
    pub(crate) fn apply(&self, text: &str) -> String {
        self.0.iter().fold(text.to_owned(), |text, secret| match text.contains(secret.expose_secret()) {
            true => text.replace(secret.expose_secret(), "***"),
            false => text,
        })
    }

    /// The same of a text that may have been cut off: without the beginning of a secret at its end, too.
    pub(crate) fn apply_to_cut(&self, text: &str) -> String {
        let beginning = |secret: &SecretString| {
            let secret = secret.expose_secret();
            (SHORTEST..secret.len()).rev().find(|length| secret.get(..*length).is_some_and(|part| text.ends_with(part)))
        };
        // The end first: it may hold another secret whole.
        match self.0.iter().filter_map(beginning).max() {
            Some(length) => self.apply(&text[..text.len() - length]) + "***",
            None => self.apply(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_covered_whole_in_part_and_where_a_text_was_cut() {
        let secrets = ["Bearer top-secret-token", "top-secret", "short"].map(SecretString::from);
        let masks = Masks::new(&secrets);
        for (text, shown) in [
            ("got Bearer top-secret-token, top-secret-token and top-secret.", "got ***, *** and ***."),
            ("what is short is a word", "what is short is a word"),
            ("cut off: top-sec", "cut off: top-sec"),
        ] {
            assert_eq!(masks.apply(text), shown);
        }
        assert_eq!(masks.apply_to_cut("cut off: top-secret-tok"), "cut off: ***");
        assert_eq!(masks.apply_to_cut("cut off: top-se"), "cut off: ***");
        assert_eq!(masks.apply_to_cut("cut off: top-"), "cut off: top-");
        assert_eq!(masks.apply_to_cut(""), "");
    }
}
