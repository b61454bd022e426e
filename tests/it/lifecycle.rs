//! A run's life: created, listed, executed, retried, removed.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{DEADLINE, Node, Stream, assert_log, assert_promise, eventually, id_of, said};

/// A run that does not end by itself.
fn hanging() -> Value {
    json!({"agent": "scripted", "input": "x", "params": {"tokens": 2, "hang_at": 1}})
}

/// The ids of a page of runs.
fn ids(page: &Value) -> Vec<String> {
    page["data"].as_array().expect("a page").iter().map(id_of).collect()
}

#[tokio::test]
async fn a_run_is_accepted_with_its_location_and_completes_with_what_it_streamed() {
    let node = Node::start("").await;
    let body = json!({"agent": "scripted", "input": "three small words"});
    let answer = node.post_json("/v1/runs", &body).await;
    assert_eq!(answer.status, 202);
    let run = answer.json();
    let id = id_of(&run);
    assert_eq!(answer.header("location"), format!("/v1/runs/{id}"));
    assert_eq!(run["links"]["self"], format!("/v1/runs/{id}"));
    assert_eq!(
        (&run["status"], &run["attempt"], &run["input"]),
        (&json!("queued"), &json!(0), &json!("three small words"))
    );
    assert_eq!(run["params"], json!({}));
    let ended = node.wait_final(&id).await;
    assert_eq!((&ended["status"], &ended["output"]), (&json!("completed"), &json!("three small words")));
    assert_eq!((&ended["outcome"], &ended["usage"]["output_tokens"]), (&json!("finished"), &json!(3)));
    for time in ["created_at", "started_at", "finished_at"] {
        assert!(ended[time].as_str().is_some_and(|time| time.len() == 24 && time.ends_with('Z')), "{time}: {ended}");
    }
    let kinds: Vec<_> = node.events(&id).await.into_iter().map(|event| event.kind).collect();
    let delta = "message.delta";
    let expected =
        ["run.created", "run.queued", "run.started", delta, delta, delta, "message.completed", "run.completed"];
    assert_eq!(kinds, expected);
    assert_promise(&node, &id).await;
}

#[tokio::test]
async fn messages_are_an_input_too() {
    let node = Node::start("").await;
    let messages = json!([{"role": "system", "content": "Be kind."}, {"role": "user", "content": "hello there"}]);
    let id = node.create(json!({"agent": "scripted", "input": messages})).await;
    let run = node.wait_final(&id).await;
    assert_eq!((&run["input"], &run["output"]), (&messages, &json!("hello there")));
}

#[tokio::test]
async fn the_post_itself_streams_when_the_body_or_the_accept_header_asks_for_it() {
    let node = Node::start("").await;
    let mut body = json!({"agent": "scripted", "input": "x", "params": {"tokens": 5}});
    let by_header = node.request(Method::POST, "/v1/runs").json(&body).header("accept", "text/event-stream");
    let mut by_header = Stream::open(by_header).await;
    body["stream"] = json!(true);
    let mut by_field = Stream::open(node.request(Method::POST, "/v1/runs").json(&body)).await;
    for stream in [&mut by_header, &mut by_field] {
        let location = stream.headers()["location"].to_str().unwrap().to_owned();
        let events = stream.rest().await;
        assert_eq!(assert_log(&events).ending.as_deref(), Some("run.completed"));
        assert_eq!(said(&events), "t1 t2 t3 t4 t5 ");
        let id = location.strip_prefix("/v1/runs/").unwrap();
        assert_eq!(node.events(id).await, events);
    }
    assert_eq!(ids(&node.get("/v1/runs").await.json()).len(), 2);
}

#[tokio::test]
async fn runs_are_listed_youngest_first_in_pages_that_miss_and_repeat_nothing() {
    let node = Node::start("").await;
    let mut created = Vec::new();
    for number in 0..7 {
        created.push(node.create(json!({"agent": "scripted", "input": number.to_string()})).await);
    }
    created.reverse();
    let (mut listed, mut cursor, mut pages) = (Vec::new(), String::new(), 0);
    loop {
        let page = node.get(&format!("/v1/runs?limit=3{cursor}")).await.json();
        listed.extend(ids(&page));
        pages += 1;
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!((listed, pages), (created.clone(), 3));
    // A page that is just full is the last one, too.
    let page = node.get("/v1/runs?limit=7").await.json();
    assert_eq!((ids(&page), &page["next_cursor"]), (created, &Value::Null));
}

#[tokio::test]
async fn lists_are_filtered_by_status_agent_metadata_and_time() {
    let node = Node::start("[agents.other]\nkind = \"scripted\"").await;
    let labelled = json!({"agent": "scripted", "input": "x", "metadata": {"team": "blue", "k e=y&": "ü"}});
    let first = node.create(labelled).await;
    let first_run = node.wait_final(&first).await;
    let other = node.create(json!({"agent": "other", "input": "x", "metadata": {"team": "red"}})).await;
    node.wait_final(&other).await;
    let failing =
        json!({"agent": "scripted", "input": "x", "params": {"tokens": 1, "fail_at": 1, "error": "permanent"}});
    let failed = node.create(failing).await;
    node.wait_final(&failed).await;
    let delayed = node.create(json!({"agent": "scripted", "input": "x", "delay_ms": 600_000})).await;
    let running = node.create(hanging()).await;
    node.until(&running, &["running"]).await;
    assert_eq!(first_run["metadata"], json!({"team": "blue", "k e=y&": "ü"}));

    let created_at = first_run["created_at"].as_str().unwrap();
    for (query, expected) in [
        ("status=completed".to_owned(), vec![&other, &first]),
        ("status=failed".to_owned(), vec![&failed]),
        ("status=running".to_owned(), vec![&running]),
        ("status=scheduled,failed".to_owned(), vec![&delayed, &failed]),
        ("status=queued,waiting,cancelled,expired".to_owned(), vec![]),
        ("agent=other".to_owned(), vec![&other]),
        ("agent=nobody".to_owned(), vec![]),
        ("metadata.team=blue".to_owned(), vec![&first]),
        ("metadata.team=blue&metadata.k%20e%3Dy%26=%C3%BC".to_owned(), vec![&first]),
        ("metadata.team=green".to_owned(), vec![]),
        ("metadata.team=red&status=failed".to_owned(), vec![]),
        (format!("created_before={created_at}"), vec![]),
        (format!("created_after={created_at}"), vec![&running, &delayed, &failed, &other, &first]),
    ] {
        let answer = node.get(&format!("/v1/runs?{query}")).await;
        assert_eq!(answer.status, 200, "{query}: {answer:?}");
        assert_eq!(ids(&answer.json()).iter().collect::<Vec<_>>(), expected, "{query}");
    }
}

#[tokio::test]
async fn wait_answers_at_the_end_or_when_its_patience_is_over() {
    let node = Node::start("").await;
    let endless = node.create(hanging()).await;
    node.until(&endless, &["running"]).await;
    let answer = node.get(&format!("/v1/runs/{endless}/wait?timeout_ms=50")).await;
    assert_eq!((answer.status.as_u16(), &answer.json()["status"]), (200, &json!("running")));
    let slow = node.create(json!({"agent": "scripted", "input": "x", "params": {"tokens": 4, "delay_ms": 20}})).await;
    for _ in 0..2 {
        let answer = node.get(&format!("/v1/runs/{slow}/wait")).await;
        assert_eq!((answer.status.as_u16(), &answer.json()["status"]), (200, &json!("completed")));
    }
}

#[tokio::test]
async fn wait_works_at_whatever_moment_it_is_asked() {
    let node = Node::start("").await;
    let one = async |number: u64| {
        let params = json!({"tokens": number % 3, "delay_ms": number % 2});
        let id = node.create(json!({"agent": "scripted", "input": "x", "params": params})).await;
        let answer = node.get(&format!("/v1/runs/{id}/wait")).await;
        assert_eq!((answer.status.as_u16(), &answer.json()["status"]), (200, &json!("completed")), "{answer:?}");
    };
    for round in 0..20 {
        join_all((0..10).map(|number| one(round + number))).await;
    }
}

#[tokio::test]
async fn a_delayed_run_waits_for_its_time_and_then_runs() {
    let node = Node::start("").await;
    let delay = Duration::from_secs(1);
    let began = Instant::now();
    let id = node.create(json!({"agent": "scripted", "input": "x", "delay_ms": delay.as_millis()})).await;
    let run = node.run(&id).await;
    assert_eq!((&run["status"], &run["reason"]), (&json!("scheduled"), &json!("delay")));
    assert!(run["due_at"].is_string(), "{run}");
    assert_eq!(node.wait_final(&id).await["status"], "completed");
    assert!(began.elapsed() >= delay, "after {:?}", began.elapsed());
    let log = assert_promise(&node, &id).await;
    assert_eq!(log.attempts, [1]);
    assert_eq!(node.events(&id).await[1].kind, "run.scheduled");
}

#[tokio::test]
async fn a_run_starts_at_the_time_it_names_or_at_once_when_that_has_passed() {
    let node = Node::start("").await;
    let early = node.create(json!({"agent": "scripted", "input": "x", "run_at": "2001-02-03T04:05:06Z"})).await;
    let early = node.wait_final(&early).await;
    assert_eq!(early["status"], "completed");
    let now: jiff::Timestamp = early["finished_at"].as_str().unwrap().parse().unwrap();
    let at = now + jiff::SignedDuration::from_millis(700);
    // Another way to write the same time.
    let written = at.to_zoned(jiff::tz::TimeZone::fixed(jiff::tz::offset(2))).strftime("%Y-%m-%dT%H:%M:%S%.f%:z");
    let late = node.create(json!({"agent": "scripted", "input": "x", "run_at": written.to_string()})).await;
    let late = node.wait_final(&late).await;
    let started: jiff::Timestamp = late["started_at"].as_str().unwrap().parse().unwrap();
    assert!(started.as_millisecond() >= at.as_millisecond(), "{started} < {at}");
}

#[tokio::test]
async fn a_run_that_has_not_started_within_its_time_to_live_expires() {
    let node = Node::start("worker.concurrency = 1").await;
    let blocking = node.create(hanging()).await;
    node.until(&blocking, &["running"]).await;
    let queued = node.create(json!({"agent": "scripted", "input": "x", "ttl_ms": 60})).await;
    let delayed = node.create(json!({"agent": "scripted", "input": "x", "ttl_ms": 60, "delay_ms": 600_000})).await;
    for id in [&queued, &delayed] {
        assert!(node.run(id).await["expires_at"].is_string() || node.run(id).await["status"] == "expired");
        let run = node.wait_final(id).await;
        assert_eq!(
            (&run["status"], &run["outcome"], &run["attempt"]),
            (&json!("expired"), &json!("expired"), &json!(0))
        );
        assert_promise(&node, id).await;
    }
    // One that has started does not expire.
    assert_eq!(node.cancel(&blocking).await.status, 202);
    let params = json!({"tokens": 3, "delay_ms": 400});
    let lively = json!({"agent": "scripted", "input": "x", "ttl_ms": 1_000, "params": params});
    node.wait_final(&blocking).await;
    let lively = node.create(lively).await;
    assert_eq!(node.wait_final(&lively).await["status"], "completed");
}

#[tokio::test]
async fn a_run_that_takes_longer_than_its_timeout_fails() {
    let node = Node::start("").await;
    let mut body = hanging();
    body["timeout_ms"] = json!(80);
    let id = node.create(body).await;
    let run = node.wait_final(&id).await;
    assert_eq!(
        (&run["status"], &run["error"]["code"], &run["outcome"]),
        (&json!("failed"), &json!("timeout"), &json!("deadline"))
    );
    let log = assert_promise(&node, &id).await;
    assert_eq!(run["error"]["message"], "Execution timeout");
    assert_eq!(log.attempts, [1], "a deadline is not retried");
}

#[tokio::test]
async fn the_timeout_bounds_all_attempts_together() {
    let node = Node::start("runs.backoff_base = \"1ms\"\nruns.backoff_max = \"1ms\"").await;
    let params = json!({"tokens": 2, "delay_ms": 300, "fail_at": 2});
    let id = node
        .create(json!({"agent": "scripted", "input": "x", "timeout_ms": 1_000, "max_attempts": 100, "params": params}))
        .await;
    let run = node.wait_final(&id).await;
    assert_eq!(run["error"]["code"], "timeout", "{run}");
    let attempts = run["attempt"].as_u64().unwrap();
    assert!((2..=4).contains(&attempts), "{attempts} attempts of 300 ms in 1 s");
    assert_promise(&node, &id).await;
}

#[tokio::test]
async fn transient_errors_are_retried_with_backoff_until_the_attempts_are_exhausted() {
    let node = Node::start("runs.backoff_base = \"10ms\"").await;
    let params = json!({"tokens": 5, "fail_at": 3});
    let id = node.create(json!({"agent": "scripted", "input": "x", "params": params})).await;
    let run = node.wait_final(&id).await;
    assert_eq!((&run["status"], &run["outcome"]), (&json!("failed"), &json!("attempts_exhausted")));
    assert_eq!((&run["error"]["code"], &run["attempt"]), (&json!("scripted_transient"), &json!(3)));
    let log = assert_promise(&node, &id).await;
    assert_eq!((log.attempts, log.retries), (vec![1, 2, 3], vec!["transient_error".to_owned(); 2]));
    for retrying in node.events(&id).await.iter().filter(|event| event.kind == "run.retrying") {
        assert!(retrying.data["due"].is_string(), "{retrying:?}");
        assert!(retrying.data["message"].as_str().is_some_and(|text| text.contains("token 3")), "{retrying:?}");
    }
}

#[tokio::test]
async fn permanent_errors_fail_at_once() {
    let node = Node::start("").await;
    let params = json!({"tokens": 5, "fail_at": 3, "error": "permanent"});
    let id = node.create(json!({"agent": "scripted", "input": "x", "params": params, "max_attempts": 50})).await;
    let run = node.wait_final(&id).await;
    assert_eq!((&run["status"], &run["outcome"], &run["attempt"]), (&json!("failed"), &json!("error"), &json!(1)));
    assert_eq!(run["error"], json!({"code": "scripted_permanent", "message": "the script fails at token 3"}));
    assert_promise(&node, &id).await;
}

#[tokio::test]
async fn a_panic_fails_its_attempt_and_nothing_else() {
    let node = Node::start("runs.backoff_base = \"1ms\"\nworker.supervisors = 1").await;
    let body = json!({"agent": "scripted", "input": "x", "params": {"tokens": 20, "delay_ms": 10}});
    let others = join_all((0..5).map(|_| node.create(body.clone()))).await;
    let params = json!({"tokens": 5, "fail_at": 2, "error": "panic"});
    let id = node.create(json!({"agent": "scripted", "input": "x", "params": params, "max_attempts": 2})).await;
    let run = node.wait_final(&id).await;
    assert_eq!(
        (&run["status"], &run["error"]["code"], &run["attempt"]),
        (&json!("failed"), &json!("agent_panic"), &json!(2))
    );
    assert_promise(&node, &id).await;
    for other in others {
        let run = node.wait_final(&other).await;
        assert_eq!((&run["status"], &run["attempt"]), (&json!("completed"), &json!(1)));
        assert_promise(&node, &other).await;
    }
    assert_eq!(node.metric("runcast_agent_panics_total").await, 2.0);
}

#[tokio::test]
async fn higher_priorities_go_first_and_equals_in_their_order() {
    let node = Node::start("worker.concurrency = 1\n[agents.other]\nkind = \"scripted\"").await;
    let blocking = node.create(hanging()).await;
    node.until(&blocking, &["running"]).await;
    let mut waiting = Vec::new();
    // Of whichever agent they are; equals of different agents take turns.
    let (scripted, other) = ("scripted", "other");
    for (priority, agent) in [
        (0, scripted),
        (-5, other),
        (100, scripted),
        (0, scripted),
        (7, other),
        (-100, scripted),
        (50, other),
        (7, other),
    ] {
        waiting.push((-priority, node.create(json!({"agent": agent, "input": "x", "priority": priority})).await));
    }
    node.cancel(&blocking).await;
    let mut started = Vec::new();
    for (_, id) in &waiting {
        let run = node.wait_final(id).await;
        started.push((run["finished_at"].as_str().unwrap().to_owned(), id.clone()));
    }
    // Stable: equal priorities stay as they were created.
    waiting.sort_by_key(|(order, _)| *order);
    let ends: Vec<_> =
        waiting.iter().map(|(_, id)| started.iter().find(|(_, other)| other == id).unwrap().0.clone()).collect();
    assert!(ends.is_sorted(), "by priority: {ends:?}");
}

#[tokio::test]
async fn a_retry_is_a_new_run_that_names_the_one_it_goes_on_from() {
    let node = Node::start("").await;
    let params = json!({"tokens": 2, "fail_at": 2, "error": "permanent"});
    let body = json!({"agent": "scripted", "input": "x", "params": params, "priority": 3, "metadata": {"a": "b"}});
    let failed = node.create(body).await;
    node.wait_final(&failed).await;
    let answer = node.post(&format!("/v1/runs/{failed}/retry")).await;
    assert_eq!(answer.status, 202, "{answer:?}");
    let again = id_of(&answer.json());
    assert_ne!(again, failed);
    assert_eq!(answer.header("location"), format!("/v1/runs/{again}"));
    let run = node.wait_final(&again).await;
    assert_eq!((&run["retry_of"], &run["status"], &run["attempt"]), (&json!(failed), &json!("failed"), &json!(1)));
    assert_eq!((&run["params"], &run["priority"], &run["metadata"]), (&params, &json!(3), &json!({"a": "b"})));
    assert_eq!(node.events(&again).await[0].data["retry_of"], json!(failed));
    assert_promise(&node, &again).await;
    assert_promise(&node, &failed).await;

    // The same key finds the same new run, and another run's retry is another request.
    let with_key =
        |id: &str| node.request(Method::POST, &format!("/v1/runs/{id}/retry")).header("idempotency-key", "k");
    let first = id_of(&node.send(with_key(&failed)).await.json());
    assert_eq!(id_of(&node.send(with_key(&failed)).await.json()), first);
    node.send(with_key(&again)).await.assert_problem(409, "idempotency_key_reused");

    let completed = node.create(json!({"agent": "scripted", "input": "x"})).await;
    node.wait_final(&completed).await;
    node.post(&format!("/v1/runs/{completed}/retry")).await.assert_problem(409, "run_not_retryable");
    let running = node.create(hanging()).await;
    node.post(&format!("/v1/runs/{running}/retry")).await.assert_problem(409, "run_not_retryable");
    node.cancel(&running).await;
    node.wait_final(&running).await;
    assert_eq!(node.post(&format!("/v1/runs/{running}/retry")).await.status, 202, "a cancelled one can be retried");
}

#[tokio::test]
async fn a_run_that_has_ended_can_be_removed_with_all_that_belongs_to_it() {
    let node = Node::start("").await;
    let running = node.create(hanging()).await;
    node.delete(&format!("/v1/runs/{running}")).await.assert_problem(409, "run_not_final");
    let body = json!({"agent": "scripted", "input": "x"});
    let with_key = || node.request(Method::POST, "/v1/runs").json(&body).header("idempotency-key", "k");
    let id = id_of(&node.send(with_key()).await.json());
    node.wait_final(&id).await;
    assert_eq!(node.delete(&format!("/v1/runs/{id}")).await.status, 204);
    for tail in ["", "/events", "/stream", "/wait"] {
        node.get(&format!("/v1/runs/{id}{tail}")).await.assert_problem(404, "not_found");
    }
    for tail in ["/cancel", "/retry"] {
        node.post(&format!("/v1/runs/{id}{tail}")).await.assert_problem(404, "not_found");
    }
    node.delete(&format!("/v1/runs/{id}")).await.assert_problem(404, "not_found");
    assert_eq!(ids(&node.get("/v1/runs").await.json()), [running]);
    let again = id_of(&node.send(with_key()).await.json());
    assert_ne!(again, id, "the key went with its run");
}

#[tokio::test]
async fn the_same_key_and_body_give_the_same_run_and_another_body_is_refused() {
    let node = Node::start("").await;
    let with_key =
        |key: &str, body: &Value| node.request(Method::POST, "/v1/runs").json(body).header("idempotency-key", key);
    let body = json!({"agent": "scripted", "input": "x"});
    let first = node.send(with_key("one", &body)).await;
    assert_eq!(first.status, 202);
    let id = id_of(&first.json());
    node.wait_final(&id).await;
    let second = node.send(with_key("one", &body)).await;
    assert_eq!((second.status.as_u16(), second.header("location")), (202, first.header("location")));
    let other = json!({"agent": "scripted", "input": "y"});
    let detail = node.send(with_key("one", &other)).await.assert_problem(409, "idempotency_key_reused");
    assert!(detail.contains("another body"), "{detail}");
    assert_ne!(id_of(&node.send(with_key("two", &body)).await.json()), id);
    assert_eq!(ids(&node.get("/v1/runs").await.json()).len(), 2);
    let mut again = Stream::open(with_key("one", &body).header("accept", "text/event-stream")).await;
    assert_eq!(again.rest().await, node.events(&id).await, "a repeated request may want the stream");
}

#[tokio::test]
async fn a_refused_request_does_not_use_up_its_key() {
    let node = Node::start("").await;
    let with_key = |body: &Value| node.request(Method::POST, "/v1/runs").json(body).header("idempotency-key", "k");
    node.send(with_key(&json!({"agent": "nobody", "input": "x"}))).await.assert_problem(400, "unknown_agent");
    assert_eq!(node.send(with_key(&json!({"agent": "scripted", "input": "x"}))).await.status, 202);
}

#[tokio::test]
async fn twenty_requests_at_once_with_one_key_make_one_run() {
    let node = Node::start("").await;
    let body = json!({"agent": "scripted", "input": "x"});
    for key in ["a", "b", "c"] {
        let requests = (0..20)
            .map(|_| node.send(node.request(Method::POST, "/v1/runs").json(&body).header("idempotency-key", key)));
        let answers = join_all(requests).await;
        let ids: BTreeSet<String> = answers.iter().map(|answer| id_of(&answer.json())).collect();
        assert_eq!(ids.len(), 1, "{ids:?}");
        assert!(answers.iter().all(|answer| answer.status == 202));
    }
    assert_eq!(ids(&node.get("/v1/runs").await.json()).len(), 3);
}

#[tokio::test]
async fn a_key_still_finds_its_run_after_a_kill() {
    let mut node = Node::start("").await;
    let body = json!({"agent": "scripted", "input": "x"});
    let with_key = |node: &Node| node.request(Method::POST, "/v1/runs").json(&body).header("idempotency-key", "k");
    let id = id_of(&node.send(with_key(&node)).await.json());
    node.kill9().await;
    node.restart().await;
    assert_eq!(id_of(&node.send(with_key(&node)).await.json()), id);
    assert_eq!(node.wait_final(&id).await["status"], "completed");
}

#[tokio::test]
async fn the_correlation_id_is_kept_on_the_run_and_the_request_id_is_returned() {
    let node = Node::start("").await;
    let body = json!({"agent": "scripted", "input": "x"});
    let request = node.request(Method::POST, "/v1/runs").json(&body);
    let answer = node.send(request.header("x-correlation-id", "order-7").header("x-request-id", "r-1")).await;
    assert_eq!((answer.header("x-correlation-id"), answer.header("x-request-id")), ("order-7", "r-1"));
    let id = id_of(&answer.json());
    assert_eq!(node.run(&id).await["correlation_id"], "order-7");
    let one = node.get(&format!("/v1/runs/{id}")).await;
    let two = node.get(&format!("/v1/runs/{id}")).await;
    let refused = node.get("/v1/nothing").await;
    let made: BTreeSet<_> = [&one, &two, &refused].map(|answer| answer.header("x-request-id").to_owned()).into();
    assert!(made.len() == 3 && made.iter().all(|id| !id.is_empty()), "made and different: {made:?}");
    // What is no plain token is not echoed.
    let hostile = node.request(Method::GET, "/health").header("x-request-id", "a b");
    assert_ne!(node.send(hostile).await.header("x-request-id"), "a b");
}

#[tokio::test]
async fn runs_of_a_configured_agent_take_its_timeout_and_attempts() {
    let config = "runs.backoff_base = \"1ms\"\n[agents.brief]\nkind = \"scripted\"\ntimeout = \"2s\"\nmax_attempts = 2";
    let node = Node::start(config).await;
    let params = json!({"tokens": 1, "fail_at": 1});
    let id = node.create(json!({"agent": "brief", "input": "x", "params": params})).await;
    let run = node.wait_final(&id).await;
    assert_eq!((&run["timeout_ms"], &run["max_attempts"], &run["attempt"]), (&json!(2000), &json!(2), &json!(2)));
    let own = json!({"agent": "brief", "input": "x", "params": params, "max_attempts": 1, "timeout_ms": 5});
    let run = node.run(&node.create(own).await).await;
    assert_eq!((&run["timeout_ms"], &run["max_attempts"]), (&json!(5), &json!(1)));
}

#[tokio::test]
async fn everything_comes_back_to_zero_when_the_runs_have_ended() {
    let node = Node::start("feed.ended_linger = \"0s\"").await;
    let body = json!({"agent": "scripted", "input": "x", "params": {"tokens": 3, "delay_ms": 1}});
    let runs = join_all((0..50).map(|_| node.create(body.clone()))).await;
    for id in &runs {
        assert_eq!(node.wait_final(id).await["status"], "completed");
    }
    let (mut left, deadline) = (Vec::new(), Instant::now() + DEADLINE / 3);
    eventually("no live run, viewer, log or open run is left", async || {
        let waiting = ["scheduled", "queued", "running", "waiting"];
        let waiting = waiting.map(|status| format!("runcast_runs{{status=\"{status}\"}}"));
        let gauges = ["runcast_live_runs", "runcast_viewers", "runcast_logs"].map(str::to_owned);
        left.clear();
        for name in gauges.into_iter().chain(waiting) {
            let value = node.metric(&name).await;
            if value != 0.0 {
                left.push(format!("{name} {value}"));
            }
        }
        (left.is_empty() || Instant::now() > deadline).then_some(())
    })
    .await;
    assert_eq!(left, Vec::<String>::new(), "still there after a while");
    assert_eq!(node.metric("runcast_runs_created_total").await, 50.0);
    assert_eq!(node.metric("runcast_runs_finished_total{status=\"completed\"}").await, 50.0);
}
