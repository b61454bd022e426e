//! The routes of an operator: how much waits where, and what waits for a person.

use std::collections::BTreeMap;

use actix_web::web::{Data, Path};
use actix_web::{HttpRequest, HttpResponse};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::ApiState;
use super::input::Query;
use super::object::RunObject;
use super::problem::{Code, Problem};
use super::runs::{base, page_limit};
use crate::run::{Tenant, Timestamp};
use crate::store::{DeadLetter, Depths, Discard, TenantDepths};

type Answer = Result<HttpResponse, Problem>;

/// How much waits where.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Queues {
    /// Queued, with a priority of 0 or lower.
    pending: u64,
    /// Queued, with a priority above 0.
    high_priority: u64,
    /// Running.
    processing: u64,
    /// Scheduled for another attempt.
    retry: u64,
    /// Scheduled for any other reason.
    scheduled: u64,
    /// Waiting for input or approval.
    waiting: u64,
    /// Dead letters.
    failed: u64,
    /// What each tenant has queued and running; tenants without any are left out.
    tenants: Vec<TenantQueue>,
}

/// What a tenant has queued and running.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct TenantQueue {
    tenant: String,
    /// Queued.
    queued: u64,
    /// Running.
    running: u64,
}

/// Something that could not be done and waits for a person.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct DeadLetterObject {
    id: String,
    /// When it came here.
    #[schema(value_type = String)]
    at: Timestamp,
    /// `run`, or the name of the foreign queue that it came from.
    source: String,
    /// The run that failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    run_id: Option<String>,
    reason: String,
    /// The message as it came, as text; absent for a run.
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<String>,
}

/// A page of dead letters.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct DeadLetterPage {
    data: Vec<DeadLetterObject>,
    next_cursor: Option<String>,
}

/// How many dead letters were removed.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Purged {
    purged: u64,
}

impl Queues {
    fn new(depths: Depths, tenants: BTreeMap<Tenant, TenantDepths>) -> Self {
        let Depths { pending, high_priority, processing, retry, scheduled, waiting, failed } = depths;
        let tenants = tenants.into_iter().map(|(tenant, TenantDepths { queued, running })| TenantQueue {
            tenant: tenant.as_str().to_owned(),
            queued,
            running,
        });
        let tenants = tenants.collect();
        Self { pending, high_priority, processing, retry, scheduled, waiting, failed, tenants }
    }
}

impl From<DeadLetter> for DeadLetterObject {
    fn from(letter: DeadLetter) -> Self {
        let text = |payload: &[u8]| String::from_utf8_lossy(payload).into_owned();
        Self {
            id: letter.id.to_string(),
            at: letter.at,
            run_id: letter.run.map(|run| run.to_string()),
            payload: letter.run.is_none().then(|| text(&letter.payload)),
            source: letter.source,
            reason: letter.reason,
        }
    }
}

/// How much waits where.
#[utoipa::path(get, path = "/v1/queues", tag = "queues", responses((status = 200, body = Queues)))]
pub(super) async fn depths(request: HttpRequest, state: Data<ApiState>) -> Answer {
    Query::of(&request).end("none")?;
    let engine = state.engine()?;
    Ok(HttpResponse::Ok().json(Queues::new(engine.depths().await?, engine.depths_by_tenant().await?)))
}

/// Lists dead letters, oldest first.
#[utoipa::path(get, path = "/v1/queues/dead", tag = "queues",
    params(
        ("limit" = Option<usize>, Query, description = "How many; 50 unless given."),
        ("cursor" = Option<String>, Query, description = "Where the page before ended.")),
    responses((status = 200, body = DeadLetterPage)))]
pub(super) async fn list(request: HttpRequest, state: Data<ApiState>) -> Answer {
    let mut query = Query::of(&request);
    let limit = page_limit(&mut query, &state)?;
    let cursor = query.text("cursor");
    let invalid = || Problem::field("cursor", "expected the next_cursor of an earlier page");
    let after = cursor.map(|cursor| parse_cursor(&cursor).ok_or_else(invalid)).transpose()?;
    query.end("limit, cursor")?;
    let mut letters = state.engine()?.dead_letters(after, limit + 1).await?;
    let more = letters.len() > limit;
    letters.truncate(limit);
    let next_cursor = letters.last().filter(|_| more).map(|last| format!("{}.{}", last.at.as_millis(), last.id));
    Ok(HttpResponse::Ok().json(DeadLetterPage { data: letters.into_iter().map(Into::into).collect(), next_cursor }))
}

fn parse_cursor(text: &str) -> Option<(Timestamp, Uuid)> {
    let (at, id) = text.split_once('.')?;
    Some((Timestamp::from_millis(at.parse().ok()?), id.parse().ok()?))
}

/// One dead letter.
#[utoipa::path(get, path = "/v1/queues/dead/{id}", tag = "queues", params(("id" = String, Path)),
    responses((status = 200, body = DeadLetterObject),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn get(path: Path<String>, state: Data<ApiState>) -> Answer {
    let letter = state.engine()?.dead_letter(letter_id(&path)?).await?.ok_or_else(missing)?;
    Ok(HttpResponse::Ok().json(DeadLetterObject::from(letter)))
}

/// Removes one dead letter; the run it is about stays.
#[utoipa::path(delete, path = "/v1/queues/dead/{id}", tag = "queues", params(("id" = String, Path)),
    responses((status = 204), (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn discard(path: Path<String>, state: Data<ApiState>) -> Answer {
    match state.engine()?.discard(Discard::One(letter_id(&path)?)).await? {
        0 => Err(missing()),
        _ => Ok(HttpResponse::NoContent().finish()),
    }
}

/// Makes a new run of a dead letter, which goes on from the last finished step, and removes the letter.
#[utoipa::path(post, path = "/v1/queues/dead/{id}/requeue", tag = "queues", params(("id" = String, Path)),
    responses((status = 202, body = RunObject<'static>),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn requeue(request: HttpRequest, path: Path<String>, state: Data<ApiState>) -> Answer {
    let stored = state.engine()?.requeue(letter_id(&path)?).await?;
    Ok(HttpResponse::Accepted().json(RunObject::new(&stored, &runs_base(&request))))
}

/// Removes all dead letters; the runs they are about stay.
#[utoipa::path(post, path = "/v1/queues/dead/purge", tag = "queues", responses((status = 200, body = Purged)))]
pub(super) async fn purge(state: Data<ApiState>) -> Answer {
    Ok(HttpResponse::Ok().json(Purged { purged: state.engine()?.discard(Discard::All).await? }))
}

fn letter_id(text: &str) -> Result<Uuid, Problem> {
    text.parse().map_err(|_| Problem::field("id", "expected a UUID"))
}

fn missing() -> Problem {
    Problem::new(Code::NotFound, "there is no such dead letter")
}

/// The path of the runs, under the prefix of this request.
fn runs_base(request: &HttpRequest) -> String {
    match request.path().rfind("/v1/queues") {
        Some(end) => format!("{}/v1/runs", &request.path()[..end]),
        None => base(request),
    }
}
