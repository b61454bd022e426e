//! The composition root: the only file that names concrete adapters. Start order and drain order are
//! here.

mod adapters;
mod agents;
mod tools;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use actix_web::web::{Data, ServiceConfig};
use actix_web::{App, HttpServer};
use runcast_broker::{Broker, BrokerError};
use secrecy::ExposeSecret;
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use crate::agent::{Agent, Agents};
use crate::api::{self, Access, ApiKey, ApiSettings, ApiState};
use crate::clock::{Clock, SystemClock};
use crate::config::{self, Config, StoreUrl};
use crate::engine::{
    AgentLimits, Engine, FeedSettings, Ingest, Parts, Retention, Role, Settings, Sharing, TenantShare, WebhookParts,
};
use crate::ingest::Mapping;
use crate::net::guard::Guard;
use crate::run::{Backoff, Tenant};
use crate::store::{Proposal, Store, StoreError};
use crate::telemetry::Metrics;
use crate::webhook::{Client, Keys};

use agents::{all_agents, lacking};

pub use adapters::{connect_broker, migrate, open_store};
pub use agents::{missing_keys, models, providers};
pub use tools::{Tools, toolbox};

/// How many connections may wait to be accepted. The kernel's own bound, often 4,096, goes before it.
const BACKLOG: u32 = 4_096;

/// A complete Runcast: an engine and its HTTP API. A cheap handle.
#[derive(Clone)]
pub struct Runcast {
    state: Data<ApiState>,
    engine: Engine,
}

/// Puts a [`Runcast`] together. What is not given is taken from the configuration.
pub struct Builder {
    config: Config,
    store: Option<Arc<dyn Store>>,
    broker: Option<Arc<dyn Broker>>,
    agents: Vec<Arc<dyn Agent>>,
    supervisor: Option<PathBuf>,
    clock: Arc<dyn Clock>,
}

/// Why it did not start. Nothing is left running.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}{}", hint(source))]
    Listen {
        /// Which one.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The directory for the data cannot be made.
    #[error("cannot use the data directory {}: {source}", path.display())]
    Data {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The store cannot be used.
    #[error("{0}")]
    Store(#[from] StoreError),
    /// The broker cannot be used.
    #[error("the broker cannot be used: {0}")]
    Broker(#[from] BrokerError),
    /// A queue of foreign messages cannot be used.
    #[error("ingest.{name}: {source}")]
    Ingest {
        /// Its name.
        name: String,
        /// Why.
        source: BrokerError,
    },
    /// An agent's or a provider's definition does not make sense.
    #[error("{0}")]
    Agent(String),
    /// The server broke.
    #[error("the HTTP server failed: {0}")]
    Serve(#[source] io::Error),
}

fn hint(source: &io::Error) -> &'static str {
    if source.kind() == io::ErrorKind::AddrInUse {
        "; is another runcast running? choose another address with --listen"
    } else if source.kind() == io::ErrorKind::PermissionDenied {
        "; ports below 1024 need privileges"
    } else {
        ""
    }
}

impl Runcast {
    /// Begins with the default configuration: in-memory broker, SQLite file in `runcast-data`.
    #[must_use]
    pub fn builder() -> Builder {
        Builder {
            config: Config::default(),
            store: None,
            broker: None,
            agents: Vec::new(),
            supervisor: None,
            clock: Arc::new(SystemClock),
        }
    }

    /// Mounts the whole HTTP API in an actix-web application, in the scope that `config` belongs to:
    ///
    /// ```no_run
    /// # use actix_web::{App, HttpServer, web};
    /// # async fn serve(runcast: runcast::Runcast) -> std::io::Result<()> {
    /// HttpServer::new(move || {
    ///     let runcast = runcast.clone();
    ///     App::new().service(web::scope("/agents").configure(|config| runcast.configure(config)))
    /// })
    /// .bind("127.0.0.1:8080")?
    /// .run()
    /// .await
    /// # }
    /// ```
    ///
    /// The API answers every path of that scope; mount other routes of the scope before it.
    pub fn configure(&self, config: &mut ServiceConfig) {
        api::configure(config, self.state.clone());
    }

    /// The engine, for use without HTTP.
    #[must_use]
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Shuts down in good order; see [`Engine::drain`]. Closes store and broker at the end.
    pub async fn shut_down(&self, grace: Duration) {
        self.engine.drain(grace, CancellationToken::new()).await;
        self.engine.close().await;
    }
}

impl Builder {
    /// Uses this configuration. Its `listen` is not used: the embedding service listens.
    #[must_use]
    pub fn config(mut self, config: Config) -> Self {
        self.config = config;
        self
    }

    /// Uses this store.
    #[must_use]
    pub fn store(mut self, store: Arc<dyn Store>) -> Self {
        self.store = Some(store);
        self
    }

    /// Uses this broker.
    #[must_use]
    pub fn broker(mut self, broker: Arc<dyn Broker>) -> Self {
        self.broker = Some(broker);
        self
    }

    /// Adds an agent, in place of a configured one of the same name.
    #[must_use]
    pub fn agent(mut self, agent: impl Agent) -> Self {
        self.agents.push(Arc::new(agent));
        self
    }

    /// Watches over programs with the `runcast` binary at this path: configured agents of kind `process` need one.
    #[must_use]
    pub fn supervisor(mut self, runcast: impl Into<PathBuf>) -> Self {
        self.supervisor = Some(runcast.into());
        self
    }

    /// Tells the time by this clock.
    #[must_use]
    pub fn clock(mut self, clock: impl Clock) -> Self {
        self.clock = Arc::new(clock);
        self
    }

    /// Opens the store, recovers what the last process left behind, and begins to execute runs. Needs an
    /// actix system (`#[actix_web::main]`, or an `actix::System`).
    pub async fn build(self) -> Result<Runcast, StartError> {
        let state = Data::new(ApiState::new(api_settings(&self.config, false)));
        let engine = self.start(&state).await?;
        Ok(Runcast { state, engine })
    }

    /// The stages after the listener; see [`serve`].
    async fn start(self, state: &ApiState) -> Result<Engine, StartError> {
        let Self { config, store, broker, agents, supervisor, clock } = self;
        let node = config.node.clone().unwrap_or_else(node_name);
        let store = match store {
            Some(store) => store,
            None => {
                stage(state, 3, format!("opening the store {}", config.store));
                open_store(&config).await?
            }
        };
        let broker = match broker {
            Some(broker) => broker,
            None => {
                stage(state, 4, format!("connecting the broker {}", config.broker));
                connect_broker(&config, &node).await?
            }
        };
        stage(state, 5, "loading the agents".to_owned());
        let agents = all_agents(&config, agents, supervisor.as_deref()).map_err(StartError::Agent)?;
        stage(state, 6, "recovering the runs of the last process".to_owned());
        let ingest = all_ingest(&config, &agents, &node)?;
        let settings = engine_settings(&config, node);
        let lacking = lacking(&config);
        let metrics = Arc::new(Metrics::default());
        let webhooks = webhook_parts(&config);
        let parts = Parts { store, broker, agents, lacking, clock, metrics, ingest, webhooks, settings };
        let engine = Engine::start(parts).await;
        state.serve(engine.clone());
        let recovered = engine.serve().await?;
        tracing::info!(recovered, "start 7/7: ready");
        Ok(engine)
    }
}

/// Logs a stage of the start and lets `/health` tell it.
fn stage(state: &ApiState, number: u8, doing: String) {
    tracing::info!("start {number}/7: {doing}");
    state.at_stage(doing);
}

/// Serves the HTTP API until a signal, then drains. Calls `started` once runs are executed.
///
/// The order is: listen (health answers from here on), store, broker, agents, recovery, workers; and on
/// the way down: nothing new, live runs within the grace, release of the rest, streams, listener, broker,
/// store. A second signal cuts the grace short.
pub async fn serve(config: Config, started: impl FnOnce(&Config, SocketAddr, &Engine)) -> Result<(), StartError> {
    let origins: Vec<_> = config.origins.iter().map(|(key, origin)| format!("{key} ({origin})")).collect();
    let set = if origins.is_empty() { "nothing, all defaults".to_owned() } else { origins.join(", ") };
    tracing::info!(set, "start 1/7: the configuration is read");
    let listen = |source| StartError::Listen { address: config.listen, source };
    let state = Data::new(ApiState::new(api_settings(&config, true)));
    let served = state.clone();
    let workers = if config.server.workers == 0 { cores() } else { config.server.workers };
    let server = HttpServer::new(move || App::new().configure(|app| api::configure(app, served.clone())))
        .workers(workers)
        .max_connections(config.server.max_connections)
        .client_request_timeout(config.server.request_timeout)
        .keep_alive(config.server.keep_alive)
        // A token does not wait for the acknowledgement of the one before.
        .tcp_nodelay(true)
        // A viewer that has hung up is noticed at once, not at the next write.
        .h1_allow_half_closed(false)
        // By then the streams have ended.
        .shutdown_timeout(3)
        .disable_signals()
        // A thousand viewers may come back at the same moment; whom the queue has no place for waits a second.
        .backlog(BACKLOG)
        .bind(config.listen)
        .map_err(listen)?;
    let address = server.addrs().first().copied().unwrap_or(config.listen);
    let server = server.run();
    stage(&state, 2, format!("listening on {address}"));
    let handle = server.handle();
    let mut serving = actix::spawn(server);
    let stop = on_signals();
    let grace = config.worker.drain_grace;
    // This very program, on Linux also when another has taken its place on the disk.
    let itself = if cfg!(target_os = "linux") { Ok("/proc/self/exe".into()) } else { std::env::current_exe() };
    let builder = Builder { config: config.clone(), supervisor: itself.ok(), ..Runcast::builder() };
    let starting = builder.start(&state);
    let engine = match stop.asked.run_until_cancelled(starting).await {
        Some(Ok(engine)) => engine,
        Some(Err(error)) => {
            handle.stop(false).await;
            return Err(error);
        }
        None => {
            // Whatever was opened closes with the process, as at a crash.
            handle.stop(false).await;
            return Ok(());
        }
    };
    started(&config, address, &engine);
    let broken = tokio::select! {
        () = stop.asked.cancelled() => None,
        ended = &mut serving => Some(ended),
    };
    tracing::info!(grace = %humantime::format_duration(grace), "shutting down: nothing new, live runs get a grace");
    engine.drain(grace, stop.asked_again).await;
    // Who waited for a run is answered before the store closes.
    handle.stop(true).await;
    engine.close().await;
    match broken {
        Some(Ok(Err(error))) => Err(StartError::Serve(error)),
        Some(Err(error)) => Err(StartError::Serve(io::Error::other(error))),
        Some(Ok(Ok(()))) | None => {
            tracing::info!("stopped");
            Ok(())
        }
    }
}

struct StopSignals {
    asked: CancellationToken,
    asked_again: CancellationToken,
}

/// SIGTERM and SIGINT: the first asks to stop, the second to hurry.
fn on_signals() -> StopSignals {
    use tokio::signal::unix::{SignalKind, signal};
    let (asked, asked_again) = (CancellationToken::new(), CancellationToken::new());
    let tokens = [asked.clone(), asked_again.clone()];
    match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
        (Ok(mut terminate), Ok(mut interrupt)) => {
            actix::spawn(async move {
                for token in tokens {
                    tokio::select! {
                        _ = terminate.recv() => {}
                        _ = interrupt.recv() => {}
                    }
                    token.cancel();
                }
            });
        }
        (Err(error), _) | (_, Err(error)) => {
            tracing::error!(%error, "signals are not heard: only a kill stops the node")
        }
    }
    StopSignals { asked, asked_again }
}

/// The queues of foreign messages. They are taken in by nodes that execute runs; all others can read them again.
fn all_ingest(config: &Config, agents: &Agents, node: &str) -> Result<Vec<Ingest>, StartError> {
    let takes_in = config.role != config::Role::Api && config.worker.enabled;
    let ingest = config.ingest.iter().map(|(name, section)| {
        if let Some(agent) = section.agent.as_ref().filter(|agent| agents.card(agent).is_none()) {
            let known: Vec<_> = agents.cards().map(|card| card.name.as_str()).collect();
            let problem =
                format!("ingest.{name}.agent: there is no agent {agent:?} here; there are {}", known.join(", "));
            return Err(StartError::Agent(problem));
        }
        let mapping = Mapping {
            key_field: section.key_field.clone(),
            agent: section.agent.clone(),
            agent_field: section.agent_field.clone(),
            input_field: section.input_field.clone(),
            priority_field: section.priority_field.clone(),
            params: section.params.clone(),
            metadata: section.metadata.iter().cloned().collect(),
        };
        let source = takes_in.then(|| adapters::open_source(config, section, node)).transpose();
        let source = source.map_err(|source| StartError::Ingest { name: name.clone(), source })?;
        Ok(Ingest { name: name.clone(), mapping, source })
    });
    ingest.collect()
}

fn api_settings(config: &Config, own_listener: bool) -> ApiSettings {
    let default = (Tenant::default(), &config.server.api_keys);
    let others = config.tenants.iter().map(|(name, tenant)| (Tenant::new(name.as_str()), &tenant.api_keys));
    let mut keys = Vec::new();
    for (tenant, of_tenant) in [default].into_iter().chain(others) {
        let key = |key: &secrecy::SecretString| ApiKey {
            hash: Sha256::digest(key.expose_secret()).into(),
            tenant: tenant.clone(),
        };
        keys.extend(of_tenant.iter().map(key));
    }
    let access = Access { loopback_hosts_only: own_listener && keys.is_empty(), keys };
    ApiSettings {
        serves: config.role != config::Role::Worker,
        connections: config.server.connections,
        max_body: config.server.max_body,
        max_page: config.limits.max_page,
        heartbeat: config.server.heartbeat,
        docs: config.server.docs,
        access,
        models: models(config),
    }
}

/// What webhooks are made of. A store of one process can have a key of its own; those of many have to be told theirs.
fn webhook_parts(config: &Config) -> WebhookParts {
    let section = &config.webhooks;
    let keys = match (&section.key, &config.store) {
        (Some(key), _) => Keys::given(key.clone()),
        (None, StoreUrl::Sqlite { .. }) => Keys::file(config.data.join("webhook.key")),
        (None, StoreUrl::Postgres(_)) => Keys::missing(),
    };
    WebhookParts {
        keys,
        client: Client::new(Guard::new("webhooks.allow", section.allow.clone()), section.timeout),
        render: api::run_document,
        attempts: section.attempts,
        concurrency: section.concurrency,
        keep: section.keep,
    }
}

fn engine_settings(config: &Config, node: String) -> Settings {
    Settings {
        role: match config.role {
            config::Role::All => Role::All,
            config::Role::Api => Role::Api,
            config::Role::Worker => Role::Worker,
        },
        execute: config.worker.enabled,
        shared: matches!(config.store, StoreUrl::Postgres(_)),
        proposal: Proposal { mode: config.mode.to_string(), namespace: config.namespace.clone() },
        announce_window: config.feed.announce_window,
        node,
        concurrency: config.worker.concurrency,
        supervisors: if config.worker.supervisors == 0 { cores() } else { config.worker.supervisors },
        timeout: config.runs.timeout,
        max_attempts: config.runs.max_attempts,
        backoff: Backoff { base: config.runs.backoff_base, max: config.runs.backoff_max },
        flush_interval: config.journal.flush_interval,
        reserve: config.journal.reserve,
        max_unflushed: config.journal.max_unflushed,
        feed: FeedSettings {
            log_memory: config.feed.log_memory,
            ended_memory: config.feed.ended_memory,
            ended_linger: config.feed.ended_linger,
            disconnect_grace: config.feed.disconnect_grace,
        },
        lease: config.recovery.lease,
        sweep_interval: config.recovery.sweep_interval,
        schedule_grace: config.schedules.grace,
        retention: Retention {
            runs: Some(config.retention.runs).filter(|kept| !kept.is_zero()),
            threads: Some(config.retention.threads).filter(|kept| !kept.is_zero()),
            batch: config.retention.batch,
            interval: config.retention.interval,
        },
        max_input: config.limits.max_input,
        max_waiting: config.limits.max_waiting as u64,
        max_pending: config.limits.max_pending,
        sharing: sharing(config),
        max_metadata_entries: config.limits.max_metadata_entries,
    }
}

/// What tenants and agents are entitled to.
fn sharing(config: &Config) -> Sharing {
    let tenants = config.tenants.iter().map(|(name, tenant)| {
        let config::Tenant { weight, max_running, max_waiting, rate, burst, .. } = *tenant;
        (Tenant::new(name.as_str()), TenantShare { weight, max_running, max_waiting, rate, burst })
    });
    let agents = config.agents.iter().map(|(name, agent)| {
        let config::Agent { max_running, max_running_per_key, .. } = *agent;
        (name.clone(), AgentLimits { max_running, max_running_per_key })
    });
    Sharing { tenants: tenants.collect(), agents: agents.collect() }
}

/// The machine and the process: tells nodes apart in logs and events.
fn node_name() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = if host.trim().is_empty() { "node" } else { host.trim() };
    format!("{host}-{}", std::process::id())
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}
