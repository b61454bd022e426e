//! `runcast runs`: the runs on a server.

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde_json::Value;

use super::client::ServerFlags;
use super::follow::Stop;
use crate::clock::{Clock, SystemClock};
use crate::run::{Status, Timestamp};

/// How many characters of an output or an error are shown.
const EXCERPT: usize = 60;

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
    let mut out = io::stdout().lock();
    if args.json {
        runs.iter().try_for_each(|run| writeln!(out, "{run}"))?;
        return Ok(out.flush()?);
    }
    if runs.is_empty() {
        eprintln!("runcast: there are no such runs");
        return Ok(());
    }
    let now = SystemClock.now();
    let rows: Vec<[String; 6]> = runs.iter().map(|run| row(run, now)).collect();
    let head = ["ID", "STATUS", "AGENT", "ATTEMPT", "AGE", "OUTPUT OR ERROR"].map(str::to_owned);
    let widths: [usize; 6] = std::array::from_fn(|column| {
        rows.iter().chain([&head]).map(|row| row[column].chars().count()).max().unwrap_or_default()
    });
    for row in [&head].into_iter().chain(&rows) {
        let cells: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        writeln!(out, "{}", cells.join("  ").trim_end())?;
    }
    Ok(out.flush()?)
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

/// The largest unit that fits: `59s`, `3m`, `2h`, `4d`.
fn age(age: Duration) -> String {
    let seconds = age.as_secs();
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m", seconds / 60),
        3_600..86_400 => format!("{}h", seconds / 3_600),
        86_400.. => format!("{}d", seconds / 86_400),
    }
}

/// The beginning of a text, on one line.
fn excerpt(text: &str) -> String {
    // Whatever would move the cursor counts as a space.
    let mut words = text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty());
    let mut line = words.next().unwrap_or_default().to_owned();
    for word in words {
        if line.chars().nth(EXCERPT).is_some() {
            break;
        }
        line.push(' ');
        line.push_str(word);
    }
    match line.char_indices().nth(EXCERPT) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_excerpt_is_one_short_line() {
        assert_eq!(excerpt(" a\n\tb\u{1b}[2J "), "a b [2J");
        assert_eq!(excerpt(&"é".repeat(60)), "é".repeat(60));
        assert_eq!(excerpt(&"é".repeat(61)), format!("{}…", "é".repeat(60)));
        assert_eq!(excerpt(&"ab ".repeat(40)).chars().count(), 61);
    }

    #[test]
    fn an_age_has_its_largest_unit() {
        let ages = [0, 59, 60, 3_599, 3_600, 86_399, 86_400, 864_000];
        let told = ages.map(|seconds| age(Duration::from_secs(seconds)));
        assert_eq!(told, ["0s", "59s", "1m", "59m", "1h", "23h", "1d", "10d"]);
    }
}
