//! The routes of runs.

use std::collections::BTreeMap;
use std::time::Duration;

use actix_web::http::header::{ACCEPT, CACHE_CONTROL, LOCATION};
use actix_web::web::{Data, Path, Payload};
use actix_web::{HttpRequest, HttpResponse};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use rand::RngExt;
use serde::Deserialize;
use serde_json::Value;
use utoipa::ToSchema;
use uuid::Uuid;

use super::guard::caller;
use super::input::{Query, bytes, idempotency_key, json, run_id, token_header};
use super::object::{CreateRunBody, EventObject, EventPage, RunObject, RunPage};
use super::problem::Problem;
use super::{ApiState, CORRELATION_ID};
use crate::engine::{Cancelled, CreateError, Engine, ResumeError, Viewer, Watched};
use crate::run::{Run, RunId, Status};
use crate::store::{RunFilter, Stored};

type Answer = Result<HttpResponse, Problem>;

/// How long `wait` waits unless told otherwise, and at the most.
const WAIT: Duration = Duration::from_secs(60);
const LONGEST_WAIT: Duration = Duration::from_secs(600);

/// About how much of a log is read for one page of events, in bytes.
const EVENT_PAGE_BYTES: usize = 1 << 20;

/// The path of the runs, as the client sees it: whatever prefix the API is mounted under, and `/v1/runs`.
pub(super) fn base(request: &HttpRequest) -> String {
    let path = request.path();
    let end = path.rfind("/v1/runs").map_or(path.len(), |start| start + "/v1/runs".len());
    path[..end].to_owned()
}

/// The path of another collection beside the runs, such as `/v1/threads`, as the client sees it.
pub(super) fn beside(request: &HttpRequest, collection: &str) -> String {
    let path = request.path();
    format!("{}{collection}", &path[..path.rfind("/v1/").unwrap_or(0)])
}

fn object(request: &HttpRequest, stored: &Stored, response: &mut actix_web::HttpResponseBuilder) -> HttpResponse {
    response.json(RunObject::new(stored, &base(request)))
}

/// What a run that waits asks: its last event says so.
pub(super) async fn prompt(engine: &Engine, run: &Run) -> Result<Option<Value>, Problem> {
    if run.status != Status::Waiting {
        return Ok(None);
    }
    let last = run.last_seq;
    let segments = engine.events(&run.spec.tenant, run.spec.id, last.saturating_sub(1), EVENT_PAGE_BYTES).await?;
    let asked = segments.iter().flat_map(crate::run::Segment::events).find(|event| event.seq == last);
    let data = asked.and_then(|event| serde_json::from_str::<Value>(event.data).ok());
    Ok(data.and_then(|mut data| Some(data.get_mut("prompt")?.take())))
}

/// Starts a run.
#[utoipa::path(post, path = "/v1/runs", tag = "runs",
    request_body = CreateRunBody,
    params(("Idempotency-Key" = Option<String>, Header, description = "Makes the request safe to repeat for 24 hours.")),
    responses(
        (status = 202, description = "Accepted: the run is stored and will end. `Location` names it.", body = RunObject<'static>),
        (status = 200, description = "With `\"stream\": true`, or `Accept: text/event-stream`: its events.", content_type = "text/event-stream"),
        (status = "default", description = "Refused; nothing was created.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn create(request: HttpRequest, payload: Payload, state: Data<ApiState>) -> Answer {
    let engine = state.engine()?;
    Query::of(&request).end("none")?;
    let (body, raw) = json::<CreateRunBody>(&request, payload, state.settings.max_body).await?;
    let key = idempotency_key(&request, "POST /v1/runs", &raw)?;
    let streams = body.stream || accepts_stream(&request);
    let tenant = caller(&request);
    let wish = body
        .wish(tenant.clone(), key, token_header(&request, CORRELATION_ID))
        .map_err(|(field, expected)| Problem::field(field, expected))?;
    let (stored, _) = engine.create(wish).await?;
    let location = format!("{}/{}", base(&request), stored.run.spec.id);
    if streams {
        return match engine.watch(&tenant, stored.run.spec.id, 0).await? {
            Watched::Viewer(viewer) => Ok(event_stream(&state, *viewer, Some(location))),
            Watched::SeenAll => Ok(HttpResponse::NoContent().finish()),
        };
    }
    Ok(object(&request, &stored, HttpResponse::Accepted().insert_header((LOCATION, location))))
}

/// Lists runs, youngest first.
#[utoipa::path(get, path = "/v1/runs", tag = "runs",
    params(
        ("status" = Option<String>, Query, description = "One or more statuses, separated by commas."),
        ("agent" = Option<String>, Query, description = "Only those of this agent."),
        ("thread_id" = Option<String>, Query, description = "Only those of this thread."),
        ("metadata.KEY" = Option<String>, Query, description = "Only those with this label; may be given for several keys."),
        ("created_after" = Option<String>, Query, description = "Only those created at or after (RFC 3339)."),
        ("created_before" = Option<String>, Query, description = "Only those created before (RFC 3339)."),
        ("limit" = Option<usize>, Query, description = "How many; 50 unless given."),
        ("cursor" = Option<String>, Query, description = "Where the page before ended.")),
    responses((status = 200, body = RunPage<'static>),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn list(request: HttpRequest, state: Data<ApiState>) -> Answer {
    let mut query = Query::of(&request);
    let limit = page_limit(&mut query, &state)?;
    let before = cursor(&mut query)?.map(RunId::from_uuid);
    let mut statuses = Vec::new();
    for name in query.text("status").iter().flat_map(|text| text.split(',')) {
        let all = Status::ALL.map(Status::as_str).join(", ");
        let expected = || Problem::field("status", format!("expected one or more of {all}, separated by commas"));
        statuses.push(Status::parse(name).ok_or_else(expected)?);
    }
    let filter = RunFilter {
        before,
        statuses,
        agent: query.text("agent"),
        thread: query.parsed("thread_id", "the id of a thread")?,
        created_after: query.parsed("created_after", "an RFC 3339 time")?,
        created_before: query.parsed("created_before", "an RFC 3339 time")?,
        metadata: labels(&mut query)?,
    };
    query.end("status, agent, thread_id, metadata.KEY, created_after, created_before, limit, cursor")?;
    let mut runs = state.engine()?.list(&caller(&request), filter, limit + 1).await?;
    let more = runs.len() > limit;
    runs.truncate(limit);
    let base = base(&request);
    let next_cursor = runs.last().filter(|_| more).map(|stored| encode_cursor(stored.run.spec.id.as_uuid()));
    Ok(HttpResponse::Ok()
        .json(RunPage { data: runs.iter().map(|run| RunObject::new(run, &base)).collect(), next_cursor }))
}

/// One run as it stands.
#[utoipa::path(get, path = "/v1/runs/{id}", tag = "runs", params(("id" = String, Path)),
    responses((status = 200, body = RunObject<'static>),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn get(request: HttpRequest, id: Path<String>, state: Data<ApiState>) -> Answer {
    Query::of(&request).end("none")?;
    let engine = state.engine()?;
    let stored = engine.get(&caller(&request), run_id(&id)?).await?;
    let prompt = prompt(engine, &stored.run).await?;
    Ok(HttpResponse::Ok().json(RunObject::new(&stored, &base(&request)).with_prompt(prompt)))
}

/// Removes a run that has ended, with its log.
#[utoipa::path(delete, path = "/v1/runs/{id}", tag = "runs", params(("id" = String, Path)),
    responses((status = 204, description = "It is gone."),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn delete(request: HttpRequest, id: Path<String>, state: Data<ApiState>) -> Answer {
    Query::of(&request).end("none")?;
    state.engine()?.delete(&caller(&request), run_id(&id)?).await?;
    Ok(HttpResponse::NoContent().finish())
}

/// The run's events, live, over SSE. Resumes exactly after `Last-Event-ID`.
#[utoipa::path(get, path = "/v1/runs/{id}/stream", tag = "runs",
    params(("id" = String, Path),
        ("after" = Option<u64>, Query, description = "Only events after this number."),
        ("Last-Event-ID" = Option<u64>, Header, description = "Goes before `after`.")),
    responses(
        (status = 200, description = "The events after that number, up to the final one.", content_type = "text/event-stream"),
        (status = 204, description = "The final event was seen already."),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn stream(request: HttpRequest, id: Path<String>, state: Data<ApiState>) -> Answer {
    let mut query = Query::of(&request);
    let after = query.parsed("after", "a sequence number")?;
    query.end("after")?;
    let after = match request.headers().get("last-event-id") {
        None => after.unwrap_or(0),
        Some(value) => value
            .to_str()
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .ok_or_else(|| Problem::field("Last-Event-ID", "expected a sequence number"))?,
    };
    match state.engine()?.watch(&caller(&request), run_id(&id)?, after).await? {
        Watched::Viewer(viewer) => Ok(event_stream(&state, *viewer, None)),
        Watched::SeenAll => Ok(HttpResponse::NoContent().finish()),
    }
}

/// The run's journaled events as JSON.
#[utoipa::path(get, path = "/v1/runs/{id}/events", tag = "runs",
    params(("id" = String, Path),
        ("after" = Option<u64>, Query, description = "Only events after this number."),
        ("limit" = Option<usize>, Query, description = "How many; 50 unless given.")),
    responses((status = 200, body = EventPage<'static>),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn events(request: HttpRequest, id: Path<String>, state: Data<ApiState>) -> Answer {
    let mut query = Query::of(&request);
    let after = query.parsed("after", "a sequence number")?.unwrap_or(0);
    let limit = page_limit(&mut query, &state)?;
    query.end("after, limit")?;
    let segments = state.engine()?.events(&caller(&request), run_id(&id)?, after, EVENT_PAGE_BYTES).await?;
    let events = segments.iter().flat_map(crate::run::Segment::events);
    let data: Vec<_> = events.filter(|event| event.seq > after).take(limit).filter_map(EventObject::new).collect();
    let next_after = data.last().map_or(after, |event| event.seq);
    Ok(HttpResponse::Ok().json(EventPage { data, next_after }))
}

/// Answers when the run has ended, or after a while as it then stands.
#[utoipa::path(get, path = "/v1/runs/{id}/wait", tag = "runs",
    params(("id" = String, Path),
        ("timeout_ms" = Option<u64>, Query, description = "How long to wait; 60000 unless given, 600000 at the most.")),
    responses((status = 200, body = RunObject<'static>),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn wait(request: HttpRequest, id: Path<String>, state: Data<ApiState>) -> Answer {
    let mut query = Query::of(&request);
    let patience = query.parsed("timeout_ms", "a number of milliseconds")?.map_or(WAIT, Duration::from_millis);
    query.end("timeout_ms")?;
    let patience = patience.min(LONGEST_WAIT);
    let engine = state.engine()?;
    let stored = engine.wait(&caller(&request), run_id(&id)?, patience).await?;
    let prompt = prompt(engine, &stored.run).await?;
    Ok(HttpResponse::Ok().json(RunObject::new(&stored, &base(&request)).with_prompt(prompt)))
}

/// Ends the run, whatever its status: its model's socket is closed at once. Idempotent.
#[utoipa::path(post, path = "/v1/runs/{id}/cancel", tag = "runs", params(("id" = String, Path)),
    responses(
        (status = 200, description = "The run has ended.", body = RunObject<'static>),
        (status = 202, description = "Its worker has been told; `wait` answers when it has ended.", body = RunObject<'static>),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn cancel(request: HttpRequest, id: Path<String>, payload: Payload, state: Data<ApiState>) -> Answer {
    Query::of(&request).end("none")?;
    no_body(payload, &state).await?;
    match state.engine()?.cancel(&caller(&request), run_id(&id)?).await? {
        Cancelled::Final(stored) => Ok(object(&request, &stored, &mut HttpResponse::Ok())),
        Cancelled::Requested(stored) => Ok(object(&request, &stored, &mut HttpResponse::Accepted())),
    }
}

/// Starts a new run that goes on from the last finished step of a failed or cancelled one.
#[utoipa::path(post, path = "/v1/runs/{id}/retry", tag = "runs",
    params(("id" = String, Path), ("Idempotency-Key" = Option<String>, Header)),
    responses((status = 202, description = "The new run.", body = RunObject<'static>),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn retry(request: HttpRequest, id: Path<String>, payload: Payload, state: Data<ApiState>) -> Answer {
    Query::of(&request).end("none")?;
    no_body(payload, &state).await?;
    let key = idempotency_key(&request, "POST /v1/runs/{id}/retry", &[])?;
    let (engine, tenant, id) = (state.engine()?, caller(&request), run_id(&id)?);
    let retried = engine.retry(&tenant, id, key).await;
    if matches!(retried, Err(CreateError::Missing)) {
        // It may be gone.
        engine.get(&tenant, id).await?;
    }
    let (stored, _) = retried?;
    let location = format!("{}/{}", base(&request), stored.run.spec.id);
    Ok(object(&request, &stored, HttpResponse::Accepted().insert_header((LOCATION, location))))
}

/// The body of `POST /v1/runs/{id}/resume`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ResumeBody {
    /// The question that is answered, as the run's `wait` names it.
    wait_id: String,
    /// The answer: any JSON.
    input: Value,
}

/// Gives a waiting run the answer to its question. Of several answers at once one is taken.
#[utoipa::path(post, path = "/v1/runs/{id}/resume", tag = "runs", params(("id" = String, Path)),
    request_body = ResumeBody,
    responses((status = 200, description = "It goes on.", body = RunObject<'static>),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn resume(request: HttpRequest, id: Path<String>, payload: Payload, state: Data<ApiState>) -> Answer {
    Query::of(&request).end("none")?;
    let id = run_id(&id)?;
    let (body, _) = json::<ResumeBody>(&request, payload, state.settings.max_body).await?;
    let (engine, tenant) = (state.engine()?, caller(&request));
    let resumed = engine.resume(&tenant, id, body.wait_id, body.input).await;
    if matches!(resumed, Err(ResumeError::Missing)) {
        // It may be gone.
        engine.get(&tenant, id).await?;
    }
    let stored = resumed?;
    Ok(object(&request, &stored, &mut HttpResponse::Ok()))
}

/// These routes take no body; an empty JSON object is one, too.
pub(super) async fn no_body(payload: Payload, state: &ApiState) -> Result<(), Problem> {
    let body = bytes(payload, state.settings.max_body).await?;
    match body.trim_ascii() {
        b"" | b"{}" => Ok(()),
        _ => Err(Problem::field("body", "expected none")),
    }
}

pub(super) fn event_stream(state: &ApiState, viewer: Viewer, location: Option<String>) -> HttpResponse {
    framed(viewer.with_heartbeat(state.settings.heartbeat), location)
}

/// An answer that is the stream of these frames.
pub(super) fn framed(frames: impl Stream<Item = Bytes> + 'static, location: Option<String>) -> HttpResponse {
    // Clients that lose their connection together do not come back together.
    let retry = Bytes::from(format!("retry: {}\n\n", rand::rng().random_range(500..2_500)));
    let frames = stream::iter([retry]).chain(frames);
    let mut response = HttpResponse::Ok();
    if let Some(location) = location {
        response.insert_header((LOCATION, location));
    }
    response
        .content_type("text/event-stream")
        .insert_header((CACHE_CONTROL, "no-store, no-transform"))
        .insert_header(("x-accel-buffering", "no"))
        .streaming(frames.map(Ok::<_, std::convert::Infallible>))
}

pub(super) fn accepts_stream(request: &HttpRequest) -> bool {
    let accept = request.headers().get(ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    accept.split([',', ';']).any(|part| part.trim().eq_ignore_ascii_case("text/event-stream"))
}

/// The labels that a list is to be filtered by.
pub(super) fn labels(query: &mut Query) -> Result<BTreeMap<String, String>, Problem> {
    let mut labels = BTreeMap::new();
    for (label, value) in query.prefixed("metadata.") {
        let field = format!("metadata.{}", label.chars().take(64).collect::<String>());
        if labels.insert(label, value).is_some() {
            return Err(Problem::field(field, "expected once"));
        }
    }
    Ok(labels)
}

pub(super) fn page_limit(query: &mut Query, state: &ApiState) -> Result<usize, Problem> {
    let most = state.settings.max_page;
    let expected = format!("a number from 1 to {most}");
    match query.parsed("limit", &expected)? {
        None => Ok(most.min(50)),
        Some(limit) if (1..=most).contains(&limit) => Ok(limit),
        Some(_) => Err(Problem::field("limit", format!("expected {expected}"))),
    }
}

/// Where a page ended, as text.
pub(super) fn encode_cursor(id: &Uuid) -> String {
    URL_SAFE_NO_PAD.encode(id.as_bytes())
}

/// Where the page before ended, as a list's query says.
pub(super) fn cursor(query: &mut Query) -> Result<Option<Uuid>, Problem> {
    let Some(cursor) = query.text("cursor") else { return Ok(None) };
    let bytes = URL_SAFE_NO_PAD.decode(cursor).ok().and_then(|bytes| bytes.try_into().ok());
    let expected = || Problem::field("cursor", "expected the next_cursor of an earlier page");
    bytes.map(Uuid::from_bytes).map(Some).ok_or_else(expected)
}
