//! Schedules as they are kept.

use async_trait::async_trait;
use uuid::Uuid;

use super::{IdempotencyKey, StoreError, TimerKey, TimerKind};
use crate::run::{RunId, Tenant, Timestamp};
use crate::schedule::{Missed, Request};

/// Keeps schedules, each with its timer. All methods are cancellation safe.
#[async_trait]
pub trait ScheduleStore: Send + Sync + 'static {
    /// Creates a schedule, with its timer and its idempotency key, in one transaction.
    async fn create_schedule(
        &self,
        schedule: Schedule,
        key: Option<IdempotencyKey>,
    ) -> Result<ScheduleCreated, StoreError>;

    /// The schedule `id`; only the tenant's, if one is given.
    async fn schedule(&self, tenant: Option<&Tenant>, id: Uuid) -> Result<Option<Schedule>, StoreError>;

    /// The tenant's schedules, youngest first, at most `limit`, beginning before `before`.
    async fn schedules(&self, tenant: &Tenant, before: Option<Uuid>, limit: usize)
    -> Result<Vec<Schedule>, StoreError>;

    /// Writes how a schedule stands after a firing or a change, and swaps its timer, in one transaction, if the one
    /// in the store has the number before `schedule.number`. False: it has not, or it is gone; nothing is
    /// written. What never changes (tenant, time of creation) is left as it is.
    async fn advance_schedule(&self, schedule: Schedule) -> Result<bool, StoreError>;

    /// Removes the tenant's schedule `id`, its timer and its idempotency keys; its runs stay. False: there is none.
    async fn delete_schedule(&self, tenant: &Tenant, id: Uuid) -> Result<bool, StoreError>;
}

/// A schedule.
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    /// A UUID version 7.
    pub id: Uuid,
    /// Whose it is.
    pub tenant: Tenant,
    /// When it fires, as a cron expression.
    pub cron: String,
    /// In which time zone, by its IANA name.
    pub timezone: String,
    /// What each run is asked to do.
    pub request: Request,
    /// What is done about missed firings.
    pub missed: Missed,
    /// It fires.
    pub enabled: bool,
    /// When it fires next; none if it is not enabled, or never fires again.
    pub next_at: Option<Timestamp>,
    /// Counts its firings and changes from 1: fences off what was decided about an earlier one.
    pub number: u64,
    /// When its last firing was planned.
    pub last_at: Option<Timestamp>,
    /// The last run it has made.
    pub last_run: Option<RunId>,
    /// Why its last firing made no run.
    pub last_error: Option<String>,
    /// When it was created.
    pub created_at: Timestamp,
}

impl Schedule {
    /// Its timer; none if it does not fire.
    #[must_use]
    pub fn timer(&self) -> Option<TimerKey> {
        let due = self.next_at.filter(|_| self.enabled)?;
        Some(TimerKey { due, owner: self.id, kind: TimerKind::Schedule(self.number) })
    }
}

/// What became of the creation of a schedule.
#[derive(Debug, Clone, PartialEq)]
pub enum ScheduleCreated {
    /// It exists now.
    New,
    /// The key was used before with the same body: this is the first one's.
    Existing(Box<Schedule>),
    /// The key was used before with another body.
    KeyReused,
}
