//! Agents that are programs: what they say arrives, what they keep is kept, and nothing is left of them.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::harness::{Node, Options, assert_promise, eventually, finished_process, id_of, said};

/// The section of an agent that is a script of the shell.
fn agent(name: &str, script: &str, more: &str) -> String {
    format!("[agents.{name}]\nkind = \"process\"\ncommand = [\"sh\", \"-c\", '''\n{script}\n''']\n{more}\n")
}

/// A node with such agents, which tries again at once.
fn node(agents: &str) -> Options {
    Options::from(format!("runs.backoff_base = \"1ms\"\nruns.backoff_max = \"1ms\"\n{agents}"))
}

/// The lines of a file that a program writes; none before it is there.
fn lines(path: &Path) -> Vec<String> {
    std::fs::read_to_string(path).unwrap_or_default().lines().map(str::to_owned).collect()
}

/// Waits until the file has so many lines; all of them.
async fn until_lines(path: &Path, count: usize) -> Vec<String> {
    eventually(&format!("{count} lines in {}", path.display()), async || {
        Some(lines(path)).filter(|lines| lines.len() >= count)
    })
    .await
}

/// Waits until none of these processes is there.
async fn until_gone(pids: &[String]) {
    eventually(&format!("the processes {pids:?} are gone"), async || {
        pids.iter().all(|pid| !Path::new("/proc").join(pid).exists()).then_some(())
    })
    .await;
}

fn kill9(pid: &str) {
    assert!(Command::new("sh").args(["-c", &format!("kill -9 {pid}")]).status().unwrap().success());
}

#[tokio::test]
async fn what_a_program_says_arrives() {
    let script = r#"read -r start
        printf '%s' "$start" > start.json
        cat <<'END'
{"type":"step_started","kind":"model","name":"thinker"}
{"type":"reasoning","text":"hm"}
{"type":"token","text":"Hel"}
{"type":"token","text":"lo"}

{"type":"message","text":"Hello"}
{"type":"step","kind":"model","name":"thinker","result":{"text":"Hello"},"usage":{"input_tokens":3,"output_tokens":2}}
{"type":"log","level":"warn","message":"careful"}
{"type":"custom","name":"mood","value":{"happy":true}}
{"type":"plan","plan":[{"task":"greet","status":"done"}]}
{"type":"tool_started","call_id":"c1","name":"look","arguments":{"at":"it"}}
{"type":"tool_output","call_id":"c1","text":"looking"}
{"type":"tool_completed","call_id":"c1","name":"look","output":"seen"}
END
        read -r kept
        printf '%s' "$kept" > kept.json
        echo to the log >&2
        printf '{"type":"complete","output":"Hello","outcome":"greeted","usage":{"input_tokens":1,"output_tokens":1}}'"#;
    let node = Node::start(node(&agent("mine", script, ""))).await;
    let body = json!({"agent": "mine", "input": "Hi", "params": {"any": 1}, "metadata": {"label": "x"}});
    let id = node.create(body).await;
    let run = node.wait_final(&id).await;
    assert_eq!((&run["status"], &run["outcome"]), (&json!("completed"), &json!("greeted")), "{run}");
    assert_eq!(run["usage"], json!({"input_tokens": 4, "output_tokens": 3}), "{run}");
    assert_promise(&node, &id).await;
    let events = node.events(&id).await;
    let of = |kind: &str| events.iter().find(|event| event.kind == kind).map(|event| event.data.clone());
    assert_eq!(of("step.started"), Some(json!({"step": 1, "kind": "model", "name": "thinker"})));
    assert_eq!(of("reasoning.delta"), Some(json!({"text": "hm"})));
    assert_eq!(of("custom"), Some(json!({"name": "mood", "value": {"happy": true}})));
    assert_eq!(of("plan.updated"), Some(json!({"plan": [{"task": "greet", "status": "done"}]})));
    let started = json!({"call_id": "c1", "name": "look", "arguments": {"at": "it"}});
    assert_eq!(of("tool.started"), Some(started));
    assert_eq!(of("tool.completed"), Some(json!({"call_id": "c1", "name": "look", "output": "seen"})));
    let logged = |level: &str, message: &str| {
        let data = json!({"level": level, "message": message});
        assert!(events.iter().any(|event| event.kind == "log" && event.data == data), "{events:?}");
    };
    logged("warn", "careful");
    logged("debug", "to the log");
    let read = |name: &str| -> Value {
        serde_json::from_str(&std::fs::read_to_string(node.directory().join(name)).unwrap()).unwrap()
    };
    assert_eq!(read("kept.json"), json!({"type": "step_kept", "step": 1}));
    let start = json!({
        "type": "start", "run_id": id, "attempt": 1, "agent": "mine", "agent_version": "1", "input": "Hi",
        "params": {"any": 1}, "thread_id": null, "history": [], "metadata": {"label": "x"}, "steps": [],
        "steers": [], "key": format!("{id}:0"),
    });
    assert_eq!(read("start.json"), start);
}

/// Makes one step an attempt and then waits to be killed; notes each step when it is told that it is kept, by the
/// answer or by the next start.
const ONE_STEP: &str = r#"read -r start
    echo $$ >> pids; touch made
    kept=$(printf '%s' "$start" | grep -o '"step":' | wc -l)
    if [ "$kept" -gt "$(wc -l < made)" ]; then echo "$kept" >> made; fi
    if [ "$kept" -eq 20 ]; then echo '{"type":"complete","output":20}'; exit; fi
    echo '{"type":"step","name":"count","result":'$((kept + 1))'}'
    read -r answer
    echo $((kept + 1)) >> made
    sleep 600 & echo $! >> pids
    wait"#;

async fn assert_twenty_steps(node: &Node, id: &str) {
    let run = node.wait_final(id).await;
    assert_eq!((&run["status"], &run["output"]), (&json!("completed"), &json!(20)), "{run}");
    let expected: Vec<String> = (1..=20).map(|step: u32| step.to_string()).collect();
    assert_eq!(lines(&node.directory().join("made")), expected);
    let events = node.events(id).await;
    let steps: Vec<_> = events.iter().filter(|event| event.kind == "step.completed").collect();
    assert!(steps.iter().map(|event| &event.data["step"]).eq((1..=20).collect::<Vec<u32>>().iter()), "{steps:?}");
}

#[tokio::test]
async fn each_step_is_made_once_though_the_node_is_killed_after_each() {
    let mut node = Node::start(node(&agent("mine", ONE_STEP, ""))).await;
    let (made, pids) = (node.directory().join("made"), node.directory().join("pids"));
    let id = node.create(json!({"agent": "mine", "input": "count"})).await;
    for step in 1..=20 {
        until_lines(&made, step).await;
        let pids = until_lines(&pids, 2 * step).await;
        node.kill9().await;
        until_gone(&pids).await;
        node.restart().await;
    }
    assert_twenty_steps(&node, &id).await;
}

#[tokio::test]
async fn each_step_is_made_once_though_the_program_is_killed_after_each() {
    let node = Node::start(node(&agent("mine", ONE_STEP, "max_attempts = 100"))).await;
    let (made, pids) = (node.directory().join("made"), node.directory().join("pids"));
    let id = node.create(json!({"agent": "mine", "input": "count"})).await;
    for step in 1..=20 {
        until_lines(&made, step).await;
        let pids = until_lines(&pids, 2 * step).await;
        kill9(&pids[2 * step - 2]);
        until_gone(&pids).await;
    }
    assert_twenty_steps(&node, &id).await;
    let events = node.events(&id).await;
    let retry = events.iter().find(|event| event.kind == "run.retrying").expect("a retry");
    let message = retry.data["message"].as_str().unwrap();
    assert!(message.contains("without complete or fail: signal: 9 (SIGKILL)"), "{message}");
}

/// Starts what does not want to end: a child and a grandchild that ignore SIGTERM, and one that has left the session
/// and whose parent has ended.
const STUBBORN: &str = r#"read -r start
    stubborn='trap "" TERM; echo $$ >> pids; while :; do sleep 0.1; done'
    sh -c "$stubborn" &
    sh -c "sh -c '$stubborn' & wait" &
    setsid sh -c "sh -c '$stubborn' & " &
    trap 'echo tidies up >&2; echo tidy > tidied' TERM
    echo $$ >> pids
    while :; do sleep 0.05; done"#;

#[tokio::test]
async fn nothing_is_left_of_a_program_however_its_attempt_ends() {
    let agents = agent("mine", STUBBORN, "cancel_grace = \"1s\"");
    let config = format!("worker.drain_grace = \"0s\"\n{}", node(&agents).config);
    for ending in ["cancel", "kill", "drain"] {
        let mut node = Node::start(config.clone()).await;
        let id = node.create(json!({"agent": "mine", "input": "stay"})).await;
        let pids = until_lines(&node.directory().join("pids"), 4).await;
        match ending {
            "cancel" => assert_eq!(node.cancel(&id).await.status, 202),
            "kill" => node.kill9().await,
            _ => {
                node.sigterm();
                assert!(node.wait_exit().await.success());
            }
        }
        until_gone(&pids).await;
        assert!(node.directory().join("tidied").exists(), "the program was told before it was killed: {ending}");
        if ending == "cancel" {
            assert_eq!(node.wait_final(&id).await["status"], "cancelled");
        }
    }
}

#[tokio::test]
async fn a_program_that_misbehaves_fails_its_run_in_words_that_help() {
    let complete = r#"echo '{"type":"complete","output":"ok"}'"#;
    let cases = [
        (
            "exits",
            "read -r start; echo boom >&2; exit 3",
            "program_failed",
            "exit status: 3; its standard error ends with: boom",
        ),
        ("crashes", "read -r start; kill -SEGV $$", "program_failed", "signal: 11"),
        ("deaf", "exit 0", "program_failed", "exit status: 0; its standard error is empty"),
        (
            "rubbish",
            "read -r start; echo hello",
            "program_bad_message",
            "line 1 of the program of agent rubbish is no message",
        ),
        (
            "unknown",
            r#"echo; echo '{"type":"sing"}'; sleep 60"#,
            "program_bad_message",
            "line 2 of the program of agent unknown is no message: unknown variant `sing`, expected one of `token`",
        ),
        (
            "long",
            "head -c 2097152 /dev/zero | tr '\\0' x; sleep 60",
            "program_bad_message",
            "longer than 1048576 bytes",
        ),
        ("binary", "printf '\\377\\376\\n'; sleep 60", "program_bad_message", "line 1"),
        ("closes", "exec >&-; exec sleep 600", "program_failed", "closed its standard output"),
        ("halts", r#"printf '{"type":"complete","output":"o'; exit 1"#, "program_failed", "exit status: 1"),
        ("fails", r#"echo '{"type":"fail","code":"no_luck","message":"so it is"}'"#, "no_luck", "so it is"),
    ];
    let mut agents: String = cases.iter().map(|(name, script, ..)| agent(name, script, "max_attempts = 1")).collect();
    agents += "[agents.missing]\nkind = \"process\"\ncommand = [\"./missing\"]\nmax_attempts = 1\n";
    agents += &agent("hangs", "echo $$ > hangs; exec sleep 600", "timeout = \"500ms\"\ncancel_grace = \"0s\"");
    agents += &agent("careless", &format!("{complete}; echo rubbish; exit 1"), "");
    let node = Node::start(node(&agents)).await;
    for (name, _, code, words) in
        cases.iter().copied().chain([("missing", "", "program_failed", "cannot start ./missing")])
    {
        let id = node.create(json!({"agent": name, "input": "go"})).await;
        let run = node.wait_final(&id).await;
        assert_eq!((&run["status"], &run["error"]["code"]), (&json!("failed"), &json!(code)), "{name}: {run}");
        let message = run["error"]["message"].as_str().unwrap();
        assert!(message.contains(words) && message.len() < 2_000, "{name}: {message}");
    }
    let id = node.create(json!({"agent": "hangs", "input": "go"})).await;
    assert_eq!(node.wait_final(&id).await["status"], "failed");
    until_gone(&lines(&node.directory().join("hangs"))).await;
    let id = node.create(json!({"agent": "careless", "input": "go"})).await;
    let run = node.wait_final(&id).await;
    assert_eq!(
        (&run["status"], &run["output"]),
        (&json!("completed"), &json!("ok")),
        "what follows complete is not heard"
    );
}

#[tokio::test]
async fn a_program_that_floods_is_read_as_fast_as_its_journal_takes_it() {
    let agents = [
        agent("talks", r#"echo $$ > talks; exec yes '{"type":"token","text":"x"}'"#, ""),
        agent("errs", "echo $$ > errs; exec yes \"$(printf %01000d 0)\" >&2", ""),
    ];
    let node = Node::start(node(&agents.concat())).await;
    let talks = node.create(json!({"agent": "talks", "input": "go"})).await;
    let errs = node.create(json!({"agent": "errs", "input": "go"})).await;
    node.until_said(&talks, 20_000).await;
    let mut stream = node.stream(&errs).await;
    let left_out = |text: &str| text.contains("the rest is left out");
    let events = stream.through(|event| event.data["message"].as_str().is_some_and(left_out)).await;
    let shown: usize = events.iter().filter_map(|event| event.data["message"].as_str()).map(str::len).sum();
    assert!(shown < 300_000, "{shown} bytes");
    let status = Command::new("sh").arg("-c").arg(format!("grep VmRSS /proc/{}/status", node.pid())).output().unwrap();
    let rss: usize = String::from_utf8(status.stdout).unwrap().split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!(rss < 300_000, "{rss} KB of memory");
    for (id, name) in [(&talks, "talks"), (&errs, "errs")] {
        assert_eq!(node.cancel(id).await.status, 202);
        assert_eq!(node.wait_final(id).await["status"], "cancelled");
        until_gone(&lines(&node.directory().join(name))).await;
    }
}

#[tokio::test]
async fn a_program_asks_a_person_and_goes_on_with_the_answer() {
    let script = r#"read -r start
        case "$start" in
        *'"kind":"ask"'*'"input":"go on"'*) echo '{"type":"complete","output":"went on"}' ;;
        *) echo '{"type":"ask","prompt":"May I?","reason":"approval","deadline_ms":60000}' ;;
        esac"#;
    let node = Node::start(node(&agent("mine", script, ""))).await;
    let id = node.create(json!({"agent": "mine", "input": "go"})).await;
    let run = node.until(&id, &["waiting"]).await;
    assert_eq!(run["reason"], "approval", "{run}");
    let events = node.events(&id).await;
    let waiting = &events.last().unwrap().data;
    assert_eq!(waiting["prompt"], "May I?", "{waiting}");
    let answer = json!({"wait_id": waiting["wait_id"], "input": "go on"});
    assert_eq!(node.post_json(&format!("/v1/runs/{id}/resume"), &answer).await.status, 200);
    let run = node.wait_final(&id).await;
    assert_eq!((&run["status"], &run["output"]), (&json!("completed"), &json!("went on")), "{run}");
}

#[tokio::test]
async fn a_program_is_handed_what_is_said_to_its_run() {
    let script = r#"read -r start
        echo '{"type":"token","text":"ready"}'
        until [ -e said ]; do sleep 0.02; done
        echo '{"type":"steer"}'
        read -r steers
        printf '%s' "$steers" > steers.json
        echo '{"type":"complete","output":"heard"}'"#;
    let node = Node::start(node(&agent("mine", script, "on_busy = \"steer\""))).await;
    let thread = node.post_json("/v1/threads", &json!({})).await.json()["id"].as_str().unwrap().to_owned();
    let path = format!("/v1/threads/{thread}/messages");
    let first = node.post_json(&path, &json!({"agent": "mine", "content": "begin"})).await.json();
    let id = first["run"]["id"].as_str().unwrap_or_else(|| panic!("{first}")).to_owned();
    node.until_said(&id, 1).await;
    let second = node.post_json(&path, &json!({"agent": "mine", "content": "and this"})).await;
    assert!(second.status.is_success(), "{second:?}");
    std::fs::write(node.directory().join("said"), "").unwrap();
    assert_eq!(node.wait_final(&id).await["output"], "heard");
    let steers: Value =
        serde_json::from_str(&std::fs::read_to_string(node.directory().join("steers.json")).unwrap()).unwrap();
    assert_eq!(steers, json!({"type": "steers", "messages": [{"role": "user", "content": "and this"}]}));
}

#[tokio::test]
async fn what_a_program_does_not_ask_for_it_is_given_by_another_attempt() {
    let script = r#"read -r start
        printf '%s\n' "$start" >> starts
        echo '{"type":"token","text":"ready"}'
        until [ -e said ]; do sleep 0.02; done
        echo '{"type":"complete","output":"done"}'"#;
    let node = Node::start(node(&agent("mine", script, "on_busy = \"steer\""))).await;
    let thread = id_of(&node.post_json("/v1/threads", &json!({})).await.json());
    let path = format!("/v1/threads/{thread}/messages");
    let id = id_of(&node.post_json(&path, &json!({"agent": "mine", "content": "begin"})).await.json()["run"]);
    node.until_said(&id, 1).await;
    let steered = node.post_json(&path, &json!({"agent": "mine", "content": "and this"})).await.json();
    assert_eq!(steered["how"], "steered");
    std::fs::write(node.directory().join("said"), "").unwrap();
    let run = node.wait_final(&id).await;
    assert_eq!((&run["status"], &run["attempt"]), (&json!("completed"), &json!(2)));
    let starts: Vec<Value> =
        lines(&node.directory().join("starts")).iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    let handed = json!([{"after_step": 0, "message": {"role": "user", "content": "and this"}}]);
    assert_eq!(starts.iter().map(|start| &start["steers"]).collect::<Vec<_>>(), [&json!([]), &handed]);
    // What the first has said is void.
    let events = node.events(&id).await;
    let retried = events.iter().find(|event| event.kind == "run.retrying").expect("another attempt");
    assert_eq!((&retried.data["reason"], retried.data["void_after"].is_u64()), (&json!("released"), true));
}

#[tokio::test]
async fn a_program_has_its_own_environment_and_its_secrets_are_shown_nowhere() {
    const CANARY: &str = "canary-5f1d2c";
    let script = r#"read -r start
        env > env.txt; pwd > pwd.txt
        echo "the token is $TOKEN" >&2
        echo '{"type":"log","message":"it is '$TOKEN'"}'
        echo '{"type":"fail","code":"no","message":"not with '$TOKEN'","transient":true}'"#;
    let more = "max_attempts = 2\nenv = [\"TOKEN=env:MY_CANARY\", \"PLAIN=a b=c\"]\ndirectory = \"work\"";
    let mut options = node(&agent("mine", script, more));
    options.env = vec![("MY_CANARY", CANARY.to_owned()), ("RUNCAST_LOG_LEVEL", "trace".to_owned())];
    let directory = tempfile::tempdir().unwrap();
    let work = directory.path().join("work");
    std::fs::create_dir(&work).unwrap();
    let node = Node::start_in(directory, options).await;
    let id = node.create(json!({"agent": "mine", "input": "go"})).await;
    let run = node.wait_final(&id).await;
    assert_eq!(run["error"]["message"], "not with ***", "{run}");
    let env = lines(&work.join("env.txt"));
    assert!(env.contains(&format!("TOKEN={CANARY}")) && env.contains(&"PLAIN=a b=c".to_owned()), "{env:?}");
    let foreign =
        |line: &&String| line.starts_with("RUNCAST") || line.starts_with("MY_CANARY") || line.starts_with("CARGO");
    assert_eq!(env.iter().find(foreign), None);
    assert_eq!(lines(&work.join("pwd.txt")), [work.canonicalize().unwrap().display().to_string()]);
    std::fs::remove_file(work.join("env.txt")).unwrap();
    let config = finished_process(node.directory(), &["config"], &[("MY_CANARY", CANARY)]).await;
    assert!(config.out.contains("env = [\"TOKEN=***\", \"PLAIN=***\"]"), "{}", config.out);
    let events = node.get(&format!("/v1/runs/{id}/events")).await.text();
    assert!(events.contains("the token is ***"), "{events}");
    let shown = [node.log(), run.to_string(), events, node.get("/metrics").await.text(), config.out, config.err];
    assert!(shown.iter().all(|text| !text.contains(CANARY)), "{shown:?}");
    assert_not_in_files(node.directory(), CANARY);
}

/// No file below the directory has the text.
pub(crate) fn assert_not_in_files(directory: &Path, text: &str) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            assert_not_in_files(&path, text);
        } else {
            let bytes = std::fs::read(&path).unwrap_or_default();
            assert!(!bytes.windows(text.len()).any(|part| part == text.as_bytes()), "{text} is in {}", path.display());
        }
    }
}

/// The section of the example, run by the Python of the tests; `None` when that is not set up here.
fn example(agent: &str, file: &str) -> Option<String> {
    let Ok(python) = std::env::var("RUNCAST_PYTHON") else {
        assert!(std::env::var("RUNCAST_REQUIRE_SERVERS").as_deref() != Ok("1"), "RUNCAST_PYTHON is not set");
        eprintln!("skipped: no python (RUNCAST_PYTHON is not set; tests/run installs what the examples need)");
        return None;
    };
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(file);
    assert!(std::fs::read_to_string(&path).unwrap().lines().count() <= 40, "{file} is longer than 40 lines");
    Some(format!("[agents.{agent}]\nkind = \"process\"\ncommand = [\"{python}\", \"{}\"]\n", path.display()))
}

#[tokio::test]
async fn the_example_of_a_program_goes_on_after_a_kill() {
    let Some(section) = example("longest", "process_agent.py") else { return };
    let mut node = Node::start(node(&section)).await;
    let id = node.create(json!({"agent": "longest", "input": "a few words of some lengths"})).await;
    let mut stream = node.stream(&id).await;
    stream.through(|event| event.kind == "step.completed").await;
    node.kill9().await;
    node.restart().await;
    let run = node.wait_final(&id).await;
    assert_eq!(run["output"], "The longest of 6 words is lengths.", "{run}");
    assert_promise(&node, &id).await;
    let events = node.events(&id).await;
    assert_eq!(events.iter().filter(|event| event.kind == "step.completed").count(), 3);
    assert_eq!(said(&events), "The longest of 6 words is lengths.");
}

/// A page that a script makes, at this URL; one below `/hangs` never comes.
async fn page() -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut request = vec![0; 4096];
                let read = socket.read(&mut request).await.unwrap_or(0);
                if request[..read].starts_with(b"GET /hangs") {
                    let _ = socket.read(&mut request).await;
                    return;
                }
                let body = "<h1>Shop</h1><script>document.body.append('made by' + ' script')</script>";
                let head = format!(
                    "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                    body.len()
                );
                let _ = socket.write_all((head + body).as_bytes()).await;
            });
        }
    });
    url
}

/// Whether a process has this in its command line.
fn running(words: &str) -> bool {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    entries
        .filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok())
        .any(|line| String::from_utf8_lossy(&line).contains(words))
}

#[tokio::test]
async fn the_example_of_a_qa_runner_drives_a_browser() {
    let Some(section) = example("qa", "qa_runner.py") else { return };
    if Command::new("chromium").arg("--version").output().is_err() {
        assert!(std::env::var("RUNCAST_REQUIRE_SERVERS").as_deref() != Ok("1"), "chromium is not installed");
        return eprintln!("skipped: no chromium (tests/run installs it)");
    }
    let (node, url) = (Node::start(node(&section)).await, page().await);
    let run = async |path: &str, expect: &[&str]| {
        node.create(json!({"agent": "qa", "input": format!("{url}{path}"), "params": {"expect": expect}})).await
    };
    let id = run("/", &["Shop", "made by script"]).await;
    let passed = node.wait_final(&id).await;
    assert_eq!((&passed["status"], &passed["outcome"]), (&json!("completed"), &json!("passed")), "{passed}");
    let steps = node.events(&id).await.iter().filter(|event| event.kind == "step.completed").count();
    assert_eq!(steps, 3);
    let id = run("/", &["Shop", "sold out"]).await;
    let failed = node.wait_final(&id).await;
    assert_eq!(failed["error"]["code"], "assertion_failed", "{failed}");
    let id = run("/hangs", &[]).await;
    eventually("the browser opens the page", async || running(&format!("{url}/hangs")).then_some(())).await;
    assert_eq!(node.cancel(&id).await.status, 202);
    eventually("the browser is gone", async || (!running(&url)).then_some(())).await;
}
