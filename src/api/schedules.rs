//! The routes of schedules.

use std::collections::BTreeMap;

use actix_web::http::header::LOCATION;
use actix_web::web::{Data, Path, Payload};
use actix_web::{HttpRequest, HttpResponse};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;
use uuid::Uuid;

use super::ApiState;
use super::guard::caller;
use super::input::{Query, given, idempotency_key, json, kept};
use super::problem::Problem;
use super::runs::{cursor, encode_cursor, page_limit};
use crate::engine::CreateSchedule;
use crate::run::{Input, OnDisconnect, ThreadId, Timestamp};
use crate::schedule::{Missed, Request, Timetable};
use crate::store::Schedule;
use crate::thread::OnBusy;

type Answer = Result<HttpResponse, Problem>;

/// How many firings are shown.
const SHOWN: usize = 3;

/// The body of `POST /v1/schedules`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct CreateScheduleBody {
    /// When it fires: a cron expression of five fields (minute, hour, day of the month, month, day of the week), six
    /// with seconds in front, or a nickname such as `@daily`. A time that the clocks skip fires right after the gap; one
    /// that occurs twice fires once, unless the expression is for every hour.
    cron: String,
    /// The IANA time zone that the expression is meant in.
    #[serde(default = "utc")]
    timezone: String,
    /// What happens about firings that were missed by more than `schedules.grace`.
    #[serde(default)]
    missed: Missed,
    /// It fires.
    #[serde(default = "yes")]
    enabled: bool,
    /// The agent that executes its runs.
    agent: String,
    /// A text, or the messages of a conversation.
    input: Input,
    /// The agent's own options, checked against its JSON Schema.
    #[serde(default)]
    params: Map<String, Value>,
    /// Higher goes first; -100 to 100.
    #[serde(default)]
    priority: i32,
    /// A run expires if it has not started so long after its firing.
    #[serde(default)]
    ttl_ms: Option<u64>,
    /// Bounds the running time of a run over all attempts.
    #[serde(default)]
    timeout_ms: Option<u64>,
    /// How many attempts of a run may fail; 1 to 100.
    #[serde(default)]
    max_attempts: Option<u32>,
    /// What happens when a run's last viewer hangs up.
    #[serde(default)]
    on_disconnect: OnDisconnect,
    /// The caller's own labels of each run, besides `schedule_id`.
    #[serde(default)]
    metadata: BTreeMap<String, String>,
    /// The conversation that each run belongs to.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    thread_id: Option<ThreadId>,
    /// What happens when another run holds the thread; as the agent says unless given.
    #[serde(default)]
    on_busy: Option<OnBusy>,
}

fn utc() -> String {
    "UTC".to_owned()
}

fn yes() -> bool {
    true
}

/// The body of `PATCH /v1/schedules/{id}`: what is to change. `null` takes a bound away.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ChangeScheduleBody {
    #[serde(default, deserialize_with = "kept")]
    #[schema(nullable = false)]
    cron: Option<String>,
    #[serde(default, deserialize_with = "kept")]
    #[schema(nullable = false)]
    timezone: Option<String>,
    #[serde(default, deserialize_with = "kept")]
    #[schema(nullable = false)]
    missed: Option<Missed>,
    #[serde(default, deserialize_with = "kept")]
    #[schema(nullable = false)]
    enabled: Option<bool>,
    #[serde(default, deserialize_with = "kept")]
    #[schema(nullable = false)]
    agent: Option<String>,
    #[serde(default, deserialize_with = "kept")]
    #[schema(nullable = false)]
    input: Option<Input>,
    #[serde(default, deserialize_with = "kept")]
    #[schema(nullable = false)]
    params: Option<Map<String, Value>>,
    #[serde(default, deserialize_with = "kept")]
    #[schema(nullable = false)]
    priority: Option<i32>,
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<u64>)]
    ttl_ms: Option<Option<u64>>,
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<u64>)]
    timeout_ms: Option<Option<u64>>,
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<u32>)]
    max_attempts: Option<Option<u32>>,
    #[serde(default, deserialize_with = "kept")]
    #[schema(nullable = false)]
    on_disconnect: Option<OnDisconnect>,
    #[serde(default, deserialize_with = "kept")]
    #[schema(nullable = false)]
    metadata: Option<BTreeMap<String, String>>,
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<String>)]
    thread_id: Option<Option<ThreadId>>,
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<OnBusy>)]
    on_busy: Option<Option<OnBusy>>,
}

impl ChangeScheduleBody {
    fn apply(self, schedule: &mut Schedule) {
        fn put<T>(to: &mut T, from: Option<T>) {
            if let Some(from) = from {
                *to = from;
            }
        }
        put(&mut schedule.cron, self.cron);
        put(&mut schedule.timezone, self.timezone);
        put(&mut schedule.missed, self.missed);
        put(&mut schedule.enabled, self.enabled);
        let request = &mut schedule.request;
        put(&mut request.agent, self.agent);
        put(&mut request.input, self.input);
        put(&mut request.params, self.params);
        put(&mut request.priority, self.priority);
        put(&mut request.ttl_ms, self.ttl_ms);
        put(&mut request.timeout_ms, self.timeout_ms);
        put(&mut request.max_attempts, self.max_attempts);
        put(&mut request.on_disconnect, self.on_disconnect);
        put(&mut request.metadata, self.metadata);
        put(&mut request.thread_id, self.thread_id);
        put(&mut request.on_busy, self.on_busy);
    }
}

/// A schedule.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ScheduleObject<'a> {
    /// UUID version 7.
    id: String,
    tenant: &'a str,
    cron: &'a str,
    timezone: &'a str,
    missed: Missed,
    enabled: bool,
    agent: &'a str,
    input: &'a Input,
    #[schema(value_type = Object)]
    params: &'a Map<String, Value>,
    priority: i32,
    ttl_ms: Option<u64>,
    timeout_ms: Option<u64>,
    max_attempts: Option<u32>,
    on_disconnect: OnDisconnect,
    thread_id: Option<String>,
    on_busy: Option<OnBusy>,
    metadata: &'a BTreeMap<String, String>,
    /// When it fires next; null if it does not.
    #[schema(value_type = Option<String>, format = DateTime)]
    next_at: Option<Timestamp>,
    /// Its next three firings.
    #[schema(value_type = Vec<String>)]
    next: Vec<Timestamp>,
    /// When its last firing was planned.
    #[schema(value_type = Option<String>, format = DateTime)]
    last_at: Option<Timestamp>,
    /// The last run it has made.
    last_run_id: Option<String>,
    /// Why its last firing made no run.
    last_error: Option<&'a str>,
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
}

impl<'a> ScheduleObject<'a> {
    fn new(schedule: &'a Schedule) -> Self {
        let request = &schedule.request;
        let next_at = schedule.next_at.filter(|_| schedule.enabled);
        let timetable = Timetable::parse(&schedule.cron, &schedule.timezone).ok();
        let after = |first| timetable.iter().flat_map(move |timetable| timetable.upcoming(first));
        let next = next_at.into_iter().flat_map(|first| std::iter::once(first).chain(after(first)));
        Self {
            id: schedule.id.to_string(),
            tenant: schedule.tenant.as_str(),
            cron: &schedule.cron,
            timezone: &schedule.timezone,
            missed: schedule.missed,
            enabled: schedule.enabled,
            agent: &request.agent,
            input: &request.input,
            params: &request.params,
            priority: request.priority,
            ttl_ms: request.ttl_ms,
            timeout_ms: request.timeout_ms,
            max_attempts: request.max_attempts,
            on_disconnect: request.on_disconnect,
            thread_id: request.thread_id.map(|id| id.to_string()),
            on_busy: request.on_busy,
            metadata: &request.metadata,
            next_at,
            next: next.take(SHOWN).collect(),
            last_at: schedule.last_at,
            last_run_id: schedule.last_run.map(|run| run.to_string()),
            last_error: schedule.last_error.as_deref(),
            created_at: schedule.created_at,
        }
    }
}

/// A page of schedules, youngest first.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct SchedulePage<'a> {
    data: Vec<ScheduleObject<'a>>,
    /// Give it as `cursor` to get the next page; absent on the last.
    next_cursor: Option<String>,
}

/// Creates a schedule.
#[utoipa::path(post, path = "/v1/schedules", tag = "schedules",
    request_body = CreateScheduleBody,
    params(("Idempotency-Key" = Option<String>, Header, description = "Makes the request safe to repeat for 24 hours.")),
    responses(
        (status = 201, description = "It is kept, and fires. `Location` names it.", body = ScheduleObject<'static>),
        (status = "default", description = "Refused; nothing was created.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn create(request: HttpRequest, payload: Payload, state: Data<ApiState>) -> Answer {
    let engine = state.engine()?;
    Query::of(&request).end("none")?;
    let (body, raw) = json::<CreateScheduleBody>(&request, payload, state.settings.max_body).await?;
    let key = idempotency_key(&request, "POST /v1/schedules", &raw)?;
    let wish = CreateSchedule {
        tenant: caller(&request),
        cron: body.cron,
        timezone: body.timezone,
        request: Request {
            agent: body.agent,
            input: body.input,
            params: body.params,
            priority: body.priority,
            ttl_ms: body.ttl_ms,
            timeout_ms: body.timeout_ms,
            max_attempts: body.max_attempts,
            on_disconnect: body.on_disconnect,
            metadata: body.metadata,
            thread_id: body.thread_id,
            on_busy: body.on_busy,
        },
        missed: body.missed,
        enabled: body.enabled,
        key,
    };
    let (schedule, _) = engine.create_schedule(wish).await?;
    let location = format!("{}/{}", request.path(), schedule.id);
    Ok(HttpResponse::Created().insert_header((LOCATION, location)).json(ScheduleObject::new(&schedule)))
}

/// Lists schedules, youngest first.
#[utoipa::path(get, path = "/v1/schedules", tag = "schedules",
    params(
        ("limit" = Option<usize>, Query, description = "How many; 50 unless given."),
        ("cursor" = Option<String>, Query, description = "Where the page before ended.")),
    responses((status = 200, body = SchedulePage<'static>),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn list(request: HttpRequest, state: Data<ApiState>) -> Answer {
    let mut query = Query::of(&request);
    let limit = page_limit(&mut query, &state)?;
    let before = cursor(&mut query)?;
    query.end("limit, cursor")?;
    let mut schedules = state.engine()?.schedules(&caller(&request), before, limit + 1).await?;
    let more = schedules.len() > limit;
    schedules.truncate(limit);
    let last = schedules.last().filter(|_| more);
    let next_cursor = last.map(|last| encode_cursor(&last.id));
    Ok(HttpResponse::Ok().json(SchedulePage { data: schedules.iter().map(ScheduleObject::new).collect(), next_cursor }))
}

/// One schedule.
#[utoipa::path(get, path = "/v1/schedules/{id}", tag = "schedules", params(("id" = String, Path)),
    responses((status = 200, body = ScheduleObject<'static>),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn get(request: HttpRequest, id: Path<String>, state: Data<ApiState>) -> Answer {
    Query::of(&request).end("none")?;
    let schedule = state.engine()?.schedule(&caller(&request), schedule_id(&id)?).await?;
    Ok(HttpResponse::Ok().json(ScheduleObject::new(&schedule)))
}

/// Changes a schedule. Its next firing is planned anew when its expression or zone changes, or it is enabled.
#[utoipa::path(patch, path = "/v1/schedules/{id}", tag = "schedules", params(("id" = String, Path)),
    request_body = ChangeScheduleBody,
    responses((status = 200, body = ScheduleObject<'static>),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn change(request: HttpRequest, id: Path<String>, payload: Payload, state: Data<ApiState>) -> Answer {
    let engine = state.engine()?;
    Query::of(&request).end("none")?;
    let id = schedule_id(&id)?;
    let (body, _) = json::<ChangeScheduleBody>(&request, payload, state.settings.max_body).await?;
    let change = |schedule: &mut Schedule| body.clone().apply(schedule);
    let schedule = engine.change_schedule(&caller(&request), id, change).await?;
    Ok(HttpResponse::Ok().json(ScheduleObject::new(&schedule)))
}

/// Removes a schedule; its runs stay.
#[utoipa::path(delete, path = "/v1/schedules/{id}", tag = "schedules", params(("id" = String, Path)),
    responses((status = 204, description = "It is gone."),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn delete(request: HttpRequest, id: Path<String>, state: Data<ApiState>) -> Answer {
    Query::of(&request).end("none")?;
    state.engine()?.delete_schedule(&caller(&request), schedule_id(&id)?).await?;
    Ok(HttpResponse::NoContent().finish())
}

fn schedule_id(text: &str) -> Result<Uuid, Problem> {
    text.parse().map_err(|_| Problem::field("id", "expected a UUID"))
}
