//! The connection that commands share, and how it comes back.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use redis::aio::{MultiplexedConnection, PubSub};
use redis::{AsyncConnectionConfig, Client, ClientTlsConfig, Cmd, FromRedisValue, RedisError, RedisResult};
use redis::{ScriptInvocation, TlsCertificates};
use runcast_broker::{Backoff, BrokerError, ErrorKind};
use runcast_broker_remote::Failure;
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::failure::{breaks_connection, failure};
use crate::options::RedisOptions;

/// Opens connections.
pub(crate) struct Endpoint {
    options: RedisOptions,
}

impl Endpoint {
    /// A fresh connection that has answered. Its commands have no time limit of their own.
    pub(crate) async fn connect(&self) -> Result<MultiplexedConnection, Failure> {
        self.limited(async |client: Client| {
            let config = AsyncConnectionConfig::new().set_response_timeout(None).set_connection_timeout(None);
            let mut connection = client.get_multiplexed_async_connection_with_config(&config).await?;
            redis::cmd("PING").exec_async(&mut connection).await?;
            Ok(connection)
        })
        .await
    }

    /// A fresh connection for subscriptions.
    pub(crate) async fn subscriber(&self) -> Result<PubSub, Failure> {
        self.limited(async |client: Client| client.get_async_pubsub().await).await
    }

    pub(crate) fn failure(&self, error: &RedisError) -> Failure {
        failure(error, &self.options.url)
    }

    /// Whether the files and the URL make a client at all.
    pub(crate) fn client(&self) -> Result<Client, Failure> {
        let (url, tls) = (&self.options.url, &self.options.tls);
        let read = |path: &std::path::Path| {
            std::fs::read(path).map_err(|error| Failure {
                kind: ErrorKind::Misconfigured,
                text: format!("cannot read {}: {error}", path.display()).into(),
            })
        };
        let root_cert = tls.authorities.as_deref().map(read).transpose()?;
        let client_tls = match &tls.client {
            Some((cert, key)) => Some(ClientTlsConfig { client_cert: read(cert)?, client_key: read(key)? }),
            None => None,
        };
        let client = if url.tls() {
            Client::build_with_tls(url.info(), TlsCertificates { client_tls, root_cert })
        } else {
            Client::open(url.info())
        };
        // what is wrong here is wrong in a file
        client.map_err(|error| Failure { kind: ErrorKind::Misconfigured, ..self.failure(&error) })
    }

    async fn limited<T>(&self, open: impl AsyncFnOnce(Client) -> RedisResult<T>) -> Result<T, Failure> {
        match timeout(self.options.connect_timeout, open(self.client()?)).await {
            Ok(opened) => opened.map_err(|error| self.failure(&error)),
            Err(_) => Err(Failure::transient("redis: no connection in time")),
        }
    }
}

#[derive(Clone)]
enum State {
    /// For the first time, or again after a loss that may be over in a moment: calls wait.
    Connecting,
    Up(MultiplexedConnection, u64),
    /// The last attempt failed: calls fail at once, attempts go on.
    Down(Failure),
}

/// The connection that commands share. It is replaced whenever it breaks or a command on it is not
/// answered in time. Dropping the link ends it.
pub(crate) struct Link {
    pub(crate) endpoint: Arc<Endpoint>,
    limit: Duration,
    state: watch::Receiver<State>,
    /// The number of the last connection that was found broken.
    broken: watch::Sender<u64>,
    timeouts: AtomicU64,
    stop: CancellationToken,
}

impl Link {
    /// Starts to connect, on the current runtime. Fails when the options make no sense or a certificate cannot be read.
    pub(crate) fn open(options: RedisOptions) -> Result<Self, BrokerError> {
        options.check()?;
        if options.url.tls() {
            // an error means that the process has chosen one
            let _ = rustls::crypto::ring::default_provider().install_default();
        }
        let endpoint = Arc::new(Endpoint { options });
        endpoint.client()?;
        let (state_sender, state) = watch::channel(State::Connecting);
        let (broken, broken_receiver) = watch::channel(0);
        let stop = CancellationToken::new();
        let (stopped, supervised) = (stop.clone(), Arc::clone(&endpoint));
        tokio::spawn(async move {
            stopped.run_until_cancelled(supervise(&supervised, &state_sender, broken_receiver)).await;
            // lets go of the connection
            let closed = Failure::closed();
            state_sender.send_replace(State::Down(closed));
        });
        let limit = endpoint.options.command_timeout;
        Ok(Self { endpoint, limit, state, broken, timeouts: AtomicU64::new(0), stop })
    }

    pub(crate) async fn command<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, BrokerError> {
        self.within(self.limit, async |mut connection| command.query_async(&mut connection).await).await
    }

    /// Runs a script; loads it first when the server does not know it (any more).
    pub(crate) async fn script<T: FromRedisValue>(&self, script: &ScriptInvocation<'_>) -> Result<T, BrokerError> {
        self.within(self.limit, async |mut connection| script.invoke_async(&mut connection).await).await
    }

    pub(crate) async fn ping(&self, limit: Duration) -> Result<(), BrokerError> {
        let ping = async |mut connection| redis::cmd("PING").exec_async(&mut connection).await;
        self.within(limit.min(self.limit), ping).await
    }

    /// Waits until there is a connection.
    pub(crate) async fn up(&self) {
        // an error means that the link has ended, and so will the caller
        drop(self.state.clone().wait_for(|state| matches!(state, State::Up(..))).await);
    }

    /// Ends the connection; later calls fail as closed.
    pub(crate) fn stop(&self) {
        self.stop.cancel();
    }

    async fn within<T>(
        &self,
        limit: Duration,
        call: impl AsyncFnOnce(MultiplexedConnection) -> RedisResult<T>,
    ) -> Result<T, BrokerError> {
        let deadline = Instant::now() + limit;
        let (connection, number) = self.connection(deadline).await?;
        match timeout_at(deadline, call(connection)).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => {
                if breaks_connection(&error) {
                    self.broke(number);
                }
                Err(self.endpoint.failure(&error).into())
            }
            Err(_) => {
                let timeouts = self.timeouts.fetch_add(1, Ordering::Relaxed) + 1;
                if self.broke(number) {
                    tracing::warn!(timeouts, "redis did not answer in time; the connection is replaced");
                }
                Err(Failure::transient("redis: no answer in time").into())
            }
        }
    }

    async fn connection(&self, deadline: Instant) -> Result<(MultiplexedConnection, u64), BrokerError> {
        let mut states = self.state.clone();
        let settled = timeout_at(deadline, states.wait_for(|state| !matches!(state, State::Connecting))).await;
        match settled.map(|state| state.map(|state| state.clone())) {
            Ok(Ok(State::Up(connection, number))) => Ok((connection, number)),
            Ok(Ok(State::Down(failure))) => Err(failure.into()),
            Ok(Ok(State::Connecting)) | Err(_) => Err(Failure::transient("redis: no connection yet").into()),
            Ok(Err(_)) => Err(BrokerError::closed()),
        }
    }

    /// Has the connection replaced, if it is still that one.
    fn broke(&self, number: u64) -> bool {
        self.broken.send_if_modified(|last| {
            let newer = number > *last;
            *last = number.max(*last);
            newer
        })
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Connects, for ever. Says in the log when the state changes, not at each attempt.
async fn supervise(endpoint: &Endpoint, state: &watch::Sender<State>, mut broken: watch::Receiver<u64>) {
    let url = &endpoint.options.url;
    let mut backoff = Backoff::default();
    let mut said: Option<Failure> = None;
    let mut number = 0;
    loop {
        match endpoint.connect().await {
            Ok(mut connection) => {
                number += 1;
                if said.take().is_some() || number == 1 {
                    tracing::info!(%url, "connected to redis");
                    check_server(&mut connection, endpoint.options.command_timeout).await;
                }
                backoff = Backoff::default();
                state.send_replace(State::Up(connection, number));
                if broken.wait_for(|last| *last >= number).await.is_err() {
                    return;
                }
                state.send_replace(State::Connecting);
            }
            Err(failure) => {
                if said.as_ref() != Some(&failure) {
                    tracing::warn!(%url, error = &*failure.text, "redis is away; trying again until it is back");
                    said = Some(failure.clone());
                }
                state.send_replace(State::Down(failure));
                tokio::time::sleep(backoff.next()).await;
            }
        }
    }
}

/// Warns of settings under which the server forgets messages, if it may be asked.
async fn check_server(connection: &mut MultiplexedConnection, limit: Duration) {
    let Ok(Ok(info)) = timeout(limit, redis::cmd("INFO").query_async::<String>(connection)).await else { return };
    let setting = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    if let Some(policy) = setting("maxmemory_policy")
        && policy != "noeviction"
    {
        tracing::warn!(policy, "redis may evict queues: set maxmemory-policy to noeviction");
    }
    if setting("aof_enabled") == Some("0") {
        tracing::warn!("redis keeps no append-only file: what was published last does not survive its restart");
    }
}
