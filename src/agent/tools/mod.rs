//! What models can have done: one file a kind of tool, all behind [`Tool`].
//!
//! | file | owns |
//! | --- | --- |
//! | `calling.rs` | [`Declared::make`], the one way in which a tool is called |
//! | `http/` | endpoints that the configuration declares |
//! | `mcp/` | tools of MCP servers |

mod calling;
pub mod http;
#[cfg(test)]
mod kit;
pub mod mcp;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::Value;

use super::providers::ToolCard;
use super::{RunContext, Stopped};

pub use calling::Outcome;

/// Something that a model can have done. Dropping a call ends whatever it has begun: sockets are closed, processes are
/// killed with all that they have started.
#[async_trait]
pub trait Tool: Send + Sync + 'static {
    /// What a model is told of it. Its name is unique within an agent.
    fn card(&self) -> ToolCard;

    /// Does it. The arguments fit the card's schema.
    async fn call(&self, call: Call) -> Result<ToolOutput, ToolError>;
}

/// One call of a tool.
#[derive(Clone)]
pub struct Call {
    /// The call's id, as viewers see it.
    pub id: String,
    /// What the model wrote, parsed and checked against the tool's schema.
    pub arguments: Value,
    /// The same for all attempts at this call, and for no other call: the tool's idempotency key.
    pub key: String,
    /// The run, and the way to its viewers.
    pub context: RunContext,
}

impl Call {
    /// Shows a piece of what the tool says while it works to the run's viewers. Waits when the journal is behind.
    pub async fn progress(&self, text: impl Into<String>) -> Result<(), Stopped> {
        self.context.tool_output(&self.id, text).await
    }
}

/// What a tool gave.
#[derive(Debug, Clone, PartialEq)]
pub struct ToolOutput {
    /// What the model is shown: a text as it is, anything else as JSON.
    pub content: Value,
}

impl ToolOutput {
    /// `content`.
    pub fn new(content: impl Into<Value>) -> Self {
        Self { content: content.into() }
    }
}

/// Why a call did not work. The model is told; the run goes on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ToolError {
    /// It may pass: the call is made again, as often as the tool's policy allows.
    #[error("{0}")]
    Transient(String),
    /// It would happen again.
    #[error("{0}")]
    Permanent(String),
    /// The attempt is over.
    #[error("the attempt was stopped")]
    Stopped,
}

impl From<Stopped> for ToolError {
    fn from(Stopped: Stopped) -> Self {
        Self::Stopped
    }
}

/// How a tool is used.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    /// The longest that one call may take.
    pub timeout: Duration,
    /// How often a call that failed transiently is made again.
    pub retries: u32,
    /// A person has to approve each call.
    pub needs_approval: bool,
    /// The most bytes of what it gave that the model is shown; the rest is left out, and the model is told.
    pub max_output: usize,
    /// What becomes of a call that was under way when its worker died.
    pub cut_off: CutOff,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(60),
            retries: 0,
            needs_approval: false,
            max_output: 64 * 1024,
            cut_off: CutOff::Repeat,
        }
    }
}

/// What becomes of a call that was under way when its worker died: nobody knows whether it has been made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum CutOff {
    /// It is made again, under the same key.
    #[default]
    Repeat,
    /// The model is told that it failed and may have been made.
    Fail,
    /// A person is asked whether it is to be made again.
    Ask,
}

impl CutOff {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Repeat, Self::Fail, Self::Ask];

    /// The spelling in the configuration.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Repeat => "repeat",
            Self::Fail => "fail",
            Self::Ask => "ask",
        }
    }
}

impl fmt::Display for CutOff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A tool with the way in which an agent uses it. Cheap to clone.
#[derive(Clone)]
pub struct Declared {
    /// The tool.
    pub tool: Arc<dyn Tool>,
    /// How it is used.
    pub policy: Policy,
    /// What its arguments are checked against, made once.
    schema: Arc<jsonschema::Validator>,
}

impl Declared {
    /// `tool`, used as `policy` says.
    ///
    /// # Errors
    /// Its card's parameters are no JSON Schema, or one that refers to something outside of itself; says what is wrong.
    pub fn new(tool: Arc<dyn Tool>, policy: Policy) -> Result<Self, String> {
        let schema = schema_of(&tool.card())?;
        Ok(Self { tool, policy, schema })
    }
}

/// The schema of a tool's arguments, ready for use.
fn schema_of(card: &ToolCard) -> Result<Arc<jsonschema::Validator>, String> {
    jsonschema::validator_for(&card.parameters)
        .map(Arc::new)
        .map_err(|error| format!("tool {}: parameters are not a JSON Schema: {error}", card.name))
}

/// Tools that may change while agents use them: those of an MCP server. Asked before each model call.
#[async_trait]
pub trait Toolbox: Send + Sync + 'static {
    /// The tools that there are now. The error says, for people, why they cannot be told; the attempt fails with it,
    /// and another may follow.
    async fn tools(&self) -> Result<Vec<Declared>, String>;
}

/// Tools that stay as they are.
#[async_trait]
impl Toolbox for Vec<Declared> {
    async fn tools(&self) -> Result<Vec<Declared>, String> {
        Ok(self.clone())
    }
}
