//! `runcast bench start`: how soon a new process answers.

use std::fmt;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use clap::Args;
use http_body_util::BodyExt;
use hyper::Method;
use serde::Serialize;

use super::connection::{Connection, Target};
use super::figures::{Percentiles, mib, print};
use super::procfs;
use super::server::Own;

/// How often a server that is not there yet is asked.
const POLL: Duration = Duration::from_micros(500);

/// How long a start may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long a server is left alone before its memory is read.
const SETTLE: Duration = Duration::from_millis(300);

/// Measures the start: from the start of a process, on an empty data directory, to its first answers.
#[derive(Debug, Args)]
pub(super) struct StartArgs {
    /// How many processes are started, one after the other.
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    times: u32,
    /// Prints the report as one JSON object.
    #[arg(long)]
    json: bool,
}

/// The figures.
#[derive(Debug, Serialize)]
struct Report {
    version: &'static str,
    build: &'static str,
    times: u32,
    health_ms: Option<Percentiles>,
    ready_ms: Option<Percentiles>,
    idle_kib: Option<u64>,
}

pub(super) async fn measure(args: &StartArgs) -> Result<bool, String> {
    let (mut health, mut ready, mut idle) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..args.times {
        // A port that was free a moment ago: the greeting, which tells the port, comes later than health.
        let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let address = free.map_err(|error| format!("cannot find a free port: {error}"))?;
        let target = Target { authority: address.to_string(), prefix: String::new(), key: None };
        let began = Instant::now();
        let mut own = Own::spawn(&target.authority)?;
        let answers = async {
            answered(&target, "/health").await;
            health.push(began.elapsed());
            answered(&target, "/ready").await;
            ready.push(began.elapsed());
        };
        if tokio::time::timeout(PATIENCE, answers).await.is_err() {
            return Err(format!("the server did not answer within {} s", PATIENCE.as_secs()));
        }
        own.greeted().await?;
        tokio::time::sleep(SETTLE).await;
        idle.extend(own.pid().and_then(procfs::rss_kib));
    }
    idle.sort_unstable();
    let report = Report {
        version: env!("CARGO_PKG_VERSION"),
        build: super::BUILD,
        times: args.times,
        health_ms: Percentiles::of(health),
        ready_ms: Percentiles::of(ready),
        idle_kib: idle.get(idle.len() / 2).copied(),
    };
    print(&report, args.json)?;
    Ok(true)
}

/// Asks until the answer is a success.
async fn answered(target: &Target, path: &str) {
    let mut connection = Connection::default();
    loop {
        let answer = connection.send(target, Method::GET, path, None).await;
        if let Ok(answer) = answer
            && answer.into_body().collect().await.is_ok()
        {
            return;
        }
        tokio::time::sleep(POLL).await;
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let times = |times: Option<Percentiles>| times.map_or_else(|| "-".to_owned(), |times| times.to_string());
        writeln!(f, "starts         {} ({} build)", self.times, self.build)?;
        writeln!(f, "first health   {}", times(self.health_ms))?;
        writeln!(f, "ready          {}", times(self.ready_ms))?;
        write!(f, "idle memory    {} (median)", mib(self.idle_kib))
    }
}
