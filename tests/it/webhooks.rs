//! Webhooks, seen by a receiver.

use std::collections::VecDeque;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use parking_lot::Mutex;
use reqwest::Method;
use serde_json::{Value, json};
use sha2::Sha256;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

use crate::harness::{Node, assert_promise, eventually, id_of, is_embedded};

/// Lets the tests' receivers be called, at an address that is not public.
const ALLOWED: &str = "webhooks.allow = [\"127.0.0.1/32\"]\nwebhooks.timeout = \"3s\"\n";

/// The same on every store; one of one process would make one up.
const KEYED: &str = "webhooks.key = \"a key of the tests, which is long enough\"\n";

fn options(more: &str) -> String {
    format!("{ALLOWED}{KEYED}{more}")
}

/// What a receiver does with a request.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Reply {
    Status(u16),
    /// Sends the sender elsewhere.
    Redirect(String),
    /// Says nothing, for as long as the sender waits.
    Silence,
}

/// What a receiver was sent.
#[derive(Debug, Clone)]
struct Received {
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Received {
    fn header(&self, name: &str) -> &str {
        let found = self.headers.iter().find(|(known, _)| known == name);
        found.map_or_else(|| panic!("no header {name} in {self:?}"), |(_, value)| value)
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("a JSON body")
    }

    /// Which of the secrets have signed it, one signature each.
    fn signed_by<'a>(&self, secrets: &[&'a str]) -> Vec<&'a str> {
        let message = format!("{}.{}.", self.header("webhook-id"), self.header("webhook-timestamp"));
        let sign = |secret: &str| {
            let key = STANDARD.decode(secret.strip_prefix("whsec_").expect("a secret")).expect("base64");
            let mut mac = Hmac::<Sha256>::new_from_slice(&key).expect("a key");
            mac.update(message.as_bytes());
            mac.update(&self.body);
            format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
        };
        let signatures: Vec<&str> = self.header("webhook-signature").split(' ').collect();
        let known: Vec<_> =
            secrets.iter().copied().filter(|secret| signatures.contains(&sign(secret).as_str())).collect();
        assert_eq!(signatures.len(), known.len(), "nobody else has signed it: {self:?}");
        known
    }
}

/// A receiver of webhooks.
struct Receiver {
    url: String,
    received: Arc<Mutex<Vec<Received>>>,
    server: tokio::task::JoinHandle<()>,
}

impl Receiver {
    /// Replies as told, request by request, and with 204 from then on.
    async fn start(replies: &[Reply]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}/hook?token=hush", listener.local_addr().expect("an address"));
        let replies = Arc::new(Mutex::new(replies.iter().cloned().collect()));
        let received = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&received);
        let server = tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(serve(socket, Arc::clone(&replies), Arc::clone(&sink)));
            }
        });
        Self { url, received, server }
    }

    fn received(&self) -> Vec<Received> {
        self.received.lock().clone()
    }

    /// Waits until so many requests have come.
    async fn until(&self, count: usize) -> Vec<Received> {
        eventually(&format!("{count} webhooks have come"), async || {
            let received = self.received();
            (received.len() >= count).then_some(received)
        })
        .await
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// Serves a connection, request by request.
async fn serve(
    mut socket: TcpStream,
    replies: Arc<Mutex<VecDeque<Reply>>>,
    received: Arc<Mutex<Vec<Received>>>,
) -> Option<()> {
    let (read, mut write) = socket.split();
    let mut read = BufReader::new(read);
    loop {
        let (mut headers, mut line) = (Vec::new(), String::new());
        read.read_line(&mut line).await.ok().filter(|count| *count > 0)?;
        assert_eq!(line.trim_end(), "POST /hook?token=hush HTTP/1.1");
        loop {
            line.clear();
            read.read_line(&mut line).await.ok().filter(|count| *count > 0)?;
            let Some((name, value)) = line.trim_end().split_once(": ") else { break };
            headers.push((name.to_lowercase(), value.to_owned()));
        }
        let length = headers.iter().find(|(name, _)| name == "content-length")?.1.parse().ok()?;
        let mut body = vec![0; length];
        read.read_exact(&mut body).await.ok()?;
        received.lock().push(Received { headers, body });
        let reply = replies.lock().pop_front().unwrap_or(Reply::Status(204));
        let head = match reply {
            Reply::Status(status) => format!("HTTP/1.1 {status} So\r\ncontent-length: 0\r\n\r\n"),
            Reply::Redirect(to) => format!("HTTP/1.1 307 So\r\nlocation: {to}\r\ncontent-length: 0\r\n\r\n"),
            Reply::Silence => {
                // Until the sender has had enough.
                drop(read.read_line(&mut line).await);
                return None;
            }
        };
        write.write_all(head.as_bytes()).await.ok()?;
    }
}

async fn endpoint(node: &Node, url: &str) -> Value {
    let created = node.post_json("/v1/webhooks/endpoints", &json!({"url": url})).await;
    assert_eq!(created.status, 201, "{created:?}");
    created.json()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("not a text: {value}"))
}

/// Creates a run and waits until it has completed; it.
async fn completed(node: &Node) -> Value {
    let id = node.create(json!({"agent": "scripted", "input": "hello", "metadata": {"a": "b"}})).await;
    node.until(&id, &["completed"]).await
}

/// Waits until the only delivery stands so; it.
async fn delivery(node: &Node, status: &str) -> Value {
    eventually(&format!("the delivery is {status}"), async || {
        let page = node.get("/v1/webhooks/deliveries").await.json();
        let data = page["data"].as_array().expect("a page").clone();
        assert!(data.len() <= 1, "{data:?}");
        data.into_iter().find(|delivery| delivery["status"] == status)
    })
    .await
}

#[tokio::test]
async fn the_end_of_a_run_is_told_signed_and_as_the_api_shows_it() {
    // A store of one process makes a key of its own.
    let node = Node::start(if is_embedded() { ALLOWED.to_owned() } else { options("") }).await;
    let (receiver, own) = (Receiver::start(&[]).await, Receiver::start(&[]).await);
    let created = endpoint(&node, &receiver.url).await;
    let (id, secret) = (id_of(&created), text(&created["secret"]));
    assert_eq!(created["events"], json!(["run.completed", "run.failed", "run.cancelled", "run.expired"]));
    if is_embedded() {
        use std::os::unix::fs::PermissionsExt as _;
        let key = std::fs::metadata(node.directory().join("data").join("webhook.key")).unwrap();
        assert_eq!(key.permissions().mode() & 0o777, 0o600);
    }
    let run = completed(&node).await;
    assert_promise(&node, text(&run["id"])).await;
    let told = receiver.until(1).await.remove(0);
    assert_eq!(told.signed_by(&[secret]), [secret]);
    assert_eq!(told.header("content-type"), "application/json");
    let body = told.json();
    assert_eq!((&body["type"], &body["data"]), (&json!("run.completed"), &run));
    assert_eq!(body["timestamp"], run["finished_at"]);
    let delivered = delivery(&node, "delivered").await;
    assert_eq!((text(&delivered["id"]), text(&delivered["endpoint_id"])), (told.header("webhook-id"), id.as_str()));
    assert_eq!((&delivered["attempts"], &delivered["response_status"]), (&json!(1), &json!(204)));
    assert_eq!(delivered["run_id"], run["id"]);

    // A run can name a receiver of its own, and what it wants to hear.
    let wish = |events| {
        json!({"agent": "scripted", "input": "x", "params": {"fail_at": 1}, "max_attempts": 1,
        "webhook": {"url": own.url, "events": events}})
    };
    node.wait_final(&node.create(wish(json!(["run.completed", "run.waiting"]))).await).await;
    let failed = node.wait_final(&node.create(wish(json!(["run.failed"]))).await).await;
    let told = own.until(1).await.remove(0);
    let tenant = node.get("/v1/webhooks/secret").await.json();
    assert_eq!(told.signed_by(&[text(&tenant["secret"])]).len(), 1);
    assert_eq!((&told.json()["type"], &told.json()["data"]), (&json!("run.failed"), &failed));
    receiver.until(3).await;
    assert_eq!(own.received().len(), 1);
    let listed = async || {
        let page = node.get(&format!("/v1/webhooks/deliveries?endpoint={id}&status=delivered")).await.json();
        page["data"].as_array().expect("a page").len()
    };
    eventually("all are delivered", async || (listed().await == 3).then_some(())).await;
    eventually("all are counted", async || {
        (node.metric("runcast_webhooks_total{outcome=\"delivered\"}").await == 4.0).then_some(())
    })
    .await;

    // What a run leaves goes with it.
    assert_eq!(node.delete(&format!("/v1/runs/{}", text(&run["id"]))).await.status, 204);
    assert_eq!(listed().await, 2);
}

#[tokio::test]
async fn a_receiver_that_fails_gets_the_same_webhook_again() {
    let node = Node::start(options("")).await;
    let receiver = Receiver::start(&[Reply::Status(500)]).await;
    let secret = endpoint(&node, &receiver.url).await["secret"].clone();
    let run = completed(&node).await;
    receiver.until(1).await;
    let waits = eventually("the failure is written", async || {
        let pending = delivery(&node, "pending").await;
        (pending["attempts"] == 1).then_some(pending)
    })
    .await;
    assert_eq!((&waits["response_status"], &waits["error"]), (&json!(500), &json!("the receiver has answered 500")));
    let told = receiver.until(2).await;
    assert_eq!(told[0].header("webhook-id"), told[1].header("webhook-id"));
    for told in &told {
        assert_eq!(told.signed_by(&[text(&secret)]).len(), 1);
        assert_eq!(told.json()["data"]["id"], run["id"]);
    }
    assert_eq!(delivery(&node, "delivered").await["attempts"], 2);
    assert_eq!(receiver.received().len(), 2);
}

#[tokio::test]
async fn news_of_a_thread_say_which() {
    let node = Node::start(options("")).await;
    let receiver = Receiver::start(&[]).await;
    let wish = json!({"url": receiver.url, "events": ["thread.handed_off"]});
    assert_eq!(node.post_json("/v1/webhooks/endpoints", &wish).await.status, 201);
    let thread = id_of(&node.post_json("/v1/threads", &json!({})).await.json());
    node.post_json(&format!("/v1/threads/{thread}/handoff"), &json!({"reason": "angry"})).await;
    let told = receiver.until(1).await[0].json();
    let expected = json!({"thread_id": thread, "reason": "angry", "run_id": null});
    assert_eq!((&told["type"], &told["data"]), (&json!("thread.handed_off"), &expected));
}

#[tokio::test]
async fn a_kill_between_the_end_and_the_delivery_loses_nothing() {
    let mut node = Node::start(options("")).await;
    let receiver = Receiver::start(&[Reply::Silence]).await;
    let secret = endpoint(&node, &receiver.url).await["secret"].clone();
    let run = completed(&node).await;
    // It is on its way, and nobody knows whether it has come.
    let id = receiver.until(1).await[0].header("webhook-id").to_owned();
    node.kill9().await;
    assert_eq!(receiver.received().len(), 1);
    node.restart().await;
    let told = receiver.until(2).await;
    assert_eq!(told[1].header("webhook-id"), id);
    assert_eq!(told[1].json()["data"]["id"], run["id"]);
    assert_eq!(told[1].signed_by(&[text(&secret)]).len(), 1, "the key is still the same");
    delivery(&node, "delivered").await;
}

#[tokio::test]
async fn a_shutdown_leaves_what_it_cannot_deliver_to_the_next_node() {
    let mut node =
        Node::start(format!("{}webhooks.timeout = \"1m\"\n", options("").replace("webhooks.timeout = \"3s\"\n", "")))
            .await;
    let receiver = Receiver::start(&[Reply::Silence]).await;
    endpoint(&node, &receiver.url).await;
    completed(&node).await;
    receiver.until(1).await;
    node.sigterm();
    assert_eq!(node.wait_exit().await.code(), Some(0));
    node.restart().await;
    let told = receiver.until(2).await;
    assert_eq!(told[0].header("webhook-id"), told[1].header("webhook-id"));
    assert_eq!(delivery(&node, "delivered").await["attempts"], 1, "what was cut off is not charged");
}

#[tokio::test]
async fn the_last_attempt_leaves_a_dead_letter_and_can_be_made_again() {
    let node = Node::start(options("webhooks.attempts = 1\n")).await;
    let elsewhere = Receiver::start(&[]).await;
    let receiver = Receiver::start(&[Reply::Redirect(elsewhere.url.clone())]).await;
    endpoint(&node, &receiver.url).await;
    let run = completed(&node).await;
    let dead = delivery(&node, "dead").await;
    assert_eq!((&dead["attempts"], &dead["response_status"]), (&json!(1), &json!(307)));
    assert!(elsewhere.received().is_empty(), "a redirect is not followed");
    let letters = node.get("/v1/queues/dead").await.json();
    let letter = &letters["data"][0];
    assert_eq!((&letter["id"], &letter["source"]), (&dead["id"], &json!("webhook")));
    let reason = text(&letter["reason"]);
    assert!(reason.starts_with("run.completed to http://127.0.0.1:") && reason.contains("/hook: "), "{reason}");
    assert!(reason.ends_with("the receiver has answered 307, after 1 attempts"), "{reason}");
    assert!(!letters.to_string().contains("hush"), "{letters}");
    assert!(text(&letter["payload"]).contains(text(&run["id"])));
    let requeued = node.post(&format!("/v1/queues/dead/{}/requeue", text(&dead["id"]))).await;
    assert!(requeued.assert_problem(409, "unmapped").contains("redeliver"));

    let again = node.post(&format!("/v1/webhooks/deliveries/{}/redeliver", text(&dead["id"]))).await;
    assert_eq!((again.status.as_u16(), &again.json()["status"]), (202, &json!("pending")));
    let told = receiver.until(2).await;
    assert_eq!(told[0].header("webhook-id"), told[1].header("webhook-id"));
    delivery(&node, "delivered").await;
    assert_eq!(node.get("/v1/queues/dead").await.json()["data"], json!([]));
    let unknown = "/v1/webhooks/deliveries/0198c1d2-0000-7000-8000-000000000000/redeliver";
    node.post(unknown).await.assert_problem(404, "not_found");
}

#[tokio::test]
async fn a_rotated_secret_signs_beside_the_one_before() {
    let node = Node::start(options("")).await;
    let receiver = Receiver::start(&[]).await;
    let created = endpoint(&node, &receiver.url).await;
    let path = format!("/v1/webhooks/endpoints/{}", id_of(&created));
    let shown = node.get(&format!("{path}/secret")).await.json();
    assert_eq!((&shown["secret"], shown.get("previous_until")), (&created["secret"], None));
    let rotate = async |path: &str| {
        node.send(node.request(Method::POST, &format!("{path}/rotate")).header("idempotency-key", "k")).await
    };
    let rotated = rotate(&path).await.json();
    assert_eq!(rotate(&path).await.json(), rotated, "once for its key");
    let other = format!("/v1/webhooks/endpoints/{}", id_of(&endpoint(&node, "https://example.com").await));
    rotate(&other).await.assert_problem(409, "idempotency_key_reused");
    assert_eq!(node.delete(&other).await.status, 204);
    let (old, new) = (text(&created["secret"]), text(&rotated["secret"]));
    assert_ne!(old, new);
    completed(&node).await;
    assert_eq!(receiver.until(1).await[0].signed_by(&[new, old]), [new, old]);
    let shown = node.get(&format!("{path}/secret")).await.json();
    assert_eq!(shown["secret"], rotated["secret"]);
    assert!(shown["previous_until"].is_string(), "{shown}");
}

#[tokio::test]
async fn nothing_private_is_called_unless_it_is_allowed() {
    let node = Node::start(format!("{KEYED}webhooks.attempts = 1")).await;
    let receiver = Receiver::start(&[]).await;
    let port = receiver.url.split(['/', ':']).find_map(|part| part.parse::<u16>().ok()).expect("a port");
    for url in [
        receiver.url.clone(),
        format!("https://127.0.0.1:{port}/"),
        format!("https://[::ffff:127.0.0.1]:{port}/"),
        "https://169.254.169.254/latest/meta-data/".to_owned(),
        "https://10.0.0.1/".to_owned(),
        "http://example.com/".to_owned(),
        "https://user:password@example.com/".to_owned(),
        "ftp://example.com/".to_owned(),
    ] {
        let refused = node.post_json("/v1/webhooks/endpoints", &json!({"url": url})).await;
        refused.assert_problem(400, "invalid_field");
        assert_eq!(refused.json()["field"], "url");
        let wish = json!({"agent": "scripted", "input": "x", "webhook": {"url": url}});
        let refused = node.post_json("/v1/runs", &wish).await;
        refused.assert_problem(400, "invalid_field");
        assert_eq!(refused.json()["field"], "webhook.url");
    }
    // Where a name leads shows when it is called.
    endpoint(&node, &format!("https://localhost:{port}/hook")).await;
    completed(&node).await;
    let dead = delivery(&node, "dead").await;
    assert_eq!(dead["error"], "the host has no public address, and webhooks.allow does not name it");
    assert!(receiver.received().is_empty());
}

#[tokio::test]
async fn a_receiver_that_is_gone_is_not_called_again() {
    let node = Node::start(options("")).await;
    let receiver = Receiver::start(&[Reply::Status(410)]).await;
    let path = format!("/v1/webhooks/endpoints/{}", id_of(&endpoint(&node, &receiver.url).await));
    completed(&node).await;
    eventually("the endpoint is disabled", async || (node.get(&path).await.json()["enabled"] == false).then_some(()))
        .await;
    let dead = delivery(&node, "dead").await;
    let redeliver = format!("/v1/webhooks/deliveries/{}/redeliver", text(&dead["id"]));
    node.post(&redeliver).await.assert_problem(409, "endpoint_disabled");
    completed(&node).await;
    let enabled = node.send(node.request(Method::PATCH, &path).json(&json!({"enabled": true}))).await;
    assert_eq!(enabled.json()["enabled"], true);
    assert_eq!(node.post(&redeliver).await.status, 202);
    receiver.until(2).await;
    delivery(&node, "delivered").await;
    assert_eq!(receiver.received().len(), 2, "the run between was told to nobody");
}

#[tokio::test]
async fn endpoints_are_created_listed_changed_and_removed() {
    let node = Node::start(options("")).await;
    let body = json!({"url": "https://example.com/a", "events": ["run.failed", "run.failed"], "agent": "scripted"});
    let post = || node.request(Method::POST, "/v1/webhooks/endpoints").header("idempotency-key", "k");
    let first = node.send(post().json(&body)).await;
    let again = node.send(post().json(&body)).await;
    assert_eq!((first.status.as_u16(), first.json()), (201, again.json()));
    node.send(post().json(&json!({"url": "https://example.com/b"})))
        .await
        .assert_problem(409, "idempotency_key_reused");
    let location = first.header("location").to_owned();
    assert_eq!(location, format!("/v1/webhooks/endpoints/{}", id_of(&first.json())));
    let mut shown = first.json();
    assert_eq!(shown["events"], json!(["run.failed"]));
    shown.as_object_mut().unwrap().remove("secret").expect("shown at its creation alone");
    assert_eq!(node.get(&location).await.json(), shown);

    let second = endpoint(&node, "https://example.com/b").await;
    let page = node.get("/v1/webhooks/endpoints?limit=1").await.json();
    assert_eq!(page["data"], json!([shown]));
    let rest = node.get(&format!("/v1/webhooks/endpoints?cursor={}", text(&page["next_cursor"]))).await.json();
    assert_eq!((id_of(&rest["data"][0]), &rest["next_cursor"]), (id_of(&second), &Value::Null));

    let patch = async |body: Value| node.send(node.request(Method::PATCH, &location).json(&body)).await;
    let changed = patch(json!({"agent": null, "url": "https://example.com/c"})).await.json();
    assert_eq!((&changed["agent"], &changed["url"]), (&Value::Null, &json!("https://example.com/c")));
    assert_eq!(changed["events"], json!(["run.failed"]));
    for (body, field) in [
        (json!({"url": "https://127.0.0.2"}), "url"),
        (json!({"events": []}), "events"),
        (json!({"agent": ""}), "agent"),
        (json!({"url": null}), "url"),
        (json!({"enabled": null}), "enabled"),
        (json!({"events": null}), "events"),
        (json!({"events": [5]}), "events[0]"),
        (json!({"agent": "scripted", "events": ["thread.released"]}), "events"),
    ] {
        let refused = patch(body).await;
        refused.assert_problem(400, "invalid_field");
        assert_eq!(refused.json()["field"], field);
    }
    patch(json!({"events": ["run.started"]})).await.assert_problem(400, "invalid_field");
    // News of threads are of no agent.
    let of_threads = json!({"url": "https://example.com", "events": ["thread.released"], "agent": "elsewhere"});
    let refused = node.post_json("/v1/webhooks/endpoints", &of_threads).await;
    assert_eq!(refused.json()["field"], "events", "{refused:?}");
    assert_eq!(patch(json!({"events": ["thread.released"]})).await.status, 200);
    let refused = patch(json!({"agent": "elsewhere"})).await;
    assert_eq!(refused.json()["field"], "events", "{refused:?}");
    assert_eq!(patch(json!({"agent": "elsewhere", "events": ["run.failed", "thread.released"]})).await.status, 200);
    let wish = json!({"agent": "scripted", "input": "x",
        "webhook": {"url": "https://example.com", "events": ["thread.released"]}});
    let refused = node.post_json("/v1/runs", &wish).await;
    assert_eq!(refused.json()["field"], "webhook.events", "{refused:?}");

    assert_eq!(node.delete(&location).await.status, 204);
    for answer in [node.delete(&location).await, node.get(&location).await, patch(json!({})).await] {
        answer.assert_problem(404, "not_found");
    }
    node.post(&format!("{location}/rotate")).await.assert_problem(404, "not_found");
    node.get("/v1/webhooks/deliveries?status=lost").await.assert_problem(400, "invalid_field");
}

#[tokio::test]
async fn nodes_that_share_a_store_are_told_their_key() {
    if is_embedded() {
        return;
    }
    let node = Node::start(ALLOWED).await;
    let refused = node.post_json("/v1/webhooks/endpoints", &json!({"url": "https://example.com"})).await;
    assert!(refused.assert_problem(503, "webhooks_unavailable").contains("webhooks.key"));
    let wish = json!({"agent": "scripted", "input": "x", "webhook": {"url": "https://example.com"}});
    let refused = node.post_json("/v1/runs", &wish).await;
    assert!(refused.assert_problem(503, "webhooks_unavailable").contains("webhooks.key"));
}

#[tokio::test]
async fn the_library_of_the_scheme_verifies_what_is_sent() {
    let Some(python) = std::env::var_os("RUNCAST_PYTHON") else {
        assert!(std::env::var("RUNCAST_REQUIRE_SERVERS").as_deref() != Ok("1"), "RUNCAST_PYTHON is not set");
        return eprintln!("skipped: no python (RUNCAST_PYTHON is not set; tests/run installs what the examples need)");
    };
    let node = Node::start(options("")).await;
    let secret = node.get("/v1/webhooks/secret").await.json();
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join("webhook_receiver.py");
    let mut command = tokio::process::Command::new(python);
    command.arg(path).env("WEBHOOK_SECRET", text(&secret["secret"])).stdout(Stdio::piped()).kill_on_drop(true);
    let mut receiver = command.spawn().expect("python");
    let mut lines = BufReader::new(receiver.stdout.take().expect("a pipe")).lines();
    let mut next = async || {
        let line = tokio::time::timeout(Duration::from_secs(30), lines.next_line()).await.expect("a line in time");
        line.expect("a pipe").expect("a line")
    };
    let port = next().await.strip_prefix("listening on ").expect("a port").to_owned();
    let webhook = json!({"url": format!("http://127.0.0.1:{port}/")});
    let id = node.create(json!({"agent": "scripted", "input": "x", "webhook": webhook})).await;
    assert_eq!(next().await, format!("run.completed {id}"));
    assert_eq!(delivery(&node, "delivered").await["response_status"], 204);
}
