//! A node in a process of its own, and a client of it.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Once;

use bytes::Bytes;
use reqwest::header::HeaderMap;
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::Value;
use tempfile::TempDir;

use super::{DEADLINE, Event, Stream, eventually, soon, stack};

/// How much of a node's log a failed test shows, in lines.
const SHOWN: usize = 120;

/// How to start a node.
#[derive(Debug, Clone, Default)]
pub(crate) struct Options {
    /// The text of its `runcast.toml`.
    pub(crate) config: String,
    /// Variables of its environment.
    pub(crate) env: Vec<(&'static str, String)>,
    /// Flags behind `serve --listen 127.0.0.1:0 --data data`.
    pub(crate) flags: Vec<String>,
}

impl From<&str> for Options {
    fn from(config: &str) -> Self {
        Self { config: config.to_owned(), ..Self::default() }
    }
}

impl From<String> for Options {
    fn from(config: String) -> Self {
        Self { config, ..Self::default() }
    }
}

/// A node: its process, its directory and a client. Killed when dropped.
pub(crate) struct Node {
    options: Options,
    directory: TempDir,
    process: tokio::process::Child,
    base: String,
    http: reqwest::Client,
}

impl Node {
    /// Starts a node on data of its own and waits until it executes runs.
    pub(crate) async fn start(options: impl Into<Options>) -> Self {
        Self::start_in(tempfile::tempdir().expect("a temporary directory"), options).await
    }

    /// Starts a node in `directory`, whose data may be there already.
    pub(crate) async fn start_in(directory: TempDir, options: impl Into<Options>) -> Self {
        let options = options.into();
        let process = spawn(directory.path(), &options).await;
        let mut node = Self { options, directory, process, base: String::new(), http: client() };
        node.greeted().await;
        node
    }

    /// Starts the node again, on the same data, with the same options.
    pub(crate) async fn restart(&mut self) {
        self.restart_with(self.options.clone()).await;
    }

    /// Starts the node again, on the same data.
    pub(crate) async fn restart_with(&mut self, options: impl Into<Options>) {
        self.options = options.into();
        self.process = spawn(self.directory.path(), &self.options).await;
        self.greeted().await;
    }

    async fn greeted(&mut self) {
        let out = self.directory.path().join("out");
        self.base = eventually("the node says where it listens", async || {
            let text = std::fs::read_to_string(&out).unwrap_or_default();
            let address = text.split_once("listens on http://").and_then(|(_, rest)| rest.split_once('\n'));
            if address.is_none()
                && let Some(status) = self.process.try_wait().expect("the node's status")
            {
                panic!("the node ended with {status} before it listened: {}", self.log());
            }
            address.map(|(address, _)| format!("http://{}", address.trim()))
        })
        .await;
    }

    /// Ends the process as `kill -9` does, and waits until it is gone.
    pub(crate) async fn kill9(&mut self) {
        soon("the killed node is gone", self.process.kill()).await.expect("a node that can be killed");
    }

    /// Asks the process to stop.
    pub(crate) fn sigterm(&self) {
        self.signal("TERM");
    }

    /// Sends the process a signal.
    pub(crate) fn signal(&self, name: &str) {
        let id = self.pid();
        // The shell's own `kill`: a bare machine may have no other.
        let sent = Command::new("sh").args(["-c", &format!("kill -{name} {id}")]).status().expect("a shell");
        assert!(sent.success(), "SIG{name} could not be sent");
    }

    /// Waits until the process has ended by itself.
    pub(crate) async fn wait_exit(&mut self) -> ExitStatus {
        soon("the node ends", self.process.wait()).await.expect("the node's status")
    }

    /// The id of its process, which has to run.
    pub(crate) fn pid(&self) -> u32 {
        self.process.id().expect("a node that runs")
    }

    /// Whether the process runs.
    pub(crate) fn runs(&mut self) -> bool {
        self.process.try_wait().expect("the node's status").is_none()
    }

    /// The directory that the node runs in; its data is in `data` beneath.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// What the node has logged.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    /// Its address, as `host:port`.
    pub(crate) fn address(&self) -> &str {
        self.base.trim_start_matches("http://")
    }

    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.base))
    }

    /// Sends a request and reads the whole answer.
    pub(crate) async fn send(&self, request: RequestBuilder) -> Answer {
        self.try_send(request).await.expect("an answer")
    }

    /// Sends a request and reads the whole answer, if there is one.
    pub(crate) async fn try_send(&self, request: RequestBuilder) -> reqwest::Result<Answer> {
        let response = request.timeout(DEADLINE).send().await?;
        let (status, headers) = (response.status(), response.headers().clone());
        Ok(Answer { status, headers, body: response.bytes().await? })
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(self.request(Method::GET, path)).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Answer {
        self.send(self.request(Method::DELETE, path)).await
    }

    pub(crate) async fn post(&self, path: &str) -> Answer {
        self.send(self.request(Method::POST, path)).await
    }

    pub(crate) async fn post_json(&self, path: &str, body: &Value) -> Answer {
        self.send(self.request(Method::POST, path).json(body)).await
    }

    /// Creates a run that must be accepted; its id.
    pub(crate) async fn create(&self, body: Value) -> String {
        let answer = self.post_json("/v1/runs", &body).await;
        assert_eq!(answer.status, 202, "{answer:?}");
        id_of(&answer.json())
    }

    /// The run as it stands.
    pub(crate) async fn run(&self, id: &str) -> Value {
        let answer = self.get(&format!("/v1/runs/{id}")).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()
    }

    /// Waits until the run has one of these statuses; the run.
    pub(crate) async fn until(&self, id: &str, statuses: &[&str]) -> Value {
        eventually(&format!("run {id} is {}", statuses.join(" or ")), async || {
            let run = self.run(id).await;
            let status = run["status"].as_str().expect("a status").to_owned();
            statuses.contains(&status.as_str()).then_some(run)
        })
        .await
    }

    /// Waits until the run has ended; the run.
    pub(crate) async fn wait_final(&self, id: &str) -> Value {
        self.until(id, &["completed", "failed", "cancelled", "expired"]).await
    }

    /// Waits until the run has said so many tokens at least.
    pub(crate) async fn until_said(&self, id: &str, tokens: u64) {
        let mut stream = self.stream(id).await;
        let mut heard = 0;
        while heard < tokens {
            let event = stream.next().await.expect("more tokens");
            heard += u64::from(event.kind == "message.delta");
        }
    }

    /// The run's whole log, page by page.
    pub(crate) async fn events(&self, id: &str) -> Vec<Event> {
        self.events_by(id, 200).await
    }

    /// The run's whole log, in pages of `limit`.
    pub(crate) async fn events_by(&self, id: &str, limit: usize) -> Vec<Event> {
        let (mut events, mut after) = (Vec::new(), 0);
        loop {
            let answer = self.get(&format!("/v1/runs/{id}/events?after={after}&limit={limit}")).await;
            assert_eq!(answer.status, 200, "{answer:?}");
            let page = answer.json();
            let data = page["data"].as_array().expect("a page");
            assert!(data.len() <= limit, "a page of {} for a limit of {limit}", data.len());
            if data.is_empty() {
                return events;
            }
            events.extend(data.iter().map(Event::of_page));
            after = page["next_after"].as_u64().expect("next_after");
            assert_eq!(events.last().map(|event| event.seq), Some(after));
        }
    }

    /// Watches the run from its beginning.
    pub(crate) async fn stream(&self, id: &str) -> Stream {
        self.stream_after(id, 0).await
    }

    /// Watches the run after event number `after`.
    pub(crate) async fn stream_after(&self, id: &str, after: u64) -> Stream {
        let request = self.request(Method::GET, &format!("/v1/runs/{id}/stream"));
        Stream::open(request.header("last-event-id", after.to_string())).await
    }

    /// The status of an attempt to watch the run after event number `after`, whose stream is not read.
    pub(crate) async fn stream_status(&self, id: &str, after: u64) -> StatusCode {
        let request = self.request(Method::GET, &format!("/v1/runs/{id}/stream"));
        let response = request.header("last-event-id", after.to_string()).send();
        soon("a stream's head", response).await.expect("an answer").status()
    }

    pub(crate) async fn cancel(&self, id: &str) -> Answer {
        self.post(&format!("/v1/runs/{id}/cancel")).await
    }

    /// The number of a metric without labels, or with those written behind its name.
    pub(crate) async fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").await.text();
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("no metric {name} in {text}")).parse().expect("a number")
    }
}

/// A test that fails shows what its nodes have logged.
impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let skipped = log.lines().count().saturating_sub(SHOWN);
            eprintln!("the log of the node at {}, without its first {skipped} lines:", self.base);
            log.lines().skip(skipped).for_each(|line| eprintln!("  {line}"));
        }
    }
}

/// The id of a run.
pub(crate) fn id_of(run: &Value) -> String {
    run["id"].as_str().expect("an id").to_owned()
}

/// An answer, read to its end.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("not JSON ({error}): {self:?}"))
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// Checks that it is a problem with this status and code; its text.
    #[track_caller]
    pub(crate) fn assert_problem(&self, status: u16, code: &str) -> String {
        assert_eq!(self.header("content-type"), "application/problem+json", "{self:?}");
        let problem = self.json();
        assert_eq!((self.status.as_u16(), problem["code"].as_str()), (status, Some(code)), "{problem}");
        assert_eq!(problem["status"], status, "{problem}");
        assert_eq!(problem["type"], "about:blank", "{problem}");
        assert!(problem["title"].as_str().is_some_and(|title| !title.is_empty()), "{problem}");
        problem["detail"].as_str().filter(|detail| !detail.is_empty()).expect("a detail").to_owned()
    }
}

/// A `runcast` that ended by itself.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

/// Runs `runcast` in `directory` until it ends, which it must.
pub(crate) async fn finished_process(directory: &Path, args: &[&str], env: &[(&str, &str)]) -> Finished {
    let mut command = tokio::process::Command::from(command(directory));
    command.args(args).envs(env.iter().copied()).stdin(Stdio::null()).kill_on_drop(true);
    let output = soon("the process ends", command.output()).await.expect("a process");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Finished { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

/// Variables of other systems that set keys.
const ALIASES: [&str; 12] = [
    "PORT",
    "ENV_MODE",
    "REDIS_URL",
    "AMQP_URL",
    "DATABASE_URL",
    "SUPABASE_DB_URL",
    "REDIS_CONSUMER_NAME",
    "DB_POOL_MAX",
    "DISABLE_CONNECTIONS",
    "DISABLE_WORKERS",
    "RECOVERY_CHECK_INTERVAL_SECONDS",
    "STUCK_RUN_TIMEOUT_MINUTES",
];

/// `runcast`, without anything in its environment that configures it.
fn command(directory: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_runcast"));
    command.current_dir(directory);
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy().to_uppercase();
        let ours =
            ["RUNCAST_", "OPENAI_", "ANTHROPIC_", "GEMINI_", "GOOGLE_"].iter().any(|prefix| text.starts_with(prefix));
        if ours || ALIASES.contains(&text.as_str()) || text.ends_with("_PROXY") {
            command.env_remove(name);
        }
    }
    command
}

async fn spawn(directory: &Path, options: &Options) -> tokio::process::Child {
    std::fs::write(directory.join("runcast.toml"), &options.config).expect("a file");
    let out = File::create(directory.join("out")).expect("a file");
    let log = OpenOptions::new().create(true).append(true).open(directory.join("log")).expect("a file");
    let mut command = tokio::process::Command::from(command(directory));
    command.args(["serve", "--listen", "127.0.0.1:0", "--data", "data"]).args(&options.flags);
    command.envs(stack::environment(directory).await);
    command.envs(options.env.iter().map(|(name, value)| (name, value)));
    command.stdin(Stdio::null()).stdout(out).stderr(log).kill_on_drop(true);
    command.spawn().expect("a process")
}

fn client() -> reqwest::Client {
    static PROVIDER: Once = Once::new();
    PROVIDER.call_once(|| {
        // An error says that there is one already.
        rustls::crypto::ring::default_provider().install_default().unwrap_or_default();
    });
    reqwest::Client::builder().no_proxy().build().expect("a client")
}

/// Where the database of the node in `directory` is.
pub(crate) fn database(directory: &Path) -> PathBuf {
    directory.join("data").join("runcast.db")
}
