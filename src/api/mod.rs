//! The native HTTP API: thin handlers over the engine's handle. Knows no actor and no broker.

mod guard;
mod input;
mod node;
mod object;
mod openapi;
mod problem;
mod queues;
mod runs;
mod schedules;
mod strict;
mod thread_object;
mod threads;
mod webhooks;

use std::sync::OnceLock;
use std::time::Duration;

use actix_web::http::header::{self, HeaderValue};
use actix_web::middleware::from_fn;
use actix_web::web::{self, Data, ServiceConfig};
use actix_web::{HttpRequest, HttpResponse, ResponseError, Route};
use actix_web_lab::middleware::CatchPanic;
use parking_lot::RwLock;
use serde_json::value::{RawValue, to_raw_value};

use crate::engine::Engine;
use crate::store::Stored;
use problem::{Code, Problem};

pub use guard::{Access, ApiKey};
pub use node::ModelCard;

const REQUEST_ID: &str = "x-request-id";
const CORRELATION_ID: &str = "x-correlation-id";

/// Bounds of the API.
#[derive(Debug, Clone)]
pub struct ApiSettings {
    /// The largest body, in bytes.
    pub max_body: usize,
    /// The longest page of a list.
    pub max_page: usize,
    /// How long a stream may be silent before it carries a comment.
    pub heartbeat: Duration,
    /// Serve the page that shows the OpenAPI document.
    pub docs: bool,
    /// Runs are accepted and shown here; a worker alone answers only about itself.
    pub serves: bool,
    /// Clients are served at all.
    pub connections: bool,
    /// Who may call.
    pub access: Access,
    /// What `GET /v1/models` lists.
    pub models: Vec<ModelCard>,
}

/// What the handlers share. The engine comes later than the listener: health answers first.
pub(crate) struct ApiState {
    settings: ApiSettings,
    engine: OnceLock<Engine>,
    stage: RwLock<String>,
}

impl ApiState {
    pub(crate) fn new(settings: ApiSettings) -> Self {
        Self { settings, engine: OnceLock::new(), stage: RwLock::new("starting".to_owned()) }
    }

    /// From now on requests are served by `engine`.
    pub(crate) fn serve(&self, engine: Engine) {
        // Said once, at start; a second engine has no place here.
        self.engine.set(engine).unwrap_or_default();
    }

    /// What the node is busy with until then.
    pub(crate) fn at_stage(&self, stage: impl Into<String>) {
        *self.stage.write() = stage.into();
    }

    fn stage(&self) -> String {
        self.stage.read().clone()
    }

    fn engine(&self) -> Result<&Engine, Problem> {
        self.engine.get().ok_or_else(Problem::starting)
    }
}

/// A run as `GET /v1/runs/{id}` shows it, for whoever is not in the middle of a request.
pub(crate) fn run_document(stored: &Stored) -> Option<Box<RawValue>> {
    to_raw_value(&object::RunObject::new(stored, "/v1/runs")).ok()
}

/// Mounts all routes. They answer under whatever scope `config` belongs to.
pub(crate) fn configure(config: &mut ServiceConfig, state: Data<ApiState>) {
    let (docs, serves) = (state.settings.docs, state.settings.serves);
    let mut scope = web::scope("")
        .app_data(state)
        // From the inside out.
        .wrap(from_fn(guard::guard))
        .wrap(CatchPanic::default());
    for (path, route) in [
        ("/health", web::get().to(node::health)),
        ("/ready", web::get().to(node::ready)),
        ("/metrics", web::get().to(node::metrics)),
        ("/v1/nodes", web::get().to(node::nodes)),
    ] {
        scope = scope.service(web::resource(path).route(route).default_service(only("GET")));
    }
    if !serves {
        config.service(scope.default_service(web::to(no_route)));
        return;
    }
    scope = scope
        .service(web::resource("/v1/runs").get(runs::list).post(runs::create).default_service(only("GET, POST")))
        .service(
            web::resource("/v1/runs/{id}").get(runs::get).delete(runs::delete).default_service(only("GET, DELETE")),
        );
    for (path, route) in [
        ("/v1/runs/{id}/cancel", web::post().to(runs::cancel)),
        ("/v1/runs/{id}/retry", web::post().to(runs::retry)),
        ("/v1/runs/{id}/resume", web::post().to(runs::resume)),
        ("/v1/threads/{id}/handoff", web::post().to(threads::hand_off)),
        ("/v1/threads/{id}/release", web::post().to(threads::release)),
        ("/v1/queues/dead/purge", web::post().to(queues::purge)),
        ("/v1/queues/dead/{id}/requeue", web::post().to(queues::requeue)),
        ("/v1/webhooks/endpoints/{id}/rotate", web::post().to(webhooks::rotate)),
        ("/v1/webhooks/deliveries/{id}/redeliver", web::post().to(webhooks::redeliver)),
    ] {
        scope = scope.service(web::resource(path).route(route).default_service(only("POST")));
    }
    scope = scope
        .service(
            web::resource("/v1/schedules")
                .get(schedules::list)
                .post(schedules::create)
                .default_service(only("GET, POST")),
        )
        .service(
            web::resource("/v1/schedules/{id}")
                .get(schedules::get)
                .patch(schedules::change)
                .delete(schedules::delete)
                .default_service(only("GET, PATCH, DELETE")),
        )
        .service(
            web::resource("/v1/threads").get(threads::list).post(threads::create).default_service(only("GET, POST")),
        )
        .service(
            web::resource("/v1/threads/{id}")
                .get(threads::get)
                .patch(threads::patch)
                .delete(threads::delete)
                .default_service(only("GET, PATCH, DELETE")),
        )
        .service(
            web::resource("/v1/threads/{id}/messages")
                .get(threads::messages)
                .post(threads::send)
                .default_service(only("GET, POST")),
        );
    scope = scope.service(
        web::resource("/v1/queues/dead/{id}")
            .get(queues::get)
            .delete(queues::discard)
            .default_service(only("GET, DELETE")),
    );
    scope = scope
        .service(
            web::resource("/v1/webhooks/endpoints")
                .get(webhooks::list)
                .post(webhooks::create)
                .default_service(only("GET, POST")),
        )
        .service(
            web::resource("/v1/webhooks/endpoints/{id}")
                .get(webhooks::get)
                .patch(webhooks::patch)
                .delete(webhooks::delete)
                .default_service(only("GET, PATCH, DELETE")),
        );
    for (path, route) in [
        ("/v1/runs/{id}/stream", web::get().to(runs::stream)),
        ("/v1/runs/{id}/events", web::get().to(runs::events)),
        ("/v1/runs/{id}/wait", web::get().to(runs::wait)),
        ("/v1/threads/{id}/stream", web::get().to(threads::stream)),
        ("/v1/queues", web::get().to(queues::depths)),
        ("/v1/queues/dead", web::get().to(queues::list)),
        ("/v1/webhooks/endpoints/{id}/secret", web::get().to(webhooks::secret)),
        ("/v1/webhooks/secret", web::get().to(webhooks::tenant_secret)),
        ("/v1/webhooks/deliveries", web::get().to(webhooks::deliveries)),
        ("/v1/agents", web::get().to(node::agents)),
        ("/v1/models", web::get().to(node::models)),
        ("/openapi.json", web::get().to(openapi::document)),
    ] {
        scope = scope.service(web::resource(path).route(route).default_service(only("GET")));
    }
    if docs {
        scope = scope.service(web::redirect("/docs", "docs/")).service(openapi::page());
    }
    config.service(scope.default_service(web::to(no_route)));
}

/// Refuses the methods that a route does not take.
fn only(allowed: &'static str) -> Route {
    web::to(move |request: HttpRequest| {
        let detail = format!("{} is not possible here, only {allowed}", request.method());
        let mut response = Problem::new(Code::MethodNotAllowed, detail).error_response();
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allowed));
        std::future::ready(response)
    })
}

async fn no_route() -> HttpResponse {
    Problem::new(Code::NotFound, "there is no such route; GET /openapi.json lists them").error_response()
}
