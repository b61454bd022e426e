//! Where values come from, and which source wins: flag, environment, file, alias, default.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
    io::ErrorKind,
    path::{Path, PathBuf},
};

use toml::{
    Value,
    de::{DeTable, DeValue},
};

use super::{
    codecs::Codec,
    faults::{Fault, Origin, nearest},
};

/// A variable of other software that sets a key.
pub(super) struct Alias {
    pub(super) key: &'static str,
    pub(super) name: &'static str,
    /// Turns the variable's text into the key's.
    text: fn(&str) -> String,
}

pub(super) const ALIASES: &[Alias] = &[
    Alias { key: "listen", name: "PORT", text: |port| format!("127.0.0.1:{port}") },
    Alias { key: "mode", name: "ENV_MODE", text: str::to_owned },
    Alias { key: "node", name: "REDIS_CONSUMER_NAME", text: str::to_owned },
    Alias { key: "broker", name: "REDIS_URL", text: str::to_owned },
    Alias { key: "broker", name: "AMQP_URL", text: str::to_owned },
    Alias { key: "store", name: "DATABASE_URL", text: str::to_owned },
    Alias { key: "store", name: "SUPABASE_DB_URL", text: str::to_owned },
    Alias { key: "postgres.connections", name: "DB_POOL_MAX", text: str::to_owned },
    Alias { key: "server.connections", name: "DISABLE_CONNECTIONS", text: negated },
    Alias { key: "worker.enabled", name: "DISABLE_WORKERS", text: negated },
    Alias { key: "recovery.sweep_interval", name: "RECOVERY_CHECK_INTERVAL_SECONDS", text: |n| format!("{n}s") },
    Alias { key: "runs.timeout", name: "STUCK_RUN_TIMEOUT_MINUTES", text: |n| format!("{n}m") },
    Alias { key: "providers.anthropic.api_key", name: "ANTHROPIC_API_KEY", text: str::to_owned },
    Alias { key: "providers.gemini.api_key", name: "GEMINI_API_KEY", text: str::to_owned },
    Alias { key: "providers.gemini.api_key", name: "GOOGLE_API_KEY", text: str::to_owned },
    Alias { key: "providers.openai.base_url", name: "OPENAI_BASE_URL", text: str::to_owned },
    Alias { key: "providers.openai.api_key", name: "OPENAI_API_KEY", text: str::to_owned },
];

/// A switch of the other sense; what is no switch stays as it is, to be refused.
fn negated(text: &str) -> String {
    match text.trim().to_ascii_lowercase().as_str() {
        "1" | "true" | "yes" | "on" => "false".to_owned(),
        "0" | "false" | "no" | "off" => "true".to_owned(),
        _ => text.to_owned(),
    }
}

/// Names the file of the configuration; a `RUNCAST_*` variable that is no key.
pub(super) const FILE_VARIABLE: &str = "RUNCAST_CONFIG";

/// Tell the client commands where the server is and who calls; no keys of a node either.
const CLIENT_VARIABLES: [&str; 2] = ["RUNCAST_API_KEY", "RUNCAST_URL"];

/// Returns the environment variable that sets the key at a path.
pub(super) fn variable(path: &str) -> String {
    format!("RUNCAST_{}", path.replace(['.', '-'], "_").to_uppercase())
}

/// Appends a name to a path; the path of the whole configuration is empty.
pub(super) fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// What references to secrets are resolved against.
pub(super) struct Surroundings {
    pub(super) env: BTreeMap<String, String>,
    pub(super) cwd: PathBuf,
    /// The node executes runs, as far as has been read: it opens what is for their agents.
    pub(super) executes: Cell<bool>,
}

/// A table of the file; entries are taken out as they are read, so that what is left is unknown.
pub(super) type Table = BTreeMap<String, Written>;

/// An entry of the file and its line.
pub(super) struct Written {
    pub(super) line: usize,
    node: Node,
}

enum Node {
    Value(Value),
    Table(Table),
}

/// A section while it is being read.
pub(super) struct Scope {
    pub(super) path: String,
    pub(super) table: Table,
}

/// Reads a configuration key by key, and gathers what is wrong with it.
pub(super) struct Reader<'f> {
    around: Surroundings,
    flags: BTreeMap<&'f str, &'f str>,
    file: PathBuf,
    keys: BTreeSet<String>,
    sections: BTreeSet<String>,
    /// Whether the file is no valid TOML.
    broken: bool,
    unknown: Vec<(String, Origin)>,
    pub(super) origins: BTreeMap<String, Origin>,
    pub(super) faults: Vec<Fault>,
}

impl<'f> Reader<'f> {
    pub(super) fn new(around: Surroundings, flags: BTreeMap<&'f str, &'f str>, faults: Vec<Fault>) -> Self {
        let (keys, sections) = (BTreeSet::new(), BTreeSet::new());
        let (unknown, origins) = (Vec::new(), BTreeMap::new());
        Self { around, flags, file: PathBuf::new(), keys, sections, broken: false, unknown, origins, faults }
    }

    /// Parses the text of the file at `path`; what follows a mistake is still read, so that all mistakes show at once.
    pub(super) fn parse(&mut self, path: &Path, text: &str) -> Scope {
        self.file = path.to_owned();
        let (table, errors) = DeTable::parse_recoverable(text);
        self.broken = !errors.is_empty();
        for error in errors {
            let line = error.span().map_or(1, |span| line_of(text, span.start));
            // Not the error's own display, which quotes the line.
            let problem = format!("invalid TOML: {}", error.message());
            self.faults.push(Fault { subject: self.at(line).to_string(), origin: None, problem });
        }
        Scope { path: String::new(), table: located(text, table.into_inner()) }
    }

    /// Returns the origin of a line of the file.
    pub(super) fn at(&self, line: usize) -> Origin {
        Origin::File { path: self.file.clone(), line }
    }

    pub(super) fn fault(&mut self, key: &str, origin: Origin, problem: impl Into<String>) {
        self.faults.push(Fault { subject: key.to_owned(), origin: Some(origin), problem: problem.into() });
    }

    /// Reports what is wrong between several keys, with where each came from.
    pub(super) fn blame(&mut self, keys: &[&str], problem: impl Into<String>) {
        let from = |key: &&str| format!("{key} ({})", self.origins.get(*key).unwrap_or(&Origin::Default));
        let subject = keys.iter().map(from).collect::<Vec<_>>().join(", ");
        self.faults.push(Fault { subject, origin: None, problem: problem.into() });
    }

    /// Returns a variable of other software; empty is as good as not set.
    pub(super) fn variable(&self, name: &str) -> Option<String> {
        // Deployments set the variables they share to nothing to unset them.
        self.around.env.get(name).filter(|text| !text.is_empty()).cloned()
    }

    /// Whether a value of the key was refused.
    pub(super) fn refused(&self, key: &str) -> bool {
        self.faults.iter().any(|fault| fault.subject == key)
    }

    /// Reads one key of a section from the highest source that has it.
    pub(super) fn key<C: Codec>(&mut self, scope: &mut Scope, name: &str, codec: &C, default: C::Value) -> C::Value {
        let path = join(&scope.path, name);
        let written = scope.table.remove(name);
        let given = self.given(&path, written, codec);
        self.keys.insert(path.clone());
        let Some((value, origin)) = given else { return default };
        self.origins.insert(path.clone(), origin.clone());
        codec.read(&value, &self.around).unwrap_or_else(|problem| {
            self.fault(&path, origin, codec.explain(problem, &value));
            default
        })
    }

    fn given<C: Codec>(&self, path: &str, written: Option<Written>, codec: &C) -> Option<(Value, Origin)> {
        let named = variable(path);
        if let Some(text) = self.flags.get(path) {
            return Some((codec.convert(text), Origin::Flag(path.to_owned())));
        }
        if let Some(text) = self.around.env.get(&named) {
            return Some((codec.convert(text), Origin::Env(named)));
        }
        if let Some(Written { line, node }) = written {
            let value = match node {
                Node::Value(value) => value,
                Node::Table(_) => Value::Table(toml::Table::new()),
            };
            return Some((value, self.at(line)));
        }
        let mut aliases = ALIASES.iter().filter(|alias| alias.key == path);
        let (alias, text) = aliases.find_map(|alias| Some((alias, self.variable(alias.name)?)))?;
        Some((codec.convert(&(alias.text)(&text)), Origin::Alias(alias.name.to_owned())))
    }

    /// Begins to read the section `name` inside another.
    pub(super) fn enter(&mut self, scope: &mut Scope, name: &str) -> Scope {
        let path = join(&scope.path, name);
        self.sections.insert(path.clone());
        let table = match scope.table.remove(name) {
            None => Table::new(),
            Some(Written { node: Node::Table(table), .. }) => table,
            Some(Written { node: Node::Value(_), line }) => {
                let origin = self.at(line);
                self.fault(&path, origin, format!("expected a table, [{path}]"));
                Table::new()
            }
        };
        Scope { path, table }
    }

    /// Ends the reading of a section: nobody knows what is still in its table.
    pub(super) fn leave(&mut self, scope: Scope) {
        if self.broken {
            // After a mistake, what looks like a key may be the rest of a secret.
            return;
        }
        for (name, Written { line, .. }) in scope.table {
            self.unknown.push((join(&scope.path, &name), self.at(line)));
        }
    }

    /// Reports unknown keys and variables, now that all known ones have been seen.
    pub(super) fn report_unknown(&mut self) {
        for (path, origin) in std::mem::take(&mut self.unknown) {
            let tail = format!(".{}", path.rsplit('.').next().unwrap_or_default());
            let known = self.keys.iter().chain(&self.sections).map(String::as_str);
            let problem = suggest("unknown key", nearest(&path, &tail, known));
            self.fault(&path, origin, problem);
        }
        let mut variables: BTreeSet<String> = self.keys.iter().map(|path| variable(path)).collect();
        variables.insert(FILE_VARIABLE.to_owned());
        let env = &self.around.env;
        // Those of clients are not suggested: for a node they do nothing.
        let known =
            |name: &str| variables.contains(name) || CLIENT_VARIABLES.contains(&name) || is_service_link(name, env);
        let unknown = env.keys().filter(|name| name.starts_with("RUNCAST_") && !known(name));
        for name in unknown {
            let tail = name.trim_start_matches("RUNCAST");
            let mut problem = suggest("unknown variable", nearest(name, tail, variables.iter().map(String::as_str)));
            for map in ["AGENTS", "INGEST", "MCP", "PROVIDERS", "TENANTS", "TOOLS"] {
                if name.starts_with(&format!("RUNCAST_{map}_")) {
                    let map = map.to_lowercase();
                    problem += &format!("; the file has to name the entry first, as [{map}.NAME]");
                }
            }
            self.faults.push(Fault { subject: name.clone(), origin: None, problem });
        }
    }
}

fn suggest(problem: &str, nearest: Option<&str>) -> String {
    nearest.map_or_else(|| problem.to_owned(), |name| format!("{problem}; did you mean {name}?"))
}

/// Whether a variable was put there by Kubernetes, which announces a service named `runcast` to every pod of its
/// namespace as RUNCAST_SERVICE_HOST, RUNCAST_PORT_7070_TCP and so on.
fn is_service_link(name: &str, env: &BTreeMap<String, String>) -> bool {
    env.keys().filter_map(|key| key.strip_suffix("_SERVICE_HOST")).any(|service| {
        let rest = name.strip_prefix(service).unwrap_or_default();
        rest.starts_with("_SERVICE_") || rest == "_PORT" || rest.starts_with("_PORT_")
    })
}

fn line_of(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|byte| *byte == b'\n').count()
}

fn located(text: &str, table: DeTable<'_>) -> Table {
    let entries = table.into_iter().map(|(name, value)| {
        let line = line_of(text, name.span().start);
        let value = value.into_inner();
        let node = if let DeValue::Table(table) = value {
            Node::Table(located(text, table))
        } else {
            Node::Value(plain(value))
        };
        (name.into_inner().into_owned(), Written { line, node })
    });
    entries.collect()
}

fn plain(value: DeValue<'_>) -> Value {
    match value {
        DeValue::String(text) => Value::String(text.into_owned()),
        // A number that is too large stays text, which no number takes.
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
            .map_or_else(|_| Value::String(number.to_string()), Value::Integer),
        DeValue::Float(number) => {
            number.as_str().parse().map_or_else(|_| Value::String(number.to_string()), Value::Float)
        }
        DeValue::Boolean(value) => Value::Boolean(value),
        DeValue::Datetime(time) => Value::Datetime(time),
        DeValue::Array(items) => Value::Array(items.into_iter().map(|item| plain(item.into_inner())).collect()),
        DeValue::Table(table) => {
            let entries = table.into_iter();
            Value::Table(
                entries.map(|(name, value)| (name.into_inner().into_owned(), plain(value.into_inner()))).collect(),
            )
        }
    }
}

/// Returns the environment with the lines of `.env` beneath it.
pub(super) fn environment(
    env: &BTreeMap<String, String>,
    cwd: &Path,
    faults: &mut Vec<Fault>,
) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    let text = match std::fs::read_to_string(cwd.join(".env")) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
        Err(error) => {
            faults.push(Fault {
                subject: ".env".to_owned(),
                origin: None,
                problem: format!("cannot be read: {error}"),
            });
            String::new()
        }
    };
    let text = text.trim_start_matches('\u{feff}');
    for line in dotenvy::Iter::new(text.as_bytes()) {
        match line {
            // The first of two equal names wins, as everywhere that reads such files.
            Ok((name, value)) => drop(all.entry(name).or_insert(value)),
            Err(error) => {
                let problem = "expected NAME=value, with quotes around values that contain spaces".to_owned();
                faults.push(Fault { subject: format!(".env:{}", wrong_line(text, &error)), origin: None, problem });
            }
        }
    }
    all.extend(env.clone());
    all
}

/// Finds the line that dotenvy refused. Its error has the text of the line, without a comment at its end, and no
/// number; the text may hold a secret, so only the number is told.
fn wrong_line(text: &str, error: &dotenvy::Error) -> usize {
    let dotenvy::Error::LineParse(wrong, _) = error else { return 1 };
    let wrong = wrong.lines().next().unwrap_or_default();
    let is_wrong = |line: &str| line.strip_prefix(wrong).is_some_and(|rest| rest.is_empty() || rest.starts_with('#'));
    1 + text.lines().position(is_wrong).unwrap_or_default()
}

/// Reads the file that a flag or a variable names, else `runcast.toml` if there is one.
pub(super) fn file(flag: Option<&str>, around: &Surroundings, faults: &mut Vec<Fault>) -> (PathBuf, String) {
    let named = match (flag, around.env.get(FILE_VARIABLE)) {
        (Some(path), _) => Some((path, Origin::Flag("config".to_owned()))),
        (None, Some(path)) => Some((path.as_str(), Origin::Env(FILE_VARIABLE.to_owned()))),
        (None, None) => None,
    };
    let path = named.as_ref().map_or("runcast.toml", |(path, _)| path);
    let text = std::fs::read_to_string(around.cwd.join(path)).unwrap_or_else(|error| {
        if named.is_some() || error.kind() != ErrorKind::NotFound {
            let problem = format!("cannot be read: {error}");
            faults.push(Fault { subject: path.to_owned(), origin: named.clone().map(|(_, origin)| origin), problem });
        }
        String::new()
    });
    (path.into(), text)
}
