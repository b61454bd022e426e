//! The configuration, as `runcast config` shows it.

use std::path::Path;

use crate::harness::finished_process;

async fn config(directory: &Path, flags: &[&str], env: &[(&str, &str)]) -> String {
    let args: Vec<_> = ["config"].iter().chain(flags).copied().collect();
    let ended = finished_process(directory, &args, env).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    ended.out
}

/// The line of `key` in what is written of `section`; that of the top stands first.
#[track_caller]
fn line<'a>(text: &'a str, section: &str, key: &str) -> &'a str {
    let mut current = "";
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            current = name;
        } else if current == section && line.split(" = ").next() == Some(key) {
            return line;
        }
    }
    panic!("no {section} {key} in {text}")
}

#[tokio::test]
async fn flags_go_before_the_environment_before_the_file_before_aliases_before_defaults() {
    let directory = tempfile::tempdir().unwrap();
    let here = directory.path();
    let text = config(here, &[], &[]).await;
    assert_eq!(line(&text, "", "listen"), "listen = \"127.0.0.1:7070\" # default");
    assert_eq!(line(&text, "server", "heartbeat"), "heartbeat = \"15s\" # default");

    let text = config(here, &[], &[("PORT", "7001")]).await;
    assert_eq!(line(&text, "", "listen"), "listen = \"127.0.0.1:7001\" # alias PORT");

    std::fs::write(here.join("runcast.toml"), "listen = \"127.0.0.1:7002\"\n\n[server]\nheartbeat = \"3s\"\n").unwrap();
    let text = config(here, &[], &[("PORT", "7001")]).await;
    assert_eq!(line(&text, "", "listen"), "listen = \"127.0.0.1:7002\" # runcast.toml:1");
    assert_eq!(line(&text, "server", "heartbeat"), "heartbeat = \"3s\" # runcast.toml:4");

    std::fs::write(here.join(".env"), "RUNCAST_LISTEN=127.0.0.1:7003\nRUNCAST_SERVER_HEARTBEAT=4s\nOTHER=1\n").unwrap();
    let text = config(here, &[], &[]).await;
    assert_eq!(line(&text, "", "listen"), "listen = \"127.0.0.1:7003\" # env RUNCAST_LISTEN");

    let env = [("RUNCAST_LISTEN", "127.0.0.1:7004")];
    let text = config(here, &[], &env).await;
    assert_eq!(line(&text, "", "listen"), "listen = \"127.0.0.1:7004\" # env RUNCAST_LISTEN", "over .env");
    assert_eq!(line(&text, "server", "heartbeat"), "heartbeat = \"4s\" # env RUNCAST_SERVER_HEARTBEAT");

    let text = config(here, &["--listen", "127.0.0.1:7005"], &env).await;
    assert_eq!(line(&text, "", "listen"), "listen = \"127.0.0.1:7005\" # flag --listen");

    std::fs::write(here.join("other.toml"), "[server]\nkeep_alive = \"9s\"\n").unwrap();
    let text = config(here, &["--config", "other.toml"], &[]).await;
    assert_eq!(line(&text, "server", "keep_alive"), "keep_alive = \"9s\" # other.toml:2");
    assert!(!here.join("runcast-data").exists(), "looking changes nothing");
}

#[tokio::test]
async fn secrets_are_masked_wherever_they_come_from() {
    let directory = tempfile::tempdir().unwrap();
    let here = directory.path();
    std::fs::write(here.join("key"), "secret-in-a-file-1234\n").unwrap();
    let file = "[server]\napi_keys = [\"secret-in-the-open-1\", \"env:MY_KEY\", \"file:key\"]\n\
        [providers.mine]\nbase_url = \"http://127.0.0.1:1/v1\"\napi_key = \"secret-of-a-provider\"\n";
    std::fs::write(here.join("runcast.toml"), file).unwrap();
    let env = [("MY_KEY", "secret-in-a-variable"), ("OPENAI_API_KEY", "secret-for-openai")];
    let text = config(here, &[], &env).await;
    assert!(!text.contains("secret"), "{text}");
    assert!(line(&text, "server", "api_keys").contains("***"), "{text}");
    assert_eq!(line(&text, "providers.openai", "api_key"), "api_key = \"***\" # alias OPENAI_API_KEY");
    assert_eq!(line(&text, "providers.mine", "api_key"), "api_key = \"***\" # runcast.toml:5");

    // Nor does a mistake show one.
    std::fs::write(here.join("runcast.toml"), "[server]\napi_keys = [\"secret-short\"]\n").unwrap();
    let ended = finished_process(here, &["config"], &env).await;
    assert_eq!(ended.code, Some(2), "{ended:?}");
    assert!(ended.err.contains("server.api_keys") && !ended.err.contains("secret-short"), "{ended:?}");
}

#[tokio::test]
async fn the_effective_configuration_is_a_configuration() {
    let directory = tempfile::tempdir().unwrap();
    let here = directory.path();
    let env = [("RUNCAST_SERVER_HEARTBEAT", "7s"), ("RUNCAST_LIMITS_MAX_INPUT", "3KiB")];
    let first = config(here, &["--data", "elsewhere"], &env).await;
    std::fs::write(here.join("again.toml"), &first).unwrap();
    let again = config(here, &["--config", "again.toml"], &[]).await;
    let values = |text: &str| {
        let lines = text.lines().map(|line| line.split(" # ").next().unwrap_or_default().to_owned());
        lines.collect::<Vec<_>>()
    };
    assert_eq!(values(&again), values(&first));
}

#[tokio::test]
async fn the_example_file_is_the_default_configuration() {
    let directory = tempfile::tempdir().unwrap();
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("runcast.example.toml");
    let by_file = config(directory.path(), &["--config", example.to_str().unwrap()], &[]).await;
    assert_eq!(by_file, config(directory.path(), &[], &[]).await);
}
