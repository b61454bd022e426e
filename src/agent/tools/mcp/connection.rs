//! One connection to a server, until it breaks.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use reqwest::header::{HeaderName, HeaderValue};
use rmcp::model::{
    CallToolRequest, CallToolRequestParams, CallToolResult, ClientCapabilities, ClientConfig, ClientRequest,
    Implementation, PaginatedRequestParams, ProgressNotificationParam, ProgressToken, ServerResult, Tool,
};
use rmcp::service::{
    ClientCacheConfig, ClientInitializeError, NotificationContext, PeerRequestOptions, RequestHandle, RunningService,
    ServiceError,
};
use rmcp::transport::StreamableHttpClientTransport;
use rmcp::transport::async_rw::AsyncRwTransport;
use rmcp::transport::streamable_http_client::{StreamableHttpClientTransportConfig, StreamableHttpError};
use rmcp::{ClientHandler, RoleClient, ServiceExt as _};
use secrecy::ExposeSecret;
use serde_json::{Map, Value};
use tokio::sync::{Mutex as AsyncMutex, mpsc};
use tokio::time::{Instant, timeout};

use super::super::calling::bounded;
use super::super::{Call, ToolError};
use super::Transport;
use super::process::Group;
use super::render::render;
use crate::agent::masks::Masks;
use crate::net::{CallError, Caller};

/// How long a server may take to start and to introduce itself. Some download themselves first.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// How long it may take to tell its tools.
const LIST_TIMEOUT: Duration = Duration::from_secs(30);

/// The most tools of a server, and the most pages that it may tell them in.
const MAX_TOOLS: usize = 1_000;
const MAX_PAGES: usize = 100;

/// The most bytes of one message. Longer ones are not kept: their call runs out of time.
const MAX_MESSAGE: usize = 16 << 20;

/// Pieces of progress that may wait; more are left out while a run's viewers are behind.
const MAX_PROGRESS: usize = 64;

/// The most bytes of one of them, and of a line of the server's log.
const MAX_TEXT: usize = 1_000;

/// A connection. Dropping it ends the server's processes, or closes its session.
pub(super) struct Connection {
    service: RunningService<RoleClient, Client>,
    client: Client,
    tools: AsyncMutex<Option<(u64, Arc<[Tool]>)>>,
    since: Instant,
    /// Dropped last: nobody talks to it any more.
    _group: Option<Group>,
}

/// What hears the server.
#[derive(Clone, Default)]
struct Client(Arc<Heard>);

#[derive(Default)]
struct Heard {
    server: String,
    /// What it was given; whatever it says is masked with it.
    masks: Masks,
    /// Rises when the server says that its tools have changed.
    changes: AtomicU64,
    progress: Mutex<HashMap<ProgressToken, mpsc::Sender<String>>>,
}

impl ClientHandler for Client {
    async fn on_progress(&self, said: ProgressNotificationParam, _: NotificationContext<RoleClient>) {
        let Some(waiting) = self.0.progress.lock().get(&said.progress_token).cloned() else { return };
        let of = said.total.map(|total| format!(" of {total}")).unwrap_or_default();
        let text = said.message.unwrap_or_else(|| format!("{}{of}", said.progress));
        // Full or gone: progress is for whoever looks on, and holds up nobody.
        waiting.try_send(bounded(self.0.masks.apply(&text), MAX_TEXT)).unwrap_or_default();
    }

    async fn on_tool_list_changed(&self, _: NotificationContext<RoleClient>) {
        self.0.changes.fetch_add(1, Ordering::SeqCst);
    }

    #[expect(deprecated, reason = "servers that still send them are heard")]
    async fn on_logging_message(
        &self,
        said: rmcp::model::LoggingMessageNotificationParam,
        _: NotificationContext<RoleClient>,
    ) {
        let text = bounded(self.0.masks.apply(&said.data.to_string()), MAX_TEXT);
        tracing::debug!(server = self.0.server, text, "an mcp server logs");
    }

    fn get_info(&self) -> ClientConfig {
        ClientConfig::new(ClientCapabilities::default(), Implementation::new("runcast", env!("CARGO_PKG_VERSION")))
    }
}

impl Connection {
    /// Starts or calls a server, and introduces itself. Dropping the future ends what it has begun.
    ///
    /// # Errors
    /// For people: why it could not be connected.
    pub(super) async fn open(server: &str, transport: &Transport) -> Result<Self, String> {
        let masks = transport.masks();
        let heard = Heard { server: server.to_owned(), masks: masks.clone(), ..Heard::default() };
        let client = Client(Arc::new(heard));
        let (serving, group) = match transport {
            Transport::Program(program) => {
                let name = program.command.first().map_or("", String::as_str);
                let (group, stdin, stdout) =
                    Group::start(server, program, &masks).map_err(|error| format!("cannot start {name}: {error}"))?;
                let transport = AsyncRwTransport::new_client(stdout, stdin).with_max_line_length(MAX_MESSAGE);
                (timeout(START_TIMEOUT, client.clone().serve(transport)).await, Some(group))
            }
            Transport::Http { url, headers, guard } => {
                let caller = Caller::new(guard.clone(), START_TIMEOUT);
                let checked = guard.check(url).map_err(|refused| refused.to_string())?;
                let http = caller.client(checked.scheme() == "http").map_err(|error| error.to_string())?.clone();
                let headers = headers.iter().map(|(name, value)| {
                    let read = HeaderName::from_bytes(name.as_bytes()).ok();
                    let mut value = HeaderValue::from_str(value.expose_secret()).ok();
                    value.iter_mut().for_each(|value| value.set_sensitive(true));
                    read.zip(value).ok_or_else(|| format!("{name} cannot be a header"))
                });
                let config = StreamableHttpClientTransportConfig::with_uri(url.as_str())
                    .custom_headers(headers.collect::<Result<_, _>>()?)
                    .max_sse_event_size(MAX_MESSAGE)
                    .max_json_response_size(MAX_MESSAGE)
                    .reinit_on_expired_session(true);
                let transport = StreamableHttpClientTransport::with_client(http, config);
                (timeout(START_TIMEOUT, client.clone().serve(transport)).await, None)
            }
        };
        let service = serving
            .map_err(|_| format!("it did not introduce itself within {}", humantime::format_duration(START_TIMEOUT)))?
            .map_err(|error| {
                bounded(masks.apply(&format!("it did not introduce itself: {}", said(&error))), MAX_TEXT)
            })?;
        service.set_response_cache_config(ClientCacheConfig::disabled()).await;
        Ok(Self { service, client, tools: AsyncMutex::default(), since: Instant::now(), _group: group })
    }

    /// Whether it can still be used, as far as is known.
    pub(super) fn is_open(&self) -> bool {
        !self.service.is_closed() && !self.service.is_transport_closed()
    }

    /// How long it has been there.
    pub(super) fn age(&self) -> Duration {
        self.since.elapsed()
    }

    /// The server's tools, as it has told them since it last said that they have changed.
    ///
    /// # Errors
    /// For people: why it does not tell them.
    pub(super) async fn tools(&self) -> Result<Arc<[Tool]>, String> {
        let mut known = self.tools.lock().await;
        let changes = self.client.0.changes.load(Ordering::SeqCst);
        if let Some((at, tools)) = &*known
            && *at == changes
        {
            return Ok(Arc::clone(tools));
        }
        let listed = timeout(LIST_TIMEOUT, self.list()).await;
        let listed = listed.map_err(|_| "it does not tell its tools".to_owned())?;
        let tools: Arc<[Tool]> =
            listed.map_err(|error| bounded(self.client.0.masks.apply(&error.to_string()), MAX_TEXT))?.into();
        *known = Some((changes, Arc::clone(&tools)));
        Ok(tools)
    }

    async fn list(&self) -> Result<Vec<Tool>, ServiceError> {
        let (mut tools, mut cursor) = (Vec::new(), None);
        for _ in 0..MAX_PAGES {
            let page = self.service.list_tools(Some(PaginatedRequestParams::default().with_cursor(cursor))).await?;
            tools.extend(page.tools);
            cursor = page.next_cursor;
            if cursor.is_none() || tools.len() >= MAX_TOOLS {
                break;
            }
        }
        tools.truncate(MAX_TOOLS);
        Ok(tools)
    }

    /// Calls a tool and shows its progress. Dropping the future tells the server that nobody waits for it any more.
    pub(super) async fn call(
        &self,
        tool: &str,
        arguments: Map<String, Value>,
        call: &Call,
    ) -> Result<String, ToolError> {
        let masks = &self.client.0.masks;
        match self.ask(tool, arguments, call).await {
            Ok(given) => Ok(masks.apply(&given)),
            Err(ToolError::Permanent(why)) => Err(ToolError::Permanent(masks.apply(&why))),
            Err(other) => Err(other),
        }
    }

    async fn ask(&self, tool: &str, arguments: Map<String, Value>, call: &Call) -> Result<String, ToolError> {
        let params = CallToolRequestParams::new(tool.to_owned()).with_arguments(arguments);
        let request = ClientRequest::CallToolRequest(CallToolRequest::new(params));
        let sent = self.service.send_cancellable_request(request, PeerRequestOptions::no_options()).await;
        let mut waiting = Waiting(Some(sent.map_err(failure)?));
        let Some(handle) = &mut waiting.0 else { return Err(ToolError::Stopped) };
        let (sender, mut progress) = mpsc::channel(MAX_PROGRESS);
        let _listening = Listening::new(&self.client.0, handle.progress_token.clone(), sender);
        let answer = loop {
            tokio::select! {
                answer = &mut handle.rx => break answer,
                Some(text) = progress.recv() => call.progress(text).await?,
            }
        };
        waiting.0 = None;
        // What it said before it answered.
        while let Ok(text) = progress.try_recv() {
            call.progress(text).await?;
        }
        let answer = answer.unwrap_or(Err(ServiceError::TransportClosed)).map_err(failure)?;
        if let ServerResult::CallToolResult(result) = answer {
            given(&result)
        } else if let ServerResult::EmptyResult(_) = answer {
            Ok(String::new())
        } else if let ServerResult::InputRequiredResult(_) = answer {
            let problem = "the tool asks for more input than its arguments, which nobody can give";
            Err(ToolError::Permanent(problem.to_owned()))
        } else {
            Err(ToolError::Permanent("the server's answer is not that of a tool".to_owned()))
        }
    }
}

/// The guard's or the network's own words, if there are any; the library's are about its types.
fn said(error: &ClientInitializeError) -> String {
    let ClientInitializeError::TransportError { error: sent, .. } = error else { return error.to_string() };
    match sent.error.downcast_ref::<StreamableHttpError<reqwest::Error>>() {
        Some(StreamableHttpError::Client(error)) => CallError::of(error).to_string(),
        Some(other) => other.to_string(),
        None => error.to_string(),
    }
}

fn given(result: &CallToolResult) -> Result<String, ToolError> {
    let shown = render(result);
    match result.is_error {
        Some(true) => Err(ToolError::Permanent(if shown.is_empty() { "it did not work".to_owned() } else { shown })),
        Some(false) | None => Ok(shown),
    }
}

fn failure(error: ServiceError) -> ToolError {
    if let ServiceError::McpError(error) = error {
        ToolError::Permanent(error.message.into_owned())
    } else if let ServiceError::TransportClosed = error {
        ToolError::Transient("the server went away; the call may have been made".to_owned())
    } else if let ServiceError::TransportSend(_) = error {
        // Its sources may quote what was sent.
        ToolError::Transient("the server cannot be reached".to_owned())
    } else {
        ToolError::Permanent(error.to_string())
    }
}

/// A call under way. Dropped before its answer, the server is told.
struct Waiting(Option<RequestHandle<RoleClient>>);

impl Drop for Waiting {
    fn drop(&mut self) {
        if let (Some(handle), Ok(runtime)) = (self.0.take(), tokio::runtime::Handle::try_current()) {
            runtime.spawn(async move {
                let told = handle.cancel(Some("nobody waits for it any more".to_owned())).await;
                // The server is gone, and the call with it.
                told.unwrap_or_default();
            });
        }
    }
}

/// Hears the progress of one call while it is there.
struct Listening<'a> {
    heard: &'a Heard,
    token: ProgressToken,
}

impl<'a> Listening<'a> {
    fn new(heard: &'a Heard, token: ProgressToken, sender: mpsc::Sender<String>) -> Self {
        heard.progress.lock().insert(token.clone(), sender);
        Self { heard, token }
    }
}

impl Drop for Listening<'_> {
    fn drop(&mut self) {
        self.heard.progress.lock().remove(&self.token);
    }
}
