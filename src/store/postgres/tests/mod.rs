//! The suite, and what is particular to PostgreSQL.

mod faults;
mod nodes;
mod security;
#[path = "../../../../tests/servers/postgres.rs"]
mod server;
mod tables;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use runcast_broker_conformance::Log;
use tokio::sync::OnceCell;
use tokio_postgres::{Client, NoTls};

use self::server::Postgres;
use super::{PostgresOptions, PostgresStore};
use crate::store::suite::{self, store_suite};
use crate::store::{RunStore, Store};

/// How long a test waits for a condition before it fails.
const DEADLINE: Duration = Duration::from_secs(30);

/// The server that the tests share which do it no harm.
async fn shared() -> Option<&'static Postgres> {
    static SHARED: OnceCell<Option<Postgres>> = OnceCell::const_new();
    SHARED.get_or_init(|| Postgres::start(&[])).await.as_ref()
}

/// A schema of its own on a server.
struct Place {
    url: String,
    admin: Client,
}

impl Place {
    /// `None`: there is no server here.
    async fn fresh() -> Option<Self> {
        Some(Self::on(shared().await?).await)
    }

    async fn on(server: &Postgres) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("case_{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let url = format!("{}?sslmode=disable&options=-csearch_path%3D{name}", server.url("postgres"));
        let admin = admin(&url).await;
        admin.batch_execute(&format!("CREATE SCHEMA {name}")).await.unwrap();
        Self { url, admin }
    }

    fn options(&self) -> PostgresOptions {
        PostgresOptions::new(self.url.parse().unwrap())
    }

    /// A store, which is a node of its own.
    fn store(&self) -> Arc<PostgresStore> {
        Arc::new(PostgresStore::connect(self.options()).unwrap())
    }

    async fn sql(&self, sql: &str) {
        self.admin.batch_execute(sql).await.unwrap();
    }

    async fn number(&self, sql: &str) -> i64 {
        self.admin.query_one(sql, &[]).await.unwrap().get(0)
    }

    /// Ends all leases.
    async fn end_leases(&self) {
        self.sql("UPDATE runcast_runs SET lease_until = now() - interval '1 second' WHERE status = 'running'").await;
    }
}

/// A connection that the adapter knows nothing of.
async fn admin(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    tokio::spawn(async { drop(connection.await) });
    client
}

struct Harness {
    place: Place,
    store: Arc<PostgresStore>,
}

impl Harness {
    async fn fresh() -> Option<Self> {
        let place = Place::fresh().await?;
        let store = place.store();
        Some(Self { place, store })
    }
}

#[async_trait]
impl suite::Harness for Harness {
    fn store(&self) -> Arc<dyn Store> {
        self.store.clone()
    }

    fn another(&self) -> Arc<dyn Store> {
        self.place.store()
    }

    async fn restart(&mut self) -> Arc<dyn Store> {
        self.place.end_leases().await;
        self.store = self.place.store();
        self.store.clone()
    }
}

store_suite!(
    postgres,
    match Harness::fresh().await {
        Some(harness) => harness,
        None => return,
    }
);

/// What `future` gives within the deadline.
async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.unwrap_or_else(|_| panic!("{what}: not within {DEADLINE:?}"))
}

/// Asks until the answer is yes.
async fn eventually(what: &str, mut ask: impl AsyncFnMut() -> bool) {
    soon(what, async {
        while !ask().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

/// Waits until the store can be used.
async fn up(store: &PostgresStore) {
    eventually("the store is up", async || store.health().await.is_ok()).await;
}
