//! A server's process, and all that it starts.
//!
//! They are ended without a word: by this node when it lets go of the [`Group`], and by a watcher when the node is gone,
//! however it went. The watcher is a shell that waits for the end of its standard input, which this node holds. It leads
//! the process group, so that the group's number stays taken until the group has been ended. What has left the group is
//! found by a mark in its environment, unless it writes over that, as the children of browsers do, which end with the
//! browser.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::Stdio;
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use secrecy::{ExposeSecret, SecretString};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use super::super::calling::bounded;
use crate::agent::masks::Masks;

/// What a server sees of this node's environment.
const SHARED: [&str; 10] = ["HOME", "LANG", "LC_ALL", "LOGNAME", "PATH", "SHELL", "TERM", "TMPDIR", "TZ", "USER"];

/// The variable that all processes of a group have.
const MARK: &str = "RUNCAST_MCP_GROUP";

/// Waits for the end of its input, then ends whatever has the mark, and its own group with itself.
const WATCHER: &str = "\
trap '' HUP INT QUIT TERM
read -r _
for found in $(grep -lsF -e \"$1\" /proc/[0-9]*/environ); do
  found=${found#/proc/}
  kill -KILL \"${found%/environ}\"
done
kill -KILL 0";

/// How often what has left the group is looked for: it may be about to start others.
const ROUNDS: usize = 5;

/// The most bytes of a line of a server's stderr that are logged, and the most lines.
const MAX_LINE: usize = 500;
const MAX_LINES: usize = 1_000;

/// A program and how it is started. Shows no value of its environment.
#[derive(Debug, Clone)]
pub struct Program {
    /// The program, looked for in `PATH`, and its arguments.
    pub command: Vec<String>,
    /// Variables of its environment, besides those that every server sees.
    pub env: Vec<(String, SecretString)>,
}

/// The processes of a server. They end all at once when it is dropped, and when the program itself has ended.
pub(super) struct Group(Arc<Processes>);

struct Processes {
    /// Until they are ended.
    watcher: Mutex<Option<Child>>,
    mark: String,
}

impl Group {
    /// Starts a program, with its stdin and stdout; its stderr goes to the node's log at `debug`, masked.
    ///
    /// # Errors
    /// It cannot be started; nothing is left running.
    pub(super) fn start(server: &str, program: &Program, masks: &Masks) -> io::Result<(Self, ChildStdin, ChildStdout)> {
        let (name, arguments) = program.command.split_first().ok_or_else(|| io::Error::other("no program"))?;
        let mark = format!("{MARK}={:032x}", rand::random::<u128>());
        let mut watcher = std::process::Command::new("/bin/sh");
        watcher.args(["-c", WATCHER, "runcast-watcher", &mark]).process_group(0);
        watcher.env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin");
        let watcher =
            Command::from(watcher).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let leader = watcher.id().ok_or_else(|| io::Error::other("the watcher is gone"))?;
        let group = Self(Arc::new(Processes { watcher: Mutex::new(Some(watcher)), mark }));
        let mut command = std::process::Command::new(name);
        command.args(arguments).process_group(i32::try_from(leader).map_err(io::Error::other)?);
        command.env_clear().envs(environment(&group.0.mark, &program.env));
        let mut child =
            Command::from(command).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let (Some(stdin), Some(stdout), Some(stderr)) = (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return Err(io::Error::other("the program has no pipes"));
        };
        tokio::spawn(log(server.to_owned(), stderr, masks.clone()));
        let processes = Arc::clone(&group.0);
        let server = server.to_owned();
        tokio::spawn(async move {
            let ended = child.wait().await.map(|status| status.to_string());
            tracing::debug!(server, ?ended, "the program of an mcp server has ended");
            processes.end();
        });
        Ok((group, stdin, stdout))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.0.end();
    }
}

impl Processes {
    /// Ends all of them, once.
    fn end(&self) {
        let Some(watcher) = self.watcher.lock().take() else { return };
        // It is not reaped before it is dropped here: the number is that of its group still.
        if let Some(leader) = watcher.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)) {
            // Gone already, at the worst.
            kill_process_group(leader, Signal::KILL).unwrap_or_default();
        }
        let mark = self.mark.clone();
        // Reads some files for each process of the machine: not on a thread that runs share.
        let looking = std::thread::Builder::new().name("mcp-cleanup".to_owned()).spawn(move || end_marked(&mark));
        if let Err(error) = looking {
            tracing::warn!(%error, "what a server has left outside of its process group is not looked for");
        }
    }
}

/// Ends what has left its group.
fn end_marked(mark: &str) {
    for _ in 0..ROUNDS {
        let Ok(processes) = std::fs::read_dir("/proc") else { return };
        let marked = processes.filter_map(|entry| {
            let entry = entry.ok()?;
            let id: i32 = entry.file_name().to_str()?.parse().ok()?;
            // Those of other users cannot be read, and are none of ours.
            let environment = std::fs::read(entry.path().join("environ")).ok()?;
            let has = environment.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes());
            Pid::from_raw(id).filter(|_| has)
        });
        let found = marked.inspect(|process| kill_process(*process, Signal::KILL).unwrap_or_default()).count();
        if found == 0 {
            return;
        }
    }
}

fn environment(mark: &str, own: &[(String, SecretString)]) -> BTreeMap<String, String> {
    let shared = SHARED.iter().filter_map(|name| Some(((*name).to_owned(), std::env::var(name).ok()?)));
    let own = own.iter().map(|(name, value)| (name.clone(), value.expose_secret().to_owned()));
    let mark = mark.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
    shared.chain(own).chain(mark).collect()
}

/// Logs lines until they end; what is too long or too much is read and forgotten.
async fn log(server: String, mut stderr: impl AsyncRead + Unpin, masks: Masks) {
    let (mut line, mut lines, mut buffer) = (Vec::new(), 0, [0; 4096]);
    while let Ok(read @ 1..) = stderr.read(&mut buffer).await {
        for byte in &buffer[..read] {
            if *byte != b'\n' {
                if line.len() <= MAX_LINE {
                    line.push(*byte);
                }
                continue;
            }
            lines += 1;
            if lines < MAX_LINES {
                let text = bounded(masks.apply_to_cut(&String::from_utf8_lossy(&line)), MAX_LINE);
                tracing::debug!(server, text, "an mcp server says");
            } else if lines == MAX_LINES {
                tracing::debug!(server, "an mcp server says more, which is left out");
            }
            line.clear();
        }
    }
}
