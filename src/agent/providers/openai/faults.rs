//! What goes wrong with a provider, in stable codes, and in words that never contain its key.

use std::error::Error;
use std::time::Duration;

use reqwest::StatusCode;
use reqwest::header::{DATE, HeaderMap, RETRY_AFTER};
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;

use crate::agent::AgentError;
use crate::clock::{Clock, SystemClock};
use crate::run::Timestamp;

/// The most characters of a provider's own words that a message shows.
const MAX_SAID: usize = 500;

/// The provider, as errors speak of it.
#[derive(Debug)]
pub(super) struct Who {
    name: String,
    /// Scheme, host and port.
    origin: String,
    key: Option<SecretString>,
}

impl Who {
    pub(super) fn new(name: String, origin: String, key: Option<SecretString>) -> Self {
        Self { name, origin, key }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn unreachable(&self, error: &reqwest::Error) -> AgentError {
        self.transient("provider_unreachable", &format!("cannot be reached: {}", root(error)))
    }

    pub(super) fn no_first_token(&self, limit: Duration) -> AgentError {
        let limit = humantime::format_duration(limit);
        self.transient("provider_timeout", &format!("sent no token within first_token_timeout, {limit}"))
    }

    pub(super) fn silent(&self, limit: Duration) -> AgentError {
        let limit = humantime::format_duration(limit);
        self.transient("provider_timeout", &format!("stopped in the middle of its answer for idle_timeout, {limit}"))
    }

    pub(super) fn cut(&self, why: impl AsRef<str>) -> AgentError {
        self.transient("provider_stream_cut", &format!("broke its answer off: {}", why.as_ref()))
    }

    pub(super) fn bad_answer(&self, why: &str) -> AgentError {
        self.transient("provider_bad_answer", &format!("gave an answer that cannot be understood: {why}"))
    }

    /// An error that the provider reports where an answer should be.
    pub(super) fn reported(&self, error: &Value) -> AgentError {
        let said = self.said(message_of(error).unwrap_or("without a message"));
        self.transient("provider_unavailable", &format!("reports an error: {said}"))
    }

    pub(super) fn too_large(&self, limit: usize) -> AgentError {
        self.permanent("answer_too_large", &format!("gave an answer of more than {limit} bytes; lower max_tokens"))
    }

    pub(super) fn no_models(&self) -> AgentError {
        self.permanent("unknown_model", "lists no model; name one instead of auto")
    }

    /// The answer to a request for `model` has a status that is not 2xx.
    pub(super) fn refused(&self, status: StatusCode, headers: &HeaderMap, body: &[u8], model: &str) -> AgentError {
        let text = String::from_utf8_lossy(body);
        let json: Option<Value> = serde_json::from_slice(body).ok();
        let said = self.said(json.as_ref().and_then(message_of).unwrap_or(&text));
        let because = if said.is_empty() { said } else { format!(": {said}") };
        let number = status.as_u16();
        let passing = match number {
            408 => Some("provider_timeout"),
            429 => Some("provider_rate_limited"),
            409 | 500.. => Some("provider_unavailable"),
            _ => None,
        };
        if let Some(code) = passing {
            return AgentError::Transient {
                code: code.to_owned(),
                message: format!("{} answered {status}{because}", self.title()),
                retry_after: retry_after(headers),
            };
        }
        let code = json.as_ref().and_then(|json| json.pointer("/error/code")).and_then(Value::as_str);
        if number == 404 || code == Some("model_not_found") {
            let problem = format!("answered {status} for model {model:?}; check the model and base_url{because}");
            return self.permanent("unknown_model", &problem);
        }
        match number {
            // A provider that rejects a key often shows parts of it: its words are kept out.
            401 => self.permanent("provider_rejected_key", &format!("answered {status}; {}", self.about_key())),
            403 => {
                let problem = format!("answered {status}; {}{because}", self.about_key());
                self.permanent("provider_rejected_key", &problem)
            }
            300..=399 => {
                let problem = format!("answered {status}, and redirects are not followed; check base_url");
                self.permanent("provider_rejected", &problem)
            }
            _ => self.permanent("provider_rejected", &format!("answered {status}{because}")),
        }
    }

    fn about_key(&self) -> String {
        let setting = format!("providers.{}.api_key", self.name);
        let places = if self.name == "openai" { format!("OPENAI_API_KEY or {setting}") } else { setting };
        match self.key {
            Some(_) => format!("check the key in {places}"),
            None => format!("no key is set: set {places}"),
        }
    }

    /// What the provider says, as far as it may be shown: without the key, in one line, bounded.
    fn said(&self, text: &str) -> String {
        let text = match self.key.as_ref().map(ExposeSecret::expose_secret) {
            Some(key) if !key.is_empty() => text.replace(key, "[key]"),
            Some(_) | None => text.to_owned(),
        };
        let line = text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty());
        let line = line.collect::<Vec<_>>().join(" ");
        match line.char_indices().nth(MAX_SAID) {
            Some((end, _)) => format!("{}…", &line[..end]),
            None => line,
        }
    }

    fn title(&self) -> String {
        format!("provider {} at {}", self.name, self.origin)
    }

    fn transient(&self, code: &str, problem: &str) -> AgentError {
        AgentError::transient(code, format!("{} {problem}", self.title()))
    }

    fn permanent(&self, code: &str, problem: &str) -> AgentError {
        AgentError::permanent(code, format!("{} {problem}", self.title()))
    }
}

/// The innermost cause; what stands around it names the layers of the HTTP client.
pub(super) fn root(error: &dyn Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

/// The message in what servers report: `{"error": {"message"}}`, `{"error": "…"}`, `{"message"}`, `{"detail"}`
/// or just a text.
fn message_of(value: &Value) -> Option<&str> {
    ["/error/message", "/error", "/message", "/detail", ""].iter().find_map(|path| value.pointer(path)?.as_str())
}

/// How long the provider asks to be left alone: milliseconds (OpenAI), seconds, or an HTTP date. A date is
/// measured from the answer's own, because clocks differ.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    let seconds = |number: f64| Duration::try_from_secs_f64(number).ok();
    if let Some(millis) = text("retry-after-ms").and_then(|text| text.parse::<f64>().ok()) {
        return seconds(millis / 1000.0);
    }
    let wanted = text(RETRY_AFTER.as_str())?;
    if let Ok(number) = wanted.parse() {
        return seconds(number);
    }
    let sent = text(DATE.as_str()).and_then(http_date).unwrap_or_else(|| SystemClock.now());
    Some(http_date(wanted)?.since(sent))
}

/// An HTTP date in the one form that may be sent (RFC 9110, 5.6.7), which RFC 2822 covers.
fn http_date(text: &str) -> Option<Timestamp> {
    let time = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok()?;
    Some(Timestamp::from_millis(time.as_millisecond()))
}
