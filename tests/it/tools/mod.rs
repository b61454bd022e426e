//! Tools against real software: MCP servers from npm and PyPI, one that misbehaves, and a browser. Where the software is
//! not to be had, these tests say so and pass.

mod browser;
mod declared;
mod misbehave;
mod pins;
mod real;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use runcast::agent::providers::ToolCall;
use runcast::agent::tools::{Declared, Outcome, Toolbox};
use runcast::agent::{BeginStep, NotBegun, Push, RunContext, Sink, Stopped};
use runcast::app::{Tools, toolbox};
use runcast::config::Config;
use runcast::run::{Budget, Event, Input, OnDisconnect, RunId, Spec, StepRecord, Tenant, Timestamp, Usage};
use serde_json::{Map, Value};
use tempfile::TempDir;
use uuid::Uuid;

use crate::harness::{eventually, soon};

/// Keeps what viewers of the run would see.
#[derive(Default)]
struct Seen(Mutex<Vec<String>>);

impl Sink for Seen {
    fn push(&self, event: Event) -> Push {
        if let Event::ToolOutput { text, .. } = event {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).push(text);
        }
        Push::Shown
    }

    fn room(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }

    fn begin_step(&self, _: BeginStep) -> BoxFuture<'_, Result<u64, NotBegun>> {
        Box::pin(std::future::ready(Ok(1)))
    }

    fn spent(&self, _: u32, _: Usage) {}

    fn used(&self) -> Usage {
        Usage::default()
    }

    fn finish_step(&self, _: StepRecord) -> BoxFuture<'_, Result<(), Stopped>> {
        Box::pin(std::future::ready(Ok(())))
    }
}

/// An agent's tools, in a directory of their own.
struct Bench {
    toolbox: Arc<dyn Toolbox>,
    context: RunContext,
    seen: Arc<Seen>,
    directory: TempDir,
}

impl Bench {
    /// All tools that `config` declares; `{dir}` in it is the directory.
    fn new(config: &str) -> Self {
        // As `main` does.
        rustls::crypto::ring::default_provider().install_default().unwrap_or_default();
        let directory = tempfile::tempdir().expect("a directory");
        let config = config.replace("{dir}", directory.path().to_str().expect("a path in UTF-8"));
        let config = Config::from_toml(&config).unwrap_or_else(|error| panic!("{error}"));
        let tools = Tools::new(&config).unwrap();
        let names: Vec<String> = config.tools.keys().chain(config.mcp.keys()).cloned().collect();
        let toolbox = toolbox(&tools, &names).unwrap();
        let seen = Arc::new(Seen::default());
        let context = RunContext::new(Arc::new(spec()), 1, Vec::new(), seen.clone());
        Self { toolbox, context, seen, directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    async fn tools(&self) -> Vec<Declared> {
        soon("the tools are told", self.toolbox.tools()).await.unwrap_or_else(|problem| panic!("{problem}"))
    }

    async fn names(&self) -> Vec<String> {
        self.tools().await.iter().map(|declared| declared.tool.card().name).collect()
    }

    async fn tool(&self, name: &str) -> Declared {
        let tools = self.tools().await;
        let names: Vec<_> = tools.iter().map(|declared| declared.tool.card().name).collect();
        let found = tools.into_iter().find(|declared| declared.tool.card().name == name);
        found.unwrap_or_else(|| panic!("no {name} among {names:?}"))
    }

    /// Calls a tool as a model would.
    async fn call(&self, name: &str, arguments: Value) -> Outcome {
        let tool = self.tool(name).await;
        soon("a call", self.make(&tool, arguments)).await
    }

    async fn make(&self, tool: &Declared, arguments: Value) -> Outcome {
        let asked = ToolCall { id: "call-1".to_owned(), name: String::new(), arguments: arguments.to_string() };
        tool.make(&asked, "key-1", &self.context).await.unwrap()
    }

    /// What it gave; it has to have worked.
    async fn given(&self, name: &str, arguments: Value) -> String {
        let outcome = self.call(name, arguments).await;
        assert!(!outcome.failed, "{outcome:?}");
        outcome.content
    }

    /// What the tools said while they worked.
    fn progress(&self) -> Vec<String> {
        self.seen.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn notes(&self) -> String {
        std::fs::read_to_string(self.path("notes")).unwrap_or_default()
    }

    /// Waits until the server has noted something.
    async fn noted(&self, text: &str) {
        eventually(&format!("the server notes {text:?}"), async || self.notes().contains(text).then_some(())).await;
    }
}

fn spec() -> Spec {
    Spec {
        id: RunId::from_uuid(Uuid::nil()),
        tenant: Tenant::default(),
        agent: "test".to_owned(),
        agent_version: "1".to_owned(),
        input: Input::Text(String::new()),
        params: Map::new(),
        priority: 0,
        ttl_at: None,
        timeout_ms: 1_000,
        max_attempts: 1,
        on_disconnect: OnDisconnect::Continue,
        metadata: BTreeMap::new(),
        thread: None,
        latest_due: None,
        retry_of: None,
        concurrency_key: None,
        webhook: None,
        correlation_id: None,
        budget: Budget::NONE,
        created_at: Timestamp::from_millis(0),
    }
}

/// Where the software that a variable names is; says so if it is nowhere.
fn installed(variable: &str) -> Option<PathBuf> {
    let found = std::env::var_os(variable).map(PathBuf::from);
    if found.is_none() {
        assert!(std::env::var("RUNCAST_REQUIRE_SERVERS").as_deref() != Ok("1"), "{variable} is not set");
        eprintln!("skipped: {variable} is not set; tests/run installs what it is about");
    }
    found
}

/// The beginning of an MCP server's section, of a program of npm's.
fn npm(name: &str, script: &str, arguments: &[&str]) -> Option<String> {
    let script = installed("RUNCAST_NPM")?.join("node_modules").join(script);
    let command = ["node", script.to_str()?].into_iter().chain(arguments.iter().copied()).collect::<Vec<_>>();
    Some(format!("[mcp.{name}]\ncommand = {command:?}\n"))
}

/// The beginning of the section of the server that misbehaves, which is called `fake`.
pub(crate) fn fake(more: &str) -> Option<String> {
    let python = installed("RUNCAST_PYTHON")?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/tools/fake_server.py");
    let command = [python.to_str()?, script.to_str()?, "{dir}/notes"];
    Some(format!("[mcp.fake]\ncommand = {command:?}\n{more}\n"))
}

/// Whether a process is there; one that only waits to be reaped is not.
fn lives(process: u32) -> bool {
    let state = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    let state = state.rsplit(')').next().unwrap_or_default().trim().chars().next();
    state.is_some_and(|state| state != 'Z')
}

/// Waits until all of these processes are gone.
async fn gone(processes: &[u32]) {
    eventually("the processes are gone", async || processes.iter().all(|process| !lives(*process)).then_some(())).await;
}

fn numbers(text: &str) -> Vec<u32> {
    text.split_whitespace().filter_map(|word| word.parse().ok()).collect()
}

/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(3_600);
