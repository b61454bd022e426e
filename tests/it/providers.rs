//! The protocols of providers against a server that others wrote, aimock: through the library, and by the real binary.
//! `tests/npm/install` gets it; where it cannot be had, these tests say so and pass.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use futures_util::TryStreamExt;
use runcast::agent::AgentError;
use runcast::agent::providers::http::{HttpProvider, ProviderOptions};
use runcast::agent::providers::{Chat, Finish, Piece, Provider, Timeouts, ToolCall, ToolCard, Turn};
use runcast::run::{Message, Role, Usage};
use secrecy::SecretString;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::harness::{Node, assert_promise, said, soon};

/// The protocols, as the configuration spells them, and what their base URLs end with.
const PROTOCOLS: [(&str, &str); 4] =
    [("openai", "/v1"), ("openai_responses", "/v1"), ("anthropic", "/v1"), ("gemini", "/v1beta")];

/// The server. Killed when dropped.
struct Mock {
    base: String,
    _process: Child,
    _directory: TempDir,
}

impl Mock {
    /// Starts it, if it is installed.
    async fn start() -> Option<Self> {
        let Some(home) = std::env::var_os("RUNCAST_NPM").map(PathBuf::from) else {
            assert!(std::env::var("RUNCAST_REQUIRE_SERVERS").as_deref() != Ok("1"), "RUNCAST_NPM is not set");
            eprintln!("skipped: no aimock (RUNCAST_NPM is not set; tests/run installs it where it can)");
            return None;
        };
        rustls::crypto::ring::default_provider().install_default().unwrap_or_default();
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("fixtures.json"), fixtures().to_string()).unwrap();
        let config = json!({"port": 0, "llm": {"fixtures": "fixtures.json"}});
        std::fs::write(directory.path().join("config.json"), config.to_string()).unwrap();
        let mut process = Command::new("node")
            .arg(home.join("node_modules/@copilotkit/aimock/dist/aimock-cli.js"))
            .args(["--config", "config.json"])
            .current_dir(directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("node");
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let base = soon("aimock listens", async {
            loop {
                let line = lines.next_line().await.unwrap().expect("aimock goes on");
                if let Some((_, base)) = line.split_once("listening on ") {
                    return base.trim().to_owned();
                }
            }
        })
        .await;
        // What else it says must not fill the pipe.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Some(Self { base, _process: process, _directory: directory })
    }

    fn provider(&self, protocol: &str, path: &str) -> HttpProvider {
        let long = Duration::from_secs(20);
        let options = ProviderOptions {
            name: "mock".to_owned(),
            base_url: format!("{}{path}", self.base),
            api_key: Some(SecretString::from("a key that nobody must see")),
            timeouts: Timeouts { connect: long, first_token: long, idle: long, total: 2 * long },
            prices: BTreeMap::new(),
        };
        let made = match protocol {
            "openai" => HttpProvider::openai(options),
            "openai_responses" => HttpProvider::openai_responses(options),
            "anthropic" => HttpProvider::anthropic(options),
            "gemini" => HttpProvider::gemini(options),
            other => panic!("{other}"),
        };
        made.unwrap()
    }
}

/// What it answers to whom.
fn fixtures() -> Value {
    let calls = json!([{"name": "weather", "arguments": {"city": "Zürich"}}, {"name": "time", "arguments": {}}]);
    let usage = json!({"input_tokens": 11, "output_tokens": 5});
    let words = "one two three four five six seven eight nine ten";
    json!({"fixtures": [
        {"match": {"userMessage": "greet"},
            "response": {"content": "Grüße, 世界 🦀, and so on", "reasoning": "hm", "usage": usage}},
        {"match": {"userMessage": "weather", "hasToolResult": false},
            "response": {"content": "I look.", "toolCalls": calls, "usage": usage}},
        {"match": {"userMessage": "weather", "hasToolResult": true}, "response": {"content": "It is sunny."}},
        {"match": {"userMessage": "too often"},
            "response": {"error": {"message": "slowly", "type": "rate_limit_error"}, "status": 429}},
        {"match": {"userMessage": "overload"},
            "response": {"error": {"message": "too many", "type": "overloaded_error"}, "status": 529}},
        {"match": {"userMessage": "break off"}, "response": {"content": words},
            "chunkSize": 4, "latency": 20, "truncateAfterChunks": 8},
    ]})
}

fn user(text: &str) -> Turn {
    Turn::Said(Message { role: Role::User, content: text.into() })
}

fn tool(name: &str) -> ToolCard {
    let parameters = json!({"type": "object", "properties": {"city": {"type": "string"}}});
    ToolCard { name: name.to_owned(), description: "Tells something.".to_owned(), parameters }
}

fn chat(turns: Vec<Turn>) -> Chat {
    let tools = Arc::from([tool("weather"), tool("time")]);
    Chat { model: "small".to_owned(), turns, tools, parallel_tools: true, ..Chat::default() }
}

/// The pieces until the end or the error.
async fn ask(provider: &HttpProvider, turns: Vec<Turn>) -> (Vec<Piece>, Option<AgentError>) {
    let mut pieces = Vec::new();
    let result = async {
        let mut answer = provider.chat(chat(turns)).await?;
        while let Some(piece) = answer.try_next().await? {
            pieces.push(piece);
        }
        Ok(())
    };
    let error = soon("the answer", result).await.err();
    (pieces, error)
}

fn text(pieces: &[Piece]) -> String {
    let text = |piece: &Piece| if let Piece::Text(text) = piece { Some(text.clone()) } else { None };
    pieces.iter().filter_map(text).collect()
}

#[tokio::test]
async fn each_protocol_streams_text_thoughts_and_usage() {
    let Some(mock) = Mock::start().await else { return };
    for (protocol, path) in PROTOCOLS {
        let (pieces, error) = ask(&mock.provider(protocol, path), vec![user("greet")]).await;
        assert_eq!((error, text(&pieces).as_str()), (None, "Grüße, 世界 🦀, and so on"), "{protocol}");
        assert_eq!(pieces[0], Piece::Model { name: "mock/small".to_owned(), price: None });
        assert!(pieces.contains(&Piece::Reasoning("hm".to_owned())), "{protocol}: {pieces:?}");
        let usage = Usage { input_tokens: 11, output_tokens: 5, ..Usage::default() };
        let end = [Piece::Finish(Finish::Stop), Piece::Usage(usage)];
        assert_eq!(pieces[pieces.len() - 2..], end, "{protocol}");
        assert!(pieces.iter().filter(|piece| matches!(piece, Piece::Text(_))).count() > 1, "{protocol}: in pieces");
    }
}

#[tokio::test]
async fn each_protocol_calls_tools_and_is_told_what_they_gave() {
    let Some(mock) = Mock::start().await else { return };
    for (protocol, path) in PROTOCOLS {
        let provider = mock.provider(protocol, path);
        let (pieces, error) = ask(&provider, vec![user("weather")]).await;
        assert_eq!((error, text(&pieces).as_str()), (None, "I look."), "{protocol}");
        let call = |piece: &Piece| if let Piece::Call(call) = piece { Some(call.clone()) } else { None };
        let calls: Vec<ToolCall> = pieces.iter().filter_map(call).collect();
        let echo =
            pieces.iter().find_map(|piece| if let Piece::Echo(echo) = piece { Some(echo.clone()) } else { None });
        let wanted: Vec<_> = calls.iter().map(|call| (call.name.as_str(), call.arguments.as_str())).collect();
        assert_eq!(wanted, [("weather", r#"{"city":"Zürich"}"#), ("time", "{}")], "{protocol}");
        assert!(calls[0].id != calls[1].id && !calls[0].id.is_empty(), "{protocol}");
        assert!(pieces.contains(&Piece::Finish(Finish::ToolCalls)), "{protocol}: {pieces:?}");

        let returned = |call: &ToolCall| Turn::Returned {
            call_id: call.id.clone(),
            name: call.name.clone(),
            content: "sunny".to_owned(),
            failed: false,
        };
        let results: Vec<_> = calls.iter().map(returned).collect();
        let called = Turn::Called { text: "I look.".to_owned(), calls, echo };
        let turns = [user("weather"), called].into_iter().chain(results).collect();
        let (pieces, error) = ask(&provider, turns).await;
        assert_eq!((error, text(&pieces).as_str()), (None, "It is sunny."), "{protocol}");
    }
}

#[tokio::test]
async fn each_protocol_knows_refusals_and_answers_that_break_off() {
    let Some(mock) = Mock::start().await else { return };
    for (protocol, path) in PROTOCOLS {
        let provider = mock.provider(protocol, path);
        for (asked, expected, waits) in
            [("too often", "provider_rate_limited", true), ("overload", "provider_unavailable", false)]
        {
            let (pieces, error) = ask(&provider, vec![user(asked)]).await;
            let Some(AgentError::Transient { code, message, retry_after }) = error else { panic!("{error:?}") };
            assert_eq!((code.as_str(), retry_after.is_some(), pieces.len()), (expected, waits, 0), "{protocol}");
            assert!(!message.contains("nobody must see"), "{message}");
        }
        let (pieces, error) = ask(&provider, vec![user("break off")]).await;
        let cut =
            |error: &AgentError| matches!(error, AgentError::Transient { code, .. } if code == "provider_stream_cut");
        assert!(error.as_ref().is_some_and(cut), "{protocol}: {error:?}");
        assert!(text(&pieces).starts_with("one"), "{protocol}: {pieces:?}");
    }
}

#[tokio::test]
async fn a_node_answers_by_each_protocol_and_goes_on_with_another_model() {
    let Some(mock) = Mock::start().await else { return };
    let base = &mock.base;
    let mut config = String::new();
    for (protocol, path) in PROTOCOLS {
        config += &format!(
            "[providers.{protocol}]\nprotocol = \"{protocol}\"\nbase_url = \"{base}{path}\"\napi_key = \"hush\"\n\
             prices = [\"small=0.15/0.60\"]\n[agents.on_{protocol}]\nkind = \"model\"\nmodel = \"{protocol}/small\"\n",
        );
    }
    config += "[providers.gone]\nbase_url = \"http://127.0.0.1:1/v1\"\n\
         [agents.careful]\nkind = \"model\"\nmodel = \"gone/x\"\nfallback_models = [\"gone/y\", \"anthropic/small\"]\n";
    let node = Node::start(config).await;
    let agents = PROTOCOLS.map(|(protocol, _)| format!("on_{protocol}"));
    for agent in agents.iter().map(String::as_str).chain(["careful"]) {
        let id = node.create(json!({"agent": agent, "input": "greet"})).await;
        let run = node.wait_final(&id).await;
        assert_eq!(run["output"], "Grüße, 世界 🦀, and so on", "{run}");
        // By the price of the model that answered, rounded up: 11 * 0.15 + 5 * 0.60.
        assert_eq!(run["usage"], json!({"input_tokens": 11, "output_tokens": 5, "cost_micros": 5}), "{run}");
        assert_promise(&node, &id).await;
        assert_eq!(json!(said(&node.events(&id).await)), run["output"]);
    }
}

#[tokio::test]
async fn a_provider_without_its_key_is_told_at_start_and_among_the_models() {
    let agent = |name: &str, model: &str| format!("[agents.{name}]\nkind = \"model\"\nmodel = \"{model}\"\n");
    let node = Node::start(format!(
        "[providers.answers]\nprotocol = \"openai_responses\"\n[providers.own]\nbase_url = \"http://127.0.0.1:1/v1\"\n{}{}{}{}{}",
        agent("a", "openai/small"),
        agent("b", "anthropic/small"),
        agent("c", "gemini/small"),
        agent("d", "answers/small"),
        agent("e", "own/small"),
    ))
    .await;
    let models = node.get("/v1/models").await.json();
    let card =
        |model: &str| models["data"].as_array().unwrap().iter().find(|card| card["id"] == model).unwrap().clone();
    for (provider, wanted) in [
        ("openai", "OPENAI_API_KEY"),
        ("anthropic", "ANTHROPIC_API_KEY"),
        ("gemini", "GEMINI_API_KEY"),
        ("answers", "providers.answers.api_key"),
    ] {
        let log = node.log();
        let lines: Vec<_> = log.lines().filter(|line| line.contains(&format!("no key: set {wanted}"))).collect();
        let [line] = lines[..] else { panic!("one warning about {provider}: {log}") };
        assert!(line.contains("WARN") && line.contains(&format!("provider=\"{provider}\"")), "{line}");
        let card = card(&format!("{provider}/small"));
        assert_eq!(card["ready"], false, "{card}");
        assert!(card["missing"].as_str().unwrap().contains(wanted), "{card}");
    }
    // A server of one's own may need none.
    assert_eq!(card("own/small")["ready"], true);
}
