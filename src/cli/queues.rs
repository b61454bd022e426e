//! `runcast queues`: how much waits where on a server, and what waits for a person.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use reqwest::Method;
use serde_json::Value;

use super::client::{Client, ClientError, ServerFlags};
use super::follow::Stop;
use super::table::{self, age, excerpt};
use crate::clock::{Clock, SystemClock};

/// The depths, in the order in which they are told.
const DEPTHS: [&str; 7] = ["pending", "high_priority", "processing", "retry", "scheduled", "waiting", "failed"];

/// How many dead letters are read at a time.
const PAGE: usize = 100;

/// Shows how much waits where, and the dead letters: failed runs, and messages that no run could be made of.
#[derive(Debug, Args)]
pub(super) struct QueuesArgs {
    #[command(subcommand)]
    action: Option<Action>,
    #[command(flatten)]
    server: ServerFlags,
    /// Prints JSON, one object a line.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Lists the dead letters, oldest first.
    Dead {
        /// How many at the most.
        #[arg(long, value_name = "N", default_value_t = 20)]
        limit: usize,
    },
    /// Shows one dead letter.
    Show {
        /// Its id.
        id: String,
    },
    /// Makes new runs of dead letters; those that failed go on from their last finished step.
    Requeue {
        /// Their ids.
        #[arg(required_unless_present = "all")]
        ids: Vec<String>,
        /// All there are.
        #[arg(long, conflicts_with = "ids")]
        all: bool,
    },
    /// Removes dead letters; the runs they are about stay.
    Purge {
        /// Their ids.
        #[arg(required_unless_present = "all")]
        ids: Vec<String>,
        /// All there are.
        #[arg(long, conflicts_with = "ids")]
        all: bool,
    },
}

pub(super) fn queues(args: &QueuesArgs) -> ExitCode {
    super::on_runtime(act(args)).map_or_else(|stop: Stop| stop.tell(), |()| ExitCode::SUCCESS)
}

async fn act(args: &QueuesArgs) -> Result<(), Stop> {
    let client = args.server.client()?;
    match &args.action {
        None => depths(&client, args.json).await,
        Some(Action::Dead { limit }) => {
            let letters = letters(&client, *limit).await?;
            if args.json {
                return lines(&letters);
            }
            if letters.is_empty() {
                eprintln!("runcast: there are no dead letters");
                return Ok(());
            }
            let rows: Vec<_> = letters.iter().map(row).collect();
            Ok(table::print(["ID", "SOURCE", "AGE", "REASON"], &rows)?)
        }
        Some(Action::Show { id }) => {
            let letter = client.call(Method::GET, &format!("/v1/queues/dead/{id}")).await?;
            match args.json {
                true => lines(&[letter]),
                false => Ok(writeln!(io::stdout(), "{letter:#}")?),
            }
        }
        Some(Action::Requeue { ids, all }) => requeue(&client, ids, *all, args.json).await,
        Some(Action::Purge { all: true, .. }) => {
            let answer = client.call(Method::POST, "/v1/queues/dead/purge").await?;
            Ok(writeln!(io::stdout(), "removed {}", answer["purged"])?)
        }
        Some(Action::Purge { ids, .. }) => {
            for id in ids {
                client.call(Method::DELETE, &format!("/v1/queues/dead/{id}")).await?;
            }
            Ok(writeln!(io::stdout(), "removed {}", ids.len())?)
        }
    }
}

async fn depths(client: &Client, json: bool) -> Result<(), Stop> {
    let depths = client.call(Method::GET, "/v1/queues").await?;
    if json {
        return lines(&[depths]);
    }
    let rows = DEPTHS.map(|name| [name.to_owned(), depths[name].to_string()]);
    Ok(table::print(["QUEUE", "RUNS"], &rows)?)
}

async fn letters(client: &Client, limit: usize) -> Result<Vec<Value>, ClientError> {
    let (mut letters, mut cursor) = (Vec::new(), String::new());
    while letters.len() < limit {
        let page = PAGE.min(limit - letters.len());
        let mut answer = client.call(Method::GET, &format!("/v1/queues/dead?limit={page}{cursor}")).await?;
        if let Value::Array(data) = answer["data"].take() {
            letters.extend(data);
        }
        match answer["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    Ok(letters)
}

async fn requeue(client: &Client, ids: &[String], all: bool, json: bool) -> Result<(), Stop> {
    let ids = match all {
        true => {
            letters(client, usize::MAX).await?.iter().filter_map(|letter| Some(letter["id"].as_str()?.into())).collect()
        }
        false => ids.to_vec(),
    };
    let mut refused = None;
    for id in ids {
        match client.call(Method::POST, &format!("/v1/queues/dead/{id}/requeue")).await {
            Ok(run) if json => lines(&[run])?,
            Ok(run) => writeln!(io::stdout(), "{id} goes on as run {}", run["id"].as_str().unwrap_or_default())?,
            Err(error) if all => {
                eprintln!("runcast: {id}: {error}");
                refused = Some(error);
            }
            Err(error) => return Err(error.into()),
        }
    }
    refused.map_or(Ok(()), |error| Err(error.into()))
}

fn row(letter: &Value) -> [String; 4] {
    let text = |field: &str| letter[field].as_str().unwrap_or_default().to_owned();
    let at = letter["at"].as_str().and_then(|at| at.parse().ok());
    let told = match letter["payload"].as_str() {
        Some(payload) => format!("{}: {payload}", text("reason")),
        None => text("reason"),
    };
    [text("id"), text("source"), at.map(|at| age(SystemClock.now().since(at))).unwrap_or_default(), excerpt(&told)]
}

fn lines(values: &[Value]) -> Result<(), Stop> {
    let mut out = io::stdout().lock();
    values.iter().try_for_each(|value| writeln!(out, "{value}"))?;
    Ok(out.flush()?)
}
