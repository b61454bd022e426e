//! An agent that is a program: any executable that speaks JSON lines on its standard input and output.
//!
//! | file | owns |
//! | --- | --- |
//! | `mod.rs` | the options, and one attempt |
//! | `program.rs` | the running program: its pipes, its last words, its end |
//! | `lines.rs` | lines of bounded length |
//! | `supervise.rs` | the process between node and program, which ends it with all that it has started |
//!
//! The program is read only as fast as the journal takes what it says: one that floods waits in its pipe.

mod lines;
mod program;
mod supervise;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use secrecy::SecretString;

use self::program::{Program, Spoken};
use super::masks::Masks;
use super::protocol::{Heard, Session, Source, Talk, start};
use super::tools::Toolbox;
use super::{Agent, AgentCard, AgentError, Answer, RunContext};

pub use supervise::supervise;

/// What a [`ProcessAgent`] is made of.
#[derive(Clone)]
pub struct ProcessAgentOptions {
    /// What it says of itself; its kind is `process`.
    pub card: AgentCard,
    /// The program and its arguments; no shell reads them.
    pub command: Vec<String>,
    /// Variables for the program, besides those of the node that every program gets (`PATH`, `HOME` and the like).
    /// Neither the values nor anything in which the program writes them to its standard error is shown.
    pub env: Vec<(String, SecretString)>,
    /// Where the program runs; where the node does when not set.
    pub directory: Option<PathBuf>,
    /// How long the program may take to end when it is told to; then it is killed.
    pub cancel_grace: Duration,
    /// The tools that the program may have called.
    pub tools: Arc<dyn Toolbox>,
    /// The `runcast` binary, which watches over the program.
    pub supervisor: PathBuf,
}

/// The agent.
pub struct ProcessAgent {
    options: ProcessAgentOptions,
    masks: Masks,
    /// As errors name it.
    who: String,
}

impl ProcessAgent {
    /// An agent that is a program. Nothing is started yet.
    pub fn new(options: ProcessAgentOptions) -> Self {
        let masks = Masks::new(options.env.iter().map(|(_, value)| value));
        let who = format!("the program of agent {}", options.card.name);
        Self { options, masks, who }
    }

    async fn listen(&self, program: &mut Program<'_>, session: &mut Session) -> Result<Answer, AgentError> {
        for number in 1.. {
            let source = Source { unit: "line", number, who: &self.who };
            let heard = match program.next().await? {
                Spoken::Line(line) if line.trim_ascii().is_empty() => Heard::Nothing,
                Spoken::Line(line) => session.hear(&line, source).await?,
                Spoken::TooLong => return Err(source.too_long(&self.masks)),
                // A line that the program did not end may be one that it could not end.
                Spoken::Last(line) => match session.hear(&line, source).await {
                    Err(AgentError::Permanent { .. }) => return Err(program.failed().await),
                    heard => heard?,
                },
                Spoken::Nothing => return Err(program.failed().await),
            };
            match heard {
                Heard::Nothing => {}
                Heard::Reply(reply) => {
                    let reply = serde_json::to_vec(&reply).map_err(|error| {
                        AgentError::permanent("internal", format!("a reply cannot be written: {error}"))
                    })?;
                    program.tell(reply).await?;
                }
                Heard::End(ending) => {
                    // Whoever has said its last may tidy up.
                    program.finish().await;
                    return ending;
                }
            }
        }
        unreachable!("there is always another line")
    }
}

#[async_trait]
impl Agent for ProcessAgent {
    fn card(&self) -> AgentCard {
        AgentCard { kind: "process".to_owned(), ..self.options.card.clone() }
    }

    async fn run(&self, context: RunContext) -> Result<Answer, AgentError> {
        let (start, _) = start(&context).await?;
        let mut session =
            Session::new(context.clone(), Talk::TwoWay(Arc::clone(&self.options.tools)), self.masks.clone());
        let mut program = Program::start(&self.options, &self.who, &self.masks, context)?;
        program.tell(start).await?;
        self.listen(&mut program, &mut session).await
    }
}
