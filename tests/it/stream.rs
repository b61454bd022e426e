//! Watching runs: resuming, coming late, being slow, hanging up.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::harness::{Event, Node, Stream, assert_log, assert_promise, said, soon};

/// A run of so many tokens with a pause before each.
fn talking(tokens: u64, delay_ms: u64) -> Value {
    json!({"agent": "scripted", "input": "x", "params": {"tokens": tokens, "delay_ms": delay_ms}})
}

/// A run that says so many tokens and nothing more.
fn hanging(tokens: u64) -> Value {
    json!({"agent": "scripted", "input": "x", "params": {"tokens": tokens + 1, "hang_at": tokens + 1}})
}

/// Resumes at every number of a run that has ended, by header and by query.
async fn resume_everywhere(node: &Node, id: &str, all: &[Event]) {
    let last = all.last().unwrap().seq;
    for after in 0..last {
        let expected: Vec<_> = all.iter().filter(|event| event.seq > after).cloned().collect();
        assert_eq!(node.stream_after(id, after).await.rest().await, expected, "Last-Event-ID {after}");
        let by_query = node.request(Method::GET, &format!("/v1/runs/{id}/stream?after={after}"));
        assert_eq!(Stream::open(by_query).await.rest().await, expected, "after={after}");
    }
    assert_eq!(node.stream_status(id, last).await, 204);
    for beyond in [last + 1, last + 100, u64::MAX] {
        let request =
            node.request(Method::GET, &format!("/v1/runs/{id}/stream")).header("last-event-id", beyond.to_string());
        let detail = node.send(request).await.assert_problem(400, "sequence_beyond_log");
        assert!(detail.contains(&last.to_string()), "{detail}");
    }
}

#[tokio::test]
async fn resuming_at_every_number_of_an_ended_run_gives_exactly_the_rest() {
    // From memory.
    let mut node = Node::start("runs.backoff_base = \"1ms\"\nfeed.ended_linger = \"10m\"").await;
    let body = json!({"agent": "scripted", "input": "x", "max_attempts": 2, "params": {"tokens": 12, "fail_at": 9}});
    let id = node.create(body).await;
    node.wait_final(&id).await;
    let all = node.events(&id).await;
    assert_eq!(assert_log(&all).attempts, [1, 2]);
    resume_everywhere(&node, &id, &all).await;
    // From the store.
    node.kill9().await;
    node.restart_with("feed.ended_linger = \"0s\"\nfeed.ended_memory = \"0B\"").await;
    resume_everywhere(&node, &id, &all).await;
}

#[tokio::test]
async fn resuming_at_every_number_of_a_live_run_gives_exactly_the_rest() {
    let node = Node::start("").await;
    let id = node.create(talking(60, 8)).await;
    let mut first = node.stream(&id).await;
    let (mut all, mut others) = (Vec::new(), Vec::new());
    while let Some(event) = first.next().await {
        if !event.is_final() {
            let mut other = node.stream_after(&id, event.seq).await;
            others.push((event.seq, tokio::spawn(async move { other.rest().await })));
        }
        all.push(event);
    }
    assert_log(&all);
    assert!(others.len() > 60);
    for (after, other) in others {
        let expected: Vec<_> = all.iter().filter(|event| event.seq > after).cloned().collect();
        assert_eq!(soon("another viewer's end", other).await.unwrap(), expected, "after {after}");
    }
}

#[tokio::test]
async fn a_live_run_whose_log_outgrew_its_memory_is_resumed_from_the_store() {
    let node = Node::start("feed.log_memory = \"4KiB\"\njournal.flush_interval = \"1ms\"").await;
    let id = node.create(talking(1_500, 1)).await;
    let mut first = node.stream(&id).await;
    let (mut all, mut others) = (Vec::new(), Vec::new());
    while let Some(event) = first.next().await {
        if event.seq % 100 == 0 {
            let after = event.seq / 2;
            let mut other = node.stream_after(&id, after).await;
            others.push((after, tokio::spawn(async move { other.rest().await })));
        }
        all.push(event);
    }
    assert_log(&all);
    assert_eq!(others.len(), 15);
    for (after, other) in others {
        let expected: Vec<_> = all.iter().filter(|event| event.seq > after).cloned().collect();
        assert!(soon("another viewer's end", other).await.unwrap() == expected, "after {after}");
    }
    assert!(node.events(&id).await == all);
}

#[tokio::test]
async fn a_number_within_the_reservation_waits_and_one_beyond_it_is_refused() {
    let node = Node::start("journal.reserve = 64").await;
    let id = node.create(hanging(2)).await;
    node.until_said(&id, 2).await;
    // Created, queued, started and two tokens; whatever was committed last has reserved 64 more.
    let last = crate::harness::eventually("the tokens are journaled", async || {
        let last = node.run(&id).await["last_seq"].as_u64()?;
        (last == 5).then_some(last)
    })
    .await;
    for within in [last, last + 1, last + 64] {
        assert_eq!(node.stream_status(&id, within).await, 200, "{within}");
    }
    for beyond in [last + 65, u64::MAX] {
        assert_eq!(node.stream_status(&id, beyond).await, 400, "{beyond}");
    }
}

#[tokio::test]
async fn a_last_event_id_that_is_no_number_is_refused() {
    let node = Node::start("").await;
    let id = node.create(talking(1, 0)).await;
    for bad in ["abc", "-1", "1.5", "99999999999999999999", "1 2"] {
        let request = node.request(Method::GET, &format!("/v1/runs/{id}/stream")).header("last-event-id", bad);
        let answer = node.send(request).await;
        answer.assert_problem(400, "invalid_field");
        assert_eq!(answer.json()["field"], "Last-Event-ID");
        let answer = node.get(&format!("/v1/runs/{id}/stream?after={}", bad.replace(' ', "%20"))).await;
        answer.assert_problem(400, "invalid_field");
        assert_eq!(answer.json()["field"], "after");
    }
    // The header goes before the query: it is what a client that reconnects by itself adds to the same address.
    node.wait_final(&id).await;
    let all = node.events(&id).await;
    let both = node.request(Method::GET, &format!("/v1/runs/{id}/stream?after=1")).header("last-event-id", "3");
    assert_eq!(Stream::open(both).await.rest().await, all[3..]);
}

#[tokio::test]
async fn viewers_that_come_at_any_time_get_the_same_bytes() {
    let node = Node::start("").await;
    let id = node.create(talking(30, 5)).await;
    let (mut one, mut two) = (node.stream(&id).await, node.stream(&id).await);
    let (first, second) = tokio::join!(one.rest(), two.rest());
    assert_log(&first);
    assert_eq!(first, second);
    assert!(one.bytes == two.bytes, "two live viewers");
    let mut late = node.stream(&id).await;
    late.rest().await;
    assert!(late.bytes == one.bytes, "a live viewer and a late one");
}

#[tokio::test]
async fn fifty_viewers_that_connect_while_it_streams_get_the_same_bytes() {
    let node = Node::start("").await;
    let id = node.create(talking(150, 4)).await;
    let mut first = node.stream(&id).await;
    let mut viewers = Vec::new();
    while viewers.len() < 50 {
        let event = first.next().await.expect("it goes on while they connect");
        if event.kind == "message.delta" {
            let mut stream = node.stream(&id).await;
            viewers.push(tokio::spawn(async move {
                stream.rest().await;
                stream.bytes
            }));
        }
    }
    first.rest().await;
    assert_promise(&node, &id).await;
    for viewer in viewers {
        assert!(soon("a viewer's end", viewer).await.unwrap() == first.bytes);
    }
}

#[tokio::test]
async fn a_viewer_that_never_reads_slows_nobody_and_loses_nothing() {
    let node = Node::start("limits.max_input = \"16MiB\"\nserver.max_body = \"16MiB\"").await;
    // More than all buffers on the way take, several times over: the text is said, completed and put out.
    let word = format!("{} ", "w".repeat(8_191));
    let input = word.repeat(768);
    let id = node.create(json!({"agent": "scripted", "input": input, "delay_ms": 200})).await;
    let mut silent = TcpStream::connect(node.address()).await.unwrap();
    let head = format!("GET /v1/runs/{id}/stream HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n", node.address());
    silent.write_all(head.as_bytes()).await.unwrap();
    let mut busy = node.stream(&id).await;
    let events = busy.rest().await;
    assert_log(&events);
    assert!(said(&events) == input);
    assert_eq!(node.run(&id).await["status"], "completed");
    // Other runs start and end as if nothing were.
    let other = node.create(talking(3, 0)).await;
    assert_eq!(node.wait_final(&other).await["status"], "completed");
    // It reads after all, and nothing is missing.
    let mut bytes = Vec::new();
    soon("the silent viewer's end", silent.read_to_end(&mut bytes)).await.unwrap();
    let caught_up = crate::harness::parse(dechunked(&bytes));
    assert!(caught_up == events, "{} events instead of {}", caught_up.len(), events.len());
}

/// The body of an HTTP/1.1 answer in chunks.
fn dechunked(answer: &[u8]) -> String {
    let find = |from: usize, what: &[u8]| {
        from + answer[from..].windows(what.len()).position(|window| window == what).expect("a whole answer")
    };
    let (mut body, mut at) = (Vec::new(), find(0, b"\r\n\r\n") + 4);
    loop {
        let end = find(at, b"\r\n");
        let length = usize::from_str_radix(std::str::from_utf8(&answer[at..end]).unwrap(), 16).unwrap();
        if length == 0 {
            return String::from_utf8(body).unwrap();
        }
        body.extend_from_slice(&answer[end + 2..end + 2 + length]);
        at = end + 2 + length + 2;
    }
}

#[tokio::test]
async fn a_silent_stream_carries_comments() {
    let node = Node::start("server.heartbeat = \"1s\"").await;
    let id = node.create(hanging(1)).await;
    let mut stream = node.stream(&id).await;
    let began = Instant::now();
    let events = stream.until_comment().await;
    assert_eq!(events.last().map(|event| event.kind.as_str()), Some("message.delta"));
    assert!(began.elapsed() >= Duration::from_millis(800), "after {:?}", began.elapsed());
    assert_eq!(stream.until_comment().await, []);
}

#[tokio::test]
async fn hanging_up_does_not_cancel_a_run() {
    let node = Node::start("feed.disconnect_grace = \"0s\"").await;
    let id = node.create(talking(30, 10)).await;
    let mut stream = node.stream(&id).await;
    stream.through(|event| event.kind == "message.delta").await;
    drop(stream);
    let run = node.wait_final(&id).await;
    assert_eq!((&run["status"], &run["attempt"]), (&json!("completed"), &json!(1)));
    assert_promise(&node, &id).await;
}

#[tokio::test]
async fn a_run_that_wants_to_be_watched_is_cancelled_when_its_last_viewer_has_gone() {
    let node = Node::start("feed.disconnect_grace = \"100ms\"").await;
    let mut body = hanging(2);
    body["on_disconnect"] = json!("cancel");
    // Watched on the request that created it, and on a request of its own.
    let mut streamed = body.clone();
    streamed["stream"] = json!(true);
    let mut stream = Stream::open(node.request(Method::POST, "/v1/runs").json(&streamed)).await;
    let id = stream.headers()["location"].to_str().unwrap().trim_start_matches("/v1/runs/").to_owned();
    stream.through(|event| event.kind == "message.delta").await;
    drop(stream);
    assert_eq!(node.wait_final(&id).await["status"], "cancelled");
    assert_promise(&node, &id).await;

    let id = node.create(body).await;
    let (mut one, two) = (node.stream(&id).await, node.stream(&id).await);
    drop(two);
    one.through(|event| event.text() == "t2 ").await;
    assert_eq!(node.run(&id).await["status"], "running", "one viewer is left");
    drop(one);
    assert_eq!(node.wait_final(&id).await["status"], "cancelled");
}

#[tokio::test]
async fn who_merely_waits_for_a_run_does_not_count_as_its_viewer() {
    let node = Node::start("feed.disconnect_grace = \"0s\"").await;
    let mut body = talking(40, 10);
    body["on_disconnect"] = json!("cancel");
    let id = node.create(body).await;
    let waited = node.get(&format!("/v1/runs/{id}/wait?timeout_ms=50")).await;
    assert_ne!(waited.json()["status"], "completed");
    assert_eq!(node.wait_final(&id).await["status"], "completed");
}

#[tokio::test]
async fn who_is_not_let_in_leaves_no_run_unwatched() {
    let node = Node::start(
        "feed.disconnect_grace = \"0s\"\n[tenants.acme]\napi_keys = [\"the-key-of-the-tenant-acme\"]\n\
         [tenants.other]\napi_keys = [\"the-key-of-the-tenant-other\"]\n",
    )
    .await;
    let mut body = talking(40, 10);
    body["on_disconnect"] = json!("cancel");
    let (acme, other) = ("the-key-of-the-tenant-acme", "the-key-of-the-tenant-other");
    let created = node.send(node.request(Method::POST, "/v1/runs").bearer_auth(acme).json(&body)).await.json();
    let run = format!("/v1/runs/{}", created["id"].as_str().unwrap());
    for (key, after, refused) in [(other, "0", 404), (acme, "1000000", 400)] {
        let request = node.request(Method::GET, &format!("{run}/stream")).bearer_auth(key);
        assert_eq!(node.send(request.header("last-event-id", after)).await.status, refused);
    }
    let ended = node.send(node.request(Method::GET, &format!("{run}/wait")).bearer_auth(acme)).await.json();
    assert_eq!(ended["status"], "completed");
}

#[tokio::test]
async fn a_viewer_that_comes_back_within_the_grace_keeps_its_run() {
    let node = Node::start("feed.disconnect_grace = \"1s\"").await;
    let mut body = talking(40, 40);
    body["on_disconnect"] = json!("cancel");
    let id = node.create(body).await;
    let mut seen = Vec::new();
    for _ in 0..4 {
        let after = seen.last().map_or(0, |event: &Event| event.seq);
        let mut stream = node.stream_after(&id, after).await;
        seen.extend(stream.through(|event| event.kind == "message.delta").await);
    }
    let after = seen.last().unwrap().seq;
    seen.extend(node.stream_after(&id, after).await.rest().await);
    assert_eq!(node.run(&id).await["status"], "completed");
    assert_eq!(seen, node.events(&id).await, "nothing missed, nothing twice");
}

#[tokio::test]
async fn the_stream_of_a_queued_run_waits_and_then_goes_on() {
    let node = Node::start("worker.concurrency = 1").await;
    let blocking = node.create(hanging(1)).await;
    node.until(&blocking, &["running"]).await;
    let id = node.create(talking(3, 0)).await;
    let mut stream = node.stream(&id).await;
    let waiting = stream.through(|event| event.kind == "run.queued").await;
    assert_eq!(waiting.len(), 2);
    node.cancel(&blocking).await;
    let rest = stream.rest().await;
    assert_eq!(rest.first().map(|event| event.kind.as_str()), Some("run.started"));
    assert_log(&[waiting, rest].concat());
    assert_promise(&node, &id).await;
}

#[tokio::test]
async fn the_stream_of_a_delayed_run_waits_and_then_goes_on() {
    let node = Node::start("feed.ended_linger = \"0s\"").await;
    let mut body = talking(3, 0);
    body["delay_ms"] = json!(250);
    let id = node.create(body).await;
    let events = node.stream(&id).await.rest().await;
    let kinds: Vec<_> = events.iter().take(4).map(|event| event.kind.as_str()).collect();
    assert_eq!(kinds, ["run.created", "run.scheduled", "run.queued", "run.started"]);
    assert_eq!(events[1].data["reason"], "delay");
    assert_eq!(assert_promise(&node, &id).await.ending.as_deref(), Some("run.completed"));
}

#[tokio::test]
async fn the_pages_of_events_are_the_stream() {
    let node = Node::start("").await;
    let id = node.create(talking(25, 2)).await;
    let streamed = node.stream(&id).await.rest().await;
    for limit in [1, 7, 200] {
        assert_eq!(node.events_by(&id, limit).await, streamed, "in pages of {limit}");
    }
    // From the middle of a segment.
    for after in 0..streamed.len() as u64 {
        let page = node.get(&format!("/v1/runs/{id}/events?after={after}&limit=2")).await.json();
        let page: Vec<_> = page["data"].as_array().unwrap().iter().map(Event::of_page).collect();
        let expected: Vec<_> = streamed.iter().filter(|event| event.seq > after).take(2).cloned().collect();
        assert_eq!(page, expected, "after {after}");
    }
}

#[tokio::test]
async fn a_run_of_more_tokens_than_any_reservation_is_dense() {
    for config in ["", "journal.reserve = 64\njournal.max_unflushed = \"1KiB\"\nfeed.log_memory = \"4KiB\""] {
        let node = Node::start(config).await;
        let id = node.create(talking(5_000, 0)).await;
        let live = node.stream(&id).await.rest().await;
        assert_log(&live);
        assert_eq!(live.len(), 5_005);
        let run = node.wait_final(&id).await;
        assert_eq!((&run["status"], &run["usage"]["output_tokens"]), (&json!("completed"), &json!(5_000)));
        assert!(node.events(&id).await == live);
        assert_promise(&node, &id).await;
    }
}

#[tokio::test]
async fn many_runs_at_once_keep_their_streams_apart() {
    let node = Node::start("").await;
    let one = async |number: u64| {
        let input = format!("run{number} ").repeat(20);
        let body = json!({"agent": "scripted", "input": input, "stream": true});
        let events = Stream::open(node.request(Method::POST, "/v1/runs").json(&body)).await.rest().await;
        assert_eq!(assert_log(&events).ending.as_deref(), Some("run.completed"));
        assert_eq!(said(&events), input);
    };
    join_all((0..100).map(one)).await;
}

#[tokio::test]
async fn text_of_all_kinds_comes_through_as_it_was() {
    let node = Node::start("").await;
    for input in ["", " ", "a\nb\r\nc\n\n d", "data: x\n\nid: 7\n", "ünï\u{2028}çødé 🦀\u{0}\u{7f}\"\\", "no_space"]
    {
        let id = node.create(json!({"agent": "scripted", "input": input})).await;
        assert_eq!(node.wait_final(&id).await["output"], input);
        assert_eq!(node.run(&id).await["input"], input);
        assert_promise(&node, &id).await;
    }
}
