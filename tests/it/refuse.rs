//! What is refused: clearly, and without leaving anything behind.

use std::path::Path;
use std::time::{Duration, Instant};

use reqwest::Method;
use reqwest::header::CONTENT_TYPE;
use serde_json::{Value, json};

use crate::harness::{Answer, Node, database, finished_process, id_of, is_embedded};

async fn send_text(node: &Node, content_type: &str, body: impl Into<reqwest::Body>) -> Answer {
    node.send(node.request(Method::POST, "/v1/runs").header(CONTENT_TYPE, content_type).body(body)).await
}

/// Checks that no run is there.
async fn assert_nothing_created(node: &Node) {
    let page = node.get("/v1/runs").await.json();
    assert_eq!(page["data"], json!([]), "something was created");
    assert_eq!(node.metric("runcast_runs_created_total").await, 0.0);
}

#[tokio::test]
async fn bodies_that_are_no_runs_are_refused_by_field() {
    let node = Node::start("").await;
    let good = json!({"agent": "scripted", "input": "x"});
    let with = |field: &str, value: Value| {
        let mut body = good.clone();
        body[field] = value;
        body
    };
    let many: serde_json::Map<_, _> = (0..33).map(|number| (format!("k{number}"), json!("v"))).collect();
    for (body, field) in [
        (json!({"input": "x"}), "agent"),
        (json!({"agent": "scripted"}), "input"),
        (with("agent", json!(7)), "agent"),
        (with("agent", Value::Null), "agent"),
        (with("colour", json!("red")), "colour"),
        (with("thread", json!("t")), "thread"),
        (with("input", json!(7)), "input"),
        (with("input", json!({"text": "x"})), "input"),
        (with("input", json!([])), "input"),
        (with("input", json!([{"role": "user"}])), "input[0].content"),
        (with("input", json!([["user", "x"]])), "input[0]"),
        (with("input", json!([{"role": 5, "content": "x"}])), "input[0].role"),
        (json!(["scripted", "x"]), "body"),
        (with("budget", json!([5])), "budget"),
        (with("webhook", json!(["https://h.example"])), "webhook"),
        (with("on_busy", json!(5)), "on_busy"),
        (with("on_disconnect", json!(["cancel"])), "on_disconnect"),
        (with("input", json!([{"role": "user", "content": "x", "name": "y"}])), "input[0].name"),
        (with("input", json!([{"role": "user", "content": "x"}, {"role": "robot", "content": "x"}])), "input[1].role"),
        (with("params", json!("fast")), "params"),
        (with("params", Value::Null), "params"),
        (with("params", json!({"tokens": -1})), "params.tokens"),
        (with("params", json!({"tokens": "many"})), "params.tokens"),
        (with("params", json!({"tokens": 1.5})), "params.tokens"),
        (with("params", json!({"tokens": 10_000_001})), "params.tokens"),
        (with("params", json!({"fail_at": 0})), "params.fail_at"),
        (with("params", json!({"error": "sometimes"})), "params.error"),
        (with("params", json!({"speed": 1})), "params"),
        (with("priority", json!("high")), "priority"),
        (with("priority", json!(101)), "priority"),
        (with("priority", json!(-101)), "priority"),
        (with("priority", json!(1.5)), "priority"),
        (with("priority", json!(99_999_999_999_u64)), "priority"),
        (with("delay_ms", json!(-1)), "delay_ms"),
        (with("delay_ms", json!("1s")), "delay_ms"),
        (with("delay_ms", json!(u64::MAX)), "delay_ms"),
        (with("run_at", json!("tomorrow")), "run_at"),
        (with("run_at", json!(1_700_000_000)), "run_at"),
        (with("run_at", json!("2999-01-01T00:00:00Z")), "run_at"),
        (with("run_at", json!("9999-12-31T23:59:59Z")), "run_at"),
        (with("ttl_ms", json!(-1)), "ttl_ms"),
        (with("ttl_ms", json!(u64::MAX)), "ttl_ms"),
        (with("timeout_ms", json!(0)), "timeout_ms"),
        (with("timeout_ms", json!(u64::MAX)), "timeout_ms"),
        (with("max_attempts", json!(0)), "max_attempts"),
        (with("max_attempts", json!(101)), "max_attempts"),
        (with("max_attempts", json!(-1)), "max_attempts"),
        (with("on_disconnect", json!("panic")), "on_disconnect"),
        (with("stream", json!("yes")), "stream"),
        (with("metadata", json!(["a"])), "metadata"),
        (with("metadata", json!({"a": 1})), "metadata.a"),
        (with("metadata", json!({"": "x"})), "metadata."),
        (with("metadata", json!({"a": "x".repeat(513)})), "metadata.a"),
        (with("metadata", Value::Object(many)), "metadata"),
        (json!({"agent": "scripted", "input": "x", "delay_ms": 5, "run_at": "2026-01-01T00:00:00Z"}), "run_at"),
    ] {
        let answer = node.post_json("/v1/runs", &body).await;
        let detail = answer.assert_problem(400, "invalid_field");
        assert_eq!(answer.json()["field"], field, "{body}: {detail}");
        assert!(detail.contains(field), "{body}: {detail}");
    }
    for late in ["2999-01-01T00:00:00Z", "9999-12-31T23:59:59Z"] {
        let detail =
            node.post_json("/v1/runs", &with("run_at", json!(late))).await.assert_problem(400, "invalid_field");
        assert_eq!(detail, "run_at: expected at most 366 days from now", "{late}");
    }
    let answer = node.post_json("/v1/runs", &with("agent", json!("nobody"))).await;
    let detail = answer.assert_problem(400, "unknown_agent");
    assert!(detail.contains("nobody") && detail.contains("scripted"), "{detail}");
    assert_eq!(answer.json()["field"], "agent");
    assert_nothing_created(&node).await;
}

#[tokio::test]
async fn bodies_that_are_no_json_are_refused() {
    let node = Node::start("").await;
    let deep = format!(
        "{{\"agent\": \"scripted\", \"input\": \"x\", \"params\": {}1{}}}",
        "[".repeat(5_000),
        "]".repeat(5_000)
    );
    for body in [
        "".to_owned(),
        "{".to_owned(),
        "hello".to_owned(),
        "{\"agent\": \"scripted\", \"input\": \"x\"} {}".to_owned(),
        "{\"agent\": \"scripted\", \"input\": \"x\",}".to_owned(),
        "{\"agent\": \"scripted\", \"input\": \"\\ud800\"}".to_owned(),
        deep,
    ] {
        let shown: String = body.chars().take(80).collect();
        let answer = send_text(&node, "application/json", body).await;
        let code = answer.json()["code"].as_str().unwrap_or_default().to_owned();
        // What is nested too deeply, or is half a character, is JSON all the same.
        assert!(["invalid_json", "invalid_field"].contains(&code.as_str()), "{shown}: {answer:?}");
        answer.assert_problem(400, &code);
    }
    send_text(&node, "application/json", vec![b'"', 0xff, b'"']).await.assert_problem(400, "invalid_json");
    for body in ["[]", "7", "null", "\"x\""] {
        send_text(&node, "application/json", body).await.assert_problem(400, "invalid_field");
    }
    for content_type in
        ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "application/jsonx", ""]
    {
        let answer = send_text(&node, content_type, "{\"agent\": \"scripted\", \"input\": \"x\"}").await;
        let detail = answer.assert_problem(415, "unsupported_media_type");
        assert!(detail.contains("application/json"), "{detail}");
    }
    let without = node.request(Method::POST, "/v1/runs").body("{\"agent\": \"scripted\", \"input\": \"x\"}");
    node.send(without).await.assert_problem(415, "unsupported_media_type");
    assert_nothing_created(&node).await;
    let answer =
        send_text(&node, "Application/JSON; charset=utf-8", "{\"agent\": \"scripted\", \"input\": \"x\"}").await;
    assert_eq!(answer.status, 202, "{answer:?}");
}

#[tokio::test]
async fn threads_take_no_body_for_an_empty_one_and_nothing_else() {
    let node = Node::start("").await;
    let made = node.post("/v1/threads").await;
    assert_eq!((made.status.as_u16(), &made.json()["state"]), (201, &json!({})));
    let thread = format!("/v1/threads/{}", id_of(&made.json()));
    let handed = node.post(&format!("{thread}/handoff")).await;
    assert_eq!((handed.status.as_u16(), &handed.json()["handed_off"]["reason"]), (200, &json!("")));
    for path in ["/v1/threads", &format!("{thread}/handoff")] {
        node.post_json(path, &json!([])).await.assert_problem(400, "invalid_field");
        let plain = node.request(Method::POST, path).body("{}");
        node.send(plain).await.assert_problem(415, "unsupported_media_type");
    }
    for field in ["metadata", "state"] {
        let patch = node.request(Method::PATCH, &thread).json(&json!({field: null}));
        let answer = node.send(patch).await;
        answer.assert_problem(400, "invalid_field");
        assert_eq!(answer.json()["field"], field);
    }
}

#[tokio::test]
async fn bodies_and_inputs_beyond_their_bounds_are_refused_and_those_within_are_not() {
    let node = Node::start("limits.max_input = \"2KiB\"\nserver.max_body = \"64KiB\"").await;
    let body = |bytes: usize| json!({"agent": "scripted", "input": "é".repeat(bytes / 2)});
    let answer = node.post_json("/v1/runs", &body(2_050)).await;
    let detail = answer.assert_problem(413, "input_too_large");
    assert!(detail.contains("2048"), "{detail}");
    assert_eq!(answer.json()["field"], "input");
    let halves =
        json!([{"role": "user", "content": "x".repeat(1_025)}, {"role": "user", "content": "x".repeat(1_024)}]);
    let answer = node.post_json("/v1/runs", &json!({"agent": "scripted", "input": halves})).await;
    answer.assert_problem(413, "input_too_large");
    for bytes in [66_000, 3_000_000] {
        let detail = node.post_json("/v1/runs", &body(bytes)).await.assert_problem(413, "body_too_large");
        assert!(detail.contains("65536"), "{detail}");
    }
    // Without a length in front.
    let pieces = (0..40).map(|_| Ok::<_, std::io::Error>(vec![b' '; 16_384]));
    let stream = reqwest::Body::wrap_stream(futures_util::stream::iter(pieces));
    send_text(&node, "application/json", stream).await.assert_problem(413, "body_too_large");
    assert_nothing_created(&node).await;
    assert_eq!(node.post_json("/v1/runs", &body(2_048)).await.status, 202);
}

#[tokio::test]
async fn paths_queries_and_headers_that_make_no_sense_are_refused() {
    let node = Node::start("limits.max_page = 20").await;
    // Of today: an old one may have been removed.
    let unknown = uuid::Uuid::now_v7();
    for (path, field) in [
        ("/v1/runs?limit=0", "limit"),
        ("/v1/runs?limit=21", "limit"),
        ("/v1/runs?limit=-1", "limit"),
        ("/v1/runs?limit=many", "limit"),
        ("/v1/runs?limit=1&limit=2", "limit"),
        ("/v1/runs?cursor=nonsense", "cursor"),
        ("/v1/runs?cursor=", "cursor"),
        ("/v1/runs?status=done", "status"),
        ("/v1/runs?status=completed,done", "status"),
        ("/v1/runs?status=", "status"),
        ("/v1/runs?created_after=yesterday", "created_after"),
        ("/v1/runs?created_before=1", "created_before"),
        ("/v1/runs?colour=red", "colour"),
        ("/v1/runs?metadata.a=1&metadata.a=2", "metadata.a"),
        ("/v1/runs/not-a-uuid", "id"),
        ("/v1/runs/not-a-uuid/stream", "id"),
        ("/v1/runs/not-a-uuid/events", "id"),
        ("/v1/runs/not-a-uuid/wait", "id"),
        ("/v1/runs/00000000-0000-7000-8000-000000000000?colour=red", "colour"),
        ("/v1/runs/00000000-0000-7000-8000-000000000000/stream?colour=red", "colour"),
        ("/v1/runs/00000000-0000-7000-8000-000000000000/events?limit=0", "limit"),
        ("/v1/runs/00000000-0000-7000-8000-000000000000/events?after=x", "after"),
        ("/v1/runs/00000000-0000-7000-8000-000000000000/wait?timeout_ms=-1", "timeout_ms"),
        ("/v1/runs/00000000-0000-7000-8000-000000000000/wait?timeout=1", "timeout"),
    ] {
        let answer = node.get(path).await;
        let detail = answer.assert_problem(400, "invalid_field");
        assert_eq!(answer.json()["field"], field, "{path}: {detail}");
    }
    for path in ["not-a-uuid/cancel", "not-a-uuid/retry"] {
        node.post(&format!("/v1/runs/{path}")).await.assert_problem(400, "invalid_field");
    }
    node.delete("/v1/runs/not-a-uuid").await.assert_problem(400, "invalid_field");
    // What a creation does not know, it does not overlook either.
    let body = json!({"agent": "scripted", "input": "x"});
    node.post_json("/v1/runs?colour=red", &body).await.assert_problem(400, "invalid_field");

    for path in ["", "/stream", "/events", "/wait"] {
        node.get(&format!("/v1/runs/{unknown}{path}")).await.assert_problem(404, "not_found");
    }
    for path in ["/cancel", "/retry"] {
        node.post(&format!("/v1/runs/{unknown}{path}")).await.assert_problem(404, "not_found");
        let answer = node.post_json(&format!("/v1/runs/{unknown}{path}"), &json!({"why": "because"})).await;
        answer.assert_problem(400, "invalid_field");
    }
    for path in ["/", "/v1", "/v2/runs", "/v1/runs/", "/v1/nothing", "/healthz", "/v1/runs/a/b/c", "/../etc/passwd"] {
        node.get(path).await.assert_problem(404, "not_found");
    }
    for key in ["", &"k".repeat(256), "schlüssel"] {
        let request = node.request(Method::POST, "/v1/runs").json(&body).header("idempotency-key", key.as_bytes());
        let answer = node.send(request).await;
        answer.assert_problem(400, "invalid_field");
        assert_eq!(answer.json()["field"], "Idempotency-Key");
    }
    assert_nothing_created(&node).await;
}

#[tokio::test]
async fn methods_that_a_route_does_not_take_are_refused_with_those_it_takes() {
    let node = Node::start("").await;
    for (method, path, allowed) in [
        (Method::PUT, "/v1/runs", "GET, POST"),
        (Method::DELETE, "/v1/runs", "GET, POST"),
        (Method::POST, "/v1/runs/x", "GET, DELETE"),
        (Method::POST, "/v1/runs/x/stream", "GET"),
        (Method::GET, "/v1/runs/x/cancel", "POST"),
        (Method::GET, "/v1/runs/x/retry", "POST"),
        (Method::POST, "/health", "GET"),
        (Method::PATCH, "/v1/agents", "GET"),
    ] {
        let answer = node.send(node.request(method.clone(), path)).await;
        answer.assert_problem(405, "method_not_allowed");
        // RFC 9110, 15.5.6: the answer has to say which methods there are.
        assert_eq!(answer.header("allow"), allowed, "{method} {path}");
    }
}

#[tokio::test]
async fn runs_beyond_those_that_may_wait_are_refused_until_there_is_room() {
    let node = Node::start("limits.max_waiting = 2\nworker.concurrency = 1").await;
    let hanging = json!({"agent": "scripted", "input": "x", "params": {"tokens": 1, "hang_at": 1}});
    let running = node.create(hanging.clone()).await;
    node.until(&running, &["running"]).await;
    let queued = node.create(json!({"agent": "scripted", "input": "x"})).await;
    let delayed = node.create(json!({"agent": "scripted", "input": "x", "delay_ms": 600_000})).await;
    let answer = node.post_json("/v1/runs", &hanging).await;
    let detail = answer.assert_problem(429, "too_many_waiting");
    assert!(detail.contains('2'), "{detail}");
    assert!(answer.header("retry-after").parse::<u32>().is_ok_and(|seconds| seconds > 0), "{answer:?}");
    assert_eq!(node.get("/v1/runs").await.json()["data"].as_array().unwrap().len(), 3);
    node.cancel(&delayed).await;
    let next = node.create(json!({"agent": "scripted", "input": "x"})).await;
    node.cancel(&running).await;
    for id in [&queued, &next] {
        assert_eq!(node.wait_final(id).await["status"], "completed");
    }
}

#[tokio::test]
async fn half_a_request_is_given_up_and_harms_nobody() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let node = Node::start("server.request_timeout = \"1s\"").await;
    let mut halves = Vec::new();
    for half in ["", "POST /v1/ru", "POST /v1/runs HTTP/1.1\r\nhost: localhost\r\nx: "] {
        let mut socket = tokio::net::TcpStream::connect(node.address()).await.unwrap();
        socket.write_all(half.as_bytes()).await.unwrap();
        halves.push(socket);
    }
    let mut cut = tokio::net::TcpStream::connect(node.address()).await.unwrap();
    let head =
        "POST /v1/runs HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 999\r\n\r\n{";
    cut.write_all(head.as_bytes()).await.unwrap();
    drop(cut);
    for mut socket in halves {
        let mut answer = Vec::new();
        crate::harness::soon("half a request ends", socket.read_to_end(&mut answer)).await.unwrap_or_default();
    }
    assert_eq!(node.get("/health").await.status, 200);
    assert_nothing_created(&node).await;
}

#[tokio::test]
async fn a_timeout_for_requests_that_is_too_short_to_be_kept_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let config = "server.request_timeout = \"100ms\"";
    std::fs::write(directory.path().join("runcast.toml"), config).unwrap();
    let shown = finished_process(directory.path(), &["config"], &[]).await;
    if shown.code != Some(0) {
        assert!(shown.err.contains("server.request_timeout"), "{shown:?}");
        return;
    }
    let node = Node::start(config).await;
    // Over some time: clocks that are read now and then are right at times.
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(1_500) {
        // A connection of its own, and no time lost on it.
        let answer = node.send(node.request(Method::GET, "/health").header("connection", "close")).await;
        assert_eq!(answer.status, 200, "{answer:?}");
    }
}

/// Starts `runcast serve` in `directory`, which must fail; what it said.
async fn serve_fails(directory: &Path, args: &[&str], env: &[(&str, &str)], code: i32) -> String {
    let mut all = vec!["serve"];
    if !args.contains(&"--listen") {
        all.extend(["--listen", "127.0.0.1:0"]);
    }
    all.extend(args);
    let ended = finished_process(directory, &all, env).await;
    assert_eq!(ended.code, Some(code), "{ended:?}");
    assert!(!ended.out.contains("listens on") && !ended.err.contains("panicked"), "{ended:?}");
    ended.err
}

#[tokio::test]
async fn a_configuration_that_makes_no_sense_is_refused_as_a_whole() {
    let directory = tempfile::tempdir().unwrap();
    let here = directory.path();
    std::fs::write(
        here.join("bad.toml"),
        "[server]\nheart_beat = \"15s\"\n[limits]\nmax_page = 0\n[worker]\nconcurrency = \"lots\"\n",
    )
    .unwrap();
    let said = serve_fails(here, &["--config", "bad.toml"], &[("RUNCAST_COLOUR", "red")], 2).await;
    for expected in [
        "server.heart_beat",
        "bad.toml:2",
        "server.heartbeat",
        "limits.max_page",
        "worker.concurrency",
        "RUNCAST_COLOUR",
    ] {
        assert!(said.contains(expected), "{expected} is missing: {said}");
    }
    std::fs::write(here.join("broken.toml"), "[server\n").unwrap();
    let said = serve_fails(here, &["--config", "broken.toml"], &[], 2).await;
    assert!(said.contains("broken.toml:1"), "{said}");
    let said = serve_fails(here, &["--config", "missing.toml"], &[], 2).await;
    assert!(said.contains("missing.toml"), "{said}");
    let said = serve_fails(here, &["--listen", "everywhere"], &[], 2).await;
    assert!(said.contains("listen (flag --listen)"), "{said}");
    let said = serve_fails(here, &["--broker", "amqp://user:secret@host"], &[], 2).await;
    assert!(said.contains("broker"), "{said}");
    let said = serve_fails(here, &[], &[("RUNCAST_LOG_LEVEL", "shout=loud=x")], 2).await;
    assert!(said.contains("log.level"), "{said}");
    let said = serve_fails(here, &["--colour"], &[], 2).await;
    assert!(said.contains("--colour"), "{said}");
    assert!(!here.join("runcast-data").exists(), "nothing is left behind");
}

#[tokio::test]
async fn a_port_in_use_is_named() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let directory = tempfile::tempdir().unwrap();
    let said = serve_fails(directory.path(), &["--listen", &address], &[], 1).await;
    assert!(said.contains(&address) && said.contains("--listen"), "{said}");
    assert!(!directory.path().join("runcast-data").exists(), "nothing is left behind");
}

#[tokio::test]
async fn a_database_that_is_newer_foreign_or_damaged_is_refused_and_left_as_it_is() {
    // Only a file can be written to by others.
    if !is_embedded() {
        return;
    }
    let mut node = Node::start("").await;
    let id = node.create(json!({"agent": "scripted", "input": "x"})).await;
    node.wait_final(&id).await;
    node.sigterm();
    assert_eq!(node.wait_exit().await.code(), Some(0));
    let here = node.directory();
    let file = database(here);
    let sound = std::fs::read(&file).unwrap();
    let refused = async |expected: &str| {
        let before = std::fs::read(&file).unwrap();
        let said = serve_fails(here, &["--data", "data"], &[], 1).await;
        assert!(said.contains("runcast.db") && said.contains(expected), "{expected} is missing: {said}");
        assert!(std::fs::read(&file).unwrap() == before, "the file was changed");
    };

    let alter = |sql: &str| rusqlite::Connection::open(&file).unwrap().execute_batch(sql).unwrap();
    alter("PRAGMA user_version = 99");
    refused("newer version").await;
    std::fs::write(&file, &sound).unwrap();
    alter("PRAGMA application_id = 7");
    refused("another program").await;

    std::fs::write(&file, b"this is no database at all, and long enough to be looked at as if it were".repeat(100))
        .unwrap();
    refused("damaged").await;
    std::fs::write(&file, &sound[..sound.len() / 2 - 100]).unwrap();
    refused("damaged").await;

    // With the file as it was, everything is there again.
    std::fs::write(&file, &sound).unwrap();
    node.restart().await;
    assert_eq!(node.run(&id).await["status"], "completed");
}

#[tokio::test]
async fn a_data_directory_that_is_a_file_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("data"), "I was here first.").unwrap();
    for data in ["data", "data/deeper"] {
        let said = serve_fails(directory.path(), &["--data", data], &[], 1).await;
        assert!(said.contains("data"), "{said}");
    }
    std::fs::create_dir_all(directory.path().join("other/runcast.db")).unwrap();
    let said = serve_fails(directory.path(), &["--data", "other"], &[], 1).await;
    assert!(said.contains("is a directory"), "{said}");
    assert_eq!(std::fs::read_to_string(directory.path().join("data")).unwrap(), "I was here first.");
}

#[tokio::test]
async fn an_address_that_others_can_reach_needs_an_api_key() {
    let directory = tempfile::tempdir().unwrap();
    let said = serve_fails(directory.path(), &["--listen", "0.0.0.0:0"], &[], 2).await;
    assert!(said.contains("server.api_keys") && said.contains("loopback"), "{said}");
    assert!(!directory.path().join("runcast-data").exists(), "nothing is left behind");
}
