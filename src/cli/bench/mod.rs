//! `runcast bench`: the load tester.
//!
//! The load is driven by one thread, so that on a small machine it leaves the rest to the server.

mod check;
mod compare;
mod connection;
mod figures;
mod procfs;
mod runs;
mod server;
mod start;
mod threads;
mod viewers;

use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::client::KeyFlag;
use server::Server;

/// How this program was built; figures of a debug build say nothing.
const BUILD: &str = if cfg!(debug_assertions) { "debug" } else { "release" };

/// Measures what this machine holds: throughput, latency, memory, start.
///
/// The exit code is 0 when everything was right, 1 when something was lost, repeated or refused, and 2
/// when nothing could be measured.
#[derive(Debug, Args)]
pub(super) struct BenchArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    Runs(runs::RunsArgs),
    Compare(compare::CompareArgs),
    Start(start::StartArgs),
    Threads(threads::ThreadsArgs),
    Viewers(viewers::ViewersArgs),
}

/// The flags that say what is under load.
#[derive(Debug, Args)]
struct TargetFlags {
    /// Base URL of a server that runs already, http:// only; else a server of its own is started.
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// Process id of that server, to measure its CPU time and memory.
    #[arg(long, value_name = "PID", requires = "url")]
    pid: Option<u32>,
    #[command(flatten)]
    key: KeyFlag,
}

impl TargetFlags {
    async fn server(&self) -> Result<Server, String> {
        Server::get(self.url.as_deref(), self.pid, &self.key).await
    }
}

pub(super) fn bench(args: &BenchArgs) -> ExitCode {
    if cfg!(debug_assertions) {
        eprintln!("runcast: this is a debug build; its figures say nothing about a release");
    }
    let measured = async {
        match &args.what {
            What::Runs(args) => runs::measure(args).await,
            What::Compare(args) => compare::measure(args).await,
            What::Start(args) => start::measure(args).await,
            What::Threads(args) => threads::measure(args).await,
            What::Viewers(args) => viewers::measure(args).await,
        }
    };
    let interrupted = async {
        // What was started is dropped with the measurement.
        tokio::select! {
            measured = measured => Some(measured),
            _ = tokio::signal::ctrl_c() => None,
        }
    };
    match super::on_runtime(interrupted) {
        Some(Ok(true)) => ExitCode::SUCCESS,
        Some(Ok(false)) => ExitCode::FAILURE,
        Some(Err(error)) => {
            eprintln!("runcast: {error}");
            ExitCode::from(2)
        }
        None => ExitCode::from(130),
    }
}
