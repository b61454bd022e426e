//! The server under load: a process of its own on throw-away data, or one that runs already.

use std::process::Stdio;
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, ChildStdout, Command};

use super::connection::Target;
use crate::cli::client::{KeyFlag, base_url};

/// How long a server may take to say where it listens.
const START: Duration = Duration::from_secs(30);

/// A server and what is known of it. One that was started here is killed when this is dropped.
pub(super) struct Server {
    pub(super) target: Target,
    /// The process to measure, if it is known.
    pub(super) pid: Option<u32>,
    _own: Option<Own>,
}

/// Nothing of a server that was started here stays.
pub(super) struct Own {
    child: Child,
    greeting: BufReader<ChildStdout>,
    _data: TempDir,
}

impl Own {
    /// Starts this very program as a server on `listen`, with the default configuration.
    pub(super) fn spawn(listen: &str) -> Result<Self, String> {
        Self::spawn_with(listen, &[], &[])
    }

    /// Starts this very program as a server on `listen`, with further flags and variables.
    pub(super) fn spawn_with(listen: &str, flags: &[&str], env: &[(&str, &str)]) -> Result<Self, String> {
        let data = tempfile::Builder::new().prefix("runcast-bench-").tempdir();
        let data = data.map_err(|error| format!("cannot make a directory for the server: {error}"))?;
        let program = std::env::current_exe().map_err(|error| format!("cannot find this program: {error}"))?;
        let mut command = Command::new(program);
        command.args(["serve", "--listen", listen, "--data"]).arg(data.path()).args(flags);
        // Neither a .env nor a runcast.toml of the working directory counts.
        command.current_dir(data.path()).stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
        for (name, _) in std::env::vars_os() {
            let ours = ["RUNCAST_", "OPENAI_", "ANTHROPIC_", "GEMINI_", "GOOGLE_"];
            if name.to_str().is_some_and(|name| ours.iter().any(|prefix| name.starts_with(prefix))) {
                command.env_remove(name);
            }
        }
        // That no provider has a key is as it should be.
        command.env("RUNCAST_LOG_LEVEL", "warn,runcast::cli::serve=error").envs(env.iter().copied());
        let mut child = command.spawn().map_err(|error| format!("cannot start a server: {error}"))?;
        let greeting = child.stdout.take().ok_or("the server has no standard output")?;
        Ok(Self { child, greeting: BufReader::new(greeting), _data: data })
    }

    pub(super) fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Waits for the server's greeting, which says that it is ready, and where.
    pub(super) async fn greeted(&mut self) -> Result<String, String> {
        let mut line = String::new();
        match tokio::time::timeout(START, self.greeting.read_line(&mut line)).await {
            Err(_) => return Err(format!("the server was not ready within {} s", START.as_secs())),
            Ok(Err(error)) => return Err(format!("the server's greeting cannot be read: {error}")),
            Ok(Ok(_)) => {}
        }
        let url = line.trim_end().rsplit(' ').next().filter(|word| word.starts_with("http://"));
        url.map(str::to_owned).ok_or_else(|| "the server ended before it was ready; what it said is above".to_owned())
    }
}

impl Server {
    /// The server at `url`, whose process is `pid`; without a URL a new one.
    pub(super) async fn get(url: Option<&str>, pid: Option<u32>, key: &KeyFlag) -> Result<Self, String> {
        if let Some(url) = url {
            return Ok(Self { target: target(url, key)?, pid, _own: None });
        }
        Self::own(Own::spawn("127.0.0.1:0")?).await
    }

    /// The server that was started here, once it is ready.
    pub(super) async fn own(mut own: Own) -> Result<Self, String> {
        let target = target(&own.greeted().await?, &KeyFlag::default())?;
        Ok(Self { target, pid: own.pid(), _own: Some(own) })
    }
}

fn target(url: &str, key: &KeyFlag) -> Result<Target, String> {
    let parsed = base_url(url).map_err(|error| error.to_string())?;
    if parsed.scheme() != "http" {
        return Err(format!("--url: expected http://, got {url:?}; the load client does not speak TLS"));
    }
    let host = parsed.host_str().unwrap_or_default();
    let authority = format!("{host}:{}", parsed.port_or_known_default().unwrap_or(80));
    Ok(Target { authority, prefix: parsed.path().trim_end_matches('/').to_owned(), key: key.get() })
}
