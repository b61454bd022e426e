//! Values that are more than their text: addresses, URLs, references to secrets.

use std::{fs, net::SocketAddr, path::PathBuf};

use secrecy::{ExposeSecret, SecretString};
use toml::Value;

use super::{
    codecs::{Codec, Problem, literal, text},
    sources::Surroundings,
    values::{BrokerUrl, ModelRef, StoreUrl},
};

/// Text that is converted by a function, and written again by another.
pub(super) struct Parsed<T> {
    expected: &'static str,
    parse: fn(&str) -> Result<T, Problem>,
    display: fn(&T) -> String,
}

impl<T> Codec for Parsed<T> {
    type Value = T;

    fn expected(&self) -> String {
        self.expected.to_owned()
    }

    fn read(&self, value: &Value, _: &Surroundings) -> Result<T, Problem> {
        (self.parse)(text(value)?)
    }

    fn write(&self, value: &T) -> Option<String> {
        literal((self.display)(value))
    }
}

pub(super) const FILLED: Parsed<String> = Parsed {
    expected: "text that is not empty",
    parse: |text| if text.trim().is_empty() { Err(Problem::Unlike) } else { Ok(text.to_owned()) },
    display: String::clone,
};

pub(super) const PATH: Parsed<PathBuf> = Parsed {
    expected: "a path",
    parse: |text| if text.is_empty() { Err(Problem::Unlike) } else { Ok(text.into()) },
    display: |path| path.display().to_string(),
};

pub(super) const ADDRESS: Parsed<SocketAddr> = Parsed {
    expected: "an IP address and a port, such as \"127.0.0.1:7070\"",
    parse: |text| text.parse().map_err(|_| Problem::Unlike),
    display: SocketAddr::to_string,
};

pub(super) const BROKER: Parsed<BrokerUrl> = Parsed {
    expected: "memory",
    parse: |text| match text.split_once("://") {
        None if text == "memory" => Ok(BrokerUrl::Memory),
        Some((scheme @ ("redis" | "rediss" | "amqp" | "amqps"), _)) => Err(not_built_in(scheme, "memory")),
        _ => Err(Problem::Unlike),
    },
    display: BrokerUrl::to_string,
};

pub(super) const STORE: Parsed<StoreUrl> = Parsed {
    expected: "sqlite or sqlite:PATH",
    parse: |text| match text.split_once(':') {
        None if text == "sqlite" => Ok(StoreUrl::Sqlite { path: None }),
        // The other spelling of URLs, sqlite://PATH, is common; SQLite's ":memory:" would keep nothing.
        Some(("sqlite", path)) => match path.strip_prefix("//").unwrap_or(path) {
            "" | ":memory:" => Err(Problem::Unlike),
            path => Ok(StoreUrl::Sqlite { path: Some(path.into()) }),
        },
        Some((scheme @ ("postgres" | "postgresql"), _)) => Err(not_built_in(scheme, "sqlite or sqlite:PATH")),
        _ => Err(Problem::Unlike),
    },
    display: StoreUrl::to_string,
};

fn not_built_in(scheme: &str, expected: &str) -> Problem {
    Problem::Said(format!("{scheme} is not built into this version; expected {expected}"))
}

/// Users and queries are refused because a URL ends up in logs, and they hold passwords and keys.
pub(super) const HTTP_URL: Parsed<String> = Parsed {
    expected: "an http:// or https:// URL without user, query or fragment",
    parse: |text| {
        let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")).ok_or(Problem::Unlike)?;
        let host = rest.split(['/', ':']).next().unwrap_or_default();
        if (host.is_empty() && !rest.starts_with('['))
            || rest.contains(['@', '?', '#'])
            || rest.contains(char::is_whitespace)
        {
            return Err(Problem::Unlike);
        }
        Ok(text.trim_end_matches('/').to_owned())
    },
    display: String::clone,
};

pub(super) const MODEL: Parsed<ModelRef> = Parsed {
    expected: "a provider and a model, such as \"openai/gpt-4o-mini\"",
    parse: |text| match text.split_once('/') {
        Some((provider, model)) if !provider.is_empty() && !model.is_empty() => {
            Ok(ModelRef { provider: provider.to_owned(), model: model.to_owned() })
        }
        _ => Err(Problem::Unlike),
    },
    display: ModelRef::to_string,
};

/// A secret: `env:NAME`, `file:PATH`, or itself. Its field is the least number of characters.
pub(super) struct Secret(pub(super) usize);

impl Codec for Secret {
    type Value = SecretString;

    const QUOTABLE: bool = false;

    fn expected(&self) -> String {
        let length = if self.0 > 1 { format!(" of at least {} characters", self.0) } else { String::new() };
        format!("a secret{length}: env:NAME, file:PATH or the text itself")
    }

    fn read(&self, value: &Value, around: &Surroundings) -> Result<SecretString, Problem> {
        let text = text(value)?;
        let secret = if let Some(name) = text.strip_prefix("env:") {
            let found = around.env.get(name).cloned();
            found.ok_or_else(|| Problem::Said(format!("environment variable {name} is not set")))?
        } else if let Some(path) = text.strip_prefix("file:") {
            fs::read_to_string(around.cwd.join(path))
                .map_err(|error| Problem::Said(format!("cannot read file {path}: {error}")))?
        } else {
            text.to_owned()
        };
        // A file usually ends with a line break that is no part of the secret.
        let secret = SecretString::from(secret.trim_end_matches(['\n', '\r']));
        if secret.expose_secret().chars().count() < self.0 { Err(Problem::Unlike) } else { Ok(secret) }
    }

    fn write(&self, _: &SecretString) -> Option<String> {
        literal("***")
    }
}
