//! MCP servers that others have written.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

use serde_json::json;

use super::*;

const EVERYTHING: &str = "@modelcontextprotocol/server-everything/dist/index.js";
const FILESYSTEM: &str = "@modelcontextprotocol/server-filesystem/dist/index.js";

#[tokio::test]
async fn tools_of_a_program_are_listed_and_called_at_once_by_many() {
    let Some(config) = npm("all", EVERYTHING, &["stdio"]) else { return };
    let bench = Bench::new(&config);
    let names = bench.names().await;
    assert!(names.contains(&"all_echo".to_owned()) && names.contains(&"all_get-sum".to_owned()), "{names:?}");
    assert_eq!(bench.given("all_echo", json!({"message": "hello"})).await, "Echo: hello");
    let sums = (0..20).map(|n| {
        let bench = &bench;
        async move { bench.given("all_get-sum", json!({"a": n, "b": 1})).await }
    });
    for (n, sum) in futures_util::future::join_all(sums).await.into_iter().enumerate() {
        assert!(sum.contains(&format!("is {}", n + 1)), "{sum}");
    }
    let wrong = bench.call("all_get-sum", json!({"a": "one"})).await;
    assert!(wrong.failed && wrong.content.contains("nothing was called"), "{wrong:?}");
    let image = bench.given("all_get-tiny-image", json!({})).await;
    assert!(image.contains("[image, image/png, some ") && image.len() < 1_000, "{image}");
    let structure = bench.given("all_get-structured-content", json!({"location": "Chicago"})).await;
    assert!(structure.contains("temperature"), "{structure}");
    let links = bench.given("all_get-resource-links", json!({"count": 2})).await;
    assert!(links.contains("[link to resource "), "{links}");
    let resource = bench.given("all_get-resource-reference", json!({"resourceType": "Text", "resourceId": 1})).await;
    assert!(resource.contains("[resource "), "{resource}");
}

#[tokio::test]
async fn progress_is_shown_while_a_tool_works() {
    let Some(config) = npm("all", EVERYTHING, &["stdio"]) else { return };
    let bench = Bench::new(&config);
    let arguments = json!({"duration": 0.4, "steps": 4});
    let given = bench.given("all_trigger-long-running-operation", arguments).await;
    assert!(given.contains("completed"), "{given}");
    let progress = bench.progress();
    assert!(!progress.is_empty() && progress.len() <= 4, "{progress:?}");
}

/// The same server over streamable HTTP. Killed when dropped.
struct Http {
    process: Child,
    port: u16,
}

impl Http {
    async fn start(port: Option<u16>) -> Option<Self> {
        let script = installed("RUNCAST_NPM")?.join("node_modules").join(EVERYTHING);
        let free = || TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address").port();
        let port = port.unwrap_or_else(free);
        let process = Command::new("node")
            .arg(script)
            .arg("streamableHttp")
            .env("PORT", port.to_string())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("node");
        let server = Self { process, port };
        eventually("the server listens", async || tokio::net::TcpStream::connect(("127.0.0.1", port)).await.ok()).await;
        Some(server)
    }

    fn config(&self, allow: &str) -> String {
        format!("[mcp.all]\nurl = \"http://localhost:{}/mcp\"\nallow = [{allow}]\n", self.port)
    }
}

impl Drop for Http {
    fn drop(&mut self) {
        self.process.kill().unwrap_or_default();
        self.process.wait().map(drop).unwrap_or_default();
    }
}

#[tokio::test]
async fn tools_are_called_over_http_and_again_when_the_server_comes_back() {
    let Some(server) = Http::start(None).await else { return };
    let bench = Bench::new(&server.config("\"localhost\""));
    assert_eq!(bench.given("all_echo", json!({"message": "hello"})).await, "Echo: hello");
    let arguments = json!({"duration": 0.4, "steps": 4});
    assert!(bench.given("all_trigger-long-running-operation", arguments).await.contains("completed"));
    assert!(!bench.progress().is_empty());
    let tool = bench.tool("all_echo").await;
    let port = server.port;
    drop(server);
    let outcome = soon("a call to nobody", bench.make(&tool, json!({"message": "anybody?"}))).await;
    assert!(outcome.failed, "{outcome:?}");
    let _server = Http::start(Some(port)).await;
    eventually("it is called again", async || {
        let outcome = bench.make(&tool, json!({"message": "back"})).await;
        (!outcome.failed).then(|| assert_eq!(outcome.content, "Echo: back"))
    })
    .await;
}

#[tokio::test]
async fn a_server_at_an_address_that_is_not_public_is_refused_unless_allowed() {
    let Some(server) = Http::start(None).await else { return };
    let bench = Bench::new(&server.config("\"127.0.0.9\""));
    let problem = bench.toolbox.tools().await.err().expect("a refusal");
    assert!(problem.contains("mcp server all") && problem.contains("mcp.all.allow"), "{problem}");
}

#[tokio::test]
async fn files_outside_of_the_root_are_refused() {
    let Some(config) = npm("files", FILESYSTEM, &["{dir}"]) else { return };
    let bench = Bench::new(&config);
    std::fs::write(bench.path("within"), "the text").unwrap();
    let within = bench.path("within");
    assert_eq!(bench.given("files_read_text_file", json!({ "path": within })).await, "the text");
    for path in ["/etc/passwd".to_owned(), format!("{}/../../etc/passwd", bench.directory.path().display())] {
        let outcome = bench.call("files_read_text_file", json!({ "path": path })).await;
        assert!(
            outcome.failed && outcome.content.contains("denied") && !outcome.content.contains("root:"),
            "{outcome:?}"
        );
    }
}

#[tokio::test]
async fn a_server_in_python_tells_the_time() {
    let Some(python) = installed("RUNCAST_PYTHON") else { return };
    let config = format!("[mcp.time]\ncommand = [{python:?}, \"-m\", \"mcp_server_time\"]\n");
    let bench = Bench::new(&config);
    let given = bench.given("time_get_current_time", json!({"timezone": "Europe/Zurich"})).await;
    assert!(given.contains("Europe/Zurich"), "{given}");
    let outcome = bench.call("time_get_current_time", json!({"timezone": "Nowhere/At_All"})).await;
    assert!(outcome.failed, "{outcome:?}");
}
