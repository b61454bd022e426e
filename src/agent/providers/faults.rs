//! What goes wrong with a provider, in stable codes, and in words that never contain its key.

use std::error::Error;
use std::time::Duration;

use reqwest::StatusCode;
use reqwest::header::{DATE, HeaderMap, RETRY_AFTER};
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;

use super::asked::Unfit;
use crate::agent::AgentError;
use crate::clock::{Clock, SystemClock};
use crate::run::Timestamp;

/// The most characters of a provider's own words that a message shows.
const MAX_SAID: usize = 500;

/// What a decoder does not take for a part of an answer.
#[derive(Debug)]
pub(super) enum Fault {
    /// It cannot be understood. Quotes nothing of what was sent.
    Bad(String),
    /// The provider reports an error where an answer should be.
    Reported(Value),
}

impl Fault {
    pub(super) fn bad(why: &str) -> Self {
        Self::Bad(why.to_owned())
    }

    /// JSON that is not the one of `what`. The text of the error may quote what was sent; the place has to do.
    pub(super) fn unlike(what: &str, error: &serde_json::Error) -> Self {
        Self::Bad(format!("not the JSON of {what}, at line {} column {}", error.line(), error.column()))
    }
}

/// The words for errors that would happen again, in the `type` or `code` of an error that comes within an answer.
const PERMANENT: [&str; 10] = [
    "INVALID_ARGUMENT",
    "NOT_FOUND",
    "PERMISSION_DENIED",
    "authentication_error",
    "billing_error",
    "invalid_prompt",
    "invalid_request_error",
    "not_found_error",
    "permission_error",
    "request_too_large",
];

/// Where the keys of the built-in providers come from, beside the configuration.
const VARIABLES: [(&str, &str); 3] =
    [("anthropic", "ANTHROPIC_API_KEY"), ("gemini", "GEMINI_API_KEY"), ("openai", "OPENAI_API_KEY")];

/// Where no request is answered that has no key.
const HOMES: [&str; 3] =
    ["https://api.anthropic.com", "https://generativelanguage.googleapis.com", "https://api.openai.com"];

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

    pub(super) fn too_long(&self, limit: Duration) -> AgentError {
        let limit = humantime::format_duration(limit);
        self.transient("provider_timeout", &format!("did not finish its answer within total_timeout, {limit}"))
    }

    pub(super) fn cut(&self, why: impl AsRef<str>) -> AgentError {
        self.transient("provider_stream_cut", &format!("broke its answer off: {}", why.as_ref()))
    }

    pub(super) fn bad_answer(&self, why: &str) -> AgentError {
        self.transient("provider_bad_answer", &format!("gave an answer that cannot be understood: {why}"))
    }

    pub(super) fn fault(&self, fault: Fault) -> AgentError {
        match fault {
            Fault::Bad(why) => self.bad_answer(&why),
            Fault::Reported(error) => self.reported(&error),
        }
    }

    /// An error that the provider reports where an answer should be.
    pub(super) fn reported(&self, error: &Value) -> AgentError {
        let said = self.said(message_of(error).unwrap_or("without a message"));
        let problem = format!("reports an error: {said}");
        let words = ["/error/type", "/error/code", "/error/status", "/type", "/code", "/status"];
        let words: Vec<_> = words.iter().filter_map(|path| error.pointer(path)?.as_str()).collect();
        if words.iter().any(|word| PERMANENT.contains(word)) {
            return self.permanent("provider_rejected", &problem);
        }
        let limited = |word: &&str| matches!(*word, "rate_limit_error" | "rate_limit_exceeded" | "RESOURCE_EXHAUSTED");
        let code = if words.iter().any(limited) { "provider_rate_limited" } else { "provider_unavailable" };
        AgentError::Transient {
            code: code.to_owned(),
            message: format!("{} {problem}", self.title()),
            retry_after: retry_info(error),
        }
    }

    /// The chat has something that the protocol cannot say.
    pub(super) fn unfit(&self, unfit: &Unfit) -> AgentError {
        self.permanent("unsupported_content", &unfit.0)
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
        // Gemini puts some of its errors into an array.
        let json = json.map(|json| json.get(0).cloned().unwrap_or(json));
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
                retry_after: retry_after(headers).or_else(|| retry_info(json.as_ref()?)),
            };
        }
        let code = json.as_ref().and_then(|json| json.pointer("/error/code")).and_then(Value::as_str);
        if number == 404 || code == Some("model_not_found") {
            let problem = format!("answered {status} for model {model:?}; check the model and base_url{because}");
            return self.permanent("unknown_model", &problem);
        }
        // Gemini's status for a key that it does not know is 400.
        let number = if json.as_ref().is_some_and(is_about_key) { 401 } else { number };
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

    /// Why there is no use in asking: it wants a key, and there is none.
    pub(super) fn lacks_key(&self) -> Option<AgentError> {
        let lacks = self.key.is_none() && HOMES.contains(&&*self.origin);
        lacks.then(|| self.permanent("provider_rejected_key", &format!("was not asked; {}", self.about_key())))
    }

    fn about_key(&self) -> String {
        let setting = format!("providers.{}.api_key", self.name);
        let variable = VARIABLES.iter().find(|(name, _)| *name == self.name);
        let places = variable.map_or(setting.clone(), |(_, variable)| format!("{variable} or {setting}"));
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

/// How long Gemini asks to be left alone: `{"error": {"details": [{"retryDelay": "34s"}]}}`, a google.rpc.RetryInfo.
fn retry_info(error: &Value) -> Option<Duration> {
    let details = error.pointer("/error/details").or_else(|| error.get("details"))?.as_array()?;
    let delay = details.iter().find_map(|detail| detail.get("retryDelay")?.as_str())?;
    Duration::try_from_secs_f64(delay.strip_suffix('s')?.parse().ok()?).ok()
}

/// Whether an error is Gemini's for a key that it does not know.
fn is_about_key(error: &Value) -> bool {
    let details = error.pointer("/error/details").and_then(Value::as_array);
    details.into_iter().flatten().any(|detail| detail.get("reason").is_some_and(|reason| reason == "API_KEY_INVALID"))
}

/// An HTTP date in the one form that may be sent (RFC 9110, 5.6.7), which RFC 2822 covers.
fn http_date(text: &str) -> Option<Timestamp> {
    let time = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok()?;
    Some(Timestamp::from_millis(time.as_millisecond()))
}
