//! Endpoints that the configuration declares as tools. Host, method and headers are the operator's; a model chooses the
//! arguments alone, and its calls go through the guard of [`net`](crate::net).

mod template;

use std::collections::BTreeSet;
use std::time::Duration;

use async_trait::async_trait;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Map, Value};

use super::super::providers::ToolCard;
use super::{Call, Tool, ToolError, ToolOutput};
use crate::agent::masks::Masks;
use crate::net::guard::Guard;
use crate::net::{CallError, Caller};

pub use template::{InvalidTemplate, UrlTemplate};

/// The longest that connecting may take, however long the whole call may.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Headers that are no declaration's to set: they belong to the connection, or to Runcast.
const RESERVED: [&str; 6] =
    ["connection", "content-length", "content-type", "host", "idempotency-key", "transfer-encoding"];

/// How an endpoint is called, read and checked. Shows no value of a header.
#[derive(Debug, Clone)]
pub struct HttpRequest {
    method: Method,
    url: UrlTemplate,
    headers: HeaderMap,
    /// What of the headers is shown nowhere, although some endpoints repeat it.
    masks: Masks,
    body: Option<Value>,
    /// The names of the arguments.
    arguments: BTreeSet<String>,
}

/// What of a declaration makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {text}")]
pub struct InvalidRequest {
    /// The key of the declaration.
    pub key: &'static str,
    /// What is wrong with it; shows no value of a header.
    pub text: String,
}

impl HttpRequest {
    /// Reads how an endpoint is called.
    ///
    /// # Errors
    /// Says which part makes no sense.
    pub fn new(
        method: &str,
        url: &str,
        headers: &[(String, SecretString)],
        body: Option<&Value>,
        parameters: &Map<String, Value>,
    ) -> Result<Self, InvalidRequest> {
        let invalid = |key, text| InvalidRequest { key, text };
        let method = Method::from_bytes(method.as_bytes()).map_err(|error| invalid("method", error.to_string()))?;
        let url = UrlTemplate::parse(url).map_err(|error| invalid("url", error.to_string()))?;
        if parameters.get("type").and_then(Value::as_str) != Some("object") {
            return Err(invalid("parameters", "expected a JSON Schema of type object".to_owned()));
        }
        jsonschema::validator_for(&Value::Object(parameters.clone()))
            .map_err(|error| invalid("parameters", format!("expected a JSON Schema: {error}")))?;
        let properties = parameters.get("properties").and_then(Value::as_object);
        let arguments: BTreeSet<String> = properties.into_iter().flat_map(Map::keys).cloned().collect();
        if let Some(name) = url.arguments().into_iter().find(|name| !arguments.contains(*name)) {
            return Err(invalid("url", format!("expected arguments that are properties of parameters, got {name}")));
        }
        let in_url = |name: &&String| url.arguments().contains(name.as_str());
        let elsewhere = arguments.iter().find(|name| !in_url(name));
        let bodiless = body.is_none() && (method == Method::GET || method == Method::DELETE);
        if let Some(name) = elsewhere.filter(|_| bodiless) {
            let text =
                format!("expected {{{name}}} in it: {method} has no body for the arguments that it does not name");
            return Err(invalid("url", text));
        }
        if body.is_some() && method == Method::GET {
            return Err(invalid("body", "makes no sense for method GET".to_owned()));
        }
        let mut read = HeaderMap::new();
        for (name, value) in headers {
            let (name, value) = header(name, value).map_err(|text| invalid("headers", text))?;
            read.append(name, value);
        }
        let masks = Masks::new(headers.iter().map(|(_, value)| value));
        Ok(Self { method, url, headers: read, masks, body: body.cloned(), arguments })
    }

    /// The request of one call.
    fn fill(&self, caller: &Caller, arguments: &Map<String, Value>, key: &str) -> Result<RequestBuilder, ToolError> {
        let url = self.url.fill(arguments).map_err(ToolError::Permanent)?;
        let mut request = caller.request(self.method.clone(), &url)?.headers(self.headers.clone());
        if self.method == Method::GET {
            return Ok(request);
        }
        request = request.header("idempotency-key", key);
        let body = match &self.body {
            Some(template) => {
                let known = self.arguments.iter().map(String::as_str).collect();
                template::fill_body(template, &known, arguments).unwrap_or_default()
            }
            None if self.method == Method::DELETE => return Ok(request),
            None => {
                let in_url = self.url.arguments();
                let others = arguments.iter().filter(|(name, _)| !in_url.contains(name.as_str()));
                Value::Object(others.map(|(name, value)| (name.clone(), value.clone())).collect())
            }
        };
        Ok(request.header(CONTENT_TYPE, "application/json").body(body.to_string()))
    }
}

/// Reads a header; the error shows its name alone.
fn header(name: &str, value: &SecretString) -> Result<(HeaderName, HeaderValue), String> {
    let read =
        HeaderName::from_bytes(name.as_bytes()).map_err(|_| format!("expected the name of a header, got {name:?}"))?;
    if RESERVED.contains(&read.as_str()) {
        return Err(format!("the header {read} cannot be set"));
    }
    let mut value = HeaderValue::from_str(value.expose_secret())
        .map_err(|_| format!("the value of the header {read} holds characters that no header can"))?;
    value.set_sensitive(true);
    Ok((read, value))
}

/// A declared endpoint.
pub struct HttpTool {
    card: ToolCard,
    request: HttpRequest,
    caller: Caller,
    /// More of an answer is not read.
    max_output: usize,
}

impl HttpTool {
    /// The endpoint `request`, told to models as `card`, called where `guard` allows it. `max_output`, in bytes, is that
    /// of its policy.
    #[must_use]
    pub fn new(card: ToolCard, request: HttpRequest, guard: Guard, max_output: usize) -> Self {
        Self { card, request, caller: Caller::new(guard, CONNECT_TIMEOUT), max_output }
    }
}

#[async_trait]
impl Tool for HttpTool {
    fn card(&self) -> ToolCard {
        self.card.clone()
    }

    async fn call(&self, call: Call) -> Result<ToolOutput, ToolError> {
        let none = Map::new();
        let arguments = call.arguments.as_object().unwrap_or(&none);
        let request = self.request.fill(&self.caller, arguments, &call.key)?;
        let response = Caller::send(request).await?;
        let status = response.status();
        let body = self.request.masks.apply_to_cut(&read(response, self.max_output).await?);
        if status.is_success() {
            let nothing = || format!("HTTP {}, without content", status.as_u16());
            return Ok(ToolOutput::new(if body.is_empty() { nothing() } else { body }));
        }
        let said = format!("HTTP {}{}{body}", status.as_u16(), if body.is_empty() { "" } else { ": " });
        let passes = status.is_server_error()
            || matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY);
        Err(match status {
            _ if passes => ToolError::Transient(said),
            _ if status.is_redirection() => {
                ToolError::Permanent(format!("HTTP {}: redirects are not followed", status.as_u16()))
            }
            _ => ToolError::Permanent(said),
        })
    }
}

impl From<CallError> for ToolError {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Refused(refused) => Self::Permanent(refused.to_string()),
            CallError::Broken(problem) => Self::Transient(problem),
        }
    }
}

/// The body as text, or what it is if it is none. Not much more than `most` bytes are read: the connection is closed.
async fn read(mut response: Response, most: usize) -> Result<String, CallError> {
    let kind = response.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or("data").to_owned();
    let mut bytes = Vec::new();
    while bytes.len() <= most {
        match response.chunk().await {
            Ok(Some(chunk)) => bytes.extend_from_slice(&chunk),
            Ok(None) => break,
            Err(error) => return Err(CallError::of(&error)),
        }
    }
    Ok(match String::from_utf8(bytes) {
        Ok(text) => text,
        // Cut within a character.
        Err(error) if error.utf8_error().error_len().is_none() => {
            String::from_utf8_lossy(&error.as_bytes()[..error.utf8_error().valid_up_to()]).into_owned()
        }
        Err(error) => format!("[{kind} that is no text, {} bytes or more]", error.as_bytes().len()),
    })
}

#[cfg(test)]
mod tests;
