//! The values that keys can have, beyond numbers, text and durations.

use crate::run::Price;
use crate::thread::hours::Hours;
use jiff::civil::Weekday;
use std::{
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use secrecy::{ExposeSecret, SecretString};

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
        /// A program of one's own, which is started for each attempt.
        Process = "process",
        /// A service of one's own, which is asked over HTTP.
        Remote = "remote",
        /// A script: needs no model, and says the same every time.
        Scripted = "scripted",
    }
}

words! {
    /// What kind of queue a foreign producer fills.
    pub enum IngestKind {
        /// A Redis list, filled by LPUSH.
        RedisList = "redis_list",
        /// A Redis stream, filled by XADD.
        RedisStream = "redis_stream",
        /// An AMQP queue.
        AmqpQueue = "amqp_queue",
    }
}

words! {
    /// What a tool is.
    pub enum ToolKind {
        /// An HTTP endpoint.
        Http = "http",
    }
}

words! {
    /// The method of a request.
    pub enum HttpMethod {
        /// Reads.
        Get = "GET",
        /// Makes or does something.
        Post = "POST",
        /// Replaces.
        Put = "PUT",
        /// Changes.
        Patch = "PATCH",
        /// Removes.
        Delete = "DELETE",
    }
}

words! {
    /// The protocol that a model provider speaks.
    pub enum Protocol {
        /// The chat completions of OpenAI, which most providers offer too.
        OpenAi = "openai",
        /// The Responses API of OpenAI.
        OpenAiResponses = "openai_responses",
        /// The Messages API of Anthropic.
        Anthropic = "anthropic",
        /// The Gemini API of Google.
        Gemini = "gemini",
    }
}

impl Protocol {
    /// Where the API is of those who made the protocol.
    pub const fn home(self) -> &'static str {
        match self {
            Self::OpenAi | Self::OpenAiResponses => "https://api.openai.com/v1",
            Self::Anthropic => "https://api.anthropic.com/v1",
            Self::Gemini => "https://generativelanguage.googleapis.com/v1beta",
        }
    }
}

words! {
    /// What the installation is for. All its nodes must agree.
    pub enum Mode {
        /// One's own machine: no limits, no billing.
        Local = "local",
        /// For others: API keys are needed, whatever the address.
        Production = "production",
    }
}

/// The URL of a service, which may hold a password: shown without it.
#[derive(Clone)]
pub struct ServiceUrl(SecretString);

impl ServiceUrl {
    /// Wraps a URL.
    pub(super) fn new(text: &str) -> Self {
        Self(text.into())
    }

    /// The whole URL, with its password.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }

    /// What stands before `://`.
    pub fn scheme(&self) -> &str {
        self.expose().split("://").next().unwrap_or_default()
    }
}

impl fmt::Display for ServiceUrl {
    /// Leaves out whatever may be a secret: the password, and the whole query.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.expose();
        let (scheme, rest) = text.split_once("://").unwrap_or((text, ""));
        let rest = rest.split(['?', '#']).next().unwrap_or_default();
        match rest.rsplit_once('@') {
            None => write!(f, "{scheme}://{rest}"),
            Some((login, place)) => match login.split_once(':') {
                Some((user, _)) => write!(f, "{scheme}://{user}:***@{place}"),
                None => write!(f, "{scheme}://{login}@{place}"),
            },
        }
    }
}

impl fmt::Debug for ServiceUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl PartialEq for ServiceUrl {
    fn eq(&self, other: &Self) -> bool {
        self.expose() == other.expose()
    }
}

impl Eq for ServiceUrl {}

/// Where wake-ups travel between nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BrokerUrl {
    /// Inside this process.
    Memory,
    /// A Redis server.
    Redis(ServiceUrl),
    /// A RabbitMQ server.
    Amqp(ServiceUrl),
}

impl fmt::Display for BrokerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory => f.write_str("memory"),
            Self::Redis(url) | Self::Amqp(url) => url.fmt(f),
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
    /// A PostgreSQL server.
    Postgres(ServiceUrl),
}

impl StoreUrl {
    /// The SQLite file, given the data directory; `None` if the store is no file.
    pub fn sqlite_file(&self, data: &Path) -> Option<PathBuf> {
        match self {
            Self::Sqlite { path: Some(path) } => Some(path.clone()),
            Self::Sqlite { path: None } => Some(data.join("runcast.db")),
            Self::Postgres(_) => None,
        }
    }
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite { path: Some(path) } => write!(f, "sqlite:{}", path.display()),
            Self::Sqlite { path: None } => f.write_str("sqlite"),
            Self::Postgres(url) => url.fmt(f),
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

/// What a model costs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelPrice {
    /// The provider's name of the model.
    pub model: String,
    /// What it costs.
    pub price: Price,
}

impl fmt::Display for ModelPrice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Price { input, output } = self.price;
        write!(f, "{}={}/{}", self.model, Money(input), Money(output))
    }
}

/// Millionths, shown as a decimal number of wholes.
struct Money(u64);

impl fmt::Display for Money {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, rest) = (self.0 / MILLION, self.0 % MILLION);
        if rest == 0 {
            return write!(f, "{whole}");
        }
        let digits = format!("{rest:06}");
        write!(f, "{whole}.{}", digits.trim_end_matches('0'))
    }
}

const MILLION: u64 = 1_000_000;

/// Reads a decimal number of wholes as millionths; exact, so no more than six digits follow the point.
pub(super) fn millionths(text: &str) -> Option<u64> {
    let (whole, rest) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |text: &str, most| (1..=most).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole, 9) || !digits(rest, 6) {
        return None;
    }
    let rest: u64 = format!("{rest:0<6}").parse().ok()?;
    Some(whole.parse::<u64>().ok()? * MILLION + rest)
}

/// What an agent says when the person has gone quiet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FollowUp {
    /// How long nobody has spoken.
    pub after: Duration,
    /// What the agent is told to do.
    pub instruction: String,
    /// How often in a row.
    pub times: u32,
    /// Within which hours.
    pub hours: Option<FollowUpHours>,
}

/// Hours of the day in a time zone, as they are written; they have been read once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FollowUpHours {
    /// Such as `09:00-18:00`.
    pub hours: String,
    /// The days on which they begin, such as `mon`; empty: every day.
    pub days: Vec<String>,
    /// The IANA name of the time zone.
    pub timezone: String,
}

impl FollowUpHours {
    /// What they are.
    pub fn read(&self) -> Result<Hours, String> {
        let hours = Hours::parse(&self.hours, &self.timezone).map_err(|error| error.to_string())?;
        if self.days.is_empty() {
            return Ok(hours);
        }
        let day = |name: &String| {
            let days = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];
            let at = days.iter().position(|day| day == name).ok_or_else(|| format!("expected days of {days:?}"))?;
            Weekday::from_monday_zero_offset(at as i8).map_err(|error| error.to_string())
        };
        Ok(hours.on(self.days.iter().map(day).collect::<Result<_, _>>()?))
    }
}
