//! The process between a node and a program: it outlives the node for as long as it takes to end the program with all
//! that it has started.
//!
//! The node holds the writing end of its standard input and does nothing else to end a program: the input ends when
//! the attempt does, however that happens, also when the node is killed. Everything that the program starts stays a
//! descendant of this process, which is a subreaper: also what has left the process group or the session, or whose
//! parent has ended. So it can be found, and nothing is forgotten before the system says that there are no children
//! any more. Out of reach is only what others start on the program's behalf (a service manager, a container engine, `at`)
//! and what runs as another user. Whoever kills this very process (`kill -9`) takes the guard away: the program then sees the end of its
//! standard input and nothing more.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::AsFd as _;
use std::os::unix::process::CommandExt as _;
use std::process::{ChildStdin, Command, ExitCode, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process, kill_process_group};

/// How long between two rounds of killing, at first and at the most: processes that are being started may escape a
/// round, and none forever; those of other users (`sudo`) cannot be killed, only waited for.
const ROUND: Duration = Duration::from_millis(5);
const LONGEST_ROUND: Duration = Duration::from_secs(1);

/// The exit code for a program that cannot be started, as shells have it.
const CANNOT_START: u8 = 127;

/// What happens.
enum News {
    /// The attempt is over: nobody holds the other end of the standard input.
    HungUp,
    /// The program has ended.
    Ended(WaitStatus),
    /// Nothing is left of it.
    AllGone,
}

/// Runs `command` until it ends or the standard input does. When the input ends, the program's process group gets
/// SIGTERM and has `grace` to end; then, or as soon as the program has ended by itself, all that is left of what it
/// has started is killed. Returns the program's exit code, or dies of the signal that it died of.
pub fn supervise(command: &[OsString], grace: Duration) -> ExitCode {
    let (sender, news) = channel();
    let program = match start(command) {
        Ok(program) => program,
        Err(error) => {
            let name = command.first().map(|name| name.to_string_lossy()).unwrap_or_default();
            eprintln!("runcast: cannot start {name}: {error}");
            return ExitCode::from(CANNOT_START);
        }
    };
    let Program { pid, input, hands } = program;
    let (on_signal, at_end) = (sender.clone(), sender.clone());
    thread::spawn(move || signals(&on_signal));
    thread::spawn(move || reap(pid, &at_end));
    thread::spawn(move || {
        feed(input);
        sender.send(News::HungUp).unwrap_or_default();
    });
    let status = watch(pid, &news, grace);
    // What the program has said is said whole, as far as the node listens.
    for hand in hands {
        hand.join().unwrap_or_default();
    }
    match status {
        Some(status) => end_like(status),
        None => ExitCode::FAILURE,
    }
}

struct Program {
    pid: Pid,
    input: Option<ChildStdin>,
    /// What hands on its output.
    hands: [JoinHandle<()>; 2],
}

fn start(command: &[OsString]) -> io::Result<Program> {
    let (name, args) = command.split_first().ok_or_else(|| io::Error::other("no command"))?;
    #[cfg(target_os = "linux")]
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    let mut command = Command::new(name);
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child = command.spawn()?;
    let out = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    let errors = File::from(io::stderr().as_fd().try_clone_to_owned()?);
    // The node sees that the program has closed its output: nobody else holds it.
    let nowhere = OpenOptions::new().write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdout(&nowhere)?;
    rustix::stdio::dup2_stderr(&nowhere)?;
    let (from_out, from_errors) = (child.stdout.take(), child.stderr.take());
    let hands = [thread::spawn(|| hand_on(from_out, out)), thread::spawn(|| hand_on(from_errors, errors))];
    let pid =
        i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or_else(|| io::Error::other("no process id"))?;
    Ok(Program { pid, input: child.stdin.take(), hands })
}

/// Hands on what the program says. When the node listens no more it is read all the same: a program that is told to end
/// may say so, and must not die of that.
fn hand_on(from: Option<impl Read>, mut to: File) {
    let Some(mut from) = from else { return };
    if io::copy(&mut from, &mut to).is_err() {
        drop(to);
        io::copy(&mut from, &mut io::sink()).unwrap_or_default();
    }
}

/// Hands on what the node says, until it says no more.
fn feed(input: Option<ChildStdin>) {
    let mut node = io::stdin().lock();
    if let Some(mut input) = input
        && io::copy(&mut node, &mut input).is_ok()
    {
        return;
    }
    // The program does not listen: the end has to be waited for all the same.
    io::copy(&mut node, &mut io::sink()).unwrap_or_default();
}

/// A service manager that stops everything at once must not take the guard away before the program is gone.
fn signals(news: &Sender<News>) {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let Ok(runtime) = runtime else { return };
    runtime.block_on(async {
        let kinds = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()];
        if let [Ok(mut terminate), Ok(mut interrupt), Ok(mut hangup)] = kinds.map(signal) {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
                _ = hangup.recv() => {}
            }
            news.send(News::HungUp).unwrap_or_default();
            // From now on signals are ignored: this process ends when the program has.
            std::future::pending::<()>().await;
        }
    });
}

/// Waits for the end of everything.
fn reap(program: Pid, news: &Sender<News>) {
    loop {
        match rustix::process::wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid == program => news.send(News::Ended(status)).unwrap_or_default(),
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => return news.send(News::AllGone).unwrap_or_default(),
        }
    }
}

/// Waits until nothing is left of the program, and sees to that when it is time. How the program ended.
fn watch(program: Pid, news: &Receiver<News>, grace: Duration) -> Option<WaitStatus> {
    let (mut ended, mut kill_at, mut round) = (None, None::<Instant>, ROUND);
    loop {
        let left = kill_at.map(|at| at.saturating_duration_since(Instant::now()));
        let next = match left {
            None => news.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(left) => news.recv_timeout(left.max(round)),
        };
        match next {
            Ok(News::HungUp) if kill_at.is_none() => {
                kill_process_group(program, Signal::TERM).unwrap_or_default();
                kill_at = Some(Instant::now() + grace);
            }
            Ok(News::HungUp) => {}
            Ok(News::Ended(status)) => {
                ended = Some(status);
                // After a SIGTERM the rest of the group has the rest of the grace.
                kill_at.get_or_insert_with(Instant::now);
            }
            Ok(News::AllGone) | Err(RecvTimeoutError::Disconnected) => return ended,
            Err(RecvTimeoutError::Timeout) => {}
        }
        if kill_at.is_some_and(|at| at <= Instant::now()) {
            kill_process_group(program, Signal::KILL).unwrap_or_default();
            for pid in descendants() {
                kill_process(pid, Signal::KILL).unwrap_or_default();
            }
            round = (2 * round).min(LONGEST_ROUND);
        }
    }
}

/// All that descends from this process, as far as it can be seen.
fn descendants() -> Vec<Pid> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let parents: Vec<(Pid, Pid)> = entries.filter_map(|entry| parent(entry.file_name().to_str()?)).collect();
    let mut found = vec![rustix::process::getpid()];
    let mut next = 0;
    while let Some(parent) = found.get(next).copied() {
        found.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| *pid));
        next += 1;
    }
    found.split_off(1)
}

/// A process and its parent; see proc_pid_stat(5): the fields that follow the name, which is in parentheses and may
/// itself have any, are the state and the parent.
fn parent(pid: &str) -> Option<(Pid, Pid)> {
    let number: i32 = pid.parse().ok()?;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let parent: i32 = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()?;
    Some((Pid::from_raw(number)?, Pid::from_raw(parent)?))
}

/// Ends as the program has.
fn end_like(status: WaitStatus) -> ExitCode {
    let Some(raw) = status.terminating_signal() else {
        return ExitCode::from(status.exit_status().and_then(|code| u8::try_from(code).ok()).unwrap_or(1));
    };
    #[cfg(target_os = "linux")]
    // The program has left its core, if it should; this process is none of anybody's business.
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable).unwrap_or_default();
    if let Some(signal) = Signal::from_named_raw(raw) {
        // The first SIGSEGV ends in Rust's own handler, which is gone then.
        for _ in 0..2 {
            kill_process(rustix::process::getpid(), signal).unwrap_or_default();
        }
    }
    // As shells tell it.
    ExitCode::from(u8::try_from(128 + raw).unwrap_or(u8::MAX))
}
