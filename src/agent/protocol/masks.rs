//! Keeps secrets out of what is shown.

use secrecy::{ExposeSecret, SecretString};

/// Shorter values are not looked for: they would be found in ordinary words, and guessed anyway.
const SHORTEST: usize = 6;

/// The secrets that a program or a service was given.
#[derive(Debug, Clone, Default)]
pub(crate) struct Masks(Vec<SecretString>);

impl Masks {
    /// Masks these values.
    pub(crate) fn new<'a>(secrets: impl IntoIterator<Item = &'a SecretString>) -> Self {
        let mut secrets: Vec<_> =
            secrets.into_iter().filter(|secret| secret.expose_secret().len() >= SHORTEST).cloned().collect();
        // One may be a part of another.
        secrets.sort_by_key(|secret| std::cmp::Reverse(secret.expose_secret().len()));
        Self(secrets)
    }

    /// The text without the secrets, as far as it has them as they are.
    pub(crate) fn apply(&self, text: &str) -> String {
        self.0.iter().fold(text.to_owned(), |text, secret| text.replace(secret.expose_secret(), "***"))
    }
}
