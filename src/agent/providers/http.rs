//! A provider that is asked over HTTP, whatever its protocol: the connection, the limits, and what is refused.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::{StreamExt, TryStreamExt, stream};
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Client, RequestBuilder, Response, StatusCode, Url, redirect};
use secrecy::{ExposeSecret, SecretString};
use tokio::time::{Instant, timeout_at};

use super::answer::{self, Answer, Decoder};
use super::asked::{Request, Unfit};
use super::faults::{self, Who};
use super::{Chat, Piece, Pieces, Provider, Timeouts};
use crate::agent::AgentError;
use crate::run::Price;

/// Stands for the first model that the provider lists.
pub const AUTO: &str = "auto";

/// The most bytes of an answer that is not streamed, and of a list of models.
const MAX_BODY: usize = answer::MAX_TEXT;

/// The most bytes of an error's body that are read.
const MAX_ERROR_BODY: usize = 64 * 1024;

/// How long an error's body is waited for.
const ERROR_BODY_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a connection waits for its next request. Common local servers (uvicorn, Node) close theirs after
/// 5 s; a request sent into a connection that is being closed would cost an attempt, a new one costs less.
const POOL_IDLE: Duration = Duration::from_secs(4);

/// What an [`HttpProvider`] is made of.
#[derive(Debug, Clone)]
pub struct ProviderOptions {
    /// The provider's name, as agents write it before the slash of their model.
    pub name: String,
    /// What stands before the paths of its protocol; an http or https URL without user and query.
    pub base_url: String,
    /// Sent in the header of the protocol, never in a URL; without one, requests carry none.
    pub api_key: Option<SecretString>,
    /// How long its answers may take.
    pub timeouts: Timeouts,
    /// What its models cost.
    pub prices: BTreeMap<String, Price>,
}

/// Options that no provider can be made of. Never contains the key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidProvider(String);

/// A protocol: how a chat is asked, and how its answer is understood.
pub(super) trait Protocol: fmt::Debug + Send + Sync {
    /// The header that carries the key.
    fn key(&self, key: &str) -> (HeaderName, String);

    /// What every request carries besides.
    fn headers(&self) -> HeaderMap {
        HeaderMap::new()
    }

    /// The models in a list of models; `None` when it is none.
    fn models(&self, list: &[u8]) -> Option<Vec<String>>;

    /// The request for an answer of `model`, to be streamed.
    fn ask(&self, chat: &Chat, model: &str) -> Result<Request, Unfit>;

    /// What understands one answer.
    fn decoder(&self) -> Box<dyn Decoder>;
}

/// A provider that is asked over HTTP.
///
/// The model `auto` is the first that its list of models has, asked for once; for local servers, which mostly have
/// one.
#[derive(Debug)]
pub struct HttpProvider {
    protocol: Box<dyn Protocol>,
    client: Client,
    base_url: String,
    headers: HeaderMap,
    who: Arc<Who>,
    timeouts: Timeouts,
    prices: BTreeMap<String, Price>,
    first_model: OnceLock<String>,
}

impl HttpProvider {
    /// Makes a provider; connects to nothing yet. For https the process has to have installed a rustls crypto
    /// provider before, and the machine has to have CA certificates.
    pub(super) fn new<P: Protocol + 'static>(
        options: ProviderOptions,
        protocol: impl FnOnce(&Url) -> P,
    ) -> Result<Self, InvalidProvider> {
        let ProviderOptions { name, base_url, api_key, timeouts, prices } = options;
        let url = Url::parse(&base_url).map_err(|error| InvalidProvider(format!("base_url is not a URL: {error}")))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(InvalidProvider("base_url is neither http nor https".to_owned()));
        }
        let protocol = protocol(&url);
        let mut headers = protocol.headers();
        if let Some(key) = &api_key {
            let (header, text) = protocol.key(key.expose_secret());
            let mut value = HeaderValue::try_from(text)
                .map_err(|_| InvalidProvider("api_key has characters that no HTTP header can carry".to_owned()))?;
            value.set_sensitive(true);
            headers.insert(header, value);
        }
        let client = client(url.scheme() == "https", timeouts.connect)
            .map_err(|error| InvalidProvider(format!("cannot make an HTTP client: {}", faults::root(&error))))?;
        Ok(Self {
            protocol: Box::new(protocol),
            client,
            base_url: base_url.trim_end_matches('/').to_owned(),
            headers,
            who: Arc::new(Who::new(name, url.origin().ascii_serialization(), api_key)),
            timeouts,
            prices,
            first_model: OnceLock::new(),
        })
    }

    async fn send(&self, request: RequestBuilder, deadline: Instant) -> Result<Response, AgentError> {
        match timeout_at(deadline, request.headers(self.headers.clone()).send()).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) if error.is_connect() => Err(self.who.unreachable(&error)),
            Ok(Err(error)) => Err(self.who.cut(faults::root(&error))),
            Err(_) => Err(self.late()),
        }
    }

    /// Nothing came before the first token was due.
    fn late(&self) -> AgentError {
        let Timeouts { first_token, total, .. } = self.timeouts;
        if total < first_token { self.who.too_long(total) } else { self.who.no_first_token(first_token) }
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
                Err(_) => return Err(self.late()),
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
    async fn model(&self, asked: &str, deadline: Instant) -> Result<String, AgentError> {
        if asked != AUTO {
            return Ok(asked.to_owned());
        }
        if let Some(model) = self.first_model.get() {
            return Ok(model.clone());
        }
        let mut response = self.send(self.client.get(format!("{}/models", self.base_url)), deadline).await?;
        if response.status() == StatusCode::NOT_FOUND {
            return Err(self.who.no_models());
        }
        if !response.status().is_success() {
            return Err(self.refused(response, AUTO).await);
        }
        let body = self.whole(&mut response, deadline).await?;
        let models = self.protocol.models(&body).ok_or_else(|| self.who.bad_answer("its list of models is not one"))?;
        let first = models.into_iter().next().ok_or_else(|| self.who.no_models())?;
        Ok(self.first_model.get_or_init(|| first).clone())
    }
}

#[async_trait]
impl Provider for HttpProvider {
    fn name(&self) -> &str {
        self.who.name()
    }

    async fn chat(&self, chat: Chat) -> Result<Pieces, AgentError> {
        if let Some(error) = self.who.lacks_key() {
            return Err(error);
        }
        let asked = Instant::now();
        let deadline = asked + self.timeouts.first_token.min(self.timeouts.total);
        let model = self.model(&chat.model, deadline).await?;
        let Request { path, body } = self.protocol.ask(&chat, &model).map_err(|unfit| self.who.unfit(&unfit))?;
        let request = self.client.post(format!("{}{path}", self.base_url));
        let mut response = self.send(request.header(ACCEPT, russe::MEDIA_TYPE_STR).json(&body), deadline).await?;
        if !response.status().is_success() {
            return Err(self.refused(response, &model).await);
        }
        let price = self.prices.get(&model).copied();
        let first = Piece::Model { name: format!("{}/{model}", self.name()), price };
        let decoder = self.protocol.decoder();
        if is_event_stream(response.headers()) {
            let body = response.bytes_stream().map_err(|error| faults::root(&error)).boxed();
            return Ok(Answer::new(body, decoder, first, self.who.clone(), self.timeouts, asked).pieces());
        }
        // Some servers and proxies do not stream whatever they are asked.
        let body = self.whole(&mut response, deadline).await?;
        Ok(stream::iter(answer::whole(&body, decoder, first, &self.who)?.into_iter().map(Ok)).boxed())
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

fn is_event_stream(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    kind.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case(russe::MEDIA_TYPE_STR)
}
