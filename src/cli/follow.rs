//! Following a run to its end: what `run` and `tail` share.

use std::io::{self, IsTerminal as _, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::client::ClientError;
use super::sse::{Event, Events};
use crate::run::Status;

/// How often a stream that was cut is opened again without another event coming.
const TRIES: u32 = 10;

/// A stream that has lasted so long was no failed try, even if no event came.
const LASTED: Duration = Duration::from_secs(60);

/// The wait before the first of these tries; it doubles up to the longest.
const FIRST_WAIT: Duration = Duration::from_millis(250);
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// The exit codes, for the help of the commands that follow a run.
pub(super) const EXIT_CODES: &str = "\
The exit code says how the run ended:
  0    completed
  1    failed
  2    not known: a wrong call or configuration, or the server cannot be reached or refused
  3    expired before it started
  130  cancelled (or, after a second Ctrl-C, left to itself)
  141  not known: nobody reads the output any more";

/// The exit code for a run that ended as `status`.
pub(super) fn exit_code(status: Status) -> ExitCode {
    match status {
        Status::Completed => ExitCode::SUCCESS,
        Status::Failed => ExitCode::FAILURE,
        Status::Expired => ExitCode::from(3),
        Status::Cancelled => ExitCode::from(130),
        Status::Scheduled | Status::Queued | Status::Running | Status::Waiting => ExitCode::from(2),
    }
}

/// Why a run was not followed to its end.
#[derive(Debug, thiserror::Error)]
pub(super) enum Stop {
    /// There was no stream to follow, or none any more.
    #[error(transparent)]
    Server(#[from] ClientError),
    /// The output takes nothing more.
    #[error("cannot write the output: {0}")]
    Output(#[from] io::Error),
}

impl Stop {
    /// Says it on standard error; the exit code for it.
    pub(super) fn tell(&self) -> ExitCode {
        match self {
            Self::Server(error) => error.tell(),
            // As if by the signal that other programs end with.
            Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::from(141),
            Self::Output(_) => {
                eprintln!("runcast: {self}");
                ExitCode::from(2)
            }
        }
    }
}

/// Prints the events of a run after number `seen` until it has ended, and says how; `None` when `seen`
/// was its final event. `open` gives the stream after a number. A stream that is cut is opened again.
pub(super) async fn follow(
    open: impl AsyncFn(u64) -> Result<Option<Events>, ClientError>,
    mut seen: u64,
    printer: &mut Printer,
) -> Result<Option<Status>, Stop> {
    let Some(mut events) = open(seen).await? else { return Ok(None) };
    let mut tries = 0;
    loop {
        let opened = Instant::now();
        let reason = loop {
            match events.next().await {
                Some(Ok(event)) => {
                    (seen, tries) = (event.seq, 0);
                    printer.show(&event)?;
                    if let Some(status) = ending(&event.kind) {
                        return Ok(Some(status));
                    }
                }
                Some(Err(reason)) => break reason,
                None => break "it ended without the run's end".to_owned(),
            }
        };
        if opened.elapsed() > LASTED {
            tries = 0;
        }
        printer.aside(&format!("the stream was cut after event {seen} ({reason}); opening it again"))?;
        events = loop {
            tokio::time::sleep(LONGEST_WAIT.min(FIRST_WAIT * 2_u32.pow(tries))).await;
            tries += 1;
            match open(seen).await {
                Ok(Some(events)) => break events,
                Ok(None) => return Ok(None),
                Err(error) if error.may_pass() && tries < TRIES => {}
                Err(error) => return Err(error.into()),
            }
        };
        if tries == TRIES {
            return Err(ClientError::Call(format!("the stream is cut again and again after event {seen}")).into());
        }
    }
}

/// How a run has ended when it says an event of this type.
fn ending(kind: &str) -> Option<Status> {
    Status::parse(kind.strip_prefix("run.")?).filter(|status| status.is_final())
}

/// What is printed of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// The text of the answer, as it comes.
    Text,
    /// One line an event: number, type, data.
    Lines,
    /// One JSON object an event.
    Json,
}

/// Prints events on standard output, and what is beside the point on standard error.
pub(super) struct Printer {
    form: Form,
    out: io::Stdout,
    /// Control characters could make a terminal do what an agent says.
    terminal: bool,
    at_line_start: bool,
    /// The current message has been watched from its beginning, and nothing of it was said.
    silent: bool,
    /// Some text was said.
    said: bool,
}

#[derive(Serialize)]
struct Line<'a> {
    seq: u64,
    #[serde(rename = "type")]
    kind: &'a str,
    data: &'a RawValue,
}

impl Printer {
    /// `from_start`: the events begin with the run's first.
    pub(super) fn new(form: Form, from_start: bool) -> Self {
        let out = io::stdout();
        Self { form, terminal: out.is_terminal(), out, at_line_start: true, silent: from_start, said: !from_start }
    }

    /// Prints an event.
    pub(super) fn show(&mut self, event: &Event) -> io::Result<()> {
        match self.form {
            Form::Text => self.text(event)?,
            Form::Lines => writeln!(self.out, "{} {} {}", event.seq, event.kind, event.data.replace('\n', " "))?,
            Form::Json => {
                let data: &RawValue = serde_json::from_str(&event.data)?;
                writeln!(self.out, "{}", serde_json::to_string(&Line { seq: event.seq, kind: &event.kind, data })?)?;
            }
        }
        self.out.flush()
    }

    /// Says something on standard error, on a line of its own.
    pub(super) fn aside(&mut self, text: &str) -> io::Result<()> {
        self.new_line()?;
        self.out.flush()?;
        eprintln!("runcast: {text}");
        Ok(())
    }

    fn text(&mut self, event: &Event) -> io::Result<()> {
        let data: Value = serde_json::from_str(&event.data)?;
        let text = |field: &str| data[field].as_str().unwrap_or_default();
        match event.kind.as_str() {
            "run.started" => self.silent = true,
            "message.delta" => {
                self.silent = false;
                self.say(text("text"))?;
            }
            "message.completed" => {
                if std::mem::replace(&mut self.silent, true) {
                    self.say(data["message"]["content"].as_str().unwrap_or_default())?;
                }
                self.new_line()?;
            }
            "run.retrying" => {
                let why = data["message"].as_str().unwrap_or(text("reason"));
                let when = data["due"].as_str().map(|due| format!(" at {due}")).unwrap_or_default();
                self.aside(&format!("the attempt ended early ({why}); another one follows{when}"))?;
            }
            "log" if text("level") != "debug" => self.aside(&format!("{}: {}", text("level"), text("message")))?,
            "run.completed" if !self.said && !data["output"].is_null() => {
                let output = &data["output"];
                self.say(output.as_str().unwrap_or(&format!("{output:#}")))?;
            }
            "run.failed" => self.aside(&format!("the run failed: {}: {}", text("code"), text("message")))?,
            "run.cancelled" => self.aside("the run was cancelled")?,
            "run.expired" => self.aside("the run expired before it started")?,
            _ => {}
        }
        if ending(&event.kind).is_some() { self.new_line() } else { Ok(()) }
    }

    fn say(&mut self, text: &str) -> io::Result<()> {
        let Some(last) = text.chars().last() else { return Ok(()) };
        if self.terminal {
            let tame = |c: &char| !c.is_control() || matches!(c, '\n' | '\t');
            self.out.write_all(text.chars().filter(tame).collect::<String>().as_bytes())?;
        } else {
            self.out.write_all(text.as_bytes())?;
        }
        self.said = true;
        self.at_line_start = last == '\n';
        Ok(())
    }

    fn new_line(&mut self) -> io::Result<()> {
        if !std::mem::replace(&mut self.at_line_start, true) { writeln!(self.out) } else { Ok(()) }
    }
}
