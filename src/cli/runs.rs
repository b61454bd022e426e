//! `runcast runs`: the runs on a server.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Args;
use serde_json::Value;

use super::client::ServerFlags;
use super::follow::Stop;
use super::table::{self, age, excerpt};
use crate::clock::{Clock, SystemClock};
use crate::run::{Status, Timestamp};

/// Lists the runs on a server, youngest first.
#[derive(Debug, Args)]
pub(super) struct RunsArgs {
    #[command(flatten)]
    server: ServerFlags,
    /// Only those in this status, or in one of several, separated by commas: scheduled, queued, running,
    /// waiting, completed, failed, cancelled, expired.
    #[arg(long, value_name = "STATUS", value_delimiter = ',', value_parser = status)]
    status: Vec<Status>,
    /// Only those of this agent.
    #[arg(long, value_name = "NAME")]
    agent: Option<String>,
    /// How many at the most.
    #[arg(long, value_name = "N", default_value_t = 20)]
    limit: usize,
    /// Prints each run as the JSON object of the API, on a line of its own.
    #[arg(long)]
    json: bool,
}

fn status(text: &str) -> Result<Status, String> {
    Status::parse(text).ok_or_else(|| format!("expected one of {}", Status::ALL.map(Status::as_str).join(", ")))
}

pub(super) fn runs(args: &RunsArgs) -> ExitCode {
    super::on_runtime(list(args)).map_or_else(|stop: Stop| stop.tell(), |()| ExitCode::SUCCESS)
}

async fn list(args: &RunsArgs) -> Result<(), Stop> {
    let mut query = vec![("limit", args.limit.to_string())];
    if !args.status.is_empty() {
        let statuses: Vec<&str> = args.status.iter().map(|status| status.as_str()).collect();
        query.push(("status", statuses.join(",")));
    }
    query.extend(args.agent.clone().map(|agent| ("agent", agent)));
    let runs = args.server.client()?.list("/v1/runs", &query).await?;
    if args.json {
        let mut out = io::stdout().lock();
        runs.iter().try_for_each(|run| writeln!(out, "{run}"))?;
        return Ok(out.flush()?);
    }
    if runs.is_empty() {
        eprintln!("runcast: there are no such runs");
        return Ok(());
    }
    let now = SystemClock.now();
    let rows: Vec<[String; 6]> = runs.iter().map(|run| row(run, now)).collect();
    Ok(table::print(["ID", "STATUS", "AGENT", "ATTEMPT", "AGE", "OUTPUT OR ERROR"], &rows)?)
}

fn row(run: &Value, now: Timestamp) -> [String; 6] {
    let text = |field: &str| run[field].as_str().unwrap_or_default().to_owned();
    let created = run["created_at"].as_str().and_then(|at| at.parse().ok());
    let told = match (&run["error"], &run["output"]) {
        (Value::Object(error), _) => {
            let part = |name: &str| error.get(name).and_then(Value::as_str).unwrap_or_default();
            format!("{}: {}", part("code"), part("message"))
        }
        (_, Value::Null) => String::new(),
        (_, Value::String(output)) => output.clone(),
        (_, output) => output.to_string(),
    };
    [
        text("id"),
        text("status"),
        text("agent"),
        run["attempt"].to_string(),
        created.map(|at| age(now.since(at))).unwrap_or_default(),
        excerpt(&told),
    ]
}
