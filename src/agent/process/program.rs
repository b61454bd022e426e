//! The running program.

use std::collections::VecDeque;
use std::io;
use std::pin::pin;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use secrecy::ExposeSecret;
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

use super::ProcessAgentOptions;
use super::lines::{Line, Lines};
use crate::agent::masks::Masks;
use crate::agent::protocol::{MAX_MESSAGE, short};
use crate::agent::{AgentError, RunContext, Stopped};

/// The variables of the node that every program gets; all others are the node's own business.
const INHERITED: [&str; 9] = ["PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR"];

/// The longest line of the standard error, in bytes; longer ones come in parts.
const MAX_LOG_LINE: usize = 4 * 1024;

/// How much of the standard error an attempt shows, in bytes, each line counting for some more: it is an event. What
/// follows is read and forgotten.
const MAX_LOG: usize = 256 * 1024;
const LINE_COST: usize = 100;

/// How many of the last lines of the standard error an error shows, and how many characters of each.
const LAST_WORDS: usize = 8;
const MAX_LAST_WORD: usize = 300;

/// How long a program may leave unread what it is told, while it waits to be read itself.
const UNREAD: Duration = Duration::from_secs(60);

/// How long a program that has closed its output has at least to end, so that its status can be told.
const LEAST_WAIT: Duration = Duration::from_secs(1);

/// What the program does next.
pub(super) enum Spoken {
    /// It says a line.
    Line(Vec<u8>),
    /// It says something that no line break ends: its output ends.
    Last(Vec<u8>),
    /// It says a line that is too long.
    TooLong,
    /// Its output has ended.
    Nothing,
}

/// A program that runs, through its supervisor. Dropping it ends the program: the supervisor sees the end of its own
/// standard input.
pub(super) struct Program<'a> {
    who: &'a str,
    grace: Duration,
    supervisor: Child,
    input: ChildStdin,
    output: Lines<ChildStdout>,
    log: Log,
}

impl<'a> Program<'a> {
    /// Starts the program.
    pub(super) fn start(
        options: &ProcessAgentOptions,
        who: &'a str,
        masks: &Masks,
        context: RunContext,
    ) -> Result<Self, AgentError> {
        let mut command = Command::new(&options.supervisor);
        command.arg0("runcast").args(["supervise", "--grace-ms", &options.cancel_grace.as_millis().to_string(), "--"]);
        command.args(&options.command).env_clear();
        command.envs(INHERITED.iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
        command.envs(options.env.iter().map(|(name, value)| (name, value.expose_secret())));
        if let Some(directory) = &options.directory {
            command.current_dir(directory);
        }
        // A signal from a terminal is for the node, which gives its runs a grace.
        command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let place = options.directory.as_ref().map_or_else(String::new, |place| format!(" in {}", place.display()));
        let failed = |error: io::Error| {
            AgentError::transient("program_failed", format!("{who} cannot be started{place}: {error}"))
        };
        let mut supervisor = command.spawn().map_err(failed)?;
        let (Some(input), Some(output), Some(errors)) =
            (supervisor.stdin.take(), supervisor.stdout.take(), supervisor.stderr.take())
        else {
            return Err(failed(io::Error::other("it has no pipes")));
        };
        let log = Log {
            lines: Lines::new(errors, MAX_LOG_LINE),
            context,
            masks: masks.clone(),
            shown: 0,
            last: VecDeque::new(),
        };
        let output = Lines::new(output, MAX_MESSAGE);
        Ok(Self { who, grace: options.cancel_grace, supervisor, input, output, log })
    }

    /// Waits for what the program does next; shows what it logs meanwhile.
    pub(super) async fn next(&mut self) -> Result<Spoken, AgentError> {
        loop {
            let line = tokio::select! {
                line = self.output.next() => line,
                line = self.log.lines.next(), if !self.log.lines.ended() => {
                    self.log.take(line).await?;
                    continue;
                }
            };
            return Ok(match line {
                Ok(Some(Line::Whole(line))) => Spoken::Line(line),
                Ok(Some(Line::Last(line))) => Spoken::Last(line),
                Ok(Some(Line::Long(_))) => Spoken::TooLong,
                // A pipe that cannot be read is as good as closed.
                Ok(None) | Err(_) => Spoken::Nothing,
            });
        }
    }

    /// Tells the program a message, which has no line breaks. Not cancellation safe.
    pub(super) async fn tell(&mut self, mut message: Vec<u8>) -> Result<(), AgentError> {
        message.push(b'\n');
        let mut write = pin!(timeout(UNREAD, self.input.write_all(&message)));
        loop {
            tokio::select! {
                written = &mut write => return match written {
                    // Whether the program goes on without having heard it, its output tells.
                    Ok(_) => Ok(()),
                    Err(_) => Err(AgentError::transient(
                        "program_stuck",
                        format!("{} has not read its standard input for {}", self.who, humantime::format_duration(UNREAD)),
                    )),
                },
                line = self.log.lines.next(), if !self.log.lines.ended() => self.log.take(line).await?,
            }
        }
    }

    /// Why the program, whose output has ended, did not say how its attempt ends.
    pub(super) async fn failed(&mut self) -> AgentError {
        let who = self.who;
        let ending = match self.wait(self.grace.max(LEAST_WAIT)).await {
            Ok(Some(Ok(status))) => format!("{who} ended without complete or fail: {status}"),
            Ok(Some(Err(error))) => format!("{who} cannot be waited for: {error}"),
            Ok(None) => format!(
                "{who} closed its standard output without complete or fail, and had not ended {} later",
                humantime::format_duration(self.grace.max(LEAST_WAIT))
            ),
            Err(stopped) => return stopped.into(),
        };
        AgentError::transient("program_failed", ending + &self.log.last_words())
    }

    /// Gives the program time to end by itself, now that its attempt has ended.
    pub(super) async fn finish(&mut self) {
        if let Ok(None) = self.wait(self.grace).await {
            tracing::debug!(who = self.who, "a program goes on after its attempt, and is ended");
        }
    }

    /// Waits until the program has ended, for so long at the most, and for the last of its log.
    async fn wait(&mut self, longest: Duration) -> Result<Option<io::Result<ExitStatus>>, Stopped> {
        let Self { supervisor, log, .. } = self;
        let ending = async {
            let mut status = None;
            loop {
                tokio::select! {
                    ended = supervisor.wait(), if status.is_none() => status = Some(ended),
                    line = log.lines.next(), if !log.lines.ended() => log.take(line).await?,
                    else => return Ok(status),
                }
            }
        };
        timeout(longest, ending).await.unwrap_or(Ok(None))
    }
}

/// The program's standard error.
struct Log {
    lines: Lines<ChildStderr>,
    context: RunContext,
    masks: Masks,
    /// How many bytes of it the run shows.
    shown: usize,
    last: VecDeque<String>,
}

impl Log {
    /// Shows a line, as long as there are not too many, and remembers it.
    async fn take(&mut self, line: io::Result<Option<Line>>) -> Result<(), Stopped> {
        let Ok(Some(Line::Whole(line) | Line::Long(line) | Line::Last(line))) = line else { return Ok(()) };
        let line = self.masks.apply(String::from_utf8_lossy(&line).trim_end());
        if line.is_empty() {
            return Ok(());
        }
        if self.last.len() == LAST_WORDS {
            self.last.pop_front();
        }
        self.last.push_back(short(&line, MAX_LAST_WORD));
        let before = self.shown;
        self.shown = before.saturating_add(LINE_COST + line.len());
        if self.shown <= MAX_LOG {
            self.context.log("debug", line).await
        } else if before <= MAX_LOG {
            let problem =
                format!("the standard error of the program is longer than {MAX_LOG} bytes: the rest is left out");
            self.context.log("warn", problem).await
        } else {
            // A program that says nothing else must not keep the thread.
            tokio::task::coop::consume_budget().await;
            Ok(())
        }
    }

    fn last_words(&self) -> String {
        if self.last.is_empty() {
            return "; its standard error is empty".to_owned();
        }
        let lines: Vec<&str> = self.last.iter().map(String::as_str).collect();
        format!("; its standard error ends with: {}", lines.join(" | "))
    }
}
