//! What the binary cannot be made to do from outside: a run's actor that dies, a store that stalls between two
//! nodes that are not on one machine.

mod retention;
mod schedules;

use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use runcast_broker_memory::MemoryBroker;
use serde_json::Map;

use super::*;
use crate::agent::{Agent, AgentError, Answer, RunContext};
use crate::clock::SystemClock;
use crate::net::guard::Guard;
use crate::run::{Input, OnDisconnect, Timestamp};
use crate::store::RunStore;
use crate::store::sqlite::{SqliteOptions, SqliteStore};

/// A clock that panics when it is next read after it was told to.
#[derive(Default)]
struct Bomb {
    armed: AtomicBool,
}

struct BombClock(Arc<Bomb>);

impl Clock for BombClock {
    fn now(&self) -> Timestamp {
        let actors_thread = std::thread::current().name().is_some_and(|name| name.contains("arbiter"));
        assert!(!actors_thread || !self.0.armed.swap(false, Ordering::SeqCst), "the clock panics, as told");
        SystemClock.now()
    }
}

/// Lets the actor of its first attempt die: the next to read the clock is the actor, to end the attempt.
struct Saboteur(Arc<Bomb>);

#[async_trait]
impl Agent for Saboteur {
    fn card(&self) -> AgentCard {
        AgentCard::new("saboteur", "test")
    }

    async fn run(&self, context: RunContext) -> Result<Answer, AgentError> {
        context.delta("said ").await?;
        if context.attempt() == 1 {
            self.0.armed.store(true, Ordering::SeqCst);
        }
        Ok(Answer::finished("done"))
    }
}

fn settings() -> Settings {
    Settings {
        role: Role::All,
        execute: true,
        shared: false,
        proposal: Proposal { mode: "local".to_owned(), namespace: "test".to_owned() },
        announce_window: Duration::from_millis(20),
        node: "test".to_owned(),
        concurrency: 8,
        supervisors: 1,
        timeout: Duration::from_secs(60),
        max_attempts: 3,
        backoff: Backoff { base: Duration::from_millis(1), max: Duration::from_millis(1) },
        flush_interval: Duration::from_secs(3600),
        reserve: 100,
        max_unflushed: 1 << 20,
        feed: FeedSettings {
            log_memory: 1 << 20,
            ended_memory: 1 << 20,
            ended_linger: Duration::from_secs(1),
            disconnect_grace: Duration::from_secs(1),
        },
        lease: Duration::from_secs(15),
        sweep_interval: Duration::from_secs(3600),
        schedule_grace: Duration::from_secs(60),
        retention: Retention { runs: None, threads: None, batch: 100, interval: Duration::from_secs(3600) },
        max_input: 1 << 20,
        max_waiting: 100,
        max_pending: 100,
        sharing: Sharing::default(),
        max_metadata_entries: 1,
    }
}

fn webhooks() -> WebhookParts {
    WebhookParts {
        keys: crate::webhook::Keys::missing(),
        client: crate::webhook::Client::new(Guard::new("webhooks.allow", Vec::new()), Duration::from_secs(1)),
        render: |_| None,
        attempts: 1,
        concurrency: 8,
        keep: Duration::from_secs(3600),
    }
}

fn wish(agent: &str) -> CreateRun {
    CreateRun {
        thread: None,
        on_busy: None,
        tenant: Tenant::default(),
        agent: agent.to_owned(),
        input: Input::Text("x".to_owned()),
        params: Map::new(),
        priority: 0,
        start: Start::Now,
        ttl: None,
        timeout: None,
        max_attempts: None,
        budget: crate::run::Budget::NONE,
        on_disconnect: OnDisconnect::Continue,
        metadata: BTreeMap::new(),
        key: None,
        concurrency_key: None,
        correlation_id: None,
        webhook: None,
    }
}

#[test]
fn a_run_whose_actor_dies_goes_on_as_another_attempt_and_its_neighbours_do_not_notice() {
    actix::System::new().block_on(async {
        let directory = tempfile::tempdir().unwrap();
        let bomb = Arc::new(Bomb::default());
        let mut agents = Agents::default();
        agents.register(Arc::new(Saboteur(Arc::clone(&bomb)))).unwrap();
        agents.register(Arc::new(crate::agent::scripted::ScriptedAgent::new("scripted"))).unwrap();
        let engine = Engine::start(Parts {
            store: Arc::new(SqliteStore::open(SqliteOptions::new(directory.path().join("test.db"))).unwrap()),
            broker: Arc::new(MemoryBroker::default()),
            agents,
            lacking: BTreeMap::new(),
            clock: Arc::new(BombClock(bomb)),
            metrics: Arc::new(Metrics::default()),
            ingest: Vec::new(),
            webhooks: webhooks(),
            settings: settings(),
        })
        .await;
        engine.serve().await.unwrap();
        let tenant = Tenant::default();
        let patience = Duration::from_secs(30);

        // On the same core, in the middle of its work.
        let mut neighbour = wish("scripted");
        neighbour.params.insert("hang_at".to_owned(), 2.into());
        let (neighbour, _) = engine.create(neighbour).await.unwrap();
        let neighbour = neighbour.run.spec.id;

        let (sabotaged, _) = engine.create(wish("saboteur")).await.unwrap();
        let id = sabotaged.run.spec.id;
        let Watched::Viewer(viewer) = engine.watch(&tenant, id, 0).await.unwrap() else { panic!("nothing to see") };
        assert!(tokio::time::timeout(patience, viewer.ended()).await.unwrap(), "the viewer sees the true ending");
        let run = engine.get(&tenant, id).await.unwrap().run;
        assert_eq!((run.status, run.attempt, run.crashes), (Status::Completed, 2, 1));
        let segments = engine.events(&tenant, id, 0, 1 << 20).await.unwrap();
        let numbers: Vec<_> = segments.iter().flat_map(Segment::events).map(|event| (event.seq, event.kind)).collect();
        // The token of attempt 1 was shown as number 4 and never journaled: its number is not used again.
        let expected = [(3, "run.started"), (104, "run.retrying"), (105, "run.started"), (106, "message.delta")];
        assert_eq!(numbers[2..6], expected);

        assert_eq!(engine.get(&tenant, neighbour).await.unwrap().run.attempt, 1);
        engine.cancel(&tenant, neighbour).await.unwrap();
        let cancelled = engine.wait(&tenant, neighbour, patience).await.unwrap().run;
        assert_eq!((cancelled.status, cancelled.attempt), (Status::Cancelled, 1));

        engine.drain(patience, CancellationToken::new()).await;
        engine.close().await;
    });
}

/// Nodes that share a store and a broker.
struct Cluster {
    store: Arc<SqliteStore>,
    broker: Arc<MemoryBroker>,
    _directory: tempfile::TempDir,
}

impl Cluster {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Arc::new(SqliteStore::open(SqliteOptions::new(directory.path().join("test.db"))).unwrap());
        Self { store, broker: Arc::new(MemoryBroker::default()), _directory: directory }
    }

    async fn node(&self, name: &str, role: Role) -> Engine {
        self.node_with(name, role, |_| {}).await
    }

    async fn node_with(&self, name: &str, role: Role, set: impl FnOnce(&mut Parts)) -> Engine {
        let mut agents = Agents::default();
        agents.register(Arc::new(crate::agent::scripted::ScriptedAgent::new("scripted"))).unwrap();
        let mut settings = settings();
        settings.node = name.to_owned();
        settings.role = role;
        settings.shared = true;
        settings.flush_interval = Duration::from_millis(5);
        let mut parts = Parts {
            store: Arc::clone(&self.store) as Arc<dyn Store>,
            broker: Arc::clone(&self.broker) as Arc<dyn Broker>,
            agents,
            lacking: BTreeMap::new(),
            clock: Arc::new(SystemClock),
            metrics: Arc::new(Metrics::default()),
            ingest: Vec::new(),
            webhooks: webhooks(),
            settings,
        };
        set(&mut parts);
        let engine = Engine::start(parts).await;
        engine.serve().await.unwrap();
        engine
    }
}

const PATIENCE: Duration = Duration::from_secs(30);

/// What a viewer sees until the log has ended.
async fn seen(engine: &Engine, id: RunId, after: u64) -> String {
    use futures_util::StreamExt;
    let Watched::Viewer(mut viewer) = engine.watch(&Tenant::default(), id, after).await.unwrap() else {
        return String::new();
    };
    let all = async {
        let mut text = Vec::new();
        while let Some(bytes) = viewer.next().await {
            text.extend_from_slice(&bytes);
        }
        String::from_utf8(text).unwrap()
    };
    tokio::time::timeout(PATIENCE, all).await.expect("the log ends")
}

/// Asks again until it is so.
async fn until(so: impl AsyncFn() -> bool) {
    let asked = async {
        while !so().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, asked).await.expect("it becomes so");
}

fn ids(frames: &str) -> Vec<u64> {
    frames.lines().filter_map(|line| line.strip_prefix("id: ")).map(|id| id.parse().unwrap()).collect()
}

#[test]
fn a_viewer_on_another_node_sees_the_same_log() {
    actix::System::new().block_on(async {
        let cluster = Cluster::new();
        let api = cluster.node("api", Role::Api).await;
        let other = cluster.node("other", Role::Api).await;
        let worker = cluster.node("worker", Role::Worker).await;
        let mut spoken = wish("scripted");
        spoken.params.insert("tokens".to_owned(), 40.into());
        spoken.params.insert("delay_ms".to_owned(), 5.into());
        let id = api.create(spoken).await.unwrap().0.run.spec.id;
        let (first, second) = tokio::join!(seen(&api, id, 0), seen(&other, id, 0));
        assert_eq!(first, second);
        let numbers = ids(&first);
        assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>(), "dense");
        assert!(first.contains("event: run.completed"), "{first}");
        // Late, in the middle, on the node that executed it, and after the end.
        let last = *numbers.last().unwrap();
        assert_eq!(seen(&worker, id, 0).await, first);
        assert_eq!(ids(&seen(&other, id, 10).await), (11..=last).collect::<Vec<_>>());
        assert_eq!(seen(&api, id, last).await, "");
        for engine in [worker, other, api] {
            engine.drain(PATIENCE, CancellationToken::new()).await;
        }
        cluster.store.close().await;
    });
}

#[test]
fn a_cancel_reaches_the_worker_of_another_node_at_once() {
    actix::System::new().block_on(async {
        let cluster = Cluster::new();
        let api = cluster.node("api", Role::Api).await;
        let worker = cluster.node("worker", Role::Worker).await;
        let mut hanging = wish("scripted");
        hanging.params.insert("hang_at".to_owned(), 2.into());
        let id = api.create(hanging).await.unwrap().0.run.spec.id;
        until(async || api.get(&Tenant::default(), id).await.unwrap().run.status == Status::Running).await;
        let started = std::time::Instant::now();
        assert!(matches!(api.cancel(&Tenant::default(), id).await.unwrap(), Cancelled::Requested(_)));
        let cancelled = api.wait(&Tenant::default(), id, PATIENCE).await.unwrap().run;
        assert_eq!(cancelled.status, Status::Cancelled);
        assert!(started.elapsed() < settings().lease / 3, "not only by the next extension of the lease");
        for engine in [worker, api] {
            engine.drain(PATIENCE, CancellationToken::new()).await;
        }
        cluster.store.close().await;
    });
}

#[test]
fn a_worker_that_does_not_agree_takes_no_runs() {
    actix::System::new().block_on(async {
        let cluster = Cluster::new();
        let api = cluster.node("api", Role::Api).await;
        until(async || api.nodes()[0].fingerprint.is_some()).await;
        let stranger =
            cluster.node_with("stranger", Role::Worker, |parts| parts.settings.proposal.mode = "production".to_owned());
        let stranger = stranger.await;
        let id = api.create(wish("scripted")).await.unwrap().0.run.spec.id;
        until(async || stranger.readiness().await.parts["agreement"].is_err()).await;
        let problem = stranger.readiness().await.parts["agreement"].clone().unwrap_err();
        assert!(problem.contains("mode: this node has production, the store was set up with local"), "{problem}");
        until(async || api.nodes().len() == 2 && !api.nodes()[1].disagreements.is_empty()).await;
        assert_eq!(api.get(&Tenant::default(), id).await.unwrap().run.status, Status::Queued);

        let worker = cluster.node("worker", Role::Worker).await;
        assert!(seen(&api, id, 0).await.contains("\"node\":\"worker\""));
        for engine in [stranger, worker, api] {
            engine.drain(PATIENCE, CancellationToken::new()).await;
        }
        cluster.store.close().await;
    });
}
