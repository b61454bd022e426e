//! Tools that change, and the people who approve them.

use serde_json::json;

use super::*;
use crate::harness::finished_process;

#[tokio::test]
async fn a_list_that_changes_is_told_anew() {
    let Some(config) = fake("") else { return };
    let bench = Bench::new(&config);
    assert!(!bench.names().await.contains(&"fake_added".to_owned()));
    bench.given("fake_add", json!({})).await;
    eventually("the tool is there", async || bench.names().await.contains(&"fake_added".to_owned()).then_some(()))
        .await;
}

#[tokio::test]
async fn names_are_unique_and_broken_tools_are_not_offered() {
    let Some(config) = fake("tools = [\"same.name\", \"same_name\", \"broken\", \"victim\"]\n") else { return };
    let bench = Bench::new(&config);
    assert_eq!(bench.names().await, ["fake_same_name", "fake_victim"]);
}

#[tokio::test]
async fn a_tool_that_changes_is_not_offered_and_not_called_any_more() {
    let Some(config) = fake("") else { return };
    let bench = Bench::new(&config);
    let victim = bench.tool("fake_victim").await;
    assert_eq!(bench.make(&victim, json!({})).await.content, "added");
    bench.given("fake_change", json!({})).await;
    let outcome = eventually("the change is known", async || {
        Some(bench.make(&victim, json!({})).await).filter(|outcome| outcome.failed)
    })
    .await;
    assert!(outcome.content.contains("victim has changed since it was approved"), "{outcome:?}");
    let names = bench.names().await;
    assert!(!names.contains(&"fake_victim".to_owned()) && names.contains(&"fake_change".to_owned()), "{names:?}");
}

#[tokio::test]
async fn approvals_are_asked_for_by_name() {
    let Some(config) = fake("needs_approval = [\"victim\"]\n") else { return };
    let bench = Bench::new(&config);
    for (name, asks) in [("fake_victim", true), ("fake_add", false)] {
        assert_eq!(bench.tool(name).await.policy.needs_approval, asks);
    }
}

#[tokio::test]
async fn pins_are_printed_for_the_configuration_and_hold_across_restarts() {
    let Some(config) = fake("tools = [\"victim\", \"add\"]\n") else { return };
    let directory = tempfile::tempdir().unwrap();
    let here = directory.path();
    let write =
        |text: &str| std::fs::write(here.join("runcast.toml"), text.replace("{dir}", here.to_str().unwrap())).unwrap();
    write(&config);
    let ended = finished_process(here, &["tools"], &[]).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    // What is printed belongs beneath the section that is there already.
    let approved = ended.out.split_once("[mcp.fake]\n").expect("a section").1;
    assert!(
        approved.contains("victim=") && approved.contains("add=") && approved.contains("Adds two numbers."),
        "{approved}"
    );
    let bench = Bench::new(&format!("{config}{approved}"));
    assert_eq!(bench.given("fake_victim", json!({})).await, "added");
    let pin = &approved[approved.find("victim=").expect("a pin")..][7..71];
    let other = approved.replace(pin, &"0".repeat(64));
    let bench = Bench::new(&format!("{config}{other}"));
    assert_eq!(bench.names().await, ["fake_add"]);
    write(&format!("{config}{other}"));
    let ended = finished_process(here, &["tools", "fake", "--full"], &[]).await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.out.contains("CHANGED!") && ended.out.contains("\"type\":\"object\""), "{ended:?}");
    let ended = finished_process(here, &["tools", "nobody"], &[]).await;
    assert_eq!(ended.code, Some(2), "{ended:?}");
}

#[tokio::test]
async fn a_killed_node_takes_its_servers_with_it() {
    let Some(config) = fake("env = [\"HANG=list\"]\n") else { return };
    let directory = tempfile::tempdir().unwrap();
    let here = directory.path();
    std::fs::write(here.join("runcast.toml"), config.replace("{dir}", here.to_str().unwrap())).unwrap();
    let mut node = tokio::process::Command::new(env!("CARGO_BIN_EXE_runcast"))
        .arg("tools")
        .current_dir(here)
        // Those of the tests are no configuration.
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let processes = eventually("the server has forked", async || {
        let notes = std::fs::read_to_string(here.join("notes")).ok()?;
        notes.contains("forked").then(|| numbers(&notes))
    })
    .await;
    assert_eq!(processes.len(), 2);
    assert!(processes.iter().all(|process| lives(*process)));
    node.kill().await.unwrap();
    gone(&processes).await;
}
