//! One kept-alive HTTP/1.1 connection, with as little between the load and its socket as there can be.

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::cli::sse::{Frame, Parser};

/// Where requests go.
#[derive(Debug, Clone)]
pub(super) struct Target {
    /// Host and port.
    pub(super) authority: String,
    /// What comes before `/v1`.
    pub(super) prefix: String,
    /// The API key.
    pub(super) key: Option<String>,
}

/// A connection; opened by the first request, and again after one that failed.
#[derive(Default)]
pub(super) struct Connection {
    sender: Option<SendRequest<Full<Bytes>>>,
}

impl Connection {
    /// Sends a request; the answer, whose status is a success. Its body must be read to its end before
    /// the next request.
    pub(super) async fn send(
        &mut self,
        target: &Target,
        method: Method,
        path: &str,
        body: Option<Bytes>,
    ) -> Result<Response<Incoming>, String> {
        let mut kept = self.sender.take();
        if let Some(sender) = &mut kept
            && sender.ready().await.is_err()
        {
            kept = None;
        }
        let mut sender = match kept {
            Some(sender) => sender,
            None => connect(target).await?,
        };
        let mut request =
            Request::builder().method(method).uri(format!("{}{path}", target.prefix)).header(HOST, &target.authority);
        if let Some(key) = &target.key {
            request = request.header(AUTHORIZATION, format!("Bearer {key}"));
        }
        request = match body {
            Some(_) => request.header(CONTENT_TYPE, "application/json"),
            None => request.header(ACCEPT, "text/event-stream"),
        };
        let request = request.body(Full::new(body.unwrap_or_default())).map_err(|error| error.to_string())?;
        let response = sender.send_request(request).await.map_err(|error| format!("request: {error}"))?;
        if !response.status().is_success() {
            let status = response.status();
            let body = response.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
            let problem: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
            return Err(format!("status {status}: {}", problem["code"].as_str().unwrap_or("no code")));
        }
        self.sender = Some(sender);
        Ok(response)
    }

    /// Starts a run; its id.
    pub(super) async fn create(&mut self, target: &Target, body: Bytes) -> Result<String, String> {
        #[derive(serde::Deserialize)]
        struct Created {
            id: String,
        }
        let response = self.send(target, Method::POST, "/v1/runs", Some(body)).await?;
        let body = response.into_body().collect().await.map_err(|error| self.broke(&error))?.to_bytes();
        serde_json::from_slice::<Created>(&body).map(|run| run.id).map_err(|error| format!("created: {error}"))
    }

    /// Gives the events of a stream to `each` until it has ended, or until `each` says that it is enough.
    pub(super) async fn events(
        &mut self,
        stream: Response<Incoming>,
        mut each: impl FnMut(Frame<'_>) -> bool,
    ) -> Result<Response<Incoming>, String> {
        let (mut parser, mut stream, mut enough) = (Parser::default(), stream, false);
        while !enough && let Some(piece) = stream.body_mut().frame().await {
            let piece = piece.map_err(|error| self.broke(&error))?;
            if let Some(piece) = piece.data_ref() {
                parser.feed(piece, |frame| enough |= each(frame)).map_err(|error| self.broke(&error))?;
            }
        }
        Ok(stream)
    }

    /// The connection is no good any more.
    pub(super) fn close(&mut self) {
        self.sender = None;
    }

    fn broke(&mut self, error: &dyn std::error::Error) -> String {
        self.close();
        format!("stream: {error}")
    }
}

async fn connect(target: &Target) -> Result<SendRequest<Full<Bytes>>, String> {
    let refused = |error: std::io::Error| match error.raw_os_error() {
        // EMFILE, the same number on every Linux.
        Some(24) => "connect: too many open files; raise the limit with ulimit -n".to_owned(),
        _ => format!("connect: {error}"),
    };
    let socket = TcpStream::connect(&target.authority).await.map_err(refused)?;
    socket.set_nodelay(true).map_err(|error| format!("connect: {error}"))?;
    let (sender, connection) = handshake(TokioIo::new(socket)).await.map_err(|error| format!("handshake: {error}"))?;
    // Ends with the connection; what breaks it shows in the requests.
    tokio::spawn(async move { connection.await.unwrap_or_default() });
    Ok(sender)
}
