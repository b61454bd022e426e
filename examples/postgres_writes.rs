//! What a PostgreSQL does for the store: four writes a run (create, claim, one segment of 64 tokens, finish), each
//! answered after its commit.
//!
//! ```text
//! cargo run --release --example postgres_writes -- postgres://user:password@host/database [runs] [at once]
//! ```

use std::collections::VecDeque;
use std::error::Error;
use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use runcast::clock::{Clock as _, SystemClock};
use runcast::run::{Command, Context, Event, Input, Kept, OnDisconnect, Run, Segment, Spec, Tenant, Usage};
use runcast::store::postgres::{PostgresOptions, PostgresStore};
use runcast::store::{Claim, Claimed, Commit, Committed, NewRun, RunStore, Share, StoreError};
use tokio::sync::Mutex;

struct Bench {
    store: PostgresStore,
    claimed: Mutex<VecDeque<Claimed>>,
    left: AtomicUsize,
    room: usize,
}

impl Bench {
    async fn create(&self) -> Result<(), StoreError> {
        let spec = Spec {
            id: SystemClock.run_id(),
            tenant: Tenant::default(),
            agent: "scripted".to_owned(),
            agent_version: "1".to_owned(),
            input: Input::Text("hello".to_owned()),
            params: serde_json::Map::new(),
            priority: 0,
            ttl_at: None,
            timeout_ms: 60_000,
            max_attempts: 3,
            on_disconnect: OnDisconnect::Continue,
            metadata: Default::default(),
            thread: None,
            latest_due: None,
            retry_of: None,
            concurrency_key: None,
            correlation_id: None,
            webhook: None,
            budget: runcast::run::Budget::NONE,
            created_at: SystemClock.now(),
        };
        let (run, decision) = Run::create(spec, None, Kept::default());
        let segment = Segment::encode(1, &decision.events, SystemClock.now());
        self.store
            .create(NewRun { run, segment, key: None, max_waiting: 100_000, share: Share::default() })
            .await
            .map(drop)
    }

    /// The next run, claimed together with what else there is, as a node does it.
    async fn claim(&self) -> Result<Claimed, StoreError> {
        let mut claimed = self.claimed.lock().await;
        loop {
            if let Some(claimed) = claimed.pop_front() {
                return Ok(claimed);
            }
            let agents = Arc::new([("scripted".to_owned(), "1".to_owned())]);
            let (room, lease, now) = (self.room, Duration::from_secs(30), SystemClock.now());
            let (turn, limits) = (0, Arc::default());
            let claim = Claim { node: "n".into(), agents, turn, limits, room, reserve: 1024, lease, now };
            claimed.extend(self.store.claim(claim).await?);
        }
    }

    async fn run(&self) -> Result<(), StoreError> {
        self.create().await?;
        let Claimed { mut run, reserved_seq, .. } = self.claim().await?;
        let tokens: Vec<_> = (1..=64).map(|number| Event::MessageDelta { text: format!("t{number} ") }).collect();
        self.commit(&mut run, &tokens, reserved_seq, 1).await?;
        let usage = Usage::default();
        let complete = Command::Complete { attempt: 1, output: "done".into(), outcome: "finished".to_owned(), usage };
        let context = Context { now: SystemClock.now(), next_seq: run.last_seq + 1, busy: false, spent: None };
        let events = run.decide(&complete, &context).map(|decision| decision.events).unwrap_or_default();
        self.commit(&mut run, &events, reserved_seq, 2).await
    }

    async fn commit(&self, run: &mut Run, events: &[Event], reserved_seq: u64, number: u64) -> Result<(), StoreError> {
        let (now, first) = (SystemClock.now(), run.last_seq + 1);
        for (event, seq) in events.iter().zip(first..) {
            run.apply(event, seq, now);
        }
        let segment = Some(Segment::encode(first, events, now));
        let committed = self
            .store
            .commit(Commit { run: run.clone(), number, segment, reserved_seq, step: None, farewell: None })
            .await?;
        assert_eq!(committed, Committed::Done);
        Ok(())
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let url = arguments.next().ok_or("expected a url")?;
    let runs: usize = arguments.next().map_or(Ok(20_000), |runs| runs.parse())?;
    let at_once: usize = arguments.next().map_or(Ok(64), |runs| runs.parse())?;
    let store = PostgresStore::connect(PostgresOptions::new(url.parse()?))?;
    store.health().await?;
    let bench = Bench { store, claimed: Mutex::default(), left: AtomicUsize::new(runs), room: 128 };
    let begun = Instant::now();
    let worker = || async {
        while bench.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
            bench.run().await?;
        }
        Ok::<_, StoreError>(())
    };
    futures_util::future::try_join_all((0..at_once).map(|_| worker())).await?;
    let took = begun.elapsed().as_secs_f64();
    writeln!(
        std::io::stdout(),
        "{runs} runs, {at_once} at once: {:.0} runs/s, {:.2} ms a run",
        runs as f64 / took,
        took * 1e3 * at_once as f64 / runs as f64
    )?;
    bench.store.close().await;
    Ok(())
}
