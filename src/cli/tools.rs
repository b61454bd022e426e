//! `runcast tools`: the tools of the MCP servers as they are now, with their pins, for a person to approve.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Args;
use serde_json::json;
use toml::Value;

use super::SettingFlags;
use super::table::excerpt;
use crate::agent::tools::mcp::{self, Approval, Listed};
use crate::app;

/// Connects the configured MCP servers and prints their tools, with the pins that mcp.NAME.approved takes. Says which
/// have changed since they were approved. The exit code is 1 when a server does not answer or a tool has changed.
#[derive(Debug, Args)]
pub(super) struct ToolsArgs {
    /// Only these servers.
    names: Vec<String>,
    /// Prints whole descriptions and parameters: what a model is told.
    #[arg(long)]
    full: bool,
    /// Prints JSON, one object a line.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: SettingFlags,
}

pub(super) fn tools(args: ToolsArgs) -> ExitCode {
    let ToolsArgs { names, full, json, settings } = args;
    let config = match settings.load() {
        Ok(config) => config,
        Err(code) => return code,
    };
    if let Some(name) = names.iter().find(|name| !config.mcp.contains_key(*name)) {
        eprintln!("runcast: there is no mcp server {name} in the configuration");
        return ExitCode::from(2);
    }
    let tools = match app::Tools::new(&config) {
        Ok(tools) => tools,
        Err(problem) => {
            eprintln!("runcast: {problem}");
            return ExitCode::from(2);
        }
    };
    let mut servers = tools.servers().clone();
    servers.retain(|name, _| names.is_empty() || names.contains(name));
    if servers.is_empty() {
        eprintln!("runcast: the configuration names no mcp servers");
        return ExitCode::SUCCESS;
    }
    let looked = super::on_runtime(async { mcp::look(&servers).await });
    let mut fine = true;
    for (name, listed) in looked {
        let printed = match listed {
            Ok(listed) => {
                fine &= listed.iter().all(|tool| tool.approval != Approval::Changed);
                print(&name, &listed, full, json)
            }
            Err(problem) => {
                eprintln!("runcast: {problem}");
                fine = false;
                Ok(())
            }
        };
        // Whoever reads it has had enough.
        if printed.is_err() {
            return ExitCode::FAILURE;
        }
    }
    if fine { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn print(server: &str, tools: &[Listed], full: bool, json: bool) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if json {
        for tool in tools {
            let Listed { name, description, parameters, pin, approval } = tool;
            let approval = word(*approval);
            let line = json!({
                "server": server, "tool": name, "pin": pin, "approval": approval,
                "description": description, "parameters": parameters,
            });
            writeln!(out, "{line}")?;
        }
        return out.flush();
    }
    writeln!(out, "[mcp.{server}]\napproved = [")?;
    for tool in tools {
        if full {
            // As text of one's terminal: whatever would move the cursor is left out.
            let plain = |line: &str| line.chars().filter(|c| !c.is_control()).collect::<String>();
            tool.description.lines().try_for_each(|line| writeln!(out, "  # {}", plain(line)))?;
            writeln!(out, "  # {}", tool.parameters)?;
        }
        let entry = Value::from(format!("{}={}", tool.name, tool.pin));
        let about = if full { String::new() } else { excerpt(&tool.description) };
        let state = match tool.approval {
            Approval::Approved => String::new(),
            Approval::Unknown | Approval::Changed => format!("{}! ", word(tool.approval).to_uppercase()),
        };
        writeln!(out, "  {entry}, # {state}{about}")?;
    }
    writeln!(out, "]\n")?;
    out.flush()
}

fn word(approval: Approval) -> &'static str {
    match approval {
        Approval::Approved => "approved",
        Approval::Unknown => "unknown",
        Approval::Changed => "changed",
    }
}
