//! `runcast tail`: the events of a run on a server.

use std::process::ExitCode;

use clap::Args;

use super::client::{Client, ClientError, ServerFlags};
use super::follow::{EXIT_CODES, Form, Printer, Stop, exit_code, follow};
use crate::run::{RunId, Status};

/// Prints the events of a run as they happen, until it ends.
///
/// One line an event: its number, its type, its data as JSON. A run that has ended is told from its
/// beginning, too. If the connection is lost, it goes on after the last event it has seen, without
/// repeating or losing any.
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES, after_long_help = EXIT_CODES)]
pub(super) struct TailArgs {
    /// The run's id, as `runcast runs` lists it.
    #[arg(value_parser = |id: &str| id.parse::<RunId>().map_err(|_| "expected the id of a run, a UUID"))]
    id: RunId,
    #[command(flatten)]
    server: ServerFlags,
    /// Leaves out the events up to this number.
    #[arg(long, value_name = "N", default_value_t = 0)]
    after: u64,
    /// Prints each event as a JSON object on a line of its own: seq, type, data.
    #[arg(long, conflicts_with = "text")]
    json: bool,
    /// Prints the text of the answer alone.
    #[arg(long)]
    text: bool,
}

pub(super) fn tail(args: &TailArgs) -> ExitCode {
    super::on_runtime(watch(args)).unwrap_or_else(|stop: Stop| stop.tell())
}

async fn watch(args: &TailArgs) -> Result<ExitCode, Stop> {
    let client = args.server.client()?;
    let id = args.id.to_string();
    let form = match (args.text, args.json) {
        (true, _) => Form::Text,
        (_, true) => Form::Json,
        (false, false) => Form::Lines,
    };
    let mut printer = Printer::new(form, args.after == 0);
    let ended = follow(async |seen| client.stream(&id, seen).await, args.after, &mut printer).await?;
    let status = match ended {
        Some(status) => status,
        None => status_of(&client, &id).await?,
    };
    Ok(exit_code(status))
}

async fn status_of(client: &Client, id: &str) -> Result<Status, ClientError> {
    let run = client.get(id).await?;
    run["status"]
        .as_str()
        .and_then(Status::parse)
        .ok_or_else(|| ClientError::Call("the run has no known status".to_owned()))
}
