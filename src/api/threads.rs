//! The routes of threads.

use actix_web::http::header::LOCATION;
use actix_web::web::{Data, Path, Payload};
use actix_web::{HttpRequest, HttpResponse};

use super::guard::caller;
use super::input::{Query, idempotency_key, json, json_or_nothing, thread_id, token_header};
use super::object::RunObject;
use super::problem::{Code, Problem};
use super::runs::{accepts_stream, beside, cursor, encode_cursor, event_stream, framed, labels, no_body, page_limit};
use super::thread_object::{
    CreateThreadBody, HandOffBody, HowObject, MessageBody, MessagePage, PatchThreadBody, SentObject, ThreadObject,
    ThreadPage,
};
use super::{ApiState, CORRELATION_ID};
use crate::engine::{CreateThread, ThreadRequestError, WatchFrom, Watched};
use crate::run::ThreadId;
use crate::store::{Patch, Stored};
use crate::thread::Thread;

type Answer = Result<HttpResponse, Problem>;

/// The paths of the threads and of the runs, as the client sees them.
fn bases(request: &HttpRequest) -> (String, String) {
    (beside(request, "/v1/threads"), beside(request, "/v1/runs"))
}

fn object(request: &HttpRequest, thread: &Thread, response: &mut actix_web::HttpResponseBuilder) -> HttpResponse {
    let (threads, runs) = bases(request);
    response.json(ThreadObject::new(thread, &threads, &runs))
}

/// Creates a thread. No body is an empty object.
#[utoipa::path(post, path = "/v1/threads", tag = "threads",
    request_body = CreateThreadBody,
    params(("Idempotency-Key" = Option<String>, Header, description = "Makes the request safe to repeat for 24 hours.")),
    responses(
        (status = 201, description = "It is there now. `Location` names it.", body = ThreadObject<'static>),
        (status = 200, description = "It was there already.", body = ThreadObject<'static>),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn create(request: HttpRequest, payload: Payload, state: Data<ApiState>) -> Answer {
    let engine = state.engine()?;
    Query::of(&request).end("none")?;
    let (body, raw) = json_or_nothing::<CreateThreadBody>(&request, payload, state.settings.max_body).await?;
    let key = idempotency_key(&request, "POST /v1/threads", &raw)?;
    let keyed = key.is_some();
    let CreateThreadBody { id, metadata, state: document } = body;
    let wish = CreateThread { tenant: caller(&request), id, metadata, state: document, key };
    let (thread, existing) = engine.create_thread(wish).await.map_err(|error| {
        let reused = keyed && matches!(error, ThreadRequestError::Taken);
        if reused { Problem::new(Code::IdempotencyKeyReused, error.to_string()) } else { error.into() }
    })?;
    let mut response = if existing { HttpResponse::Ok() } else { HttpResponse::Created() };
    let location = format!("{}/{}", beside(&request, "/v1/threads"), thread.id);
    Ok(object(&request, &thread, response.insert_header((LOCATION, location))))
}

/// Lists threads, youngest first.
#[utoipa::path(get, path = "/v1/threads", tag = "threads",
    params(
        ("metadata.KEY" = Option<String>, Query, description = "Only those with this label; may be given for several keys."),
        ("limit" = Option<usize>, Query, description = "How many; 50 unless given."),
        ("cursor" = Option<String>, Query, description = "Where the page before ended.")),
    responses((status = 200, body = ThreadPage<'static>),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn list(request: HttpRequest, state: Data<ApiState>) -> Answer {
    let mut query = Query::of(&request);
    let limit = page_limit(&mut query, &state)?;
    let before = cursor(&mut query)?.map(ThreadId::from_uuid);
    let metadata = labels(&mut query)?;
    query.end("metadata.KEY, limit, cursor")?;
    let mut threads = state.engine()?.threads(&caller(&request), before, &metadata, limit + 1).await?;
    let more = threads.len() > limit;
    threads.truncate(limit);
    let (base, runs) = bases(&request);
    let next_cursor = threads.last().filter(|_| more).map(|thread| encode_cursor(thread.id.as_uuid()));
    let data = threads.iter().map(|thread| ThreadObject::new(thread, &base, &runs)).collect();
    Ok(HttpResponse::Ok().json(ThreadPage { data, next_cursor }))
}

/// One thread as it stands.
#[utoipa::path(get, path = "/v1/threads/{id}", tag = "threads", params(("id" = String, Path)),
    responses((status = 200, body = ThreadObject<'static>),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn get(request: HttpRequest, id: Path<String>, state: Data<ApiState>) -> Answer {
    Query::of(&request).end("none")?;
    let thread = state.engine()?.thread(&caller(&request), thread_id(&id)?).await?;
    Ok(object(&request, &thread, &mut HttpResponse::Ok()))
}

/// Changes what belongs to the caller; what is not given stays.
#[utoipa::path(patch, path = "/v1/threads/{id}", tag = "threads", params(("id" = String, Path)),
    request_body = PatchThreadBody,
    responses((status = 200, body = ThreadObject<'static>),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn patch(request: HttpRequest, id: Path<String>, payload: Payload, state: Data<ApiState>) -> Answer {
    Query::of(&request).end("none")?;
    let id = thread_id(&id)?;
    let (body, _) = json::<PatchThreadBody>(&request, payload, state.settings.max_body).await?;
    let patch = Patch { metadata: body.metadata, state: body.state };
    let thread = state.engine()?.patch_thread(&caller(&request), id, patch).await?;
    Ok(object(&request, &thread, &mut HttpResponse::Ok()))
}

/// Removes a thread whose runs have all ended, with its messages and its runs.
#[utoipa::path(delete, path = "/v1/threads/{id}", tag = "threads", params(("id" = String, Path)),
    responses((status = 204, description = "It is gone."),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn delete(request: HttpRequest, id: Path<String>, state: Data<ApiState>) -> Answer {
    Query::of(&request).end("none")?;
    state.engine()?.delete_thread(&caller(&request), thread_id(&id)?).await?;
    Ok(HttpResponse::NoContent().finish())
}

/// A message comes in: it becomes a run, joins one, or is handed to the one that is going on.
#[utoipa::path(post, path = "/v1/threads/{id}/messages", tag = "threads",
    request_body = MessageBody,
    params(("id" = String, Path),
        ("Idempotency-Key" = Option<String>, Header, description = "Makes the request safe to repeat for 24 hours.")),
    responses(
        (status = 202, description = "Accepted: the message is stored, and in exactly one run or kept for people.", body = SentObject<'static>),
        (status = 200, description = "With `\"stream\": true`, or `Accept: text/event-stream`: the events of the run that is given it.", content_type = "text/event-stream"),
        (status = "default", description = "Refused; nothing came in.", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn send(request: HttpRequest, id: Path<String>, payload: Payload, state: Data<ApiState>) -> Answer {
    let engine = state.engine()?;
    Query::of(&request).end("none")?;
    let id = thread_id(&id)?;
    let (body, raw) = json::<MessageBody>(&request, payload, state.settings.max_body).await?;
    let key = idempotency_key(&request, "POST /v1/threads/{id}/messages", &raw)?;
    let streams = body.stream || accepts_stream(&request);
    let tenant = caller(&request);
    let send = body.send(tenant.clone(), id, key, token_header(&request, CORRELATION_ID));
    if send.debounce_max.is_some_and(|most| send.debounce > Some(most)) {
        return Err(Problem::field("debounce_ms", "expected at most debounce_max_ms"));
    }
    let sent = engine.send(send).await.map_err(|error| Problem::from(error).about("input", "content"))?;
    let runs = beside(&request, "/v1/runs");
    let location = sent.run.as_ref().map(|run| format!("{runs}/{}", run.spec.id));
    if let Some(run) = sent.run.as_ref().filter(|_| streams) {
        return match engine.watch(&tenant, run.spec.id, 0).await? {
            Watched::Viewer(viewer) => Ok(event_stream(&state, *viewer, location)),
            Watched::SeenAll => Ok(HttpResponse::NoContent().finish()),
        };
    }
    let stored = sent.run.map(|run| Stored { reserved_seq: run.last_seq, cancel_requested: false, run });
    let mut response = HttpResponse::Accepted();
    if let Some(location) = location {
        response.insert_header((LOCATION, location));
    }
    Ok(response.json(SentObject {
        message: (&sent.message).into(),
        run: stored.as_ref().map(|stored| RunObject::new(stored, &runs)),
        how: sent.how.and_then(HowObject::new),
    }))
}

/// The thread's messages, oldest first.
#[utoipa::path(get, path = "/v1/threads/{id}/messages", tag = "threads",
    params(("id" = String, Path),
        ("after" = Option<u64>, Query, description = "Only messages after this number."),
        ("limit" = Option<usize>, Query, description = "How many; 50 unless given.")),
    responses((status = 200, body = MessagePage<'static>),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn messages(request: HttpRequest, id: Path<String>, state: Data<ApiState>) -> Answer {
    let mut query = Query::of(&request);
    let after = query.parsed("after", "the number of a message")?.unwrap_or(0);
    let limit = page_limit(&mut query, &state)?;
    query.end("after, limit")?;
    let messages = state.engine()?.messages(&caller(&request), thread_id(&id)?, after, limit).await?;
    let next_after = messages.last().map_or(after, |message| message.seq);
    Ok(HttpResponse::Ok().json(MessagePage { data: messages.iter().map(Into::into).collect(), next_after }))
}

/// People take the thread over: nobody is answered by a run, and what is going on is cancelled. No body is an empty
/// object.
#[utoipa::path(post, path = "/v1/threads/{id}/handoff", tag = "threads", params(("id" = String, Path)),
    request_body = HandOffBody,
    responses((status = 200, body = ThreadObject<'static>),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn hand_off(
    request: HttpRequest,
    id: Path<String>,
    payload: Payload,
    state: Data<ApiState>,
) -> Answer {
    Query::of(&request).end("none")?;
    let id = thread_id(&id)?;
    let (body, _) = json_or_nothing::<HandOffBody>(&request, payload, state.settings.max_body).await?;
    let thread = state.engine()?.hand_off(&caller(&request), id, body.reason).await?;
    Ok(object(&request, &thread, &mut HttpResponse::Ok()))
}

/// People give the thread back: the next message is answered by a run again.
#[utoipa::path(post, path = "/v1/threads/{id}/release", tag = "threads", params(("id" = String, Path)),
    responses((status = 200, body = ThreadObject<'static>),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn release(request: HttpRequest, id: Path<String>, payload: Payload, state: Data<ApiState>) -> Answer {
    Query::of(&request).end("none")?;
    no_body(payload, &state).await?;
    let thread = state.engine()?.release_thread(&caller(&request), thread_id(&id)?).await?;
    Ok(object(&request, &thread, &mut HttpResponse::Ok()))
}

/// The events of all the thread's runs, live, over SSE, each with its `run_id`, and those of the thread itself. Ids are
/// opaque; a stream that is opened with one resumes exactly after it. It does not end by itself.
#[utoipa::path(get, path = "/v1/threads/{id}/stream", tag = "threads",
    params(("id" = String, Path),
        ("after" = Option<String>, Query, description = "Only what follows the event of this id."),
        ("from" = Option<String>, Query, description = "`now` begins with the runs that have not ended, `start` with the first event of the thread; `now` unless given. Without meaning beside an id."),
        ("Last-Event-ID" = Option<String>, Header, description = "Goes before `after`.")),
    responses(
        (status = 200, description = "The events.", content_type = "text/event-stream"),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn stream(request: HttpRequest, id: Path<String>, state: Data<ApiState>) -> Answer {
    let mut query = Query::of(&request);
    let after = query.parsed("after", "the id of an event of this stream")?;
    let from = match query.text("from").as_deref() {
        None | Some("now") => WatchFrom::Now,
        Some("start") => WatchFrom::Start,
        Some(_) => return Err(Problem::field("from", "expected now or start")),
    };
    query.end("after, from")?;
    let seen = match request.headers().get("last-event-id") {
        None => after,
        Some(value) => {
            let position = value.to_str().ok().and_then(|text| text.trim().parse().ok());
            let expected = || Problem::field("Last-Event-ID", "expected the id of an event of this stream");
            Some(position.ok_or_else(expected)?)
        }
    };
    let from = seen.map_or(from, WatchFrom::After);
    let heartbeat = state.settings.heartbeat;
    let frames = state.engine()?.watch_thread(&caller(&request), thread_id(&id)?, from, heartbeat).await?;
    Ok(framed(frames, None))
}
