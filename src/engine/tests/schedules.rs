//! Schedules that several nodes fire, and nodes that die in the middle of it.

use std::sync::atomic::AtomicI64;

use uuid::Uuid;

use super::*;
use crate::engine::schedules::fire;
use crate::schedule::{Missed, Request, run_id};
use crate::store::{Schedule, ScheduleStore, TimerKey};

/// A clock that stands still until it is set.
struct Hand(AtomicI64);

impl Hand {
    fn at(text: &str) -> Arc<Self> {
        Arc::new(Self(AtomicI64::new(time(text).as_millis())))
    }

    fn set(&self, text: &str) {
        self.0.store(time(text).as_millis(), Ordering::SeqCst);
    }
}

impl Clock for Hand {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(self.0.load(Ordering::SeqCst))
    }
}

fn time(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn every_minute(agent: &str, missed: Missed) -> CreateSchedule {
    let request = Request {
        agent: agent.to_owned(),
        input: Input::Text("x".to_owned()),
        params: Map::new(),
        priority: 0,
        ttl_ms: None,
        timeout_ms: None,
        max_attempts: None,
        on_disconnect: OnDisconnect::Continue,
        thread_id: None,
        on_busy: None,
        metadata: BTreeMap::new(),
    };
    let (cron, timezone) = ("* * * * *".to_owned(), "UTC".to_owned());
    CreateSchedule { tenant: Tenant::default(), cron, timezone, request, missed, enabled: true, key: None }
}

/// A node whose own timers do nothing: the test fires.
async fn quiet(cluster: &Cluster, name: &str, clock: &Arc<Hand>, set: impl FnOnce(&mut Settings)) -> Engine {
    let clock = Arc::clone(clock);
    let engine = cluster
        .node_with(name, Role::Api, |parts| {
            parts.clock = clock;
            set(&mut parts.settings);
        })
        .await;
    post(&engine.node.timers, timers::Halt);
    engine
}

async fn stored(engine: &Engine, id: Uuid) -> Schedule {
    engine.schedule(&Tenant::default(), id).await.unwrap()
}

/// The runs that the schedule has made, oldest planned time first.
async fn runs(engine: &Engine, id: Uuid) -> Vec<RunId> {
    let metadata = [("schedule_id".to_owned(), id.to_string())].into();
    let filter = RunFilter { metadata, ..RunFilter::default() };
    let mut runs: Vec<_> = engine.list(&Tenant::default(), filter, 99).await.unwrap();
    runs.sort_by_key(|stored| stored.run.spec.id);
    runs.into_iter().map(|stored| stored.run.spec.id).collect()
}

/// Fires what is due as the store has it.
async fn fire_stored(engine: &Engine, id: Uuid) -> Option<TimerKey> {
    let schedule = stored(engine, id).await;
    fire(engine, schedule.timer().unwrap(), schedule.number).await
}

#[test]
fn two_nodes_fire_a_planned_time_once() {
    actix::System::new().block_on(async {
        let cluster = Cluster::new();
        let clock = Hand::at("2026-03-01T12:00:30Z");
        let (first, second) =
            (quiet(&cluster, "first", &clock, |_| {}).await, quiet(&cluster, "second", &clock, |_| {}).await);
        let (schedule, _) = first.create_schedule(every_minute("scripted", Missed::RunOnce)).await.unwrap();
        let id = schedule.id;
        for minute in 1..=5 {
            let planned = format!("2026-03-01T12:{minute:02}:00Z");
            clock.set(&planned);
            let schedule = stored(&first, id).await;
            assert_eq!(schedule.next_at, Some(time(&planned)));
            let timer = schedule.timer().unwrap();
            let fires = |engine| fire(engine, timer, schedule.number);
            let tried = tokio::join!(fires(&first), fires(&second), fires(&first), fires(&second));
            assert_eq!(tried, (None, None, None, None));
            let (after, run) = (stored(&first, id).await, run_id(id, time(&planned)));
            assert_eq!((after.number, after.last_at, after.last_run), (minute + 1, Some(time(&planned)), Some(run)));
            assert_eq!(after.last_error, None);
            // Long after.
            assert_eq!(fires(&second).await, None);
            assert_eq!(runs(&first, id).await.len() as u64, minute);
        }
        let timers = cluster.store.timers(Timestamp::MAX, None, 9).await.unwrap();
        assert_eq!(timers, [stored(&second, id).await.timer().unwrap()]);
        let run = first.get(&Tenant::default(), runs(&first, id).await[0]).await.unwrap().run;
        assert_eq!(run.spec.id.made_at(), Some(time("2026-03-01T12:01:00Z")));
        assert_eq!(run.spec.correlation_id, Some(id.to_string()));
        cluster.store.close().await;
    });
}

#[test]
fn a_node_that_dies_between_the_run_and_the_schedule_makes_no_second_run() {
    actix::System::new().block_on(async {
        let cluster = Cluster::new();
        let clock = Hand::at("2026-03-01T12:00:30Z");
        let engine = quiet(&cluster, "node", &clock, |_| {}).await;
        let tenant = Tenant::default();
        for (missed, late) in [(Missed::RunOnce, false), (Missed::RunOnce, true), (Missed::Skip, true)] {
            clock.set("2026-03-01T12:00:30Z");
            let (schedule, _) = engine.create_schedule(every_minute("scripted", missed)).await.unwrap();
            let planned = schedule.next_at.unwrap();
            let run = run_id(schedule.id, planned);
            let label = ("schedule_id".to_owned(), schedule.id.to_string());
            engine.create_as(run, wish("scripted"), label).await.unwrap();
            engine.cancel(&tenant, run).await.unwrap();
            clock.set(if late { "2026-03-01T18:30:00Z" } else { "2026-03-01T12:01:00.250Z" });
            // A change in between makes the planned time no other one.
            engine.change_schedule(&tenant, schedule.id, |schedule| schedule.request.priority = 1).await.unwrap();
            assert_eq!(fire_stored(&engine, schedule.id).await, None);
            assert_eq!(runs(&engine, schedule.id).await, [run], "{missed:?} {late}");
            let after = stored(&engine, schedule.id).await;
            assert_eq!((after.number, after.last_run), (3, Some(run)));
            let next = if late { "2026-03-01T18:31:00Z" } else { "2026-03-01T12:02:00Z" };
            assert_eq!(after.next_at, Some(time(next)));
        }
        cluster.store.close().await;
    });
}

#[test]
fn missed_firings_make_one_run_or_none_and_late_ones_each_their_own() {
    actix::System::new().block_on(async {
        let cluster = Cluster::new();
        let clock = Hand::at("2026-03-01T12:00:30Z");
        let grace = |settings: &mut Settings| settings.schedule_grace = Duration::from_secs(180);
        let engine = quiet(&cluster, "node", &clock, grace).await;
        for (missed, made) in [(Missed::RunOnce, 1), (Missed::Skip, 0)] {
            clock.set("2026-03-01T12:00:30Z");
            let (schedule, _) = engine.create_schedule(every_minute("scripted", missed)).await.unwrap();
            clock.set("2026-03-01T12:03:30Z");
            for minute in 1..=3 {
                assert_eq!(fire_stored(&engine, schedule.id).await, None);
                assert_eq!(runs(&engine, schedule.id).await.len(), minute);
            }
            assert_eq!(stored(&engine, schedule.id).await.next_at, Some(time("2026-03-01T12:04:00Z")));
            clock.set("2026-03-02T09:00:00Z");
            assert_eq!(fire_stored(&engine, schedule.id).await, None);
            assert_eq!(runs(&engine, schedule.id).await.len(), 3 + made, "{missed:?}");
            assert_eq!(stored(&engine, schedule.id).await.next_at, Some(time("2026-03-02T09:01:00Z")));
        }
        cluster.store.close().await;
    });
}

#[test]
fn a_firing_that_is_refused_goes_on_or_comes_again() {
    actix::System::new().block_on(async {
        let cluster = Cluster::new();
        let clock = Hand::at("2026-03-01T12:00:30Z");
        let engine = quiet(&cluster, "node", &clock, |_| {}).await;
        let full = quiet(&cluster, "full", &clock, |settings| settings.max_waiting = 0).await;
        let (schedule, _) = engine.create_schedule(every_minute("scripted", Missed::RunOnce)).await.unwrap();
        let (id, timer) = (schedule.id, schedule.timer().unwrap());
        clock.set("2026-03-01T12:01:00Z");
        // For now, which it says once.
        assert_eq!(fire(&full, timer, 1).await, None);
        let last_error = Some("0 runs are waiting already".to_owned());
        let told = Schedule { number: 2, last_error, ..schedule.clone() };
        assert_eq!(stored(&engine, id).await, told);
        let timer = told.timer().unwrap();
        assert_eq!(fire(&full, timer, 2).await, Some(timer));
        assert_eq!(stored(&engine, id).await, told);
        // Its agent is gone since: another node may have it, which is being restarted.
        let mut changed = Schedule { number: 3, ..told.clone() };
        changed.request.agent = "gone".to_owned();
        assert!(cluster.store.advance_schedule(changed.clone()).await.unwrap());
        let timer = changed.timer().unwrap();
        assert_eq!(fire(&engine, timer, 3).await, Some(timer));
        assert_eq!(stored(&engine, id).await, changed);
        // For good.
        clock.set("2026-03-01T12:01:00Z");
        let grace = engine.node.settings.schedule_grace;
        clock.0.fetch_add(grace.as_millis() as i64, Ordering::SeqCst);
        assert_eq!(fire_stored(&engine, id).await, None);
        let after = stored(&engine, id).await;
        assert_eq!(after.number, 4);
        assert!(after.last_error.unwrap().contains("there is no agent \"gone\""));
        assert_eq!((after.last_run, runs(&engine, id).await), (None, vec![]));
        // Of a schedule that is gone nothing is left to be tried again.
        let last = stored(&engine, id).await.timer().unwrap();
        engine.delete_schedule(&Tenant::default(), id).await.unwrap();
        assert_eq!(fire(&engine, last, 4).await, None);
        cluster.store.close().await;
    });
}

#[test]
fn nodes_fire_by_themselves_each_second_once() {
    actix::System::new().block_on(async {
        let cluster = Cluster::new();
        let (first, second) = (cluster.node("first", Role::All).await, cluster.node("second", Role::All).await);
        let each_second = CreateSchedule { cron: "* * * * * *".to_owned(), ..every_minute("scripted", Missed::Skip) };
        let (schedule, _) = second.create_schedule(each_second).await.unwrap();
        until(async || runs(&first, schedule.id).await.len() >= 4).await;
        second.delete_schedule(&Tenant::default(), schedule.id).await.unwrap();
        let made = runs(&first, schedule.id).await;
        let times: Vec<_> = made.iter().map(|run| run.made_at().unwrap().as_millis()).collect();
        assert!(times.windows(2).all(|pair| pair[1] - pair[0] == 1_000), "{times:?}");
        assert_eq!(cluster.store.timers(Timestamp::MAX, None, 9).await.unwrap(), []);
        for engine in [first, second] {
            engine.drain(PATIENCE, CancellationToken::new()).await;
        }
        cluster.store.close().await;
    });
}
