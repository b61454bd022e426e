//! `runcast run`: one run, started, followed and ended from the command line.

use std::io::Read as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use futures_util::StreamExt;
use serde_json::{Map, Value, json};
use tokio::signal::unix::{SignalKind, signal};

use super::SettingFlags;
use super::client::{Client, ClientError, KeyFlag};
use super::follow::{EXIT_CODES, Form, Printer, Stop, exit_code, follow};
use super::sse::Events;
use crate::app::Runcast;
use crate::config::{BrokerUrl, LogFormat, Origin, Role, StoreUrl};
use crate::engine::{CreateRun, Watched};
use crate::run::{Input, RunId, Tenant};
use crate::telemetry;

/// Gives a prompt to an agent and prints its answer as it comes.
///
/// The run is executed in this very process, by the agents of the configuration, and leaves nothing
/// behind; with --url it is executed by a server, which keeps it. A run that is tried again starts its
/// text over on a new line. Ctrl-C cancels the run; a second one leaves at once.
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES, after_long_help = EXIT_CODES)]
pub(super) struct RunArgs {
    /// What the agent is asked; - reads it from standard input.
    prompt: String,
    /// The agent; else `assistant`, which is there once the environment names a model provider
    /// (OPENAI_API_KEY, OPENAI_BASE_URL, ANTHROPIC_API_KEY or GEMINI_API_KEY), else `scripted`, which repeats the prompt.
    #[arg(long, value_name = "NAME")]
    agent: Option<String>,
    /// The agent's own options, a JSON object such as '{"delay_ms": 50}'.
    #[arg(long, value_name = "JSON", value_parser = object, default_value = "{}")]
    params: Map<String, Value>,
    /// Base URL of a server that is to execute the run, such as http://127.0.0.1:7070.
    #[arg(long, value_name = "URL", conflicts_with = "config")]
    url: Option<String>,
    #[command(flatten)]
    key: KeyFlag,
    /// Prints each event as a JSON object on a line of its own: seq, type, data.
    #[arg(long)]
    json: bool,
    /// Configuration file; ./runcast.toml if it is there.
    #[arg(long, value_name = "FILE")]
    config: Option<String>,
}

fn object(text: &str) -> Result<Map<String, Value>, String> {
    serde_json::from_str(text).map_err(|error| format!("expected a JSON object: {error}"))
}

/// Who executes the run.
#[derive(Clone)]
enum Executor {
    Here(Runcast),
    There(Client),
}

pub(super) fn run(args: RunArgs) -> ExitCode {
    match args.url.as_deref().map(|url| Client::new(url, &args.key)) {
        Some(Ok(client)) => {
            super::on_runtime(tokio::task::LocalSet::new().run_until(drive(Executor::There(client), args)))
        }
        Some(Err(error)) => error.tell(),
        None => here(args),
    }
}

fn here(args: RunArgs) -> ExitCode {
    let mut config = match (SettingFlags { config: args.config.clone(), ..SettingFlags::default() }).load() {
        Ok(config) => config,
        Err(code) => return code,
    };
    if config.origin("log.level") == Origin::Default {
        config.log.level = "warn".to_owned();
    }
    if let Err(error) = telemetry::init(&config.log.level, config.log.format == LogFormat::Json) {
        return ClientError::Call(error).tell();
    }
    let data = match tempfile::Builder::new().prefix("runcast-run-").tempdir() {
        Ok(data) => data,
        Err(error) => return ClientError::Call(format!("cannot make a directory for the run: {error}")).tell(),
    };
    config.data = data.path().to_owned();
    config.store = StoreUrl::Sqlite { path: None };
    config.broker = BrokerUrl::Memory;
    config.role = Role::All;
    actix::System::new().block_on(async {
        match Runcast::builder().config(config).build().await {
            Ok(runcast) => {
                let code = drive(Executor::Here(runcast.clone()), args).await;
                // Nothing is worth waiting for.
                runcast.shut_down(Duration::ZERO).await;
                code
            }
            Err(error) => ClientError::Call(error.to_string()).tell(),
        }
    })
}

async fn drive(executor: Executor, args: RunArgs) -> ExitCode {
    let form = if args.json { Form::Json } else { Form::Text };
    let started = async {
        let prompt = match args.prompt.as_str() {
            "-" => stdin()?,
            prompt => prompt.to_owned(),
        };
        let agent = match args.agent {
            Some(agent) => agent,
            None => executor.default_agent().await?,
        };
        executor.create(prompt, agent, args.params).await
    };
    let id = match started.await {
        Ok(id) => id,
        Err(error) => return error.tell(),
    };
    let mut interrupts = match signal(SignalKind::interrupt()) {
        Ok(interrupts) => interrupts,
        Err(error) => return ClientError::Call(format!("cannot hear Ctrl-C: {error}")).tell(),
    };
    let mut printer = Printer::new(form, true);
    let following = follow(async |seen| executor.stream(&id, seen).await, 0, &mut printer);
    tokio::pin!(following);
    let mut asked = false;
    loop {
        let ended = tokio::select! {
            ended = &mut following => ended,
            _ = interrupts.recv() => {
                if std::mem::replace(&mut asked, true) {
                    return ExitCode::from(130);
                }
                eprintln!("\nruncast: cancelling the run; Ctrl-C again leaves at once");
                let (executor, id) = (executor.clone(), id.clone());
                tokio::task::spawn_local(async move {
                    if let Err(error) = executor.cancel(&id).await {
                        eprintln!("runcast: the run could not be cancelled: {error}");
                    }
                });
                continue;
            }
        };
        return match ended {
            Ok(Some(status)) => exit_code(status),
            Ok(None) => ExitCode::from(2),
            Err(stop) => {
                let code = stop.tell();
                if let (Stop::Server(_), Executor::There(client)) = (&stop, &executor) {
                    eprintln!("runcast: the run may go on; follow it with: runcast tail {id} --url {}", client.base());
                }
                code
            }
        };
    }
}

fn stdin() -> Result<String, ClientError> {
    let mut text = String::new();
    match std::io::stdin().read_to_string(&mut text) {
        Ok(_) => Ok(text),
        Err(error) => Err(ClientError::Call(format!("cannot read the prompt from standard input: {error}"))),
    }
}

impl Executor {
    async fn default_agent(&self) -> Result<String, ClientError> {
        let there = match self {
            Self::Here(runcast) => runcast.engine().agents().any(|card| card.name == "assistant"),
            Self::There(client) => client.list("/v1/agents", &[]).await?.iter().any(|card| card["name"] == "assistant"),
        };
        if there {
            return Ok("assistant".to_owned());
        }
        eprintln!(
            "runcast: there is no agent assistant {}, so the scripted agent answers: no model is behind it",
            match self {
                Self::Here(_) => "(set OPENAI_API_KEY, OPENAI_BASE_URL, ANTHROPIC_API_KEY or GEMINI_API_KEY)",
                Self::There(_) => "on the server",
            },
        );
        Ok("scripted".to_owned())
    }

    async fn create(&self, prompt: String, agent: String, params: Map<String, Value>) -> Result<String, ClientError> {
        match self {
            Self::There(client) => {
                let run = client.create(&json!({"agent": agent, "input": prompt, "params": params})).await?;
                let id = run["id"].as_str().ok_or_else(|| ClientError::Call("the new run has no id".to_owned()))?;
                Ok(id.to_owned())
            }
            Self::Here(runcast) => {
                let wish = CreateRun::new(Tenant::default(), agent, Input::Text(prompt));
                let wish = CreateRun { params, ..wish };
                let created = runcast.engine().create(wish).await;
                created.map(|(stored, _)| stored.run.spec.id.to_string()).map_err(call)
            }
        }
    }

    async fn stream(&self, id: &str, after: u64) -> Result<Option<Events>, ClientError> {
        match self {
            Self::There(client) => client.stream(id, after).await,
            Self::Here(runcast) => match runcast.engine().watch(&Tenant::default(), run_id(id)?, after).await {
                Ok(Watched::Viewer(viewer)) => Ok(Some(Events::new(viewer.map(Ok).boxed_local()))),
                Ok(Watched::SeenAll) => Ok(None),
                Err(error) => Err(call(error)),
            },
        }
    }

    async fn cancel(&self, id: &str) -> Result<(), ClientError> {
        match self {
            Self::There(client) => client.cancel(id).await.map(drop),
            Self::Here(runcast) => {
                runcast.engine().cancel(&Tenant::default(), run_id(id)?).await.map(drop).map_err(call)
            }
        }
    }
}

fn run_id(id: &str) -> Result<RunId, ClientError> {
    id.parse().map_err(call)
}

fn call(error: impl std::fmt::Display) -> ClientError {
    ClientError::Call(error.to_string())
}
