//! `runcast doctor`: what is wrong, and what to do about it.

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use runcast_broker::{Broker, NodePresence};

use super::SettingFlags;
use crate::app;
use crate::clock::{Clock, SystemClock};
use crate::config::{BrokerUrl, Config, StoreUrl};
use crate::engine::NodeCard;
use crate::run::Timestamp;
use crate::store::{Agreement, Proposal, Store, StoreError};

/// How long a service may take to answer before it counts as away.
const PATIENCE: Duration = Duration::from_secs(10);

/// How far the clocks of two machines may be apart before timers are felt to fire early or late.
const SKEW: Duration = Duration::from_secs(2);

/// So many dead letters are worth a look.
const LETTERS: u64 = 1;

/// What a check has found.
enum Finding {
    Fine(String),
    /// It works, but somebody should know.
    Warning(String, String),
    /// It does not work; what to do about it.
    Wrong(String, String),
}

use Finding::{Fine, Warning, Wrong};

/// Checks one thing after the other, and tells each at once.
struct Doctor {
    wrong: bool,
}

pub(super) fn doctor(settings: SettingFlags) -> ExitCode {
    // Its faults are told with their places, and what was expected.
    let config = match settings.load() {
        Ok(config) => config,
        Err(code) => return code,
    };
    let mut doctor = Doctor { wrong: false };
    doctor.tell(
        "configuration",
        Fine(format!("role {}, mode {}, namespace {}", config.role, config.mode, config.namespace)),
    );
    super::on_runtime(doctor.examine(&config));
    if doctor.wrong { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

impl Doctor {
    fn tell(&mut self, what: &str, finding: Finding) {
        let (sign, text, advice) = match finding {
            Fine(text) => ("ok", text, None),
            Warning(text, advice) => ("warn", text, Some(advice)),
            Wrong(text, advice) => {
                self.wrong = true;
                ("WRONG", text, Some(advice))
            }
        };
        let mut lines = format!("{sign:5}  {what:13}  {text}\n");
        if let Some(advice) = advice {
            lines.push_str(&format!("       {:13}  -> {advice}\n", ""));
        }
        // Nobody may be reading; the exit code tells as well.
        io::stdout().write_all(lines.as_bytes()).unwrap_or_default();
    }

    async fn examine(&mut self, config: &Config) {
        let agreement = self.store(config).await;
        self.broker(config, agreement.as_ref()).await;
        self.providers(config);
    }

    async fn store(&mut self, config: &Config) -> Option<Agreement> {
        let place = config.store.to_string();
        let store = match app::open_store(config).await {
            Ok(store) => store,
            Err(app::StartError::Store(StoreError::InUse(text))) => {
                let advice = "a node is running on it, which is fine: ask it by GET /ready and `runcast queues`";
                self.tell("store", Warning(text, advice.to_owned()));
                return None;
            }
            Err(error) => {
                self.tell(
                    "store",
                    Wrong(format!("{place}: {error}"), "mend the key `store`, or what it names".to_owned()),
                );
                return None;
            }
        };
        let reached = within(async || store.health().await).await;
        if let Err(error) = reached {
            self.tell("store", Wrong(format!("{place}: {error}"), advice_for_store(&error, config)));
            return None;
        }
        self.tell("store", Fine(place));
        let agreement = self.schema(&*store, config).await;
        self.queues(&*store).await;
        store.close().await;
        agreement
    }

    async fn schema(&mut self, store: &dyn Store, config: &Config) -> Option<Agreement> {
        let proposal = Proposal { mode: config.mode.to_string(), namespace: config.namespace.clone() };
        let before = SystemClock.now();
        let agreement = match store.agree(&proposal, false).await {
            Ok(agreement) => agreement,
            Err(error) => {
                self.tell("schema", Wrong(error.to_string(), advice_for_store(&error, config)));
                return None;
            }
        };
        let version = format!("version {}, this program brings it to {}", agreement.schema, agreement.known_schema);
        let finding = match agreement.schema.cmp(&agreement.known_schema) {
            std::cmp::Ordering::Equal => Fine(format!("version {}", agreement.schema)),
            std::cmp::Ordering::Less => Warning(version, "run `runcast migrate`".to_owned()),
            std::cmp::Ordering::Greater => {
                Warning(version, "a newer version of Runcast has been here: finish the upgrade of this node".to_owned())
            }
        };
        self.tell("schema", finding);
        let advice = || "set the keys `mode` and `namespace` alike on all nodes, or run `runcast migrate --adopt`";
        let agreed = &agreement.agreed;
        let finding = match *agreed == proposal {
            true => Fine(format!("mode {}, namespace {}", agreed.mode, agreed.namespace)),
            false => {
                let text = format!(
                    "the store was set up with mode {} and namespace {}, this node has {} and {}",
                    agreed.mode, agreed.namespace, proposal.mode, proposal.namespace
                );
                Wrong(text, advice().to_owned())
            }
        };
        self.tell("agreement", finding);
        self.clocks(before, agreement.clock, SystemClock.now());
        Some(agreement)
    }

    /// `theirs` was read some time between `before` and `after`.
    fn clocks(&mut self, before: Timestamp, theirs: Timestamp, after: Timestamp) {
        let apart = before.since(theirs).max(theirs.since(after));
        let text = format!("this machine and the store are {} ms apart", apart.as_millis());
        let finding = if apart > SKEW {
            let advice = "let both follow a time server (NTP): delays and expiries go by this machine's clock";
            Warning(text, advice.to_owned())
        } else {
            Fine(text)
        };
        self.tell("clocks", finding);
    }

    async fn queues(&mut self, store: &dyn Store) {
        let depths = match store.depths().await {
            Ok(depths) => depths,
            Err(error) => return self.tell("queues", Wrong(error.to_string(), "see the store".to_owned())),
        };
        let text = format!(
            "pending {}, high_priority {}, processing {}, retry {}, failed {}",
            depths.pending, depths.high_priority, depths.processing, depths.retry, depths.failed
        );
        let finding = if depths.failed >= LETTERS {
            Warning(text, "look at them with `runcast queues dead`, then requeue or purge them".to_owned())
        } else {
            Fine(text)
        };
        self.tell("queues", finding);
    }

    async fn broker(&mut self, config: &Config, agreement: Option<&Agreement>) {
        let place = config.broker.to_string();
        if config.broker == BrokerUrl::Memory {
            return self.tell("broker", Fine(format!("{place}: inside the node")));
        }
        let broker = match app::connect_broker(config, "runcast-doctor").await {
            Ok(broker) => broker,
            Err(error) => {
                return self
                    .tell("broker", Wrong(error.to_string(), "mend the key `broker` and its section".to_owned()));
            }
        };
        match within(async || broker.health().await).await {
            Ok(()) => {
                self.tell("broker", Fine(place));
                self.nodes(&*broker, agreement).await;
            }
            Err(error) => {
                let advice = "see that it is running and can be reached, and that user and password are right; nodes \
                              accept runs meanwhile, and go on by themselves when it is back";
                self.tell("broker", Wrong(format!("{place}: {error}"), advice.to_owned()));
            }
        }
        broker.close().await;
    }

    async fn nodes(&mut self, broker: &dyn Broker, agreement: Option<&Agreement>) {
        // Where nodes tell each other who is there, they need a moment for it.
        let mut nodes = Vec::new();
        for _ in 0..20 {
            match broker.nodes().await {
                Ok(found) => nodes = found,
                Err(error) => return self.tell("nodes", Wrong(error.to_string(), "see the broker".to_owned())),
            }
            if !nodes.is_empty() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        if nodes.is_empty() {
            let advice = "start one: `runcast serve`; if some are running, see that broker and namespace are theirs";
            return self.tell("nodes", Warning("there is no node".to_owned(), advice.to_owned()));
        }
        let mut workers = 0;
        for NodePresence { node, payload } in nodes {
            let Ok(card) = serde_json::from_slice::<NodeCard>(&payload) else {
                self.tell(
                    "node",
                    Warning(format!("{node}: its card cannot be read"), "upgrade one of the two".to_owned()),
                );
                continue;
            };
            workers += u32::from(card.role.executes() && card.disagreements.is_empty());
            self.node(&card, agreement);
        }
        if workers == 0 {
            let advice = "start one: `runcast serve --role worker`";
            self.tell("nodes", Wrong("no worker takes runs".to_owned(), advice.to_owned()));
        }
    }

    fn node(&mut self, card: &NodeCard, agreement: Option<&Agreement>) {
        let role = serde_json::to_value(card.role).unwrap_or_default();
        let text = format!(
            "{}: {}, version {}, {} of {} runs, last seen {}",
            card.id,
            role.as_str().unwrap_or_default(),
            card.version,
            card.live,
            card.concurrency,
            card.heartbeat_at
        );
        if !card.disagreements.is_empty() {
            let advice = "give it the configuration of the others; until then it takes no runs";
            return self.tell("node", Wrong(format!("{text}; {}", card.disagreements.join("; ")), advice.to_owned()));
        }
        if let (Some(agreement), Some(theirs)) = (agreement, &card.fingerprint)
            && theirs.store != agreement.store
        {
            let advice = "it uses another store than this configuration: set the key `store` alike on all nodes";
            return self.tell("node", Wrong(text, advice.to_owned()));
        }
        match card.agents.iter().find_map(|offer| Some((&offer.agent, offer.lacks.as_ref()?))) {
            Some((agent, lacks)) => {
                let advice = format!("it does not execute {agent}: {lacks}");
                self.tell("node", Warning(text, advice));
            }
            None => self.tell("node", Fine(text)),
        }
    }

    fn providers(&mut self, config: &Config) {
        let missing: Vec<_> = app::missing_keys(config).collect();
        if missing.is_empty() {
            self.tell("providers", Fine(format!("{} with all they need", app::providers(config).count())));
        }
        for (provider, missing) in missing {
            self.tell("provider", Warning(provider.to_owned(), missing));
        }
    }
}

/// Asks until it works, for at most [`PATIENCE`]: a connection in the background takes its time.
async fn within<E>(ask: impl AsyncFn() -> Result<(), E>) -> Result<(), E> {
    let until = tokio::time::Instant::now() + PATIENCE;
    loop {
        match ask().await {
            Err(_) if tokio::time::Instant::now() < until => tokio::time::sleep(Duration::from_millis(200)).await,
            answer => return answer,
        }
    }
}

fn advice_for_store(error: &StoreError, config: &Config) -> String {
    let advice = match (error, &config.store) {
        (StoreError::Unavailable(_), StoreUrl::Postgres(_)) => {
            "see that PostgreSQL is running and can be reached, and that user, password and database are right; nodes \
             answer 503 meanwhile, and go on by themselves when it is back"
        }
        (StoreError::Full(_), _) => "make room on its disk",
        (StoreError::ReadOnly(_), _) => "let this user write to it, or name the primary server",
        (StoreError::Foreign(_), _) => "run `runcast migrate`, or the version of Runcast that wrote it",
        _ => "see the text; a backup may be the way back",
    };
    advice.to_owned()
}
