//! The routes of webhooks: endpoints, their secrets, and what was sent to them.

use actix_web::http::header::{CACHE_CONTROL, LOCATION};
use actix_web::web::{Data, Path, Payload};
use actix_web::{HttpRequest, HttpResponse};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::ApiState;
use super::guard::caller;
use super::input::{Query, given, idempotency_key, json, kept};
use super::problem::Problem;
use super::runs::{no_body, page_limit};
use crate::engine::{EndpointWish, ROTATION};
use crate::run::{Timestamp, WebhookEvent};
use crate::store::{Delivery, DeliveryFilter, DeliveryStatus, Endpoint, EndpointPatch};
use crate::webhook::Secret;

type Answer = Result<HttpResponse, Problem>;

/// The body of `POST /v1/webhooks/endpoints`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct CreateEndpointBody {
    /// An `https://` URL of the public internet; others have to be allowed by `webhooks.allow`.
    url: String,
    /// What is told; the four ends of a run unless given.
    #[serde(default = "ends")]
    events: Vec<WebhookEvent>,
    /// Only of this agent's runs. News of threads are of no agent.
    #[serde(default)]
    agent: Option<String>,
    /// Whether anything is told.
    #[serde(default = "yes")]
    enabled: bool,
}

fn ends() -> Vec<WebhookEvent> {
    WebhookEvent::FINAL.to_vec()
}

fn yes() -> bool {
    true
}

/// The body of `PATCH /v1/webhooks/endpoints/{id}`: what is left out stays as it is.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct PatchEndpointBody {
    /// An `https://` URL.
    #[serde(default, deserialize_with = "kept")]
    #[schema(nullable = false)]
    url: Option<String>,
    /// What is told.
    #[serde(default, deserialize_with = "kept")]
    #[schema(nullable = false)]
    events: Option<Vec<WebhookEvent>>,
    /// Only of this agent's runs; `null`: of all.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<String>)]
    agent: Option<Option<String>>,
    /// Whether anything is told. What waits for an endpoint that is disabled is given up.
    #[serde(default, deserialize_with = "kept")]
    #[schema(nullable = false)]
    enabled: Option<bool>,
}

/// An endpoint.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct EndpointObject {
    /// UUID version 7.
    id: String,
    url: String,
    events: Vec<WebhookEvent>,
    agent: Option<String>,
    enabled: bool,
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    /// When the secret was changed last.
    #[schema(value_type = Option<String>, format = DateTime)]
    rotated_at: Option<Timestamp>,
    /// What verifies the signatures; only in the answers to its creation and rotation.
    #[serde(skip_serializing_if = "Option::is_none")]
    secret: Option<String>,
}

impl EndpointObject {
    fn new(endpoint: Endpoint, secret: Option<&Secret>) -> Self {
        let Endpoint { id, url, events, agent, enabled, rotated_at, created_at, .. } = endpoint;
        let secret = secret.map(Secret::expose);
        Self { id: id.to_string(), url, events, agent, enabled, created_at, rotated_at, secret }
    }
}

/// A page of endpoints, oldest first.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct EndpointPage {
    data: Vec<EndpointObject>,
    /// Give it as `cursor` to get the next page; absent on the last.
    next_cursor: Option<String>,
}

/// What verifies signatures.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct SecretObject {
    /// `whsec_` and base64.
    secret: String,
    /// Until then the secret before it signs, too.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    previous_until: Option<Timestamp>,
}

/// Something that was told, or is to be.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct DeliveryObject {
    /// The `webhook-id` of all its attempts.
    id: String,
    /// Absent for the webhook that a run names itself.
    endpoint_id: Option<String>,
    event: WebhookEvent,
    run_id: Option<String>,
    thread_id: Option<String>,
    status: DeliveryStatus,
    attempts: u32,
    /// When it happened.
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    /// When it is sent next; absent if it has ended.
    #[schema(value_type = Option<String>, format = DateTime)]
    due_at: Option<Timestamp>,
    /// The status that the receiver has answered last.
    response_status: Option<u16>,
    /// Why the last attempt has failed.
    error: Option<String>,
    /// When it was taken or given up.
    #[schema(value_type = Option<String>, format = DateTime)]
    settled_at: Option<Timestamp>,
}

impl From<Delivery> for DeliveryObject {
    fn from(delivery: Delivery) -> Self {
        Self {
            id: delivery.id.to_string(),
            endpoint_id: delivery.endpoint.map(|id| id.to_string()),
            event: delivery.event,
            run_id: delivery.run.map(|id| id.to_string()),
            thread_id: delivery.thread,
            status: delivery.status,
            attempts: delivery.attempts,
            created_at: delivery.at,
            due_at: (delivery.status == DeliveryStatus::Pending).then_some(delivery.due_at),
            response_status: delivery.answer,
            error: delivery.error,
            settled_at: delivery.settled_at,
        }
    }
}

/// A page of deliveries, youngest first.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct DeliveryPage {
    data: Vec<DeliveryObject>,
    /// Give it as `cursor` to get the next page; absent on the last.
    next_cursor: Option<String>,
}

/// Creates an endpoint. The answer holds its secret.
#[utoipa::path(post, path = "/v1/webhooks/endpoints", tag = "webhooks",
    request_body = CreateEndpointBody,
    params(("Idempotency-Key" = Option<String>, Header, description = "Makes the request safe to repeat for 24 hours.")),
    responses((status = 201, description = "`Location` names it.", body = EndpointObject),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn create(request: HttpRequest, payload: Payload, state: Data<ApiState>) -> Answer {
    let engine = state.engine()?;
    Query::of(&request).end("none")?;
    let (body, raw) = json::<CreateEndpointBody>(&request, payload, state.settings.max_body).await?;
    let key = idempotency_key(&request, "POST /v1/webhooks/endpoints", &raw)?;
    let CreateEndpointBody { url, events, agent, enabled } = body;
    check_news(&events, agent.as_deref())?;
    let wish = EndpointWish { url, events, agent, enabled };
    let (endpoint, _) = engine.create_endpoint(&caller(&request), wish, key).await?;
    let secret = engine.endpoint_secret(&endpoint)?;
    let location = format!("{}/{}", request.path().trim_end_matches('/'), endpoint.id);
    let mut response = HttpResponse::Created();
    response.insert_header((LOCATION, location)).insert_header((CACHE_CONTROL, "no-store"));
    Ok(response.json(EndpointObject::new(endpoint, Some(&secret))))
}

/// Lists endpoints, oldest first.
#[utoipa::path(get, path = "/v1/webhooks/endpoints", tag = "webhooks",
    params(
        ("limit" = Option<usize>, Query, description = "How many; 50 unless given."),
        ("cursor" = Option<String>, Query, description = "Where the page before ended.")),
    responses((status = 200, body = EndpointPage),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn list(request: HttpRequest, state: Data<ApiState>) -> Answer {
    let mut query = Query::of(&request);
    let limit = page_limit(&mut query, &state)?;
    let after = query.parsed("cursor", "the next_cursor of an earlier page")?;
    query.end("limit, cursor")?;
    let mut endpoints = state.engine()?.endpoints(&caller(&request), after, limit + 1).await?;
    let more = endpoints.len() > limit;
    endpoints.truncate(limit);
    let next_cursor = endpoints.last().filter(|_| more).map(|last| last.id.to_string());
    let data = endpoints.into_iter().map(|endpoint| EndpointObject::new(endpoint, None)).collect();
    Ok(HttpResponse::Ok().json(EndpointPage { data, next_cursor }))
}

/// One endpoint.
#[utoipa::path(get, path = "/v1/webhooks/endpoints/{id}", tag = "webhooks", params(("id" = String, Path)),
    responses((status = 200, body = EndpointObject),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn get(request: HttpRequest, id: Path<String>, state: Data<ApiState>) -> Answer {
    Query::of(&request).end("none")?;
    let endpoint = state.engine()?.endpoint(&caller(&request), uuid(&id)?).await?;
    Ok(HttpResponse::Ok().json(EndpointObject::new(endpoint, None)))
}

/// Changes an endpoint; what is left out stays as it is.
#[utoipa::path(patch, path = "/v1/webhooks/endpoints/{id}", tag = "webhooks", params(("id" = String, Path)),
    request_body = PatchEndpointBody,
    responses((status = 200, body = EndpointObject),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn patch(request: HttpRequest, id: Path<String>, payload: Payload, state: Data<ApiState>) -> Answer {
    let engine = state.engine()?;
    Query::of(&request).end("none")?;
    let (body, _) = json::<PatchEndpointBody>(&request, payload, state.settings.max_body).await?;
    let PatchEndpointBody { url, events, agent, enabled } = body;
    let (tenant, id) = (caller(&request), uuid(&id)?);
    if events.is_some() || agent.is_some() {
        let stored = engine.endpoint(&tenant, id).await?;
        let agent = agent.as_ref().unwrap_or(&stored.agent);
        check_news(events.as_ref().unwrap_or(&stored.events), agent.as_deref())?;
    }
    let patch = EndpointPatch { url, events, agent, enabled, still_at: None };
    let endpoint = engine.patch_endpoint(&tenant, id, patch).await?;
    Ok(HttpResponse::Ok().json(EndpointObject::new(endpoint, None)))
}

/// Removes an endpoint with all its deliveries.
#[utoipa::path(delete, path = "/v1/webhooks/endpoints/{id}", tag = "webhooks", params(("id" = String, Path)),
    responses((status = 204, description = "It is gone."),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn delete(request: HttpRequest, id: Path<String>, state: Data<ApiState>) -> Answer {
    Query::of(&request).end("none")?;
    state.engine()?.delete_endpoint(&caller(&request), uuid(&id)?).await?;
    Ok(HttpResponse::NoContent().finish())
}

/// Gives an endpoint a new secret. For 24 hours the one before it signs, too; one before that no longer does.
#[utoipa::path(post, path = "/v1/webhooks/endpoints/{id}/rotate", tag = "webhooks",
    params(("id" = String, Path),
        ("Idempotency-Key" = Option<String>, Header, description = "Makes the request safe to repeat for 24 hours.")),
    responses((status = 200, description = "With the new secret; a repeated request gets the endpoint as it is then.", body = EndpointObject),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn rotate(request: HttpRequest, id: Path<String>, payload: Payload, state: Data<ApiState>) -> Answer {
    let engine = state.engine()?;
    Query::of(&request).end("none")?;
    no_body(payload, &state).await?;
    let key = idempotency_key(&request, "POST /v1/webhooks/endpoints/{id}/rotate", &[])?;
    let endpoint = engine.rotate_endpoint(&caller(&request), uuid(&id)?, key).await?;
    let secret = engine.endpoint_secret(&endpoint)?;
    let mut response = HttpResponse::Ok();
    Ok(response.insert_header((CACHE_CONTROL, "no-store")).json(EndpointObject::new(endpoint, Some(&secret))))
}

/// What verifies the deliveries to an endpoint.
#[utoipa::path(get, path = "/v1/webhooks/endpoints/{id}/secret", tag = "webhooks", params(("id" = String, Path)),
    responses((status = 200, body = SecretObject),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn secret(request: HttpRequest, id: Path<String>, state: Data<ApiState>) -> Answer {
    let engine = state.engine()?;
    Query::of(&request).end("none")?;
    let endpoint = engine.endpoint(&caller(&request), uuid(&id)?).await?;
    let previous_until = endpoint.rotated_at.map(|at| at.after(ROTATION)).filter(|until| *until > engine.now());
    Ok(secret_answer(&engine.endpoint_secret(&endpoint)?, previous_until))
}

/// What verifies the webhooks that runs name themselves, in `webhook` of `POST /v1/runs`.
#[utoipa::path(get, path = "/v1/webhooks/secret", tag = "webhooks",
    responses((status = 200, body = SecretObject),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn tenant_secret(request: HttpRequest, state: Data<ApiState>) -> Answer {
    Query::of(&request).end("none")?;
    Ok(secret_answer(&state.engine()?.tenant_secret(&caller(&request))?, None))
}

/// An endpoint that is only for the runs of an agent is told something.
fn check_news(events: &[WebhookEvent], agent: Option<&str>) -> Result<(), Problem> {
    if agent.is_some() && !events.is_empty() && !events.iter().any(|event| event.is_of_run()) {
        return Err(Problem::field("events", "expected at least one event of runs: news of threads are of no agent"));
    }
    Ok(())
}

fn secret_answer(secret: &Secret, previous_until: Option<Timestamp>) -> HttpResponse {
    let secret = SecretObject { secret: secret.expose(), previous_until };
    HttpResponse::Ok().insert_header((CACHE_CONTROL, "no-store")).json(secret)
}

/// Lists deliveries, youngest first.
#[utoipa::path(get, path = "/v1/webhooks/deliveries", tag = "webhooks",
    params(
        ("endpoint" = Option<String>, Query, description = "Only those to this endpoint."),
        ("status" = Option<DeliveryStatus>, Query, description = "Only those that stand so."),
        ("limit" = Option<usize>, Query, description = "How many; 50 unless given."),
        ("cursor" = Option<String>, Query, description = "Where the page before ended.")),
    responses((status = 200, body = DeliveryPage),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn deliveries(request: HttpRequest, state: Data<ApiState>) -> Answer {
    let mut query = Query::of(&request);
    let limit = page_limit(&mut query, &state)?;
    let endpoint = query.parsed("endpoint", "a UUID")?;
    let expected = || {
        let all = DeliveryStatus::ALL.map(DeliveryStatus::as_str).join(", ");
        Problem::field("status", format!("expected one of {all}"))
    };
    let status = query.text("status").map(|text| DeliveryStatus::parse(&text).ok_or_else(expected)).transpose()?;
    let invalid = || Problem::field("cursor", "expected the next_cursor of an earlier page");
    let after = query.text("cursor").map(|cursor| parse_cursor(&cursor).ok_or_else(invalid)).transpose()?;
    query.end("endpoint, status, limit, cursor")?;
    let filter = DeliveryFilter { after, endpoint, status };
    let mut deliveries = state.engine()?.deliveries(&caller(&request), filter, limit + 1).await?;
    let more = deliveries.len() > limit;
    deliveries.truncate(limit);
    let next_cursor = deliveries.last().filter(|_| more).map(|last| format!("{}.{}", last.at.as_millis(), last.id));
    Ok(HttpResponse::Ok().json(DeliveryPage { data: deliveries.into_iter().map(Into::into).collect(), next_cursor }))
}

fn parse_cursor(text: &str) -> Option<(Timestamp, Uuid)> {
    let (at, id) = text.split_once('.')?;
    Some((Timestamp::from_millis(at.parse().ok()?), id.parse().ok()?))
}

/// Sends a delivery again that was taken or given up, under the same id. One that waits stays as it is.
#[utoipa::path(post, path = "/v1/webhooks/deliveries/{id}/redeliver", tag = "webhooks", params(("id" = String, Path)),
    responses((status = 202, body = DeliveryObject),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn redeliver(
    request: HttpRequest,
    id: Path<String>,
    payload: Payload,
    state: Data<ApiState>,
) -> Answer {
    Query::of(&request).end("none")?;
    no_body(payload, &state).await?;
    let delivery = state.engine()?.redeliver(&caller(&request), uuid(&id)?).await?;
    Ok(HttpResponse::Accepted().json(DeliveryObject::from(delivery)))
}

fn uuid(text: &str) -> Result<Uuid, Problem> {
    text.parse().map_err(|_| Problem::field("id", "expected a UUID"))
}
