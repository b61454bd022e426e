use std::{collections::BTreeMap, fs, net::SocketAddr, path::PathBuf, time::Duration};

use secrecy::ExposeSecret;
use tempfile::TempDir;

mod tools;

use super::*;
use crate::thread::OnBusy;

const KEY: &str = "correct-horse-battery-staple";

/// A directory to start in, an environment and flags.
struct Start {
    cwd: TempDir,
    env: BTreeMap<String, String>,
    flags: Flags,
}

impl Start {
    fn new() -> Self {
        Self { cwd: tempfile::tempdir().unwrap(), env: BTreeMap::new(), flags: Flags::default() }
    }

    fn file(self, name: &str, text: &str) -> Self {
        fs::write(self.cwd.path().join(name), text).unwrap();
        self
    }

    fn env(mut self, name: &str, value: &str) -> Self {
        self.env.insert(name.into(), value.into());
        self
    }

    fn load(&self) -> Result<Config, ConfigError> {
        Config::load(&self.flags, &self.env, self.cwd.path())
    }

    #[track_caller]
    fn loaded(&self) -> Config {
        self.load().unwrap_or_else(|error| panic!("{error}"))
    }

    #[track_caller]
    fn faults(&self) -> String {
        self.load().unwrap_err().to_string()
    }
}

#[track_caller]
fn faults(toml: &str) -> String {
    Config::from_toml(toml).unwrap_err().to_string()
}

fn without_origins(rendered: &str) -> String {
    rendered.lines().map(|line| line.split(" # ").next().unwrap_or_default().to_owned() + "\n").collect()
}

#[test]
fn nothing_set_is_the_defaults() {
    let config = Start::new().loaded();
    assert_eq!(config.render(), Config::default().render());
    assert_eq!(config.listen, SocketAddr::from(([127, 0, 0, 1], 7070)));
    assert_eq!(config.store.sqlite_file(&config.data), Some(PathBuf::from("runcast-data/runcast.db")));
    assert_eq!(config.server.heartbeat, Duration::from_secs(15));
    assert_eq!(config.limits.max_input, 1_048_576);
    assert!(config.providers.contains_key("openai"));
    assert!(config.agents.is_empty());
    assert_eq!(config.openai_model, None);
    assert_eq!(config.origin("server.heartbeat"), Origin::Default);
}

#[test]
fn a_flag_beats_the_environment_beats_the_file_beats_an_alias() {
    let mut start = Start::new().env("PORT", "1");
    let listen = |start: &Start| {
        let config = start.loaded();
        (config.listen.to_string(), config.origin("listen").to_string())
    };
    assert_eq!(listen(&start), ("127.0.0.1:1".into(), "alias PORT".into()));
    start = start.file("runcast.toml", "\nlisten = \"127.0.0.1:2\"\n");
    assert_eq!(listen(&start), ("127.0.0.1:2".into(), "runcast.toml:2".into()));
    start = start.file(".env", "RUNCAST_LISTEN=127.0.0.1:3\nRUNCAST_LISTEN=127.0.0.1:9\n");
    assert_eq!(listen(&start), ("127.0.0.1:3".into(), "env RUNCAST_LISTEN".into()));
    start = start.env("RUNCAST_LISTEN", "127.0.0.1:4");
    assert_eq!(listen(&start), ("127.0.0.1:4".into(), "env RUNCAST_LISTEN".into()));
    start.flags.listen = Some("127.0.0.1:5".into());
    assert_eq!(listen(&start), ("127.0.0.1:5".into(), "flag --listen".into()));
}

#[test]
fn only_the_value_that_wins_is_judged() {
    let start = Start::new().file("runcast.toml", "[server]\nheartbeat = \"1 fortnight\"\n");
    assert!(start.load().is_err());
    let config = start.env("RUNCAST_SERVER_HEARTBEAT", "20s").loaded();
    assert_eq!(config.server.heartbeat, Duration::from_secs(20));
}

#[test]
fn every_key_has_a_variable_of_its_kind() {
    let config = Start::new()
        .file("runcast.toml", "[agents.on-call]\nkind = \"model\"\n")
        .env("RUNCAST_SERVER_WORKERS", "3")
        .env("RUNCAST_SERVER_DOCS", "false")
        .env("RUNCAST_SERVER_MAX_BODY", "4096")
        .env("RUNCAST_SERVER_API_KEYS", "0123456789abcdef, env:SECOND")
        .env("SECOND", KEY)
        .env("RUNCAST_LOG_FORMAT", "json")
        .env("RUNCAST_PROVIDERS_OPENAI_IDLE_TIMEOUT", "90s")
        .env("RUNCAST_AGENTS_ON_CALL_MODEL", "openai/a/b")
        .env("RUNCAST_AGENTS_ON_CALL_TEMPERATURE", "1")
        .loaded();
    assert_eq!((config.server.workers, config.server.docs, config.server.max_body), (3, false, 4096));
    let keys: Vec<&str> = config.server.api_keys.iter().map(ExposeSecret::expose_secret).collect();
    assert_eq!(keys, ["0123456789abcdef", KEY]);
    assert_eq!(config.log.format, LogFormat::Json);
    assert_eq!(config.providers["openai"].idle_timeout, Duration::from_secs(90));
    let agent = &config.agents["on-call"];
    assert_eq!(agent.model, Some(ModelRef { provider: "openai".into(), model: "a/b".into() }));
    assert_eq!(agent.temperature, Some(1.0));
}

#[test]
fn aliases_configure_the_built_in_provider() {
    let start = Start::new()
        .env("OPENAI_API_KEY", KEY)
        .env("OPENAI_BASE_URL", "http://localhost:8000/v1/")
        .file(".env", "OPENAI_MODEL=small\n");
    let config = start.loaded();
    let openai = &config.providers["openai"];
    assert_eq!(openai.base_url(), "http://localhost:8000/v1");
    assert_eq!(openai.api_key.as_ref().map(ExposeSecret::expose_secret), Some(KEY));
    assert_eq!(config.openai_model.as_deref(), Some("small"));
    assert_eq!(config.origin("providers.openai.api_key"), Origin::Alias("OPENAI_API_KEY".into()));
    let config = start.env("OPENAI_API_KEY", "").loaded();
    assert!(config.providers["openai"].api_key.is_none(), "empty is not set");
}

#[test]
fn built_in_providers_speak_the_protocol_of_their_name_and_have_their_keys_from_the_environment() {
    let start = Start::new().env("ANTHROPIC_API_KEY", KEY).env("GOOGLE_API_KEY", KEY);
    let config = start.file("runcast.toml", "[providers.own]\nbase_url = \"http://h/v1\"\n").loaded();
    let has = |name: &str| {
        let provider = &config.providers[name];
        (provider.protocol, provider.base_url(), provider.api_key.is_some())
    };
    assert_eq!(has("anthropic"), (Protocol::Anthropic, "https://api.anthropic.com/v1", true));
    assert_eq!(has("gemini"), (Protocol::Gemini, "https://generativelanguage.googleapis.com/v1beta", true));
    assert_eq!(has("openai"), (Protocol::OpenAi, "https://api.openai.com/v1", false));
    assert_eq!(has("own"), (Protocol::OpenAi, "http://h/v1", false));
    assert!(config.is_set("providers.anthropic") && !config.is_set("providers.openai"));
    let start = Start::new().env("GEMINI_API_KEY", "first").env("GOOGLE_API_KEY", "second");
    let config = start.file("runcast.toml", "[providers.gemini]\nprotocol = \"openai\"\n").loaded();
    let gemini = &config.providers["gemini"];
    assert_eq!(gemini.api_key.as_ref().map(ExposeSecret::expose_secret), Some("first"));
    assert_eq!(gemini.protocol, Protocol::OpenAi);
}

#[test]
fn prices_are_exact() {
    let config =
        Config::from_toml("[providers.openai]\nprices = [\"gpt-4o-mini=0.15/0.60\", \"a/b=c = 3 / 15.000001\"]\n")
            .unwrap();
    let prices = &config.providers["openai"].prices;
    let of = |at: usize| (prices[at].model.as_str(), prices[at].price.input, prices[at].price.output);
    assert_eq!((of(0), of(1)), (("gpt-4o-mini", 150_000, 600_000), ("a/b=c", 3_000_000, 15_000_001)));
    assert!(config.render().contains(r#"["gpt-4o-mini=0.15/0.6", "a/b=c=3/15.000001"]"#), "{}", config.render());
    for wrong in ["m", "m=1", "m=1/", "=1/2", "m=-1/2", "m=1/2e3", "m=.5/1", "m=0.0000001/1"] {
        let faults = faults(&format!("[providers.openai]\nprices = [\"{wrong}\"]\n"));
        assert!(faults.contains("providers.openai.prices (toml:2): item 1: expected model=input/output"), "{faults}");
    }
}

#[test]
fn models_that_stand_in_are_of_known_providers_and_for_models_only() {
    let faults = faults(
        "[agents.a]\nkind = \"model\"\nmodel = \"openai/x\"\nfallback_models = [\"anthropic/y\", \"other/z\"]\n\
         [agents.b]\nkind = \"scripted\"\nfallback_models = [\"openai/x\"]\nrestart_on_fallback = true\n",
    );
    let expected = "\
agents.a.fallback_models (toml:4): expected a provider of [providers], one of anthropic, gemini, openai, got other/z
agents.b.fallback_models (toml:7): makes no sense for an agent of kind scripted
agents.b.restart_on_fallback (toml:8): makes no sense for an agent of kind scripted";
    assert_eq!(faults, expected);
}

#[test]
fn the_file_is_the_named_one() {
    let mut start = Start::new()
        .file("runcast.toml", "data = \"here\"")
        .file("env.toml", "data = \"env\"")
        .file("flag.toml", "data = \"flag\"");
    assert_eq!(start.loaded().data, PathBuf::from("here"));
    start = start.env("RUNCAST_CONFIG", "env.toml");
    assert_eq!(start.loaded().data, PathBuf::from("env"));
    start.flags.config = Some("flag.toml".into());
    assert_eq!(start.loaded().data, PathBuf::from("flag"));
    start.flags.config = Some("missing.toml".into());
    assert!(start.faults().starts_with("missing.toml (flag --config): cannot be read: "), "{}", start.faults());
}

#[test]
fn variables_of_the_client_commands_are_known_and_set_nothing() {
    let start = Start::new().env("RUNCAST_API_KEY", KEY).file(".env", "RUNCAST_URL=http://127.0.0.1:1\n");
    assert_eq!(start.loaded().render(), Config::default().render());
    let faults = start.env("RUNCAST_API_KEYS", KEY).faults();
    assert_eq!(faults, "RUNCAST_API_KEYS: unknown variable; did you mean RUNCAST_SERVER_API_KEYS?");
}

#[test]
fn every_fault_is_reported_at_once_with_its_place() {
    let mut start = Start::new()
        .file(
            "runcast.toml",
            "\
colour = 1
heartbeat = \"15s\"
data = 7
[server]
heartbeet = \"15s\"
workers = \"four\"
keep_alive = \"2h\"
[[limits]]
[sqlite]
synchronous = \"off\"
[servers]
workers = 2
[providers.local]
base_url = \"ftp://x\"
[agents.\"a b\"]
kind = \"model\"
",
        )
        .file(".env", "A=1\nnot a line # really\nB=2\n")
        .env("RUNCAST_SERVER_HEARTBEAT", "61s")
        .env("RUNCAST_SERVER_WORKRES", "1")
        .env("RUNCAST_HEARTBEAT", "1s")
        .env("RUNCAST_AGENTS_NOBODY_MODEL", "openai/x")
        .env("RUNCAST_FEED_ENDED_MEMORY", "16MB");
    start.flags.role = Some("both".into());
    let expected = r#"
.env:2: expected NAME=value, with quotes around values that contain spaces
data (runcast.toml:3): expected a path, got 7
role (flag --role): expected all or api or worker, got "both"
server.workers (runcast.toml:6): expected a whole number from 0 to 1024, got "four"
server.keep_alive (runcast.toml:7): expected a duration such as "15s", from 1s to 1h, got "2h"
server.heartbeat (env RUNCAST_SERVER_HEARTBEAT): expected a duration such as "15s", from 1s to 1m, got "61s"
limits (runcast.toml:8): expected a table, [limits]
sqlite.synchronous (runcast.toml:10): expected normal or full, got "off"
feed.ended_memory (env RUNCAST_FEED_ENDED_MEMORY): expected a size such as "1MiB", or a number of bytes, from 0B to 64GiB, got "16MB"
providers.local.base_url (runcast.toml:14): expected an http:// or https:// URL without user, query or fragment
agents.a b (runcast.toml:15): expected a name of 1 to 64 of the characters a-z A-Z 0-9 _ -
server.heartbeet (runcast.toml:5): unknown key; did you mean server.heartbeat?
colour (runcast.toml:1): unknown key
heartbeat (runcast.toml:2): unknown key; did you mean server.heartbeat?
servers (runcast.toml:11): unknown key; did you mean server?
RUNCAST_AGENTS_NOBODY_MODEL: unknown variable; the file has to name the entry first, as [agents.NAME]
RUNCAST_HEARTBEAT: unknown variable; did you mean RUNCAST_SERVER_HEARTBEAT?
RUNCAST_SERVER_WORKRES: unknown variable; did you mean RUNCAST_SERVER_WORKERS?"#;
    assert_eq!(start.faults(), expected.trim_start());
}

#[test]
fn broken_toml_is_a_fault_with_its_line_beside_the_others() {
    let text = faults("listen = \"127.0.0.1:1\nrole = 3\n[server]\nheartbeat = \"0s\"\nworkers = = 2\n");
    assert!(text.contains("toml:1: invalid TOML: "), "{text}");
    assert!(text.contains("toml:5: invalid TOML: "), "{text}");
    assert!(text.contains("server.heartbeat (toml:4): "), "{text}");
}

#[test]
fn keys_that_contradict_each_other_are_all_named() {
    let start =
        Start::new().file("runcast.toml", "listen = \"0.0.0.0:80\"\nrole = \"api\"\n[runs]\nbackoff_base = \"2m\"\n");
    let expected = "\
role (runcast.toml:2), broker (default), store (default): role api needs a broker and a store that several nodes share: \
broker memory and store sqlite have one process
listen (runcast.toml:1), server.api_keys (default): listen 0.0.0.0:80 is not loopback, so server.api_keys needs at least \
one key
runs.backoff_base (runcast.toml:4), runs.backoff_max (default): runs.backoff_base is longer than runs.backoff_max";
    assert_eq!(start.faults(), expected);
    let start =
        start.env("RUNCAST_SERVER_API_KEYS", KEY).env("RUNCAST_ROLE", "all").env("RUNCAST_RUNS_BACKOFF_BASE", "1s");
    start.loaded();
}

#[test]
fn agents_have_the_keys_of_their_kind() {
    let text = faults(
        "\
[agents.nobody]
[agents.a]
kind = \"model\"
[agents.b]
kind = \"model\"
model = \"other/x\"
[agents.c]
kind = \"scripted\"
model = \"openai/x\"
max_tokens = 5
timeout = \"5s\"
[agents.d]
kind = \"model\"
model = \"gpt\"
temperature = 2.5
max_tokens = 0
max_attempts = 101
",
    );
    let expected = r#"
agents.d.model (toml:14): expected a provider and a model, such as "openai/gpt-4o-mini", got "gpt"
agents.d.temperature (toml:15): expected a number from 0 to 2, got 2.5
agents.d.max_tokens (toml:16): expected a whole number from 1 to 4294967295, got 0
agents.d.max_attempts (toml:17): expected a whole number from 1 to 100, got 101
agents.a.model (default): has to be set for an agent of kind model; expected provider/model
agents.b.model (toml:6): expected a provider of [providers], one of anthropic, gemini, openai, got other/x
agents.c.model (toml:9): makes no sense for an agent of kind scripted
agents.c.max_tokens (toml:10): makes no sense for an agent of kind scripted
agents.nobody.kind (default): has to be set; expected model or process or remote or scripted"#;
    assert_eq!(text, expected.trim_start());
}

#[test]
fn queues_of_foreign_producers_have_the_keys_of_their_kind() {
    let config = Start::new()
        .file(
            "runcast.toml",
            "[ingest.jobs]\nkind = \"redis_list\"\nqueue = \"jobs:pending\"\nagent = \"scripted\"\n\
             params = '{\"tokens\": 3}'\nmetadata = [\"team=blue\", \"note=a=b\"]\n",
        )
        .env("RUNCAST_INGEST_JOBS_URL", "redis://user:hush@localhost")
        .loaded();
    let jobs = &config.ingest["jobs"];
    assert_eq!((jobs.queue.as_deref(), jobs.key_field.as_str()), (Some("jobs:pending"), "run_id"));
    assert_eq!(serde_json::Value::Object(jobs.params.clone()).to_string(), "{\"tokens\":3}");
    assert_eq!(jobs.metadata, [("team".into(), "blue".into()), ("note".into(), "a=b".into())]);
    assert!(config.render().contains("url = \"redis://user:***@localhost\""), "{}", config.render());

    for (toml, fault) in [
        ("", "ingest.x.kind (default): has to be set; expected redis_list or redis_stream or amqp_queue"),
        (
            "kind = \"kafka\"",
            "ingest.x.kind (toml:2): expected redis_list or redis_stream or amqp_queue, got \"kafka\"",
        ),
        ("kind = \"redis_list\"", "ingest.x.url (default), broker (default): has to be set for kind redis_list"),
        ("kind = \"redis_list\"", "ingest.x.queue (default): has to be set"),
        (
            "kind = \"redis_list\"",
            "ingest.x.agent (default), ingest.x.agent_field (default): one of them has to be set",
        ),
        (
            "kind = \"redis_stream\"\nurl = \"amqp://u:hush@h\"",
            "ingest.x.kind (toml:2), ingest.x.url (toml:3): kind redis_stream needs a redis:// URL",
        ),
        ("kind = \"amqp_queue\"\nurl = \"kafka://u:hush@h\"", "ingest.x.url (toml:3): expected redis://"),
        ("kind = \"amqp_queue\"\ngroup = \"g\"", "ingest.x.group (toml:3): makes no sense for kind amqp_queue"),
        ("kind = \"redis_list\"\nparams = \"[]\"", "ingest.x.params (toml:3): expected a JSON object as text"),
        ("kind = \"redis_list\"\nmetadata = [\"=\"]", "ingest.x.metadata (toml:3): item 1: expected name=value"),
        (
            "kind = \"redis_list\"\nmetadata = [\"a=b\"]\n[limits]\nmax_metadata_entries = 2",
            "ingest.x.metadata (toml:3), limits.max_metadata_entries (toml:5): ",
        ),
    ] {
        let said = faults(&format!("[ingest.x]\n{toml}\n"));
        assert!(said.contains(fault) && !said.contains("hush"), "{fault}\nin {said}");
    }
    // The broker serves where it is of the kind.
    let shared = "broker = \"redis://h\"\nstore = \"postgres://h/d\"\n";
    Config::from_toml(&format!("{shared}[ingest.x]\nkind = \"redis_list\"\nqueue = \"q\"\nagent = \"a\"\n")).unwrap();
}

#[test]
fn urls_of_brokers_and_stores_are_shown_without_their_password() {
    for (broker, store, shown) in [
        (
            "redis://:hunter2@host",
            "postgres://me:hunter2@host/db?sslmode=require",
            ("redis://:***@host", "me:***@host/db"),
        ),
        (
            "amqps://me:hunter2@host/vhost",
            "postgresql://h/db?password=hunter2",
            ("me:***@host/vhost", "postgresql://h/db"),
        ),
        ("rediss://host:1?hunter2", "postgres://hunter@host", ("rediss://host:1", "hunter@host")),
    ] {
        let config = Config::from_toml(&format!("broker = \"{broker}\"\nstore = \"{store}\"\n")).unwrap();
        let (BrokerUrl::Redis(url) | BrokerUrl::Amqp(url)) = &config.broker else { panic!("{broker}") };
        assert_eq!(url.expose(), broker);
        for text in [format!("{config:?}"), config.render()] {
            assert!(text.contains(shown.0) && text.contains(shown.1) && !text.contains("hunter2"), "{text}");
        }
    }
    let start = Start::new().env("URL", "redis://:hunter2@host").file("url", "postgres://a:hunter2@b/c\n");
    let config = start.file("runcast.toml", "broker = \"env:URL\"\nstore = \"file:url\"\n").loaded();
    assert_eq!(config.broker.to_string(), "redis://:***@host");
    let StoreUrl::Postgres(url) = config.store else { panic!("{}", config.store) };
    assert_eq!(url.expose(), "postgres://a:hunter2@b/c");
    let config = Config::from_toml("store = \"sqlite:///var/runs.db\"").unwrap();
    assert_eq!(config.store, StoreUrl::Sqlite { path: Some("/var/runs.db".into()) });
}

#[test]
fn what_is_no_broker_or_store_is_refused_without_being_repeated() {
    for text in [faults("broker = \"kafka://me:hunter2@host\""), faults("store = \"mysql://me:hunter2@host\"")] {
        assert!(text.contains("expected") && !text.contains("hunter2"), "{text}");
    }
    assert!(faults("store = \"sqlite::memory:\"").starts_with("store (toml:1): expected sqlite, sqlite:PATH or"));
}

#[test]
fn pairs_that_make_no_sense_are_refused_by_the_keys_that_make_them() {
    let (redis, postgres) = ("broker = \"redis://h\"\n", "store = \"postgres://h/d\"\n");
    let text = faults(redis);
    let expected =
        "broker (toml:1), store (default): broker redis://h is for many nodes, but store sqlite has one process";
    assert!(text.starts_with(expected), "{text}");
    let text = faults(&format!("{postgres}role = \"worker\""));
    assert!(text.contains("role worker needs") && text.contains("broker memory has one process"), "{text}");
    for role in ["api", "worker", "all"] {
        Config::from_toml(&format!("{redis}{postgres}role = \"{role}\"")).unwrap();
    }
    Config::from_toml(postgres).unwrap();
    let text = faults(&format!("{redis}{postgres}[redis]\nauthorities = \"ca.pem\"\ncertificate = \"c.pem\""));
    assert!(text.contains("certificate and key go together") && text.contains("not rediss://"), "{text}");
    let text = faults(&format!("{redis}{postgres}[recovery]\nlease = \"5s\""));
    assert!(text.contains("query_timeout has to be shorter than recovery.lease"), "{text}");
    assert!(faults("mode = \"production\"").contains("mode production needs at least one key"));
}

#[test]
fn variables_of_other_systems_set_their_keys() {
    let start = Start::new()
        .env("ENV_MODE", "local")
        .env("REDIS_URL", "redis://h")
        .env("SUPABASE_DB_URL", "postgres://h/d")
        .env("REDIS_CONSUMER_NAME", "worker-7")
        .env("DB_POOL_MAX", "33")
        .env("DISABLE_CONNECTIONS", "true")
        .env("DISABLE_WORKERS", "0")
        .env("PORT", "8099")
        .env("RECOVERY_CHECK_INTERVAL_SECONDS", "60")
        .env("STUCK_RUN_TIMEOUT_MINUTES", "10");
    let config = start.loaded();
    assert_eq!((config.broker.to_string(), config.store.to_string()), ("redis://h".into(), "postgres://h/d".into()));
    assert_eq!((config.node.as_deref(), config.postgres.connections), (Some("worker-7"), 33));
    assert_eq!((config.server.connections, config.worker.enabled), (false, true));
    assert_eq!((config.listen.port(), config.recovery.sweep_interval), (8099, Duration::from_secs(60)));
    assert_eq!(config.runs.timeout, Duration::from_secs(600));
    assert_eq!(config.origin("store"), Origin::Alias("SUPABASE_DB_URL".to_owned()));
    // The first of two aliases of one key wins, and Runcast's own variable over both.
    let start = start.env("DATABASE_URL", "postgres://other/d").env("RUNCAST_BROKER", "amqp://h");
    let config = start.loaded();
    assert_eq!((config.broker.to_string(), config.store.to_string()), ("amqp://h".into(), "postgres://other/d".into()));
    let text = start.env("DISABLE_WORKERS", "perhaps").faults();
    assert_eq!(text, "worker.enabled (alias DISABLE_WORKERS): expected true or false, got \"perhaps\"");
}

#[test]
fn secrets_are_resolved_and_never_shown() {
    let start = Start::new()
        .file("key", &format!("{KEY}\n"))
        .file(
            "runcast.toml",
            "[server]\napi_keys = [\"file:key\", \"env:K\"]\n[providers.openai]\napi_key = \"env:K\"\n",
        )
        .env("K", &KEY.to_uppercase());
    let config = start.loaded();
    assert_eq!(config.server.api_keys[0].expose_secret(), KEY);
    assert_eq!(config.server.api_keys[1].expose_secret(), KEY.to_uppercase());
    for shown in [format!("{config:?}"), config.render()] {
        assert!(!shown.to_lowercase().contains(KEY), "{shown}");
    }
    assert!(config.render().contains("api_keys = [\"***\", \"***\"] # runcast.toml:2\n"), "{}", config.render());
    assert!(config.render().contains("api_key = \"***\" # runcast.toml:4\n"), "{}", config.render());
}

#[test]
fn faults_of_secrets_name_the_key_and_not_the_secret() {
    let start = Start::new()
        .file(
            "runcast.toml",
            "[server]\napi_keys = [\"hunter2\"]\n[providers.openai]\napi_key = [\"hunter2\"]\n[providers.a]\napi_key = \
             \"env:GONE\"\nbase_url = \"https://hunter2@host\"\n[providers.b]\napi_key = \"file:gone\"\n\
             [providers.c]\napi_key = \"hunter2\nhunter2 = 1",
        )
        .file(".env", "K=\"hunter2\nhunter2\n");
    let error = start.load().unwrap_err();
    let text = error.to_string();
    assert!(!format!("{error:?}{text}").contains("hunter2"), "{text}");
    for part in [
        ".env:1: ",
        "server.api_keys (runcast.toml:2): item 1: expected a secret of at least 16 characters",
        "providers.openai.api_key (runcast.toml:4): expected a secret",
        "providers.a.api_key (runcast.toml:6): environment variable GONE is not set",
        "providers.a.base_url (runcast.toml:7): expected an http:// or https:// URL",
        "providers.b.api_key (runcast.toml:9): cannot read file gone: ",
        "runcast.toml:11: invalid TOML: ",
    ] {
        assert!(text.contains(part), "{part} is not in:\n{text}");
    }
    assert_eq!(faults("[providers.b]\nurl = \"hunter2\""), "providers.b.url (toml:2): unknown key");
}

#[test]
fn the_rendered_configuration_reads_back_as_itself() {
    let text = "\
data = \"with \\\"quotes\\\"\"
store = \"sqlite:other.db\"
[server]
request_timeout = \"1500ms\"
max_body = 3000
[providers.local]
base_url = \"http://[::1]:8080/v1\"
models = [\"a\", \"b\"]
[agents.helper]
kind = \"model\"
model = \"local/a\"
system = '''
You help.
# Always.
'''
temperature = 1
max_tokens = 0x10
";
    let config = Config::from_toml(text).unwrap();
    let rendered = config.render();
    let again = Config::from_toml(&rendered).unwrap();
    assert_eq!(without_origins(&again.render()), without_origins(&rendered));
    assert_eq!(again.agents["helper"].system, config.agents["helper"].system);
    assert_eq!(again.server.max_body, 3000);
    assert!(rendered.contains("store = \"sqlite:other.db\" # toml:2\n"), "{rendered}");
}

#[test]
fn variables_that_kubernetes_adds_for_a_service_are_no_faults() {
    let start = Start::new()
        .env("RUNCAST_SERVICE_HOST", "10.0.0.1")
        .env("RUNCAST_SERVICE_PORT_HTTP", "80")
        .env("RUNCAST_PORT", "tcp://10.0.0.1:80")
        .env("RUNCAST_PORT_80_TCP_ADDR", "10.0.0.1");
    start.loaded();
    assert_eq!(Start::new().env("RUNCAST_PORT", "80").faults(), "RUNCAST_PORT: unknown variable");
}

#[test]
fn an_agent_says_how_it_converses() {
    let config = Config::from_toml(
        "[agents.a]\nkind = \"scripted\"\ndebounce = \"2s\"\non_busy = \"steer\"\nhistory_messages = 5\n\
         follow_ups = [{ after = \"1h\", instruction = \"Ask.\", times = 2 }, { after = \"1d\", instruction = \"End.\" }]\n\
         [agents.b]\nkind = \"scripted\"\n[[agents.b.follow_ups]]\nafter = \"1m\"\ninstruction = \"x\"\n",
    )
    .unwrap();
    let (a, b) = (&config.agents["a"], &config.agents["b"]);
    assert_eq!((a.debounce, a.on_busy, a.history_messages), (Some(Duration::from_secs(2)), OnBusy::Steer, 5));
    let rules: Vec<_> =
        a.follow_ups.iter().chain(&b.follow_ups).map(|rule| (rule.after.as_secs(), rule.times)).collect();
    assert_eq!(rules, [(3_600, 2), (86_400, 1), (60, 1)]);
    assert!(config.render().contains("{ after = \"1h\", instruction = \"Ask.\", times = 2 }"), "{}", config.render());
    let by_variable = Start::new()
        .file("runcast.toml", "[agents.a]\nkind = \"scripted\"\n")
        .env("RUNCAST_AGENTS_A_FOLLOW_UPS", "[{ after = \"1s\", instruction = \"x\" }]")
        .loaded();
    assert_eq!(by_variable.agents["a"].follow_ups.len(), 1);
}

#[test]
fn an_agent_may_be_a_program_or_a_service_of_ones_own() {
    let start = Start::new()
        .file(
            "runcast.toml",
            "[agents.p]\nkind = \"process\"\ncommand = [\"python3\", \"a b.py\"]\n\
             env = [\"TOKEN=env:MY_TOKEN\", \"MODE=a=b\"]\n\
             [agents.r]\nkind = \"remote\"\nurl = \"http://10.0.0.7:8000/agent/\"\nheaders = [\"x-key=file:key\"]\n\
             params_schema = '{\"type\": \"object\"}'\n",
        )
        .file("key", "sesame\n")
        .env("MY_TOKEN", "sesame");
    let config = start.loaded();
    let (program, service) = (&config.agents["p"], &config.agents["r"]);
    assert_eq!((program.command.len(), service.url.as_deref()), (2, Some("http://10.0.0.7:8000/agent/")));
    let exposed = |values: &[(String, secrecy::SecretString)]| -> Vec<String> {
        values.iter().map(|(name, value)| format!("{name}={}", secrecy::ExposeSecret::expose_secret(value))).collect()
    };
    assert_eq!(exposed(&program.env), ["TOKEN=sesame", "MODE=a=b"]);
    assert_eq!(exposed(&service.headers), ["x-key=sesame"]);
    let shown = format!("{config:?} {}", config.render());
    assert!(shown.contains("env = [\"TOKEN=***\", \"MODE=***\"]") && !shown.contains("sesame"), "{shown}");

    let faults = faults(
        "[agents.a]\nkind = \"process\"\nurl = \"http://x\"\n[agents.b]\nkind = \"remote\"\nenv = [\"A=1\"]\n\
         [agents.c]\nkind = \"process\"\ncommand = [\"x\"]\nenv = [\"sesame\"]\n",
    );
    for problem in [
        "agents.a.command (default): has to be set for an agent of kind process",
        "agents.a.url (toml:3): makes no sense for an agent of kind process",
        "agents.b.url (default): has to be set for an agent of kind remote",
        "agents.b.env (toml:6): makes no sense for an agent of kind remote",
        "agents.c.env (toml:10): item 1: expected Name=value",
    ] {
        assert!(faults.contains(problem), "{problem}: {faults}");
    }
    assert!(!faults.contains("sesame"), "{faults}");
}

#[test]
fn what_is_no_follow_up_is_refused_with_its_place() {
    for (list, problem) in [
        ("\"1h\"", "expected a list of tables such as"),
        ("[1]", "expected a list of tables such as"),
        ("[{ instruction = \"x\" }]", "item 1: after has to be set"),
        ("[{ after = \"1h\" }]", "item 1: instruction has to be set"),
        ("[{ after = \"soon\", instruction = \"x\" }]", "item 1: after: expected a duration"),
        ("[{ after = \"1h\", instruction = \"x\", times = 0 }]", "item 1: times: expected a whole number from 1"),
        ("[{ after = \"1h\", instruction = \"x\", time = 1 }]", "item 1: time: unknown key"),
        (
            "[{ after = \"1h\", instruction = \"x\", hours = \"09:00-09:00\" }]",
            "item 1: hours: expected hours that end at another time than they begin, or \"00:00-24:00\"",
        ),
    ] {
        let faults = faults(&format!("[agents.a]\nkind = \"scripted\"\nfollow_ups = {list}\n"));
        assert!(faults.contains("agents.a.follow_ups (toml:3)") && faults.contains(problem), "{list}: {faults}");
    }
    let faults = faults("[agents.a]\nkind = \"scripted\"\ndebounce = \"2s\"\ndebounce_max = \"1s\"\n");
    assert!(faults.contains("debounce is longer than debounce_max"), "{faults}");
}

#[test]
fn the_committed_example_is_the_generated_one() {
    let committed = include_str!("../../runcast.example.toml");
    assert!(committed == example_toml(), "runcast.example.toml differs; it has to be:\n{}", example_toml());
}

#[test]
fn the_example_parses_to_the_defaults_with_its_keys_and_without() {
    let example = example_toml();
    let keys: String = example
        .lines()
        .filter_map(|line| line.strip_prefix('#').filter(|line| !line.is_empty() && !line.starts_with(' ')))
        .map(|line| format!("{line}\n"))
        .collect();
    assert!(keys.contains("[server]\nworkers = 0\n"), "{keys}");
    let nothing: String = example.lines().filter(|line| !line.starts_with('#')).collect();
    assert_eq!(nothing, "");
    for text in [keys, nothing] {
        let config = Config::from_toml(&text).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(without_origins(&config.render()), without_origins(&Config::default().render()));
    }
}

#[test]
fn tenants_have_keys_of_their_own() {
    let tenants = |acme: &str, other: &str| {
        format!("[tenants.acme]\napi_keys = [\"{acme}\"]\n[tenants.other]\napi_keys = [\"{other}\"]\nrate = 60\n")
    };
    let config = Config::from_toml(&tenants(KEY, "another-key-of-another-tenant")).unwrap();
    let other = &config.tenants["other"];
    assert_eq!((other.weight, other.rate, other.max_running, other.burst), (1, Some(60), None, None));
    assert!(!config.render().contains(KEY), "{}", config.render());

    let text = faults(&tenants(KEY, KEY));
    assert!(text.contains("tenants.acme.api_keys") && text.contains("tenants.other.api_keys"), "{text}");
    assert!(text.contains("share a key") && !text.contains(KEY), "{text}");
    let text = faults(&format!("server.api_keys = [\"{KEY}\"]\n[tenants.acme]\napi_keys = [\"{KEY}\"]\n"));
    assert!(text.contains("server.api_keys") && text.contains("tenants.acme.api_keys"), "{text}");
    // The tenant of server.api_keys may have a section, and keys in both places.
    let both = format!("server.api_keys = [\"{KEY}\"]\n[tenants.default]\nweight = 2\napi_keys = [\"{KEY}\"]\n");
    assert_eq!(Config::from_toml(&both).unwrap().tenants["default"].weight, 2);
    for wrong in ["weight = 0", "rate = 0", "max_running = 0", "max_waiting = 0", "burst = 0", "colour = 1"] {
        let text = faults(&format!("[tenants.acme]\n{wrong}\n"));
        assert!(text.contains("tenants.acme."), "{text}");
    }
    // The keys of tenants are keys, too.
    let open = "listen = \"0.0.0.0:7070\"\nmode = \"production\"\n";
    assert!(faults(open).contains("server.api_keys"));
    Config::from_toml(&format!("{open}[tenants.acme]\napi_keys = [\"{KEY}\"]\n")).unwrap();
    let start = Start::new().env("RUNCAST_TENANTS_ACME_WEIGHT", "2");
    assert!(start.faults().contains("the file has to name the entry first, as [tenants.NAME]"), "{}", start.faults());
}

#[test]
fn a_node_that_executes_nothing_opens_no_secret_of_agents() {
    let toml = |role: &str| {
        format!(
            "role = \"{role}\"\nbroker = \"redis://h\"\nstore = \"postgres://h/d\"\nlisten = \"127.0.0.1:0\"\n\
             [providers.far]\nbase_url = \"https://a.b\"\napi_key = \"env:NOWHERE\"\n\
             [mcp.m]\ncommand = [\"x\"]\nenv = [\"TOKEN=file:/nowhere\"]\n"
        )
    };
    let config = Config::from_toml(&toml("api")).unwrap();
    assert_eq!(config.providers["far"].api_key.as_ref().unwrap().expose_secret(), "env:NOWHERE");
    assert_eq!(config.mcp["m"].env[0].1.expose_secret(), "file:/nowhere");
    let faults = faults(&toml("worker"));
    assert!(faults.contains("NOWHERE is not set") && faults.contains("cannot read file /nowhere"), "{faults}");
}
