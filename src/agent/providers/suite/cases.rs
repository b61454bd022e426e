//! The cases. Each waits for conditions; time is paused where the passing of time is what is checked.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt, TryStreamExt, stream};
use secrecy::SecretString;
use tokio::net::TcpListener;
use tokio::time::{Instant, timeout};

use super::server::{Reply, Server, UNTIL_CLOSED, chunked, http};
use super::{
    KEY, LONG, Subject, ask, ask_for, call, chat, is_permanent, is_transient, named, options, text, timeouts, unnamed,
};
use crate::agent::AgentError;
use crate::agent::providers::answer::{Answer, MAX_EVENT, MAX_TEXT};
use crate::agent::providers::faults::Who;
use crate::agent::providers::http::ProviderOptions;
use crate::agent::providers::{Piece, Provider, Timeouts};

/// The answer that these bytes are.
fn answer(
    subject: &Subject,
    body: impl Stream<Item = Result<Bytes, String>> + Send + Unpin + 'static,
    timeouts: Timeouts,
) -> crate::agent::providers::Pieces {
    let who = Arc::new(Who::new("local".to_owned(), "http://localhost".to_owned(), None));
    Answer::new(body, (subject.decoder)(), named("small"), who, timeouts, Instant::now()).pieces()
}

async fn read(
    subject: &Subject,
    body: impl Stream<Item = Result<Bytes, String>> + Send + Unpin + 'static,
) -> Result<Vec<Piece>, AgentError> {
    answer(subject, body, timeouts()).try_collect().await.map(unnamed)
}

async fn read_parts<'a>(
    subject: &Subject,
    parts: impl IntoIterator<Item = &'a [u8]>,
) -> Result<Vec<Piece>, AgentError> {
    let parts: Vec<_> = parts.into_iter().map(|part| Ok(Bytes::copy_from_slice(part))).collect();
    read(subject, stream::iter(parts)).await
}

/// The code of an error that may pass.
#[track_caller]
fn passing(result: Result<Vec<Piece>, AgentError>) -> String {
    match result {
        Err(AgentError::Transient { code, .. }) => code,
        other => panic!("expected a transient error, got {other:?}"),
    }
}

/// Whether this took so long, to the millisecond that timers are exact to.
fn took(begun: Instant, long: Duration) -> bool {
    begun.elapsed().abs_diff(long) <= Duration::from_millis(1)
}

fn expected(subject: &Subject) -> Vec<Piece> {
    [named("small")].into_iter().chain((subject.pieces)()).collect()
}

/// What an answer that finished has, whatever became of its usage.
fn without_usage(pieces: Vec<Piece>) -> Vec<Piece> {
    pieces.into_iter().filter(|piece| !matches!(piece, Piece::Usage(_))).collect()
}

pub(super) async fn an_answer_is_streamed_with_its_model_calls_and_usage(subject: Subject) {
    let mut server = Server::says(chunked(subject.recorded) + "0\r\n\r\n").await;
    assert_eq!(ask(&server.client(&subject)).await, Ok(expected(&subject)));
    let request = server.requests.recv().await.unwrap();
    let (head, body) = request.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("POST /v1/") && head.contains(&format!("\r\n{}{KEY}\r\n", subject.key)), "{head}");
    assert_eq!(request.matches(KEY).count(), 1);
    assert!(body.starts_with('{') && body.contains("Hi"), "{body}");
}

pub(super) async fn an_answer_that_is_not_streamed_is_taken_too(subject: Subject) {
    let server = Server::says(http("200 OK", "application/json", subject.whole)).await;
    let pieces = without_usage(ask(&server.client(&subject)).await.unwrap());
    assert_eq!(pieces[..2], [named("small"), text("Hi")]);
    assert!(matches!(pieces[2..], [Piece::Finish(_)]), "{pieces:?}");
    for bad in ["", "{}", "[]", "<html>", r#"{"object":"list","data":[]}"#] {
        let server = Server::says(http("200 OK", "application/json", bad)).await;
        assert!(is_transient(&server.error(&subject).await, "provider_bad_answer"), "{bad}");
    }
    let server = Server::says(http("200 OK", "application/json", r#"{"error":{"message":"no"}}"#)).await;
    assert!(is_transient(&server.error(&subject).await, "provider_unavailable"));
}

pub(super) async fn an_answer_may_be_split_anywhere(subject: Subject) {
    for ends in ["\n", "\r\n", "\r"] {
        let recorded = subject.recorded.replace('\n', ends);
        let bytes = recorded.as_bytes();
        for at in 0..=bytes.len() {
            let (head, tail) = bytes.split_at(at);
            assert_eq!(read_parts(&subject, [head, tail]).await, Ok(expected(&subject)), "split at {at}");
        }
        assert_eq!(read_parts(&subject, bytes.chunks(1)).await, Ok(expected(&subject)));
    }
}

pub(super) async fn an_answer_that_comes_byte_by_byte_is_the_same(subject: Subject) {
    let recorded = chunked(subject.recorded) + "0\r\n\r\n";
    let server = Server::start(move |_| Reply { slow: true, ..Reply::new(recorded.clone()) }).await;
    assert_eq!(ask(&server.client(&subject)).await, Ok(expected(&subject)));
}

pub(super) async fn an_answer_that_is_cut_at_any_byte_is_an_error_until_it_has_finished(subject: Subject) {
    let finished_at = subject.finished_at();
    for cut in 0..subject.recorded.len() {
        let head = Bytes::copy_from_slice(&subject.recorded.as_bytes()[..cut]);
        let reset = Err("connection reset".to_owned());
        for parts in [vec![Ok(head.clone())], vec![Ok(head.clone()), reset]] {
            let result = read(&subject, stream::iter(parts)).await;
            if cut < finished_at {
                assert_eq!(passing(result), "provider_stream_cut", "cut at {cut}");
            } else {
                assert_eq!(result.map(without_usage), Ok(without_usage(expected(&subject))), "cut at {cut}");
            }
        }
    }
}

pub(super) async fn a_connection_that_is_cut_at_any_byte_is_an_error_until_the_answer_has_finished(subject: Subject) {
    let closed = UNTIL_CLOSED.to_owned() + subject.recorded;
    let chunks = chunked(subject.recorded) + "0\r\n\r\n";
    let chunks_finish = chunked(&subject.recorded[..subject.finished_at()]).len() - "\r\n".len();
    for (recorded, finished_at) in [(closed, UNTIL_CLOSED.len() + subject.finished_at()), (chunks, chunks_finish)] {
        let (bytes, next) = (recorded.clone().into_bytes(), AtomicUsize::new(0));
        let server = Server::start(move |_| Reply::new(&bytes[..next.fetch_add(1, Ordering::Relaxed)])).await;
        let client = server.client(&subject);
        for cut in 0..recorded.len() {
            let result = ask(&client).await;
            if cut < finished_at {
                assert_eq!(passing(result), "provider_stream_cut", "cut at {cut}");
            } else {
                assert_eq!(result.map(without_usage), Ok(without_usage(expected(&subject))), "cut at {cut}");
            }
        }
    }
}

pub(super) async fn arguments_that_are_no_json_are_handed_on(subject: Subject) {
    if subject.malformed.is_empty() {
        // The protocol has arguments as objects: nothing else can come.
        return;
    }
    let pieces = read_parts(&subject, [subject.malformed.as_bytes()]).await.unwrap();
    assert!(pieces.contains(&call("a", "weather", "{oops")), "{pieces:?}");
}

pub(super) async fn silence_before_the_first_token_has_a_limit(subject: Subject) {
    for head in [String::new(), chunked(subject.prologue)] {
        let server = Server::hangs_after(head).await;
        let first_token = Duration::from_millis(100);
        let short = Timeouts { first_token, ..timeouts() };
        let client = (subject.make)(ProviderOptions { timeouts: short, ..server.options() }).unwrap();
        let error = ask(&client).await.unwrap_err();
        assert!(is_transient(&error, "provider_timeout") && error.to_string().contains("first_token_timeout"));
    }
}

pub(super) async fn silence_between_tokens_has_a_limit(subject: Subject) {
    let server = Server::hangs_after(chunked(&subject.says("Hi"))).await;
    let short = Timeouts { idle: Duration::from_millis(100), ..timeouts() };
    let client = (subject.make)(ProviderOptions { timeouts: short, ..server.options() }).unwrap();
    let error = ask(&client).await.unwrap_err();
    assert!(is_transient(&error, "provider_timeout") && error.to_string().contains("idle_timeout"), "{error}");
}

pub(super) async fn comments_and_pings_are_silence(subject: Subject) {
    tokio::time::pause();
    let limits = Timeouts {
        first_token: Duration::from_secs(120),
        idle: Duration::from_secs(60),
        total: 1_000 * LONG,
        ..timeouts()
    };
    for quiet in [": still here\n\n", "event: ping\ndata: {\"type\": \"ping\"}\n\n"] {
        let comments = || {
            stream::unfold((), move |()| async move {
                tokio::time::sleep(Duration::from_secs(1)).await;
                Some((Ok(Bytes::from_static(quiet.as_bytes())), ()))
            })
            .boxed()
        };
        let begun = Instant::now();
        assert_eq!(passing(answer(&subject, comments(), limits).try_collect().await), "provider_timeout");
        assert!(took(begun, limits.first_token));

        let begun = Instant::now();
        let one_token = stream::iter([Ok(Bytes::from(subject.says("Hi")))]).chain(comments());
        assert_eq!(passing(answer(&subject, one_token, limits).try_collect().await), "provider_timeout");
        assert!(took(begun, limits.idle));

        // Without a pause, too.
        let endless = stream::repeat_with(move || Ok(Bytes::from_static(quiet.as_bytes())));
        let read = answer(&subject, endless, limits).try_collect::<Vec<_>>();
        let clock = async {
            tokio::time::advance(2 * limits.first_token).await;
            std::future::pending::<()>().await
        };
        let result = tokio::select! { result = read => result, () = clock => unreachable!() };
        assert_eq!(passing(result), "provider_timeout");
    }
}

pub(super) async fn a_call_has_a_limit_as_a_whole(subject: Subject) {
    tokio::time::pause();
    let token = subject.token.replace("TEXT", "Hi");
    let tokens = stream::repeat_with(move || Ok(Bytes::from(token.clone()))).then(async |token| {
        tokio::time::sleep(Duration::from_secs(1)).await;
        token
    });
    let head = stream::iter([Ok(Bytes::from(subject.prologue))]);
    let begun = Instant::now();
    let error = read(&subject, head.chain(tokens).boxed()).await.unwrap_err();
    assert!(is_transient(&error, "provider_timeout") && error.to_string().contains("total_timeout"), "{error}");
    assert!(took(begun, timeouts().total));
}

pub(super) async fn a_finished_answer_does_not_wait_long_for_its_end(subject: Subject) {
    tokio::time::pause();
    let head = Bytes::from(subject.recorded[..subject.finished_at()].to_owned());
    let begun = Instant::now();
    let pieces = read(&subject, stream::iter([Ok(head)]).chain(stream::pending())).await;
    assert_eq!(pieces.map(without_usage), Ok(without_usage(expected(&subject))));
    assert!(begun.elapsed() <= Duration::from_millis(5_001));
}

pub(super) async fn a_slow_reader_is_not_the_providers_silence(subject: Subject) {
    tokio::time::pause();
    let limits = Timeouts { idle: Duration::from_secs(60), total: 1_000 * LONG, ..timeouts() };
    let events = subject.recorded.split_inclusive("\n\n").map(|event| Ok(Bytes::from(event.to_owned())));
    let mut pieces = answer(&subject, stream::iter(events.collect::<Vec<_>>()), limits);
    let mut said = Vec::new();
    while let Some(piece) = pieces.try_next().await.unwrap() {
        said.push(piece);
        tokio::time::sleep(Duration::from_secs(600)).await;
    }
    assert_eq!(unnamed(said), expected(&subject));
}

pub(super) async fn a_status_says_whether_it_may_pass(subject: Subject) {
    for (status, code) in [
        ("408 Request Timeout", "provider_timeout"),
        ("409 Conflict", "provider_unavailable"),
        ("429 Too Many Requests", "provider_rate_limited"),
        ("500 Internal Server Error", "provider_unavailable"),
        ("503 Service Unavailable", "provider_unavailable"),
        ("529 Overloaded", "provider_unavailable"),
    ] {
        for body in [
            r#"{"error":"so it is"}"#,
            r#"{"type":"error","error":{"type":"overloaded_error","message":"so it is"}}"#,
            r#"[{"error":{"code":503,"message":"so it is","status":"UNAVAILABLE"}}]"#,
        ] {
            let error = Server::says(http(status, "application/json", body)).await.error(&subject).await;
            assert!(is_transient(&error, code) && error.to_string().ends_with(": so it is"), "{error}");
        }
    }
    for (status, code) in [
        ("400 Bad Request", "provider_rejected"),
        ("401 Unauthorized", "provider_rejected_key"),
        ("403 Forbidden", "provider_rejected_key"),
        ("404 Not Found", "unknown_model"),
        ("422 Unprocessable Content", "provider_rejected"),
    ] {
        let error = Server::says(http(status, "text/plain", "no")).await.error(&subject).await;
        assert!(is_permanent(&error, code), "{error}");
        let unknown = http(status, "application/json", r#"{"error":{"code":"model_not_found"}}"#);
        assert!(is_permanent(&Server::says(unknown).await.error(&subject).await, "unknown_model"));
    }
}

pub(super) async fn the_wait_that_the_provider_asks_for_is_handed_on(subject: Subject) {
    let refused = "HTTP/1.1 429 Too Many Requests\r\nretry-after: 7\r\ncontent-length: 0\r\n\r\n";
    let error = Server::says(refused).await.error(&subject).await;
    assert!(is_transient(&error, "provider_rate_limited"), "{error}");
    assert!(matches!(error, AgentError::Transient { retry_after: Some(wait), .. } if wait == Duration::from_secs(7)));
}

pub(super) async fn an_error_within_the_answer_is_told(subject: Subject) {
    for (event, code) in subject.errors {
        for begun in [String::new(), subject.says("Hi")] {
            let error = read_parts(&subject, [begun.as_bytes(), event.as_bytes()]).await.unwrap_err();
            let is = if *code == "provider_rejected" { is_permanent } else { is_transient };
            assert!(is(&error, code) && error.to_string().ends_with("reports an error: out of memory"), "{error}");
        }
    }
}

pub(super) async fn what_cannot_be_understood_may_pass(subject: Subject) {
    let common = ["data: [1]\n\n", "data: hello\n\n", "data: 7\n\n", "data: {\"a\n\n", "data: null\n\n"];
    for bad in common.iter().chain(subject.rubbish) {
        assert_eq!(passing(read_parts(&subject, [bad.as_bytes()]).await), "provider_bad_answer", "{bad}");
    }
    assert_eq!(passing(read_parts(&subject, [b"data: \xff\n\n".as_slice()]).await), "provider_bad_answer");
    let page = http("200 OK", "text/html", "<h1>Welcome</h1>");
    assert!(is_transient(&Server::says(page).await.error(&subject).await, "provider_bad_answer"));
}

pub(super) async fn an_event_and_an_answer_have_bounds(subject: Subject) {
    let endless = stream::repeat_with(|| Ok(Bytes::from_static(&[b'a'; 65_536])));
    assert_eq!(passing(read(&subject, endless).await), "provider_bad_answer");
    let large = format!("data: {}\n\n", "a".repeat(4 * MAX_EVENT + 1));
    assert_eq!(passing(read_parts(&subject, [large.as_bytes()]).await), "provider_bad_answer");

    let prologue = [Ok(Bytes::from(subject.prologue))];
    let large = Bytes::from(subject.token.replace("TEXT", &"a".repeat(500_000)));
    let tokens = stream::iter(prologue.into_iter().chain(std::iter::repeat_n(Ok(large), MAX_TEXT / 500_000 + 1)));
    let error = read(&subject, tokens).await.unwrap_err();
    assert!(is_permanent(&error, "answer_too_large"), "{error}");
}

pub(super) async fn a_redirect_is_not_followed(subject: Subject) {
    let moved = "HTTP/1.1 307 Temporary Redirect\r\nlocation: /v2\r\ncontent-length: 0\r\n\r\n";
    let mut server = Server::says(moved).await;
    assert!(is_permanent(&server.error(&subject).await, "provider_rejected"));
    assert!(server.requests.try_recv().is_ok() && server.requests.try_recv().is_err());
}

pub(super) async fn a_server_that_is_not_there_is_unreachable(subject: Subject) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base_url = format!("http://{}/v1", listener.local_addr().unwrap());
    drop(listener);
    let error = ask(&(subject.make)(options(&base_url)).unwrap()).await.unwrap_err();
    assert!(is_transient(&error, "provider_unreachable"), "{error}");
}

pub(super) async fn a_dropped_call_closes_its_connection(subject: Subject) {
    let mut server = Server::hangs_after(chunked(&subject.says("Hi"))).await;
    let client = server.client(&subject);
    let mut pieces = client.chat(chat("small")).await.unwrap();
    assert_eq!(pieces.try_next().await, Ok(Some(named("small"))));
    assert_eq!(pieces.try_next().await, Ok(Some(text("Hi"))));
    drop(pieces);
    timeout(LONG, server.hung_up.recv()).await.expect("the stream is gone, its connection is not");

    let mut server = Server::hangs_after("").await;
    let client = server.client(&subject);
    tokio::select! {
        _ = client.chat(chat("small")) => panic!("there is no answer"),
        _ = server.requests.recv() => {}
    }
    timeout(LONG, server.hung_up.recv()).await.expect("the call is gone, its connection is not");
}

pub(super) async fn auto_is_the_first_model_that_is_listed(subject: Subject) {
    let (models, recorded) = (subject.models, subject.recorded);
    let mut server = Server::start(move |request| {
        let lists = request.starts_with("GET /v1/models ");
        Reply::new(if lists { http("200 OK", "application/json", models) } else { chunked(recorded) })
    })
    .await;
    let client = server.client(&subject);
    for _ in 0..2 {
        let pieces = ask_for(&client, "auto").await.unwrap();
        assert_eq!((&pieces[0], &pieces[1..]), (&named("first"), &(subject.pieces)()[..]));
    }
    let mut posts = 0;
    assert!(server.requests.recv().await.unwrap().starts_with("GET "));
    while let Ok(request) = server.requests.try_recv() {
        assert!(request.contains("first") && !request.contains("auto"), "{request}");
        posts += 1;
    }
    assert_eq!(posts, 2);

    for (answer, permanent) in [
        (http("200 OK", "application/json", r#"{"data":[],"models":[]}"#), true),
        (http("404 Not Found", "text/plain", "no"), true),
        (http("200 OK", "application/json", "[]"), false),
        (http("503 Service Unavailable", "text/plain", ""), false),
    ] {
        let error = Server::says(answer).await.error_of_auto(&subject).await;
        assert_eq!(is_permanent(&error, "unknown_model"), permanent, "{error}");
        assert_eq!(matches!(error, AgentError::Transient { .. }), !permanent);
    }
}

pub(super) async fn nothing_shows_the_key(subject: Subject) {
    let echo = format!("{{\"error\":{{\"message\":\"{}{KEY} is the key {KEY}\"}}}}", "x".repeat(490));
    let statuses = [301, 400, 401, 403, 404, 408, 409, 429, 500, 503, 529];
    let mut answers: Vec<String> = statuses
        .iter()
        .flat_map(|status| {
            [http(&format!("{status} X"), "application/json", &echo), http(&format!("{status} X"), "text/plain", KEY)]
        })
        .collect();
    answers.push(http("200 OK", "application/json", &echo));
    answers.push(http("200 OK", "text/plain", KEY));
    answers.push(http("200 OK", "application/json", &format!("{{\"choices\":\"{KEY}\"}}")));
    answers.push(chunked(&format!("data: {echo}\n\n")));
    answers.push(chunked(&format!("event: error\ndata: {KEY}\n\n")));
    answers.push(chunked(&format!("data: {{\"choices\":\"{KEY}\",\"type\":\"{KEY}\",\"candidates\":\"{KEY}\"}}\n\n")));
    answers.push(format!("HTTP/1.1 {KEY}\r\n\r\n"));
    for answer in answers {
        let server = Server::says(answer.clone()).await;
        for error in [server.error(&subject).await, server.error_of_auto(&subject).await] {
            let text = format!("{error} {error:?}");
            assert!(!text.contains("sk-tops") && text.len() < 2_000, "{answer}\n{text}");
        }
    }
    let server = Server::says("").await;
    let shown = format!("{:?} {:?}", server.options(), server.client(&subject));
    assert!(!shown.contains(KEY), "{shown}");
}

pub(super) async fn options_that_cannot_work_are_refused(subject: Subject) {
    let right = || options("http://localhost");
    for wrong in [
        ProviderOptions { base_url: "localhost:80".to_owned(), ..right() },
        ProviderOptions { base_url: "ftp://localhost".to_owned(), ..right() },
        ProviderOptions { api_key: Some(SecretString::from("sk-topsecret\n")), ..right() },
    ] {
        let error = (subject.make)(wrong).unwrap_err().to_string();
        assert!(!error.contains("topsecret"), "{error}");
    }
}
