//! A private, throw-away PostgreSQL. Needs nothing but its programs, `setpriv` and, as root, a user `postgres`.

use std::io::Write as _;
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// How long a server may take to come up.
const DEADLINE: Duration = Duration::from_secs(60);

/// The password of the superuser `postgres`, and how it stands in a URL.
pub(crate) const PASSWORD: &str = "hush/hush";
const ENCODED: &str = "hush%2Fhush";

/// A server on a free port, with its data in a directory of its own. Ends when dropped, or with this process.
pub(crate) struct Postgres {
    pub(crate) port: u16,
    directory: PathBuf,
    settings: Vec<String>,
    child: Mutex<Option<Child>>,
}

impl Postgres {
    /// `None` when there is no PostgreSQL here, which fails instead if servers are required. `settings` are such
    /// as `ssl=on`.
    pub(crate) async fn start(settings: &[&str]) -> Option<Self> {
        let server = Self::reserve(settings)?;
        server.run().await;
        Some(server)
    }

    /// A server that does not run yet.
    pub(crate) fn reserve(settings: &[&str]) -> Option<Self> {
        if program("postgres").is_none() {
            assert!(std::env::var("RUNCAST_REQUIRE_SERVERS").as_deref() != Ok("1"), "postgresql is not installed");
            let _ = std::io::stderr().write_all(b"skipped: needs postgresql\n");
            return None;
        }
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        sweep();
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let directory = std::env::temp_dir().join(format!("runcast-postgres-{}-{number}", std::process::id()));
        std::fs::create_dir_all(directory.join("data")).unwrap();
        std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::write(directory.join("password"), PASSWORD).unwrap();
        if as_root() {
            let given = Command::new("chown").arg("-R").arg("postgres:").arg(&directory).status().unwrap();
            assert!(given.success(), "there is a user postgres");
        }
        // Passwords in the clear: SCRAM takes programs that are not optimised longer than all the rest.
        let mut initdb = as_postgres(&program("initdb").unwrap());
        initdb.args(["--no-sync", "--username=postgres", "--encoding=UTF8", "--locale=C", "--auth=password"]);
        initdb.arg("--pwfile").arg(directory.join("password")).arg("--pgdata").arg(directory.join("data"));
        let made = initdb.output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        // Taken again by nobody within this process: the port stays the server's over restarts.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let settings = settings.iter().map(|setting| (*setting).to_owned()).collect();
        Some(Self { port, directory, settings, child: Mutex::new(None) })
    }

    /// A file of the server's, with these contents.
    pub(crate) fn file(&self, name: &str, contents: &str) {
        let path = self.data().join(name);
        std::fs::write(&path, contents).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        if as_root() {
            assert!(Command::new("chown").arg("postgres:").arg(&path).status().unwrap().success());
        }
    }

    /// Where the server keeps its data.
    pub(crate) fn data(&self) -> PathBuf {
        self.directory.join("data")
    }

    /// Starts it, also again, with the data it had, and returns when it answers.
    pub(crate) async fn run(&self) {
        let mut command = as_postgres(&program("postgres").unwrap());
        command.arg("-D").arg(self.data()).args(["-p", &self.port.to_string()]);
        for setting in ["listen_addresses=127.0.0.1", "unix_socket_directories=", "fsync=off", "max_connections=300"] {
            command.args(["-c", setting]);
        }
        for setting in &self.settings {
            command.args(["-c", setting]);
        }
        let log = std::fs::File::create(self.directory.join("log")).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        *self.child.lock().unwrap() = Some(spawn(command));
        let ready = program("pg_isready").unwrap();
        let begun = Instant::now();
        loop {
            let port = self.port.to_string();
            let asked = Command::new(&ready).args(["-q", "-h", "127.0.0.1", "-p", &port]).status().unwrap();
            if asked.success() {
                return;
            }
            let ended = self.child.lock().unwrap().as_mut().unwrap().try_wait().unwrap();
            assert!(ended.is_none() && begun.elapsed() < DEADLINE, "{}", self.log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// What the server has said since it was started.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.directory.join("log")).unwrap()
    }

    /// Kills all its processes at once.
    pub(crate) fn kill(&self) {
        if let Some(mut child) = self.child.lock().unwrap().take() {
            signal("KILL", child.id());
            child.wait().unwrap();
        }
    }

    /// Stops or continues all its processes, its sockets staying open.
    pub(crate) fn signal(&self, name: &str) {
        signal(name, self.child.lock().unwrap().as_ref().unwrap().id());
    }

    /// The URL of a database, for the superuser.
    pub(crate) fn url(&self, database: &str) -> String {
        format!("postgres://postgres:{ENCODED}@127.0.0.1:{}/{database}", self.port)
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.kill();
        let _ = std::fs::remove_dir_all(&self.directory);
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

/// Sends a signal to a process, and to its children, which are found before it takes effect.
fn signal(name: &str, parent: u32) {
    let mut processes = vec![parent.to_string()];
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        // The parent's id is the second word behind the name, which stands in parentheses.
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let parent_of = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1));
        if parent_of == Some(&processes[0]) {
            processes.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    // A child may have ended meanwhile.
    let _ = Command::new("kill").args(["-s", name]).args(&processes).stderr(Stdio::null()).status().unwrap();
}

fn as_root() -> bool {
    std::fs::metadata("/proc/self").unwrap().uid() == 0
}

/// A program that ends with this process; by the user `postgres` if we are root, whom PostgreSQL refuses.
fn as_postgres(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]);
    if as_root() {
        command.args(["--reuid=postgres", "--regid=postgres", "--init-groups"]);
    }
    command.arg(program).current_dir("/");
    command
}

/// A program of PostgreSQL's, of the newest version there is.
fn program(name: &str) -> Option<PathBuf> {
    let mut found: Vec<(u32, PathBuf)> = Vec::new();
    for entry in std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten() {
        let version = entry.file_name().to_string_lossy().parse().unwrap_or(0);
        found.push((version, entry.path().join("bin").join(name)));
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    found.extend(std::env::split_paths(&path).map(|directory| (0, directory.join(name))));
    found.retain(|(_, program)| program.is_file());
    found.into_iter().max_by_key(|(version, _)| *version).map(|(_, program)| program)
}

/// Removes what servers of processes that have ended left behind.
fn sweep() {
    for entry in std::fs::read_dir(std::env::temp_dir()).unwrap().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name.strip_prefix("runcast-postgres-").and_then(|rest| rest.split('-').next());
        if owner.is_some_and(|owner| !Path::new("/proc").join(owner).exists()) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}
