//! A private, throw-away Redis. Needs nothing but its program and `setpriv`.

use std::io::Write as _;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// How long a server may take to come up.
const DEADLINE: Duration = Duration::from_secs(30);

/// A server on a free port, with its data in a directory of its own. Ends when dropped, or with this process.
pub(crate) struct Redis {
    pub(crate) port: u16,
    child: Mutex<Option<Child>>,
    data: TempDir,
}

impl Redis {
    /// `None` when there is no redis-server here, which fails instead if servers are required.
    pub(crate) async fn start() -> Option<Self> {
        if Command::new("redis-server").arg("--version").stdout(Stdio::null()).status().is_err() {
            assert!(std::env::var("RUNCAST_REQUIRE_SERVERS").as_deref() != Ok("1"), "redis-server is not installed");
            std::io::stderr().write_all(b"skipped: needs redis-server\n").unwrap();
            return None;
        }
        // Taken again by nobody within this process: the port stays the server's over restarts.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let server = Self { port, child: Mutex::new(None), data: TempDir::new().unwrap() };
        server.run().await;
        Some(server)
    }

    /// Starts it, also again, with the data it had, and returns when it answers.
    pub(crate) async fn run(&self) {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "redis-server", "--bind", "127.0.0.1", "--port", &self.port.to_string()]);
        command.args(["--save", "", "--appendonly", "yes", "--appendfsync", "everysec"]);
        // Wake-ups that are evicted would be lost: what a node warns of at start.
        command.args(["--maxmemory-policy", "noeviction"]).arg("--dir").arg(self.data.path());
        let log = std::fs::File::create(self.data.path().join("log")).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        *self.child.lock().unwrap() = Some(spawn(command));
        let begun = Instant::now();
        while tokio::net::TcpStream::connect(("127.0.0.1", self.port)).await.is_err() {
            let ended = self.child.lock().unwrap().as_mut().unwrap().try_wait().unwrap();
            assert!(ended.is_none() && begun.elapsed() < DEADLINE, "redis does not come up: {ended:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Kills it at once.
    pub(crate) fn kill(&self) {
        if let Some(mut child) = self.child.lock().unwrap().take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Starts a process that is killed when this one ends. The system watches the thread that starts it: one of its
/// own, which stays.
fn spawn(mut command: Command) -> Child {
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        tell.send(command.spawn()).unwrap();
        loop {
            std::thread::park();
        }
    });
    told.recv().unwrap().unwrap()
}
