//! `runcast bench viewers`: what a viewer costs that waits for something to happen.

use std::fmt;
use std::time::Duration;

use clap::Args;
use futures_util::future::join_all;
use hyper::Method;
use hyper::Response;
use hyper::body::Incoming;
use serde::Serialize;
use serde_json::json;

use super::connection::Connection;
use super::figures::{mib, print, rounded};
use super::server::Server;
use super::{TargetFlags, procfs};

/// How long the server is left alone before its memory is read.
const SETTLE: Duration = Duration::from_secs(1);

/// How long the viewers may take to hear of the run's end.
const PATIENCE: Duration = Duration::from_secs(30);

/// Measures what a viewer costs that waits: many connections to the stream of one run that hangs.
///
/// In the end the run is cancelled, and every viewer has to hear of it. Each viewer takes a file
/// descriptor here and in the server: raise the limit with ulimit -n for more than it allows.
#[derive(Debug, Args)]
pub(super) struct ViewersArgs {
    #[command(flatten)]
    target: TargetFlags,
    /// How many viewers.
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    viewers: u32,
    /// Prints the report as one JSON object.
    #[arg(long)]
    json: bool,
}

/// The figures.
#[derive(Debug, Serialize)]
struct Report {
    version: &'static str,
    build: &'static str,
    viewers: u32,
    rss_before_kib: Option<u64>,
    rss_after_kib: Option<u64>,
    rss_kib_per_viewer: Option<f64>,
    pss_kib_per_viewer: Option<f64>,
    told_of_the_end: usize,
}

pub(super) async fn measure(args: &ViewersArgs) -> Result<bool, String> {
    let server = args.target.server().await?;
    let Server { target, pid, .. } = &server;
    let mut control = Connection::default();
    let body = json!({"agent": "scripted", "input": "", "params": {"tokens": 10, "hang_at": 1}});
    let id = control.create(target, body.to_string().into()).await?;
    // The first viewer pays for what all of them share.
    let first = watch(&server, &id).await?;
    let memory = || (pid.and_then(procfs::rss_kib), pid.and_then(procfs::pss_kib));
    tokio::time::sleep(SETTLE).await;
    let (rss_before, pss_before) = memory();
    let mut viewers = vec![first];
    for _ in 0..args.viewers {
        viewers.push(watch(&server, &id).await?);
    }
    tokio::time::sleep(SETTLE).await;
    let (rss_after, pss_after) = memory();
    control.send(target, Method::POST, &format!("/v1/runs/{id}/cancel"), Some(bytes::Bytes::new())).await?;
    let ends = viewers.into_iter().map(async |(mut connection, stream)| {
        let mut told = false;
        let told_of = |frame: crate::cli::sse::Frame<'_>| {
            told |= frame.kind == "run.cancelled";
            false
        };
        let ended = tokio::time::timeout(PATIENCE, connection.events(stream, told_of)).await;
        matches!(ended, Ok(Ok(_))) && told
    });
    let told_of_the_end = join_all(ends).await.into_iter().skip(1).filter(|told| *told).count();
    let each = |before: Option<u64>, after: Option<u64>| {
        Some(rounded((after? as f64 - before? as f64) / f64::from(args.viewers)))
    };
    let report = Report {
        version: env!("CARGO_PKG_VERSION"),
        build: super::BUILD,
        viewers: args.viewers,
        rss_before_kib: rss_before,
        rss_after_kib: rss_after,
        rss_kib_per_viewer: each(rss_before, rss_after),
        pss_kib_per_viewer: each(pss_before, pss_after),
        told_of_the_end,
    };
    print(&report, args.json)?;
    Ok(told_of_the_end == args.viewers as usize)
}

/// A viewer that has seen the run begin, and waits from then on.
async fn watch(server: &Server, id: &str) -> Result<(Connection, Response<Incoming>), String> {
    let mut connection = Connection::default();
    let stream = connection.send(&server.target, Method::GET, &format!("/v1/runs/{id}/stream"), None).await?;
    let stream = connection.events(stream, |frame| frame.kind == "run.started").await?;
    Ok((connection, stream))
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let each = |kib: Option<f64>| kib.map_or_else(|| "-".to_owned(), |kib| format!("{kib:.2} KiB"));
        let [before, after] = [self.rss_before_kib, self.rss_after_kib].map(mib);
        let [rss, pss] = [self.rss_kib_per_viewer, self.pss_kib_per_viewer].map(each);
        writeln!(f, "viewers        {} ({} build)", self.viewers, self.build)?;
        writeln!(f, "server memory  {before} before, {after} after")?;
        writeln!(f, "a viewer       {rss} (RSS), {pss} (PSS)")?;
        write!(f, "told the end   {}", self.told_of_the_end)
    }
}
