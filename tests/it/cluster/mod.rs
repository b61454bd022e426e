//! Several nodes on one store and one broker, and what may happen to them.
//!
//! Every test runs on Redis and on RabbitMQ, with PostgreSQL, on servers of its own; all connections pass proxies. Clients
//! go on all the while, and in the end the promise is checked for every run that was accepted and every viewer.

mod chaos;
mod faults;
mod load;
mod roles;
mod schedules;
mod services;
mod threads;

use std::time::Duration;

use load::{Load, Targets};
pub(crate) use services::{Kind, Services};

use crate::harness::{Node, Options, assert_promise, assert_seen, eventually};

/// How long a claimed run belongs to its worker here, and how often it is looked for those whose lease has ended.
pub(crate) const LEASE: Duration = Duration::from_secs(6);
pub(crate) const SWEEP: Duration = Duration::from_millis(500);

/// How long nodes may take to find their services.
const READY: Duration = Duration::from_secs(120);

/// Expands to a test for each broker.
macro_rules! on_both_brokers {
    ($($test:ident)*) => {
        mod redis {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                super::$test(crate::cluster::Kind::Redis).await;
            })*
        }
        mod rabbitmq {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                super::$test(crate::cluster::Kind::RabbitMq).await;
            })*
        }
    };
}
pub(crate) use on_both_brokers;

/// Nodes, and what they stand on.
pub(crate) struct Cluster {
    pub(crate) apis: Vec<Node>,
    pub(crate) workers: Vec<Node>,
    pub(crate) services: Services,
    targets: Targets,
}

impl Cluster {
    /// So many nodes of each role, all ready. `None` when a server is not installed here.
    pub(crate) async fn start(kind: Kind, apis: usize, workers: usize) -> Option<Self> {
        Self::start_with(kind, apis, workers, "").await
    }

    /// The same, with more configuration.
    pub(crate) async fn start_with(kind: Kind, apis: usize, workers: usize, config: &str) -> Option<Self> {
        let services = Services::start(kind).await?;
        let mut cluster = Self { apis: Vec::new(), workers: Vec::new(), services, targets: Targets::default() };
        for _ in 0..apis {
            cluster.apis.push(Node::start(cluster.options_with("api", config)).await);
        }
        for _ in 0..workers {
            cluster.workers.push(Node::start(cluster.options_with("worker", config)).await);
        }
        cluster.retarget();
        cluster.ready().await;
        Some(cluster)
    }

    /// The options of a node in this role.
    pub(crate) fn options(&self, role: &str) -> Options {
        self.options_with(role, "")
    }

    /// The same, with more configuration.
    pub(crate) fn options_with(&self, role: &str, config: &str) -> Options {
        let config = format!(
            "recovery.lease = \"{}s\"\nrecovery.sweep_interval = \"{}ms\"\npostgres.query_timeout = \"2s\"\n\
             postgres.connect_timeout = \"2s\"\nruns.backoff_base = \"50ms\"\nworker.drain_grace = \"500ms\"\nfeed.disconnect_grace = \"500ms\"\nworker.concurrency = 64\n{config}",
            LEASE.as_secs(),
            SWEEP.as_millis()
        );
        let mut options = Options::from(config);
        options.flags = vec!["--role".to_owned(), role.to_owned()];
        options.env =
            vec![("RUNCAST_BROKER", self.services.broker_url()), ("RUNCAST_STORE", self.services.store_url())];
        options
    }

    /// Waits until every node can do its work: a broker that was killed may take most of a minute to come back.
    pub(crate) async fn ready(&self) {
        let began = tokio::time::Instant::now();
        for node in self.apis.iter().chain(&self.workers) {
            loop {
                let answer = node.try_send(node.request(reqwest::Method::GET, "/ready")).await;
                match answer {
                    Ok(answer) if answer.status == 200 => break,
                    answer => assert!(began.elapsed() < READY, "a node does not get ready: {answer:?}"),
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }

    /// Clients ask the API nodes that there are now.
    pub(crate) fn retarget(&self) {
        self.targets.set(self.apis.iter().map(|node| format!("http://{}", node.address())).collect());
    }

    /// Clients that create and watch runs.
    pub(crate) fn load(&self, seed: u64, pause: Duration) -> Load {
        Load::start(self.targets.clone(), seed, pause)
    }

    /// Waits for the clients to end, and checks the promise for all they have done.
    pub(crate) async fn settle(&self, load: Load) -> Settled {
        let outcome = load.finish().await;
        self.ready().await;
        let api = &self.apis[0];
        let mut settled = Settled { runs: outcome.runs.len(), reconnections: outcome.reconnections, lost: 0, free: 0 };
        for (id, seen) in &outcome.runs {
            let run = api.wait_final(id).await;
            let log = assert_promise(api, id).await;
            assert_seen(seen, &api.events(id).await);
            let count = |reason: &str| log.retries.iter().filter(|known| *known == reason).count();
            settled.lost += count("worker_lost");
            settled.free += count("released") + count("suspended");
            if outcome.cancelled.contains(id) {
                assert_ne!(run["status"], "expired", "cancelled or faster: {run}");
            }
        }
        // What was taken has been given back.
        eventually("nothing is left over", async || {
            let depths = api.get("/v1/queues").await.json();
            let left = ["pending", "high_priority", "processing", "retry"].map(|name| depths[name].as_u64());
            (left == [Some(0); 4]).then_some(())
        })
        .await;
        for worker in &self.workers {
            eventually("no run is live", async || (worker.metric("runcast_live_runs").await == 0.0).then_some(()))
                .await;
        }
        settled
    }
}

/// What the clients of a cluster have been through.
#[derive(Debug)]
pub(crate) struct Settled {
    pub(crate) runs: usize,
    /// Viewers that had to come back.
    pub(crate) reconnections: u64,
    /// Attempts whose worker was lost.
    pub(crate) lost: usize,
    /// Attempts that were let go, free of charge.
    pub(crate) free: usize,
}
