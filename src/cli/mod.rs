//! The command line: one file a command.

mod bench;
mod client;
mod config;
mod doctor;
mod follow;
mod migrate;
mod queues;
mod run;
mod runs;
mod serve;
mod sse;
mod supervise;
mod table;
mod tail;
mod tools;

use std::collections::BTreeMap;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::config::{Config, Flags};

/// Starts AI-agent runs over HTTP, streams their tokens over SSE, and never loses one.
#[derive(Debug, Parser)]
#[command(name = "runcast", version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    settings: SettingFlags,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serves the HTTP API and executes runs (the default command).
    Serve(SettingFlags),
    /// Prints the effective configuration, secrets masked, and where each value comes from.
    Config(SettingFlags),
    Run(run::RunArgs),
    Tail(tail::TailArgs),
    Runs(runs::RunsArgs),
    Queues(queues::QueuesArgs),
    /// Checks configuration, broker, store, schema, queues, nodes, provider keys and clocks, and says what to do.
    Doctor(SettingFlags),
    Migrate(migrate::MigrateArgs),
    Tools(tools::ToolsArgs),
    Bench(bench::BenchArgs),
    #[command(hide = true)]
    Supervise(supervise::SuperviseArgs),
}

/// The flags that set configuration keys.
#[derive(Debug, Default, Args)]
struct SettingFlags {
    /// Address to listen on.
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<String>,
    /// Directory for the data.
    #[arg(long, value_name = "DIR")]
    data: Option<String>,
    /// Configuration file; ./runcast.toml if it is there.
    #[arg(long, value_name = "FILE")]
    config: Option<String>,
    /// Broker: memory, redis://… or amqp://….
    #[arg(long, value_name = "URL")]
    broker: Option<String>,
    /// Store: sqlite, sqlite:PATH or postgres://….
    #[arg(long, value_name = "URL")]
    store: Option<String>,
    /// Role of this node: api, worker or all.
    #[arg(long, value_name = "ROLE")]
    role: Option<String>,
}

impl SettingFlags {
    /// The configuration these flags, the environment, `.env` and the file make. Prints the faults.
    fn load(self) -> Result<Config, ExitCode> {
        let Self { listen, data, config, broker, store, role } = self;
        let flags = Flags { listen, data, config, broker, store, role };
        // Variables that are not UTF-8 cannot be ours.
        let env: BTreeMap<String, String> = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        let here = std::env::current_dir().unwrap_or_default();
        Config::load(&flags, &env, &here).map_err(|error| {
            eprintln!("runcast: the configuration does not make sense\n{error}");
            ExitCode::from(2)
        })
    }
}

/// Runs the command line. The exit code is 0 for success, 1 for failure, 2 for a wrong call or
/// configuration; `run` and `tail` have their own, which say how the run ended.
pub fn main() -> ExitCode {
    // Before anything that could open a connection. An embedding test may have installed one.
    rustls::crypto::ring::default_provider().install_default().unwrap_or_default();
    let cli = Cli::parse();
    match cli.command.unwrap_or(Command::Serve(cli.settings)) {
        Command::Serve(settings) => serve::serve(settings),
        Command::Config(settings) => config::config(settings),
        Command::Run(args) => run::run(args),
        Command::Tail(args) => tail::tail(&args),
        Command::Runs(args) => runs::runs(&args),
        Command::Queues(args) => queues::queues(&args),
        Command::Doctor(settings) => doctor::doctor(settings),
        Command::Migrate(args) => migrate::migrate(args),
        Command::Tools(args) => tools::tools(args),
        Command::Bench(args) => bench::bench(&args),
        Command::Supervise(args) => supervise::supervise(&args),
    }
}

/// Runs a client's work on a thread of its own runtime: this one.
fn on_runtime<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    #[expect(clippy::expect_used, reason = "without an event loop there is nothing to go on with")]
    runtime.expect("the system gives an event loop").block_on(work)
}
