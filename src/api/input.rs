//! What comes in with a request, parsed: bodies, queries, headers. Everything is hostile until it has
//! passed here, and a refusal names the field and what was expected.

use actix_web::HttpRequest;
use actix_web::http::header::CONTENT_TYPE;
use actix_web::web::{Bytes, Payload};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use sha2::{Digest, Sha256};

use super::problem::{Code, Problem};
use super::strict;
use crate::engine::Key;
use crate::run::{RunId, ThreadId};

/// The longest `Idempotency-Key`, in bytes.
const MAX_KEY: usize = 255;

/// Reads a JSON body of at most `limit` bytes.
pub(super) async fn json<T: DeserializeOwned>(
    request: &HttpRequest,
    payload: Payload,
    limit: usize,
) -> Result<(T, Bytes), Problem> {
    expect_json(request)?;
    let body = bytes(payload, limit).await?;
    Ok((strict::read(&body)?, body))
}

/// The same, where no body, without a type, is an empty object.
pub(super) async fn json_or_nothing<T: DeserializeOwned>(
    request: &HttpRequest,
    payload: Payload,
    limit: usize,
) -> Result<(T, Bytes), Problem> {
    if request.headers().contains_key(CONTENT_TYPE) {
        return json(request, payload, limit).await;
    }
    let body = bytes(payload, limit).await?;
    if !body.is_empty() {
        expect_json(request)?;
    }
    Ok((strict::read(b"{}")?, body))
}

/// Not only for good manners: a page of another origin cannot send this type without asking first.
fn expect_json(request: &HttpRequest) -> Result<(), Problem> {
    let content_type = request.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    if essence.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    let detail = format!("content-type: expected application/json, got {essence:?}");
    Err(Problem::new(Code::UnsupportedMediaType, detail))
}

/// Tells what is given as `null`, which takes it away, from what is not given.
pub(super) fn given<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<Option<T>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

/// What may be left out and cannot be taken away: `null` is refused.
pub(super) fn kept<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// Reads a body of at most `limit` bytes.
pub(super) async fn bytes(payload: Payload, limit: usize) -> Result<Bytes, Problem> {
    match payload.to_bytes_limited(limit).await {
        Ok(Ok(body)) => Ok(body),
        Ok(Err(error)) => Err(Problem::new(Code::InvalidJson, format!("the body cannot be read: {error}"))),
        Err(_) => Err(Problem::new(Code::BodyTooLarge, format!("the body is larger than {limit} bytes"))),
    }
}

/// The run id in a path.
pub(super) fn run_id(text: &str) -> Result<RunId, Problem> {
    text.parse().map_err(|_| Problem::field("id", "expected a UUID"))
}

/// The thread id in a path.
pub(super) fn thread_id(text: &str) -> Result<ThreadId, Problem> {
    text.parse().map_err(|_| Problem::field("id", "expected a UUID"))
}

/// The `Idempotency-Key` of a request, if it has one.
pub(super) fn idempotency_key(request: &HttpRequest, route: &'static str, body: &[u8]) -> Result<Option<Key>, Problem> {
    let Some(value) = request.headers().get("idempotency-key") else { return Ok(None) };
    match value.to_str() {
        Ok(key) if !key.is_empty() && key.len() <= MAX_KEY => {
            // The path is part of what is asked: a key must not be reused for another run.
            let fingerprint = Sha256::new().chain_update(request.path()).chain_update([0]).chain_update(body);
            Ok(Some(Key { route, key: key.to_owned(), fingerprint: fingerprint.finalize().into() }))
        }
        _ => Err(Problem::field("Idempotency-Key", format!("expected 1 to {MAX_KEY} visible ASCII characters"))),
    }
}

/// A header that is passed on, when it is a plain token of at most 128 characters.
pub(super) fn token_header(request: &HttpRequest, name: &str) -> Option<String> {
    let value = request.headers().get(name)?.to_str().ok()?;
    let fits = !value.is_empty() && value.len() <= 128 && value.bytes().all(|byte| byte.is_ascii_graphic());
    fits.then(|| value.to_owned())
}

/// The parameters of a query, taken one by one; what is left at the end was not expected.
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    pub(super) fn of(request: &HttpRequest) -> Self {
        let pairs = form_urlencoded::parse(request.query_string().as_bytes());
        Self(pairs.map(|(name, value)| (name.into_owned(), value.into_owned())).collect())
    }

    /// The value of `name`; a repeated one is refused at the end.
    pub(super) fn text(&mut self, name: &str) -> Option<String> {
        let index = self.0.iter().position(|(known, _)| known == name)?;
        Some(self.0.remove(index).1)
    }

    /// The value of `name`, parsed; `expected` says what of.
    pub(super) fn parsed<T: std::str::FromStr>(&mut self, name: &str, expected: &str) -> Result<Option<T>, Problem> {
        match self.text(name) {
            None => Ok(None),
            Some(text) => text.parse().map(Some).map_err(|_| Problem::field(name, format!("expected {expected}"))),
        }
    }

    /// All parameters called `prefix` and more, by that more.
    pub(super) fn prefixed<'a>(&'a mut self, prefix: &'a str) -> impl Iterator<Item = (String, String)> + 'a {
        self.0
            .extract_if(.., move |(name, _)| name.starts_with(prefix))
            .map(move |(name, value)| (name[prefix.len()..].to_owned(), value))
    }

    /// Refuses what nobody has taken.
    pub(super) fn end(self, known: &str) -> Result<(), Problem> {
        match self.0.into_iter().next() {
            None => Ok(()),
            Some((name, _)) => {
                let name: String = name.chars().take(64).collect();
                Err(Problem::field(name, format!("unknown or repeated parameter, expected {known}")))
            }
        }
    }
}
