//! What the parts of the hot path cost: deciding, encoding, the log with its viewers, and the store.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use runcast::clock::{Clock, SystemClock};
use runcast::run::{Command, Context, Event, Input, Kept, OnDisconnect, Run, Segment, Spec, Tenant, Usage};
use runcast::store::sqlite::{SqliteOptions, SqliteStore};
use runcast::store::{Claim, Commit, NewRun, RunStore, Share};

fn spec() -> Spec {
    Spec {
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
    }
}

fn tokens() -> Vec<Event> {
    (1..=64).map(|number| Event::MessageDelta { text: format!("t{number} ") }).collect()
}

fn complete() -> Command {
    Command::Complete { attempt: 1, output: "done".into(), outcome: "finished".to_owned(), usage: Usage::default() }
}

fn decided(run: &mut Run, command: &Command) -> Segment {
    let now = SystemClock.now();
    let first = run.last_seq + 1;
    let decision =
        run.decide(command, &Context { now, next_seq: first, busy: false, spent: None }).expect("the command applies");
    for (event, seq) in decision.events.iter().zip(first..) {
        run.apply(event, seq, now);
    }
    Segment::encode(first, &decision.events, now)
}

fn machine(criterion: &mut Criterion) {
    criterion.bench_function("machine: create, claim, complete", |bencher| {
        let spec = spec();
        bencher.iter(|| {
            let (mut run, _) = Run::create(spec.clone(), None, Kept::default());
            black_box(decided(&mut run, &Command::Claim { node: "n".to_owned() }));
            black_box(decided(&mut run, &complete()));
        });
    });
    let mut group = criterion.benchmark_group("frames");
    let (tokens, now) = (tokens(), SystemClock.now());
    group.throughput(Throughput::Elements(64));
    group.bench_function("encode 64 tokens", |bencher| bencher.iter(|| Segment::encode(4, black_box(&tokens), now)));
    let segment = Segment::encode(4, &tokens, now);
    group.bench_function("read back 64 tokens", |bencher| bencher.iter(|| black_box(&segment).events().count()));
    group.finish();
}

/// Four writes a run, as the engine makes them, from so many callers at once.
fn store(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let mut group = criterion.benchmark_group("sqlite, four writes a run");
    group.sample_size(20);
    for callers in [1_usize, 64] {
        let directory = tempfile::tempdir().expect("a directory");
        let store = SqliteStore::open(SqliteOptions::new(directory.path().join("bench.db"))).expect("a store");
        let store: Arc<dyn RunStore> = Arc::new(store);
        group.throughput(Throughput::Elements(callers as u64));
        group.bench_function(format!("{callers} at once"), |bencher| {
            bencher.iter_batched(
                || (0..callers).map(|_| whole_run(Arc::clone(&store))).collect::<Vec<_>>(),
                |runs| runtime.block_on(futures_util::future::join_all(runs)),
                BatchSize::PerIteration,
            );
        });
        runtime.block_on(store.close());
    }
    group.finish();
}

async fn whole_run(store: Arc<dyn RunStore>) {
    let (run, decision) = Run::create(spec(), None, Kept::default());
    let segment = Segment::encode(1, &decision.events, run.spec.created_at);
    store
        .create(NewRun { run, segment, key: None, max_waiting: u64::MAX, share: Share::default() })
        .await
        .expect("created");
    let claim = Claim {
        node: "n".into(),
        agents: [("scripted".to_owned(), "1".to_owned())].into(),
        turn: 0,
        limits: Arc::default(),
        room: 1,
        reserve: 1024,
        lease: Duration::from_secs(15),
        now: SystemClock.now(),
    };
    // Whichever run is next: with many at once it need not be the caller's own.
    let Some(claimed) = store.claim(claim).await.expect("claimed").pop() else { return };
    let mut run = claimed.run;
    let said = Segment::encode(run.last_seq + 1, &tokens(), SystemClock.now());
    run.last_seq = said.last_seq();
    let reserved_seq = run.last_seq + 1024;
    let commit = Commit { run: run.clone(), number: 1, segment: Some(said), reserved_seq, step: None, farewell: None };
    store.commit(commit).await.expect("committed");
    let segment = decided(&mut run, &complete());
    let reserved_seq = run.last_seq;
    let commit = Commit { run, number: 2, segment: Some(segment), reserved_seq, step: None, farewell: None };
    store.commit(commit).await.expect("committed");
}

criterion_group!(benches, machine, store);
criterion_main!(benches);
