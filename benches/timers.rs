//! Timers by the million: what they weigh, how fast they are armed and cancelled, and how late they fire.
//!
//! ```sh
//! cargo bench --bench timers              # 1,000,000 parked timers; takes some minutes and 2 GB of disk
//! cargo bench --bench timers -- 100000    # fewer
//! ```
//!
//! Prints one line a figure, beside what is asked for; asserts nothing, for machines differ.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{StreamExt, stream};
use runcast::Runcast;
use runcast::clock::{Clock, SystemClock};
use runcast::config::Config;
use runcast::engine::{CreateRun, Engine, Start, Timetable, Watched};
use runcast::run::{Begin, Command, Input, Kept, OnDisconnect, Reason, Run, RunId, Segment, Spec, Tenant, Timestamp};
use runcast::store::sqlite::{SqliteOptions, SqliteStore};
use runcast::store::{NewRun, RunStore, Share, TimerKey, TimerKind, Transition};

/// Tells a part that it is to measure.
const MEASURE: &str = "--measure";

/// How many callers are at the store at once.
const CALLERS: usize = 1_024;

/// How many timers are to fire a second.
const RATE: usize = 10_000;

/// Of so many fired timers one is watched.
const SAMPLED: usize = 50;

fn main() {
    // `cargo bench` adds `--bench`. Without it, as among the tests, it is only seen that everything works.
    let measures = std::env::args().any(|argument| argument == "--bench" || argument == MEASURE);
    let mut arguments = std::env::args().skip(1).filter(|argument| !argument.starts_with("--"));
    let count = arguments.next().and_then(|argument| argument.parse().ok());
    let count = count.unwrap_or(if measures { 1_000_000 } else { 1_000 });
    let Some(part) = arguments.next() else {
        // Each part in a process of its own: what one has allocated must not hide what the next needs.
        let program = std::env::current_exe().expect("this program");
        for part in ["memory", "durably", "parked", "fired"] {
            let mut command = std::process::Command::new(&program);
            command.args([&count.to_string(), part]).args(measures.then_some(MEASURE));
            let status = command.status();
            assert!(status.expect("a part").success(), "{part}");
        }
        return;
    };
    actix::System::new().block_on(async {
        match part.as_str() {
            "memory" => in_memory(count),
            "durably" => durably(count.min(200_000)).await,
            "parked" => parked(count).await,
            "fired" if measures => fired(30, 10).await,
            "fired" => fired(2, 0).await,
            other => panic!("there is no part {other}"),
        }
    });
}

fn resident_mib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    let kib: f64 = line.trim().trim_end_matches(" kB").parse().unwrap_or_default();
    kib / 1024.0
}

fn per_second(count: usize, began: Instant) -> f64 {
    count as f64 / began.elapsed().as_secs_f64()
}

/// The ordered structure alone.
fn in_memory(count: usize) {
    let key = |number: usize| TimerKey {
        due: Timestamp::from_millis((number as i64).wrapping_mul(7_919) % 1_000_000_007),
        owner: *SystemClock.run_id().as_uuid(),
        kind: TimerKind::Due(1),
    };
    let keys: Vec<_> = (0..count).map(key).collect();
    let (before, mut table, began) = (resident_mib(), Timetable::default(), Instant::now());
    for key in &keys {
        table.arm(*key);
    }
    let armed = per_second(count, began);
    let weight = resident_mib() - before;
    let began = Instant::now();
    keys.iter().for_each(|key| table.disarm(*key));
    assert!(table.is_empty());
    println!(
        "in memory      {count} armed at {armed:.0}/s, cancelled at {:.0}/s (asked: 200,000/s); {weight:.0} MiB",
        per_second(count, began)
    );
}

fn spec(id: RunId, now: Timestamp) -> Spec {
    Spec {
        id,
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
        webhook: None,
        correlation_id: None,
        budget: runcast::run::Budget::NONE,
        created_at: now,
    }
}

/// Debounced runs in the SQLite store: armed with their creation, put off, cancelled.
async fn durably(count: usize) {
    let directory = tempfile::tempdir().expect("a directory");
    let store = SqliteStore::open(SqliteOptions::new(directory.path().join("bench.db"))).expect("a store");
    let (store, ids): (Arc<dyn RunStore>, Vec<_>) =
        (Arc::new(store), (0..count).map(|_| SystemClock.run_id()).collect());
    let began = Instant::now();
    each(&ids, |id| {
        let store = Arc::clone(&store);
        async move {
            let now = SystemClock.now();
            let due = now.after(Duration::from_secs(3_600));
            let (run, decision) = Run::create(spec(id, now), Begin::At(due, Reason::Debounce), Kept::default());
            let segment = Segment::encode(1, &decision.events, now);
            store
                .create(NewRun { run, segment, key: None, max_waiting: u64::MAX, share: Share::default() })
                .await
                .expect("created");
        }
    })
    .await;
    let created = per_second(count, began);
    let tell = |command: Command| {
        let store = Arc::clone(&store);
        move |id| {
            let (store, command) = (Arc::clone(&store), command.clone());
            async move {
                let told = store.transition(None, id, command, SystemClock.now()).await.expect("told");
                assert!(matches!(told, Transition::Done(_)), "{told:?}");
            }
        }
    };
    let began = Instant::now();
    each(&ids, tell(Command::Join { due: SystemClock.now().after(Duration::from_secs(7_200)) })).await;
    let joined = per_second(count, began);
    let began = Instant::now();
    each(&ids, tell(Command::Cancel)).await;
    let cancelled = per_second(count, began);
    println!(
        "durably        {count} runs created with a timer at {created:.0}/s, put off (cancelled and armed again) at \
         {joined:.0}/s, cancelled at {cancelled:.0}/s (asked: 50,000/s)"
    );
    store.close().await;
}

async fn each<F: Future<Output = ()>>(ids: &[RunId], mut work: impl FnMut(RunId) -> F) {
    stream::iter(ids.iter().copied()).map(&mut work).buffer_unordered(CALLERS).collect::<()>().await;
}

fn wish(start: Start) -> CreateRun {
    let input = Input::Text("hello".to_owned());
    CreateRun { start, ..CreateRun::new(Tenant::default(), "scripted".to_owned(), input) }
}

async fn node(directory: &std::path::Path) -> Runcast {
    let mut config = Config { data: directory.to_owned(), ..Config::default() };
    config.limits.max_waiting = 10_000_000;
    // What fires is queued, and that is all.
    config.worker.enabled = false;
    Runcast::builder().config(config).build().await.expect("a node")
}

/// What parked runs weigh in a node that serves.
async fn parked(count: usize) {
    let directory = tempfile::tempdir().expect("a directory");
    let runcast = node(directory.path()).await;
    let engine = runcast.engine().clone();
    // What any node needs once it has done something.
    create(&engine, 1_000, |_| Start::After(Duration::from_secs(7_200))).await;
    let (idle, began) = (resident_mib(), Instant::now());
    create(&engine, count, |number| {
        // Half of them due within the minute that is kept in memory, the rest later.
        let wait = if number % 2 == 0 { 50_000 + number as u64 % 9_000 } else { 3_600_000 + number as u64 };
        Start::After(Duration::from_millis(wait + began.elapsed().as_millis() as u64 / 2))
    })
    .await;
    let armed = per_second(count, began);
    println!(
        "parked         {count} delayed runs through the engine at {armed:.0}/s: {:.0} MiB above idle (asked: 200)",
        resident_mib() - idle
    );
    runcast.shut_down(Duration::from_secs(1)).await;
}

async fn create(engine: &Engine, count: usize, start: impl Fn(usize) -> Start) {
    let made = stream::iter(0..count).map(|number| {
        let (engine, wish) = (engine.clone(), wish(start(number)));
        async move { drop(engine.create(wish).await.expect("created")) }
    });
    made.buffer_unordered(CALLERS).collect::<()>().await;
}

/// How late timers fire: from when they are due to when a viewer sees `run.queued`.
///
/// They are armed within so many seconds, and fire for so many; none: a few fire at once.
async fn fired(armed: u64, seconds: usize) {
    let directory = tempfile::tempdir().expect("a directory");
    let runcast = node(directory.path()).await;
    let engine = runcast.engine().clone();
    let count = (RATE * seconds).max(200);
    let first = SystemClock.now().after(Duration::from_secs(armed));
    let due = |number: usize| first.after(Duration::from_micros(number as u64 * 1_000_000 / RATE as u64));
    let mut watched = Vec::new();
    let runs: Vec<_> = stream::iter(0..count)
        .map(|number| {
            let (engine, at) = (engine.clone(), due(number));
            async move { (number, engine.create(wish(Start::At(at))).await.expect("created").0.run.spec.id) }
        })
        .buffer_unordered(CALLERS)
        .collect()
        .await;
    assert!(SystemClock.now() < first, "the machine is too slow to arm them before they are due");
    for (number, id) in runs.into_iter().filter(|(number, _)| number % SAMPLED == 0) {
        let Ok(Watched::Viewer(mut viewer)) = engine.watch(&Tenant::default(), id, 2).await else {
            unreachable!("the run is there")
        };
        let due = due(number);
        watched.push(actix::spawn(async move {
            viewer.next().await;
            SystemClock.now().since(due)
        }));
    }
    let mut late = Vec::new();
    for viewer in watched {
        late.push(viewer.await.expect("a viewer"));
    }
    late.sort_unstable();
    let at = |share: f64| late[((late.len() - 1) as f64 * share) as usize];
    println!(
        "fired          {count} in {seconds} s, {RATE}/s: late by p50 {:?}, p99 {:?}, at most {:?} (asked: p99 20 ms)",
        at(0.5),
        at(0.99),
        at(1.0)
    );
    runcast.shut_down(Duration::from_secs(1)).await;
}
