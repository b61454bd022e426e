//! The values that keys can have, beyond numbers, text and durations.

use std::{
    fmt,
    path::{Path, PathBuf},
};

/// Declares an enum whose variants are words in the configuration.
macro_rules! words {
    (
        $(#[doc = $about:literal])+
        pub enum $name:ident { $($(#[doc = $doc:literal])+ $variant:ident = $word:literal,)+ }
    ) => {
        $(#[doc = $about])+
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name { $($(#[doc = $doc])+ $variant,)+ }

        impl $name {
            /// Every value, in the order of the documentation.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// Returns the word for it in the configuration.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

words! {
    /// What a node does.
    pub enum Role {
        /// Serves the HTTP API and executes runs.
        All = "all",
        /// Serves the HTTP API only.
        Api = "api",
        /// Executes runs only.
        Worker = "worker",
    }
}

words! {
    /// How hard SQLite makes sure that a commit is on the disk.
    pub enum Synchronous {
        /// Survives the death of the process; may lose the last commits when the power goes.
        Normal = "normal",
        /// Survives the loss of power too: one more flush of the disk a commit.
        Full = "full",
    }
}

words! {
    /// How log lines are written.
    pub enum LogFormat {
        /// For people.
        Text = "text",
        /// For machines: one JSON object a line.
        Json = "json",
    }
}

words! {
    /// What executes the runs of an agent.
    pub enum AgentKind {
        /// A language model.
        Model = "model",
        /// A script: needs no model, and says the same every time.
        Scripted = "scripted",
    }
}

words! {
    /// The protocol that a model provider speaks.
    pub enum Protocol {
        /// The chat completions of OpenAI, which most providers offer too.
        OpenAi = "openai",
    }
}

/// Where wake-ups travel between nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BrokerUrl {
    /// Inside this process.
    Memory,
}

impl fmt::Display for BrokerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory => f.write_str("memory"),
        }
    }
}

/// Where runs are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreUrl {
    /// An SQLite file.
    Sqlite {
        /// The file; `None` is `runcast.db` in the data directory.
        path: Option<PathBuf>,
    },
}

impl StoreUrl {
    /// Returns the SQLite file, given the data directory.
    pub fn sqlite_file(&self, data: &Path) -> PathBuf {
        match self {
            Self::Sqlite { path: Some(path) } => path.clone(),
            Self::Sqlite { path: None } => data.join("runcast.db"),
        }
    }
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite { path: Some(path) } => write!(f, "sqlite:{}", path.display()),
            Self::Sqlite { path: None } => f.write_str("sqlite"),
        }
    }
}

/// A model and the provider that offers it, written `provider/model`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelRef {
    /// The name of an entry of `[providers]`.
    pub provider: String,
    /// The provider's name of the model; may contain slashes.
    pub model: String,
}

impl fmt::Display for ModelRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.provider, self.model)
    }
}
