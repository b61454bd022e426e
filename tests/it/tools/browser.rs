//! A browser, as docs/tools.md has it.

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;

const CHROMIUM: &str = "/usr/bin/chromium";

const PAGE: &str = "<!doctype html><title>The shop</title><h1>Apples</h1><p>They cost <b>3 francs</b>.</p>\
    <button onclick=\"document.querySelector('h1').textContent = 'Pears'\">Next</button>";

async fn page() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let _ = socket.read(&mut [0; 4096]).await;
                let head = "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\nconnection: close\r\ncontent-length: ";
                let _ = socket.write_all(format!("{head}{}\r\n\r\n{PAGE}", PAGE.len()).as_bytes()).await;
            });
        }
    });
    url
}

#[tokio::test]
async fn a_browser_reads_a_page_and_ends_with_the_node() {
    if !Path::new(CHROMIUM).exists() {
        assert!(std::env::var("RUNCAST_REQUIRE_SERVERS").as_deref() != Ok("1"), "{CHROMIUM} is missing");
        return eprintln!("skipped: no {CHROMIUM}");
    }
    let flags = ["--headless", "--isolated", "--no-sandbox", "--executable-path", CHROMIUM, "--output-dir", "{dir}"];
    let Some(config) = npm("browser", "@playwright/mcp/cli.js", &flags) else { return };
    let tools = ["browser_navigate", "browser_snapshot", "browser_click"];
    let bench = Bench::new(&format!("{config}tools = {tools:?}\n"));
    assert_eq!(bench.names().await.len(), tools.len());
    bench.given("browser_browser_navigate", json!({"url": page().await})).await;
    let shown = bench.given("browser_browser_snapshot", json!({})).await;
    assert!(shown.contains("Apples") && shown.contains("3 francs"), "{shown}");
    let refused = bench.call("browser_browser_navigate", json!({"url": "file:///etc/passwd"})).await;
    assert!(refused.failed && !refused.content.contains("root:"), "{refused:?}");
    let directory = bench.directory.path().to_str().unwrap().to_owned();
    let all = all_processes();
    let server = all.iter().find(|process| command(**process).contains(&directory)).expect("the server");
    let processes: Vec<u32> = all.iter().copied().filter(|process| parents(*process).contains(server)).collect();
    assert!(processes.len() > 2, "the server, its browser and the browser's own: {processes:?}");
    drop(bench);
    gone(&processes).await;
}

fn all_processes() -> Vec<u32> {
    let entries = std::fs::read_dir("/proc").unwrap();
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect()
}

fn command(process: u32) -> String {
    String::from_utf8_lossy(&std::fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default()).into_owned()
}

/// The process, its parent, and so on.
fn parents(process: u32) -> Vec<u32> {
    let parent = |process: &u32| {
        let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
        stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse().ok().filter(|parent| *parent > 1)
    };
    std::iter::successors(Some(process), parent).collect()
}
