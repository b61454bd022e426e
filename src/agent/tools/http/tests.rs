use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::super::kit::make;
use super::super::{Declared, Policy};
use super::*;

/// Answers every connection with `answer`, and keeps what it was sent.
struct Server {
    base: String,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Server {
    async fn start(answer: impl Into<Vec<u8>>) -> Self {
        let answer: Vec<u8> = answer.into();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let requests: Arc<Mutex<Vec<String>>> = Arc::default();
        let seen = Arc::clone(&requests);
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                let (seen, answer) = (Arc::clone(&seen), answer.clone());
                tokio::spawn(async move {
                    let (mut request, mut buffer) = (String::new(), [0; 4096]);
                    while !is_whole(&request) {
                        match socket.read(&mut buffer).await {
                            Ok(0) | Err(_) => return,
                            Ok(read) => request += &String::from_utf8_lossy(&buffer[..read]),
                        }
                    }
                    seen.lock().push(request);
                    if answer.is_empty() {
                        std::future::pending::<()>().await;
                    }
                    let _ = socket.write_all(&answer).await;
                });
            }
        });
        Self { base, requests }
    }

    fn requests(&self) -> Vec<String> {
        self.requests.lock().clone()
    }
}

fn is_whole(request: &str) -> bool {
    let Some((head, body)) = request.split_once("\r\n\r\n") else { return false };
    let length = head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
    body.len() >= length.unwrap_or(0)
}

fn ok(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

struct Made<'a> {
    method: &'a str,
    headers: &'a [(&'a str, &'a str)],
    body: Option<Value>,
    parameters: Value,
    allow: &'a [&'a str],
    policy: Policy,
}

impl Default for Made<'_> {
    fn default() -> Self {
        let parameters = json!({"type": "object", "properties": {"city": {}, "days": {}}});
        let (method, headers, body, allow, policy) =
            ("GET", [].as_slice(), None, ["127.0.0.1"].as_slice(), Policy::default());
        Self { method, headers, body, parameters, allow, policy }
    }
}

impl Made<'_> {
    fn request(&self, url: &str) -> Result<HttpRequest, InvalidRequest> {
        let headers: Vec<_> =
            self.headers.iter().map(|(name, value)| ((*name).to_owned(), SecretString::from(*value))).collect();
        HttpRequest::new(self.method, url, &headers, self.body.as_ref(), self.parameters.as_object().unwrap())
    }

    fn tool(self, url: &str) -> Declared {
        // As `main` does.
        rustls::crypto::ring::default_provider().install_default().unwrap_or_default();
        let request = self.request(url).unwrap();
        let parameters = self.parameters.clone();
        let card = ToolCard { name: "weather".to_owned(), description: String::new(), parameters };
        let guard = Guard::new("tools.weather.allow", self.allow.iter().map(|part| part.parse().unwrap()).collect());
        Declared::new(Arc::new(HttpTool::new(card, request, guard, self.policy.max_output)), self.policy).unwrap()
    }
}

#[tokio::test]
async fn a_get_carries_arguments_and_headers_and_no_key() {
    let server = Server::start(ok("sunny")).await;
    let made = Made { headers: &[("Authorization", "Bearer sesame-open"), ("X-Team", "a")], ..Made::default() };
    let tool = made.tool(&format!("{}/v1/{{city}}?days={{days}}", server.base));
    let outcome = make(&tool, json!({"city": "New York/..", "days": 3})).await;
    assert!(outcome.failed, "{outcome:?}");
    let outcome = make(&tool, json!({"city": "New York", "days": 3})).await;
    assert_eq!((outcome.content.as_str(), outcome.failed), ("sunny", false));
    let requests = server.requests();
    let [request] = &requests[..] else { panic!("{requests:?}") };
    assert!(request.starts_with("GET /v1/New%20York?days=3 HTTP/1.1\r\n"), "{request}");
    assert!(
        request.contains("authorization: Bearer sesame-open\r\n") && request.contains("x-team: a\r\n"),
        "{request}"
    );
    assert!(!request.contains("idempotency-key"), "{request}");
}

#[tokio::test]
async fn other_methods_carry_a_body_and_the_same_key_in_all_tries() {
    let server = Server::start("HTTP/1.1 503 Busy\r\ncontent-length: 4\r\n\r\nlate").await;
    let policy = Policy { retries: 1, ..Policy::default() };
    let tool =
        Made { method: "POST", policy: policy.clone(), ..Made::default() }.tool(&format!("{}/{{city}}", server.base));
    let outcome = make(&tool, json!({"city": "Bern", "days": 3})).await;
    assert_eq!((outcome.content.as_str(), outcome.failed), ("HTTP 503: late", true));
    let requests = server.requests();
    assert_eq!(requests.len(), 2);
    for request in requests {
        assert!(
            request.contains("idempotency-key: key-1\r\n") && request.ends_with("\r\n\r\n{\"days\":3}"),
            "{request}"
        );
    }
    let body = Some(json!({"where": "{city}", "note": "for {days} days", "by": "us"}));
    let tool = Made { method: "PUT", body, ..Made::default() }.tool(&server.base);
    make(&tool, json!({"city": "a\", \"by\": \"them", "days": 2})).await;
    let request = server.requests().pop().unwrap();
    let sent: Value = serde_json::from_str(request.split_once("\r\n\r\n").unwrap().1).unwrap();
    assert_eq!(sent, json!({"where": "a\", \"by\": \"them", "note": "for 2 days", "by": "us"}));
}

#[tokio::test(start_paused = true)]
async fn answers_are_bounded_told_and_tried_again_by_what_they_are() {
    let long = "é".repeat(100_000);
    for (answer, shown, failed, tries) in [
        (ok(""), "HTTP 200, without content", false, 1),
        (ok(&long), "bytes more are left out", false, 1),
        ("HTTP/1.1 404 Not\r\ncontent-length: 7\r\n\r\nno city".to_owned(), "HTTP 404: no city", true, 1),
        ("HTTP/1.1 429 Slow\r\ncontent-length: 0\r\n\r\n".to_owned(), "HTTP 429", true, 2),
        ("HTTP/1.1 500 Oops\r\ncontent-length: 0\r\n\r\n".to_owned(), "HTTP 500", true, 2),
        (
            "HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n".to_owned(),
            "HTTP 302: redirects are not followed",
            true,
            1,
        ),
        (
            format!("HTTP/1.1 400 Bad\r\ncontent-length: {}\r\n\r\n{long}", long.len()),
            "bytes more are left out",
            true,
            1,
        ),
    ] {
        let server = Server::start(answer).await;
        let policy = Policy { retries: 1, ..Policy::default() };
        let tool = Made { policy, parameters: json!({"type": "object"}), ..Made::default() }.tool(&server.base);
        let outcome = make(&tool, "{}").await;
        assert!(outcome.content.contains(shown) && outcome.failed == failed, "{outcome:?}");
        assert!(outcome.content.len() < Policy::default().max_output + 100);
        assert_eq!(server.requests().len(), tries, "{shown}");
    }
}

#[tokio::test]
async fn what_is_no_text_is_named_and_what_says_nothing_ends_in_time() {
    let mut image = b"HTTP/1.1 200 OK\r\ncontent-type: image/png\r\ncontent-length: 4\r\n\r\n".to_vec();
    image.extend([0x89, b'P', 0xff, 0xfe]);
    let server = Server::start(image).await;
    let tool = Made { parameters: json!({"type": "object"}), ..Made::default() }.tool(&server.base);
    assert_eq!(make(&tool, "{}").await.content, "[image/png that is no text, 4 bytes or more]");
    let server = Server::start("").await;
    let policy = Policy { timeout: Duration::from_millis(200), ..Policy::default() };
    let tool = Made { policy, parameters: json!({"type": "object"}), ..Made::default() }.tool(&server.base);
    let outcome = make(&tool, "{}").await;
    assert!(outcome.failed && outcome.content.contains("within 200ms"), "{outcome:?}");
}

#[tokio::test]
async fn a_tool_that_leads_home_gets_nothing() {
    let server = Server::start(ok("the crown jewels")).await;
    let port = server.base.rsplit(':').next().unwrap().to_owned();
    let home = ["127.0.0.1", "localhost", "[::1]", "2130706433", "0x7f000001", "localhost."];
    let hosts = home.map(|host| format!("http://{host}:{port}/")).into_iter();
    let others =
        ["http://169.254.169.254/latest/meta-data/", "https://169.254.169.254/", "http://metadata.google.internal/"];
    for url in hosts.chain(others.map(str::to_owned)).chain([format!("https://localhost:{port}/")]) {
        // Some address is allowed, so that names are resolved: it is another one.
        let tool = Made { allow: &["127.0.0.9"], parameters: json!({"type": "object"}), ..Made::default() }.tool(&url);
        let outcome = make(&tool, "{}").await;
        assert!(outcome.failed && !outcome.content.contains("jewels"), "{url}: {outcome:?}");
        let unknown = outcome.content == "the host has no address";
        assert!(outcome.content.contains("tools.weather.allow") || unknown, "{url}: {outcome:?}");
    }
    assert!(server.requests().is_empty());
}

#[tokio::test]
async fn nothing_that_a_model_says_changes_where_a_call_goes() {
    let server = Server::start(ok("fine")).await;
    let tool = Made { parameters: json!({"type": "object", "properties": {"q": {}}}), ..Made::default() }
        .tool(&format!("{}/search?q={{q}}", server.base));
    for q in [
        "http://169.254.169.254/",
        "@169.254.169.254/",
        "file:///etc/passwd",
        "../../etc/passwd",
        "x HTTP/1.1\r\nHost: evil",
    ] {
        assert_eq!(make(&tool, json!({ "q": q })).await.content, "fine");
        let request = server.requests().pop().unwrap();
        let line = request.lines().next().unwrap();
        assert!(line.starts_with("GET /search?q=") && line.matches(' ').count() == 2 && !line.contains("//"), "{line}");
        assert!(request.to_ascii_lowercase().contains(&format!("host: {}", &server.base[7..])), "{request}");
    }
}

#[tokio::test]
async fn secrets_are_shown_nowhere() {
    let server = Server::start(ok("you sent Bearer sesame-open, sesame-open it is")).await;
    let headers = [("Authorization", "Bearer sesame-open")];
    let made = Made { headers: &headers, parameters: json!({"type": "object"}), ..Made::default() };
    assert!(!format!("{:?}", made.request(&server.base).unwrap()).contains("sesame"));
    let cut_off = |text: &str| made.request(&server.base).unwrap().masks.apply_to_cut(text);
    assert_eq!((cut_off("it is Bearer sesame-o"), cut_off("it is sesame-o")), ("it is ***".into(), "it is ***".into()));
    let tool = made.tool(&server.base);
    assert_eq!(make(&tool, "{}").await.content, "you sent ***, *** it is");
    for name in ["Bad Name", "Host", "Content-Length"] {
        let refused = Made { headers: &[(name, "sesame-open")], ..Made::default() }.request("https://a.b/{city}{days}");
        let refused = refused.unwrap_err().to_string();
        assert!(refused.starts_with("headers: ") && !refused.contains("sesame"), "{refused}");
    }
}

#[test]
fn declarations_that_make_no_sense_are_refused_by_their_key() {
    for (made, url, key) in [
        (Made::default(), "https://a.b/{town}", "url"),
        (Made::default(), "https://a.b/{city}", "url"),
        (Made { method: "DELETE", ..Made::default() }, "https://a.b/{city}", "url"),
        (Made { body: Some(json!({})), ..Made::default() }, "https://a.b/{city}", "body"),
        (Made { parameters: json!({"type": "array"}), ..Made::default() }, "https://a.b/", "parameters"),
        (
            Made { parameters: json!({"type": "object", "properties": 5}), ..Made::default() },
            "https://a.b/",
            "parameters",
        ),
        (Made::default(), "ftp://a.b/", "url"),
    ] {
        assert_eq!(made.request(url).unwrap_err().key, key, "{url}");
    }
}
