//! The PostgreSQL adapter: one database, many nodes. PostgreSQL 13 and later.
//!
//! - `link` keeps the connections, and makes them again. Every call is bounded in time, whatever the server does.
//! - `lane` gathers what many callers write into one statement: creations, the commits of owners, and what is `asked`
//!   of runs that nobody executes.
//! - `batch` says how statements over many runs find their rows, whatever the planner thinks of the tables.
//! - `commit` says why a cancel is never lost, `create` how many runs may wait, `claim` how nodes share a queue.
//!
//! All tables are called `runcast_…` and lie in the first schema of the connection's `search_path`, so that they can be
//! put into a database that is there already. Leases are by the database's clock, and by no other.
//!
//! Sessions are made use of (settings, prepared statements, transactions): a pooler that hands out a connection
//! for a transaction at a time must not stand between.

mod asked;
mod batch;
mod claim;
mod commit;
mod conn;
mod create;
mod dead_letters;
mod error;
mod lane;
mod link;
mod log;
mod messages;
mod node;
mod options;
mod retention;
mod rows;
mod runs;
mod schedules;
mod schema;
mod shares;
mod thread_rows;
mod threads;
mod timers;
mod tls;
mod transition;
mod webhooks;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use uuid::Uuid;

use self::asked::Asked;
use self::commit::Decided;
use self::conn::Conn;
use self::create::{Creation, Waiting};
use self::error::Failure;
use self::lane::Lane;
use self::link::{Link, Share};
use super::{
    Agreement, Claim, Claimed, Commit, Committed, Created, DeadLetter, DeadLetterStore, Deleted, Delivery,
    DeliveryFilter, Depths, Discard, Due, Endpoint, EndpointCreated, EndpointPatch, Head, Held, IdempotencyKey, Limits,
    NewRun, NodeStore, Proposal, Queued, Redelivered, RetentionStore, Rotated, RunFilter, RunStore, Schedule,
    ScheduleCreated, ScheduleStore, Settled, StoreError, Stored, TenantDepths, ThreadNews, TimerKey, Transition,
    WebhookStore,
};
use crate::run::{Command, RunId, Segment, Status, Tenant, Timestamp};

pub use self::options::{PostgresOptions, PostgresTls, PostgresUrl, TlsMode};
pub use self::schema::Migrated;

/// Keeps runs in a PostgreSQL database, which many nodes share.
///
/// While the database cannot be reached calls fail with [`StoreError::Unavailable`], within
/// [`query_timeout`](PostgresOptions::query_timeout) (twice that for creations and commits, three times for transitions); it is tried again for
/// ever. A write that failed so may have happened all the same: a commit can be sent again, and a creation with an
/// idempotency key can be.
pub struct PostgresStore {
    link: Arc<Link>,
    creations: Lane<Creation>,
    commits: Lane<Decided>,
    asked: Lane<Asked>,
    /// How many runs wait, as far as admissions to threads know.
    waiting: Mutex<Waiting>,
    closed: AtomicBool,
}

impl PostgresStore {
    /// Checks the options and starts to connect, on the current runtime. Does not wait for the server: the tables
    /// are made or brought up to date as soon as it is there.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub fn connect(options: PostgresOptions) -> Result<Self, StoreError> {
        check(&options)?;
        let link = Link::new(options);
        let (creations, commits, asked) = (Lane::new(&link), Lane::new(&link), Lane::new(&link));
        let waiting = Mutex::default();
        Ok(Self { link, creations, commits, asked, waiting, closed: AtomicBool::new(false) })
    }

    /// Brings the tables up to date, whatever [`auto_migrate`](PostgresOptions::auto_migrate) says. Fails when the
    /// server cannot be reached, and while another node does the same.
    pub async fn migrate(options: &PostgresOptions) -> Result<Migrated, StoreError> {
        check(options)?;
        let migrated = async { schema::migrate(&Conn::open(options, 0).await?).await };
        migrated.await.map_err(|failure: Failure| link::scrub(options, failure.error))
    }

    /// Runs one call on a connection.
    async fn run<T, F>(&self, work: impl FnOnce(Arc<Conn>) -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        if self.closed.load(Ordering::Acquire) {
            return Err(StoreError::Closed);
        }
        Ok(self.link.run(Share::Others, work).await?)
    }
}

fn check(options: &PostgresOptions) -> Result<(), StoreError> {
    options.check()?;
    if options.url.tls_mode() != TlsMode::Disable {
        tls::client_config(options)?;
    }
    Ok(())
}

impl std::fmt::Debug for PostgresStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PostgresStore").field("url", self.link.url()).finish_non_exhaustive()
    }
}

/// Ends without waiting: what was accepted is still written if the database is there.
impl Drop for PostgresStore {
    fn drop(&mut self) {
        self.creations.end();
        self.commits.end();
        self.asked.end();
        let ended = (self.creations.ended(), self.commits.ended(), self.asked.ended());
        let link = Arc::clone(&self.link);
        self.link.spawn(async move {
            tokio::join!(ended.0, ended.1, ended.2);
            link.stop();
        });
    }
}

#[async_trait]
impl RunStore for PostgresStore {
    async fn create(&self, new: NewRun) -> Result<Created, StoreError> {
        self.creations.call(Creation::new(new)?).await
    }

    async fn get(&self, tenant: &Tenant, id: RunId) -> Result<Option<Stored>, StoreError> {
        self.run(|conn| async move { runs::get(&conn, tenant, id).await }).await
    }

    async fn tenant_of(&self, id: RunId) -> Result<Option<Tenant>, StoreError> {
        self.run(|conn| async move { runs::tenant_of(&conn, id).await }).await
    }

    async fn list(&self, tenant: &Tenant, filter: RunFilter, limit: usize) -> Result<Vec<Stored>, StoreError> {
        let filter = &filter;
        self.run(|conn| async move { runs::list(&conn, tenant, filter, limit).await }).await
    }

    async fn delete(&self, tenant: &Tenant, id: RunId) -> Result<Deleted, StoreError> {
        self.run(|conn| async move { runs::delete(&conn, tenant, id).await }).await
    }

    async fn claim(&self, claim: Claim) -> Result<Vec<Claimed>, StoreError> {
        let wanted = &claim;
        let taken = self.run(|conn| async move { claim::claim(&conn, wanted).await }).await?;
        for (id, attempt, error) in taken.unreadable {
            // It is claimed, but nobody can execute it: its budget decides how often that happens.
            tracing::error!(run = %id, %error, "a claimed run cannot be read");
            let given_up = self.run(|conn| async move { transition::give_up(&conn, id, attempt, claim.now).await });
            if let Err(error) = given_up.await {
                tracing::error!(run = %id, %error, "a run that cannot be read is left to the end of its lease");
            }
        }
        Ok(taken.claimed)
    }

    async fn commit(&self, commit: Commit) -> Result<Committed, StoreError> {
        let decided = Decided::new(commit)?;
        if !decided.is_farewell() {
            return self.commits.call(decided).await;
        }
        let decided = &decided;
        self.run(|conn| async move { commit::finish(&conn, decided).await }).await
    }

    async fn extend(&self, owned: &[(RunId, u32)], lease: Duration) -> Result<Vec<Held>, StoreError> {
        self.run(|conn| async move { runs::extend(&conn, owned, lease).await }).await
    }

    async fn transition(
        &self,
        tenant: Option<&Tenant>,
        id: RunId,
        command: Command,
        now: Timestamp,
    ) -> Result<Transition, StoreError> {
        if asked::is_of_many(&command) {
            let asked = Asked { tenant: tenant.cloned(), run: id, command: command.clone(), now };
            if let Some(transition) = self.asked.call(asked).await? {
                return Ok(transition);
            }
        }
        let command = &command;
        self.run(|conn| async move { transition::transition(&conn, tenant, id, command, now).await }).await
    }

    async fn segments(&self, id: RunId, after: u64, max_bytes: usize) -> Result<Vec<Segment>, StoreError> {
        self.run(|conn| async move { log::read(&conn, id, after, max_bytes).await }).await
    }

    async fn timers(
        &self,
        until: Timestamp,
        after: Option<TimerKey>,
        limit: usize,
    ) -> Result<Vec<TimerKey>, StoreError> {
        self.run(|conn| async move { timers::read(&conn, until, after, limit).await }).await
    }

    async fn drop_timer(&self, timer: TimerKey) -> Result<(), StoreError> {
        self.run(|conn| async move { timers::remove(&conn, timer).await }).await
    }

    async fn recover(&self, now: Timestamp, limit: usize) -> Result<Vec<Transition>, StoreError> {
        self.run(|conn| async move { transition::recover(&conn, now, limit).await }).await
    }

    async fn give_up(&self, id: RunId, attempt: u32, now: Timestamp) -> Result<Transition, StoreError> {
        self.run(|conn| async move { transition::give_up(&conn, id, attempt, now).await }).await
    }

    async fn let_go_strays(
        &self,
        node: &str,
        live: &[RunId],
        now: Timestamp,
        limit: usize,
    ) -> Result<Vec<Transition>, StoreError> {
        let live: Vec<Uuid> = live.iter().map(|run| *run.as_uuid()).collect();
        let (node, live) = (&node.to_owned(), &live);
        self.run(|conn| async move { transition::let_go_strays(&conn, node, live, now, limit).await }).await
    }

    async fn counts(&self) -> Result<BTreeMap<Status, u64>, StoreError> {
        self.run(|conn| async move { runs::counts(&conn).await }).await
    }

    async fn heads(&self, runs: &[RunId]) -> Result<Vec<Head>, StoreError> {
        self.run(|conn| async move { runs::heads(&conn, runs).await }).await
    }

    async fn queued(&self, limits: &Arc<Limits>) -> Result<Vec<Queued>, StoreError> {
        self.run(|conn| async move { runs::queued(&conn, limits).await }).await
    }

    async fn depths(&self) -> Result<Depths, StoreError> {
        self.run(|conn| async move { runs::depths(&conn).await }).await
    }

    async fn depths_by_tenant(&self) -> Result<BTreeMap<Tenant, TenantDepths>, StoreError> {
        self.run(|conn| async move { runs::depths_by_tenant(&conn).await }).await
    }

    async fn forget_keys(&self, before: Timestamp, limit: usize) -> Result<u64, StoreError> {
        self.run(|conn| async move { create::forget_keys(&conn, before, limit).await }).await
    }

    async fn health(&self) -> Result<(), StoreError> {
        self.run(|conn| async move { node::health(&conn).await }).await
    }

    async fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.creations.close().await;
        self.commits.close().await;
        self.asked.close().await;
        self.link.close().await;
    }
}

#[async_trait]
impl ScheduleStore for PostgresStore {
    async fn create_schedule(
        &self,
        schedule: Schedule,
        key: Option<IdempotencyKey>,
    ) -> Result<ScheduleCreated, StoreError> {
        let (schedule, key) = (&schedule, key.as_ref());
        self.run(|conn| async move { schedules::create(&conn, schedule, key).await }).await
    }

    async fn schedule(&self, tenant: Option<&Tenant>, id: Uuid) -> Result<Option<Schedule>, StoreError> {
        self.run(|conn| async move { schedules::get(&conn, tenant, id).await }).await
    }

    async fn schedules(
        &self,
        tenant: &Tenant,
        before: Option<Uuid>,
        limit: usize,
    ) -> Result<Vec<Schedule>, StoreError> {
        self.run(|conn| async move { schedules::list(&conn, tenant, before, limit).await }).await
    }

    async fn advance_schedule(&self, schedule: Schedule) -> Result<bool, StoreError> {
        let schedule = &schedule;
        self.run(|conn| async move { schedules::advance(&conn, schedule).await }).await
    }

    async fn delete_schedule(&self, tenant: &Tenant, id: Uuid) -> Result<bool, StoreError> {
        self.run(|conn| async move { schedules::delete(&conn, tenant, id).await }).await
    }
}

#[async_trait]
impl RetentionStore for PostgresStore {
    async fn remove_finished(&self, before: Timestamp, limit: usize) -> Result<Vec<RunId>, StoreError> {
        self.run(|conn| async move { retention::remove_finished(&conn, before, limit).await }).await
    }
}

#[async_trait]
impl DeadLetterStore for PostgresStore {
    async fn bury(&self, letter: DeadLetter) -> Result<(), StoreError> {
        let letter = &letter;
        self.run(|conn| async move { dead_letters::bury(&conn, letter).await }).await
    }

    async fn dead_letters(
        &self,
        after: Option<(Timestamp, Uuid)>,
        limit: usize,
    ) -> Result<Vec<DeadLetter>, StoreError> {
        self.run(|conn| async move { dead_letters::list(&conn, after, limit).await }).await
    }

    async fn dead_letter(&self, id: Uuid) -> Result<Option<DeadLetter>, StoreError> {
        self.run(|conn| async move { dead_letters::get(&conn, id).await }).await
    }

    async fn discard(&self, letters: Discard) -> Result<u64, StoreError> {
        self.run(|conn| async move { dead_letters::discard(&conn, letters).await }).await
    }
}

#[async_trait]
impl NodeStore for PostgresStore {
    async fn agree(&self, proposal: &Proposal, adopt: bool) -> Result<Agreement, StoreError> {
        self.run(|conn| async move { node::agree(&conn, proposal, adopt).await }).await
    }
}

#[async_trait]
impl WebhookStore for PostgresStore {
    async fn create_endpoint(
        &self,
        endpoint: Endpoint,
        key: Option<IdempotencyKey>,
        most: u64,
    ) -> Result<EndpointCreated, StoreError> {
        let (endpoint, key) = (&endpoint, key.as_ref());
        self.run(|conn| async move { webhooks::create(&conn, endpoint, key, most).await }).await
    }

    async fn endpoints(&self, tenant: &Tenant, after: Option<Uuid>, limit: usize) -> Result<Vec<Endpoint>, StoreError> {
        self.run(|conn| async move { webhooks::list(&conn, tenant, after, limit).await }).await
    }

    async fn endpoint(&self, tenant: &Tenant, id: Uuid) -> Result<Option<Endpoint>, StoreError> {
        self.run(|conn| async move { webhooks::get(&conn, tenant, id).await }).await
    }

    async fn patch_endpoint(
        &self,
        tenant: &Tenant,
        id: Uuid,
        patch: EndpointPatch,
        now: Timestamp,
    ) -> Result<Option<Endpoint>, StoreError> {
        let patch = &patch;
        self.run(|conn| async move { webhooks::patch(&conn, tenant, id, patch, now).await }).await
    }

    async fn rotate_endpoint(
        &self,
        tenant: &Tenant,
        id: Uuid,
        key: Option<IdempotencyKey>,
        now: Timestamp,
    ) -> Result<Rotated, StoreError> {
        let key = key.as_ref();
        self.run(|conn| async move { webhooks::rotate(&conn, tenant, id, key, now).await }).await
    }

    async fn delete_endpoint(&self, tenant: &Tenant, id: Uuid) -> Result<bool, StoreError> {
        self.run(|conn| async move { webhooks::delete(&conn, tenant, id).await }).await
    }

    async fn claim_deliveries(&self, _now: Timestamp, lease: Duration, limit: usize) -> Result<Vec<Due>, StoreError> {
        self.run(|conn| async move { webhooks::claim(&conn, lease, limit).await }).await
    }

    async fn settle_delivery(&self, settled: Settled, now: Timestamp) -> Result<bool, StoreError> {
        let settled = &settled;
        self.run(|conn| async move { webhooks::settle(&conn, settled, now).await }).await
    }

    async fn deliveries(
        &self,
        tenant: &Tenant,
        filter: DeliveryFilter,
        limit: usize,
    ) -> Result<Vec<Delivery>, StoreError> {
        let filter = &filter;
        self.run(|conn| async move { webhooks::deliveries(&conn, tenant, filter, limit).await }).await
    }

    async fn redeliver(&self, tenant: &Tenant, id: Uuid, _now: Timestamp) -> Result<Redelivered, StoreError> {
        self.run(|conn| async move { webhooks::redeliver(&conn, tenant, id).await }).await
    }

    async fn forget_deliveries(&self, before: Timestamp, limit: usize) -> Result<u64, StoreError> {
        self.run(|conn| async move { webhooks::forget(&conn, before, limit).await }).await
    }

    async fn announce(&self, news: ThreadNews) -> Result<(), StoreError> {
        let news = &news;
        self.run(|conn| async move { webhooks::put_thread(&conn, news).await }).await
    }
}
