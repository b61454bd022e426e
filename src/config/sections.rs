//! The sections of the configuration: every key with its meaning, its default and the reason for it.
//!
//! The comments here are the documentation of the keys, in the code, in `runcast.example.toml` and nowhere else.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use secrecy::SecretString;

use super::{
    codecs::{Decimal, GIB, Int, KIB, List, MIB, OneOf, Optional, Size, Span, Text, Toggle},
    faults::Origin,
    follow_ups::FollowUps,
    parsed::{
        ADDRESS, ALLOWED, BROKER, ENDPOINT, FILLED, HTTP_URL, JSON, LABEL, MODEL, NAMESPACE, NODE, OBJECT, PATH, PIN,
        PRICE, QUEUES, STORE, Secret, SecretPair, TEMPLATE, WhichRole, WorkerSecret,
    },
    parts::{Entry, section},
    values::{
        AgentKind, BrokerUrl, FollowUp, HttpMethod, IngestKind, LogFormat, Mode, ModelPrice, ModelRef, Protocol, Role,
        ServiceUrl, StoreUrl, Synchronous, ToolKind,
    },
};
use crate::agent::tools::CutOff;
use crate::net::guard::Allowed;
use crate::thread::OnBusy;

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

const MINUTE: Duration = s(60);
const HOUR: Duration = s(3_600);
const DAY: Duration = s(86_400);
const YEAR: Duration = s(31_557_600);

section! {
    /// The configuration of a node. Everything has a default: a node starts without any file.
    pub struct Config {
        /// The address that the HTTP API listens on. The default is reachable from this machine alone, because a node
        /// without API keys obeys everyone; any other address needs server.api_keys. Port 0 takes any free port.
        pub listen: std::net::SocketAddr = std::net::SocketAddr::from(([127, 0, 0, 1], 7070)) => ADDRESS;
        /// The directory of all files that the node writes; made if missing. A relative path starts at the working
        /// directory, so that a first try leaves everything in one place that is easy to delete.
        pub data: PathBuf = "runcast-data".into() => PATH;
        /// What the installation is for: "local" or "production", which needs API keys whatever the address. All nodes
        /// have to agree; a worker that does not takes no runs.
        pub mode: Mode = Mode::Local => OneOf(Mode::ALL);
        /// What this node does: serve the API, execute runs, or both. Splitting them needs a broker and a store that
        /// several nodes can share, hence one process for both.
        pub role: Role = Role::All => WhichRole;
        /// This node's name in logs, events and GET /v1/nodes. Machine and process id when not set; no two living
        /// nodes may share one.
        pub node: Option<String> = None => Optional(NODE);
        /// What carries wake-ups, live events and signals between nodes. "memory" needs no service and stays inside
        /// this process; runs survive its end all the same, because the store keeps them. "redis://" and "amqp://"
        /// URLs, with an s for TLS, connect many nodes and need a store that they share.
        pub broker: BrokerUrl = BrokerUrl::Memory => BROKER;
        /// Stands in every key, queue and topic of the broker, so that several installations can share one. All nodes
        /// have to agree.
        pub namespace: String = "runcast".to_owned() => NAMESPACE;
        /// What keeps the runs. "sqlite" is the file runcast.db in the data directory, "sqlite:PATH" another file; it
        /// needs no service, and one process at a time may use it. "postgres://" URLs are for many.
        pub store: StoreUrl = StoreUrl::Sqlite { path: None } => STORE;
    }
    parts {
        /// The HTTP server.
        pub server: Server;
        /// What one request may ask for.
        pub limits: Limits;
        /// The execution of runs on this node.
        pub worker: Worker;
        /// What holds for a run that does not say otherwise.
        pub runs: Runs;
        /// How the events of live runs reach the store.
        pub journal: Journal;
        /// The SQLite store.
        pub sqlite: Sqlite;
        /// The PostgreSQL store.
        pub postgres: Postgres;
        /// The Redis broker.
        pub redis: Redis;
        /// The RabbitMQ broker.
        pub amqp: Amqp;
        /// The logs of runs that viewers read from memory.
        pub feed: Feed;
        /// The search for runs that were left behind.
        pub recovery: Recovery;
        /// Schedules.
        pub schedules: Schedules;
        /// How long what has ended is kept.
        pub retention: Retention;
        /// What is told to URLs.
        pub webhooks: Webhooks;
        /// The node's own log.
        pub log: Log;
        /// The model providers by name; `openai` is always there.
        pub providers: BTreeMap<String, Provider>;
        /// The tools by name, for agents to name in their list of tools.
        pub tools: BTreeMap<String, Tool>;
        /// The MCP servers by name, for agents to name in their list of tools.
        pub mcp: BTreeMap<String, Mcp>;
        /// The agents by name, besides the built-in ones.
        pub agents: BTreeMap<String, Agent>;
        /// The tenants by name, besides `default`, who holds the keys of server.api_keys.
        pub tenants: BTreeMap<String, Tenant>;
        /// The queues of foreign producers by name, whose messages become runs.
        pub ingest: BTreeMap<String, Ingest>;
    }
    beside {
        /// The model that the environment names in `OPENAI_MODEL`, for the built-in agent; never empty.
        pub openai_model: Option<String>;
        /// Where each key came from, by its path such as `server.heartbeat`; keys at their default are missing.
        pub origins: BTreeMap<String, Origin>;
    }
}

section! {
    /// The HTTP server.
    pub struct Server {
        /// Threads that serve HTTP. 0 is one for each core, which is right unless other programs share the machine.
        pub workers: usize = 0 => Int(0, 1_024);
        /// Connections that each of these threads keeps open; more have to wait. An idle viewer costs some 11 KB, so
        /// the default stops at about 275 MB a thread. The limit of open files of the process has to allow it.
        pub max_connections: usize = 25_000 => Int(1, 1_000_000);
        /// How long a client may take to send the head of a request. Long enough for a poor mobile link, short enough
        /// that clients that send nothing do not use up the connections. The clock behind it ticks every 500 ms.
        pub request_timeout: Duration = s(10) => Span(s(1), s(600));
        /// How long an idle connection stays open for the next request. More than the 60 s for which common load
        /// balancers keep theirs: otherwise they send requests into connections that are just being closed.
        pub keep_alive: Duration = s(75) => Span(s(1), HOUR);
        /// The largest request body. Room for an input of limits.max_input in JSON, which escapes some characters.
        pub max_body: usize = 2 * MIB => Size(KIB, GIB);
        /// How long a stream may be silent before a comment is sent. Below the 30 s and 60 s after which proxies give a
        /// silent connection up; viewers that are gone are noticed within two of these.
        pub heartbeat: Duration = s(15) => Span(s(1), MINUTE);
        /// The keys that clients may use, as "Authorization: Bearer KEY" or "x-api-key: KEY". Empty lets everyone in
        /// and is refused unless the node listens on loopback. Several keys at once make it possible to change them one
        /// by one. Better "env:NAME" or "file:PATH" than the key itself.
        pub api_keys: Vec<SecretString> = Vec::new() => List(Secret(16));
        /// Whether clients are served. "false" answers every request under /v1 with 503, while runs go on and /health,
        /// /ready and /metrics answer: for maintenance.
        pub connections: bool = true => Toggle;
        /// Whether the page /docs is served, from which the API can be read and tried. It shows nothing that
        /// /openapi.json does not.
        pub docs: bool = true => Toggle;
    }
}

section! {
    /// What one request may ask for. These bounds keep memory and answers small whatever clients send.
    pub struct Limits {
        /// The largest input of a run. Some 250,000 tokens of text, more than most models take.
        pub max_input: usize = MIB => Size(1, GIB);
        /// Runs that may be scheduled or queued at once; a request for one more is answered with 429. Stops a client
        /// that runs wild before the disk is full, far above what a healthy node has waiting.
        pub max_waiting: usize = 100_000 => Int(1, 100_000_000);
        /// Runs that may wait in one thread; a request for one more is answered with 429. Far above what people do.
        pub max_pending: usize = 100 => Int(1, 10_000);
        /// Entries of the metadata of one run. Metadata is for looking runs up, the input for what they work on.
        pub max_metadata_entries: usize = 32 => Int(0, 1_024);
        /// Items of one page of a list. Larger pages hold a reader of the store for long.
        pub max_page: usize = 200 => Int(1, 10_000);
    }
}

section! {
    /// The execution of runs on this node.
    pub struct Worker {
        /// Whether runs are executed. "false" leaves them queued: for maintenance, or for a node that only answers.
        pub enabled: bool = true => Toggle;
        /// Runs that are executed at once; the others wait in their queue. Runs mostly wait for their model, so it is
        /// far above the number of cores; what one run holds in memory is bounded by journal and feed.
        pub concurrency: usize = 1_024 => Int(1, 1_000_000);
        /// Threads that the runs are spread over. 0 is one for each core.
        pub supervisors: usize = 0 => Int(0, 1_024);
        /// How long a node that is told to stop goes on with its runs; then it releases them, to be taken up again at
        /// no cost in attempts. The default is what Kubernetes allows before it kills: set both together. "0s" releases
        /// at once.
        pub drain_grace: Duration = s(30) => Span(Duration::ZERO, HOUR);
    }
}

section! {
    /// What holds for a run unless its agent or its request says otherwise.
    pub struct Runs {
        /// How long a run may take before it fails (timeout_ms in a request). An hour is more than nearly every run
        /// needs, and an end to those that hang.
        pub timeout: Duration = HOUR => Span(ms(1), s(30 * 86_400));
        /// How often a run may fail before it stays failed. Two more tries get over most troubles of a provider; more
        /// of them mostly cost money. 1 never tries again.
        pub max_attempts: u32 = 3 => Int(1, 100);
        /// The wait before the second attempt. It grows with each further one, so that a provider in trouble gets a
        /// rest.
        pub backoff_base: Duration = s(1) => Span(ms(1), HOUR);
        /// The longest wait between two attempts. A minute outlasts the usual rate limits, which count by the minute.
        pub backoff_max: Duration = MINUTE => Span(ms(1), DAY);
    }
}

section! {
    /// How the events of live runs reach the store. Tokens are shown at once and stored in batches.
    pub struct Journal {
        /// How long tokens may wait to be stored together with others. It bounds what a crash can take back from a
        /// viewer; the tokens of all runs that came meanwhile share a commit.
        pub flush_interval: Duration = ms(10) => Span(ms(1), s(1));
        /// Numbers of events that each commit of a run reserves. Nothing beyond them is shown while the store is slow,
        /// and the next attempt after a crash starts behind them. The default is more than a model says between two
        /// commits.
        pub reserve: u64 = 1_024 => Int(64, 65_536);
        /// What a run may have shown but not stored; more is stored without waiting for flush_interval. It bounds the
        /// memory that a slow store can cost, run by run.
        pub max_unflushed: usize = 256 * KIB => Size(KIB, GIB);
    }
}

section! {
    /// The SQLite store.
    pub struct Sqlite {
        /// How sure a commit is. "normal" survives the death of the process (kill -9) and may lose the last commits
        /// when the power goes; "full" does not lose them, for one more flush of the disk a commit.
        pub synchronous: Synchronous = Synchronous::Normal => OneOf(Synchronous::ALL);
        /// Connections for reading: lists, histories, late viewers. Writing has one of its own and never waits for
        /// them.
        pub readers: usize = 2 => Int(1, 64);
    }
}

section! {
    /// The PostgreSQL store.
    pub struct Postgres {
        /// Connections that this node opens at the most. Writes of many runs share three, so a few are enough; the
        /// server's own max_connections has to allow them for all nodes.
        pub connections: usize = 10 => Int(4, 1_000);
        /// How long it may take to connect, with TLS and login.
        pub connect_timeout: Duration = s(5) => Span(ms(100), MINUTE);
        /// How long a query may take; then its connection is dropped. It bounds how long a server that has stalled can
        /// hold up a caller. Shorter than recovery.lease, or no lease could be extended in time.
        pub query_timeout: Duration = s(5) => Span(ms(100), MINUTE);
        /// Whether a node brings the schema up to date when it starts. "false" leaves that to the command runcast
        /// migrate, for teams that do it apart, or with another login.
        pub migrate: bool = true => Toggle;
        /// A PEM file with the authorities that may vouch for the server, instead of those of the system.
        pub authorities: Option<PathBuf> = None => Optional(PATH);
        /// A PEM file with this client's certificate chain, for servers that ask for one. Goes with key.
        pub certificate: Option<PathBuf> = None => Optional(PATH);
        /// A PEM file with the private key of certificate.
        pub key: Option<PathBuf> = None => Optional(PATH);
    }
}

section! {
    /// The Redis broker.
    pub struct Redis {
        /// How long after its last sign of life a consumer counts as dead, and others take over the wake-ups it held.
        pub consumer_lease: Duration = s(15) => Span(s(1), HOUR);
        /// A PEM file with the authorities that may vouch for the server, instead of those of the system.
        pub authorities: Option<PathBuf> = None => Optional(PATH);
        /// A PEM file with this client's certificate chain, for servers that ask for one. Goes with key.
        pub certificate: Option<PathBuf> = None => Optional(PATH);
        /// A PEM file with the private key of certificate.
        pub key: Option<PathBuf> = None => Optional(PATH);
    }
}

section! {
    /// The RabbitMQ broker.
    pub struct Amqp {
        /// A PEM file with the authorities that may vouch for the server, instead of those of the system.
        pub authorities: Option<PathBuf> = None => Optional(PATH);
        /// A PEM file with this client's certificate chain, for servers that ask for one. Goes with key.
        pub certificate: Option<PathBuf> = None => Optional(PATH);
        /// A PEM file with the private key of certificate.
        pub key: Option<PathBuf> = None => Optional(PATH);
    }
}

section! {
    /// The logs of runs that viewers read from memory. What is no longer there is read from the store: less memory
    /// costs reads, and loses nothing.
    pub struct Feed {
        /// Memory for the log of one live run. Holds some thousand tokens, so that most viewers who reconnect need no
        /// read.
        pub log_memory: usize = 256 * KIB => Size(4 * KIB, GIB);
        /// Memory for the logs of all ended runs together, kept for viewers that come late. "0B" keeps none.
        pub ended_memory: usize = 16 * MIB => Size(0, 64 * GIB);
        /// How long the log of an ended run is kept. Most late viewers are clients that start a run and then open its
        /// stream.
        pub ended_linger: Duration = s(2) => Span(Duration::ZERO, s(600));
        /// How long tokens gather before they are announced to the viewers on other nodes. Below what people notice;
        /// the first tokens of an attempt do not wait. Each announcement is a message of the broker.
        pub announce_window: Duration = ms(50) => Span(ms(1), s(5));
        /// How long a run that was created with on_disconnect "cancel" goes on after its last viewer has left. Time to
        /// load a page again or to change networks.
        pub disconnect_grace: Duration = s(5) => Span(Duration::ZERO, HOUR);
    }
}

section! {
    /// The search for runs that were left behind.
    pub struct Recovery {
        /// How often runs are looked for that are queued and were not woken, or that nobody executes any more. The
        /// longest that a lost wake-up can delay a run; far more often would cost queries and find nothing.
        pub sweep_interval: Duration = s(5) => Span(ms(100), s(600));
        /// How long a run belongs to the worker that claimed it, unless the worker extends that, which it does three
        /// times as often. A run whose worker has died is found so much later, and the next sweep; a worker that cannot
        /// reach the store for so long suspends its runs. Without meaning on SQLite, which has one process.
        pub lease: Duration = s(15) => Span(s(1), s(600));
    }
}

section! {
    /// Schedules.
    pub struct Schedules {
        /// How late a schedule may fire and still be in time. What is later counts as missed: it makes one run for all
        /// missed firings, or none, as the schedule says. A minute covers a restart of the only node; every firing takes
        /// some milliseconds.
        pub grace: Duration = MINUTE => Span(s(1), DAY);
    }
}

section! {
    /// How long what has ended is kept. What is removed is gone from the store with all that belongs to it.
    pub struct Retention {
        /// How long a run is kept from its end on, with its events, steps, result, dead letter and idempotency keys; then
        /// a request for it is answered with 410. A month is enough to look into what went wrong, and bounds the disk
        /// that is needed. "0s" keeps runs for ever.
        pub runs: Duration = s(30 * 86_400) => Span(Duration::ZERO, s(10 * YEAR.as_secs()));
        /// How long a thread is kept in which nothing happens. People come back to conversations late. "0s" keeps
        /// threads for ever.
        pub threads: Duration = YEAR => Span(Duration::ZERO, s(10 * YEAR.as_secs()));
        /// How many runs are removed at a time. More is done with fewer writes; fewer never keep other writes waiting.
        /// One that takes the store too long is made smaller by itself.
        pub batch: usize = 200 => Int(1, 10_000);
        /// How often is looked for what has to go. Removal goes on in batches, with pauses, until nothing is left.
        pub interval: Duration = MINUTE => Span(ms(100), DAY);
    }
}

section! {
    /// What is told to URLs: when runs end, and what happens to threads. docs/webhooks.md says how to verify it.
    pub struct Webhooks {
        /// What the secrets are derived from that webhooks are signed with; no secret is in the store. All nodes on a
        /// store need the same. When not set, a store "sqlite" has the file webhook.key in the data directory, made when
        /// it is first needed; on any other, webhooks are refused. Better "env:NAME" or "file:PATH" than the key itself.
        pub key: Option<SecretString> = None => Optional(Secret(32));
        /// What may be called although it is not of the public internet, and by http:// too: addresses such as
        /// "10.1.0.0/16", or names of hosts. Nothing by default, so that nobody who may start a run can reach into the
        /// operator's network.
        pub allow: Vec<Allowed> = Vec::new() => List(ALLOWED);
        /// How often a webhook is sent until its receiver takes it; then it is a dead letter. After 5 s, 1 min, 5 min,
        /// 30 min, 2 h, 5 h, 10 h, 14 h, and from then on every 20 h: the default lasts for two days.
        pub attempts: u32 = 10 => Int(1, 100);
        /// How long a receiver may take to answer. One that does more than to note what came should do it later.
        pub timeout: Duration = s(15) => Span(ms(100), s(120));
        /// Webhooks that are under way at once; an eighth of them to one host, so that a slow one does not hold up all,
        /// and all but an eighth for one tenant.
        pub concurrency: usize = 64 => Int(1, 1_024);
        /// How long deliveries are kept that were taken or given up, to be listed or sent again.
        pub keep: Duration = s(7 * 86_400) => Span(s(1), s(31_557_600));
    }
}

section! {
    /// The node's own log.
    pub struct Log {
        /// What is logged: error, warn, info, debug or trace, also by module, such as "info,runcast::engine=debug".
        /// "info" tells of starts, stops and trouble; what the HTTP server says of its own threads, and the
        /// MCP client of its messages, is left out.
        pub level: String = "info,actix_server=warn,rmcp=error".to_owned() => FILLED;
        /// How lines are written: "text" for people, "json" for programs that gather logs.
        pub format: LogFormat = LogFormat::Text => OneOf(LogFormat::ALL);
    }
}

section! {
    /// A model provider, under the name that agents use before the slash of their model.
    pub struct Provider {
        /// The protocol that it speaks. Most providers and local servers offer "openai", the chat completions. The entries
        /// anthropic and gemini speak the protocol of their name unless told otherwise.
        pub protocol: Protocol = Protocol::OpenAi => OneOf(Protocol::ALL);
        /// Where its API is, up to what stands before /chat/completions, /responses, /messages or /models. When not set,
        /// that of OpenAI, Anthropic or Google, whose protocol it is; every other provider has to set it.
        pub base_url: Option<String> = None => Optional(HTTP_URL);
        /// The key that it asks for. Without one, requests carry none, which is right for most local servers. Better
        /// "env:NAME" or "file:PATH" than the key itself.
        pub api_key: Option<SecretString> = None => Optional(WorkerSecret);
        /// The models that GET /v1/models offers. Agents may use others: the list only informs.
        pub models: Vec<String> = Vec::new() => List(FILLED);
        /// How long it may take to connect. A provider that is up answers in well under a second.
        pub connect_timeout: Duration = s(10) => Span(ms(100), s(600));
        /// How long it may take from the request to the first token. Models that think first, and queues in front of
        /// them, take their time.
        pub first_token_timeout: Duration = s(120) => Span(ms(100), HOUR);
        /// How long it may be silent between two tokens, before the connection counts as dead and the attempt as
        /// failed.
        pub idle_timeout: Duration = MINUTE => Span(ms(100), HOUR);
        /// How long a whole answer may take, from the request to its end. Long answers of slow models take minutes; one
        /// that goes round in circles has to end.
        pub total_timeout: Duration = s(1_800) => Span(ms(100), DAY);
        /// How many calls may be under way at once on this node; others wait, in their order, for as long as
        /// first_token_timeout. For servers that bear no more. No bound when not set.
        pub max_concurrent: Option<usize> = None => Optional(Int(1, 100_000));
        /// How many requests this node may make within any minute; others wait as those of max_concurrent. For what the
        /// provider allows, divided by the nodes. No bound when not set.
        pub requests_per_minute: Option<usize> = None => Optional(Int(1, 100_000));
        /// What models cost for a million tokens, read and written, in the operator's currency. Runs on models without a
        /// price count as free.
        pub prices: Vec<ModelPrice> = Vec::new() => List(PRICE);
    }
}

impl Entry for Provider {
    const BUILT_IN: &'static [&'static str] = &["anthropic", "gemini", "openai"];

    fn named(mut self, name: &str, is_set: impl Fn(&str) -> bool) -> Self {
        if !is_set("protocol") {
            self.protocol = match name {
                "anthropic" => Protocol::Anthropic,
                "gemini" => Protocol::Gemini,
                _ => self.protocol,
            };
        }
        self
    }
}

impl Provider {
    /// Where its API is.
    pub fn base_url(&self) -> &str {
        self.base_url.as_deref().unwrap_or(self.protocol.home())
    }
}

section! {
    /// An agent, under the name that requests use: 1 to 64 of the characters a-z A-Z 0-9 _ -.
    pub struct Agent {
        /// What executes its runs: a language model; a program or an HTTP service of one's own, as docs/programs.md
        /// describes; or a script, which needs none of these, for tests and benches. Has to be set: an agent that is the
        /// wrong one by default would be worse than none.
        pub kind: AgentKind = AgentKind::Model => OneOf(AgentKind::ALL);
        /// Any text that changes when the agent does; a run is executed by the version it was created with.
        pub version: String = "1".to_owned() => FILLED;
        /// What it is for, shown by GET /v1/agents.
        pub description: String = String::new() => Text;
        /// The model, as provider/model, its provider being an entry of providers. Needed by kind "model", and only
        /// there.
        pub model: Option<ModelRef> = None => Optional(MODEL);
        /// The models that are asked, one after the other, when the model fails in a way that may pass: it is overloaded,
        /// away or silent. A list of provider/model. Only for kind "model".
        pub fallback_models: Vec<ModelRef> = Vec::new() => List(MODEL);
        /// Whether a model of fallback_models may also take over when something of the answer has been shown already,
        /// which then counts for nothing and is said anew. Otherwise the attempt fails, and another may follow. Only for
        /// kind "model".
        pub restart_on_fallback: bool = false => Toggle;
        /// The instructions that every conversation with the model begins with. Only for kind "model".
        pub system: Option<String> = None => Optional(Text);
        /// How freely the model chooses its words; 0 is the least. Left to the provider when not set. Only for kind
        /// "model".
        pub temperature: Option<f64> = None => Optional(Decimal(0.0, 2.0));
        /// The most tokens of one answer. Left to the provider when not set. Only for kind "model".
        pub max_tokens: Option<u32> = None => Optional(Int(1, u32::MAX));
        /// The program and its arguments, which no shell reads: a list such as ["python3", "agent.py"]. Needed by kind
        /// "process", and only there.
        pub command: Vec<String> = Vec::new() => List(FILLED);
        /// Variables for the program, each written "NAME=value". Of the node's own it gets PATH, HOME, USER, LOGNAME,
        /// LANG, LC_ALL, LC_CTYPE, TZ and TMPDIR, and no other. Better "NAME=env:NAME" or "NAME=file:PATH" than a secret
        /// itself. Only for kind "process".
        pub env: Vec<(String, SecretString)> = Vec::new() => List(SecretPair);
        /// Where the program runs. The node's own working directory when not set. Only for kind "process".
        pub directory: Option<PathBuf> = None => Optional(PATH);
        /// How long the program may take to end after a SIGTERM, when its run is cancelled or its attempt is over; then
        /// it is killed with all that it has started. Only for kind "process".
        pub cancel_grace: Duration = s(2) => Span(Duration::ZERO, MINUTE);
        /// Where the service is. Addresses within one's own network are fine; redirects are not followed. Needed by kind
        /// "remote", and only there.
        pub url: Option<String> = None => Optional(ENDPOINT);
        /// Headers of each request to the service, each written "NAME=value", such as "Authorization=env:SERVICE_AUTH".
        /// Only for kind "remote".
        pub headers: Vec<(String, SecretString)> = Vec::new() => List(SecretPair);
        /// How long it may take to connect to the service. Only for kind "remote".
        pub connect_timeout: Duration = s(10) => Span(ms(100), s(600));
        /// How long it may take from the request to the first event of the answer, or to the end of an answer that is no
        /// stream. Only for kind "remote".
        pub first_event_timeout: Duration = s(120) => Span(ms(100), DAY);
        /// How long the service may be silent in the middle of its answer before the attempt counts as failed. Comments
        /// of the stream are no silence. Only for kind "remote".
        pub idle_timeout: Duration = MINUTE => Span(ms(100), DAY);
        /// The JSON Schema of the params that its runs take. Any when not set. Only for kinds "process" and "remote",
        /// whose params nobody else knows.
        pub params_schema: Option<serde_json::Map<String, serde_json::Value>> = None => Optional(OBJECT);
        /// What the model, or the program, may call: names of entries of tools and mcp, and for kind "model" three of Runcast's
        /// own: "complete" ends the run with a result, "ask" waits for a person's answer, "hand_off" hands the thread to
        /// people. Only for kinds "model" and "process".
        pub tools: Vec<String> = Vec::new() => List(FILLED);
        /// Whether the calls that the model wants in one answer are made at once; one after the other otherwise, which
        /// suits tools that change things. Only for kind "model".
        pub parallel_tools: bool = false => Toggle;
        /// The most calls of models and tools of a run, which then ends with the outcome max_steps. A model that goes
        /// round in circles would not end by itself. Only for kind "model".
        pub max_steps: u32 = 100 => Int(1, 100_000);
        /// The JSON Schema that the run's output has to follow. An answer that does not is asked for again, twice. Only
        /// for kind "model".
        pub output_schema: Option<serde_json::Map<String, serde_json::Value>> = None => Optional(OBJECT);
        /// Whether a planner first writes a plan, which viewers see, and a supervisor then carries it out and revises it.
        /// For tasks of many steps; costs a model call. Only for kind "model".
        pub plan: bool = false => Toggle;
        /// How long people have to answer what the model asks them, or to approve a call; the run fails then. For ever
        /// when not set. Only for kind "model".
        pub answer_within: Option<Duration> = None => Optional(Span(s(1), s(366 * 86_400)));
        /// What is answered when no model can be reached, or none has a key: "{input}" stands for what was said last,
        /// "{name}" for what a pattern of fallback_extract found. The run's outcome is then "fallback". Without this and
        /// fallback_extract it fails. Only for kind "model".
        pub fallback_reply: Option<String> = None => Optional(FILLED);
        /// Regular expressions that look at what was said last when no model can be reached, as name=pattern: what the
        /// first group of each matches is the run's output, as an object, unless fallback_reply is set. Only for kind
        /// "model".
        pub fallback_extract: Vec<(String, String)> = Vec::new() => List(LABEL);
        /// The most tokens that each of its runs may use, over all attempts. A run may have less.
        pub budget_tokens: Option<u64> = None => Optional(Int(1, 1_000_000_000));
        /// The most money that each of its runs may use, in the currency of providers.NAME.prices. A run may have less.
        pub budget_cost: Option<f64> = None => Optional(Decimal(0.0, 1_000_000.0));
        /// The most calls of models and tools that each of its runs may make. A run may have less.
        pub budget_steps: Option<u32> = None => Optional(Int(1, 100_000));
        /// The longest that each of its runs may be running, waiting excluded; the outcome is then budget_time.
        pub budget_time: Option<Duration> = None => Optional(Span(ms(1), s(30 * 86_400)));
        /// How long its runs may take, instead of runs.timeout.
        pub timeout: Option<Duration> = None => Optional(Span(ms(1), s(30 * 86_400)));
        /// How often its runs may fail, instead of runs.max_attempts.
        pub max_attempts: Option<u32> = None => Optional(Int(1, 100));
        /// How many of its runs may be running at once, over all nodes and versions; the others wait in their queue.
        /// For what stands behind the agent and bears no more. All nodes have to say the same.
        pub max_running: Option<u64> = None => Optional(Int(1, 1_000_000));
        /// How many of its runs with the same concurrency_key may be running at once, over all nodes. 1 lets the runs
        /// that work on one thing go one after the other.
        pub max_running_per_key: Option<u64> = None => Optional(Int(1, 1_000_000));
        /// How long a message to a thread waits for others, which then become one run with it; each that comes begins
        /// the wait anew. People often send several in a row, which one answer serves better. Not at all when not set.
        pub debounce: Option<Duration> = None => Optional(Span(ms(1), DAY));
        /// The longest that a message waits for others. Ten times debounce when not set.
        pub debounce_max: Option<Duration> = None => Optional(Span(ms(1), DAY));
        /// What becomes of a message to a thread in which a run is going on. "enqueue" makes it the next run; "debounce"
        /// lets it join the next run; "steer" hands it to the run, which sees it at its next step; "interrupt" cancels
        /// the run, "rollback" drops what it said as well; "reject" refuses the message. A request may say otherwise.
        pub on_busy: OnBusy = OnBusy::Enqueue => OneOf(&OnBusy::ALL);
        /// The most messages of its thread that a run is shown, counted from the last. Older ones mostly cost tokens.
        pub history_messages: usize = 100 => Int(0, 10_000);
        /// The most text of its thread that a run is shown, in tokens, a token being some four bytes. Leaves room for
        /// the answer in models of 64,000 tokens; at least one message is shown whatever its length.
        pub history_tokens: usize = 32_000 => Int(0, 10_000_000);
        /// What it says by itself when nobody has spoken in a thread since its answer: a list of tables, which are gone
        /// through one after the other. "after" is how long nobody has spoken, "instruction" what it is told to do then,
        /// "times" how often in a row, once unless given. What is due outside of "hours", such as "09:00-18:00", on
        /// "days", such as ["mon", "fri"], in "timezone", UTC unless given, waits for their beginning. Any message to the
        /// thread begins the list anew.
        pub follow_ups: Vec<FollowUp> = Vec::new() => FollowUps;
    }
}

impl Entry for Agent {
    const BUILT_IN: &'static [&'static str] = &[];
}

section! {
    /// A tool that models may call, under a name of 1 to 64 of the characters a-z A-Z 0-9 _ -. docs/tools.md tells more.
    pub struct Tool {
        /// What it is: "http" calls an endpoint.
        pub kind: ToolKind = ToolKind::Http => OneOf(ToolKind::ALL);
        /// What it is good for, and when to call it, for the model.
        pub description: String = String::new() => Text;
        /// The JSON Schema of its arguments, of type object. What does not fit it is not called: the model is told why.
        pub parameters: serde_json::Map<String, serde_json::Value> = no_parameters() => OBJECT;
        /// The method of the request. All but GET carry the header Idempotency-Key, the same for all tries at a call.
        pub method: HttpMethod = HttpMethod::Get => OneOf(HttpMethod::ALL);
        /// The URL of the endpoint. "{argument}" stands for an argument, percent-encoded, in the path and the query and
        /// nowhere else; a query parameter whose argument is missing is left out. Has to be set.
        pub url: Option<String> = None => Optional(TEMPLATE);
        /// Headers of the request, as Name=value, the value's last word possibly env:NAME or file:PATH, as in
        /// "Authorization=Bearer env:TOKEN". Models, events and logs never show the values.
        pub headers: Vec<(String, SecretString)> = Vec::new() => List(SecretPair);
        /// The body, as a JSON text in which "{argument}" within a text stands for an argument, and a text that is
        /// nothing else for its JSON value. When not set, methods with a body send the arguments that the URL does not
        /// name, as a JSON object.
        pub body: Option<serde_json::Value> = None => Optional(JSON);
        /// What may be called although it is not of the public internet, and by http:// too, as webhooks.allow.
        pub allow: Vec<Allowed> = Vec::new() => List(ALLOWED);
        /// How long one call may take. The model, and the run, wait for it.
        pub timeout: Duration = s(30) => Span(ms(100), HOUR);
        /// How often a call is made again that was not answered, or with 429 or 5xx. For endpoints that heed the header
        /// Idempotency-Key, or to which it makes no difference.
        pub retries: u32 = 0 => Int(0, 10);
        /// Whether a person has to approve each call.
        pub needs_approval: bool = false => Toggle;
        /// The most that the model is shown of an answer. Some 16,000 tokens; the model is told that there was more.
        pub max_output: usize = 64 * KIB => Size(KIB, 4 * MIB);
        /// What becomes of a call that was under way when its worker died: "repeat" makes it again, with the same
        /// Idempotency-Key; "fail" tells the model that it may have been made; "ask" asks a person.
        pub on_cut_off: CutOff = CutOff::Repeat => OneOf(&CutOff::ALL);
    }
}

fn no_parameters() -> serde_json::Map<String, serde_json::Value> {
    let entries = [("type", "object".into()), ("properties", serde_json::Map::new().into())];
    entries.map(|(key, value)| (key.to_owned(), value)).into_iter().collect()
}

impl Entry for Tool {
    const BUILT_IN: &'static [&'static str] = &[];
}

section! {
    /// An MCP server, whose tools models may call as NAME_tool. Connected when a run first needs it; all runs of the node
    /// share the connection. A tool whose description or parameters change is refused from then on, see approved.
    /// docs/tools.md tells more.
    pub struct Mcp {
        /// The program and its arguments, for a server that speaks over stdin and stdout. It is killed with all that it
        /// has started when the node ends. One of command and url has to be set.
        pub command: Vec<String> = Vec::new() => List(FILLED);
        /// The environment of the program, as NAME=value, env:NAME or file:PATH. Of the node's own, it sees PATH, HOME,
        /// USER, LOGNAME, SHELL, TERM, TMPDIR, TZ, LANG and LC_ALL alone.
        pub env: Vec<(String, SecretString)> = Vec::new() => List(SecretPair);
        /// The URL of a server that speaks streamable HTTP.
        pub url: Option<String> = None => Optional(HTTP_URL);
        /// Headers of the requests, as tools.NAME.headers. Only with url.
        pub headers: Vec<(String, SecretString)> = Vec::new() => List(SecretPair);
        /// What url may lead to although it is not of the public internet, and by http:// too, as webhooks.allow.
        pub allow: Vec<Allowed> = Vec::new() => List(ALLOWED);
        /// Which of the server's tools are offered, by the server's own names. All of them when empty.
        pub tools: Vec<String> = Vec::new() => List(FILLED);
        /// The tools whose calls a person has to approve, by the server's own names; "*" for all.
        pub needs_approval: Vec<String> = Vec::new() => List(FILLED);
        /// The tools that a person has looked at, as tool=pin; "runcast tools" prints them. When not empty, only these
        /// are offered, and only as they were then. When empty, what a tool is when this node first sees it counts.
        pub approved: Vec<(String, String)> = Vec::new() => List(PIN);
        /// How long one call may take. The model, and the run, wait for it.
        pub timeout: Duration = MINUTE => Span(ms(100), HOUR);
        /// How often a call is made again during which the server went away. For servers to which it makes no
        /// difference.
        pub retries: u32 = 0 => Int(0, 10);
        /// The most that the model is shown of an answer. Some 16,000 tokens; the model is told that there was more.
        pub max_output: usize = 64 * KIB => Size(KIB, 4 * MIB);
        /// What becomes of a call that was under way when its worker died, as tools.NAME.on_cut_off. Nothing tells the
        /// server that a repeated call is the same, hence the default.
        pub on_cut_off: CutOff = CutOff::Fail => OneOf(&CutOff::ALL);
    }
}

impl Entry for Mcp {
    const BUILT_IN: &'static [&'static str] = &[];
}

section! {
    /// A tenant, under a name of 1 to 64 of the characters a-z A-Z 0-9 _ -. A tenant sees its own runs only, and only
    /// "default", whose keys are those of server.api_keys, sees the queues, the nodes and the metrics. Where several
    /// have runs queued, they are served in turn, however many each has. All nodes have to say the same.
    pub struct Tenant {
        /// The keys whose requests are this tenant's, as server.api_keys. No two tenants may share one. Not needed
        /// where no API is served.
        pub api_keys: Vec<SecretString> = Vec::new() => List(Secret(16));
        /// Its share while several tenants have runs queued: one of weight 3 is served three times as often as one of
        /// weight 1.
        pub weight: u32 = 1 => Int(1, 10_000);
        /// How many of its runs may be running at once, over all nodes; the others wait in their queue.
        pub max_running: Option<u64> = None => Optional(Int(1, 1_000_000));
        /// How many of its runs may be scheduled or queued at once; a request for one more is answered with 429. Exact
        /// on SQLite; near the bound, several nodes on PostgreSQL may exceed it by what they accept in one moment.
        pub max_waiting: Option<u64> = None => Optional(Int(1, 100_000_000));
        /// How many of its runs are accepted a minute; a request for one more is answered with 429 and when to come
        /// again. Each node that serves grants its part, so requests should be spread over them. A request that is
        /// repeated with its Idempotency-Key does not count.
        pub rate: Option<u32> = None => Optional(Int(1, 10_000_000));
        /// How many of these may come at once, after a while without any. A tenth of the rate when not set.
        pub burst: Option<u32> = None => Optional(Int(1, 10_000_000));
    }
}

impl Entry for Tenant {
    const BUILT_IN: &'static [&'static str] = &[];
}

section! {
    /// A queue that a foreign producer fills, under a name for logs, labels and dead letters. Each message becomes a run,
    /// which is found by the labels ingest_source and ingest_key; what cannot become one goes to the dead letters. Taken
    /// in by nodes that execute runs. docs/brokers.md tells what producers have to know.
    pub struct Ingest {
        /// What kind of queue it is. Has to be set.
        pub kind: IngestKind = IngestKind::RedisList => OneOf(IngestKind::ALL);
        /// The server. The broker when not set, which then has to be of that kind. Timeouts and certificates are those
        /// of the sections redis and amqp.
        pub url: Option<ServiceUrl> = None => Optional(QUEUES);
        /// The key of the list or stream, or the name of the AMQP queue, as the producer has it. Has to be set.
        pub queue: Option<String> = None => Optional(FILLED);
        /// The consumer group that reads a stream; made when it is missing. Only for kind "redis_stream".
        pub group: String = "runcast".to_owned() => FILLED;
        /// The field of a stream's entries that holds the message. When not set, and for entries that lack it, the
        /// entry's own fields are the message's, all of them text. Only for kind "redis_stream".
        pub payload_field: Option<String> = None => Optional(FILLED);
        /// The agent of messages that name none. One of agent and agent_field has to be set.
        pub agent: Option<String> = None => Optional(FILLED);
        /// The message's field that names the agent. This and the other fields may lie within others, as outer.inner.
        pub agent_field: Option<String> = None => Optional(FILLED);
        /// The message's field that holds the producer's own key for it. A message without one goes to the dead
        /// letters; one that comes again under the same key within 24 h makes no second run.
        pub key_field: String = "run_id".to_owned() => FILLED;
        /// The message's field that holds the input, a text or an array of messages with role and content. When not set
        /// it is "input", and the whole message, as text, for messages that lack it.
        pub input_field: Option<String> = None => Optional(FILLED);
        /// The message's field that holds the priority, a whole number; 0 for messages that lack it. What is beyond
        /// -100 to 100 counts as the nearest of these.
        pub priority_field: String = "priority".to_owned() => FILLED;
        /// The params of each run.
        pub params: serde_json::Map<String, serde_json::Value> = serde_json::Map::new() => OBJECT;
        /// Labels of each run, besides ingest_source and ingest_key.
        pub metadata: Vec<(String, String)> = Vec::new() => List(LABEL);
    }
}

impl Entry for Ingest {
    const BUILT_IN: &'static [&'static str] = &[];
}
