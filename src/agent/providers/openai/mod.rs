//! The chat completions of OpenAI, which most providers and local servers speak too.
//!
//! | file | owns |
//! | --- | --- |
//! | `mod.rs` | the connection and the requests |
//! | `answer.rs` | from the bytes of an answer to its pieces, with the bounds of time and size |
//! | `faults.rs` | what goes wrong, in stable codes, without the key |

mod answer;
#[cfg(test)]
mod answer_tests;
mod faults;
#[cfg(test)]
mod tests;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::{StreamExt, TryStreamExt, stream};
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Client, RequestBuilder, Response, StatusCode, Url, redirect};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout_at};

use self::answer::Answer;
use self::faults::Who;
use super::{Chat, Pieces, Provider, Turn};
use crate::agent::AgentError;
use crate::run::Message;

/// Stands for the first model that the provider lists.
const AUTO: &str = "auto";

/// The most bytes of an answer that is not streamed, and of a list of models.
const MAX_BODY: usize = answer::MAX_TEXT;

/// The most bytes of an error's body that are read.
const MAX_ERROR_BODY: usize = 64 * 1024;

/// How long an error's body is waited for.
const ERROR_BODY_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a connection waits for its next request. Common local servers (uvicorn, Node) close theirs after
/// 5 s; a request sent into a connection that is being closed would cost an attempt, a new one costs less.
const POOL_IDLE: Duration = Duration::from_secs(4);

/// What an [`OpenAi`] is made of.
#[derive(Debug, Clone)]
pub struct OpenAiOptions {
    /// The provider's name, as agents write it before the slash of their model.
    pub name: String,
    /// What stands before `/chat/completions`; an http or https URL without user and query.
    pub base_url: String,
    /// Sent as a bearer token; without one, requests carry none.
    pub api_key: Option<SecretString>,
    /// Bounds the time to connect, TLS included.
    pub connect_timeout: Duration,
    /// Bounds the time from the request to the first token, connecting included.
    pub first_token_timeout: Duration,
    /// Bounds the silence between two tokens.
    pub idle_timeout: Duration,
}

/// Options that no provider can be made of. Never contains the key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidProvider(String);

/// A provider that speaks the protocol of OpenAI.
///
/// The model `auto` is the first that `GET /models` lists, asked for once; for local servers, which mostly
/// have one.
#[derive(Debug)]
pub struct OpenAi {
    client: Client,
    base_url: String,
    headers: HeaderMap,
    who: Arc<Who>,
    first_token_timeout: Duration,
    idle_timeout: Duration,
    /// OpenAI itself, whose newer models refuse `max_tokens`, whereas many others know nothing else.
    genuine: bool,
    first_model: OnceLock<String>,
}

impl OpenAi {
    /// Makes a provider; connects to nothing yet. For https the process has to have installed a rustls crypto
    /// provider before, and the machine has to have CA certificates.
    pub fn new(options: OpenAiOptions) -> Result<Self, InvalidProvider> {
        let OpenAiOptions { name, base_url, api_key, connect_timeout, first_token_timeout, idle_timeout } = options;
        let url = Url::parse(&base_url).map_err(|error| InvalidProvider(format!("base_url is not a URL: {error}")))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(InvalidProvider("base_url is neither http nor https".to_owned()));
        }
        let mut headers = HeaderMap::new();
        if let Some(key) = &api_key {
            let mut bearer = HeaderValue::try_from(format!("Bearer {}", key.expose_secret()))
                .map_err(|_| InvalidProvider("api_key has characters that no HTTP header can carry".to_owned()))?;
            bearer.set_sensitive(true);
            headers.insert(AUTHORIZATION, bearer);
        }
        let client = client(url.scheme() == "https", connect_timeout)
            .map_err(|error| InvalidProvider(format!("cannot make an HTTP client: {}", faults::root(&error))))?;
        Ok(Self {
            client,
            base_url: base_url.trim_end_matches('/').to_owned(),
            headers,
            genuine: url.host_str() == Some("api.openai.com"),
            who: Arc::new(Who::new(name, url.origin().ascii_serialization(), api_key)),
            first_token_timeout,
            idle_timeout,
            first_model: OnceLock::new(),
        })
    }

    async fn send(&self, request: RequestBuilder, deadline: Instant) -> Result<Response, AgentError> {
        match timeout_at(deadline, request.headers(self.headers.clone()).send()).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) if error.is_connect() => Err(self.who.unreachable(&error)),
            Ok(Err(error)) => Err(self.who.cut(faults::root(&error))),
            Err(_) => Err(self.who.no_first_token(self.first_token_timeout)),
        }
    }

    /// Reads a body up to `limit` bytes; the flag says that there was more.
    async fn body(
        &self,
        response: &mut Response,
        limit: usize,
        deadline: Instant,
    ) -> Result<(Vec<u8>, bool), AgentError> {
        let mut body = Vec::new();
        loop {
            match timeout_at(deadline, response.chunk()).await {
                Ok(Ok(None)) => return Ok((body, false)),
                Ok(Ok(Some(chunk))) => {
                    let room = limit - body.len();
                    body.extend_from_slice(&chunk[..chunk.len().min(room)]);
                    if chunk.len() > room {
                        return Ok((body, true));
                    }
                }
                Ok(Err(error)) => return Err(self.who.cut(faults::root(&error))),
                Err(_) => return Err(self.who.no_first_token(self.first_token_timeout)),
            }
        }
    }

    async fn refused(&self, mut response: Response, model: &str) -> AgentError {
        // The status says enough when its explanation does not arrive.
        let deadline = Instant::now() + ERROR_BODY_TIMEOUT;
        let body =
            self.body(&mut response, MAX_ERROR_BODY, deadline).await.map_or_else(|_| Vec::new(), |(body, _)| body);
        self.who.refused(response.status(), response.headers(), &body, model)
    }

    async fn whole(&self, response: &mut Response, deadline: Instant) -> Result<Vec<u8>, AgentError> {
        match self.body(response, MAX_BODY, deadline).await? {
            (body, false) => Ok(body),
            (_, true) => Err(self.who.too_large(MAX_BODY)),
        }
    }

    /// The model to ask for. Calls that come together may each ask the provider: a lock would let one slow
    /// answer delay them all.
    async fn model(&self, asked: &str) -> Result<String, AgentError> {
        if asked != AUTO {
            return Ok(asked.to_owned());
        }
        if let Some(model) = self.first_model.get() {
            return Ok(model.clone());
        }
        let deadline = Instant::now() + self.first_token_timeout;
        let mut response = self.send(self.client.get(format!("{}/models", self.base_url)), deadline).await?;
        if response.status() == StatusCode::NOT_FOUND {
            return Err(self.who.no_models());
        }
        if !response.status().is_success() {
            return Err(self.refused(response, AUTO).await);
        }
        let body = self.whole(&mut response, deadline).await?;
        let list: Models =
            serde_json::from_slice(&body).map_err(|_| self.who.bad_answer("its list of models is not one"))?;
        let first = list.data.into_iter().next().ok_or_else(|| self.who.no_models())?;
        Ok(self.first_model.get_or_init(|| first.id).clone())
    }
}

#[async_trait]
impl Provider for OpenAi {
    fn name(&self) -> &str {
        self.who.name()
    }

    async fn chat(&self, chat: Chat) -> Result<Pieces, AgentError> {
        let model = self.model(&chat.model).await?;
        let body = Body {
            model: &model,
            messages: said(&chat.turns),
            stream: true,
            stream_options: StreamOptions { include_usage: true },
            temperature: chat.temperature,
            max_tokens: chat.max_tokens.filter(|_| !self.genuine),
            max_completion_tokens: chat.max_tokens.filter(|_| self.genuine),
        };
        let deadline = Instant::now() + self.first_token_timeout;
        let request = self.client.post(format!("{}/chat/completions", self.base_url));
        let mut response = self.send(request.header(ACCEPT, russe::MEDIA_TYPE_STR).json(&body), deadline).await?;
        if !response.status().is_success() {
            return Err(self.refused(response, &model).await);
        }
        if is_event_stream(response.headers()) {
            let who = self.who.clone();
            let body = response.bytes_stream().map_err(|error| faults::root(&error)).boxed();
            return Ok(Answer::new(body, who, self.first_token_timeout, deadline, self.idle_timeout).pieces());
        }
        // Some servers and proxies do not stream whatever they are asked.
        let body = self.whole(&mut response, deadline).await?;
        Ok(stream::iter(answer::whole(&body, &self.who)?.into_iter().map(Ok)).boxed())
    }
}

/// Makes the HTTP client of one provider.
fn client(tls: bool, connect_timeout: Duration) -> reqwest::Result<Client> {
    let builder = Client::builder()
        .user_agent(concat!("runcast/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(connect_timeout)
        .pool_idle_timeout(POOL_IDLE)
        // A redirect would carry prompts to a host that the configuration does not name.
        .redirect(redirect::Policy::none())
        // So would HTTP_PROXY and its kin, which are there for other programs: even for a server on loopback.
        .no_proxy()
        // A connection for each call: dropping the call closes it, and a broken one takes no other call along.
        // HTTP/2 would put all calls into one connection, and those beyond its some 100 streams into a queue.
        .http1_only();
    // Without https nothing is verified: no need to load the machine's CA certificates, or to have any.
    if tls { builder.build() } else { builder.tls_certs_only([]).build() }
}

fn said(turns: &[Turn]) -> Vec<&Message> {
    let said = turns.iter().filter_map(|turn| match turn {
        Turn::Said(message) => Some(message),
        Turn::Called { .. } | Turn::Returned { .. } => None,
    });
    said.collect()
}

fn is_event_stream(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    kind.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case(russe::MEDIA_TYPE_STR)
}

#[derive(Serialize)]
struct Body<'a> {
    model: &'a str,
    messages: Vec<&'a Message>,
    stream: bool,
    stream_options: StreamOptions,
    #[serde(skip_serializing_if = "Option::is_none")]
    temperature: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_completion_tokens: Option<u32>,
}

#[derive(Serialize)]
struct StreamOptions {
    include_usage: bool,
}

#[derive(Deserialize)]
struct Models {
    data: Vec<Model>,
}

#[derive(Deserialize)]
struct Model {
    id: String,
}
