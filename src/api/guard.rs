//! What every request passes: its id, its caller, its place in the log and the metrics.

use actix_web::body::MessageBody;
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::header::{self, HeaderName, HeaderValue};
use actix_web::middleware::Next;
use actix_web::web::Data;
use actix_web::{HttpMessage, HttpRequest, ResponseError};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use uuid::Uuid;

use super::input::token_header;
use super::problem::{Code, Problem};
use super::{ApiState, CORRELATION_ID, REQUEST_ID};
use crate::run::Tenant;

/// Who may call.
#[derive(Debug, Clone, Default)]
pub struct Access {
    /// The API keys; empty: none is needed, and all requests are the default tenant's.
    pub keys: Vec<ApiKey>,
    /// Only requests to loopback host names are answered, so that no web page can reach a node without
    /// keys by a name that it lets point to this machine.
    pub loopback_hosts_only: bool,
}

/// An API key, and whose it is.
#[derive(Debug, Clone)]
pub struct ApiKey {
    /// SHA-256 of the key.
    pub hash: [u8; 32],
    /// The tenant that requests with it are made by.
    pub tenant: Tenant,
}

/// The routes that need no key: a platform's probes have none.
const OPEN: [&str; 2] = ["/health", "/ready"];

fn is_open(request: &ServiceRequest) -> bool {
    // The pattern of the route, not the path: the last part of that may be an id somebody made up.
    request.match_pattern().is_some_and(|pattern| OPEN.iter().any(|open| pattern.ends_with(open)))
}

/// The routes that serve clients, and not the operation of the node.
fn is_for_clients(request: &ServiceRequest) -> bool {
    request.match_pattern().is_some_and(|pattern| pattern.contains("/v1/") && !pattern.ends_with("/v1/nodes"))
}

/// The routes that tell of all tenants: only the default one, which operates the node, may use them.
fn is_for_operators(request: &ServiceRequest) -> bool {
    request.match_pattern().is_some_and(|pattern| {
        pattern.contains("/v1/queues") || ["/v1/nodes", "/metrics"].iter().any(|route| pattern.ends_with(route))
    })
}

/// The host that the client asked for. What a proxy says of it, or a page makes it say, does not count.
fn host(request: &ServiceRequest) -> &str {
    let header = request.headers().get(header::HOST).and_then(|value| value.to_str().ok());
    header.or(request.uri().host()).unwrap_or_default()
}

/// The tenant that makes the request.
pub(super) fn caller(request: &HttpRequest) -> Tenant {
    request.extensions().get::<Tenant>().cloned().unwrap_or_default()
}

/// The middleware.
pub(super) async fn guard(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<impl MessageBody>, actix_web::Error> {
    let id = token_header(request.request(), REQUEST_ID).unwrap_or_else(|| Uuid::now_v7().to_string());
    let correlation_id = token_header(request.request(), CORRELATION_ID);
    let state = request.app_data::<Data<ApiState>>().cloned();
    let admitted = match &state {
        Some(state) => admit(&request, &state.settings.access).and_then(|tenant| {
            let disabled = !state.settings.connections && is_for_clients(&request);
            if disabled { Err(Problem::disabled()) } else { Ok(tenant) }
        }),
        None => Ok(Tenant::default()),
    };
    let mut response = match admitted {
        Err(problem) => request.into_response(problem.error_response()).map_into_right_body(),
        Ok(tenant) => {
            request.extensions_mut().insert(tenant);
            next.call(request).await?.map_into_left_body()
        }
    };
    let status = response.status();
    let pattern = response.request().match_pattern();
    let route = pattern.as_deref().unwrap_or("none");
    if let Some(engine) = state.as_ref().and_then(|state| state.engine().ok()) {
        engine.metrics().answered(route, status.as_u16());
    }
    let method = response.request().method().as_str();
    if status.is_server_error() && status.as_u16() == 500 {
        tracing::error!(request_id = %id, correlation_id, method, route, status = status.as_u16(), "request failed");
    } else {
        tracing::debug!(request_id = %id, correlation_id, method, route, status = status.as_u16(), "request answered");
    }
    let headers = response.headers_mut();
    for (name, value) in [(REQUEST_ID, Some(id)), (CORRELATION_ID, correlation_id)] {
        if let Some(value) = value.and_then(|value| HeaderValue::try_from(value).ok()) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
    Ok(response)
}

/// Whose the request is.
fn admit(request: &ServiceRequest, access: &Access) -> Result<Tenant, Problem> {
    if access.loopback_hosts_only && !is_loopback(host(request)) {
        let detail = "without API keys only requests to localhost, 127.0.0.1 or [::1] are answered";
        return Err(Problem::new(Code::ForbiddenHost, detail));
    }
    if access.keys.is_empty() || is_open(request) {
        return Ok(Tenant::default());
    }
    let hash = presented_key(request).map(|key| <[u8; 32]>::from(Sha256::digest(key)));
    // Each is compared, in constant time, so that neither the place nor a prefix shows.
    let known = hash.and_then(|hash| {
        access.keys.iter().fold(None, |known, key| if bool::from(key.hash.ct_eq(&hash)) { Some(key) } else { known })
    });
    let unauthorized = "expected an API key, as `Authorization: Bearer` or `x-api-key`";
    let key = known.ok_or_else(|| Problem::new(Code::Unauthorized, unauthorized))?;
    if key.tenant != Tenant::default() && is_for_operators(request) {
        let detail = "this tells of all tenants, and is for keys of server.api_keys";
        return Err(Problem::new(Code::OperatorsOnly, detail));
    }
    Ok(key.tenant.clone())
}

fn presented_key(request: &ServiceRequest) -> Option<&[u8]> {
    let headers = request.headers();
    match headers.get(header::AUTHORIZATION) {
        Some(value) => value.as_bytes().strip_prefix(b"Bearer "),
        None => headers.get("x-api-key").map(HeaderValue::as_bytes),
    }
}

fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    name.eq_ignore_ascii_case("localhost") || name.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::is_loopback;

    #[test]
    fn only_loopback_names_count_as_such() {
        for host in ["localhost", "LOCALHOST:7070", "127.0.0.1:7070", "127.8.9.1", "[::1]:7070", "[::1]"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:7070",
            "localhost.evil.example",
            "10.0.0.1",
            "[::2]:1",
            "",
            "127.0.0.1.evil.example",
        ] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
