//! Against a server of a few lines, over real sockets.

use std::sync::Arc;
use std::time::Duration;

use futures_util::TryStreamExt;
use reqwest::StatusCode;
use reqwest::header::HeaderMap;
use secrecy::SecretString;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::timeout;

use super::answer_tests::{RECORDED, recorded_pieces};
use super::faults::Who;
use super::{OpenAi, OpenAiOptions};
use crate::agent::AgentError;
use crate::agent::providers::{Chat, Piece, Provider, Turn};
use crate::run::{Message, Role};

const KEY: &str = "sk-topsecret0123456789";
const LONG: Duration = Duration::from_secs(20);

/// What the server does with a request.
struct Reply {
    bytes: Vec<u8>,
    /// Keeps the connection open afterwards, until the client closes it.
    hold: bool,
}

struct Server {
    base_url: String,
    requests: UnboundedReceiver<String>,
    hung_up: UnboundedReceiver<()>,
}

impl Server {
    async fn start(reply: impl Fn(&str) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base_url = format!("http://{}/v1", listener.local_addr().unwrap());
        let (requests, seen) = unbounded_channel();
        let (hung_up, left) = unbounded_channel();
        let reply = Arc::new(reply);
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(serve(socket, reply.clone(), requests.clone(), hung_up.clone()));
            }
        });
        Self { base_url, requests: seen, hung_up: left }
    }

    /// Answers every request with `bytes`.
    async fn says(bytes: impl Into<Vec<u8>>) -> Self {
        let bytes = bytes.into();
        Self::start(move |_| Reply { bytes: bytes.clone(), hold: false }).await
    }

    /// Says `bytes` and then nothing more.
    async fn hangs_after(bytes: impl Into<Vec<u8>>) -> Self {
        let bytes = bytes.into();
        Self::start(move |_| Reply { bytes: bytes.clone(), hold: true }).await
    }

    fn options(&self) -> OpenAiOptions {
        OpenAiOptions {
            name: "local".to_owned(),
            base_url: self.base_url.clone(),
            api_key: Some(SecretString::from(KEY)),
            connect_timeout: LONG,
            first_token_timeout: LONG,
            idle_timeout: LONG,
        }
    }

    fn client(&self) -> OpenAi {
        made(self.options())
    }

    /// The error of a call.
    async fn error(&self) -> AgentError {
        ask(&self.client()).await.unwrap_err()
    }
}

async fn serve(
    mut socket: TcpStream,
    reply: Arc<impl Fn(&str) -> Reply>,
    requests: UnboundedSender<String>,
    hung_up: UnboundedSender<()>,
) {
    let mut request = Vec::new();
    while !is_whole(&request) {
        if socket.read_buf(&mut request).await.unwrap_or(0) == 0 {
            return;
        }
    }
    let request = String::from_utf8(request).unwrap();
    let Reply { bytes, hold } = reply(&request);
    let _ = requests.send(request);
    if socket.write_all(&bytes).await.is_ok() && hold {
        let _ = socket.read(&mut [0]).await;
    }
    let _ = hung_up.send(());
}

fn is_whole(request: &[u8]) -> bool {
    let text = String::from_utf8_lossy(request);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let length = head
        .to_lowercase()
        .split_once("content-length: ")
        .map_or(0, |(_, rest)| rest.lines().next().unwrap().parse().unwrap());
    body.len() >= length
}

fn made(options: OpenAiOptions) -> OpenAi {
    rustls::crypto::ring::default_provider().install_default().ok();
    OpenAi::new(options).unwrap()
}

fn chat(model: &str) -> Chat {
    let messages = vec![Message { role: Role::User, content: "Hi".into() }];
    let turns = messages.into_iter().map(Turn::Said).collect();
    Chat { model: model.to_owned(), turns, temperature: Some(0.5), max_tokens: Some(7), ..Chat::default() }
}

async fn ask(provider: &OpenAi) -> Result<Vec<Piece>, AgentError> {
    ask_for(provider, "small").await
}

async fn ask_for(provider: &OpenAi, model: &str) -> Result<Vec<Piece>, AgentError> {
    let answer = async { provider.chat(chat(model)).await?.try_collect().await };
    timeout(2 * LONG, answer).await.expect("the call hangs")
}

fn http(status: &str, kind: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}")
}

/// The head of a streamed answer and its events, each a chunk of its own.
fn streamed(events: &str) -> String {
    let head =
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n";
    let chunks = events.split_inclusive("\n\n").map(|event| format!("{:x}\r\n{event}\r\n", event.len()));
    head.to_owned() + &chunks.collect::<String>()
}

fn is_transient(error: &AgentError, wanted: &str) -> bool {
    matches!(error, AgentError::Transient { code, .. } if code == wanted)
}

fn is_permanent(error: &AgentError, wanted: &str) -> bool {
    matches!(error, AgentError::Permanent { code, .. } if code == wanted)
}

#[tokio::test]
async fn an_answer_is_streamed_with_its_usage() {
    let mut server = Server::says(streamed(RECORDED) + "0\r\n\r\n").await;
    assert_eq!(ask(&server.client()).await, Ok(recorded_pieces()));
    let request = server.requests.recv().await.unwrap();
    let (head, body) = request.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("POST /v1/chat/completions HTTP/1.1\r\n"), "{head}");
    assert!(head.contains(&format!("authorization: Bearer {KEY}")), "{head}");
    let body: Value = serde_json::from_str(body).unwrap();
    let expected = json!({
        "model": "small", "messages": [{"role": "user", "content": "Hi"}], "temperature": 0.5, "max_tokens": 7,
        "stream": true, "stream_options": {"include_usage": true},
    });
    assert_eq!(body, expected);
}

#[tokio::test]
async fn an_answer_that_is_not_streamed_is_taken_too() {
    let json = r#"{"object":"chat.completion","choices":[{"message":{"content":"Hi"}}]}"#;
    let server = Server::says(http("200 OK", "application/json", json)).await;
    assert_eq!(ask(&server.client()).await, Ok(vec![Piece::Text("Hi".to_owned())]));
    let server = Server::says(http("200 OK", "text/html", "<h1>Welcome</h1>")).await;
    assert!(is_transient(&server.error().await, "provider_bad_answer"));
}

#[tokio::test]
async fn a_connection_that_is_cut_at_any_byte_gives_all_or_an_error_that_may_pass() {
    let recorded = streamed(RECORDED) + "0\r\n\r\n";
    let cuts = recorded.len();
    let next = std::sync::atomic::AtomicUsize::new(0);
    let bytes = recorded.clone().into_bytes();
    let server = Server::start(move |_| {
        let cut = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Reply { bytes: bytes[..cut].to_vec(), hold: false }
    })
    .await;
    let client = server.client();
    let (finish, usage) = (recorded.find("\"stop\"").unwrap(), recorded.find("prompt_tokens").unwrap());
    for cut in 0..cuts {
        match ask(&client).await {
            Ok(pieces) => assert!(cut > finish && pieces[..4] == recorded_pieces()[..4], "cut at {cut}"),
            Err(error) => assert!(cut < usage && is_transient(&error, "provider_stream_cut"), "cut at {cut}: {error}"),
        }
    }
}

#[tokio::test]
async fn a_status_says_whether_it_may_pass() {
    for (status, code) in [
        ("408 Request Timeout", "provider_timeout"),
        ("409 Conflict", "provider_unavailable"),
        ("429 Too Many Requests", "provider_rate_limited"),
        ("500 Internal Server Error", "provider_unavailable"),
        ("503 Service Unavailable", "provider_unavailable"),
        ("529 Overloaded", "provider_unavailable"),
    ] {
        let error = Server::says(http(status, "application/json", "{\"error\":\"so it is\"}")).await.error().await;
        assert!(is_transient(&error, code) && error.to_string().ends_with(": so it is"), "{error}");
    }
    for (status, code) in [
        ("400 Bad Request", "provider_rejected"),
        ("401 Unauthorized", "provider_rejected_key"),
        ("403 Forbidden", "provider_rejected_key"),
        ("404 Not Found", "unknown_model"),
        ("422 Unprocessable Content", "provider_rejected"),
    ] {
        let error = Server::says(http(status, "text/plain", "no")).await.error().await;
        assert!(is_permanent(&error, code), "{error}");
        let unknown = http(status, "application/json", "{\"error\":{\"code\":\"model_not_found\"}}");
        assert!(is_permanent(&Server::says(unknown).await.error().await, "unknown_model"));
    }
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let mut server =
        Server::says("HTTP/1.1 307 Temporary Redirect\r\nlocation: /v2\r\ncontent-length: 0\r\n\r\n").await;
    assert!(is_permanent(&server.error().await, "provider_rejected"));
    assert!(server.requests.try_recv().is_ok() && server.requests.try_recv().is_err());
}

#[test]
fn the_wait_that_the_provider_asks_for_is_handed_on() {
    let who = Who::new("local".to_owned(), "http://localhost".to_owned(), None);
    let date = ("date", "Sun, 06 Nov 1994 08:49:37 GMT");
    for (given, expected) in [
        (vec![("retry-after", "7")], Some(7_000)),
        (vec![("retry-after", "0.5")], Some(500)),
        (vec![("retry-after", "7"), ("retry-after-ms", "1500")], Some(1_500)),
        (vec![("retry-after", "Sun, 06 Nov 1994 08:49:47 GMT"), date], Some(10_000)),
        (vec![("retry-after", "Sun, 06 Nov 1994 08:49:47 GMT")], Some(0)),
        (vec![("retry-after", "-1")], None),
        (vec![("retry-after", "soon")], None),
    ] {
        let headers: HeaderMap =
            given.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
        let error = who.refused(StatusCode::TOO_MANY_REQUESTS, &headers, b"", "small");
        let AgentError::Transient { retry_after, .. } = error else { panic!("{error}") };
        assert_eq!(retry_after, expected.map(Duration::from_millis), "{given:?}");
    }
}

#[tokio::test]
async fn silence_ends_in_a_timeout() {
    let server = Server::hangs_after("").await;
    let client = made(OpenAiOptions { first_token_timeout: Duration::from_millis(100), ..server.options() });
    assert!(is_transient(&ask(&client).await.unwrap_err(), "provider_timeout"));

    let server = Server::hangs_after(streamed("data: {\"choices\":[{\"delta\":{\"content\":\"Hi\"}}]}\n\n")).await;
    let client = made(OpenAiOptions { idle_timeout: Duration::from_millis(100), ..server.options() });
    assert!(is_transient(&ask(&client).await.unwrap_err(), "provider_timeout"));
}

#[tokio::test]
async fn a_server_that_is_not_there_is_unreachable() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base_url = format!("http://{}/v1", listener.local_addr().unwrap());
    drop(listener);
    let server = Server::says("").await;
    let error = ask(&made(OpenAiOptions { base_url, ..server.options() })).await.unwrap_err();
    assert!(is_transient(&error, "provider_unreachable"), "{error}");
}

#[tokio::test]
async fn a_dropped_call_closes_its_connection() {
    let mut server = Server::hangs_after(streamed("data: {\"choices\":[{\"delta\":{\"content\":\"Hi\"}}]}\n\n")).await;
    let client = server.client();
    let mut pieces = client.chat(chat("small")).await.unwrap();
    assert_eq!(pieces.try_next().await, Ok(Some(Piece::Text("Hi".to_owned()))));
    drop(pieces);
    timeout(LONG, server.hung_up.recv()).await.expect("the stream is gone, its connection is not");

    let mut server = Server::hangs_after("").await;
    let client = server.client();
    tokio::select! {
        _ = client.chat(chat("small")) => panic!("there is no answer"),
        _ = server.requests.recv() => {}
    }
    timeout(LONG, server.hung_up.recv()).await.expect("the call is gone, its connection is not");
}

#[tokio::test]
async fn auto_is_the_first_model_that_is_listed() {
    let mut server = Server::start(|request| {
        let bytes = if request.starts_with("GET /v1/models ") {
            http("200 OK", "application/json", r#"{"data":[{"id":"first"},{"id":"second"}]}"#)
        } else {
            streamed(RECORDED)
        };
        Reply { bytes: bytes.into_bytes(), hold: false }
    })
    .await;
    let client = server.client();
    for _ in 0..2 {
        assert_eq!(ask_for(&client, "auto").await, Ok(recorded_pieces()));
    }
    let mut posts = 0;
    assert!(server.requests.recv().await.unwrap().starts_with("GET "));
    while let Ok(request) = server.requests.try_recv() {
        assert!(request.contains(r#""model":"first""#), "{request}");
        posts += 1;
    }
    assert_eq!(posts, 2);

    for (answer, permanent) in [
        (http("200 OK", "application/json", r#"{"data":[]}"#), true),
        (http("404 Not Found", "text/plain", "no"), true),
        (http("200 OK", "application/json", "[]"), false),
        (http("503 Service Unavailable", "text/plain", ""), false),
    ] {
        let error = ask_for(&Server::says(answer).await.client(), "auto").await.unwrap_err();
        assert_eq!(is_permanent(&error, "unknown_model"), permanent, "{error}");
        assert_eq!(matches!(error, AgentError::Transient { .. }), !permanent);
    }
}

#[tokio::test]
async fn nothing_shows_the_key() {
    let echo = format!("{{\"error\":{{\"message\":\"{}{KEY} is the key {KEY}\"}}}}", "x".repeat(490));
    let mut answers: Vec<String> = [301, 400, 401, 403, 404, 408, 409, 429, 500, 503]
        .iter()
        .flat_map(|status| {
            [http(&format!("{status} X"), "application/json", &echo), http(&format!("{status} X"), "text/plain", KEY)]
        })
        .collect();
    answers.push(http("200 OK", "application/json", &echo));
    answers.push(http("200 OK", "text/plain", KEY));
    answers.push(http("200 OK", "application/json", &format!("{{\"choices\":\"{KEY}\"}}")));
    answers.push(streamed(&format!("data: {echo}\n\n")));
    answers.push(streamed(&format!("event: error\ndata: {KEY}\n\n")));
    answers.push(streamed(&format!("data: {{\"choices\":\"{KEY}\"}}\n\n")));
    answers.push(format!("HTTP/1.1 {KEY}\r\n\r\n"));
    for answer in answers {
        let server = Server::says(answer.clone()).await;
        for error in [server.error().await, ask_for(&server.client(), "auto").await.unwrap_err()] {
            let text = format!("{error} {error:?}");
            assert!(!text.contains("sk-tops") && text.len() < 2_000, "{answer}\n{text}");
        }
    }
    let server = Server::says("").await;
    let shown = format!("{:?} {:?}", server.options(), server.client());
    assert!(!shown.contains(KEY), "{shown}");
}

#[test]
fn a_rejected_key_says_where_keys_come_from() {
    let rejected = |name: &str, key: Option<SecretString>| {
        let who = Who::new(name.to_owned(), "http://localhost".to_owned(), key);
        who.refused(StatusCode::UNAUTHORIZED, &HeaderMap::new(), b"", "small").to_string()
    };
    let error = rejected("openai", Some(SecretString::from(KEY)));
    assert!(error.ends_with("check the key in OPENAI_API_KEY or providers.openai.api_key"), "{error}");
    let error = rejected("local", None);
    assert!(error.ends_with("no key is set: set providers.local.api_key"), "{error}");
}

#[tokio::test]
async fn options_that_cannot_work_are_refused() {
    let server = Server::says("").await;
    for options in [
        OpenAiOptions { base_url: "localhost:80".to_owned(), ..server.options() },
        OpenAiOptions { base_url: "ftp://localhost".to_owned(), ..server.options() },
        OpenAiOptions { api_key: Some(SecretString::from("sk-topsecret\n")), ..server.options() },
    ] {
        let error = OpenAi::new(options).unwrap_err().to_string();
        assert!(!error.contains("topsecret"), "{error}");
    }
}
