//! Runs of foreign producers: a Redis list, a Redis stream, an AMQP queue.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use runcast_broker::{Broker, Name};
use runcast_broker_amqp::{AmqpBroker, AmqpOptions};
use serde_json::{Value, json};

use crate::harness::{Node, Options, assert_promise, eventually, id_of};
use crate::servers::rabbitmq;
use crate::servers::redis::Redis;

const LIST: &str = "jobs:pending";

/// Runs a command as a person would; its answer.
fn redis_cli(redis: &Redis, args: &[&str]) -> String {
    let output =
        Command::new("redis-cli").args(["-p", &redis.port.to_string()]).args(args).output().expect("redis-cli");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("UTF-8").trim().to_owned()
}

/// The configuration of a node that takes in the list; `mapping` is the rest of its section.
fn list(redis: &Redis, mapping: &str) -> Options {
    Options::from(format!(
        "redis.consumer_lease = \"1s\"\n[ingest.jobs]\nkind = \"redis_list\"\nurl = \"redis://127.0.0.1:{}\"\n\
         queue = \"{LIST}\"\n{mapping}",
        redis.port
    ))
}

/// The runs under a key of the source.
async fn runs_of(node: &Node, source: &str, key: &str) -> Vec<Value> {
    let path = format!("/v1/runs?metadata.ingest_source={source}&metadata.ingest_key={key}");
    node.get(&path).await.json()["data"].as_array().expect("a page").clone()
}

/// The run under a key of the source, once it is there and has ended.
async fn run_of(node: &Node, source: &str, key: &str) -> Value {
    let run = eventually(&format!("a run of {key}"), async || runs_of(node, source, key).await.pop()).await;
    node.wait_final(&id_of(&run)).await
}

async fn letters(node: &Node) -> Vec<Value> {
    node.get("/v1/queues/dead").await.json()["data"].as_array().expect("a page").clone()
}

async fn ingested(node: &Node, outcome: &str) -> u64 {
    let text = node.get("/metrics").await.text();
    // By the whole label: every line has "run" in its name.
    let outcome = format!("outcome=\"{outcome}\"");
    let line = text.lines().find(|line| line.starts_with("runcast_ingested_total") && line.contains(&outcome));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0)
}

/// Nothing is left in the list, or held by anybody. Asked all at once: between two questions, what waits in the list
/// may be taken, and is seen by neither.
async fn assert_empty(redis: &Redis) {
    const LEFT: &str = "local left = redis.call('LLEN', KEYS[1]) \
        for _, held in ipairs(redis.call('KEYS', KEYS[1] .. ':runcast:*')) do left = left + redis.call('LLEN', held) end \
        return left";
    eventually("the list is empty and nobody holds anything", async || {
        (redis_cli(redis, &["EVAL", LEFT, "1", LIST]) == "0").then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_message_pushed_by_hand_starts_its_run_and_pushed_again_no_other() {
    let Some(redis) = Redis::start().await else { return };
    let node = Node::start(list(&redis, "agent = \"scripted\"")).await;
    let message = r#"{"run_id":"8f14e45f","priority":5,"retry_count":0}"#;
    redis_cli(&redis, &["LPUSH", LIST, message]);
    let run = run_of(&node, "jobs", "8f14e45f").await;
    assert_eq!((&run["status"], &run["priority"]), (&json!("completed"), &json!(5)), "{run}");
    assert_eq!((&run["input"], &run["agent"]), (&json!(message), &json!("scripted")), "{run}");
    assert_eq!(run["metadata"], json!({"ingest_key": "8f14e45f", "ingest_source": "jobs"}));
    assert_promise(&node, &id_of(&run)).await;

    redis_cli(&redis, &["LPUSH", LIST, r#"{"run_id":"8f14e45f","priority":900,"retry_count":1}"#]);
    eventually("it is known", async || (ingested(&node, "repeated").await == 1).then_some(())).await;
    assert_eq!(runs_of(&node, "jobs", "8f14e45f").await.len(), 1);
    assert_eq!(ingested(&node, "run").await, 1);
    assert_empty(&redis).await;
}

#[tokio::test]
async fn what_cannot_be_mapped_waits_with_its_reason_until_the_mapping_is_mended() {
    let Some(redis) = Redis::start().await else { return };
    let mut node = Node::start(list(&redis, "agent = \"scripted\"\nparams = '{\"tokens\": 2}'")).await;
    redis_cli(&redis, &["LPUSH", LIST, "run!", r#"{"job":{"id":7},"text":"hi"}"#]);
    // The same once more: one letter.
    redis_cli(&redis, &["LPUSH", LIST, "run!"]);
    eventually("all are dead letters", async || (ingested(&node, "dead").await == 3).then_some(())).await;
    let found = letters(&node).await;
    let reason = |letter: &Value| letter["reason"].as_str().expect("a reason").to_owned();
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found.iter().all(|letter| letter["source"] == "jobs"), "{found:?}");
    let letter = found.iter().find(|letter| reason(letter).starts_with("run_id: expected")).expect("a letter");
    assert_eq!(letter["payload"], r#"{"job":{"id":7},"text":"hi"}"#);
    assert!(
        found.iter().any(|letter| reason(letter).starts_with("the message is not JSON") && letter["payload"] == "run!")
    );
    assert_empty(&redis).await;

    let requeue = format!("/v1/queues/dead/{}/requeue", letter["id"].as_str().expect("an id"));
    let detail = node.post(&requeue).await.assert_problem(409, "unmapped");
    assert!(detail.contains("run_id"), "{detail}");
    node.sigterm();
    assert!(node.wait_exit().await.success());
    node.restart_with(list(&redis, "agent = \"scripted\"\nkey_field = \"job.id\"\ninput_field = \"text\"")).await;
    let answer = node.post(&requeue).await;
    assert_eq!(answer.status, 202, "{answer:?}");
    let run = run_of(&node, "jobs", "7").await;
    assert_eq!((&run["id"], &run["output"]), (&answer.json()["id"], &json!("hi")));
    node.post(&requeue).await.assert_problem(404, "not_found");
    assert_eq!(letters(&node).await.len(), 1);
}

#[tokio::test]
async fn what_is_refused_for_good_is_a_dead_letter_and_holds_nobody_up() {
    let Some(redis) = Redis::start().await else { return };
    let mapping = "agent = \"scripted\"\nagent_field = \"kind\"\n[limits]\nmax_input = \"1KiB\"";
    let node = Node::start(list(&redis, mapping)).await;
    let large = json!({"run_id": 1, "input": "x".repeat(2_000)}).to_string();
    redis_cli(&redis, &["LPUSH", LIST, &large, r#"{"run_id":2,"kind":"nobody"}"#, r#"{"run_id":3,"input":[]}"#]);
    redis_cli(&redis, &["LPUSH", LIST, r#"{"run_id":4}"#]);
    assert_eq!(run_of(&node, "jobs", "4").await["status"], "completed");
    eventually("the others are dead letters", async || (ingested(&node, "dead").await == 3).then_some(())).await;
    let reasons: String = letters(&node).await.iter().map(|letter| format!("{}\n", letter["reason"])).collect();
    for reason in ["input has 2000 bytes", "there is no agent \\\"nobody\\\"", "expected at least one message"] {
        assert!(reasons.contains(reason), "{reason} in {reasons}");
    }
    assert_empty(&redis).await;
}

#[tokio::test]
async fn a_mapping_to_an_agent_that_is_not_there_is_refused_at_start() {
    let directory = tempfile::tempdir().unwrap();
    let config =
        "[ingest.jobs]\nkind = \"redis_list\"\nurl = \"redis://127.0.0.1:1\"\nqueue = \"q\"\nagent = \"nobody\"";
    std::fs::write(directory.path().join("runcast.toml"), config).unwrap();
    let args = ["serve", "--listen", "127.0.0.1:0"];
    let finished = crate::harness::finished_process(directory.path(), &args, &[]).await;
    assert_ne!(finished.code, Some(0));
    assert!(finished.err.contains("ingest.jobs.agent: there is no agent \"nobody\" here"), "{}", finished.err);
}

#[tokio::test]
async fn a_node_that_is_killed_between_creation_and_removal_starts_no_second_run() {
    let Some(redis) = Redis::start().await else { return };
    let mut node = Node::start(list(&redis, "agent = \"scripted\"")).await;
    // It can take and create, and cannot remove.
    redis_cli(&redis, &["ACL", "SETUSER", "default", "-lrem"]);
    redis_cli(&redis, &["LPUSH", LIST, r#"{"run_id":"a"}"#]);
    let run = run_of(&node, "jobs", "a").await;
    node.kill9().await;
    assert!(!redis_cli(&redis, &["KEYS", &format!("{LIST}:runcast:*")]).is_empty(), "the dead node holds it");
    redis_cli(&redis, &["ACL", "SETUSER", "default", "+lrem"]);
    node.restart().await;
    eventually("it comes again", async || (ingested(&node, "repeated").await == 1).then_some(())).await;
    assert_eq!(runs_of(&node, "jobs", "a").await, [run]);
    assert_empty(&redis).await;
}

#[tokio::test]
async fn many_kills_lose_no_message_and_start_none_twice() {
    const MESSAGES: usize = 2_000;
    let Some(redis) = Redis::start().await else { return };
    let mut node = Node::start(list(&redis, "agent = \"scripted\"\nparams = '{\"tokens\": 1}'")).await;
    let mut random = StdRng::seed_from_u64(7);
    let mut pushed = 0;
    while pushed < MESSAGES {
        let batch: Vec<String> = (pushed..pushed + 250).map(|number| format!("{{\"run_id\":{number}}}")).collect();
        let mut args = vec!["LPUSH", LIST];
        args.extend(batch.iter().map(String::as_str));
        // Asked first: a node that is faster than this test may have nothing left to do afterwards.
        let before = ingested(&node, "run").await;
        redis_cli(&redis, &args);
        pushed += 250;
        eventually("it is at work", async || (ingested(&node, "run").await > before).then_some(())).await;
        tokio::time::sleep(Duration::from_micros(random.random_range(0..60_000))).await;
        node.kill9().await;
        node.restart().await;
    }
    assert_empty(&redis).await;
    // What is not in the list any more is in the store, whatever the node still does.
    let (mut runs, mut cursor) = (BTreeMap::new(), String::new());
    loop {
        let page = node.get(&format!("/v1/runs?limit=200{cursor}")).await.json();
        for run in page["data"].as_array().expect("a page") {
            let key: usize = run["metadata"]["ingest_key"].as_str().expect("a key").parse().expect("a number");
            *runs.entry(key).or_insert(0) += 1;
        }
        let Some(next) = page["next_cursor"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    let letters = letters(&node).await;
    let lost: Vec<_> = (0..MESSAGES).filter(|key| !runs.contains_key(key)).collect();
    let twice: Vec<_> = runs.iter().filter(|(_, runs)| **runs > 1).collect();
    assert!(
        lost.is_empty() && twice.is_empty() && runs.len() == MESSAGES,
        "without a run: {lost:?}; with more than one: {twice:?}; {} in all; letters: {letters:?}; the log of the last \
         node:\n{}",
        runs.len(),
        node.log()
    );
    // Some runs may have been killed too often.
    assert!(letters.iter().all(|letter| letter["source"] == "run"), "{letters:?}");
}

#[tokio::test]
async fn a_full_node_takes_no_more_than_it_may_and_gives_the_rest_back_when_it_stops() {
    let Some(redis) = Redis::start().await else { return };
    let mapping = "agent = \"scripted\"\nparams = '{\"hang_at\": 1}'\n[limits]\nmax_waiting = 3\n[worker]\n\
                   concurrency = 1\ndrain_grace = \"0s\"";
    let mut node = Node::start(list(&redis, mapping)).await;
    let messages: Vec<String> = (0..100).map(|number| format!("{{\"run_id\":{number}}}")).collect();
    let mut args = vec!["LPUSH", LIST];
    args.extend(messages.iter().map(String::as_str));
    redis_cli(&redis, &args);
    eventually("four are taken in", async || (ingested(&node, "run").await == 4).then_some(())).await;
    node.sigterm();
    assert!(node.wait_exit().await.success());
    assert_eq!(redis_cli(&redis, &["LLEN", LIST]), "96");
    assert_eq!(redis_cli(&redis, &["KEYS", &format!("{LIST}:runcast*")]), "", "nobody holds anything");
    let rest = redis_cli(&redis, &["LRANGE", LIST, "0", "-1"]);
    let number = |line: &str| line.trim_matches(|c: char| !c.is_ascii_digit()).parse::<u32>().expect("a number");
    assert!(rest.lines().map(number).is_sorted_by(|left, right| left > right), "in their old places: {rest}");
    let log = node.log();
    assert!(log.matches("cannot take messages in").count() <= 2, "told once, not for each message:\n{log}");
}

#[tokio::test]
async fn a_server_that_comes_late_or_again_is_found() {
    let Some(redis) = Redis::start().await else { return };
    redis_cli(&redis, &["LPUSH", LIST, r#"{"run_id":"before"}"#]);
    redis.kill();
    let node = Node::start(list(&redis, "agent = \"scripted\"")).await;
    assert_eq!(node.get("/ready").await.status, 200, "the node does its other work without it");
    redis.run().await;
    run_of(&node, "jobs", "before").await;
    redis.kill();
    redis.run().await;
    redis_cli(&redis, &["LPUSH", LIST, r#"{"run_id":"after"}"#]);
    run_of(&node, "jobs", "after").await;
    assert_empty(&redis).await;
}

#[tokio::test]
async fn entries_of_a_stream_start_runs_and_are_acknowledged() {
    let Some(redis) = Redis::start().await else { return };
    let config = |field: &str| {
        Options::from(format!(
            "redis.consumer_lease = \"1s\"\n[ingest.runs]\nkind = \"redis_stream\"\nqueue = \"runs:queue\"\n\
             url = \"redis://127.0.0.1:{}\"\ngroup = \"workers\"\nagent = \"scripted\"\n{field}",
            redis.port
        ))
    };
    // What was there before the group is.
    redis_cli(&redis, &["XADD", "runs:queue", "*", "run_id", "17", "priority", "-3", "input", "from fields"]);
    let mut node = Node::start(config("")).await;
    let run = run_of(&node, "runs", "17").await;
    assert_eq!((&run["output"], &run["priority"]), (&json!("from fields"), &json!(-3)));
    node.sigterm();
    assert!(node.wait_exit().await.success());

    // Created and not removed, when the node is killed.
    node.restart_with(config("payload_field = \"data\"")).await;
    redis_cli(&redis, &["ACL", "SETUSER", "default", "-xack"]);
    redis_cli(&redis, &["XADD", "runs:queue", "*", "data", r#"{"run_id":"18","input":"from json"}"#]);
    let run = run_of(&node, "runs", "18").await;
    assert_eq!(run["output"], "from json");
    node.kill9().await;
    redis_cli(&redis, &["ACL", "SETUSER", "default", "+xack"]);
    node.restart().await;
    eventually("it comes again", async || (ingested(&node, "repeated").await == 1).then_some(())).await;
    assert_eq!(runs_of(&node, "runs", "18").await, [run]);
    eventually("all are acknowledged", async || {
        redis_cli(&redis, &["XPENDING", "runs:queue", "workers"]).starts_with('0').then_some(())
    })
    .await;
    assert_eq!(redis_cli(&redis, &["XLEN", "runs:queue"]), "2", "entries stay in the stream");
}

/// A configuration that takes in an AMQP queue.
fn queue(rabbit: &rabbitmq::Server, queue: &str) -> Options {
    let url = format!("amqp://guest:guest@127.0.0.1:{}", rabbit.port);
    Options::from(format!(
        "[ingest.orders]\nkind = \"amqp_queue\"\nurl = \"{url}\"\nqueue = \"{queue}\"\nagent = \"scripted\"\n"
    ))
}

#[tokio::test]
async fn messages_of_an_amqp_queue_start_runs_and_none_twice_through_kills() {
    let Some(rabbit) = rabbitmq::Server::start(None).await else { return };
    // A foreign producer: its queue is called so by its own broker.
    let mut options = AmqpOptions::new(rabbit.url().parse().unwrap());
    options.namespace = Name::new("foreign").unwrap();
    let producer = AmqpBroker::connect(options).await.unwrap();
    let orders = Name::new("orders").unwrap();
    let first = async || producer.publish(&orders, r#"{"run_id":"first"}"#.into()).await.ok();
    eventually("it has declared the queue", first).await;
    let mut node = Node::start(queue(&rabbit, "foreign.queue.orders")).await;
    for number in 0..300 {
        let message = format!("{{\"run_id\":\"order-{number}\"}}");
        eventually("it is published", async || producer.publish(&orders, message.clone().into()).await.ok()).await;
        if number % 100 == 50 {
            node.kill9().await;
            node.restart().await;
        }
    }
    producer.publish(&orders, "order!".into()).await.unwrap();
    for number in 0..300 {
        run_of(&node, "orders", &format!("order-{number}")).await;
        assert_eq!(runs_of(&node, "orders", &format!("order-{number}")).await.len(), 1);
    }
    eventually("the bad one is a dead letter", async || (letters(&node).await.len() == 1).then_some(())).await;
    eventually("all are acknowledged", async || {
        let depth = producer.depths(std::slice::from_ref(&orders)).await.ok()?;
        (depth[0].ready == 0).then_some(())
    })
    .await;
}

/// Runs an example in Python; the keys that it prints. `None` when Python is not set up here.
async fn example(name: &str, args: &[&str]) -> Option<Vec<String>> {
    let Some(python) = std::env::var_os("RUNCAST_PYTHON") else {
        assert!(std::env::var("RUNCAST_REQUIRE_SERVERS").as_deref() != Ok("1"), "RUNCAST_PYTHON is not set");
        eprintln!("skipped: no python (RUNCAST_PYTHON is not set; tests/run installs what the examples need)");
        return None;
    };
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(name);
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.lines().count() <= 40, "{name} is longer than 40 lines");
    let output = tokio::process::Command::new(python).arg(path).args(args).output().await.expect("python");
    assert!(output.status.success(), "{output:?}");
    Some(String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect())
}

async fn assert_started(node: &Node, source: &str, keys: Vec<String>) {
    assert_eq!(keys.len(), 2);
    for (key, text) in keys.iter().zip(["one", "two words"]) {
        let run = run_of(node, source, key).await;
        assert_eq!((&run["status"], &run["output"]), (&json!("completed"), &json!(text)));
    }
}

#[tokio::test]
async fn the_example_for_lists_starts_runs() {
    let Some(redis) = Redis::start().await else { return };
    let url = format!("redis://127.0.0.1:{}", redis.port);
    let Some(keys) = example("ingest_redis_list.py", &[&url, LIST, "one", "two words"]).await else { return };
    let node = Node::start(list(&redis, "agent = \"scripted\"")).await;
    assert_started(&node, "jobs", keys).await;
}

#[tokio::test]
async fn the_example_for_streams_starts_runs() {
    let Some(redis) = Redis::start().await else { return };
    let url = format!("redis://127.0.0.1:{}", redis.port);
    let Some(keys) = example("ingest_redis_stream.py", &[&url, "runs:queue", "one", "two words"]).await else { return };
    let node = Node::start(format!(
        "[ingest.runs]\nkind = \"redis_stream\"\nurl = \"{url}\"\nqueue = \"runs:queue\"\nagent = \"scripted\""
    ));
    assert_started(&node.await, "runs", keys).await;
}

#[tokio::test]
async fn the_example_for_amqp_starts_runs() {
    let Some(rabbit) = rabbitmq::Server::start(None).await else { return };
    // The node has declared the queue by then, or declares it after the example has.
    let node = Node::start(queue(&rabbit, "orders")).await;
    let url = format!("amqp://guest:guest@127.0.0.1:{}", rabbit.port);
    let Some(keys) = example("ingest_amqp_queue.py", &[&url, "orders", "one", "two words"]).await else { return };
    assert_started(&node, "orders", keys).await;
}
