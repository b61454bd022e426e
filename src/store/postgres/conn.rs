//! One connection: its settings, its prepared statements, and its end.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::task::AbortHandle;
use tokio::time::timeout;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, NoTls, Row, Statement};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::error::{Blame, Failure};
use super::options::{PostgresOptions, TlsMode};
use super::tls;
use crate::store::StoreError;

/// What statements are given.
pub(super) type Params<'a> = &'a [&'a (dyn ToSql + Sync)];

/// A connection. Dropping it cuts it, whatever it is doing: what was not committed has not happened.
pub(super) struct Conn {
    client: Client,
    /// Moves the bytes. It would wait for the answers of a server that gives none for ever.
    driver: AbortHandle,
    statements: Mutex<HashMap<&'static str, Statement>>,
    patient: String,
    as_ever: String,
    /// Which of the link's generations it belongs to.
    pub(super) generation: u64,
}

impl Conn {
    /// A fresh connection, on the current runtime, with its settings made.
    pub(super) async fn open(options: &PostgresOptions, generation: u64) -> Result<Self, Failure> {
        let opened = timeout(options.connect_timeout, Self::open_patiently(options, generation)).await;
        opened.unwrap_or_else(|_| Err(Failure::away("no connection in time"))).map_err(|failure| match failure {
            // The server wants no connection more, or not this one: no fault of any statement.
            Failure { error, blame: Blame::Statement } => error.into(),
            // The files were good at the start, and may be so again.
            Failure { error: StoreError::Misconfigured(text), blame } => {
                Failure { error: StoreError::Unavailable(text), blame }
            }
            Failure { error, blame } => Failure { error, blame },
        })
    }

    async fn open_patiently(options: &PostgresOptions, generation: u64) -> Result<Self, Failure> {
        let mut config = options.url.config();
        config
            .connect_timeout(options.connect_timeout)
            .tcp_user_timeout(options.query_timeout * 2)
            .keepalives_idle(Duration::from_secs(10))
            .keepalives_interval(Duration::from_secs(5))
            .keepalives_retries(3);
        // How a connection ended is said by what fails on it.
        let (client, driver) = if options.url.tls_mode() == TlsMode::Disable {
            let (client, connection) = config.connect(NoTls).await?;
            (client, tokio::spawn(async { drop(connection.await) }))
        } else {
            let (client, connection) = config.connect(MakeRustlsConnect::new(tls::client_config(options)?)).await?;
            (client, tokio::spawn(async { drop(connection.await) }))
        };
        let limit = options.query_timeout.as_millis().max(10);
        let patient = format!("BEGIN; SET LOCAL lock_timeout = {}", limit / 2);
        let as_ever = format!("SET LOCAL lock_timeout = {}", limit / 10);
        let (driver, statements) = (driver.abort_handle(), Mutex::default());
        let conn = Self { client, driver, statements, patient, as_ever, generation };
        conn.client.batch_execute(&settings(options)).await?;
        Ok(conn)
    }

    /// The statement `sql`, prepared. It must be at hand before a pipeline that holds it begins: what is behind it
    /// in the pipeline would overtake it otherwise.
    pub(super) async fn prepare(&self, sql: &'static str) -> Result<Statement, Failure> {
        let known = self.statements.lock().get(sql).cloned();
        if let Some(statement) = known {
            return Ok(statement);
        }
        let statement = self.client.prepare(sql).await?;
        self.statements.lock().insert(sql, statement.clone());
        Ok(statement)
    }

    /// The rows of a statement that is prepared once.
    pub(super) async fn query(&self, sql: &'static str, params: Params<'_>) -> Result<Vec<Row>, Failure> {
        let statement = self.prepare(sql).await?;
        Ok(self.client.query(&statement, params).await?)
    }

    /// How many rows a statement that is prepared once has changed.
    pub(super) async fn execute(&self, sql: &'static str, params: Params<'_>) -> Result<u64, Failure> {
        let statement = self.prepare(sql).await?;
        Ok(self.client.execute(&statement, params).await?)
    }

    /// Begins a transaction that may wait for locks for half of the time of a call, until [`as_ever`](Self::as_ever).
    pub(super) fn begin_patiently(&self) -> &str {
        &self.patient
    }

    /// From here on the transaction waits for a lock as others do.
    pub(super) fn as_ever(&self) -> &str {
        &self.as_ever
    }

    /// For what is not prepared once, and for pipelines.
    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    /// Whether it can be used again.
    pub(super) fn is_open(&self) -> bool {
        !self.client.is_closed()
    }
}

impl Drop for Conn {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// Plans are made once, and without a look at the tables: those of a new or a growing table would be made for an
/// empty one. Every statement is written so that there is one way to do it: by an index.
///
/// The lock timeout lets one row that someone holds on to cost its own run's write only (see `lane`).
fn settings(options: &PostgresOptions) -> String {
    let limit = options.query_timeout.as_millis().max(10);
    format!(
        "SET default_transaction_isolation = 'read committed'; SET plan_cache_mode = force_generic_plan; \
         SET enable_seqscan = off; SET jit = off; SET client_min_messages = warning; \
         SET statement_timeout = {limit}; SET lock_timeout = {}; SET idle_in_transaction_session_timeout = {}; \
         SET tcp_keepalives_idle = 10; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3",
        limit / 10,
        limit * 2,
    )
}
