//! Values that are more than their text: addresses, URLs, references to secrets.

use std::{fs, net::SocketAddr, path::PathBuf};

use secrecy::{ExposeSecret, SecretString};
use toml::Value;

use super::{
    codecs::{Codec, OneOf, Problem, literal, text},
    sources::Surroundings,
    values::{BrokerUrl, ModelPrice, ModelRef, Role, ServiceUrl, StoreUrl, millionths},
};
use crate::agent::tools::http::UrlTemplate;
use crate::net::guard::Allowed;
use crate::run::Price;

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

/// The URL of a service, written as itself, `env:NAME` or `file:PATH`: it may hold a password.
pub(super) struct Service<T> {
    expected: &'static str,
    parse: fn(&str) -> Option<T>,
    display: fn(&T) -> String,
}

impl<T> Codec for Service<T> {
    type Value = T;

    const QUOTABLE: bool = false;

    fn expected(&self) -> String {
        self.expected.to_owned()
    }

    fn read(&self, value: &Value, around: &Surroundings) -> Result<T, Problem> {
        (self.parse)(&referred(text(value)?, around)?).ok_or(Problem::Unlike)
    }

    fn write(&self, value: &T) -> Option<String> {
        literal((self.display)(value))
    }
}

pub(super) const BROKER: Service<BrokerUrl> = Service {
    expected: "memory, redis://… or rediss://…, amqp://… or amqps://…; or env:NAME or file:PATH that holds it",
    parse: |text| match text.split_once("://") {
        None if text == "memory" => Some(BrokerUrl::Memory),
        Some(("redis" | "rediss", _)) => Some(BrokerUrl::Redis(ServiceUrl::new(text))),
        Some(("amqp" | "amqps", _)) => Some(BrokerUrl::Amqp(ServiceUrl::new(text))),
        _ => None,
    },
    display: BrokerUrl::to_string,
};

/// A server of queues, of any kind.
pub(super) const QUEUES: Service<ServiceUrl> = Service {
    expected: "redis://… or rediss://…, amqp://… or amqps://…; or env:NAME or file:PATH that holds it",
    parse: |text| match text.split_once("://") {
        Some(("redis" | "rediss" | "amqp" | "amqps", _)) => Some(ServiceUrl::new(text)),
        _ => None,
    },
    display: ServiceUrl::to_string,
};

/// A label, written `name=value`.
pub(super) const LABEL: Parsed<(String, String)> = Parsed {
    expected: "name=value",
    parse: |text| match text.split_once('=') {
        Some((name, value)) if !name.trim().is_empty() => Ok((name.trim().to_owned(), value.trim().to_owned())),
        _ => Err(Problem::Unlike),
    },
    display: |(name, value)| format!("{name}={value}"),
};

/// A part of the network: addresses, or a host.
pub(super) const ALLOWED: Parsed<Allowed> = Parsed {
    expected: "addresses such as \"10.1.0.0/16\", or the name of a host",
    parse: |text| text.parse().map_err(|_| Problem::Unlike),
    display: Allowed::to_string,
};

/// A JSON object, as text.
pub(super) const OBJECT: Parsed<serde_json::Map<String, serde_json::Value>> = Parsed {
    expected: "a JSON object as text, such as '{\"tokens\": 3}'",
    parse: |text| serde_json::from_str(text).map_err(|_| Problem::Unlike),
    display: |object| serde_json::Value::Object(object.clone()).to_string(),
};

/// A JSON value, as text.
pub(super) const JSON: Parsed<serde_json::Value> = Parsed {
    expected: "a JSON value as text, such as '{\"query\": \"{query}\"}'",
    parse: |text| serde_json::from_str(text).map_err(|_| Problem::Unlike),
    display: serde_json::Value::to_string,
};

/// A URL with placeholders.
pub(super) const TEMPLATE: Parsed<String> = Parsed {
    expected: "an http:// or https:// URL without user or fragment, in whose path and query {argument} may stand",
    parse: |text| match UrlTemplate::parse(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(problem) => Err(Problem::Said(problem.to_string())),
    },
    display: String::clone,
};

/// A tool and its pin, written `tool=hex`.
pub(super) const PIN: Parsed<(String, String)> = Parsed {
    expected: "tool=pin, the pin being 64 hex digits as \"runcast tools\" prints them",
    parse: |text| match text.rsplit_once('=') {
        Some((tool, pin))
            if !tool.is_empty() && pin.len() == 64 && pin.bytes().all(|byte| byte.is_ascii_hexdigit()) =>
        {
            Ok((tool.to_owned(), pin.to_ascii_lowercase()))
        }
        _ => Err(Problem::Unlike),
    },
    display: |(tool, pin)| format!("{tool}={pin}"),
};

/// A name and a secret, written `Name=value`; the value's last word may be `env:NAME` or `file:PATH`.
pub(super) struct SecretPair;

impl Codec for SecretPair {
    type Value = (String, SecretString);

    const QUOTABLE: bool = false;

    fn expected(&self) -> String {
        "Name=value, the value's last word possibly env:NAME or file:PATH".to_owned()
    }

    fn read(&self, value: &Value, around: &Surroundings) -> Result<(String, SecretString), Problem> {
        let (name, value) = text(value)?.split_once('=').ok_or(Problem::Unlike)?;
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        if name.is_empty() || !name.bytes().all(plain) {
            return Err(Problem::Unlike);
        }
        let (front, last) = value.rsplit_once(' ').map_or(("", value), |(front, last)| (front, last));
        let last = opened_by_workers(last, around)?;
        let whole = if front.is_empty() { last } else { format!("{front} {last}") };
        // What neither a header nor a variable can hold; names only, the value may be a secret.
        if whole.bytes().any(|byte| byte.is_ascii_control()) {
            return Err(Problem::Said(format!("the value of {name} holds control characters")));
        }
        Ok((name.to_owned(), whole.into()))
    }

    fn write(&self, (name, _): &(String, SecretString)) -> Option<String> {
        literal(format!("{name}=***"))
    }
}

pub(super) const STORE: Service<StoreUrl> = Service {
    expected: "sqlite, sqlite:PATH or postgres://…; or env:NAME or file:PATH that holds it",
    parse: |text| match text.split_once(':') {
        None if text == "sqlite" => Some(StoreUrl::Sqlite { path: None }),
        // The other spelling of URLs, sqlite://PATH, is common; SQLite's ":memory:" would keep nothing.
        Some(("sqlite", path)) => match path.strip_prefix("//").unwrap_or(path) {
            "" | ":memory:" => None,
            path => Some(StoreUrl::Sqlite { path: Some(path.into()) }),
        },
        Some(("postgres" | "postgresql", rest)) if rest.starts_with("//") => {
            Some(StoreUrl::Postgres(ServiceUrl::new(text)))
        }
        _ => None,
    },
    display: StoreUrl::to_string,
};

/// A name within a broker: 1 to 32 of the characters a-z A-Z 0-9 _ -.
pub(super) const NAMESPACE: Parsed<String> = Parsed {
    expected: "1 to 32 of the characters a-z A-Z 0-9 _ -",
    parse: |text| match text.len() {
        1..=32 if text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte)) => Ok(text.to_owned()),
        _ => Err(Problem::Unlike),
    },
    display: String::clone,
};

/// A node's name: 1 to 64 of the characters a-z A-Z 0-9 . _ -.
pub(super) const NODE: Parsed<String> = Parsed {
    expected: "1 to 64 of the characters a-z A-Z 0-9 . _ -",
    parse: |text| match text.len() {
        1..=64 if text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte)) => {
            Ok(text.to_owned())
        }
        _ => Err(Problem::Unlike),
    },
    display: String::clone,
};

/// What `env:NAME` or `file:PATH` refer to; or the text itself.
fn referred(text: &str, around: &Surroundings) -> Result<String, Problem> {
    let found = if let Some(name) = text.strip_prefix("env:") {
        let found = around.env.get(name).cloned();
        found.ok_or_else(|| Problem::Said(format!("environment variable {name} is not set")))?
    } else if let Some(path) = text.strip_prefix("file:") {
        fs::read_to_string(around.cwd.join(path))
            .map_err(|error| Problem::Said(format!("cannot read file {path}: {error}")))?
    } else {
        text.to_owned()
    };
    // A file usually ends with a line break that is no part of it.
    Ok(found.trim_end_matches(['\n', '\r']).to_owned())
}

/// The same of a secret that only agents need: a node that executes none leaves the reference as it is, unopened.
fn opened_by_workers(text: &str, around: &Surroundings) -> Result<String, Problem> {
    let is_reference = text.starts_with("env:") || text.starts_with("file:");
    if is_reference && !around.executes.get() { Ok(text.to_owned()) } else { referred(text, around) }
}

/// A secret that only agents need; see [`Secret`].
pub(super) struct WorkerSecret;

impl Codec for WorkerSecret {
    type Value = SecretString;

    const QUOTABLE: bool = false;

    fn expected(&self) -> String {
        Secret(1).expected()
    }

    fn read(&self, value: &Value, around: &Surroundings) -> Result<SecretString, Problem> {
        let secret = opened_by_workers(text(value)?, around)?;
        if secret.is_empty() { Err(Problem::Unlike) } else { Ok(secret.into()) }
    }

    fn write(&self, secret: &SecretString) -> Option<String> {
        Secret(1).write(secret)
    }
}

/// What the node does, which decides what it opens of what is read behind it.
pub(super) struct WhichRole;

impl Codec for WhichRole {
    type Value = Role;

    const QUOTABLE: bool = OneOf::<Role>::QUOTABLE;

    fn expected(&self) -> String {
        OneOf(Role::ALL).expected()
    }

    fn read(&self, value: &Value, around: &Surroundings) -> Result<Role, Problem> {
        let role = OneOf(Role::ALL).read(value, around)?;
        around.executes.set(role != Role::Api);
        Ok(role)
    }

    fn write(&self, role: &Role) -> Option<String> {
        OneOf(Role::ALL).write(role)
    }
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

/// The URL of one resource, whose last slash matters.
pub(super) const ENDPOINT: Parsed<String> =
    Parsed { parse: |text| (HTTP_URL.parse)(text).map(|_| text.to_owned()), ..HTTP_URL };

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

/// What a model costs, written `model=input/output`. Names of models may have a `=` or a `/` too.
pub(super) const PRICE: Parsed<ModelPrice> = Parsed {
    expected: "model=input/output, such as \"gpt-4o-mini=0.15/0.60\"",
    parse: |text| {
        let (model, price) = text.rsplit_once('=').ok_or(Problem::Unlike)?;
        let (input, output) = price.split_once('/').ok_or(Problem::Unlike)?;
        let money = |text: &str| millionths(text.trim()).ok_or(Problem::Unlike);
        let price = Price { input: money(input)?, output: money(output)? };
        match model.trim() {
            "" => Err(Problem::Unlike),
            model => Ok(ModelPrice { model: model.to_owned(), price }),
        }
    },
    display: ModelPrice::to_string,
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
        let secret = SecretString::from(referred(text(value)?, around)?);
        if secret.expose_secret().chars().count() < self.0 { Err(Problem::Unlike) } else { Ok(secret) }
    }

    fn write(&self, _: &SecretString) -> Option<String> {
        literal("***")
    }
}
