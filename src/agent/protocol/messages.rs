//! The words of the protocol.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::agent::AgentError;
use crate::agent::masks::Masks;
use crate::run::{Message, Reason, StepKind, Usage};

/// The most bytes of one message that is heard.
pub(crate) const MAX_MESSAGE: usize = 1024 * 1024;

/// The code of what cannot be understood.
pub(crate) const BAD_MESSAGE: &str = "program_bad_message";

/// The most characters of somebody else's words in an error.
const MAX_QUOTED: usize = 200;

/// The most characters of the message of a failure.
const MAX_FAILURE: usize = 2_000;

/// The longest wait that can be asked for, in milliseconds: a year.
const LONGEST_MS: u64 = 31_536_000_000;

/// What a program or a service says.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Said {
    /// A piece of the answer.
    Token { text: String },
    /// A piece of what it thinks aloud.
    Reasoning { text: String },
    /// The whole of what was said in pieces.
    Message { text: String },
    /// A line of its log.
    Log {
        #[serde(default)]
        level: Level,
        message: String,
    },
    /// Whatever its viewers are to see.
    Custom { name: String, value: Value },
    /// The plan that it follows.
    Plan { plan: Value },
    /// It calls a tool of its own.
    ToolStarted { call_id: String, name: String, arguments: Value },
    /// A piece of what that tool says.
    ToolOutput { call_id: String, text: String },
    /// What that tool gave.
    ToolCompleted {
        call_id: String,
        name: String,
        output: Value,
        #[serde(default)]
        failed: bool,
    },
    /// A step begins.
    StepStarted {
        #[serde(default)]
        kind: Kind,
        name: String,
    },
    /// A step is finished and is to be kept.
    Step {
        #[serde(default)]
        kind: Kind,
        name: String,
        #[serde(default)]
        result: Value,
        #[serde(default)]
        usage: Usage,
    },
    /// A person is asked; the attempt ends.
    Ask {
        prompt: Value,
        #[serde(default)]
        reason: Wanted,
        deadline_ms: Option<u64>,
    },
    /// A tool of the agent is to be called by Runcast.
    Tool { call_id: String, name: String, arguments: Value },
    /// It wants what was handed to the run.
    Steer {},
    /// The attempt ends well.
    Complete {
        output: Value,
        outcome: Option<String>,
        #[serde(default)]
        usage: Usage,
    },
    /// The attempt ends badly.
    Fail {
        code: String,
        message: String,
        #[serde(default)]
        transient: bool,
        retry_after_ms: Option<u64>,
    },
}

/// How much a line of a log matters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Level {
    Debug,
    #[default]
    Info,
    Warn,
    Error,
}

impl Level {
    /// The spelling in events.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
        }
    }
}

/// The kinds of steps that a program can make.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    Model,
    #[default]
    Tool,
}

impl From<Kind> for StepKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Model => Self::Model,
            Kind::Tool => Self::Tool,
        }
    }
}

/// What is wanted of a person.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Wanted {
    #[default]
    Input,
    Approval,
}

impl From<Wanted> for Reason {
    fn from(wanted: Wanted) -> Self {
        match wanted {
            Wanted::Input => Self::Input,
            Wanted::Approval => Self::Approval,
        }
    }
}

/// What a program is answered.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum Reply {
    /// The step is in the store.
    StepKept { step: u32 },
    /// What a tool gave.
    ToolResult { call_id: String, output: Value, failed: bool },
    /// What was handed to the run since the program looked last.
    Steers { messages: Vec<Message> },
}

/// Where a message stands, for errors: `line 3 of the program qa`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Source<'a> {
    /// `line` or `event`.
    pub(crate) unit: &'static str,
    /// Counted from 1.
    pub(crate) number: u64,
    /// Who says it, such as `the program of agent qa`.
    pub(crate) who: &'a str,
}

impl fmt::Display for Source<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} of {}", self.unit, self.number, self.who)
    }
}

impl Source<'_> {
    /// The message has this wrong with it: it would be so again.
    pub(crate) fn wrong(self, why: impl fmt::Display, masks: &Masks) -> AgentError {
        AgentError::permanent(BAD_MESSAGE, masks.apply(&format!("{self} {why}")))
    }

    /// It is longer than [`MAX_MESSAGE`].
    pub(crate) fn too_long(self, masks: &Masks) -> AgentError {
        self.wrong(format_args!("is longer than {MAX_MESSAGE} bytes; expected messages of at most 1 MiB"), masks)
    }
}

impl Said {
    /// Reads a message. The error, which is permanent, says where it stands and what was expected.
    pub(crate) fn read(bytes: &[u8], source: Source<'_>, masks: &Masks) -> Result<Self, AgentError> {
        let wrong = |why: String| {
            let got = short(&masks.apply(&String::from_utf8_lossy(bytes)), MAX_QUOTED);
            let expected = "expected a JSON object with a type, such as {\"type\":\"token\",\"text\":\"…\"}";
            source.wrong(format_args!("is no message: {why}; {expected}; got {got}"), masks)
        };
        let said: Self = serde_json::from_slice(bytes)
            .map_err(|error| wrong(short(&masks.apply(&error.to_string()), 2 * MAX_QUOTED)))?;
        match said.fault() {
            Some(fault) => Err(wrong(fault)),
            None => Ok(said.bounded(masks)),
        }
    }

    /// What its types do not say.
    fn fault(&self) -> Option<String> {
        let long = |name, millis: &Option<u64>| {
            millis.filter(|millis| *millis > LONGEST_MS).map(|_| format!("{name} is more than {LONGEST_MS}, a year"))
        };
        match self {
            Self::Ask { deadline_ms, .. } => long("deadline_ms", deadline_ms),
            Self::Fail { code, retry_after_ms, .. } if is_word(code) => long("retry_after_ms", retry_after_ms),
            Self::Fail { .. } => Some("code is not 1 to 64 of the characters a-z 0-9 _".to_owned()),
            Self::Complete { outcome: Some(outcome), .. } if !is_word(outcome) => {
                Some("outcome is not 1 to 64 of the characters a-z 0-9 _".to_owned())
            }
            Self::Token { .. }
            | Self::Reasoning { .. }
            | Self::Message { .. }
            | Self::Log { .. }
            | Self::Custom { .. }
            | Self::Plan { .. }
            | Self::ToolStarted { .. }
            | Self::ToolOutput { .. }
            | Self::ToolCompleted { .. }
            | Self::StepStarted { .. }
            | Self::Step { .. }
            | Self::Tool { .. }
            | Self::Steer {}
            | Self::Complete { .. } => None,
        }
    }

    /// Its diagnostics are short and without secrets; its work is left as it is.
    fn bounded(mut self, masks: &Masks) -> Self {
        if let Self::Fail { message, .. } = &mut self {
            *message = short(&masks.apply(message), MAX_FAILURE);
        }
        if let Self::Log { message, .. } = &mut self {
            *message = masks.apply(message);
        }
        self
    }
}

fn is_word(text: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    (1..=64).contains(&text.len()) && text.bytes().all(fits)
}

/// The text in one line of at most `most` characters.
pub(crate) fn short(text: &str, most: usize) -> String {
    let line: String = text.chars().map(|char| if char.is_control() { ' ' } else { char }).take(most + 1).collect();
    match line.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}
