//! The way to the server: a pool of connections, and the keeper that makes the way again whenever it is lost.
//!
//! The keeper alone decides whether the server is there. It opens a first connection, sees to the tables, and then
//! waits until a call has found a connection broken or was not answered in time. All connections of that
//! generation are then replaced: those that lie idle have most likely met the same fate, and would cost their
//! next users a time limit each. While the keeper tries, calls wait, within their limit; once a try has failed
//! they fail at once, until one succeeds.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rand::RngExt as _;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use super::conn::Conn;
use super::error::{Blame, Failure};
use super::options::{PostgresOptions, PostgresUrl};
use super::schema;
use crate::run::Backoff;
use crate::store::StoreError;

/// The waits between tries to reach a server that is away.
const RETRY: Backoff = Backoff { base: Duration::from_millis(100), max: Duration::from_secs(5) };

#[derive(Clone)]
enum State {
    /// For the first time, or again: calls wait.
    Connecting,
    /// Connections of this generation can be used.
    Up(u64),
    /// The last try failed, or the link is closed: calls fail.
    Down(StoreError),
}

/// The way to the server.
pub(super) struct Link {
    options: PostgresOptions,
    /// Where all connections live, whoever needs them first.
    runtime: Handle,
    state: watch::Sender<State>,
    /// The youngest generation that was found broken.
    broken: watch::Sender<u64>,
    idle: Mutex<Vec<Arc<Conn>>>,
    batches: Semaphore,
    others: Semaphore,
    stop: CancellationToken,
}

/// Which connections a call may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Share {
    /// Those kept for the writes that go in batches.
    Batches,
    /// The others.
    Others,
}

/// How many connections are kept for batches: one for each lane.
const FOR_BATCHES: usize = 3;

impl Link {
    /// Starts to connect, on the current runtime.
    pub(super) fn new(options: PostgresOptions) -> Arc<Self> {
        let link = Arc::new(Self {
            runtime: Handle::current(),
            state: watch::Sender::new(State::Connecting),
            broken: watch::Sender::new(0),
            idle: Mutex::default(),
            batches: Semaphore::new(FOR_BATCHES),
            others: Semaphore::new(options.connections.saturating_sub(FOR_BATCHES)),
            stop: CancellationToken::new(),
            options,
        });
        let (kept, stop) = (Arc::clone(&link), link.stop.clone());
        link.runtime.spawn(async move {
            stop.run_until_cancelled(keep(&kept)).await;
            kept.state.send_replace(State::Down(StoreError::Closed));
            kept.idle.lock().clear();
        });
        link
    }

    /// Where it leads.
    pub(super) fn url(&self) -> &PostgresUrl {
        &self.options.url
    }

    /// Leaves something to be done on the link's runtime.
    pub(super) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.runtime.spawn(work);
    }

    /// The longest a call takes.
    pub(super) fn limit(&self) -> Duration {
        self.options.query_timeout
    }

    /// Gives `work` a connection, and bounds both. An error, a time limit and a caller who goes away cost the
    /// connection: it may be in the middle of a transaction.
    pub(super) async fn run<T, F>(&self, share: Share, work: impl FnOnce(Arc<Conn>) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let deadline = Instant::now() + self.limit();
        let late = |text: &str| Failure::from(StoreError::Unavailable(text.to_owned()));
        let settled = timeout_at(deadline, self.settled()).await;
        settled.map_err(|_| late("no connection yet"))??;
        let room = if share == Share::Batches { &self.batches } else { &self.others };
        let permit = timeout_at(deadline, room.acquire()).await;
        let _permit = permit.map_err(|_| late("no connection was free in time"))?.map_err(|_| StoreError::Closed)?;
        // Once more: there may be others since.
        let settled = timeout_at(deadline, self.settled()).await;
        let generation = settled.map_err(|_| late("no connection yet"))??;
        let begun = Instant::now();
        let done = timeout_at(deadline, async {
            let conn = self.take(generation).await?;
            let value = work(Arc::clone(&conn)).await?;
            self.put(conn);
            Ok(value)
        });
        let mut failure = match done.await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(failure)) => failure,
            // Whoever has waited for long had little time left, which tells nothing of the server.
            Err(_) if begun.elapsed() < self.limit() / 2 => late("no time was left for an answer"),
            Err(_) => Failure::away("no answer in time"),
        };
        if failure.blame == Blame::Connection {
            self.broken.send_if_modified(|last| std::mem::replace(last, generation.max(*last)) < generation);
        }
        failure.error = self.scrub(failure.error);
        Err(failure)
    }

    /// Waits for the calls that are under way, and closes all connections.
    pub(super) async fn close(&self) {
        let whole = |permits: usize| u32::try_from(permits).unwrap_or(u32::MAX);
        let others = self.options.connections.saturating_sub(FOR_BATCHES);
        for (room, permits) in [(&self.batches, FOR_BATCHES), (&self.others, others)] {
            // Each of them ends within its limit. An error means that someone else has closed it already.
            drop(room.acquire_many(whole(permits)).await);
            room.close();
        }
        self.stop();
        drop(self.state.subscribe().wait_for(|state| matches!(state, State::Down(StoreError::Closed))).await);
    }

    /// Ends the link without waiting.
    pub(super) fn stop(&self) {
        self.stop.cancel();
    }

    async fn settled(&self) -> Result<u64, StoreError> {
        let mut states = self.state.subscribe();
        let state = states.wait_for(|state| !matches!(state, State::Connecting)).await;
        match state.map(|state| state.clone()) {
            Ok(State::Up(generation)) => Ok(generation),
            Ok(State::Down(error)) => Err(error),
            Ok(State::Connecting) | Err(_) => Err(StoreError::Closed),
        }
    }

    async fn take(&self, generation: u64) -> Result<Arc<Conn>, Failure> {
        while let Some(conn) = { self.idle.lock().pop() } {
            if conn.is_open() && conn.generation == generation {
                return Ok(conn);
            }
        }
        self.open(generation).await.map(Arc::new)
    }

    fn put(&self, conn: Arc<Conn>) {
        let current = matches!(&*self.state.borrow(), State::Up(generation) if *generation == conn.generation);
        if current && conn.is_open() {
            self.idle.lock().push(conn);
        }
    }

    async fn open(&self, generation: u64) -> Result<Conn, Failure> {
        let options = self.options.clone();
        let opened = self.runtime.spawn(async move { Conn::open(&options, generation).await }).await;
        opened.unwrap_or_else(|_| Err(StoreError::Closed.into()))
    }

    fn scrub(&self, error: StoreError) -> StoreError {
        scrub(&self.options, error)
    }
}

/// The error without the password, whoever wrote it there.
pub(super) fn scrub(options: &PostgresOptions, error: StoreError) -> StoreError {
    let clean = |text| options.url.scrub(text);
    match error {
        StoreError::Unavailable(text) => StoreError::Unavailable(clean(text)),
        StoreError::Full(text) => StoreError::Full(clean(text)),
        StoreError::ReadOnly(text) => StoreError::ReadOnly(clean(text)),
        StoreError::Corrupt(text) => StoreError::Corrupt(clean(text)),
        StoreError::Foreign(text) => StoreError::Foreign(clean(text)),
        StoreError::Misconfigured(text) => StoreError::Misconfigured(clean(text)),
        StoreError::InUse(text) => StoreError::InUse(clean(text)),
        StoreError::Closed => StoreError::Closed,
    }
}

/// Connects, for ever. Says in the log when the server goes away, why, and when it is back; not at each try.
async fn keep(link: &Link) {
    let url = &link.options.url;
    let (mut generation, mut failures) = (0, 0);
    let mut said: Option<StoreError> = None;
    loop {
        generation += 1;
        match prepared(link, generation).await {
            Ok(conn) => {
                if said.take().is_some() || generation == 1 {
                    tracing::info!(%url, "connected to postgres");
                }
                failures = 0;
                link.idle.lock().push(Arc::new(conn));
                link.state.send_replace(State::Up(generation));
                if link.broken.subscribe().wait_for(|last| *last >= generation).await.is_err() {
                    return;
                }
                tracing::debug!(%url, "a connection to postgres broke; all are replaced");
                link.state.send_replace(State::Connecting);
                link.idle.lock().clear();
            }
            Err(failure) => {
                let error = link.scrub(failure.error);
                let same_kind = said.as_ref().map(std::mem::discriminant) == Some(std::mem::discriminant(&error));
                if same_kind {
                    tracing::debug!(%url, %error, "postgres is still away");
                } else {
                    tracing::warn!(%url, %error, "postgres is away; trying again until it is back");
                    said = Some(error.clone());
                }
                link.state.send_replace(State::Down(error));
                failures += 1;
                let wait = RETRY.delay(failures, rand::rng().random(), None);
                tokio::time::sleep(wait).await;
            }
        }
    }
}

/// A connection to tables that this program can work with.
async fn prepared(link: &Link, generation: u64) -> Result<Conn, Failure> {
    let conn = link.open(generation).await?;
    schema::prepare(&conn, &link.options).await?;
    Ok(conn)
}
