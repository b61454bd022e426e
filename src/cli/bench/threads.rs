//! `runcast bench threads`: conversations whose messages come quickly, one after the other.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Args;
use http_body_util::BodyExt;
use hyper::Method;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::task::JoinSet;

use super::connection::{Connection, Target};
use super::figures::{Percentiles, mib, print, rounded};
use super::{TargetFlags, procfs};
use crate::clock::{Clock, SystemClock};
use crate::run::Timestamp;

/// How long all runs may take to end once the last message is sent, beyond the quiet period.
const PATIENCE: Duration = Duration::from_secs(300);

/// How often is looked whether they have.
const POLL: Duration = Duration::from_millis(200);

/// Measures debounce: many threads, each of which is sent some messages within its quiet period.
///
/// In the end there must be one run a thread, with all of its messages in their order: none more, none fewer. The
/// runs are those of a server of its own, or, with --url, those created meanwhile.
#[derive(Debug, Args)]
pub(super) struct ThreadsArgs {
    #[command(flatten)]
    target: TargetFlags,
    /// How many threads.
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..))]
    threads: u32,
    /// How many messages each is sent.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=50))]
    messages: u32,
    /// How many threads are sent to at once, each on its own connection.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    concurrency: u32,
    /// The quiet period, in milliseconds. Long enough that no machine is slower than that.
    #[arg(long, value_name = "MS", default_value_t = 3_000, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    debounce_ms: u64,
    /// Prints the report as one JSON object.
    #[arg(long)]
    json: bool,
}

/// The figures.
#[derive(Debug, Serialize)]
struct Report {
    version: &'static str,
    build: &'static str,
    threads: u32,
    messages: u32,
    debounce_ms: u64,
    sent_s: f64,
    messages_per_s: f64,
    ended_s: f64,
    message_ms: Option<Percentiles>,
    runs: usize,
    /// Threads without a run, or with more than one; runs with other messages than their thread's.
    wrong: usize,
    errors: BTreeMap<String, usize>,
    server_idle_kib: Option<u64>,
    server_peak_kib: Option<u64>,
}

#[derive(Deserialize)]
struct Depths {
    pending: u64,
    high_priority: u64,
    processing: u64,
    retry: u64,
    scheduled: u64,
}

#[derive(Deserialize)]
struct Page {
    data: Vec<Listed>,
    next_cursor: Option<String>,
}

#[derive(Deserialize)]
struct Listed {
    thread_id: Option<String>,
    status: String,
    input: Vec<Said>,
}

#[derive(Deserialize)]
struct Said {
    content: String,
}

pub(super) async fn measure(args: &ThreadsArgs) -> Result<bool, String> {
    let server = args.target.server().await?;
    let (target, server_idle_kib) = (server.target.clone(), server.pid.and_then(procfs::rss_kib));
    let from = SystemClock.now();
    let (left, began) = (Arc::new(AtomicUsize::new(args.threads as usize)), Instant::now());
    let mut slots = JoinSet::new();
    for _ in 0..args.concurrency.min(args.threads) {
        let (target, left, messages, quiet) = (target.clone(), Arc::clone(&left), args.messages, args.debounce_ms);
        slots.spawn(async move {
            let (mut connection, mut told) = (Connection::default(), Vec::new());
            while left.try_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
                told.push(converse(&mut connection, &target, messages, quiet).await);
            }
            told
        });
    }
    let (mut errors, mut times, mut threads) = (BTreeMap::new(), Vec::new(), HashSet::new());
    for told in slots.join_all().await.into_iter().flatten() {
        match told {
            Ok((thread, took)) => {
                threads.insert(thread);
                times.extend(took);
            }
            Err(error) => *errors.entry(error).or_default() += 1,
        }
    }
    let sent = began.elapsed();
    let mut connection = Connection::default();
    let deadline = Instant::now() + Duration::from_millis(args.debounce_ms) + PATIENCE;
    while !is_idle(&mut connection, &target).await? {
        if Instant::now() > deadline {
            return Err("the runs have not ended in time".to_owned());
        }
        tokio::time::sleep(POLL).await;
    }
    let ended = began.elapsed();
    let (mut runs, mut wrong, mut cursor) = (0, 0, None);
    loop {
        let page = page(&mut connection, &target, from, cursor).await?;
        for run in page.data {
            runs += 1;
            let in_order = run.input.iter().zip(1..=args.messages).all(|(said, number)| said.content == word(number));
            let whole = in_order && run.input.len() == args.messages as usize && run.status == "completed";
            // Each thread is taken out by its first run.
            let first = run.thread_id.is_some_and(|thread| threads.remove(&thread));
            wrong += usize::from(!whole || !first);
        }
        cursor = page.next_cursor;
        if cursor.is_none() {
            break;
        }
    }
    let report = Report {
        version: env!("CARGO_PKG_VERSION"),
        build: super::BUILD,
        threads: args.threads,
        messages: args.messages,
        debounce_ms: args.debounce_ms,
        sent_s: rounded(sent.as_secs_f64()),
        messages_per_s: rounded(times.len() as f64 / sent.as_secs_f64()),
        ended_s: rounded(ended.as_secs_f64()),
        message_ms: Percentiles::of(times),
        runs,
        wrong: wrong + threads.len(),
        errors,
        server_idle_kib,
        server_peak_kib: server.pid.and_then(procfs::peak_kib),
    };
    print(&report, args.json)?;
    Ok(report.wrong == 0 && report.errors.is_empty())
}

fn word(number: u32) -> String {
    format!("message {number}")
}

/// Makes a thread and sends it its messages; its id, and how long each message took.
async fn converse(
    connection: &mut Connection,
    target: &Target,
    messages: u32,
    debounce_ms: u64,
) -> Result<(String, Vec<Duration>), String> {
    #[derive(Deserialize)]
    struct Created {
        id: String,
    }
    let Created { id } = ask(connection, target, Method::POST, "/v1/threads", Some("{}".into())).await?;
    let mut took = Vec::with_capacity(messages as usize);
    for number in 1..=messages {
        let message = json!({
            "agent": "scripted", "content": word(number), "debounce_ms": debounce_ms, "debounce_max_ms": 86_400_000,
            "params": {"tokens": 4},
        });
        let began = Instant::now();
        let path = format!("/v1/threads/{id}/messages");
        let _: serde::de::IgnoredAny =
            ask(connection, target, Method::POST, &path, Some(message.to_string().into())).await?;
        took.push(began.elapsed());
    }
    Ok((id, took))
}

async fn is_idle(connection: &mut Connection, target: &Target) -> Result<bool, String> {
    let depths: Depths = ask(connection, target, Method::GET, "/v1/queues", None).await?;
    let Depths { pending, high_priority, processing, retry, scheduled } = depths;
    Ok(pending + high_priority + processing + retry + scheduled == 0)
}

async fn page(
    connection: &mut Connection,
    target: &Target,
    from: Timestamp,
    cursor: Option<String>,
) -> Result<Page, String> {
    let mut path = format!("/v1/runs?limit=100&agent=scripted&created_after={from}");
    if let Some(cursor) = cursor {
        path.push_str("&cursor=");
        path.push_str(&cursor);
    }
    ask(connection, target, Method::GET, &path, None).await
}

async fn ask<T: serde::de::DeserializeOwned>(
    connection: &mut Connection,
    target: &Target,
    method: Method,
    path: &str,
    body: Option<Bytes>,
) -> Result<T, String> {
    let response = connection.send(target, method, path, body).await?;
    let body = response.into_body().collect().await.map_err(|error| format!("{path}: {error}"))?.to_bytes();
    serde_json::from_slice(&body).map_err(|error| format!("answer: {error}"))
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let times = self.message_ms.map_or_else(|| "-".to_owned(), |times| times.to_string());
        writeln!(
            f,
            "threads        {} with {} messages each, quiet for {} ms",
            self.threads, self.messages, self.debounce_ms
        )?;
        writeln!(
            f,
            "sent           {:.0} messages/s in {:.1} s ({} build)",
            self.messages_per_s, self.sent_s, self.build
        )?;
        writeln!(f, "a message      {times}")?;
        writeln!(f, "runs           {}, {} wrong; all ended after {:.1} s", self.runs, self.wrong, self.ended_s)?;
        for (error, count) in &self.errors {
            writeln!(f, "error          {count} x {error}")?;
        }
        let [idle, peak] = [self.server_idle_kib, self.server_peak_kib].map(mib);
        write!(f, "server memory  idle {idle}, peak {peak}")
    }
}
