//! What the binary cannot be made to do from outside: a run's actor that dies.

use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use runcast_broker_memory::MemoryBroker;
use serde_json::Map;

use super::*;
use crate::agent::{Agent, AgentError, Answer, RunContext};
use crate::clock::SystemClock;
use crate::run::{Input, OnDisconnect, Timestamp};
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
        max_input: 1 << 20,
        max_waiting: 100,
        max_metadata_entries: 1,
    }
}

fn wish(agent: &str) -> CreateRun {
    CreateRun {
        tenant: Tenant::default(),
        agent: agent.to_owned(),
        input: Input::Text("x".to_owned()),
        params: Map::new(),
        priority: 0,
        start: Start::Now,
        ttl: None,
        timeout: None,
        max_attempts: None,
        on_disconnect: OnDisconnect::Continue,
        metadata: BTreeMap::new(),
        key: None,
        correlation_id: None,
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
            clock: Arc::new(BombClock(bomb)),
            metrics: Arc::new(Metrics::default()),
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
