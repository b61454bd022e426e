//! A server that dies, hangs, floods, forks and changes.

use serde_json::json;

use super::*;

/// A call that nothing ends but its being dropped.
fn patient() -> String {
    format!("timeout = \"{}s\"\n", LONG.as_secs())
}

#[tokio::test]
async fn a_server_that_dies_is_started_again() {
    let Some(config) = fake("") else { return };
    let bench = Bench::new(&config);
    let outcome = bench.call("fake_die", json!({})).await;
    assert!(outcome.failed && outcome.content.contains("went away"), "{outcome:?}");
    assert_eq!(bench.given("fake_victim", json!({})).await, "added");
    assert_eq!(bench.notes().matches("started").count(), 2);
}

#[tokio::test]
async fn a_server_that_is_killed_comes_back_and_one_that_always_dies_is_left_alone_for_a_while() {
    let Some(config) = fake("") else { return };
    let bench = Bench::new(&config);
    let server = numbers(&bench.given("fake_fork", json!({})).await);
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(i32::try_from(server[0]).unwrap()).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
    let outcome = eventually("it is called again", async || {
        let tools = bench.toolbox.tools().await.ok()?;
        let victim = tools.iter().find(|declared| declared.tool.card().name == "fake_victim")?;
        Some(bench.make(victim, json!({})).await).filter(|outcome| !outcome.failed)
    })
    .await;
    assert_eq!(outcome.content, "added");
    // What the first one has started ends with it.
    gone(&server).await;
    let refused = eventually("it is left alone", async || match bench.toolbox.tools().await {
        Ok(tools) => {
            let die = tools.iter().find(|declared| declared.tool.card().name == "fake_die")?;
            bench.make(die, json!({})).await;
            None
        }
        Err(problem) => Some(problem),
    })
    .await;
    assert!(refused.contains("mcp server fake") && refused.contains("tried again soon"), "{refused}");
}

#[tokio::test]
async fn a_server_that_cannot_be_started_is_told_by_name() {
    let bench = Bench::new("[mcp.none]\ncommand = [\"/nowhere/at/all\"]\n[mcp.mute]\ncommand = [\"true\"]\n");
    let problem = bench.toolbox.tools().await.err().expect("a problem");
    assert!(problem.starts_with("mcp server "), "{problem}");
}

#[tokio::test]
async fn a_dropped_call_is_told_to_the_server_and_others_go_on() {
    let Some(config) = fake(&patient()) else { return };
    let bench = Bench::new(&config);
    let hang = bench.tool("fake_hang").await;
    let call = bench.make(&hang, json!({}));
    tokio::select! {
        outcome = call => panic!("{outcome:?}"),
        () = bench.noted("hanging") => {}
    }
    bench.noted("cancelled").await;
    assert_eq!(bench.given("fake_victim", json!({})).await, "added");
    assert!(!bench.notes().contains("not called"));
}

#[tokio::test]
async fn a_call_that_hangs_ends_in_time_and_is_told_to_the_server() {
    let Some(config) = fake("timeout = \"300ms\"\n") else { return };
    let bench = Bench::new(&config);
    let outcome = bench.call("fake_hang", json!({})).await;
    assert!(outcome.failed && outcome.content.contains("within 300ms"), "{outcome:?}");
    bench.noted("cancelled").await;
}

#[tokio::test]
async fn a_flood_is_cut_off() {
    let Some(config) = fake("max_output = \"1KiB\"\n") else { return };
    let bench = Bench::new(&config);
    let given = bench.given("fake_flood", json!({"bytes": 4 << 20})).await;
    assert!(
        given.starts_with('é') && given.ends_with("bytes more are left out]") && given.len() < 1_200,
        "{}",
        given.len()
    );
    // One that no memory is lent to at all ends with its time; the server is still there.
    let progress = bench.given("fake_progress", json!({"steps": 5_000})).await;
    assert_eq!(progress, "done");
    assert!(bench.progress().len() <= 5_000);
}

#[tokio::test]
async fn rubbish_and_a_flood_of_words_do_no_harm() {
    let Some(config) = fake("") else { return };
    let bench = Bench::new(&config);
    assert_eq!(bench.given("fake_rubbish", json!({})).await, "said rubbish");
    assert_eq!(bench.given("fake_ask", json!({})).await, "asked");
    let outcome = bench.call("fake_fail", json!({})).await;
    assert_eq!((outcome.content.as_str(), outcome.failed), ("no such thing", true));
}

#[tokio::test]
async fn all_that_a_server_has_started_ends_with_it() {
    let Some(config) = fake("") else { return };
    let bench = Bench::new(&config);
    let processes = numbers(&bench.given("fake_fork", json!({})).await);
    assert_eq!(processes.len(), 3, "the server, a child that ignores signals, and one that has left the group");
    assert!(processes.iter().all(|process| lives(*process)));
    drop(bench);
    gone(&processes).await;
}

#[tokio::test]
async fn a_server_sees_little_of_the_environment_and_its_own_variables() {
    let Some(config) = fake("env = [\"TOKEN=sesame\", \"EMPTY=\"]\n") else { return };
    let bench = Bench::new(&config);
    let seen: BTreeMap<String, String> =
        serde_json::from_str(&bench.given("fake_environment", json!({})).await).unwrap();
    assert_eq!((seen["TOKEN"].as_str(), seen["EMPTY"].as_str()), ("***", ""), "it has it, and we show it to nobody");
    let shared = ["HOME", "LANG", "LC_ALL", "LOGNAME", "PATH", "SHELL", "TERM", "TMPDIR", "TZ", "USER"];
    // The last is Python's own.
    let own = ["TOKEN", "EMPTY", "RUNCAST_MCP_GROUP", "LC_CTYPE"];
    let known = |name: &str| shared.contains(&name) || own.contains(&name);
    let odd: Vec<_> = seen.keys().filter(|name| !known(name)).collect();
    assert!(odd.is_empty(), "{odd:?}");
}
