//! Keeps the secrets that programs, services and tools are given out of what is shown of them.

use secrecy::{ExposeSecret, SecretString};

/// Shorter values are not looked for: they would be found in ordinary words, and guessed anyway.
const SHORTEST: usize = 6;

/// Secrets, the longest first: one may be a part of another.
#[derive(Debug, Clone, Default)]
pub(crate) struct Masks(Vec<SecretString>);

impl Masks {
    /// Masks these values, also as JSON spells them, line by line, and without what stands before their last word, such as
    /// "Bearer". Paths are none: what tools say would make no sense without them.
    pub(crate) fn new<'a>(secrets: impl IntoIterator<Item = &'a SecretString>) -> Self {
        let values = secrets.into_iter().map(ExposeSecret::expose_secret).filter(|value| !value.starts_with('/'));
        let parts = |whole: &str| {
            let json = serde_json::Value::from(whole).to_string();
            let (json, last) = (json.trim_matches('"').to_owned(), whole.rsplit(' ').next().unwrap_or_default());
            let lines = whole.lines().map(|line| line.trim().to_owned());
            lines.chain([whole.to_owned(), json, last.to_owned()]).collect::<Vec<_>>()
        };
        let mut parts: Vec<_> = values.flat_map(parts).filter(|part| part.len() >= SHORTEST).collect();
        parts.sort_unstable_by(|one, other| other.len().cmp(&one.len()).then_with(|| one.cmp(other)));
        parts.dedup();
        Self(parts.into_iter().map(SecretString::from).collect())
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
            (SHORTEST..=secret.len())
                .rev()
                .find(|length| secret.get(..*length).is_some_and(|part| text.ends_with(part)))
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
        let twofold = Masks::new(&[SecretString::from("xyz123-xyz123")]);
        assert_eq!(twofold.apply_to_cut("it is xyz123-xyz123"), "it is ***");
    }

    #[test]
    fn secrets_of_several_lines_are_covered_by_line_and_as_json_and_paths_are_none() {
        let secrets = ["-----BEGIN-----\nMIIEvQ\"IBADAN\n", "/srv/files"].map(SecretString::from);
        let masks = Masks::new(&secrets);
        assert_eq!(masks.apply("a line: MIIEvQ\"IBADAN"), "a line: ***");
        assert_eq!(
            masks.apply(&serde_json::json!({"key": secrets[0].expose_secret()}).to_string()),
            "{\"key\":\"***\"}"
        );
        assert_eq!(masks.apply("it is /srv/files/a.txt"), "it is /srv/files/a.txt");
    }
}
