//! `runcast serve`: the node.

use std::io::Write as _;
use std::net::SocketAddr;
use std::process::ExitCode;

use super::SettingFlags;
use crate::app;
use crate::config::{Config, LogFormat};
use crate::engine::Engine;
use crate::telemetry;

pub(super) fn serve(settings: SettingFlags) -> ExitCode {
    let config = match settings.load() {
        Ok(config) => config,
        Err(code) => return code,
    };
    if let Err(error) = telemetry::init(&config.log.level, config.log.format == LogFormat::Json) {
        eprintln!("runcast: {error}");
        return ExitCode::from(2);
    }
    match actix::System::new().block_on(app::serve(config, greet)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "cannot serve");
            eprintln!("runcast: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Says where it listens, where its data is, what is ready and what to try.
fn greet(config: &Config, address: SocketAddr, engine: &Engine) {
    for (provider, missing) in app::missing_keys(config) {
        tracing::warn!(provider, "{missing}");
    }
    let data = match config.store.sqlite_file(&config.data) {
        Some(file) => std::path::absolute(&file).unwrap_or(file).display().to_string(),
        None => config.store.to_string(),
    };
    let agents: Vec<String> = engine
        .agents()
        .map(|card| match &card.model {
            Some(model) => format!("{} ({model})", card.name),
            None => format!("{} ({})", card.name, card.kind),
        })
        .collect();
    let models: Vec<String> = app::models(config)
        .into_iter()
        .map(|model| if model.ready { model.id } else { format!("{} (not ready: it has no key)", model.id) })
        .collect();
    let lines = format!(
        "runcast {} listens on http://{address}\n  data    {}\n  agents  {}\n  models  {}\n  docs    http://{address}/docs/\n  try     \
         curl -N http://{address}/v1/runs -H 'content-type: application/json' \
         -d '{{\"agent\": \"{}\", \"input\": \"Say hello.\", \"stream\": true}}'\n",
        env!("CARGO_PKG_VERSION"),
        data,
        agents.join(", "),
        if models.is_empty() { "none".to_owned() } else { models.join(", ") },
        if engine.agents().any(|card| card.name == "assistant") { "assistant" } else { "scripted" },
    );
    // Nobody may be reading, which is no reason to stop.
    std::io::stdout().write_all(lines.as_bytes()).unwrap_or_default();
}
