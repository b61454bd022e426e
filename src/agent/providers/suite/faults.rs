//! Errors that need no server.

use std::time::Duration;

use reqwest::StatusCode;
use reqwest::header::HeaderMap;
use secrecy::SecretString;

use super::{KEY, is_permanent};
use crate::agent::AgentError;
use crate::agent::providers::faults::Who;

fn who(name: &str, key: Option<&str>) -> Who {
    Who::new(name.to_owned(), "http://localhost".to_owned(), key.map(SecretString::from))
}

#[test]
fn the_wait_is_told_in_many_ways() {
    let date = ("date", "Sun, 06 Nov 1994 08:49:37 GMT");
    let info = r#"{"error":{"details":[{"@type":"type.googleapis.com/google.rpc.RetryInfo","retryDelay":"34.5s"}]}}"#;
    for (given, body, expected) in [
        (vec![("retry-after", "7")], "", Some(7_000)),
        (vec![("retry-after", "0.5")], "", Some(500)),
        (vec![("retry-after", "7"), ("retry-after-ms", "1500")], "", Some(1_500)),
        (vec![("retry-after", "Sun, 06 Nov 1994 08:49:47 GMT"), date], "", Some(10_000)),
        (vec![("retry-after", "Sun, 06 Nov 1994 08:49:47 GMT")], "", Some(0)),
        (vec![("retry-after", "-1")], "", None),
        (vec![("retry-after", "soon")], "", None),
        (vec![], info, Some(34_500)),
        (vec![("retry-after", "7")], info, Some(7_000)),
        (vec![], r#"{"error":{"details":[{"retryDelay":"soon"}]}}"#, None),
    ] {
        let headers: HeaderMap =
            given.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
        let error = who("local", None).refused(StatusCode::TOO_MANY_REQUESTS, &headers, body.as_bytes(), "small");
        let AgentError::Transient { retry_after, .. } = error else { panic!("{error}") };
        assert_eq!(retry_after, expected.map(Duration::from_millis), "{given:?} {body}");
    }
}

#[test]
fn nobody_is_asked_without_the_key_that_they_want() {
    let who = |origin: &str, key: Option<&str>| Who::new("openai".to_owned(), origin.to_owned(), key.map(Into::into));
    let error = who("https://api.openai.com", None).lacks_key().unwrap();
    assert!(is_permanent(&error, "provider_rejected_key"), "{error}");
    assert!(error.to_string().ends_with("no key is set: set OPENAI_API_KEY or providers.openai.api_key"), "{error}");
    assert_eq!(who("https://api.openai.com", Some("a key")).lacks_key(), None);
    assert_eq!(who("http://127.0.0.1:8080", None).lacks_key(), None);
}

#[test]
fn a_rejected_key_says_where_keys_come_from() {
    let rejected = |who: Who, status, body: &[u8]| {
        let error = who.refused(status, &HeaderMap::new(), body, "small");
        assert!(is_permanent(&error, "provider_rejected_key"), "{error}");
        error.to_string()
    };
    let error = rejected(who("openai", Some(KEY)), StatusCode::UNAUTHORIZED, b"");
    assert!(error.ends_with("check the key in OPENAI_API_KEY or providers.openai.api_key"), "{error}");
    let error = rejected(who("local", None), StatusCode::UNAUTHORIZED, b"");
    assert!(error.ends_with("no key is set: set providers.local.api_key"), "{error}");
    let body = br#"{"error":{"code":400,"message":"API key not valid","details":[{"reason":"API_KEY_INVALID"}]}}"#;
    let error = rejected(who("gemini", Some(KEY)), StatusCode::BAD_REQUEST, body);
    assert!(error.ends_with("check the key in GEMINI_API_KEY or providers.gemini.api_key"), "{error}");
}
