//! Conversations on many nodes: what is said through any of them is heard once, whoever dies meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::{Cluster, Kind, on_both_brokers};
use crate::harness::{DEADLINE, Event, Node, assert_promise, eventually, id_of};
use crate::threads::{Shown, assert_shown, by_run, post_message, runs, say, thread, thread_of, watch};

const ON_BUSY: [&str; 6] = ["reject", "enqueue", "interrupt", "rollback", "debounce", "steer"];

/// How often each of the clients says something.
const PACE: Duration = Duration::from_millis(40);

/// What one of the clients has said.
#[derive(Debug)]
struct Said {
    thread: String,
    /// The first word, which nobody else says.
    word: String,
    became: Became,
}

#[derive(Debug)]
enum Became {
    /// The run that was named, and how it was given the message; absent when the answer is the second to the request.
    Given {
        run: String,
        how: Option<String>,
    },
    Refused(StatusCode),
}

/// Somebody who talks in all threads, through one node after the other.
#[derive(Clone)]
struct Client {
    http: reqwest::Client,
    nodes: Arc<[String]>,
    threads: Arc<[String]>,
    /// How much all clients have said.
    count: Arc<AtomicUsize>,
    stop: CancellationToken,
}

impl Client {
    async fn talk(self, number: u64) -> Vec<Said> {
        let mut dice = StdRng::seed_from_u64(number);
        let mut pace = interval(PACE);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut said = Vec::new();
        while !self.stop.is_cancelled() {
            pace.tick().await;
            let thread = self.threads[dice.random_range(0..self.threads.len())].clone();
            let word = format!("m{number}.{}", said.len());
            let mut body = json!({
                "agent": "scripted", "content": format!("{word} a b c d e f"), "max_attempts": 50,
                "params": {"delay_ms": 40, "step_tokens": 2}, "on_busy": ON_BUSY[dice.random_range(0..6)],
            });
            if dice.random_range(0..3) > 0 {
                body["debounce_ms"] = json!(dice.random_range(1..500));
            }
            let became = self.send(said.len(), &thread, &word, &body).await;
            said.push(Said { thread, word, became });
            self.count.fetch_add(1, Ordering::Relaxed);
        }
        said
    }

    /// Asks one node after the other until one has answered.
    async fn send(&self, first: usize, thread: &str, key: &str, body: &Value) -> Became {
        let began = Instant::now();
        for node in self.nodes.iter().cycle().skip(first % self.nodes.len()) {
            let request = self.http.post(format!("{node}/v1/threads/{thread}/messages"));
            let request = request.header("idempotency-key", key).json(body).timeout(Duration::from_secs(10));
            if let Ok(answer) = request.send().await
                && let (status, Ok(text)) = (answer.status(), answer.text().await)
            {
                let answer: Value = serde_json::from_str(&text).expect("JSON");
                match (status.as_u16(), answer["code"].as_str()) {
                    (202, _) => {
                        let run = id_of(&answer["run"]);
                        assert_eq!(answer["message"]["run_id"], run, "{answer}");
                        return Became::Given { run, how: answer["how"].as_str().map(str::to_owned) };
                    }
                    (409, Some("thread_busy")) if body["on_busy"] == "reject" => return Became::Refused(status),
                    (429, Some("thread_full")) => return Became::Refused(status),
                    (503, _) => {}
                    _ => panic!("{body} was refused with {status}: {text}"),
                }
            }
            assert!(began.elapsed() < DEADLINE, "{body} is not answered");
        }
        unreachable!("it goes round and round")
    }
}

/// A run of a thread that has it: all others are to come, or over.
fn holds(run: &Value) -> bool {
    match run["status"].as_str() {
        Some("queued" | "running" | "waiting") => true,
        Some("scheduled") => run["reason"] == "backoff",
        _ => false,
    }
}

/// Looks at all runs that have not ended, each time as they stand at one moment, until it is told to stop; how often.
async fn look(http: reqwest::Client, nodes: Arc<[String]>, stop: CancellationToken) -> usize {
    let mut looked = 0;
    for node in nodes.iter().cycle() {
        if stop.is_cancelled() {
            break;
        }
        let open = format!("{node}/v1/runs?status=scheduled,queued,running,waiting&limit=200");
        let page: Value = match http.get(open).send().await {
            Ok(answer) if answer.status() == 200 => answer.json().await.expect("JSON"),
            _ => continue,
        };
        assert!(page["next_cursor"].is_null(), "more runs than fit onto a page");
        let mut holders: BTreeMap<&str, Vec<&Value>> = BTreeMap::new();
        for run in page["data"].as_array().expect("a page").iter().filter(|run| holds(run)) {
            holders.entry(run["thread_id"].as_str().expect("a thread")).or_default().push(run);
        }
        for (thread, holders) in holders {
            assert!(holders.len() < 2, "several runs have thread {thread}: {holders:#?}");
        }
        looked += 1;
    }
    looked
}

/// All runs of the thread, oldest first.
async fn all_runs(node: &Node, thread: &str) -> Vec<Value> {
    let (mut runs, mut cursor) = (Vec::new(), String::new());
    loop {
        let answer = node.get(&format!("/v1/runs?thread_id={thread}&limit=200{cursor}")).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let page = answer.json();
        runs.extend(page["data"].as_array().expect("a page").iter().cloned());
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    runs.reverse();
    runs
}

/// All messages of the thread, in their order.
async fn all_messages(node: &Node, thread: &str) -> Vec<Value> {
    let mut messages: Vec<Value> = Vec::new();
    loop {
        let path = format!("/v1/threads/{thread}/messages?after={}&limit=200", messages.len());
        let page = node.get(&path).await.json();
        let data = page["data"].as_array().expect("a page");
        if data.is_empty() {
            return messages;
        }
        for message in data {
            messages.push(message.clone());
            assert_eq!(message["seq"], messages.len(), "numbers are dense");
        }
    }
}

/// The words of messages among these, in their order.
fn words(text: &str) -> Vec<String> {
    text.split_whitespace().filter(|word| word.starts_with('m')).map(str::to_owned).collect()
}

/// What a run was given to begin with.
fn input(run: &Value) -> Vec<String> {
    match &run["input"] {
        Value::String(text) => words(text),
        Value::Array(messages) => {
            messages.iter().flat_map(|message| words(message["content"].as_str().expect("a text"))).collect()
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => panic!("no input: {run}"),
    }
}

fn at(run: &Value, field: &str) -> Option<jiff::Timestamp> {
    run[field].as_str().map(|time| time.parse().expect("a time"))
}

/// When the run was at work: from the first thing that its agent did until its end, with all attempts and what lay
/// between them. `started_at` is when its worker asked for runs, and may come before the end of the run before it.
async fn span(node: &Node, run: &Value) -> Option<(jiff::Timestamp, jiff::Timestamp)> {
    let page = node.get(&format!("/v1/runs/{}/events?limit=200", id_of(run))).await.json();
    let mut events = page["data"].as_array().expect("a page").iter();
    events.find(|event| event["type"] == "run.started")?;
    Some((at(events.next()?, "at")?, at(run, "finished_at")?))
}

/// One run of the thread was at work only after the other had ended.
async fn assert_one_after_the_other(node: &Node, runs: &[Value]) {
    let mut spans = Vec::new();
    for run in runs {
        spans.extend(span(node, run).await.map(|(began, ended)| (began, ended, id_of(run))));
    }
    spans.sort();
    for pair in spans.windows(2) {
        assert!(pair[0].1 <= pair[1].0, "two runs of a thread at once: {pair:?}");
    }
}

/// Checks what has become of all that was `said` in the thread, whose runs have all ended.
async fn assert_heard(node: &Node, thread: &str, said: &[&Said], runs: &[Value]) {
    let messages = all_messages(node, thread).await;
    let of_users = messages.iter().filter(|message| message["role"] == "user");
    let mut kept: BTreeMap<String, String> = BTreeMap::new();
    for message in of_users {
        let text = message["content"].as_str().expect("a text");
        let [word] = &words(text)[..] else { panic!("{message}") };
        let run = message["run_id"].as_str().expect("a run").to_owned();
        assert!(kept.insert(word.clone(), run).is_none(), "{word} is kept twice");
    }
    let mut inputs: BTreeMap<String, String> = BTreeMap::new();
    for run in runs {
        for word in input(run) {
            assert!(inputs.insert(word.clone(), id_of(run)).is_none(), "two runs were given {word}");
        }
    }
    for Said { word, became, .. } in said {
        match became {
            Became::Given { run, how } => {
                assert_eq!(kept.get(word), Some(run), "the message {word} is its run's");
                let steered = match how.as_deref() {
                    Some("steered") => true,
                    Some("created" | "joined") => false,
                    None => !inputs.contains_key(word),
                    Some(other) => panic!("{word} was {other}"),
                };
                assert_eq!(inputs.get(word), Some(run).filter(|_| !steered), "{word}, which was {how:?}");
            }
            Became::Refused(status) => {
                assert!(!kept.contains_key(word) && !inputs.contains_key(word), "{word} was refused with {status}");
            }
        }
    }
    let given = said.iter().filter(|said| matches!(said.became, Became::Given { .. })).count();
    assert_eq!(kept.len(), given, "nothing else was said");
    for run in runs {
        let id = id_of(run);
        let answers: Vec<_> =
            messages.iter().filter(|message| message["role"] == "assistant" && message["run_id"] == id).collect();
        if run["status"] == "completed" {
            // It has said each word it was given once, in whatever attempt, those handed over included.
            let mut heard = words(run["output"].as_str().expect("an output"));
            let mut expected: Vec<_> = kept.iter().filter(|(_, of)| **of == id).map(|(word, _)| word.clone()).collect();
            heard.sort();
            expected.sort();
            assert_eq!(heard, expected, "{run:#}");
            let [answer] = answers[..] else { panic!("{} answers of one run: {run:#}", answers.len()) };
            assert_eq!(answer["content"], run["output"]);
        } else {
            assert_eq!(run["status"], "cancelled", "{run:#}");
        }
    }
}

async fn messages_through_two_nodes_are_each_in_one_run(kind: Kind) {
    let Some(mut cluster) = Cluster::start_with(kind, 2, 3, "limits.max_pending = 4").await else { return };
    let mut threads = Vec::new();
    for _ in 0..20 {
        threads.push(thread(&cluster.apis[0]).await);
    }
    let (count, stop) = (Arc::new(AtomicUsize::new(0)), CancellationToken::new());
    let nodes: Arc<[String]> = cluster.apis.iter().map(|node| format!("http://{}", node.address())).collect();
    let http = reqwest::Client::builder().no_proxy().build().expect("a client");
    let (threads, nodes) = (Arc::from(threads), nodes);
    let client = Client { http, nodes, threads: Arc::clone(&threads), count: Arc::clone(&count), stop: stop.clone() };
    let looking = tokio::spawn(look(client.http.clone(), Arc::clone(&client.nodes), stop.clone()));
    let mut clients = JoinSet::new();
    for number in 0..5 {
        clients.spawn(client.clone().talk(number));
    }
    for round in 0..4 {
        let worker = &mut cluster.workers[round % 3];
        eventually("the worker is at work", async || (worker.metric("runcast_live_runs").await >= 2.0).then_some(()))
            .await;
        worker.kill9().await;
        let before = count.load(Ordering::Relaxed);
        eventually("the clients go on", async || (count.load(Ordering::Relaxed) > before + 150).then_some(())).await;
        worker.restart().await;
    }
    stop.cancel();
    let mut said = Vec::new();
    while let Some(done) = clients.join_next().await {
        said.extend(done.expect("a client does not panic"));
    }
    let looked = looking.await.expect("nobody sees two runs with one thread");
    cluster.ready().await;
    let (one, other) = (&cluster.apis[0], &cluster.apis[1]);
    let (mut made, mut lost) = (0, 0);
    for thread in threads.iter() {
        let runs = eventually("all runs of a thread have ended", async || {
            let runs = all_runs(other, thread).await;
            runs.iter().all(|run| run["finished_at"].is_string()).then_some(runs)
        })
        .await;
        let said: Vec<_> = said.iter().filter(|said| said.thread == *thread).collect();
        assert_heard(one, thread, &said, &runs).await;
        assert_one_after_the_other(one, &runs).await;
        for run in &runs {
            let log = assert_promise(one, &id_of(run)).await;
            lost += log.retries.iter().filter(|reason| *reason == "worker_lost").count();
        }
        let thread = thread_of(other, thread).await;
        assert_eq!((&thread["status"], &thread["holder"]), (&json!("idle"), &json!(null)));
        made += runs.len();
    }
    let mut became: BTreeMap<&str, usize> = BTreeMap::new();
    for said in &said {
        let name = match &said.became {
            Became::Given { how, .. } => how.as_deref().unwrap_or("repeated"),
            Became::Refused(status) => status.as_str(),
        };
        *became.entry(name).or_default() += 1;
    }
    println!("{kind:?}: {became:?} in {made} runs, {lost} attempts lost, looked at {looked} times");
    assert!(lost > 0 && looked > 10, "the kills hit nothing, or nobody looked");
    for how in ["created", "joined", "steered", "409", "429"] {
        assert!(became.contains_key(how), "nothing was {how}: {became:?}");
    }
}

/// Far enough away for nodes to be killed before.
const LATER: u64 = 5_000;

/// A timer that was armed later than all others has fired on a cluster whose nodes are all there: theirs have, too.
async fn assert_all_have_fired(cluster: &Cluster) {
    cluster.ready().await;
    for node in &cluster.apis {
        let thread = thread(node).await;
        let sent = say(node, &thread, "last", json!({"debounce_ms": 1_000})).await;
        assert_eq!(node.wait_final(&id_of(&sent["run"])).await["status"], "completed");
    }
}

fn kinds(events: &[Event], kind: &str) -> usize {
    events.iter().filter(|event| event.kind == kind).count()
}

async fn a_debounce_armed_on_a_node_that_is_killed_fires_once_elsewhere(kind: Kind) {
    let Some(mut cluster) = Cluster::start(kind, 2, 1).await else { return };
    let mut armed = Vec::new();
    for _ in 0..8 {
        let thread = thread(&cluster.apis[0]).await;
        for word in ["a", "b"] {
            let sent = say(&cluster.apis[0], &thread, word, json!({"debounce_ms": LATER})).await;
            armed.push((thread.clone(), sent["run"].clone()));
        }
    }
    cluster.apis[0].kill9().await;
    let elsewhere = &cluster.apis[1];
    for (_, run) in &armed {
        assert_eq!(elsewhere.run(&id_of(run)).await["reason"], "debounce", "it fired before the kill");
    }
    for (thread, run) in &armed {
        let ended = elsewhere.wait_final(&id_of(run)).await;
        assert_eq!((&ended["output"], &ended["attempt"]), (&json!("a b"), &json!(1)), "{ended:#}");
        assert!(at(&ended, "started_at") >= at(run, "due_at"), "too early: {ended:#}");
        assert_eq!(runs(elsewhere, thread).await, [id_of(run)]);
    }
    cluster.apis[0].restart().await;
    assert_all_have_fired(&cluster).await;
    for (thread, run) in &armed {
        let run = id_of(run);
        assert_eq!(runs(&cluster.apis[0], thread).await, std::slice::from_ref(&run));
        assert_promise(&cluster.apis[0], &run).await;
        let events = cluster.apis[0].events(&run).await;
        assert_eq!((kinds(&events, "run.queued"), kinds(&events, "run.started")), (1, 1), "{events:?}");
        assert_eq!(all_messages(&cluster.apis[0], thread).await.len(), 3);
    }
}

async fn what_a_worker_that_is_killed_has_armed_fires_once_elsewhere(kind: Kind) {
    let config = format!(
        "[agents.steady]\nkind = \"scripted\"\n\
         follow_ups = [{{ after = \"{LATER}ms\", instruction = \"Still there?\", times = 1 }}]\n"
    );
    let Some(mut cluster) = Cluster::start_with(kind, 2, 1, &config).await else { return };
    let api = &cluster.apis[0];
    let (mut silent, mut asking) = (Vec::new(), Vec::new());
    for _ in 0..6 {
        let quiet = thread(api).await;
        let sent = post_message(api, &quiet, &json!({"agent": "steady", "content": "hi"})).await.json();
        silent.push((quiet, id_of(&sent["run"])));
        let open = thread(api).await;
        let params = json!({"ask_at": 2, "ask_deadline_ms": LATER});
        let run = id_of(&say(api, &open, "one two", json!({"params": params})).await["run"]);
        let next = id_of(&say(api, &open, "next", json!({})).await["run"]);
        asking.push((open, run, next));
    }
    for (thread, _) in &silent {
        eventually("a follow-up is armed", async || {
            thread_of(api, thread).await["follow_up"]["due_at"].is_string().then_some(())
        })
        .await;
    }
    for (_, run, next) in &asking {
        assert!(api.until(run, &["waiting"]).await["due_at"].is_string());
        let next = api.run(next).await;
        assert_eq!((&next["status"], &next["reason"]), (&json!("scheduled"), &json!("thread_busy")));
    }
    // So does a node that has only read of it.
    cluster.workers[0].kill9().await;
    cluster.apis[0].kill9().await;
    let elsewhere = &cluster.apis[1];
    for (thread, _) in &silent {
        assert!(thread_of(elsewhere, thread).await["follow_up"].is_object(), "it fired before the kill");
    }
    for (_, run, _) in &asking {
        assert_eq!(elsewhere.run(run).await["status"], "waiting", "it fired before the kill");
    }
    cluster.workers[0].restart().await;
    for (thread, first) in &silent {
        let made = eventually("the follow-up has fired", async || {
            let made = runs(elsewhere, thread).await;
            (made.len() > 1).then_some(made)
        })
        .await;
        assert_eq!((made.len(), &made[0]), (2, first));
        assert_eq!(elsewhere.wait_final(&made[1]).await["output"], "Still there?");
    }
    for (_, run, next) in &asking {
        let failed = elsewhere.wait_final(run).await;
        assert_eq!((&failed["status"], &failed["error"]["code"]), (&json!("failed"), &json!("wait_expired")));
        assert_eq!(elsewhere.wait_final(next).await["output"], "next");
    }
    cluster.apis[0].restart().await;
    assert_all_have_fired(&cluster).await;
    let api = &cluster.apis[0];
    for (thread, _) in &silent {
        let (made, now) = (runs(api, thread).await, thread_of(api, thread).await);
        assert_eq!((made.len(), &now["follow_up"], &now["status"]), (2, &json!(null), &json!("idle")));
        let mut stream = watch(api, thread, "?from=start", None).await;
        let (mut followed_up, mut ended) = (0, 0);
        while ended < 2 {
            let event = Shown::next(&mut stream).await;
            followed_up += usize::from(event.kind == "thread.follow_up");
            ended += usize::from(event.ends_a_run());
        }
        assert_eq!(followed_up, 1);
    }
    for (thread, run, next) in &asking {
        assert_eq!(runs(api, thread).await, [run.clone(), next.clone()]);
        assert_eq!(assert_promise(api, run).await.attempts, [1]);
        assert_eq!(assert_promise(api, next).await.attempts, [1]);
    }
}

async fn an_answer_given_on_two_nodes_at_once_is_taken_once(kind: Kind) {
    let Some(cluster) = Cluster::start(kind, 2, 2).await else { return };
    for round in 0..10 {
        let node = &cluster.apis[round % 2];
        let thread = thread(node).await;
        let run = id_of(&say(node, &thread, "one two three", json!({"params": {"ask_at": 2}})).await["run"]);
        let waiting = node.until(&run, &["waiting"]).await;
        let wait_id = &waiting["wait"]["wait_id"];
        let answers = join_all((0..6).map(async |number| {
            let body = json!({"wait_id": wait_id, "input": {"number": number}});
            cluster.apis[number % 2].post_json(&format!("/v1/runs/{run}/resume"), &body).await
        }))
        .await;
        let taken: Vec<_> = (0..6).filter(|number| answers[*number].status == 200).collect();
        let [taken] = taken[..] else { panic!("{answers:?}") };
        for (_, answer) in answers.iter().enumerate().filter(|(number, _)| *number != taken) {
            answer.assert_problem(409, "run_not_waiting");
        }
        for node in &cluster.apis {
            let ended = node.wait_final(&run).await;
            assert_eq!((&ended["output"], &ended["attempt"]), (&json!("one two three"), &json!(2)), "{ended:#}");
            let events = node.events(&run).await;
            let heard: Vec<_> = events.iter().filter(|event| event.kind == "custom").map(|event| &event.data).collect();
            assert_eq!(heard, [&json!({"name": "answer", "value": {"number": taken}})]);
            assert_eq!((kinds(&events, "run.waiting"), kinds(&events, "run.queued")), (1, 2), "{events:?}");
            assert_promise(node, &run).await;
        }
    }
}

/// The next `count` events of the thread.
async fn next_events(node: &Node, thread: &str, after: Option<&str>, count: usize) -> Vec<Shown> {
    let mut stream = watch(node, thread, "?from=start", after).await;
    let mut shown = Vec::with_capacity(count);
    while shown.len() < count {
        shown.push(Shown::next(&mut stream).await);
    }
    shown
}

async fn a_thread_is_watched_on_one_node_while_others_work(kind: Kind) {
    let Some(cluster) = Cluster::start_with(kind, 3, 2, "server.heartbeat = \"1s\"").await else { return };
    let [one, two, three] = &cluster.apis[..] else { unreachable!() };
    let thread = thread(two).await;
    let mut stream = watch(one, &thread, "", None).await;
    let talking = async {
        let slow = json!({"params": {"tokens": 30, "delay_ms": 20, "step_tokens": 7}});
        let first = id_of(&say(two, &thread, "one", slow.clone()).await["run"]);
        let second = id_of(&say(three, &thread, "two", slow.clone()).await["run"]);
        two.until_said(&first, 5).await;
        let steered = say(three, &thread, "to the left", json!({"on_busy": "steer", "params": slow["params"]})).await;
        assert_eq!((&steered["how"], &id_of(&steered["run"])), (&json!("steered"), &first));
        two.until_said(&second, 5).await;
        let third = id_of(&say(two, &thread, "three", json!({"on_busy": "interrupt"})).await["run"]);
        let fourth = id_of(&say(three, &thread, "four", json!({"debounce_ms": 700})).await["run"]);
        vec![first, second, third, fourth]
    };
    // Somebody watches on one node all the time, and somebody else on another one after every few events.
    let watching = async {
        let mut all: Vec<Shown> = Vec::new();
        while all.iter().filter(|event| event.ends_a_run()).count() < 4 {
            all.push(Shown::next(&mut stream).await);
        }
        all
    };
    let roaming = async {
        let (mut seen, mut opened): (Vec<Shown>, usize) = (Vec::new(), 0);
        while seen.iter().filter(|event| event.ends_a_run()).count() < 4 {
            let after = seen.last().map(|event| event.id.clone());
            let node = &cluster.apis[opened % 3];
            let mut stream = watch(node, &thread, "?from=start", after.as_deref()).await;
            opened += 1;
            for _ in 0..7 {
                seen.push(Shown::next(&mut stream).await);
                if seen.iter().filter(|event| event.ends_a_run()).count() == 4 {
                    break;
                }
            }
        }
        assert!(opened > 5, "it came back {opened} times");
        seen
    };
    let (made, mut all, roamed) = tokio::join!(talking, watching, roaming);
    assert_eq!(by_run(&roamed), by_run(&all));
    assert_eq!(runs(three, &thread).await, made);
    let shown: BTreeSet<_> = all.iter().filter_map(|event| event.run.clone()).collect();
    assert_eq!(shown, made.iter().cloned().collect(), "all runs of the thread, and no other");
    assert_eq!(three.post_json(&format!("/v1/threads/{thread}/handoff"), &json!({"reason": "r"})).await.status, 200);
    let own = Shown::next(&mut stream).await;
    assert_eq!((own.kind.as_str(), &own.data), ("thread.handed_off", &json!({"reason": "r"})));
    all.push(own);
    for node in &cluster.apis {
        assert_shown(node, &all).await;
    }
    let ids: BTreeSet<_> = all.iter().map(|event| &event.id).collect();
    assert_eq!(ids.len(), all.len(), "each position is one of its own");
    for (index, event) in all.iter().enumerate().step_by(3) {
        let node = if index % 2 == 0 { two } else { three };
        let rest = next_events(node, &thread, Some(&event.id), all.len() - index - 1).await;
        assert_eq!(by_run(&rest), by_run(&all[index + 1..]), "after {event:?}");
    }
    let history = next_events(two, &thread, None, all.len()).await;
    assert_eq!(by_run(&history), by_run(&all));
    // And then nothing.
    let last = all.last().map(|event| event.id.clone());
    let mut over = watch(three, &thread, "", last.as_deref()).await;
    assert_eq!(over.frames_until_comment().await, 0);
}

on_both_brokers! {
    messages_through_two_nodes_are_each_in_one_run
    a_debounce_armed_on_a_node_that_is_killed_fires_once_elsewhere
    what_a_worker_that_is_killed_has_armed_fires_once_elsewhere
    an_answer_given_on_two_nodes_at_once_is_taken_once
    a_thread_is_watched_on_one_node_while_others_work
}
