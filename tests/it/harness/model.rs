//! A model provider that does what its script says, and counts the sockets that are open to it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

/// How one request is answered.
#[derive(Debug, Clone)]
pub(crate) enum Script {
    /// Streams `t1 `, `t2 `, … and usage, with a pause before each.
    Tokens(u64, Duration),
    /// Streams so many tokens and then nothing, for ever.
    Hang(u64),
    /// Streams so many tokens and closes the connection in the middle of its answer.
    Cut(u64),
    /// Streams so many tokens and then something that is not JSON.
    Rubbish(u64),
    /// Refuses with this status, headers (each with its line end) and message.
    Refuse(u16, &'static str, &'static str),
    /// Streams this text, word by word, and usage.
    Says(String),
    /// Streams calls of tools, each in pieces as OpenAI does, and usage.
    Calls(Vec<Wanted>),
}

/// A call of a tool that a model wants.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    pub(crate) id: String,
    pub(crate) tool: &'static str,
    pub(crate) arguments: Value,
}

/// What a call of tools, or a text, counts as, in tokens written; those read are always 11.
pub(crate) const WRITTEN: u64 = 7;

/// A provider on a port of its own.
pub(crate) struct FakeModel {
    address: String,
    state: Arc<Mutex<State>>,
}

/// How a request with this body is answered.
type Choose = Box<dyn FnMut(&Value) -> Script + Send>;

struct State {
    choose: Choose,
    requests: Vec<Request>,
    open: usize,
    closed_at: Option<Instant>,
}

/// A request that came.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) at: Instant,
    pub(crate) head: String,
    pub(crate) body: Value,
}

impl Request {
    /// The value of a header.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}

impl FakeModel {
    /// A provider that answers by these scripts, one after the other, the last for all that follow.
    pub(crate) async fn start(scripts: impl IntoIterator<Item = Script>) -> Self {
        let mut scripts: VecDeque<_> = scripts.into_iter().collect();
        Self::by(move |_| {
            let last = scripts.len() == 1;
            let script = if last { scripts.front().cloned() } else { scripts.pop_front() };
            script.unwrap_or(Script::Tokens(0, Duration::ZERO))
        })
        .await
    }

    /// A provider that chooses its answer by what it is asked: the body of the request.
    pub(crate) async fn by(choose: impl FnMut(&Value) -> Script + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        let state = State { choose: Box::new(choose), requests: Vec::new(), open: 0, closed_at: None };
        let state = Arc::new(Mutex::new(state));
        let shared = Arc::clone(&state);
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                lock(&shared).open += 1;
                let state = Arc::clone(&shared);
                tokio::spawn(async move {
                    // Whoever hung up does not care.
                    serve(socket, &state).await.unwrap_or_default();
                    let mut state = lock(&state);
                    state.open -= 1;
                    state.closed_at = Some(Instant::now());
                });
            }
        });
        Self { address, state }
    }

    /// A configuration with this provider and the agent `writer` on it, under `more`.
    pub(crate) fn config(&self, more: &str) -> String {
        let address = &self.address;
        format!(
            "{more}\n[providers.fake]\nbase_url = \"http://{address}/v1\"\napi_key = \"a key that nobody must see\"\n\
             idle_timeout = \"2s\"\nfirst_token_timeout = \"5s\"\n\
             [agents.writer]\nkind = \"model\"\nmodel = \"fake/small\"\nsystem = \"Be brief.\"\ntemperature = 0.5\n\
             max_tokens = 77\n"
        )
    }

    /// Where the provider is, as a base URL.
    pub(crate) fn base_url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    /// The requests so far.
    pub(crate) fn requests(&self) -> Vec<Request> {
        lock(&self.state).requests.clone()
    }

    /// How many sockets are open.
    pub(crate) fn open(&self) -> usize {
        lock(&self.state).open
    }

    /// When the last socket was closed.
    pub(crate) fn closed_at(&self) -> Option<Instant> {
        lock(&self.state).closed_at
    }
}

pub(super) fn lock<T>(state: &Mutex<T>) -> MutexGuard<'_, T> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Answers requests until the other side hangs up.
async fn serve(socket: TcpStream, state: &Mutex<State>) -> std::io::Result<()> {
    socket.set_nodelay(true)?;
    let (reader, mut writer) = socket.into_split();
    let mut reader = BufReader::new(reader);
    while let Some(request) = read(&mut reader).await? {
        let script = {
            let mut state = lock(state);
            let script = (state.choose)(&request.body);
            state.requests.push(request);
            script
        };
        let mut closed = [0];
        tokio::select! {
            goes_on = answer(&mut writer, script) => if !goes_on? { return Ok(()) },
            // Nobody asks again before the answer has ended.
            _ = reader.read(&mut closed) => return Ok(()),
        }
    }
    Ok(())
}

pub(super) async fn read(reader: &mut BufReader<OwnedReadHalf>) -> std::io::Result<Option<Request>> {
    let mut head = String::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).await? == 0 {
            return Ok(None);
        }
        if line == "\r\n" {
            break;
        }
        head.push_str(&line);
    }
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
    });
    let mut body = vec![0; length.unwrap_or(0)];
    reader.read_exact(&mut body).await?;
    Ok(Some(Request { at: Instant::now(), head, body: serde_json::from_slice(&body).unwrap_or_default() }))
}

/// Whether the connection goes on after the answer.
async fn answer(writer: &mut OwnedWriteHalf, script: Script) -> std::io::Result<bool> {
    let (tokens, pause) = match &script {
        Script::Tokens(tokens, pause) => (*tokens, *pause),
        Script::Hang(tokens) | Script::Cut(tokens) | Script::Rubbish(tokens) => (*tokens, Duration::ZERO),
        Script::Says(_) | Script::Calls(_) => (0, Duration::ZERO),
        Script::Refuse(status, headers, message) => {
            let body = json!({"error": {"message": message, "type": "fake_error", "code": null}}).to_string();
            let head = format!(
                "HTTP/1.1 {status} Refused\r\ncontent-type: application/json\r\n{headers}content-length: {}\r\n\r\n",
                body.len()
            );
            writer.write_all(format!("{head}{body}").as_bytes()).await?;
            return Ok(true);
        }
    };
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
    writer.write_all(head.as_bytes()).await?;
    chunk(writer, &delta(json!({"role": "assistant", "content": ""}), Value::Null)).await?;
    for number in 1..=tokens {
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        chunk(writer, &delta(json!({"content": format!("t{number} ")}), Value::Null)).await?;
    }
    match script {
        Script::Tokens(..) => end(writer, "stop", tokens).await,
        Script::Says(text) => {
            for word in text.split_inclusive(' ') {
                chunk(writer, &delta(json!({"content": word}), Value::Null)).await?;
            }
            end(writer, "stop", WRITTEN).await
        }
        Script::Calls(calls) => {
            for (index, Wanted { id, tool, arguments }) in calls.iter().enumerate() {
                let call = |call: Value| delta(json!({"tool_calls": [call]}), Value::Null);
                let begins = json!({"index": index, "id": id, "type": "function",
                    "function": {"name": tool, "arguments": ""}});
                chunk(writer, &call(begins)).await?;
                let text = arguments.to_string();
                for piece in text.as_bytes().chunks(5).map(String::from_utf8_lossy) {
                    chunk(writer, &call(json!({"index": index, "function": {"arguments": piece}}))).await?;
                }
            }
            end(writer, "tool_calls", WRITTEN).await
        }
        Script::Rubbish(_) => {
            chunk(writer, "data: {\"choices\": [ and then\n\n").await?;
            writer.write_all(b"0\r\n\r\n").await?;
            Ok(true)
        }
        Script::Hang(_) => std::future::pending().await,
        Script::Cut(_) | Script::Refuse(..) => Ok(false),
    }
}

/// Ends an answer of so many tokens; the connection goes on.
async fn end(writer: &mut OwnedWriteHalf, reason: &str, tokens: u64) -> std::io::Result<bool> {
    chunk(writer, &delta(json!({}), json!(reason))).await?;
    let usage = json!({"prompt_tokens": 11, "completion_tokens": tokens, "total_tokens": 11 + tokens});
    let last = json!({"id": "c1", "object": "chat.completion.chunk", "choices": [], "usage": usage});
    chunk(writer, &format!("data: {last}\n\n")).await?;
    chunk(writer, "data: [DONE]\n\n").await?;
    writer.write_all(b"0\r\n\r\n").await?;
    Ok(true)
}

fn delta(delta: Value, finish_reason: Value) -> String {
    let choice = json!({"index": 0, "delta": delta, "finish_reason": finish_reason});
    let chunk = json!({"id": "c1", "object": "chat.completion.chunk", "model": "small", "choices": [choice]});
    format!("data: {chunk}\n\n")
}

async fn chunk(writer: &mut OwnedWriteHalf, text: &str) -> std::io::Result<()> {
    writer.write_all(format!("{:x}\r\n{text}\r\n", text.len()).as_bytes()).await
}
