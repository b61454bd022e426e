//! A connection, how it comes back, and the channels that calls share.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use lapin::options::{ConfirmSelectOptions, QueueDeclareOptions};
use lapin::tcp::{AMQPUriTcpExt, RustlsConnector, RustlsConnectorConfig};
use lapin::types::{FieldTable, ShortString};
use lapin::uri::AMQPScheme;
use lapin::{Channel, Connection, ConnectionProperties, Event};
use parking_lot::Mutex;
use runcast_broker::{Backoff, BrokerError, ErrorKind};
use runcast_broker_remote::Failure;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::sync::watch;
use tokio::time::{Instant, interval, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::failure::failure;
use crate::options::AmqpOptions;

/// How often a connection is asked whether it lives, besides its telling when it does not.
const LOOK: Duration = Duration::from_secs(1);

/// Opens connections.
pub(crate) struct Endpoint {
    options: AmqpOptions,
    /// What the connections are called on the server.
    name: String,
}

impl Endpoint {
    pub(crate) fn new(options: AmqpOptions, name: String) -> Self {
        Self { options, name }
    }

    pub(crate) fn failure(&self, error: &lapin::Error) -> Failure {
        failure(error, &self.options.url)
    }

    async fn connect(&self, role: &str) -> Result<Connection, Failure> {
        let tls = self.tls()?;
        let mut uri = self.options.url.uri().clone();
        uri.query.heartbeat = Some(u16::try_from(self.options.heartbeat.as_secs()).unwrap_or(u16::MAX));
        let properties = ConnectionProperties::default().with_connection_name(format!("{} ({role})", self.name).into());
        let runtime = lapin::runtime::default_runtime().map_err(|error| self.failure(&error))?;
        // the driver would add the authorities of the system to those given: it opens the line only
        let connected = Connection::connector(
            uri,
            runtime,
            async move |mut uri, runtime| {
                uri.scheme = AMQPScheme::AMQP;
                let stream = uri.connect_async(&runtime).await?;
                match &tls {
                    None => Ok(stream),
                    Some(tls) => Ok(stream.into_rustls(tls, &uri.authority.host).await?),
                }
            },
            properties,
        );
        match timeout(self.options.connect_timeout, connected).await {
            Ok(connected) => connected.map_err(|error| self.failure(&error)),
            Err(_) => Err(Failure::transient("rabbitmq: no connection in time")),
        }
    }

    /// Reads the certificates; whether they make sense at all.
    pub(crate) fn tls(&self) -> Result<Option<RustlsConnector>, Failure> {
        if !self.options.url.tls() {
            return Ok(None);
        }
        let tls = &self.options.tls;
        let wrong = |path: &std::path::Path, error: &dyn std::fmt::Display| {
            Failure::misconfigured(&format!("cannot read {}: {error}", path.display()))
        };
        let certificates = |path: &std::path::Path| -> Result<Vec<CertificateDer<'static>>, Failure> {
            let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
            let read = read.map_err(|error| wrong(path, &error))?;
            if read.is_empty() { Err(wrong(path, &"no certificate in it")) } else { Ok(read) }
        };
        let system = |error: std::io::Error| Failure::misconfigured(&format!("cannot set up tls: {error}"));
        let roots = match &tls.authorities {
            Some(path) => RustlsConnectorConfig::default().with_parsable_certificates(certificates(path)?),
            None => RustlsConnectorConfig::new_with_native_certs().map_err(system)?,
        };
        let connector = match &tls.client {
            Some((chain, key)) => {
                let key_der = PrivateKeyDer::from_pem_file(key).map_err(|error| wrong(key, &error))?;
                roots.connector_with_single_cert(certificates(chain)?, key_der)
            }
            None => roots.connector_with_no_client_auth(),
        };
        connector.map(Some).map_err(system)
    }
}

/// A connection that was open when it was handed out.
#[derive(Clone)]
pub(crate) struct Session {
    pub(crate) connection: Arc<Connection>,
    pub(crate) number: u64,
}

#[derive(Clone)]
enum State {
    /// For the first time, or again after a loss that may be over in a moment: calls wait.
    Connecting,
    Up(Session),
    /// The last attempt failed: calls fail at once, attempts go on.
    Down(Failure),
}

/// One connection, which is replaced whenever it breaks or a call on it is not answered in time.
/// Dropping the link ends it.
pub(crate) struct Link {
    pub(crate) endpoint: Arc<Endpoint>,
    pub(crate) limit: Duration,
    state: watch::Receiver<State>,
    /// The number of the last connection that was found broken.
    broken: watch::Sender<u64>,
    stop: CancellationToken,
}

impl Link {
    /// Starts to connect, on the current runtime. `role` names it in the log and on the server.
    pub(crate) fn new(endpoint: Arc<Endpoint>, role: &'static str) -> Arc<Self> {
        let (state_sender, state) = watch::channel(State::Connecting);
        let (broken, broken_receiver) = watch::channel(0);
        let stop = CancellationToken::new();
        let (stopped, supervised) = (stop.clone(), Arc::clone(&endpoint));
        tokio::spawn(async move {
            stopped.run_until_cancelled(supervise(&supervised, role, &state_sender, broken_receiver)).await;
            let closed = Failure::closed();
            let last = state_sender.send_replace(State::Down(closed));
            if let State::Up(session) = last {
                close(&session).await;
            }
        });
        let limit = endpoint.options.command_timeout;
        Arc::new(Self { endpoint, limit, state, broken, stop })
    }

    /// Waits until there is a connection, or none for another kind of reason than the one that is `known`: the reason for
    /// which a server hangs up may get lost with the connection, and be seen at a later attempt.
    pub(crate) async fn up(&self, known: ErrorKind) {
        let news = |state: &State| match state {
            State::Up(_) => true,
            State::Down(failure) => failure.kind != known,
            State::Connecting => false,
        };
        // an error means that the link has ended, and so will the caller
        drop(self.state.clone().wait_for(news).await);
    }

    /// Ends the connection; later calls fail as closed.
    pub(crate) fn stop(&self) {
        self.stop.cancel();
    }

    /// What `call` gives within the time limit.
    pub(crate) async fn within<T>(
        &self,
        limit: Duration,
        call: impl AsyncFnOnce(Session) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let deadline = Instant::now() + limit;
        let session = self.session(deadline).await?;
        let blocked = || Failure::transient("rabbitmq has raised an alarm and takes no messages");
        let status = session.connection.status().clone();
        if status.blocked() {
            return Err(blocked());
        }
        let number = session.number;
        match timeout_at(deadline, call(session)).await {
            Ok(done) => {
                if done.is_err() && !status.connected() {
                    self.broke(number);
                }
                done
            }
            // there is nothing wrong with the connection, and the next one would be blocked as well
            Err(_) if status.blocked() => Err(blocked()),
            Err(_) => {
                // who asks for more haste than others must not cost them their deliveries
                if limit >= self.limit && self.broke(number) {
                    tracing::warn!("rabbitmq did not answer in time; the connection is replaced");
                }
                Err(Failure::transient("rabbitmq: no answer in time"))
            }
        }
    }

    pub(crate) async fn session(&self, deadline: Instant) -> Result<Session, Failure> {
        let mut states = self.state.clone();
        let settled = timeout_at(deadline, states.wait_for(|state| !matches!(state, State::Connecting))).await;
        match settled.map(|state| state.map(|state| state.clone())) {
            Ok(Ok(State::Up(session))) => Ok(session),
            Ok(Ok(State::Down(failure))) => Err(failure),
            Ok(Ok(State::Connecting)) | Err(_) => Err(Failure::transient("rabbitmq: no connection yet")),
            Ok(Err(_)) => Err(Failure::closed()),
        }
    }

    /// Has the connection replaced, if it is still that one.
    pub(crate) fn broke(&self, number: u64) -> bool {
        self.broken.send_if_modified(|last| {
            let newer = number > *last;
            *last = number.max(*last);
            newer
        })
    }

    pub(crate) fn failure(&self, error: &lapin::Error) -> Failure {
        self.endpoint.failure(error)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Says goodbye, if the server listens.
async fn close(session: &Session) {
    if !session.connection.status().blocked() {
        let goodbye = session.connection.close(200, "closed".into());
        drop(timeout(Duration::from_secs(1), goodbye).await);
    }
}

/// Connects, for ever. Says in the log when the state changes, not at each attempt.
async fn supervise(
    endpoint: &Endpoint,
    role: &'static str,
    state: &watch::Sender<State>,
    mut broken: watch::Receiver<u64>,
) {
    let url = &endpoint.options.url;
    let mut backoff = Backoff::default();
    let mut said: Option<Failure> = None;
    let mut number = 0;
    loop {
        match endpoint.connect(role).await {
            Ok(connection) => {
                number += 1;
                if said.take().is_some() || number == 1 {
                    tracing::info!(%url, role, "connected to rabbitmq");
                }
                let session = Session { connection: Arc::new(connection), number };
                state.send_replace(State::Up(session.clone()));
                let since = Instant::now();
                let gone = tokio::select! {
                    gone = broken.wait_for(|last| *last >= number) => gone.is_err(),
                    () = ended(&session.connection, role) => false,
                };
                if gone {
                    return;
                }
                state.send_replace(State::Connecting);
                // one that breaks at once is no success
                if since.elapsed() > LOOK {
                    backoff = Backoff::default();
                } else {
                    tokio::time::sleep(backoff.next()).await;
                }
            }
            Err(failure) => {
                if said.as_ref() != Some(&failure) {
                    let error = &*failure.text;
                    tracing::warn!(%url, role, error, "rabbitmq is away; trying again until it is back");
                    said = Some(failure.clone());
                }
                state.send_replace(State::Down(failure));
                tokio::time::sleep(backoff.next()).await;
            }
        }
    }
}

/// Returns when the connection has ended. Logs its alarms.
async fn ended(connection: &Connection, role: &'static str) {
    let mut events = std::pin::pin!(connection.events_listener());
    let mut look = interval(LOOK);
    while connection.status().connected() {
        let event = tokio::select! {
            event = events.next() => event,
            _ = look.tick() => continue,
        };
        match event {
            Some(Event::ConnectionBlocked(reason)) => {
                tracing::warn!(role, reason, "rabbitmq has raised an alarm and takes no messages");
            }
            Some(Event::ConnectionUnblocked) => tracing::info!(role, "rabbitmq takes messages again"),
            Some(Event::Error(_)) | None => return,
            Some(_) => {}
        }
    }
}

/// A channel that calls share; another takes its place when it is closed.
pub(crate) struct Lane {
    pub(crate) link: Arc<Link>,
    confirms: bool,
    open: tokio::sync::Mutex<Option<Arc<Open>>>,
}

/// A channel that was open when it was handed out.
pub(crate) struct Open {
    number: u64,
    pub(crate) channel: Channel,
    /// What was declared on it, and when.
    declared: Mutex<HashMap<ShortString, Instant>>,
}

impl Lane {
    pub(crate) fn new(link: &Arc<Link>, confirms: bool) -> Self {
        Self { link: Arc::clone(link), confirms, open: tokio::sync::Mutex::default() }
    }

    /// What `call` gives within the time limit of the link.
    pub(crate) async fn call<T>(&self, call: impl AsyncFnOnce(&Open) -> lapin::Result<T>) -> Result<T, BrokerError> {
        self.call_within(self.link.limit, call).await
    }

    pub(crate) async fn call_within<T>(
        &self,
        limit: Duration,
        call: impl AsyncFnOnce(&Open) -> lapin::Result<T>,
    ) -> Result<T, BrokerError> {
        let done = self.link.within(limit, async |session| {
            let called = async {
                let open = self.open(session).await?;
                call(&open).await
            };
            called.await.map_err(|error| self.link.failure(&error))
        });
        Ok(done.await?)
    }

    async fn open(&self, session: Session) -> lapin::Result<Arc<Open>> {
        let mut current = self.open.lock().await;
        if let Some(open) = &*current
            && open.number == session.number
            && open.channel.status().connected()
        {
            return Ok(Arc::clone(open));
        }
        *current = None;
        let channel = session.connection.create_channel().await?;
        if self.confirms {
            channel.confirm_select(ConfirmSelectOptions::default()).await?;
        }
        let open = Arc::new(Open { number: session.number, channel, declared: Mutex::default() });
        *current = Some(Arc::clone(&open));
        Ok(open)
    }
}

impl Open {
    /// Declares a durable queue, unless that was done on this channel less than `fresh` ago.
    pub(crate) async fn declare(
        &self,
        queue: &ShortString,
        arguments: impl FnOnce() -> FieldTable,
        fresh: Duration,
    ) -> lapin::Result<()> {
        let known = self.declared.lock().get(queue).is_some_and(|since| since.elapsed() < fresh);
        if !known {
            let since = Instant::now();
            self.channel.queue_declare(queue.clone(), DURABLE, arguments()).await?;
            self.declared.lock().insert(queue.clone(), since);
        }
        Ok(())
    }

    /// Has everything declared again next time.
    pub(crate) fn forget_all(&self) {
        self.declared.lock().clear();
    }

    /// Runs `once` unless it has run on this channel under that name.
    pub(crate) async fn once(
        &self,
        name: &str,
        once: impl AsyncFnOnce(&Channel) -> lapin::Result<()>,
    ) -> lapin::Result<()> {
        if !self.declared.lock().contains_key(name) {
            once(&self.channel).await?;
            self.declared.lock().insert(name.into(), Instant::now());
        }
        Ok(())
    }
}

/// How queues that stay are declared.
pub(crate) const DURABLE: QueueDeclareOptions =
    QueueDeclareOptions { passive: false, durable: true, exclusive: false, auto_delete: false, nowait: false };
