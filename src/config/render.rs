//! The configuration as text: what is in effect, and the example file.

use toml::Value;

use super::{
    parts::{Line, Part},
    sections::{Agent, Config, Ingest, Mcp, Tenant, Tool},
    sources::{ALIASES, variable},
};

impl Config {
    /// Writes what is in effect as TOML, with the origin of each value behind it and secrets masked as `***`.
    pub fn render(&self) -> String {
        let mut lines = Vec::new();
        self.list("", &mut lines);
        let mut text = String::new();
        for line in lines {
            text += &match line {
                Line::Section { path, .. } if path.is_empty() => String::new(),
                Line::Section { path, .. } => format!("\n[{path}]\n"),
                Line::Key { name, value: None, .. } => format!("# {name} is not set\n"),
                Line::Key { path, name, value: Some(value), .. } => {
                    format!("{name} = {value} # {}\n", self.origin(&path))
                }
            };
        }
        if let Some(model) = &self.openai_model {
            // No key, so no line that could be read again.
            text += &format!("\n# OPENAI_MODEL is {}, the model of the built-in agent\n", Value::from(model.as_str()));
        }
        text
    }
}

const HEAD: &str = "\
# The configuration of Runcast: every key at its default, with what it means and why it is so.
#
# Copy what you change to runcast.toml, and take the # away. Lines with a space behind the # are text or examples.
# A value is taken from the first of: a command-line flag, the environment variable beside the key (also from the file
# .env), this file, an alias (a variable of other software), the default. In flags and variables, the items of a list
# are separated by commas. \"runcast config\" shows what is in effect.
";

/// Writes `runcast.example.toml`: every key at its default, commented out, with its documentation.
pub fn example_toml() -> String {
    let mut lines = Vec::new();
    Config::default().list("", &mut lines);
    let mut text = HEAD.to_owned();
    for line in lines.iter().filter(|line| !is_repeated(line)) {
        text += &explained(line, "#");
    }
    // There are none by default, so these are examples throughout.
    let mut lines = Vec::new();
    Tool::default().list("tools.NAME", &mut lines);
    Mcp::default().list("mcp.NAME", &mut lines);
    Agent::default().list("agents.NAME", &mut lines);
    Tenant::default().list("tenants.NAME", &mut lines);
    Ingest::default().list("ingest.NAME", &mut lines);
    for line in &lines {
        text += &explained(line, "# ");
    }
    text
}

/// Whether a line says of a further built-in provider what stands at openai.
fn is_repeated(line: &Line) -> bool {
    let Line::Key { path, name, .. } = line else { return false };
    let further = ["providers.anthropic.", "providers.gemini."].iter().any(|section| path.starts_with(section));
    further && !matches!(*name, "protocol" | "api_key")
}

/// Explains one line; `mark` is what the line itself begins with.
fn explained(line: &Line, mark: &str) -> String {
    match line {
        Line::Section { path, .. } if path.is_empty() => String::new(),
        Line::Section { path, about } => format!("\n\n{}{mark}[{path}]\n", commented(about)),
        Line::Key { path, name, about, expected, value } => {
            let aliases: Vec<_> = ALIASES.iter().filter(|alias| alias.key == path).map(|alias| alias.name).collect();
            let alias = if aliases.is_empty() { String::new() } else { format!(", alias {}", aliases.join(" or ")) };
            let takes = format!("# Takes {expected}; {}{alias}.\n", variable(path));
            let value = match value {
                Some(value) => format!("{mark}{name} = {value}\n"),
                None => format!("# {name} is not set\n"),
            };
            format!("\n{}{takes}{value}", commented(about))
        }
    }
}

fn commented(about: &str) -> String {
    about.lines().map(|line| format!("#{line}\n")).collect()
}
