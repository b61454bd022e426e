//! `runcast bench compare`: the same runs on one node and on several, on every broker that is given.

use std::time::{Duration, Instant};

use clap::Args;
use reqwest::Method;
use serde_json::{Value, json};

use super::runs::{Report, Work, run};
use super::server::{Own, Server};
use crate::cli::client::{Client, KeyFlag};
use crate::cli::table;
use crate::config::Config;

/// Compares brokers on the same work: one node on memory and SQLite, then an API node and workers on each
/// broker that is given, with PostgreSQL.
///
/// All nodes are processes of their own on this machine. Brokers are used under the namespace `bench`, and
/// the database is left with its runs: name one that nothing else uses. Figures of one call can be compared
/// with each other; those of two calls only if nothing else was going on.
#[derive(Debug, Args)]
pub(super) struct CompareArgs {
    /// A broker, such as redis://127.0.0.1:6379 or amqp://127.0.0.1:5672; may be given more than once.
    #[arg(long, value_name = "URL")]
    broker: Vec<String>,
    /// The PostgreSQL database for the nodes on brokers.
    #[arg(long, value_name = "URL")]
    store: Option<String>,
    /// Workers beside the API node.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=64))]
    workers: u8,
    /// How often all are measured, in turns.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Process ids of broker and database on this machine, whose CPU time counts with that of the nodes.
    #[arg(long, value_name = "PID")]
    service_pid: Vec<u32>,
    #[command(flatten)]
    work: Work,
    /// Prints each measurement as one JSON object.
    #[arg(long)]
    json: bool,
}

/// How long a node may take to find its services.
const READY: Duration = Duration::from_secs(30);

/// Where the work is done.
enum Place<'a> {
    Embedded,
    Cluster { broker: &'a str, store: &'a str },
}

impl Place<'_> {
    /// Without whatever may be a secret in a URL.
    fn name(&self) -> String {
        match self {
            Self::Embedded => "memory + sqlite".to_owned(),
            Self::Cluster { broker, store } => {
                let scheme = |url: &str| url.split("://").next().unwrap_or_default().to_owned();
                format!("{} + {}", scheme(broker), scheme(store))
            }
        }
    }

    /// Starts the nodes; the first answers requests.
    async fn start(&self, workers: u8) -> Result<(Server, Vec<Own>), String> {
        let Self::Cluster { broker, store } = self else {
            return Ok((Server::get(None, None, &KeyFlag::default()).await?, Vec::new()));
        };
        let env = [("RUNCAST_BROKER", *broker), ("RUNCAST_STORE", *store), ("RUNCAST_NAMESPACE", "bench")];
        let mut own = Vec::new();
        for _ in 0..workers {
            let mut worker = Own::spawn_with("127.0.0.1:0", &["--role", "worker"], &env)?;
            ready(&worker.greeted().await?).await?;
            own.push(worker);
        }
        let server = Server::own(Own::spawn_with("127.0.0.1:0", &["--role", "api"], &env)?).await?;
        ready(&format!("http://{}", server.target.authority)).await?;
        Ok((server, own))
    }
}

/// Waits until a node has found its services.
async fn ready(url: &str) -> Result<(), String> {
    let client = Client::new(url, &KeyFlag::default()).map_err(|error| error.to_string())?;
    let began = Instant::now();
    loop {
        match client.call(Method::GET, "/ready").await {
            Ok(_) => return Ok(()),
            Err(error) if began.elapsed() > READY => return Err(format!("a node does not get ready: {error}")),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

pub(super) async fn measure(args: &CompareArgs) -> Result<bool, String> {
    let mut places = vec![Place::Embedded];
    if !args.broker.is_empty() {
        let store = args.store.as_deref().ok_or("--store: expected a PostgreSQL database for the nodes on brokers")?;
        places.extend(args.broker.iter().map(|broker| Place::Cluster { broker, store }));
    }
    for place in &places {
        if let Place::Cluster { broker, store } = place {
            // What a node would refuse is told before anything is measured.
            let text = format!("broker = {broker:?}\nstore = {store:?}\n");
            Config::from_toml(&text).map_err(|error| error.to_string())?;
        }
    }
    let mut fine = true;
    let mut rows = Vec::new();
    for round in 1..=args.rounds {
        for place in &places {
            let (server, workers) = place.start(args.workers).await?;
            let mut pids: Vec<u32> = server.pid.into_iter().chain(workers.iter().filter_map(Own::pid)).collect();
            if matches!(place, Place::Cluster { .. }) {
                pids.extend(&args.service_pid);
            }
            let report = run(&server.target, &pids, &args.work).await?;
            fine &= report.is_fine();
            if args.json {
                let mut value = serde_json::to_value(&report).map_err(|error| error.to_string())?;
                value["on"] = Value::from(place.name());
                value["round"] = json!(round);
                println!("{value}");
            }
            rows.push(row(place, &report));
        }
    }
    if !args.json {
        let head = ["ON", "RUNS/S", "FIRST TOKEN P50", "P99", "END P50", "CPU S/1000 RUNS", "FAULTS"];
        table::print(head, &rows).map_err(|error| error.to_string())?;
    }
    Ok(fine)
}

fn row(place: &Place<'_>, report: &Report) -> [String; 7] {
    let figures = report.figures();
    [
        place.name(),
        figures.runs_per_s,
        figures.first_token_p50,
        figures.first_token_p99,
        figures.end_p50,
        figures.cpu,
        if report.is_fine() { "none".to_owned() } else { "SOME: measure them with `bench runs`".to_owned() },
    ]
}
