//! The client of a Runcast server that the client commands share.

use std::error::Error as _;
use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use futures_util::StreamExt;
use reqwest::{Method, RequestBuilder, Response, StatusCode, Url};
use serde_json::Value;

use super::sse::Events;

/// How long a request that is no stream may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// A stream that is silent for so long is dead: servers send a comment once a minute at the least.
const SILENCE: Duration = Duration::from_secs(90);

/// Where the server is unless told otherwise.
const DEFAULT_URL: &str = "http://127.0.0.1:7070";

/// The flags that say which server.
#[derive(Debug, Args)]
pub(super) struct ServerFlags {
    /// Base URL of the server, such as http://127.0.0.1:7070 or https://example.org/agents; else the
    /// variable RUNCAST_URL, else http://127.0.0.1:7070.
    #[arg(long, value_name = "URL", global = true)]
    url: Option<String>,
    #[command(flatten)]
    key: KeyFlag,
}

/// The flag that says who calls.
#[derive(Debug, Clone, Default, Args)]
pub(super) struct KeyFlag {
    /// API key for the server; else the variable RUNCAST_API_KEY, which keeps it out of the list of
    /// processes.
    #[arg(long, value_name = "KEY", global = true)]
    key: Option<String>,
}

impl ServerFlags {
    /// The client of that server.
    pub(super) fn client(&self) -> Result<Client, ClientError> {
        let url = self.url.clone().or_else(|| variable("RUNCAST_URL"));
        Client::new(url.as_deref().unwrap_or(DEFAULT_URL), &self.key)
    }
}

impl KeyFlag {
    /// The key, if there is one.
    pub(super) fn get(&self) -> Option<String> {
        self.key.clone().or_else(|| variable("RUNCAST_API_KEY")).filter(|key| !key.is_empty())
    }
}

/// A variable of the environment, or of the file `.env` beneath it.
fn variable(name: &str) -> Option<String> {
    let of_file =
        || dotenvy::from_path_iter(".env").ok()?.flatten().find(|(key, _)| key == name).map(|(_, value)| value);
    std::env::var(name).ok().or_else(of_file).filter(|value| !value.is_empty())
}

/// Why the server gave no answer that could be used.
#[derive(Debug, Clone, thiserror::Error)]
pub(super) enum ClientError {
    /// The call makes no sense.
    #[error("{0}")]
    Call(String),
    /// There is no connection, or it broke.
    #[error("cannot reach {url}: {reason}")]
    Unreachable {
        /// The server.
        url: String,
        /// Why not.
        reason: String,
    },
    /// The server said no.
    #[error("{detail}")]
    Refused {
        /// Its HTTP status.
        status: StatusCode,
        /// Its words.
        detail: String,
    },
}

impl ClientError {
    /// The same request may work a little later.
    pub(super) fn may_pass(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Refused { status, .. } => status.is_server_error() || *status == StatusCode::TOO_MANY_REQUESTS,
            Self::Call(_) => false,
        }
    }

    /// Says it on standard error; the exit code for it.
    pub(super) fn tell(&self) -> ExitCode {
        eprintln!("runcast: {self}");
        ExitCode::from(2)
    }
}

/// A server. A cheap handle.
#[derive(Clone)]
pub(super) struct Client {
    http: reqwest::Client,
    base: String,
    key: Option<String>,
}

/// The parts of a base URL: scheme, host, port, prefix.
pub(super) fn base_url(url: &str) -> Result<Url, ClientError> {
    let wrong = || ClientError::Call(format!("--url: expected a URL such as {DEFAULT_URL}, got {url:?}"));
    let parsed = Url::parse(url).map_err(|_| wrong())?;
    let plain = parsed.username().is_empty() && parsed.password().is_none() && parsed.query().is_none();
    if matches!(parsed.scheme(), "http" | "https") && parsed.has_host() && plain { Ok(parsed) } else { Err(wrong()) }
}

impl Client {
    /// The server at `url`. Nothing is sent yet.
    pub(super) fn new(url: &str, key: &KeyFlag) -> Result<Self, ClientError> {
        let parsed = base_url(url)?;
        let host = parsed.host_str().unwrap_or_default();
        // A request that was sent on to somewhere else would not be the same one.
        let http = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none());
        let mut http = http.connect_timeout(Duration::from_secs(10)).read_timeout(SILENCE);
        if parsed.scheme() == "http" {
            // Without TLS there is no need for root certificates, which small containers do not have.
            let none = rustls::ClientConfig::builder().with_root_certificates(rustls::RootCertStore::empty());
            http = http.tls_backend_preconfigured(none.with_no_client_auth());
        }
        let ip = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
        if host == "localhost" || ip.is_ok_and(|ip| ip.is_loopback()) {
            http = http.no_proxy();
        }
        let http =
            http.build().map_err(|error| ClientError::Call(format!("cannot make an HTTP client: {}", root(&error))))?;
        Ok(Self { http, base: parsed.as_str().trim_end_matches('/').to_owned(), key: key.get() })
    }

    /// The server's base URL.
    pub(super) fn base(&self) -> &str {
        &self.base
    }

    /// `POST /v1/runs`; the run.
    pub(super) async fn create(&self, body: &Value) -> Result<Value, ClientError> {
        // Names the request, so that it counts once however often a proxy repeats it.
        let key = uuid::Uuid::now_v7().to_string();
        self.json(self.request(Method::POST, "/v1/runs").header("idempotency-key", key).json(body)).await
    }

    /// `GET /v1/runs/{id}`; the run.
    pub(super) async fn get(&self, id: &str) -> Result<Value, ClientError> {
        self.json(self.request(Method::GET, &format!("/v1/runs/{id}"))).await
    }

    /// `POST /v1/runs/{id}/cancel`; the run.
    pub(super) async fn cancel(&self, id: &str) -> Result<Value, ClientError> {
        self.json(self.request(Method::POST, &format!("/v1/runs/{id}/cancel"))).await
    }

    /// A request without a body; the JSON of the answer, null if it is empty.
    pub(super) async fn call(&self, method: Method, path: &str) -> Result<Value, ClientError> {
        let response = self.send(self.request(method, path).timeout(PATIENCE)).await?;
        let bytes = response.bytes().await.map_err(|error| self.unreachable(&error))?;
        if bytes.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&bytes).map_err(|_| self.foreign("the answer is not JSON"))
    }

    /// `GET` of a list; what is in its `data`.
    pub(super) async fn list(&self, path: &str, query: &[(&str, String)]) -> Result<Vec<Value>, ClientError> {
        let query = form_urlencoded::Serializer::new(String::new()).extend_pairs(query).finish();
        let mut page = self.json(self.request(Method::GET, &format!("{path}?{query}"))).await?;
        match page.get_mut("data").map(Value::take) {
            Some(Value::Array(data)) => Ok(data),
            _ => Err(self.foreign("the answer has no list in data")),
        }
    }

    /// `GET /v1/runs/{id}/stream`, after event number `after`; `None` if that was the final one.
    pub(super) async fn stream(&self, id: &str, after: u64) -> Result<Option<Events>, ClientError> {
        let request = self.request(Method::GET, &format!("/v1/runs/{id}/stream")).header("accept", "text/event-stream");
        let response = self.send(request.header("last-event-id", after)).await?;
        if response.status() == StatusCode::NO_CONTENT {
            return Ok(None);
        }
        let kind = response.headers().get("content-type").and_then(|value| value.to_str().ok()).unwrap_or_default();
        if !kind.starts_with("text/event-stream") {
            return Err(self.foreign("the answer is no event stream"));
        }
        let pieces = response.bytes_stream().map(|piece: reqwest::Result<Bytes>| piece.map_err(|error| root(&error)));
        Ok(Some(Events::new(pieces.boxed_local())))
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.base));
        match &self.key {
            Some(key) => request.bearer_auth(key),
            None => request,
        }
    }

    async fn json(&self, request: RequestBuilder) -> Result<Value, ClientError> {
        let bytes =
            self.send(request.timeout(PATIENCE)).await?.bytes().await.map_err(|error| self.unreachable(&error))?;
        serde_json::from_slice(&bytes).map_err(|_| self.foreign("the answer is not JSON"))
    }

    async fn send(&self, request: RequestBuilder) -> Result<Response, ClientError> {
        let response = request.send().await.map_err(|error| self.unreachable(&error))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body = tokio::time::timeout(PATIENCE, response.bytes()).await.ok().and_then(Result::ok).unwrap_or_default();
        let problem: Value = serde_json::from_slice(&body).unwrap_or_default();
        let detail = match (problem["detail"].as_str(), status) {
            (Some(detail), StatusCode::UNAUTHORIZED) => format!("{detail}; set RUNCAST_API_KEY, or give --key"),
            (Some(detail), _) => detail.to_owned(),
            (None, _) => format!("{} answered {status}; is it a runcast server?", self.base),
        };
        Err(ClientError::Refused { status, detail })
    }

    fn unreachable(&self, error: &reqwest::Error) -> ClientError {
        if error.is_builder() {
            return ClientError::Call(root(error));
        }
        let reason = if error.is_timeout() { "no answer in time".to_owned() } else { root(error) };
        ClientError::Unreachable { url: self.base.clone(), reason }
    }

    fn foreign(&self, what: &str) -> ClientError {
        ClientError::Call(format!("{}: {what}; is it a runcast server?", self.base))
    }
}

/// What lies at the bottom of an error, without the layers above it.
fn root(error: &reqwest::Error) -> String {
    let mut bottom = error.source();
    while let Some(below) = bottom.and_then(std::error::Error::source) {
        bottom = Some(below);
    }
    bottom.map_or_else(|| error.to_string(), ToString::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base_urls_have_a_scheme_and_no_query() {
        for url in ["http://127.0.0.1:7070", "https://example.org/agents/", "http://[::1]:1/x"] {
            assert!(base_url(url).is_ok(), "{url}");
        }
        for url in ["127.0.0.1:7070", "localhost:7070", "ftp://x", "http://", "http://u:p@x", "http://x/?a=1", ""] {
            assert!(base_url(url).is_err(), "{url}");
        }
    }
}
