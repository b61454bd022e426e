//! Private throw-away RabbitMQ servers. Needs nothing but the standard library and tokio.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError, mpsc};
use std::time::{Duration, Instant};

/// How long a server may take to boot: seconds when idle, more under load.
const BOOT: Duration = Duration::from_secs(90);

/// Where the package keeps the script that neither changes the user nor drops the environment.
const LIBRARY: &str = "/usr/lib/rabbitmq/lib";

/// A server on free ports, with its data in a directory of its own. It ends when it is dropped, or
/// when the process does.
pub(crate) struct Server {
    /// Where it speaks AMQP.
    pub(crate) port: u16,
    /// Where it speaks AMQP over TLS, if it has certificates.
    pub(crate) tls_port: u16,
    node: String,
    dist: u16,
    epmd: u16,
    script: PathBuf,
    home: PathBuf,
    children: Mutex<Children>,
    /// Removes the directory once this process has gone, however it went.
    janitor: Option<Child>,
}

#[derive(Default)]
struct Children {
    epmd: Option<Child>,
    server: Option<Child>,
}

/// Certificates, as PEM files, for a server that speaks TLS as well.
pub(crate) struct Certificates {
    pub(crate) authority: PathBuf,
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
    /// Whether clients have to show one too.
    pub(crate) from_clients: bool,
}

impl Server {
    /// `None` when there is no RabbitMQ here, which fails instead if servers are required.
    pub(crate) async fn start(certificates: Option<&Certificates>) -> Option<Self> {
        let server = Self::reserve(certificates)?;
        server.run().await;
        Some(server)
    }

    /// A server that does not run yet.
    pub(crate) fn reserve(certificates: Option<&Certificates>) -> Option<Self> {
        let Some(script) = script() else {
            assert!(std::env::var("RUNCAST_REQUIRE_SERVERS").as_deref() != Ok("1"), "rabbitmq-server is not installed");
            let _ = std::io::Write::write_all(&mut std::io::stderr(), b"skipped: needs rabbitmq-server\n");
            return None;
        };
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("runcast-rabbitmq-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let home = std::env::temp_dir().join(&name);
        std::fs::create_dir(&home).unwrap();
        // never freed within this process: the ports stay ours over restarts
        let [port, tls_port, dist, epmd] = [(); 4].map(|()| free_port());
        let server = Self {
            port,
            tls_port,
            node: format!("{name}@localhost"),
            dist,
            epmd,
            script,
            janitor: Some(janitor(&home)),
            home,
            children: Mutex::default(),
        };
        server.configure(certificates);
        Some(server)
    }

    fn configure(&self, certificates: Option<&Certificates>) {
        let mut lines = vec![
            format!("listeners.tcp.1 = 127.0.0.1:{}", self.port),
            "loopback_users = none".to_owned(),
            "log.console = false".to_owned(),
            "log.file.level = warning".to_owned(),
            // what the other processes of the machine take is no reason for an alarm
            "vm_memory_high_watermark.absolute = 4GB".to_owned(),
            "disk_free_limit.absolute = 1MB".to_owned(),
        ];
        if let Some(Certificates { authority, certificate, key, from_clients }) = certificates {
            lines.extend([
                format!("listeners.ssl.1 = 127.0.0.1:{}", self.tls_port),
                format!("ssl_options.cacertfile = {}", authority.display()),
                format!("ssl_options.certfile = {}", certificate.display()),
                format!("ssl_options.keyfile = {}", key.display()),
                "ssl_options.verify = verify_peer".to_owned(),
                format!("ssl_options.fail_if_no_peer_cert = {from_clients}"),
            ]);
        }
        let write = |name: &str, text: &str| std::fs::write(self.home.join(name), text).unwrap();
        write("rabbitmq.conf", &(lines.join("\n") + "\n"));
        write("advanced.config", "[].\n");
        write("enabled_plugins", "[].\n");
        write(".erlang.cookie", "runcast");
        let cookie = self.home.join(".erlang.cookie");
        std::fs::set_permissions(cookie, std::os::unix::fs::PermissionsExt::from_mode(0o400)).unwrap();
    }

    /// Starts it, also again, with the data it had, and returns when it accepts connections.
    pub(crate) async fn run(&self) {
        let epmd = self.epmd.to_string();
        let mut names = Command::new("epmd");
        names.args(["-port", &epmd, "-address", "127.0.0.1"]);
        let mut server = Command::new(&self.script);
        let home = |name: &str| self.home.join(name);
        server
            .current_dir(&self.home)
            .env("RABBITMQ_NODE_PORT", self.port.to_string())
            .env("RABBITMQ_DIST_PORT", self.dist.to_string())
            .env("RABBITMQ_MNESIA_BASE", home("mnesia"))
            .env("RABBITMQ_LOG_BASE", home("log"))
            .env("RABBITMQ_PID_FILE", home("pid"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", home("enabled_plugins"))
            .env("RABBITMQ_CONFIG_FILE", home("rabbitmq.conf"))
            .env("RABBITMQ_ADVANCED_CONFIG_FILE", home("advanced.config"))
            .env("RABBITMQ_CONF_ENV_FILE", home("none"))
            // the virtual machine takes the place of the script, so that it is our child
            .env("RABBITMQ_ALLOW_INPUT", "1")
            .env(
                "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS",
                "-noinput -kernel inet_dist_use_interface {127,0,0,1} +sbwt none +sbwtdcpu none +sbwtdio none",
            );
        for command in [&mut names, &mut server] {
            self.environment(command);
        }
        if self.children().epmd.is_none() {
            self.children().epmd = Some(spawn(names, &home("epmd.log")));
            // without one the server would start its own, which outlives us
            let since = Instant::now();
            while tokio::net::TcpStream::connect(("127.0.0.1", self.epmd)).await.is_err() {
                assert!(since.elapsed() < BOOT, "no epmd");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        self.children().server = Some(spawn(server, &home("server.log")));
        let since = Instant::now();
        while tokio::net::TcpStream::connect(("127.0.0.1", self.port)).await.is_err() {
            let ended = self.children().server.as_mut().and_then(|child| child.try_wait().unwrap());
            assert!(ended.is_none() && since.elapsed() < BOOT, "no rabbitmq: {ended:?}: {}", self.log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn environment(&self, command: &mut Command) {
        command.env("HOME", &self.home).env("ERL_EPMD_PORT", self.epmd.to_string());
        command.env("ERL_EPMD_ADDRESS", "127.0.0.1").env("RABBITMQ_NODENAME", &self.node);
    }

    fn children(&self) -> std::sync::MutexGuard<'_, Children> {
        self.children.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.home.join("server.log")).unwrap_or_default()
    }

    /// Has it write what it keeps for later. RabbitMQ puts the names of new quorum queues on disk half a
    /// second late (the directory of its library ra), and one whose name is lost by a kill is led by
    /// nobody, for ever.
    pub(crate) async fn sync(&self) {
        assert_eq!(self.call("dets", "sync", "[ra_directory_reverse]").await, "ok");
    }

    pub(crate) fn kill(&self) {
        if let Some(mut child) = self.children().server.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Stops or continues it, its sockets staying open.
    pub(crate) fn signal(&self, signal: &str) {
        let pid = self.children().server.as_ref().unwrap().id().to_string();
        assert!(Command::new("kill").args(["-s", signal, &pid]).status().unwrap().success());
    }

    /// Has the server evaluate a function call, and returns what it gives, in a third of the time of
    /// the tool for it.
    pub(crate) async fn call(&self, module: &str, function: &str, arguments: &str) -> String {
        let code = format!(
            "io:format(\"~p\", [rpc:call(list_to_atom(\"{}\"), {module}, {function}, {arguments})]), halt().",
            self.node
        );
        let asker = format!("asker-{}-{}@localhost", std::process::id(), free_port());
        let mut command = Command::new("erl");
        command.args(["-noinput", "-hidden", "-sname", &asker, "-setcookie", "runcast", "-eval", &code]);
        self.environment(&mut command);
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    pub(crate) fn url(&self) -> String {
        format!("amqp://127.0.0.1:{}", self.port)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
        if let Some(mut child) = self.children().epmd.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if let Some(mut janitor) = self.janitor.take() {
            drop(janitor.stdin.take());
            let _ = janitor.wait();
        }
    }
}

fn script() -> Option<PathBuf> {
    let mut versions: Vec<PathBuf> = std::fs::read_dir(LIBRARY).ok()?.flatten().map(|entry| entry.path()).collect();
    versions.sort();
    let script = versions.pop()?.join("sbin/rabbitmq-server");
    script.exists().then_some(script)
}

/// A port that nobody has, below those that the kernel gives to outgoing connections: one of these could be taken
/// while the server boots.
fn free_port() -> u16 {
    const PORTS: std::ops::Range<u32> = 16_384..32_768;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let number = std::process::id().wrapping_mul(131).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = u16::try_from(PORTS.start + number % (PORTS.end - PORTS.start)).unwrap();
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

fn janitor(home: &Path) -> Child {
    let mut command = Command::new("sh");
    command.args(["-c", "cat > /dev/null; until rm -rf \"$1\"; do sleep 0.2; done", "janitor"]).arg(home);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// Starts a child that ends with this process. The kernel watches the thread that started it: so that
/// is one which never ends.
fn spawn(command: Command, log: &Path) -> Child {
    type Job = (Command, mpsc::Sender<Child>);
    static KEEPER: OnceLock<mpsc::Sender<Job>> = OnceLock::new();
    let keeper = KEEPER.get_or_init(|| {
        let (sender, jobs) = mpsc::channel::<Job>();
        std::thread::spawn(move || {
            for (mut command, done) in jobs {
                let _ = done.send(command.spawn().unwrap());
            }
        });
        sender
    });
    let mut bound = Command::new("setpriv");
    bound.args(["--pdeathsig", "KILL"]).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => bound.env(name, value),
            None => bound.env_remove(name),
        };
    }
    if let Some(directory) = command.get_current_dir() {
        bound.current_dir(directory);
    }
    let log = std::fs::File::create(log).unwrap();
    bound.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
    let (done, started) = mpsc::channel();
    keeper.send((bound, done)).unwrap();
    started.recv().unwrap()
}
