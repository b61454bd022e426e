//! A server of a few lines, over real sockets.

use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::{Subject, ask, ask_for, options};
use crate::agent::AgentError;
use crate::agent::providers::http::{HttpProvider, ProviderOptions};

/// What the server does with a request.
pub(super) struct Reply {
    pub(super) bytes: Vec<u8>,
    /// Keeps the connection open afterwards, until the client closes it.
    pub(super) hold: bool,
    /// Sends each byte on its own.
    pub(super) slow: bool,
}

impl Reply {
    pub(super) fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self { bytes: bytes.into(), hold: false, slow: false }
    }
}

pub(super) struct Server {
    pub(super) base_url: String,
    pub(super) requests: UnboundedReceiver<String>,
    pub(super) hung_up: UnboundedReceiver<()>,
}

impl Server {
    pub(super) async fn start(reply: impl Fn(&str) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base_url = format!("http://{}/v1", listener.local_addr().unwrap());
        let (requests, seen) = unbounded_channel();
        let (hung_up, left) = unbounded_channel();
        let reply = Arc::new(reply);
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(serve(socket, reply.clone(), requests.clone(), hung_up.clone()));
            }
        });
        Self { base_url, requests: seen, hung_up: left }
    }

    /// Answers every request with `bytes`.
    pub(super) async fn says(bytes: impl Into<Vec<u8>>) -> Self {
        let bytes = bytes.into();
        Self::start(move |_| Reply::new(bytes.clone())).await
    }

    /// Says `bytes` and then nothing more.
    pub(super) async fn hangs_after(bytes: impl Into<Vec<u8>>) -> Self {
        let bytes = bytes.into();
        Self::start(move |_| Reply { hold: true, ..Reply::new(bytes.clone()) }).await
    }

    pub(super) fn options(&self) -> ProviderOptions {
        options(&self.base_url)
    }

    pub(super) fn client(&self, subject: &Subject) -> HttpProvider {
        (subject.make)(self.options()).unwrap()
    }

    /// The error of a call.
    pub(super) async fn error(&self, subject: &Subject) -> AgentError {
        ask(&self.client(subject)).await.unwrap_err()
    }

    /// The error of a call that asks for the first model there is.
    pub(super) async fn error_of_auto(&self, subject: &Subject) -> AgentError {
        ask_for(&self.client(subject), "auto").await.unwrap_err()
    }
}

async fn serve(
    mut socket: TcpStream,
    reply: Arc<impl Fn(&str) -> Reply>,
    requests: UnboundedSender<String>,
    hung_up: UnboundedSender<()>,
) {
    socket.set_nodelay(true).unwrap();
    let mut request = Vec::new();
    while !is_whole(&request) {
        if socket.read_buf(&mut request).await.unwrap_or(0) == 0 {
            return;
        }
    }
    let request = String::from_utf8(request).unwrap();
    let Reply { bytes, hold, slow } = reply(&request);
    let _ = requests.send(request);
    let mut sent = true;
    for part in bytes.chunks(if slow { 1 } else { usize::MAX }) {
        sent = sent && socket.write_all(part).await.is_ok();
        tokio::task::yield_now().await;
    }
    if sent && hold {
        let _ = socket.read(&mut [0]).await;
    }
    let _ = hung_up.send(());
}

fn is_whole(request: &[u8]) -> bool {
    let text = String::from_utf8_lossy(request);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let length = head
        .to_lowercase()
        .split_once("content-length: ")
        .map_or(0, |(_, rest)| rest.lines().next().unwrap().parse().unwrap());
    body.len() >= length
}

pub(super) fn http(status: &str, kind: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}")
}

/// The head of a streamed answer and its events, each a chunk of its own, without the end of the chunks.
pub(super) fn chunked(events: &str) -> String {
    let head =
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n";
    let chunks = events.split_inclusive("\n\n").map(|event| format!("{:x}\r\n{event}\r\n", event.len()));
    head.to_owned() + &chunks.collect::<String>()
}

/// The head of a streamed answer that ends with its connection.
pub(super) const UNTIL_CLOSED: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";
