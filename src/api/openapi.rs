//! The OpenAPI document, made from the code, and the page to read it.

use actix_web::{HttpRequest, HttpResponse};
use utoipa::OpenApi;
use utoipa_swagger_ui::{Config, SwaggerUi};

use super::{node, object, problem, queues, runs, schedules, threads, webhooks};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Runcast",
        description = "Starts AI-agent runs over HTTP, streams their tokens over SSE, and never loses one."
    ),
    paths(
        runs::create,
        runs::list,
        runs::get,
        runs::delete,
        runs::stream,
        runs::events,
        runs::wait,
        runs::cancel,
        runs::retry,
        schedules::create,
        schedules::list,
        schedules::get,
        schedules::change,
        schedules::delete,
        runs::resume,
        threads::create,
        threads::list,
        threads::get,
        threads::patch,
        threads::delete,
        threads::send,
        threads::messages,
        threads::hand_off,
        threads::release,
        threads::stream,
        queues::depths,
        queues::list,
        queues::get,
        queues::discard,
        queues::requeue,
        queues::purge,
        webhooks::create,
        webhooks::list,
        webhooks::get,
        webhooks::patch,
        webhooks::delete,
        webhooks::rotate,
        webhooks::secret,
        webhooks::tenant_secret,
        webhooks::deliveries,
        webhooks::redeliver,
        node::nodes,
        node::agents,
        node::models,
        node::health,
        node::ready,
        node::metrics,
    ),
    components(schemas(problem::Problem, object::CreateRunBody))
)]
struct Document;

/// The document. Its server is the prefix that the API is mounted under.
pub(super) async fn document(request: HttpRequest) -> HttpResponse {
    let prefix = request.path().strip_suffix("/openapi.json").unwrap_or_default();
    let mut document = Document::openapi();
    if !prefix.is_empty() {
        document.servers = Some(vec![utoipa::openapi::Server::new(prefix)]);
    }
    HttpResponse::Ok().json(document)
}

/// The page. It asks for the document beside it, so it works under any prefix.
pub(super) fn page() -> SwaggerUi {
    SwaggerUi::new("/docs/{_:.*}").config(Config::from("../openapi.json"))
}
