//! An endpoint that models call as a tool. It counts its calls by their keys, and the sockets that are open to it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::model::{Request, lock, read};
use super::{eventually, soon};

/// How one call is answered.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Reply {
    /// With this text.
    Gives(&'static str),
    /// Never.
    Hangs,
    /// With this status and all that was sent.
    Echoes(u16),
    /// When so many calls are under way at once.
    Meets(usize),
}

/// An endpoint on a port of its own.
pub(crate) struct FakeTool {
    address: String,
    state: Arc<Mutex<State>>,
}

/// How a call with this body is answered.
type Choose = Box<dyn FnMut(&Value) -> Reply + Send>;

struct State {
    choose: Choose,
    calls: Vec<Request>,
    under_way: usize,
    /// The most calls that were under way at once.
    most: watch::Sender<usize>,
    open: usize,
    accepted: usize,
}

impl FakeTool {
    /// An endpoint that answers like this, one call after the other, the last for all that follow.
    pub(crate) async fn start(replies: impl IntoIterator<Item = Reply>) -> Self {
        let mut replies: VecDeque<_> = replies.into_iter().collect();
        Self::by(move |_| {
            let last = replies.len() == 1;
            let reply = if last { replies.front().copied() } else { replies.pop_front() };
            reply.unwrap_or(Reply::Hangs)
        })
        .await
    }

    /// An endpoint that chooses its answer by the body of the call.
    pub(crate) async fn by(choose: impl FnMut(&Value) -> Reply + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        let state = State {
            choose: Box::new(choose),
            calls: Vec::new(),
            under_way: 0,
            most: watch::Sender::new(0),
            open: 0,
            accepted: 0,
        };
        let state = Arc::new(Mutex::new(state));
        let shared = Arc::clone(&state);
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                {
                    let mut state = lock(&shared);
                    (state.open, state.accepted) = (state.open + 1, state.accepted + 1);
                }
                let state = Arc::clone(&shared);
                tokio::spawn(async move {
                    // Whoever hung up does not care.
                    serve(socket, &state).await.unwrap_or_default();
                    lock(&state).open -= 1;
                });
            }
        });
        Self { address, state }
    }

    /// Its host and port.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// Where it is.
    pub(crate) fn url(&self) -> String {
        format!("http://{}/act", self.address)
    }

    /// The calls so far.
    pub(crate) fn calls(&self) -> Vec<Request> {
        lock(&self.state).calls.clone()
    }

    /// How often it was called under each key.
    pub(crate) fn keys(&self) -> BTreeMap<String, usize> {
        let mut keys = BTreeMap::new();
        for call in &lock(&self.state).calls {
            *keys.entry(call.header("idempotency-key").expect("a key").to_owned()).or_default() += 1;
        }
        keys
    }

    /// How many sockets are open.
    pub(crate) fn open(&self) -> usize {
        lock(&self.state).open
    }

    /// How many sockets were ever opened.
    pub(crate) fn accepted(&self) -> usize {
        lock(&self.state).accepted
    }

    /// Waits until it was called so often.
    pub(crate) async fn until_called(&self, times: usize) {
        eventually(&format!("{times} calls of the tool"), async || (self.calls().len() >= times).then_some(())).await;
    }
}

/// Answers calls until the other side hangs up.
async fn serve(socket: TcpStream, state: &Mutex<State>) -> std::io::Result<()> {
    socket.set_nodelay(true)?;
    let (reader, mut writer) = socket.into_split();
    let mut reader = BufReader::new(reader);
    while let Some(call) = read(&mut reader).await? {
        let reply = {
            let mut state = lock(state);
            state.calls.push(call.clone());
            state.under_way += 1;
            let under_way = state.under_way;
            state.most.send_modify(|most| *most = under_way.max(*most));
            (state.choose)(&call.body)
        };
        let mut closed = [0];
        let answer = tokio::select! {
            answer = answer(state, &call, reply) => Some(answer),
            // Nobody calls again before the answer has come.
            _ = reader.read(&mut closed) => None,
        };
        lock(state).under_way -= 1;
        let Some((status, text)) = answer else { return Ok(()) };
        let head = format!("HTTP/1.1 {status} Answer\r\ncontent-length: {}\r\n\r\n", text.len());
        writer.write_all(format!("{head}{text}").as_bytes()).await?;
    }
    Ok(())
}

async fn answer(state: &Mutex<State>, call: &Request, reply: Reply) -> (u16, String) {
    match reply {
        Reply::Gives(text) => (200, text.to_owned()),
        Reply::Hangs => std::future::pending().await,
        Reply::Echoes(status) => (status, format!("you sent {} {}", call.head, call.body)),
        Reply::Meets(calls) => {
            let mut most = lock(state).most.subscribe();
            // The sender is in the state, which is there as long as this is.
            soon("calls at once", most.wait_for(|most| *most >= calls)).await.expect("a sender");
            (200, "met".to_owned())
        }
    }
}
