//! An agent that is an HTTP service: a POST with what the attempt begins with, answered by a stream of messages or by
//! one.
//!
//! | file | owns |
//! | --- | --- |
//! | `mod.rs` | the options, the connection and the request |
//! | `answer.rs` | from the bytes of an answer to messages, with the bounds of time and size |
//!
//! Dropping an attempt closes its connection: that is how the service learns that it was cancelled.

mod answer;
#[cfg(test)]
mod tests;

use std::error::Error;
use std::time::Duration;

use async_trait::async_trait;
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Client, Response, Url, redirect};
use secrecy::{ExposeSecret, SecretString};
use tokio::time::{Instant, timeout_at};

use self::answer::Answering;
use super::masks::Masks;
use super::protocol::{Session, Talk, short, start};
use super::{Agent, AgentCard, AgentError, Answer, RunContext};
use crate::clock::{Clock, SystemClock};
use crate::run::Timestamp;

/// The most bytes of an error's body that are read, and the most characters that are shown.
const MAX_ERROR_BODY: usize = 64 * 1024;
const MAX_ERROR_SHOWN: usize = 500;

/// How long an error's body is waited for.
const ERROR_BODY_TIMEOUT: Duration = Duration::from_secs(5);

/// What is understood: a stream or one message.
const ACCEPTED: &str = "text/event-stream, application/json";

/// What a [`RemoteAgent`] is made of.
#[derive(Debug, Clone)]
pub struct RemoteAgentOptions {
    /// What it says of itself; its kind is `remote`.
    pub card: AgentCard,
    /// Where it is: http or https. Redirects are not followed, and no proxy is used.
    pub url: String,
    /// Headers of each request. Their values are shown nowhere.
    pub headers: Vec<(String, SecretString)>,
    /// Bounds the time to connect, TLS included.
    pub connect_timeout: Duration,
    /// Bounds the time from the request to the first event, or to the end of an answer that is no stream.
    pub first_event_timeout: Duration,
    /// Bounds the silence between two events; comments count.
    pub idle_timeout: Duration,
}

/// Options that no agent can be made of. Never contains a header's value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidRemote(String);

/// The agent.
pub struct RemoteAgent {
    options: RemoteAgentOptions,
    client: Client,
    url: Url,
    headers: HeaderMap,
    masks: Masks,
    /// As errors name it.
    who: String,
}

impl RemoteAgent {
    /// An agent that is a service; connects to nothing yet. For https the process has to have installed a rustls crypto
    /// provider before, and the machine has to have CA certificates.
    pub fn new(options: RemoteAgentOptions) -> Result<Self, InvalidRemote> {
        let url = Url::parse(&options.url).map_err(|error| InvalidRemote(format!("url is not a URL: {error}")))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(InvalidRemote("url is neither http nor https".to_owned()));
        }
        let mut headers = HeaderMap::new();
        for (name, value) in &options.headers {
            let invalid = |what| InvalidRemote(format!("headers: {name:?} {what} that no HTTP header can have"));
            let name = HeaderName::try_from(name.as_str()).map_err(|_| invalid("is a name"))?;
            let mut value = HeaderValue::try_from(value.expose_secret()).map_err(|_| invalid("has a value"))?;
            value.set_sensitive(true);
            headers.append(name, value);
        }
        let client = client(url.scheme() == "https", options.connect_timeout)
            .map_err(|error| InvalidRemote(format!("cannot make an HTTP client: {}", root(&error))))?;
        let who = format!("the service of agent {} at {}", options.card.name, url.origin().ascii_serialization());
        let masks = Masks::new(options.headers.iter().map(|(_, value)| value));
        Ok(Self { options, client, url, headers, masks, who })
    }

    async fn request(&self, start: Vec<u8>, key: &str, deadline: Instant) -> Result<Response, AgentError> {
        let request =
            self.client.post(self.url.clone()).header(CONTENT_TYPE, "application/json").header(ACCEPT, ACCEPTED);
        let request = request.header("idempotency-key", key).headers(self.headers.clone()).body(start);
        match timeout_at(deadline, request.send()).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) if error.is_connect() => {
                Err(self.transient("program_unreachable", &format!("cannot be reached: {}", root(&error))))
            }
            Ok(Err(error)) => Err(self.cut(&root(&error))),
            Err(_) => Err(self.no_first_event()),
        }
    }

    /// The answer has a status that is not 2xx.
    async fn refused(&self, mut response: Response) -> AgentError {
        let (mut body, deadline) = (Vec::new(), Instant::now() + ERROR_BODY_TIMEOUT);
        // The status says enough when its explanation does not arrive.
        while let Ok(Ok(Some(chunk))) = timeout_at(deadline, response.chunk()).await {
            let room = MAX_ERROR_BODY - body.len();
            body.extend_from_slice(&chunk[..chunk.len().min(room)]);
            if chunk.len() >= room {
                break;
            }
        }
        let said = short(self.masks.apply(&String::from_utf8_lossy(&body)).trim(), MAX_ERROR_SHOWN);
        let because = if said.is_empty() { said } else { format!(": {said}") };
        let status = response.status();
        let code = match status.as_u16() {
            408 => "program_timeout",
            429 => "program_rate_limited",
            425 | 500.. => "program_unavailable",
            300..=399 => {
                return self
                    .permanent("program_rejected", &format!("answered {status}, and redirects are not followed"));
            }
            _ => return self.permanent("program_rejected", &format!("answered {status}{because}")),
        };
        AgentError::Transient {
            code: code.to_owned(),
            message: format!("{} answered {status}{because}", self.who),
            retry_after: retry_after(response.headers()),
        }
    }

    fn no_first_event(&self) -> AgentError {
        let limit = humantime::format_duration(self.options.first_event_timeout);
        self.transient("program_timeout", &format!("answered nothing within first_event_timeout, {limit}"))
    }

    fn silent(&self) -> AgentError {
        let limit = humantime::format_duration(self.options.idle_timeout);
        self.transient("program_timeout", &format!("was silent in its answer for idle_timeout, {limit}"))
    }

    fn cut(&self, why: &str) -> AgentError {
        self.transient("program_cut", &format!("broke its answer off before complete or fail: {why}"))
    }

    fn transient(&self, code: &str, problem: &str) -> AgentError {
        AgentError::transient(code, self.masks.apply(&format!("{} {problem}", self.who)))
    }

    fn permanent(&self, code: &str, problem: &str) -> AgentError {
        AgentError::permanent(code, self.masks.apply(&format!("{} {problem}", self.who)))
    }
}

#[async_trait]
impl Agent for RemoteAgent {
    fn card(&self) -> AgentCard {
        AgentCard { kind: "remote".to_owned(), ..self.options.card.clone() }
    }

    async fn run(&self, context: RunContext) -> Result<Answer, AgentError> {
        let (start, key) = start(&context).await?;
        let deadline = Instant::now() + self.options.first_event_timeout;
        let response = self.request(start, &key, deadline).await?;
        if !response.status().is_success() {
            return Err(self.refused(response).await);
        }
        let session = Session::new(context, Talk::OneWay, self.masks.clone());
        Answering::new(self, response, deadline).hear(session).await
    }
}

/// Makes the HTTP client of one service.
fn client(tls: bool, connect_timeout: Duration) -> reqwest::Result<Client> {
    let builder = Client::builder()
        .user_agent(concat!("runcast/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(connect_timeout)
        // A redirect, or a proxy of the environment, would carry the run to a host that the configuration does not name.
        .redirect(redirect::Policy::none())
        .no_proxy()
        // A connection for each attempt: dropping it closes it, and nobody sends into one that is being closed.
        .pool_max_idle_per_host(0)
        .http1_only();
    // Without https nothing is verified: no need to load the machine's CA certificates, or to have any.
    if tls { builder.build() } else { builder.tls_certs_only([]).build() }
}

/// The innermost cause; what stands around it names the layers of the HTTP client.
fn root(error: &dyn Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

/// How long the service asks to be left alone: seconds, or an HTTP date (RFC 9110, 10.2.3), which is measured from the
/// answer's own, because clocks differ.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    let date = |text: &str| {
        let time = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok()?;
        Some(Timestamp::from_millis(time.as_millisecond()))
    };
    let wanted = text("retry-after")?;
    if let Ok(seconds) = wanted.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let sent = text("date").and_then(date).unwrap_or_else(|| SystemClock.now());
    Some(date(wanted)?.since(sent))
}
