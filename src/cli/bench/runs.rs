//! `runcast bench runs`: many runs of the scripted agent, from the request to the last event.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Args;
use hyper::Method;
use parking_lot::Mutex;
use serde::Serialize;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::check::{Check, Faults};
use super::connection::{Connection, Target};
use super::figures::{Percentiles, mib, print, rounded};
use super::{TargetFlags, procfs};

/// What a run may take beyond the pauses of its script.
const PATIENCE: Duration = Duration::from_secs(60);

/// Measures runs: how many a second, how soon the first token comes, what the server spends.
///
/// Starts a server in a process of its own on throw-away data and drives it over real HTTP and SSE from
/// this process. Each run is created and its stream read to the end on a connection that is kept; each
/// stream is checked: numbers without a gap, every token once, one final event. Some runs go ahead and
/// are not counted. Fails if anything was lost, repeated or refused.
#[derive(Debug, Args)]
pub(super) struct RunsArgs {
    #[command(flatten)]
    target: TargetFlags,
    #[command(flatten)]
    work: Work,
    /// Prints the report as one JSON object.
    #[arg(long)]
    json: bool,
}

/// The flags that say what is done.
#[derive(Debug, Args)]
pub(super) struct Work {
    /// How many runs are counted.
    #[arg(long, value_name = "N", default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// How many runs are under way at once, each on its own connection. With --rate: while warming up.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    concurrency: u32,
    /// How many tokens each run says.
    #[arg(long, value_name = "N", default_value_t = 64)]
    tokens: u64,
    /// The pause before each token, in milliseconds.
    #[arg(long, value_name = "MS", default_value_t = 0)]
    delay_ms: u64,
    /// Starts so many runs a second at fixed times, however long the answers take; times count from
    /// when a run was due.
    #[arg(long, value_name = "RUNS/S", value_parser = rate)]
    rate: Option<f64>,
    /// Takes the stream as the answer to the request that creates the run: one request a run, not two.
    #[arg(long)]
    stream_on_post: bool,
}

fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse().ok().filter(|rate| (0.01..=1e6).contains(rate));
    rate.ok_or_else(|| "expected a number from 0.01 to 1000000".to_owned())
}

/// The figures.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    version: &'static str,
    build: &'static str,
    runs: u32,
    concurrency: u32,
    rate: Option<f64>,
    tokens: u64,
    delay_ms: u64,
    stream_on_post: bool,
    wall_s: f64,
    runs_per_s: f64,
    first_token_ms: Option<Percentiles>,
    end_ms: Option<Percentiles>,
    completed: usize,
    faults: Faults,
    errors: BTreeMap<String, usize>,
    server_cpu_s_per_1000_runs: Option<f64>,
    client_cpu_s_per_1000_runs: Option<f64>,
    server_idle_kib: Option<u64>,
    server_peak_kib: Option<u64>,
    server_after_kib: Option<u64>,
}

/// One run as its client saw it.
struct Sample {
    first_token: Option<Duration>,
    end: Duration,
    faults: Faults,
}

type Outcome = Result<Sample, String>;

/// What all runs share.
struct Load {
    target: Target,
    body: Bytes,
    tokens: u64,
    on_post: bool,
    patience: Duration,
    idle: Mutex<Vec<Connection>>,
}

pub(super) async fn measure(args: &RunsArgs) -> Result<bool, String> {
    let server = args.target.server().await?;
    let pids: Vec<u32> = server.pid.into_iter().collect();
    let report = run(&server.target, &pids, &args.work).await?;
    print(&report, args.json)?;
    Ok(report.is_fine())
}

/// Does the work at `target`. `pids`: the processes behind it, whose CPU time and memory count together.
pub(super) async fn run(target: &Target, pids: &[u32], args: &Work) -> Result<Report, String> {
    let params = json!({"tokens": args.tokens, "delay_ms": args.delay_ms});
    let body = json!({"agent": "scripted", "input": "", "params": params, "stream": args.stream_on_post});
    let load = Arc::new(Load {
        target: target.clone(),
        body: body.to_string().into(),
        tokens: args.tokens,
        on_post: args.stream_on_post,
        patience: PATIENCE + Duration::from_millis(2 * args.tokens.saturating_mul(args.delay_ms)),
        idle: Mutex::default(),
    });
    let server_idle_kib = of_all(pids, procfs::rss_kib);
    let warm_up = closed(&load, (args.runs / 10).min(200), args.concurrency).await;
    if !warm_up.is_empty() && warm_up.iter().all(Result::is_err) {
        return Err(format!("no run worked: {}", warm_up.into_iter().find_map(Result::err).unwrap_or_default()));
    }
    let cpu = || (of_all(pids, procfs::cpu_seconds), procfs::cpu_seconds(std::process::id()));
    let (server_before, client_before) = cpu();
    let began = Instant::now();
    let outcomes = match args.rate {
        Some(rate) => open(&load, args.runs, rate).await,
        None => closed(&load, args.runs, args.concurrency).await,
    };
    let wall = began.elapsed();
    let (server_after, client_after) = cpu();
    let per_1000 =
        |before: Option<f64>, after: Option<f64>| Some(rounded((after? - before?) * 1e3 / f64::from(args.runs)));
    let mut errors = BTreeMap::new();
    let mut samples = Vec::with_capacity(outcomes.len());
    for outcome in outcomes {
        match outcome {
            Ok(sample) => samples.push(sample),
            Err(error) => *errors.entry(error).or_default() += 1,
        }
    }
    Ok(Report {
        version: env!("CARGO_PKG_VERSION"),
        build: super::BUILD,
        runs: args.runs,
        concurrency: args.concurrency,
        rate: args.rate,
        tokens: args.tokens,
        delay_ms: args.delay_ms,
        stream_on_post: args.stream_on_post,
        wall_s: rounded(wall.as_secs_f64()),
        runs_per_s: rounded(samples.len() as f64 / wall.as_secs_f64()),
        first_token_ms: Percentiles::of(samples.iter().filter_map(|sample| sample.first_token).collect()),
        end_ms: Percentiles::of(samples.iter().map(|sample| sample.end).collect()),
        completed: samples.len(),
        faults: samples.iter().map(|sample| sample.faults).sum(),
        errors,
        server_cpu_s_per_1000_runs: per_1000(server_before, server_after),
        client_cpu_s_per_1000_runs: per_1000(client_before, client_after),
        server_idle_kib,
        server_peak_kib: of_all(pids, procfs::peak_kib),
        server_after_kib: of_all(pids, procfs::rss_kib),
    })
}

/// The sum over all processes; `None` without any, or if one cannot be measured.
fn of_all<T: std::iter::Sum>(pids: &[u32], measure: fn(u32) -> Option<T>) -> Option<T> {
    if pids.is_empty() { None } else { pids.iter().map(|pid| measure(*pid)).sum() }
}

/// What a row of a comparison shows.
pub(super) struct Shown {
    pub(super) runs_per_s: String,
    pub(super) first_token_p50: String,
    pub(super) first_token_p99: String,
    pub(super) end_p50: String,
    pub(super) cpu: String,
}

impl Report {
    /// Nothing was lost, repeated or refused.
    pub(super) fn is_fine(&self) -> bool {
        self.errors.is_empty() && self.faults == Faults::default()
    }

    /// The figures as texts.
    pub(super) fn figures(&self) -> Shown {
        let of = |times: Option<Percentiles>, rank: fn(&Percentiles) -> f64| {
            times.map_or_else(|| "-".to_owned(), |times| format!("{:.2} ms", rank(&times)))
        };
        Shown {
            runs_per_s: format!("{:.0}", self.runs_per_s),
            first_token_p50: of(self.first_token_ms, Percentiles::p50_ms),
            first_token_p99: of(self.first_token_ms, Percentiles::p99_ms),
            end_p50: of(self.end_ms, Percentiles::p50_ms),
            cpu: self.server_cpu_s_per_1000_runs.map_or_else(|| "-".to_owned(), |cpu| format!("{cpu:.3}")),
        }
    }
}

/// Keeps `concurrency` runs under way until there were `runs`.
async fn closed(load: &Arc<Load>, runs: u32, concurrency: u32) -> Vec<Outcome> {
    let left = Arc::new(AtomicUsize::new(runs as usize));
    let mut slots = JoinSet::new();
    for _ in 0..concurrency.min(runs) {
        let (load, left) = (Arc::clone(load), Arc::clone(&left));
        slots.spawn(async move {
            let mut connection = load.idle.lock().pop().unwrap_or_default();
            let mut outcomes = Vec::new();
            while left.try_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
                outcomes.push(load.run(&mut connection, Instant::now()).await);
            }
            load.idle.lock().push(connection);
            outcomes
        });
    }
    slots.join_all().await.into_iter().flatten().collect()
}

/// Starts `runs` runs, `rate` a second, whatever becomes of those before.
async fn open(load: &Arc<Load>, runs: u32, rate: f64) -> Vec<Outcome> {
    let (due, mut dues) = mpsc::unbounded_channel();
    let start = Instant::now() + Duration::from_millis(10);
    // A thread of its own: the runtime's timers are a millisecond coarse, which would count as latency.
    let pace = std::thread::spawn(move || {
        for number in 0..runs {
            let at = start + Duration::from_secs_f64(f64::from(number) / rate);
            std::thread::sleep(at.saturating_duration_since(Instant::now()));
            // Nobody listens any more once the bench was interrupted.
            if due.send(at).is_err() {
                break;
            }
        }
    });
    let mut under_way = JoinSet::new();
    while let Some(due) = dues.recv().await {
        let load = Arc::clone(load);
        under_way.spawn(async move {
            let mut connection = load.idle.lock().pop().unwrap_or_default();
            let outcome = load.run(&mut connection, due).await;
            load.idle.lock().push(connection);
            outcome
        });
    }
    let outcomes = under_way.join_all().await;
    // It has sent its last.
    pace.join().unwrap_or_default();
    outcomes
}

impl Load {
    /// One run, from its request to its last event; times count from `from`.
    async fn run(&self, connection: &mut Connection, from: Instant) -> Outcome {
        let mut check = Check::default();
        let watched = tokio::time::timeout(self.patience, self.watch(connection, &mut check)).await;
        if let Err(error) = watched.unwrap_or_else(|_| Err("no end in time".to_owned())) {
            connection.close();
            return Err(error);
        }
        let (end, faults) = check.finish(self.tokens)?;
        let since = |at: Instant| at.saturating_duration_since(from);
        Ok(Sample { first_token: check.first_token.map(since), end: since(end), faults })
    }

    async fn watch(&self, connection: &mut Connection, check: &mut Check) -> Result<(), String> {
        let stream = if self.on_post {
            connection.send(&self.target, Method::POST, "/v1/runs", Some(self.body.clone())).await?
        } else {
            let id = connection.create(&self.target, self.body.clone()).await?;
            connection.send(&self.target, Method::GET, &format!("/v1/runs/{id}/stream"), None).await?
        };
        let see = |frame: crate::cli::sse::Frame<'_>| {
            check.see(frame);
            false
        };
        connection.events(stream, see).await.map(drop)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let times = |times: Option<Percentiles>| times.map_or_else(|| "-".to_owned(), |times| times.to_string());
        let cpu = |cpu: Option<f64>| cpu.map_or_else(|| "-".to_owned(), |cpu| format!("{cpu:.3} s"));
        let Faults { lost, duplicates, out_of_order, after_end } = self.faults;
        let load = match self.rate {
            Some(rate) => format!("{rate} runs/s"),
            None => format!("{} at once", self.concurrency),
        };
        writeln!(f, "runs           {} of {} tokens, {} ms apart, {load}", self.runs, self.tokens, self.delay_ms)?;
        writeln!(f, "throughput     {:.1} runs/s in {:.2} s ({} build)", self.runs_per_s, self.wall_s, self.build)?;
        writeln!(f, "first token    {}", times(self.first_token_ms))?;
        writeln!(f, "end            {}", times(self.end_ms))?;
        writeln!(f, "completed      {}", self.completed)?;
        writeln!(
            f,
            "faults         {lost} tokens lost, {duplicates} repeated, {out_of_order} out of order, {after_end} after the end"
        )?;
        for (error, count) in &self.errors {
            writeln!(f, "error          {count} x {error}")?;
        }
        let [server, client] = [self.server_cpu_s_per_1000_runs, self.client_cpu_s_per_1000_runs].map(cpu);
        writeln!(f, "CPU/1000 runs  server {server}, this client {client}")?;
        let [idle, peak, after] = [self.server_idle_kib, self.server_peak_kib, self.server_after_kib].map(mib);
        write!(f, "server memory  idle {idle}, peak {peak}, after {after}")
    }
}
