//! Where log lines go: standard error, as text or as JSON.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::{LevelFilter, ParseError};

/// Sends log lines that pass `directives` (the syntax of `EnvFilter`) to standard error. Does nothing
/// when the process has a subscriber already. The error says what is wrong with the directives.
pub fn init(directives: &str, json: bool) -> Result<(), String> {
    let wrong = |error: ParseError| format!("log.level: {error}");
    let mut filter = EnvFilter::try_new(directives).map_err(wrong)?;
    if filter.max_level_hint() != Some(LevelFilter::OFF) {
        // The MCP client quotes what servers say, and they may say what they were given.
        filter = filter.add_directive("rmcp=error".parse().map_err(wrong)?);
    }
    if filter.max_level_hint() == Some(LevelFilter::TRACE) {
        // The AMQP driver traces its login frame, password and all.
        filter = filter.add_directive("lapin=debug".parse().map_err(wrong)?);
    }
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    let set = if json { builder.json().flatten_event(true).try_init() } else { builder.try_init() };
    // An embedding service's own subscriber stays.
    set.unwrap_or_default();
    Ok(())
}
