use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::*;
use crate::agent::protocol::tests::context;
use crate::run::Event;

/// Longer than any test takes.
const LONG: Duration = Duration::from_secs(20);

/// A service whose answer to request number `n`, from 0, is `answer(n)`; it holds the connection open if `hold`.
async fn service(hold: bool, answer: impl Fn(usize) -> Vec<u8> + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let (answer, next) = (Arc::new(answer), AtomicUsize::new(0));
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(serve(socket, answer(next.fetch_add(1, Ordering::Relaxed)), hold));
        }
    });
    url
}

async fn serve(mut socket: TcpStream, answer: Vec<u8>, hold: bool) {
    let mut request = Vec::new();
    // The body is JSON without line breaks, and an object.
    while !request.ends_with(b"}") {
        if socket.read_buf(&mut request).await.unwrap_or(0) == 0 {
            return;
        }
    }
    if socket.write_all(&answer).await.is_ok() && hold {
        let _ = socket.read(&mut [0]).await;
    }
}

fn agent(url: &str) -> RemoteAgent {
    rustls::crypto::ring::default_provider().install_default().ok();
    RemoteAgent::new(RemoteAgentOptions {
        card: AgentCard::new("mine", "remote"),
        url: url.to_owned(),
        headers: Vec::new(),
        connect_timeout: LONG,
        first_event_timeout: LONG,
        idle_timeout: LONG,
    })
    .unwrap()
}

async fn run(agent: &RemoteAgent) -> (Result<Answer, AgentError>, Vec<Event>) {
    let (context, seen) = context(Vec::new());
    let ending = timeout(2 * LONG, agent.run(context)).await.expect("the service is not waited for for ever");
    let events = seen.events.lock().clone();
    (ending, events)
}

/// The ending of a run whose service answers so.
async fn ending(answer: &str) -> Result<Answer, AgentError> {
    let answer = answer.as_bytes().to_vec();
    run(&agent(&service(false, move |_| answer.clone()).await)).await.0
}

/// An answer that the end of its connection ends.
fn open(kind: &str, body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\nconnection: close\r\n\r\n{body}")
}

fn chunked(events: &str) -> String {
    let head =
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n";
    let chunks = events.split_inclusive("\n\n").map(|event| format!("{:x}\r\n{event}\r\n", event.len()));
    head.to_owned() + &chunks.collect::<String>() + "0\r\n\r\n"
}

fn event(message: &Value) -> String {
    format!("data: {message}\n\n")
}

fn recorded() -> String {
    let messages = [
        json!({"type": "token", "text": "Hel"}),
        json!({"type": "step", "name": "a", "result": {"type": "complete", "output": "not this"}}),
        json!({"type": "complete", "output": "Hello"}),
    ];
    format!(": hello\n\n{}", messages.iter().map(event).collect::<String>())
}

fn is(result: &Result<Answer, AgentError>, wanted: &str, passes: bool) -> bool {
    match result {
        Err(AgentError::Transient { code, .. }) => passes && code == wanted,
        Err(AgentError::Permanent { code, .. }) => !passes && code == wanted,
        Ok(_) | Err(AgentError::OutOfBudget(_) | AgentError::Ask(_) | AgentError::Stopped) => false,
    }
}

#[tokio::test]
async fn an_answer_that_is_cut_at_any_byte_never_completes_its_run_falsely() {
    let json = r#"{"output":"Hello","usage":{"input_tokens":1,"output_tokens":2}}"#;
    for recorded in [chunked(&recorded()), open("text/event-stream", &recorded()), open("application/json", json)] {
        let (bytes, streams) = (recorded.clone().into_bytes(), recorded.contains("event-stream"));
        // The last event is whole with its empty line, whatever frames it.
        let whole = if streams { recorded.rfind("\n\n").unwrap() + 2 } else { recorded.len() };
        let whole = if recorded.contains("chunked") { recorded.rfind("0\r\n\r\n").unwrap() - 2 } else { whole };
        let agent = agent(&service(false, move |cut| bytes[..cut].to_vec()).await);
        for cut in 0..=recorded.len() {
            match run(&agent).await.0 {
                Ok(answer) => assert!(cut >= whole && answer.output == "Hello", "cut at {cut} of {whole}: {answer:?}"),
                error => assert!(cut < whole && is(&error, "program_cut", true), "cut at {cut} of {whole}: {error:?}"),
            }
        }
    }
}

#[tokio::test]
async fn an_answer_may_be_one_message_that_ends_the_attempt() {
    let answer = async |body: &str| ending(&open("Application/JSON; charset=utf-8", body)).await;
    assert_eq!(answer(r#"{"output":1}"#).await, Ok(Answer::finished(1)));
    assert_eq!(answer(r#"{"type":"complete","output":1}"#).await, Ok(Answer::finished(1)));
    let failed = answer(r#"{"type":"fail","code":"no","message":"m"}"#).await;
    assert_eq!(failed, Err(AgentError::permanent("no", "m")));
    assert!(matches!(answer(r#"{"type":"ask","prompt":1}"#).await, Err(AgentError::Ask(_))));
    for body in [r#"{"type":"token","text":"x"}"#, "[]", "no JSON", r#"{"result":1}"#] {
        let ending = answer(body).await;
        assert!(is(&ending, "program_bad_message", false), "{body}: {ending:?}");
    }
    assert!(is(&answer("").await, "program_cut", true));
    let page = ending(&open("text/html", "<h1>Welcome</h1>")).await;
    assert!(is(&page, "program_bad_message", false), "{page:?}");
}

#[tokio::test]
async fn a_status_says_whether_it_may_pass() {
    let status = async |status: &str, headers: &str| {
        ending(&format!("HTTP/1.1 {status} X\r\n{headers}content-length: 5\r\n\r\nso be")).await
    };
    for (number, code, passes) in [
        ("408", "program_timeout", true),
        ("425", "program_unavailable", true),
        ("429", "program_rate_limited", true),
        ("500", "program_unavailable", true),
        ("503", "program_unavailable", true),
        ("307", "program_rejected", false),
        ("400", "program_rejected", false),
        ("401", "program_rejected", false),
        ("404", "program_rejected", false),
        ("409", "program_rejected", false),
    ] {
        let ending = status(number, "").await;
        assert!(is(&ending, code, passes), "{number}: {ending:?}");
    }
    let date = "date: Sun, 06 Nov 1994 08:49:37 GMT\r\nretry-after: Sun, 06 Nov 1994 08:49:47 GMT\r\n";
    for (headers, expected) in [("retry-after: 7\r\n", Some(7)), (date, Some(10)), ("retry-after: soon\r\n", None)] {
        let Err(AgentError::Transient { retry_after, message, .. }) = status("503", headers).await else {
            panic!("it may pass")
        };
        assert_eq!(retry_after, expected.map(Duration::from_secs));
        assert!(message.ends_with(": so be"), "{message}");
    }
}

#[tokio::test]
async fn silence_ends_in_a_timeout_and_comments_are_none() {
    let short = Duration::from_millis(200);
    for (answer, first, idle) in [
        (String::new(), short, LONG),
        (open("text/event-stream", ""), short, LONG),
        (open("application/json", "{\"output\""), short, LONG),
        (open("text/event-stream", ": comment\n\n"), LONG, short),
        (open("text/event-stream", &event(&json!({"type": "token", "text": "x"}))), LONG, short),
    ] {
        let bytes = answer.clone().into_bytes();
        let mut agent = agent(&service(true, move |_| bytes.clone()).await);
        (agent.options.first_event_timeout, agent.options.idle_timeout) = (first, idle);
        let ending = run(&agent).await.0;
        assert!(is(&ending, "program_timeout", true), "{answer}: {ending:?}");
    }
}

#[tokio::test]
async fn what_is_too_long_or_no_message_is_refused_by_its_number() {
    let long = event(&json!({"type": "token", "text": "x".repeat(1_100_000)}));
    for (answer, words) in [
        (open("text/event-stream", &long), "event 1 of the service of agent mine"),
        (open("text/event-stream", &long[..1_100_000]), "longer than 1048576 bytes"),
        (open("application/json", &"x".repeat(1_100_000)), "longer than 1048576 bytes"),
        (
            open(
                "text/event-stream",
                &format!(": x\n\ndata:\n\n{}data: no\n\n", event(&json!({"type": "token", "text": "x"}))),
            ),
            "event 2 of",
        ),
    ] {
        let ending = ending(&answer).await;
        let message = ending.as_ref().unwrap_err().to_string();
        assert!(is(&ending, "program_bad_message", false) && message.contains(words), "{words}: {message}");
    }
}

#[tokio::test]
async fn a_service_that_is_not_there_is_unreachable() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    drop(listener);
    let ending = run(&agent(&url)).await.0;
    assert!(is(&ending, "program_unreachable", true), "{ending:?}");
}

#[test]
fn options_that_cannot_work_are_refused_without_showing_a_secret() {
    let options = |url: &str, headers: &[(&str, &str)]| RemoteAgentOptions {
        url: url.to_owned(),
        headers: headers.iter().map(|(name, value)| ((*name).to_owned(), SecretString::from(*value))).collect(),
        ..agent("http://localhost/").options
    };
    for options in [
        options("localhost", &[]),
        options("ftp://localhost", &[]),
        options("http://localhost", &[("a b", "x")]),
        options("http://localhost", &[("authorization", "topsecret\n")]),
    ] {
        assert!(!format!("{options:?}").contains("topsecret"));
        let error = RemoteAgent::new(options).err().expect("it cannot work");
        assert!(!error.to_string().contains("topsecret"), "{error}");
    }
}
