//! Conversations: what becomes of messages, who is asked and who takes over, and all of it as one stream.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{Answer, Node, Stream, assert_log, assert_promise, eventually, id_of, said, soon};

/// A thread of its own.
pub(crate) async fn thread(node: &Node) -> String {
    let answer = node.post_json("/v1/threads", &json!({})).await;
    assert_eq!(answer.status, 201, "{answer:?}");
    let id = id_of(&answer.json());
    assert_eq!(answer.header("location"), format!("/v1/threads/{id}"));
    id
}

pub(crate) async fn thread_of(node: &Node, id: &str) -> Value {
    let answer = node.get(&format!("/v1/threads/{id}")).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

pub(crate) async fn post_message(node: &Node, thread: &str, body: &Value) -> Answer {
    node.post_json(&format!("/v1/threads/{thread}/messages"), body).await
}

/// A message to the scripted agent, with `more` besides; the answer.
pub(crate) async fn say(node: &Node, thread: &str, content: &str, more: Value) -> Value {
    let mut body = json!({"agent": "scripted", "content": content});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let answer = post_message(node, thread, &body).await;
    assert_eq!(answer.status, 202, "{answer:?}");
    let sent = answer.json();
    if sent["run"].is_object() {
        assert_eq!(sent["run"]["thread_id"], thread);
        assert_eq!(answer.header("location"), format!("/v1/runs/{}", id_of(&sent["run"])));
    }
    sent
}

/// Params of a run that says so many tokens and then nothing.
fn hanging(tokens: u64) -> Value {
    json!({"params": {"tokens": tokens + 1, "hang_at": tokens + 1}})
}

/// A run holds the thread and has said `t1 t2 `; its id.
async fn held(node: &Node, thread: &str) -> String {
    let run = id_of(&say(node, thread, "first", hanging(2)).await["run"]);
    node.until_said(&run, 2).await;
    run
}

/// Role and content of all messages, by pages of two.
async fn messages(node: &Node, thread: &str) -> Vec<(String, String)> {
    let (mut messages, mut after) = (Vec::new(), 0);
    loop {
        let answer = node.get(&format!("/v1/threads/{thread}/messages?after={after}&limit=2")).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let page = answer.json();
        let data = page["data"].as_array().unwrap();
        if data.is_empty() {
            return messages;
        }
        for message in data {
            after += 1;
            assert_eq!(message["seq"], after);
            let text = |field: &str| message[field].as_str().unwrap().to_owned();
            messages.push((text("role"), text("content")));
        }
        assert_eq!(page["next_after"], after);
    }
}

fn words(messages: &[(String, String)]) -> Vec<(&str, &str)> {
    messages.iter().map(|(role, content)| (role.as_str(), content.as_str())).collect()
}

/// The ids of the thread's runs, oldest first.
pub(crate) async fn runs(node: &Node, thread: &str) -> Vec<String> {
    let page = node.get(&format!("/v1/runs?thread_id={thread}")).await.json();
    let mut ids: Vec<_> = page["data"].as_array().unwrap().iter().map(id_of).collect();
    ids.reverse();
    ids
}

#[tokio::test]
async fn threads_are_made_found_changed_and_removed() {
    let node = Node::start("").await;
    let id = "0196f3a0-0000-7000-8000-000000000001";
    let body = json!({"id": id, "metadata": {"user": "u1"}, "state": {"n": [1, null]}});
    let made = node.post_json("/v1/threads", &body).await;
    assert_eq!(made.status, 201, "{made:?}");
    assert_eq!(node.post_json("/v1/threads", &body).await.status, 200);
    let thread = thread_of(&node, id).await;
    assert_eq!(thread, made.json());
    assert_eq!(
        (&thread["status"], &thread["metadata"]["user"], &thread["state"]["n"]),
        (&json!("idle"), &json!("u1"), &json!([1, null]))
    );
    assert_eq!(thread["links"]["messages"], format!("/v1/threads/{id}/messages"));

    let patched =
        node.send(node.request(Method::PATCH, &format!("/v1/threads/{id}")).json(&json!({"state": {}}))).await;
    assert_eq!((&patched.json()["state"], &patched.json()["metadata"]), (&json!({}), &json!({"user": "u1"})));

    let keyed = async |body: &Value| {
        node.send(node.request(Method::POST, "/v1/threads").json(body).header("idempotency-key", "k")).await
    };
    let (one, two) = (keyed(&json!({})).await, keyed(&json!({})).await);
    assert_eq!((one.status.as_u16(), two.status.as_u16(), one.json()["id"] == two.json()["id"]), (201, 200, true));
    keyed(&json!({"state": {"a": 1}})).await.assert_problem(409, "idempotency_key_reused");

    for user in ["u1", "u2", "u1"] {
        node.post_json("/v1/threads", &json!({"metadata": {"user": user}})).await;
    }
    let (mut found, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = node.get(&format!("/v1/threads?metadata.user=u1&limit=1{cursor}")).await.json();
        found.extend(page["data"].as_array().unwrap().iter().map(id_of));
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(found.len(), 3, "{found:?}");
    assert_eq!(found.last().map(String::as_str), Some(id), "youngest first");

    let run = held(&node, id).await;
    let busy = thread_of(&node, id).await;
    assert_eq!((&busy["status"], &busy["holder"]), (&json!("busy"), &json!(run)));
    node.delete(&format!("/v1/threads/{id}")).await.assert_problem(409, "thread_busy");
    node.cancel(&run).await;
    node.wait_final(&run).await;
    assert_eq!(node.delete(&format!("/v1/threads/{id}")).await.status, 204);
    node.get(&format!("/v1/threads/{id}")).await.assert_problem(404, "not_found");
    node.get(&format!("/v1/runs/{run}")).await.assert_problem(404, "not_found");
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_and_nothing_comes_in() {
    let node = Node::start("limits.max_input = \"1KiB\"\nlimits.max_pending = 1").await;
    let thread = thread(&node).await;
    let nobody = "0196f3a0-0000-7000-8000-000000000009";
    let path = format!("/v1/threads/{thread}/messages");
    for (body, status, code, field) in [
        (json!({"agent": "scripted"}), 400, "invalid_field", "content"),
        (json!({"agent": "scripted", "content": "x", "contents": 1}), 400, "invalid_field", "contents"),
        (json!({"agent": "scripted", "content": []}), 400, "invalid_field", "content"),
        (
            json!({"agent": "scripted", "content": [{"role": "user", "text": "x"}]}),
            400,
            "invalid_field",
            "content[0].text",
        ),
        (
            json!({"agent": "scripted", "content": [{"role": "user", "content": []}]}),
            400,
            "invalid_field",
            "content[0].content",
        ),
        (
            json!({"agent": "scripted", "content": "x", "debounce_ms": 2, "debounce_max_ms": 1}),
            400,
            "invalid_field",
            "debounce_ms",
        ),
        (json!({"agent": "scripted", "content": "x".repeat(1_025)}), 413, "input_too_large", "content"),
        (json!({"agent": "scripted", "content": "x", "on_busy": "wait"}), 400, "invalid_field", "on_busy"),
        (json!({"agent": "scripted", "content": "x", "debounce_ms": 86_400_001}), 400, "invalid_field", "debounce_ms"),
        (json!({"agent": "nobody", "content": "x"}), 400, "unknown_agent", "agent"),
        (
            json!({"agent": "scripted", "content": vec![json!({"role": "user", "content": ""}); 1_001]}),
            400,
            "invalid_field",
            "content",
        ),
    ] {
        let answer = node.post_json(&path, &body).await;
        answer.assert_problem(status, code);
        assert_eq!(answer.json()["field"], field, "{body}");
    }
    node.post_json(&format!("/v1/threads/{nobody}/messages"), &json!({"agent": "scripted", "content": "x"}))
        .await
        .assert_problem(404, "not_found");
    node.post_json("/v1/runs", &json!({"agent": "scripted", "input": "x", "thread_id": nobody}))
        .await
        .assert_problem(404, "not_found");
    node.post_json("/v1/threads", &json!({"id": "x"})).await.assert_problem(400, "invalid_field");
    node.post_json("/v1/threads", &json!({"state": {"x": "y".repeat(300_000)}}))
        .await
        .assert_problem(400, "invalid_field");
    node.post_json(&format!("/v1/threads/{thread}/handoff"), &json!({"reason": "x".repeat(3_000)}))
        .await
        .assert_problem(400, "invalid_field");
    assert_eq!(messages(&node, &thread).await, []);

    for bad in ["x", "1.", "01", "2.1-1.1-1", "1.2-1"] {
        let answer = node.get(&format!("/v1/threads/{thread}/stream?after={bad}")).await;
        answer.assert_problem(400, "invalid_field");
        let request = node.request(Method::GET, &format!("/v1/threads/{thread}/stream")).header("last-event-id", bad);
        node.send(request).await.assert_problem(400, "invalid_field");
    }
    node.get(&format!("/v1/threads/{thread}/stream?after=1")).await.assert_problem(400, "sequence_beyond_log");
    node.get(&format!("/v1/threads/{thread}/stream?from=middle")).await.assert_problem(400, "invalid_field");
    node.get(&format!("/v1/threads/{nobody}/stream")).await.assert_problem(404, "not_found");

    // Who has the thread by then is not known yet.
    for on_busy in ["reject", "interrupt", "rollback", "debounce", "steer"] {
        let body = json!({"agent": "scripted", "input": "x", "thread_id": thread, "delay_ms": 1, "on_busy": on_busy});
        let refused = node.post_json("/v1/runs", &body).await;
        refused.assert_problem(400, "invalid_field");
        assert_eq!(refused.json()["field"], "on_busy");
    }

    let run = held(&node, &thread).await;
    node.get(&format!("/v1/threads/{thread}/stream?after=1.1-100000")).await.assert_problem(400, "sequence_beyond_log");
    say(&node, &thread, "second", json!({})).await;
    let full = post_message(&node, &thread, &json!({"agent": "scripted", "content": "third"})).await;
    full.assert_problem(429, "thread_full");
    node.cancel(&run).await;
}

#[tokio::test]
async fn quick_messages_become_one_run_with_all_of_them_in_order() {
    let node = Node::start("").await;
    let thread = thread(&node).await;
    let mut given = Vec::new();
    for (index, word) in ["a", "b", "c", "d", "e"].into_iter().enumerate() {
        let sent = say(&node, &thread, word, json!({"debounce_ms": 1_500})).await;
        assert_eq!(sent["how"], if index == 0 { "created" } else { "joined" });
        assert_eq!((&sent["run"]["status"], &sent["run"]["reason"]), (&json!("scheduled"), &json!("debounce")));
        assert!(sent["run"]["due_at"].is_string(), "{sent}");
        assert_eq!((&sent["message"]["seq"], &sent["message"]["content"]), (&json!(index + 1), &json!(word)));
        given.push(id_of(&sent["run"]));
    }
    given.dedup();
    let [run] = &given[..] else { panic!("{given:?}") };
    assert_eq!(node.wait_final(run).await["output"], "a b c d e");
    assert_promise(&node, run).await;
    let expected = ["a", "b", "c", "d", "e"].map(|word| ("user", word)).into_iter().chain([("assistant", "a b c d e")]);
    assert_eq!(words(&messages(&node, &thread).await), expected.collect::<Vec<_>>());
    // A bound on the wait goes before the period.
    let sent = say(&node, &thread, "f", json!({"debounce_ms": 60_000, "debounce_max_ms": 60_000})).await;
    let again = say(&node, &thread, "g", json!({"debounce_ms": 60_000})).await;
    assert_eq!(sent["run"]["due_at"], again["run"]["due_at"], "the longest wait is the first message's");
}

#[tokio::test]
async fn what_becomes_of_a_message_to_a_busy_thread_is_the_callers_choice() {
    let node = Node::start("").await;
    let history = |on_busy: &str| json!({"on_busy": on_busy, "params": {"say_history": true}});

    let busy = thread(&node).await;
    let run = held(&node, &busy).await;
    let refused = post_message(&node, &busy, &json!({"agent": "scripted", "content": "x", "on_busy": "reject"})).await;
    assert!(refused.assert_problem(409, "thread_busy").contains(&run));
    let next = say(&node, &busy, "x", history("enqueue")).await["run"].clone();
    assert_eq!(
        (&next["status"], &next["reason"], &next["due_at"]),
        (&json!("scheduled"), &json!("thread_busy"), &json!(null))
    );
    node.cancel(&run).await;
    assert_eq!(node.wait_final(&id_of(&next)).await["output"], "h2 x");

    let interrupted = thread(&node).await;
    let run = held(&node, &interrupted).await;
    let next = id_of(&say(&node, &interrupted, "x", history("interrupt")).await["run"]);
    assert_eq!(node.wait_final(&next).await["output"], "h2 x");
    assert_eq!(node.wait_final(&run).await["status"], "cancelled");
    let expected = [("user", "first"), ("user", "x"), ("assistant", "t1 t2 "), ("assistant", "h2 x")];
    assert_eq!(words(&messages(&node, &interrupted).await), expected);

    let rolled = thread(&node).await;
    held(&node, &rolled).await;
    let next = id_of(&say(&node, &rolled, "x", history("rollback")).await["run"]);
    assert_eq!(node.wait_final(&next).await["output"], "h1 x");

    let merged = thread(&node).await;
    let run = held(&node, &merged).await;
    let one = say(&node, &merged, "b", json!({"on_busy": "debounce"})).await;
    let two = say(&node, &merged, "c", json!({"on_busy": "debounce"})).await;
    assert_eq!((&one["how"], &two["how"]), (&json!("created"), &json!("joined")));
    assert_eq!(one["run"]["id"], two["run"]["id"]);
    node.cancel(&run).await;
    assert_eq!(node.wait_final(&id_of(&one["run"])).await["output"], "b c");
}

#[tokio::test]
async fn a_message_is_handed_to_the_run_that_is_going_on_and_no_crash_loses_it() {
    let mut node = Node::start("").await;
    let thread = thread(&node).await;
    let slow = json!({"params": {"tokens": 60, "delay_ms": 20, "step_tokens": 4}});
    let run = id_of(&say(&node, &thread, "first", slow).await["run"]);
    node.until_said(&run, 3).await;
    let steered = say(&node, &thread, "turn left", json!({"on_busy": "steer"})).await;
    assert_eq!((&steered["how"], &steered["run"]["id"]), (&json!("steered"), &json!(run)));
    let heard = eventually("the run says it", async || {
        let events = node.events(&run).await;
        said(&events).contains("turn left ").then_some(events)
    })
    .await;
    assert!(!said(&heard).contains("t60 "), "while it goes on: {}", said(&heard));
    // The last step may be cut off, and what was handed over is in its place all the same.
    node.kill9().await;
    node.restart().await;
    let another = say(&node, &thread, "and stop", json!({"on_busy": "steer"})).await;
    assert_eq!(another["how"], "steered");
    let output = node.wait_final(&run).await["output"].as_str().unwrap().to_owned();
    assert_promise(&node, &run).await;
    for words in ["turn left ", "and stop "] {
        assert_eq!(output.matches(words).count(), 1, "{output}");
    }
    let rest = output.replace("turn left ", "").replace("and stop ", "");
    assert_eq!(rest, (1..=60).map(|number| format!("t{number} ")).collect::<String>());
    assert_eq!(runs(&node, &thread).await, [run]);
    assert_eq!(messages(&node, &thread).await.last(), Some(&("assistant".to_owned(), output)));
}

#[tokio::test]
async fn messages_that_wait_for_others_survive_a_kill_and_make_one_run() {
    let mut node = Node::start("").await;
    let thread = thread(&node).await;
    for word in ["a", "b", "c"] {
        say(&node, &thread, word, json!({"debounce_ms": 1_500})).await;
    }
    node.kill9().await;
    node.restart().await;
    let made = runs(&node, &thread).await;
    let [run] = &made[..] else { panic!("{made:?}") };
    let ended = node.wait_final(run).await;
    assert_eq!((&ended["output"], &ended["attempt"]), (&json!("a b c"), &json!(1)));
    assert_promise(&node, run).await;
    assert_eq!(runs(&node, &thread).await, made);
}

const FOLLOW_UPS: &str = "[agents.quick]\nkind = \"scripted\"\n\
     follow_ups = [{ after = \"300ms\", instruction = \"Ask again.\", times = 2 }]\n\
     [agents.patient]\nkind = \"scripted\"\nfollow_ups = [{ after = \"1h\", instruction = \"Later.\" }]\n\
     [agents.steady]\nkind = \"scripted\"\nfollow_ups = [{ after = \"2s\", instruction = \"Still there?\" }]\n";

#[tokio::test]
async fn an_agent_follows_up_when_nobody_speaks_as_often_as_it_declares() {
    let node = Node::start(FOLLOW_UPS).await;
    let thread = thread(&node).await;
    let sent = post_message(&node, &thread, &json!({"agent": "quick", "content": "hi"})).await.json();
    node.wait_final(&id_of(&sent["run"])).await;
    let made = eventually("two follow-ups have ended", async || {
        let made = runs(&node, &thread).await;
        let last = thread_of(&node, &thread).await;
        (made.len() == 3 && last["status"] == "idle" && last["follow_up"].is_null()).then_some(made)
    })
    .await;
    for run in &made[1..] {
        let run = node.run(run).await;
        assert_eq!(run["input"], json!([{"role": "system", "content": "Ask again."}]));
        assert_eq!((&run["status"], &run["agent"]), (&json!("completed"), &json!("quick")));
    }
}

#[tokio::test]
async fn a_message_disarms_a_follow_up_and_a_kill_does_not() {
    let mut node = Node::start(FOLLOW_UPS).await;
    let patient = thread(&node).await;
    let armed = async |node: &Node, thread: &str| {
        eventually("a follow-up is armed", async || {
            let follow_up = thread_of(node, thread).await["follow_up"].clone();
            follow_up["due_at"].is_string().then_some(follow_up)
        })
        .await
    };
    post_message(&node, &patient, &json!({"agent": "patient", "content": "hi"})).await;
    assert_eq!(armed(&node, &patient).await["agent"], "patient");
    say(&node, &patient, "wait", json!({"debounce_ms": 3_600_000})).await;
    assert_eq!(thread_of(&node, &patient).await["follow_up"], json!(null));

    let steady = thread(&node).await;
    post_message(&node, &steady, &json!({"agent": "steady", "content": "hi"})).await;
    armed(&node, &steady).await;
    node.kill9().await;
    node.restart().await;
    let made = eventually("the follow-up has fired", async || {
        let made = runs(&node, &steady).await;
        (made.len() == 2).then_some(made)
    })
    .await;
    assert_eq!(node.wait_final(&made[1]).await["output"], "Still there?");
    assert_eq!(runs(&node, &patient).await.len(), 2, "the other was disarmed");
}

#[tokio::test]
async fn people_take_a_thread_over_and_give_it_back() {
    let node = Node::start("").await;
    let thread = thread(&node).await;
    let run = held(&node, &thread).await;
    let waiting = id_of(&say(&node, &thread, "next", json!({})).await["run"]);
    let hand_off = format!("/v1/threads/{thread}/handoff");
    let handed = node.post_json(&hand_off, &json!({"reason": "angry"})).await;
    assert_eq!(handed.status, 200, "{handed:?}");
    assert_eq!(
        (&handed.json()["status"], &handed.json()["handed_off"]["reason"]),
        (&json!("handed_off"), &json!("angry"))
    );
    for run in [&run, &waiting] {
        assert_eq!(node.wait_final(run).await["status"], "cancelled");
    }
    let kept = say(&node, &thread, "anybody?", json!({})).await;
    assert_eq!((&kept["run"], &kept["how"]), (&json!(null), &json!("kept")));
    let refused = json!({"agent": "scripted", "input": "x", "thread_id": thread});
    node.post_json("/v1/runs", &refused).await.assert_problem(409, "thread_handed_off");
    let released = node.post(&format!("/v1/threads/{thread}/release")).await;
    assert_eq!((&released.json()["status"], &released.json()["handed_off"]), (&json!("idle"), &json!(null)));
    let back = id_of(&say(&node, &thread, "x", json!({"params": {"say_history": true}})).await["run"]);
    // "first", what was said to it, and what nobody answered.
    assert_eq!(node.wait_final(&back).await["output"], "h4 x");

    let by_agent = id_of(&say(&node, &thread, "one two", json!({"params": {"hand_off_at": 2}})).await["run"]);
    assert_eq!(node.wait_final(&by_agent).await["output"], "one two", "it goes on itself");
    let handed = thread_of(&node, &thread).await["handed_off"].clone();
    assert_eq!(handed["by"], by_agent);
}

#[tokio::test]
async fn whoever_interrupts_a_run_that_waits_finds_what_it_has_said() {
    let mut node = Node::start("").await;
    let thread = thread(&node).await;
    let run = id_of(&say(&node, &thread, "one two three", json!({"params": {"ask_at": 3}})).await["run"]);
    node.until(&run, &["waiting"]).await;
    node.kill9().await;
    node.restart().await;
    let other = json!({"on_busy": "interrupt", "params": {"say_history": true}});
    let sent = say(&node, &thread, "no, stop", other).await;
    assert_eq!(sent["message"]["content"], "no, stop");
    let next = id_of(&sent["run"]);
    assert_eq!(node.wait_final(&next).await["output"], "h2 no, stop");
    assert_eq!(node.run(&run).await["status"], "cancelled");
    let expected =
        [("user", "one two three"), ("assistant", "one two "), ("user", "no, stop"), ("assistant", "h2 no, stop")];
    let expected = expected.map(|(role, content)| (role.to_owned(), content.to_owned()));
    assert_eq!(messages(&node, &thread).await, expected);
}

#[tokio::test]
async fn a_run_waits_for_a_person_through_a_kill_and_hears_one_answer() {
    let mut node = Node::start("").await;
    let thread = thread(&node).await;
    let run = id_of(&say(&node, &thread, "one two three", json!({"params": {"ask_at": 3}})).await["run"]);
    let waiting = node.until(&run, &["waiting"]).await;
    let wait = &waiting["wait"];
    assert_eq!((&wait["for"], &wait["due"], &waiting["reason"]), (&json!("input"), &json!(null), &json!("input")));
    assert_eq!(wait["prompt"]["question"], "May the script say token 3?");
    let resume = format!("/v1/runs/{run}/resume");
    node.post_json(&resume, &json!({"wait_id": "w1", "input": null})).await.assert_problem(409, "stale_wait");
    node.post_json(&resume, &json!({"wait_id": "w1"})).await.assert_problem(400, "invalid_field");
    node.kill9().await;
    node.restart().await;
    assert_eq!(node.run(&run).await["wait"], *wait);
    let answers = join_all((0..8).map(async |number| {
        node.post_json(&resume, &json!({"wait_id": wait["wait_id"], "input": {"number": number}})).await
    }))
    .await;
    let heard: Vec<_> = (0..8).filter(|number| answers[*number].status == 200).collect();
    let [heard] = heard[..] else { panic!("{answers:?}") };
    for (_, answer) in answers.iter().enumerate().filter(|(number, _)| *number != heard) {
        answer.assert_problem(409, "run_not_waiting");
    }
    let ended = node.wait_final(&run).await;
    assert_eq!((&ended["output"], &ended["wait"]), (&json!("one two three"), &json!(null)));
    let events = node.events(&run).await;
    let shown: Vec<_> = events.iter().filter(|event| event.kind == "custom").map(|event| event.data.clone()).collect();
    assert_eq!(shown, [json!({"name": "answer", "value": {"number": heard}})]);
    assert_promise(&node, &run).await;
    assert_eq!(words(&messages(&node, &thread).await), [("user", "one two three"), ("assistant", "one two three")]);
    let late = node.post_json(&resume, &json!({"wait_id": wait["wait_id"], "input": 1})).await;
    late.assert_problem(409, "run_not_waiting");
}

#[tokio::test]
async fn what_a_run_said_before_it_asked_is_kept_when_it_is_interrupted_afterwards() {
    let node = Node::start("").await;
    let thread = thread(&node).await;
    let params = json!({"params": {"ask_at": 2, "hang_at": 3}});
    let run = id_of(&say(&node, &thread, "one two three", params).await["run"]);
    let waiting = node.until(&run, &["waiting"]).await;
    let answer = json!({"wait_id": waiting["wait"]["wait_id"], "input": null});
    assert_eq!(node.post_json(&format!("/v1/runs/{run}/resume"), &answer).await.status, 200);
    node.until_said(&run, 2).await;
    let next = id_of(&say(&node, &thread, "x", json!({"on_busy": "interrupt"})).await["run"]);
    assert_eq!(node.wait_final(&next).await["output"], "x");
    let expected = [("user", "one two three"), ("user", "x"), ("assistant", "one two "), ("assistant", "x")];
    assert_eq!(words(&messages(&node, &thread).await), expected);
}

#[tokio::test]
async fn a_question_that_nobody_answers_in_time_fails_its_run() {
    let node = Node::start("").await;
    let params = json!({"ask_at": 2, "ask_deadline_ms": 300});
    let run = node.create(json!({"agent": "scripted", "input": "one two", "params": params})).await;
    let failed = node.wait_final(&run).await;
    assert_eq!((&failed["status"], &failed["error"]["code"]), (&json!("failed"), &json!("wait_expired")));
    assert_log(&node.events(&run).await);
}

#[tokio::test]
async fn equal_messages_under_one_key_are_one_message() {
    let node = Node::start("").await;
    let thread = thread(&node).await;
    let path = format!("/v1/threads/{thread}/messages");
    let send = async |content: &str| {
        let body = json!({"agent": "scripted", "content": content});
        node.send(node.request(Method::POST, &path).json(&body).header("idempotency-key", "one")).await
    };
    let answers = join_all((0..8).map(|_| send("x"))).await;
    let mut ids: Vec<_> = answers.iter().map(|answer| id_of(&answer.json()["message"])).collect();
    ids.dedup();
    assert_eq!(ids.len(), 1, "{answers:?}");
    assert_eq!(answers.iter().filter(|answer| answer.json()["how"] == "created").count(), 1);
    let made = runs(&node, &thread).await;
    assert_eq!(made.len(), 1);
    node.wait_final(&made[0]).await;
    assert_eq!(words(&messages(&node, &thread).await), [("user", "x"), ("assistant", "x")]);
    send("y").await.assert_problem(409, "idempotency_key_reused");
}

#[tokio::test]
async fn an_agent_is_shown_what_was_said_before_within_its_bounds() {
    let node = Node::start("[agents.short]\nkind = \"scripted\"\nhistory_messages = 2\n").await;
    let thread = thread(&node).await;
    for (agent, expected) in [("scripted", "h0 x"), ("scripted", "h2 x"), ("scripted", "h4 x"), ("short", "h2 x")] {
        let body = json!({"agent": agent, "content": "x", "params": {"say_history": true}});
        let sent = post_message(&node, &thread, &body).await.json();
        assert_eq!(node.wait_final(&id_of(&sent["run"])).await["output"], expected, "{agent}");
    }
}

#[tokio::test]
async fn the_answer_to_a_message_can_be_the_stream_of_its_run() {
    let node = Node::start("").await;
    let thread = thread(&node).await;
    let body = json!({"agent": "scripted", "content": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}], "stream": true});
    let request = node.request(Method::POST, &format!("/v1/threads/{thread}/messages")).json(&body);
    let events = Stream::open(request).await.rest().await;
    assert_log(&events);
    assert_eq!(said(&events), "a b");
    // Runs that are asked for belong to the conversation as well.
    let id = node.create(json!({"agent": "scripted", "input": "c", "thread_id": thread, "on_busy": "enqueue"})).await;
    let run = node.wait_final(&id).await;
    assert_eq!(run["thread_id"], thread);
    let expected = [("user", "a"), ("user", "b"), ("assistant", "a b"), ("user", "c"), ("assistant", "c")];
    assert_eq!(words(&messages(&node, &thread).await), expected);
}

/// An event of a thread's stream.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Shown {
    pub(crate) id: String,
    pub(crate) kind: String,
    pub(crate) run: Option<String>,
    pub(crate) data: Value,
}

impl Shown {
    pub(crate) async fn next(stream: &mut Stream) -> Self {
        let frame = stream.next_frame().await.expect("a stream that does not end");
        let mut lines = frame.lines();
        let mut field = |name: &str| lines.next().and_then(|line| line.strip_prefix(name)).expect("a field").to_owned();
        let (id, kind) = (field("id: "), field("event: "));
        let data: Value = serde_json::from_str(&field("data: ")).expect("JSON");
        Self { id, kind, run: data["run_id"].as_str().map(str::to_owned), data }
    }

    pub(crate) fn ends_a_run(&self) -> bool {
        ["run.completed", "run.failed", "run.cancelled", "run.expired"].contains(&self.kind.as_str())
    }
}

pub(crate) async fn watch(node: &Node, thread: &str, query: &str, after: Option<&str>) -> Stream {
    let mut request = node.request(Method::GET, &format!("/v1/threads/{thread}/stream{query}"));
    if let Some(after) = after {
        request = request.header("last-event-id", after);
    }
    Stream::open(request).await
}

/// What was shown of each run, and of the thread itself under no name.
pub(crate) fn by_run(events: &[Shown]) -> BTreeMap<Option<String>, Vec<(String, Value)>> {
    let mut by_run: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for event in events {
        let own = event.kind.starts_with("thread.");
        let run = event.run.clone().filter(|_| !own);
        by_run.entry(run).or_default().push((event.kind.clone(), event.data.clone()));
    }
    by_run
}

/// What is shown of each run is its log, with its id.
pub(crate) async fn assert_shown(node: &Node, events: &[Shown]) {
    for (run, shown) in by_run(events) {
        let Some(run) = run else { continue };
        let mut logged = node.events(&run).await;
        logged.iter_mut().for_each(|event| event.data["run_id"] = json!(run));
        let logged: Vec<_> = logged.into_iter().map(|event| (event.kind, event.data)).collect();
        assert_eq!(shown, logged, "run {run}");
    }
}

/// Three runs of which one waits for its time while the others go on; then people take over and give back.
async fn converse(node: &Node, thread: &str) -> Vec<String> {
    let slow = json!({"params": {"tokens": 12, "delay_ms": 15}});
    let first = id_of(&say(node, thread, "one", slow).await["run"]);
    let late = json!({"agent": "scripted", "input": "two", "thread_id": thread, "delay_ms": 2_000});
    let late = node.create(late).await;
    let third = id_of(&say(node, thread, "three", json!({})).await["run"]);
    vec![first, late, third]
}

#[tokio::test]
async fn a_threads_stream_resumes_exactly_after_every_event() {
    let node = Node::start("server.heartbeat = \"1s\"").await;
    let thread = thread(&node).await;
    let mut stream = watch(&node, &thread, "", None).await;
    let runs = converse(&node, &thread).await;
    let mut all: Vec<Shown> = Vec::new();
    while all.iter().filter(|event| event.ends_a_run()).count() < 3 {
        all.push(Shown::next(&mut stream).await);
    }
    node.post_json(&format!("/v1/threads/{thread}/handoff"), &json!({"reason": "r"})).await;
    node.post(&format!("/v1/threads/{thread}/release")).await;
    for (kind, data) in [("thread.handed_off", json!({"reason": "r"})), ("thread.released", json!({}))] {
        let event = Shown::next(&mut stream).await;
        assert_eq!((event.kind.as_str(), &event.data), (kind, &data));
        all.push(event);
    }
    assert_shown(&node, &all).await;
    let started =
        |run: &String| all.iter().position(|event| event.kind == "run.started" && event.run.as_ref() == Some(run));
    assert!(started(&runs[2]) < started(&runs[1]), "a run that waits holds up no other");
    let ids: std::collections::BTreeSet<_> = all.iter().map(|event| &event.id).collect();
    assert_eq!(ids.len(), all.len(), "each position is one of its own");

    join_all(all.iter().enumerate().map(async |(index, event)| {
        let mut stream = watch(&node, &thread, "?from=start", Some(&event.id)).await;
        let mut rest = Vec::new();
        while rest.len() < all.len() - index - 1 {
            rest.push(Shown::next(&mut stream).await);
        }
        assert_eq!(by_run(&rest), by_run(&all[index + 1..]), "after {event:?}");
        assert_eq!(stream.frames_until_comment().await, 0, "after {event:?}");
    }))
    .await;
    let mut history = watch(&node, &thread, "?from=start", None).await;
    let mut again = Vec::new();
    while again.len() < all.len() {
        again.push(Shown::next(&mut history).await);
    }
    assert_eq!(by_run(&again), by_run(&all));
    let mut now = watch(&node, &thread, "", None).await;
    assert_eq!(now.frames_until_comment().await, 0, "nothing is going on now");
}

#[tokio::test]
async fn a_viewer_of_a_thread_who_keeps_losing_the_connection_misses_nothing() {
    let mut node = Node::start("").await;
    let thread = thread(&node).await;
    let runs = converse(&node, &thread).await;
    let (mut all, mut opened): (Vec<Shown>, u64) = (Vec::new(), 0);
    while all.iter().filter(|event| event.ends_a_run()).count() < runs.len() {
        let after = all.last().map(|event| event.id.clone());
        let mut stream = watch(&node, &thread, "", after.as_deref()).await;
        opened += 1;
        for _ in 0..3 {
            all.push(Shown::next(&mut stream).await);
            if all.iter().filter(|event| event.ends_a_run()).count() == runs.len() {
                break;
            }
        }
    }
    assert!(opened > 5);
    assert_eq!(by_run(&all).len(), 3);
    assert_shown(&node, &all).await;
    // A node that is told to stop ends the stream of a thread in which nothing is going on.
    let mut idle = watch(&node, &thread, "", None).await;
    node.sigterm();
    assert_eq!(soon("the stream's end", idle.next_frame()).await, None);
    assert!(node.wait_exit().await.success());
}

#[tokio::test]
async fn a_stream_of_a_thread_begins_with_what_is_going_on_and_tells_of_follow_ups() {
    let node = Node::start(FOLLOW_UPS).await;
    let thread = thread(&node).await;
    let ended = id_of(&say(&node, &thread, "over", json!({})).await["run"]);
    node.wait_final(&ended).await;
    let open = held(&node, &thread).await;
    let mut stream = watch(&node, &thread, "", None).await;
    let first = Shown::next(&mut stream).await;
    assert_eq!((first.kind.as_str(), first.run.as_ref()), ("run.created", Some(&open)));
    node.cancel(&open).await;
    node.wait_final(&open).await;
    let quick = id_of(&post_message(&node, &thread, &json!({"agent": "quick", "content": "hi"})).await.json()["run"]);
    let mut seen = Vec::new();
    let follow_up = loop {
        let event = Shown::next(&mut stream).await;
        assert_ne!(event.run.as_ref(), Some(&ended));
        if event.kind == "thread.follow_up" {
            break event;
        }
        seen.push(event);
    };
    assert!(seen.iter().any(|event| event.ends_a_run() && event.run.as_ref() == Some(&quick)));
    assert!(follow_up.run.is_some_and(|run| run != quick));
}
