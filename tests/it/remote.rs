//! Agents that are HTTP services.

use std::collections::BTreeSet;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::harness::{Node, Options, assert_promise, soon};
use crate::programs::assert_not_in_files;

/// A service that answers the requests in turn, and tells what it was asked.
struct Service {
    url: String,
    requests: UnboundedReceiver<Request>,
    left: UnboundedReceiver<()>,
}

/// What the service was asked.
struct Request {
    head: String,
    body: Value,
}

impl Service {
    /// The answers are bytes; a connection stays open behind one that ends with `…`.
    async fn start(answers: Vec<String>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/agent/", listener.local_addr().unwrap());
        let ((told, requests), (leaves, left)) = (unbounded_channel(), unbounded_channel());
        tokio::spawn(async move {
            for answer in answers {
                let Ok((socket, _)) = listener.accept().await else { return };
                tokio::spawn(serve(socket, answer, told.clone(), leaves.clone()));
            }
        });
        Self { url, requests, left }
    }

    async fn asked(&mut self) -> Request {
        soon("a request", self.requests.recv()).await.expect("a request")
    }

    /// A node with an agent that is this service.
    fn options(&self, more: &str) -> Options {
        Options::from(format!(
            "runs.backoff_base = \"1ms\"\nruns.backoff_max = \"1ms\"\n[agents.mine]\nkind = \"remote\"\nurl = \"{}\"\n{more}",
            self.url
        ))
    }
}

async fn serve(
    mut socket: TcpStream,
    answer: String,
    told: UnboundedSender<Request>,
    leaves: UnboundedSender<()>,
) -> Option<()> {
    let mut reader = BufReader::new(&mut socket);
    let (mut head, mut line) = (String::new(), String::new());
    while reader.read_line(&mut line).await.ok()? > 2 {
        head += &std::mem::take(&mut line).to_lowercase();
    }
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok())?;
    let mut body = vec![0; length];
    reader.read_exact(&mut body).await.ok()?;
    told.send(Request { head, body: serde_json::from_slice(&body).ok()? }).ok()?;
    socket.write_all(answer.trim_end_matches('…').as_bytes()).await.ok()?;
    if answer.ends_with('…') {
        let _ = socket.read(&mut [0]).await;
    }
    leaves.send(()).ok()
}

/// A stream of these messages, which the end of the connection ends.
fn stream(messages: &[Value]) -> String {
    let events: String = messages.iter().map(|message| format!("data: {message}\n\n")).collect();
    format!("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n{events}")
}

/// A whole answer.
fn whole(status: &str, headers: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\ncontent-type: application/json\r\n{headers}content-length: {length}\r\n\r\n{body}")
}

fn token(text: &str) -> Value {
    json!({"type": "token", "text": text})
}

#[tokio::test]
async fn a_service_streams_and_goes_on_from_its_steps_when_its_answer_was_cut() {
    let step = json!({"type": "step", "name": "first", "result": {"n": 1}});
    let complete = json!({"type": "complete", "output": "Hello"});
    let answers = vec![stream(&[token("Hel"), step, token("lost")]), stream(&[token("lo"), complete])];
    let mut service = Service::start(answers).await;
    let node = Node::start(service.options("")).await;
    let id = node.create(json!({"agent": "mine", "input": "Hi"})).await;
    let run = node.wait_final(&id).await;
    assert_eq!((&run["status"], &run["output"]), (&json!("completed"), &json!("Hello")), "{run}");
    let log = assert_promise(&node, &id).await;
    assert_eq!(log.retries, ["transient_error"]);
    let (first, second) = (service.asked().await, service.asked().await);
    assert!(first.head.starts_with("post /agent/ http/1.1"), "{}", first.head);
    assert!(first.head.contains(&format!("idempotency-key: {id}:0\r\n")), "{}", first.head);
    assert!(second.head.contains(&format!("idempotency-key: {id}:1\r\n")), "{}", second.head);
    assert_eq!((&first.body["type"], &first.body["steps"]), (&json!("start"), &json!([])));
    let kept = json!([{"step": 1, "kind": "tool", "name": "first", "result": {"n": 1},
        "usage": {"input_tokens": 0, "output_tokens": 0}}]);
    assert_eq!((&second.body["attempt"], &second.body["steps"]), (&json!(2), &kept));
    let retry = node.events(&id).await.into_iter().find(|event| event.kind == "run.retrying").expect("a retry");
    assert!(retry.data["message"].as_str().unwrap().contains("before complete or fail"), "{retry:?}");
}

#[tokio::test]
async fn cancelling_closes_the_connection_to_the_service() {
    let mut service = Service::start(vec![stream(&[token("so ")]) + "…"]).await;
    let node = Node::start(service.options("")).await;
    let id = node.create(json!({"agent": "mine", "input": "Hi"})).await;
    node.until_said(&id, 1).await;
    assert_eq!(node.cancel(&id).await.status, 202);
    soon("the connection is closed", service.left.recv()).await.unwrap();
    assert_eq!(node.wait_final(&id).await["status"], "cancelled");
}

#[tokio::test]
async fn a_service_that_is_busy_is_asked_again_when_it_says_and_may_answer_in_one_piece() {
    let answers = vec![
        whole("503 Service Unavailable", "retry-after: 1\r\n", "busy"),
        whole("200 OK", "", r#"{"output":{"made":"it"}}"#),
    ];
    let service = Service::start(answers).await;
    let node = Node::start(service.options("")).await;
    let id = node.create(json!({"agent": "mine", "input": "Hi"})).await;
    let run = node.wait_final(&id).await;
    assert_eq!((&run["status"], &run["output"]), (&json!("completed"), &json!({"made": "it"})), "{run}");
    let page = node.get(&format!("/v1/runs/{id}/events")).await.json();
    let retry = page["data"].as_array().unwrap().iter().find(|event| event["type"] == "run.retrying").unwrap().clone();
    let time = |text: &Value| text.as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    let wait = time(&retry["data"]["due"]).duration_since(time(&retry["at"]));
    assert!(wait.as_millis() >= 900, "{retry}");
    assert!(retry["data"]["message"].as_str().unwrap().contains("answered 503 Service Unavailable: busy"), "{retry}");
}

#[tokio::test]
async fn a_service_asks_a_person_and_is_told_the_answer() {
    let ask = json!({"type": "ask", "prompt": {"question": "How many?"}});
    let complete = json!({"type": "complete", "output": "three"});
    let mut service = Service::start(vec![stream(&[ask]), whole("200 OK", "", &complete.to_string())]).await;
    let node = Node::start(service.options("")).await;
    let id = node.create(json!({"agent": "mine", "input": "Hi"})).await;
    let run = node.until(&id, &["waiting"]).await;
    assert_eq!(run["reason"], "input", "{run}");
    let waiting = node.events(&id).await.pop().unwrap().data;
    let answer = json!({"wait_id": waiting["wait_id"], "input": 3});
    assert_eq!(node.post_json(&format!("/v1/runs/{id}/resume"), &answer).await.status, 200);
    assert_eq!(node.wait_final(&id).await["output"], "three");
    service.asked().await;
    let step = service.asked().await.body["steps"][0].clone();
    assert_eq!((&step["kind"], &step["result"]["input"]), (&json!("ask"), &json!(3)));
}

#[tokio::test]
async fn the_headers_of_a_service_are_shown_nowhere() {
    const CANARY: &str = "canary-77c0de";
    let echo = format!("{{\"error\":\"{CANARY} is no key\"}}");
    let mut service = Service::start(vec![whole("500 Oops", "", &echo), whole("401 No", "", &echo)]).await;
    let mut options = service.options("headers = [\"authorization=env:MY_CANARY\"]");
    options.env = vec![("MY_CANARY", CANARY.to_owned()), ("RUNCAST_LOG_LEVEL", "trace".to_owned())];
    let node = Node::start(options).await;
    let id = node.create(json!({"agent": "mine", "input": "Hi"})).await;
    let run = node.wait_final(&id).await;
    assert_eq!(run["error"]["code"], "program_rejected", "{run}");
    assert!(service.asked().await.head.contains(&format!("authorization: {CANARY}")));
    let events = node.get(&format!("/v1/runs/{id}/events")).await.text();
    let shown = [node.log(), run.to_string(), events, node.get("/metrics").await.text()];
    assert!(shown.iter().all(|text| !text.contains(CANARY)), "{shown:?}");
    assert_not_in_files(node.directory(), CANARY);
}

#[tokio::test]
async fn the_example_of_a_service_serves_runs() {
    let Ok(python) = std::env::var("RUNCAST_PYTHON") else {
        assert!(std::env::var("RUNCAST_REQUIRE_SERVERS").as_deref() != Ok("1"), "RUNCAST_PYTHON is not set");
        return eprintln!("skipped: no python (RUNCAST_PYTHON is not set; tests/run installs what the examples need)");
    };
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/remote_agent.py");
    assert!(std::fs::read_to_string(&path).unwrap().lines().count() <= 40);
    let mut command = tokio::process::Command::new(python);
    command.arg(path).arg("0").stdout(Stdio::piped()).kill_on_drop(true);
    let mut example = command.spawn().expect("python");
    let mut greeting = String::new();
    let mut out = BufReader::new(example.stdout.take().unwrap());
    soon("its port", out.read_line(&mut greeting)).await.unwrap();
    let port = greeting.trim().strip_prefix("listening on ").unwrap_or_else(|| panic!("{greeting}"));
    let url = format!("[agents.shout]\nkind = \"remote\"\nurl = \"http://127.0.0.1:{port}/\"\n");
    let node = Node::start(url).await;
    let mut ids = BTreeSet::new();
    for _ in 0..3 {
        ids.insert(node.create(json!({"agent": "shout", "input": "hello there"})).await);
    }
    for id in ids {
        let run = tokio::time::timeout(Duration::from_secs(30), node.wait_final(&id)).await.unwrap();
        assert_eq!(run["output"], "HELLO THERE", "{run}");
        assert_promise(&node, &id).await;
    }
}
