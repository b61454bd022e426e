//! The configuration of a node: read once at the start, checked as a whole, and never changed afterwards.
//!
//! A value is taken from the first source that has it: a command-line flag, an environment variable `RUNCAST_*`, the
//! file, an alias (a variable of other software such as `PORT`), the default. A `.env` file in the working directory
//! counts as environment, beneath the real one. Every fault is reported at once, and none shows a secret.
//!
//! | file | owns |
//! | --- | --- |
//! | `sections.rs` | every key: meaning, default, why, bounds; the one place to add one |
//! | `values.rs` | the types of values beyond numbers and text |
//! | `codecs.rs`, `parsed.rs`, `follow_ups.rs` | from text to value and back |
//! | `parts.rs` | what a section's declaration expands to |
//! | `sources.rs` | flags, environment, file; which wins; what is unknown |
//! | `checks.rs` | what has to fit together between keys |
//! | `faults.rs` | faults and origins |
//! | `render.rs` | the effective configuration and the example file |

mod checks;
mod codecs;
mod faults;
mod follow_ups;
mod parsed;
mod parts;
mod render;
mod sections;
mod sources;
mod values;

#[cfg(test)]
mod tests;

use std::{cell::Cell, collections::BTreeMap, path::Path};

pub use faults::{ConfigError, Fault, Origin};
pub use render::example_toml;
pub use sections::{
    Agent, Amqp, Config, Feed, Ingest, Journal, Limits, Log, Mcp, Postgres, Provider, Recovery, Redis, Retention, Runs,
    Schedules, Server, Sqlite, Tenant, Tool, Webhooks, Worker,
};
pub use values::{
    AgentKind, BrokerUrl, FollowUp, HttpMethod, IngestKind, LogFormat, Mode, ModelPrice, ModelRef, Protocol, Role,
    ServiceUrl, StoreUrl, Synchronous, ToolKind,
};

use parts::Part;
use sources::{Reader, Surroundings};

/// What the command line sets, as it was written there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Flags {
    /// `--listen`, the key `listen`.
    pub listen: Option<String>,
    /// `--data`, the key `data`.
    pub data: Option<String>,
    /// `--config`, the file to read; it has to exist.
    pub config: Option<String>,
    /// `--broker`, the key `broker`.
    pub broker: Option<String>,
    /// `--store`, the key `store`.
    pub store: Option<String>,
    /// `--role`, the key `role`.
    pub role: Option<String>,
}

impl Flags {
    fn keys(&self) -> BTreeMap<&str, &str> {
        let keys = [
            ("listen", &self.listen),
            ("data", &self.data),
            ("broker", &self.broker),
            ("store", &self.store),
            ("role", &self.role),
        ];
        keys.into_iter().filter_map(|(key, text)| Some((key, text.as_deref()?))).collect()
    }
}

impl Config {
    /// Reads the configuration from all its sources; `env` is the process environment, which is left as it is, and
    /// `cwd` the directory that `.env`, `runcast.toml` and relative paths to secrets are looked for in.
    ///
    /// # Errors
    /// Returns everything that is wrong, at once.
    pub fn load(flags: &Flags, env: &BTreeMap<String, String>, cwd: &Path) -> Result<Self, ConfigError> {
        let mut faults = Vec::new();
        let env = sources::environment(env, cwd, &mut faults);
        let around = Surroundings { env, cwd: cwd.to_owned(), executes: Cell::new(true) };
        let (path, text) = sources::file(flags.config.as_deref(), &around, &mut faults);
        Self::read_all(Reader::new(around, flags.keys(), faults), &path, &text)
    }

    /// Reads the configuration from the text of a file alone: no flags, and an empty environment, in which
    /// `env:NAME` finds nothing.
    ///
    /// # Errors
    /// Returns everything that is wrong, at once.
    pub fn from_toml(text: &str) -> Result<Self, ConfigError> {
        let around = Surroundings { env: BTreeMap::new(), cwd: ".".into(), executes: Cell::new(true) };
        Self::read_all(Reader::new(around, BTreeMap::new(), Vec::new()), Path::new("toml"), text)
    }

    fn read_all(mut reader: Reader<'_>, path: &Path, text: &str) -> Result<Self, ConfigError> {
        let root = reader.parse(path, text);
        let mut config = Self::read(&mut reader, root);
        config.openai_model = reader.variable("OPENAI_MODEL");
        reader.report_unknown();
        checks::check(&config, &mut reader);
        if !reader.faults.is_empty() {
            return Err(ConfigError { faults: reader.faults });
        }
        config.origins = reader.origins;
        Ok(config)
    }

    /// Whether anything of the section at a path, such as `providers.openai`, was set.
    pub fn is_set(&self, section: &str) -> bool {
        self.origins.keys().any(|key| key.strip_prefix(section).is_some_and(|rest| rest.starts_with('.')))
    }

    /// Returns where the value of a key came from, by its path such as `server.heartbeat`.
    pub fn origin(&self, key: &str) -> Origin {
        self.origins.get(key).cloned().unwrap_or_default()
    }
}
