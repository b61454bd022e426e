//! Tools of MCP servers (<https://modelcontextprotocol.io>).
//!
//! A server is connected when it is first needed, and again when the connection has ended; all runs of the node share
//! it. What it says of its tools is believed once: a tool that has changed since it was approved is not offered any
//! more, and not called.
//!
//! | file | owns |
//! | --- | --- |
//! | `connection.rs` | one connection until it breaks: lists, calls, progress, cancellation |
//! | `process.rs` | the processes of a server, and their end |
//! | `pins.rs` | what a tool was when it was approved, pure |
//! | `render.rs` | what a model is shown of a result, pure |

mod connection;
mod pins;
mod process;
mod render;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use secrecy::SecretString;
use serde_json::{Map, Value};
use tokio::sync::Mutex as AsyncMutex;
use tokio::time::Instant;

use super::super::providers::ToolCard;
use super::calling::bounded;
use super::{Call, Declared, Policy, Tool, ToolError, ToolOutput, Toolbox};
use crate::agent::masks::Masks;
use crate::net::guard::Guard;
use crate::run::Backoff;
use connection::Connection;
use pins::Pins;

pub use pins::Approval;
pub use process::Program;

/// The waits before a server that could not be connected, or has died soon, is connected again.
const BACKOFF: Backoff = Backoff { base: Duration::from_secs(1), max: Duration::from_secs(60) };

/// A connection that lasts for so long counts as good; the next one is made at once.
const STEADY: Duration = Duration::from_secs(10);

/// The longest name of a tool that every provider takes.
const MAX_NAME: usize = 64;

/// The most bytes of a description, and of a schema. Models pay for each of them with every call.
const MAX_DESCRIPTION: usize = 8 << 10;
const MAX_SCHEMA: usize = 64 << 10;

/// How many schemas of one server are kept.
const MAX_SCHEMAS: usize = 2_000;

/// How a server is reached.
#[derive(Debug, Clone)]
pub enum Transport {
    /// It is a program, which speaks over stdin and stdout.
    Program(Program),
    /// It speaks streamable HTTP.
    Http {
        /// Where.
        url: String,
        /// Sent with all requests; shows no value.
        headers: Vec<(String, SecretString)>,
        /// Where it may lead.
        guard: Guard,
    },
}

impl Transport {
    /// What the server is given and must not be shown of it.
    fn masks(&self) -> Masks {
        match self {
            Self::Program(Program { env: secrets, .. }) | Self::Http { headers: secrets, .. } => {
                Masks::new(secrets.iter().map(|(_, value)| value))
            }
        }
    }
}

/// A server and how it is used.
#[derive(Debug, Clone)]
pub struct McpOptions {
    /// Its name in the configuration: what the names of its tools begin with.
    pub name: String,
    /// How it is reached.
    pub transport: Transport,
    /// Which of its tools are offered; all when empty.
    pub offered: Vec<String>,
    /// The tools whose calls a person has to approve; `*` for all.
    pub needs_approval: Vec<String>,
    /// The tools that were approved, with their pins; when empty, what each is when it is first seen.
    pub approved: Vec<(String, String)>,
    /// How they are used, but for the approval.
    pub policy: Policy,
}

/// A server. Dropping it ends its processes.
pub struct McpServer {
    options: McpOptions,
    link: AsyncMutex<Link>,
    pins: Mutex<Pins>,
    /// The schemas of its tools by their pins: made once, not with every model call.
    schemas: Mutex<BTreeMap<String, Arc<jsonschema::Validator>>>,
}

#[derive(Default)]
struct Link {
    connection: Option<Arc<Connection>>,
    /// In a row: connections that could not be made, or were lost soon.
    failures: u32,
    /// Why the last one could not be made, and when the next may be.
    failed: Option<(String, Instant)>,
}

impl Link {
    /// Lets go of a connection that has ended. The next one is made at once, unless several have ended soon.
    fn lose(&mut self, server: &str) {
        let Some(connection) = self.connection.take() else { return };
        tracing::warn!(server, "the connection to an mcp server has ended");
        if connection.age() >= STEADY {
            self.failures = 0;
            return;
        }
        self.failures += 1;
        if self.failures > 1 {
            let wait = BACKOFF.delay(self.failures - 1, rand::random(), None);
            self.failed = Some(("it ends soon after it has started".to_owned(), Instant::now() + wait));
        }
    }
}

/// A tool as it is now, for people to look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// The server's own name of it.
    pub name: String,
    /// What models are told of it.
    pub description: String,
    /// JSON Schema of its arguments.
    pub parameters: Value,
    /// Its pin.
    pub pin: String,
    /// Whether it may be used.
    pub approval: Approval,
}

impl McpServer {
    /// A server that is connected when it is first needed.
    #[must_use]
    pub fn new(options: McpOptions) -> Arc<Self> {
        let pins = Mutex::new(Pins::new(options.approved.clone()));
        Arc::new(Self { options, link: AsyncMutex::default(), pins, schemas: Mutex::default() })
    }

    /// The connection, made anew if there is none. Fails at once while it is too soon to try again.
    async fn connection(&self) -> Result<Arc<Connection>, String> {
        let name = &self.options.name;
        let mut link = self.link.lock().await;
        if let Some(connection) = &link.connection {
            if connection.is_open() {
                return Ok(Arc::clone(connection));
            }
            link.lose(name);
        }
        if let Some((problem, until)) = &link.failed
            && Instant::now() < *until
        {
            return Err(format!("mcp server {name}: {problem}; it is tried again soon"));
        }
        match Connection::open(name, &self.options.transport).await {
            Ok(connection) => {
                tracing::info!(server = name, "an mcp server is connected");
                let connection = Arc::new(connection);
                link.connection = Some(Arc::clone(&connection));
                link.failed = None;
                Ok(connection)
            }
            Err(problem) => {
                link.failures += 1;
                let wait = BACKOFF.delay(link.failures, rand::random(), None);
                tracing::warn!(server = name, problem, "an mcp server cannot be connected");
                link.failed = Some((problem.clone(), Instant::now() + wait));
                Err(format!("mcp server {name}: {problem}"))
            }
        }
    }

    /// Gives up a connection that does not carry any more.
    async fn discard(&self, broken: &Arc<Connection>) {
        let mut link = self.link.lock().await;
        if link.connection.as_ref().is_some_and(|connection| Arc::ptr_eq(connection, broken)) {
            link.lose(&self.options.name);
        }
    }

    /// What the server tells of its tools now, among those that are offered.
    async fn listed(&self) -> Result<(Arc<Connection>, Vec<rmcp::model::Tool>), String> {
        let connection = self.connection().await?;
        let listed = connection.tools().await;
        if listed.is_err() {
            self.discard(&connection).await;
        }
        let listed = listed.map_err(|problem| format!("mcp server {}: {problem}", self.options.name))?;
        let offered = |tool: &&rmcp::model::Tool| {
            self.options.offered.is_empty() || self.options.offered.iter().any(|name| *name == tool.name)
        };
        Ok((connection, listed.iter().filter(offered).cloned().collect()))
    }

    /// The server's tools with their pins, for people to approve.
    ///
    /// # Errors
    /// For people: why they cannot be told.
    pub async fn look(&self) -> Result<Vec<Listed>, String> {
        let (_, tools) = self.listed().await?;
        let masks = self.options.transport.masks();
        let look = |tool: &rmcp::model::Tool| {
            let pin = pins::pin(tool);
            let approval = self.pins.lock().judge(&tool.name, &pin);
            let description = masks.apply(tool.description.as_deref().unwrap_or_default());
            let parameters = Value::Object((*tool.input_schema).clone());
            Listed { name: tool.name.to_string(), description, parameters, pin, approval }
        };
        Ok(tools.iter().map(look).collect())
    }

    /// A tool for models, unless it is not approved or makes no sense. Says so in the log, once.
    fn declare(self: &Arc<Self>, tool: &rmcp::model::Tool, taken: &mut BTreeSet<String>) -> Option<Declared> {
        let (server, name) = (self.options.name.as_str(), tool.name.as_ref());
        let pin = pins::pin(tool);
        let refuse = |problem: &str| {
            if self.pins.lock().is_news(name, &pin) {
                tracing::error!(server, tool = name, pin, "a tool of an mcp server is not offered: {problem}");
            }
            None
        };
        let approval = self.pins.lock().judge(name, &pin);
        match approval {
            Approval::Approved => {}
            Approval::Changed => return refuse("its description or parameters have changed since it was approved"),
            Approval::Unknown => return refuse("it is not in the server's list of approved tools"),
        }
        let parameters = Value::Object((*tool.input_schema).clone());
        if parameters.to_string().len() > MAX_SCHEMA {
            return refuse("its parameters are too large");
        }
        let (shown, masks) = (offered_name(server, name), self.options.transport.masks());
        if !taken.insert(shown.clone()) {
            return refuse("another one has the same name");
        }
        let card = ToolCard {
            name: shown,
            description: bounded(masks.apply(tool.description.as_deref().unwrap_or_default()), MAX_DESCRIPTION),
            parameters,
        };
        let asks = self.options.needs_approval.iter().any(|asks| asks == "*" || asks == name);
        let policy = Policy { needs_approval: asks, ..self.options.policy.clone() };
        let schema = match self.schema(&pin, &card) {
            Ok(schema) => schema,
            Err(problem) => return refuse(&problem),
        };
        let tool = McpTool { server: Arc::clone(self), name: name.to_owned(), pin, card };
        Some(Declared { tool: Arc::new(tool), policy, schema })
    }

    fn schema(&self, pin: &str, card: &ToolCard) -> Result<Arc<jsonschema::Validator>, String> {
        let mut schemas = self.schemas.lock();
        if let Some(schema) = schemas.get(pin) {
            return Ok(Arc::clone(schema));
        }
        // A server that changes all the time is not to fill the memory.
        if schemas.len() >= MAX_SCHEMAS {
            schemas.clear();
        }
        let schema = super::schema_of(card)?;
        schemas.insert(pin.to_owned(), Arc::clone(&schema));
        Ok(schema)
    }
}

/// `NAME_tool`, in characters that every provider takes.
fn offered_name(server: &str, tool: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '_' | '-') { c } else { '_' };
    format!("{server}_{tool}").chars().map(plain).take(MAX_NAME).collect()
}

/// The tools of several servers, none of which may have the name of one in `taken`.
pub async fn tools_of(servers: &[Arc<McpServer>], taken: BTreeSet<String>) -> Result<Vec<Declared>, String> {
    let listed = futures_util::future::join_all(servers.iter().map(|server| server.listed())).await;
    let (mut taken, mut tools) = (taken, Vec::new());
    for (server, listed) in servers.iter().zip(listed) {
        let (_, listed) = listed?;
        tools.extend(listed.iter().filter_map(|tool| server.declare(tool, &mut taken)));
    }
    Ok(tools)
}

#[async_trait]
impl Toolbox for Arc<McpServer> {
    async fn tools(&self) -> Result<Vec<Declared>, String> {
        tools_of(std::slice::from_ref(self), BTreeSet::new()).await
    }
}

/// A tool as a model was told of it.
struct McpTool {
    server: Arc<McpServer>,
    name: String,
    pin: String,
    card: ToolCard,
}

#[async_trait]
impl Tool for McpTool {
    fn card(&self) -> ToolCard {
        self.card.clone()
    }

    async fn call(&self, call: Call) -> Result<ToolOutput, ToolError> {
        let (connection, tools) = self.server.listed().await.map_err(ToolError::Transient)?;
        // It may have changed since the model was told of it.
        match tools.iter().find(|tool| tool.name == self.name).map(pins::pin) {
            Some(pin) if pin == self.pin => {}
            Some(_) => {
                let name = &self.name;
                return Err(ToolError::Permanent(format!(
                    "the tool {name} has changed since it was approved, and is refused until a person approves it anew"
                )));
            }
            None => return Err(ToolError::Permanent(format!("there is no tool {} any more", self.name))),
        }
        let arguments = call.arguments.as_object().cloned().unwrap_or_else(Map::new);
        let given = connection.call(&self.name, arguments, &call).await;
        if matches!(given, Err(ToolError::Transient(_))) {
            self.server.discard(&connection).await;
        }
        given.map(ToolOutput::new)
    }
}

/// What servers say of their tools now, by the servers' names: for people.
pub async fn look(servers: &BTreeMap<String, Arc<McpServer>>) -> Vec<(String, Result<Vec<Listed>, String>)> {
    let looks = servers.iter().map(|(name, server)| async { (name.clone(), server.look().await) });
    futures_util::future::join_all(looks).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_of_characters_that_every_provider_takes() {
        assert_eq!(offered_name("files", "read_file"), "files_read_file");
        assert_eq!(offered_name("a-b", "x.y/é z"), "a-b_x_y___z");
        assert_eq!(offered_name("s", &"x".repeat(100)).len(), MAX_NAME);
    }
}
