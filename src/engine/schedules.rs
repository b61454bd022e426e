//! Schedules: made, changed, and fired by their timers.
//!
//! Every node that knows a timer fires it, and any of them may die in between. What a firing does is decided by
//! the schedule as it stands in the store, and done in two steps that can be repeated: first the run is created,
//! whose id follows from the schedule and the planned time; then the schedule goes on to its next firing, if
//! nobody has been faster. So one planned time makes one run.

use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use super::create::stored_key;
use super::mailbox::post;
use super::timers::{Arm, Disarm};
use super::{CreateError, CreateRun, Engine, Key, Node, Start};
use crate::run::{RunId, Tenant, Timestamp};
use crate::schedule::{self, Firing, InvalidTimetable, Missed, Request, Timetable};
use crate::store::{Schedule, ScheduleCreated, StoreError, TimerKey};

/// The label that runs of schedules carry, with the schedule's id.
const LABEL: &str = "schedule_id";

/// How often a change is tried that others, or firings, come before.
const TRIES: usize = 8;

/// A wish for a schedule.
#[derive(Debug, Clone)]
pub struct CreateSchedule {
    /// Who wishes.
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
    /// Makes the wish safe to repeat.
    pub key: Option<Key>,
}

/// Why a request about a schedule was refused.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ScheduleError {
    /// There is no such schedule, or it is another tenant's.
    #[error("there is no such schedule")]
    Missing,
    /// It does not make sense, or its runs would not.
    #[error(transparent)]
    Refused(#[from] CreateError),
}

impl From<StoreError> for ScheduleError {
    fn from(error: StoreError) -> Self {
        Self::Refused(error.into())
    }
}

impl Engine {
    /// Keeps a schedule. The flag says whether it was there before, under the same key.
    pub async fn create_schedule(&self, wish: CreateSchedule) -> Result<(Schedule, bool), ScheduleError> {
        let now = self.now();
        let CreateSchedule { tenant, cron, timezone, request, missed, enabled, key } = wish;
        let schedule = Schedule {
            id: *self.node.clock.run_id().as_uuid(),
            tenant,
            cron,
            timezone,
            request,
            missed,
            enabled,
            next_at: None,
            number: 1,
            last_at: None,
            last_run: None,
            last_error: None,
            created_at: now,
        };
        let schedule = Schedule { next_at: self.check_schedule(&schedule, now).await?, ..schedule };
        if self.is_draining() {
            return Err(CreateError::Draining.into());
        }
        let key = key.map(|key| stored_key(key, now));
        match self.node.store.create_schedule(schedule.clone(), key).await? {
            ScheduleCreated::Existing(existing) => Ok((*existing, true)),
            ScheduleCreated::KeyReused => Err(CreateError::KeyReused.into()),
            ScheduleCreated::New => {
                arm(&self.node, &schedule);
                Ok((schedule, false))
            }
        }
    }

    /// The tenant's schedule `id`.
    pub async fn schedule(&self, tenant: &Tenant, id: Uuid) -> Result<Schedule, ScheduleError> {
        self.node.store.schedule(Some(tenant), id).await?.ok_or(ScheduleError::Missing)
    }

    /// The tenant's schedules, youngest first, at most `limit`, beginning before `before`.
    pub async fn schedules(
        &self,
        tenant: &Tenant,
        before: Option<Uuid>,
        limit: usize,
    ) -> Result<Vec<Schedule>, StoreError> {
        self.node.store.schedules(tenant, before, limit).await
    }

    /// Changes what `change` changes of the tenant's schedule `id`: of its expression, zone, request, policy, and
    /// whether it is enabled. With another expression or zone it is planned anew from now on.
    pub async fn change_schedule(
        &self,
        tenant: &Tenant,
        id: Uuid,
        change: impl Fn(&mut Schedule),
    ) -> Result<Schedule, ScheduleError> {
        for _ in 0..TRIES {
            let stored = self.schedule(tenant, id).await?;
            let mut changed = stored.clone();
            change(&mut changed);
            let replanned = (&changed.cron, &changed.timezone) != (&stored.cron, &stored.timezone);
            let enabled = changed.enabled && !stored.enabled;
            // What makes no sense any more can still be turned off.
            if replanned || enabled || changed.request != stored.request {
                let next = self.check_schedule(&changed, self.now()).await?;
                if replanned || enabled {
                    changed.next_at = next;
                }
                changed.last_error = None;
            }
            changed.next_at = changed.next_at.filter(|_| changed.enabled);
            changed.number += 1;
            if self.node.store.advance_schedule(changed.clone()).await? {
                if let Some(timer) = stored.timer() {
                    // Bounded by the timers that exist.
                    post(&self.node.timers, Disarm(timer));
                }
                arm(&self.node, &changed);
                return Ok(changed);
            }
        }
        Err(StoreError::Unavailable("the schedule is being changed".to_owned()).into())
    }

    /// Removes the tenant's schedule `id`. Its runs stay.
    pub async fn delete_schedule(&self, tenant: &Tenant, id: Uuid) -> Result<(), ScheduleError> {
        match self.node.store.delete_schedule(tenant, id).await? {
            true => Ok(()),
            false => Err(ScheduleError::Missing),
        }
    }

    /// When a schedule that makes sense would fire next after `now`; none if it is not enabled.
    async fn check_schedule(&self, schedule: &Schedule, now: Timestamp) -> Result<Option<Timestamp>, CreateError> {
        let invalid = |field: &str, message: String| CreateError::Invalid { field: field.to_owned(), message };
        let timetable = Timetable::parse(&schedule.cron, &schedule.timezone).map_err(|error| match &error {
            InvalidTimetable::Cron(_) => invalid("cron", error.to_string()),
            InvalidTimetable::Zone(_) => invalid("timezone", error.to_string()),
        })?;
        let next = timetable.next(now);
        let next = next.ok_or_else(|| invalid("cron", "expected an expression that ever fires".to_owned()))?;
        self.check(wish(schedule), now)?;
        match schedule.request.thread_id {
            Some(thread) => {
                let found = self.node.store.thread(Some(&schedule.tenant), thread).await?;
                found.ok_or(CreateError::ThreadMissing)?;
            }
            None if schedule.request.on_busy.is_some() => {
                return Err(invalid("on_busy", "expected only together with thread_id".to_owned()));
            }
            None => {}
        }
        Ok(Some(next).filter(|_| schedule.enabled))
    }
}

/// The wish for a run of `schedule`.
fn wish(schedule: &Schedule) -> CreateRun {
    let request = schedule.request.clone();
    CreateRun {
        tenant: schedule.tenant.clone(),
        agent: request.agent,
        input: request.input,
        params: request.params,
        priority: request.priority,
        start: Start::Now,
        ttl: request.ttl_ms.map(Duration::from_millis),
        timeout: request.timeout_ms.map(Duration::from_millis),
        max_attempts: request.max_attempts,
        budget: crate::run::Budget::NONE,
        on_disconnect: request.on_disconnect,
        thread: request.thread_id,
        on_busy: request.on_busy,
        concurrency_key: None,
        webhook: None,
        metadata: request.metadata,
        key: None,
        correlation_id: Some(schedule.id.to_string()),
    }
}

fn arm(node: &Arc<Node>, schedule: &Schedule) {
    if let Some(timer) = schedule.timer() {
        // Bounded by the timers that exist.
        post(&node.timers, Arm(timer));
    }
}

/// Why a firing has to be tried again.
enum Later {
    /// The store is away.
    Store(StoreError),
    /// No run is accepted now, or not here.
    Refused(CreateError),
}

impl From<StoreError> for Later {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// Fires the schedule whose timer of this `number` is due. Hands the timer back when it has to be tried again.
pub(super) async fn fire(engine: &Engine, timer: TimerKey, number: u64) -> Option<TimerKey> {
    match try_fire(engine, timer, number).await {
        Ok(()) => None,
        Err(Later::Store(error)) => {
            engine.node.outage.felt("cannot fire a schedule", &error);
            Some(timer)
        }
        Err(Later::Refused(error)) => {
            tracing::debug!(schedule = %timer.owner, %error, "a schedule cannot fire now; trying again");
            Some(timer)
        }
    }
}

async fn try_fire(engine: &Engine, timer: TimerKey, number: u64) -> Result<(), Later> {
    let node = &engine.node;
    let stored = node.store.schedule(None, timer.owner).await?;
    let Some(stored) = stored.filter(|stored| stored.number == number && stored.timer() == Some(timer)) else {
        node.metrics.stale_timers.inc();
        node.store.drop_timer(timer).await?;
        return Ok(());
    };
    let (now, planned) = (engine.now(), timer.due);
    let run = schedule::run_id(stored.id, planned);
    let mut next = Schedule { number: number + 1, last_at: Some(planned), last_error: None, ..stored.clone() };
    match Timetable::parse(&stored.cron, &stored.timezone) {
        Ok(timetable) => {
            let firing = schedule::due(&timetable, stored.missed, planned, now, node.settings.schedule_grace);
            let Firing { runs, next: next_at } = firing;
            next.next_at = next_at;
            if runs {
                let created = match create(engine, &stored, run, planned).await {
                    Err(Later::Refused(error)) => return put_off(engine, stored, error).await,
                    created => created?,
                };
                match created {
                    Ok(run) => next.last_run = Some(run),
                    Err(error) => {
                        tracing::warn!(schedule = %stored.id, %error, "a schedule fired and no run was accepted");
                        next.last_error = Some(error.to_string());
                    }
                }
            } else if node.store.get(&stored.tenant, run).await?.is_some() {
                // It was in time, but for a node that has died since.
                next.last_run = Some(run);
            }
        }
        // Accepted once: the time zone is gone.
        Err(error) => (next.enabled, next.next_at, next.last_error) = (false, None, Some(error.to_string())),
    }
    if node.store.advance_schedule(next.clone()).await? {
        node.metrics.timer_lateness.observe(now.since(planned).as_secs_f64());
        arm(node, &next);
    }
    Ok(())
}

/// No run is accepted now: says so in the schedule, unless that says so already, and has it tried again.
async fn put_off(engine: &Engine, stored: Schedule, error: CreateError) -> Result<(), Later> {
    let (node, text) = (&engine.node, error.to_string());
    let elsewhere = matches!(error, CreateError::UnknownAgent { .. } | CreateError::Draining);
    if elsewhere || stored.last_error.as_ref() == Some(&text) {
        return Err(Later::Refused(error));
    }
    tracing::warn!(schedule = %stored.id, %error, "a schedule cannot fire now; it is tried again and again");
    let told = Schedule { number: stored.number + 1, last_error: Some(text), ..stored };
    if node.store.advance_schedule(told.clone()).await? {
        arm(node, &told);
    }
    Ok(())
}

/// Creates the run of a firing, if it is not there; returns which it is. The inner error is for good.
async fn create(
    engine: &Engine,
    schedule: &Schedule,
    run: RunId,
    planned: Timestamp,
) -> Result<Result<RunId, CreateError>, Later> {
    let label = (LABEL.to_owned(), schedule.id.to_string());
    match engine.create_as(run, wish(schedule), label).await {
        // In a thread another run may have been given it.
        Ok((stored, _)) => Ok(Ok(stored.run.spec.id)),
        // A node that has the agent will do it.
        Err(error @ CreateError::UnknownAgent { .. })
            if engine.node.may_be_elsewhere(&schedule.request.agent, planned, engine.now()) =>
        {
            Err(Later::Refused(error))
        }
        Err(CreateError::Store(error @ StoreError::Corrupt(_))) => Ok(Err(error.into())),
        Err(CreateError::Store(error)) => Err(Later::Store(error)),
        Err(
            error @ (CreateError::TooManyWaiting { .. }
            | CreateError::TooManyOfTenant { .. }
            | CreateError::RateLimited { .. }
            | CreateError::AgentUnavailable { .. }
            | CreateError::Draining),
        ) => Err(Later::Refused(error)),
        Err(
            error @ (CreateError::Invalid { .. }
            | CreateError::UnknownAgent { .. }
            | CreateError::InputTooLarge { .. }
            | CreateError::KeyReused
            | CreateError::NotRetryable(_)
            | CreateError::ThreadMissing
            | CreateError::Refused(_)
            | CreateError::NoWebhookKey(_)
            | CreateError::Missing),
        ) => Ok(Err(error)),
    }
}
