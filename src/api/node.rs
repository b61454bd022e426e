//! The routes about the node itself: what it can run, and whether it can.

use std::collections::BTreeMap;
use std::time::Duration;

use actix_web::HttpResponse;
use actix_web::web::Data;
use serde::Serialize;
use utoipa::ToSchema;

use super::ApiState;
use super::problem::Problem;
use crate::agent::AgentCard;
use crate::engine::{NodeCard, Readiness};

/// How long the parts may take to say how they are.
const PATIENCE: Duration = Duration::from_secs(2);

/// How the node is.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Health {
    /// `ok`, or `degraded` while a part is missing.
    status: &'static str,
    /// Each part: `ok`, or what is wrong with it.
    parts: BTreeMap<&'static str, String>,
    /// The agents whose fallbacks answer in place of their models, and why.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    fallbacks: BTreeMap<String, String>,
    version: &'static str,
}

/// The agents of the node.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct AgentList {
    data: Vec<AgentCard>,
}

/// A model that agents can use.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ModelCard {
    /// `provider/model`.
    pub id: String,
    /// The provider's name.
    pub provider: String,
    /// Its provider has a key, or needs none.
    pub ready: bool,
    /// What is missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub missing: Option<String>,
}

/// The models.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ModelList {
    data: Vec<ModelCard>,
}

async fn readiness(state: &ApiState) -> Readiness {
    let one =
        |part, problem: String| Readiness { parts: BTreeMap::from([(part, Err(problem))]), fallbacks: BTreeMap::new() };
    match state.engine.get() {
        None => one("start", state.stage()),
        Some(engine) => match tokio::time::timeout(PATIENCE, engine.readiness()).await {
            Ok(readiness) => readiness,
            Err(_) => one("store", "does not answer".to_owned()),
        },
    }
}

fn health_of(readiness: &Readiness) -> Health {
    let say = |result: &Result<(), String>| result.clone().err().unwrap_or_else(|| "ok".to_owned());
    Health {
        status: if readiness.is_ready() { "ok" } else { "degraded" },
        parts: readiness.parts.iter().map(|(part, result)| (*part, say(result))).collect(),
        fallbacks: readiness.fallbacks.clone(),
        version: env!("CARGO_PKG_VERSION"),
    }
}

/// 200 whenever the process is up; the body says how it is.
#[utoipa::path(get, path = "/health", tag = "node", responses((status = 200, body = Health)))]
pub(super) async fn health(state: Data<ApiState>) -> HttpResponse {
    HttpResponse::Ok().json(health_of(&readiness(&state).await))
}

/// 200 only when the node can do its work.
#[utoipa::path(get, path = "/ready", tag = "node",
    responses((status = 200, body = Health), (status = 503, description = "What is missing.", body = Health)))]
pub(super) async fn ready(state: Data<ApiState>) -> HttpResponse {
    let readiness = readiness(&state).await;
    let mut response = if readiness.is_ready() { HttpResponse::Ok() } else { HttpResponse::ServiceUnavailable() };
    response.json(health_of(&readiness))
}

/// Prometheus text.
#[utoipa::path(get, path = "/metrics", tag = "node", responses((status = 200, content_type = "text/plain", body = String)))]
pub(super) async fn metrics(state: Data<ApiState>) -> Result<HttpResponse, Problem> {
    let engine = state.engine()?;
    // Gauges of a store that does not answer stay as they were.
    tokio::time::timeout(PATIENCE, engine.gauge()).await.unwrap_or_default();
    let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(HttpResponse::Ok().content_type(content_type).body(engine.metrics().render()))
}

/// The nodes that are there.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct NodeList {
    data: Vec<NodeCard>,
}

/// Which nodes there are, what they run, and whether they agree.
#[utoipa::path(get, path = "/v1/nodes", tag = "node", responses((status = 200, body = NodeList)))]
pub(super) async fn nodes(state: Data<ApiState>) -> Result<HttpResponse, Problem> {
    Ok(HttpResponse::Ok().json(NodeList { data: state.engine()?.nodes() }))
}

/// What can be run here.
#[utoipa::path(get, path = "/v1/agents", tag = "node", responses((status = 200, body = AgentList)))]
pub(super) async fn agents(state: Data<ApiState>) -> Result<HttpResponse, Problem> {
    Ok(HttpResponse::Ok().json(AgentList { data: state.engine()?.agents().cloned().collect() }))
}

/// Which models there are, and which of them have a key.
#[utoipa::path(get, path = "/v1/models", tag = "node", responses((status = 200, body = ModelList)))]
pub(super) async fn models(state: Data<ApiState>) -> HttpResponse {
    HttpResponse::Ok().json(ModelList { data: state.settings.models.clone() })
}
