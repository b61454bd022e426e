//! Takes in the messages of foreign producers: each becomes a run under its producer's own key, or a dead letter, and
//! only then is removed from its source.
//!
//! Whatever dies in between, the message is handed out again and finds the run, or the letter, that it has made. What
//! may be over in a while (the store is away, too many runs wait) keeps the message, and stops the taking of more.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use runcast_broker::{ErrorKind, Message, Source};
use sha2::{Digest, Sha256};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;
use uuid::{Builder, Uuid};

use super::create::PRIORITIES;
use super::{CreateError, CreateRun, Engine, Key, Start};
use crate::ingest::{Mapping, Wish};
use crate::run::{Backoff, OnDisconnect, Tenant};
use crate::store::{DeadLetter, StoreError};

/// The most messages of one source that are worked on at once.
const AT_ONCE: usize = 64;

const RETRY: Backoff = Backoff { base: Duration::from_millis(100), max: Duration::from_secs(5) };

/// How often a source's trouble is told, at most.
const COMPLAINTS: Duration = Duration::from_secs(60);

/// A queue of foreign messages.
pub struct Ingest {
    /// Its name in the configuration.
    pub name: String,
    /// How its messages are read.
    pub mapping: Mapping,
    /// Where they come from; `None` where they are only read again, when dead letters are requeued.
    pub source: Option<Box<dyn Source>>,
}

/// The wish of a message of the source `name`. The key alone makes it safe to repeat: what else is in a message that
/// comes again, such as a count of retries, may differ.
pub(super) fn create_run(name: &str, wish: Wish) -> CreateRun {
    let Wish { key, agent, input, priority, params, mut metadata } = wish;
    metadata.insert("ingest_source".to_owned(), name.to_owned());
    metadata.insert("ingest_key".to_owned(), key.clone());
    let bound = i64::from(PRIORITIES);
    CreateRun {
        tenant: Tenant::default(),
        agent,
        input,
        params,
        // A producer has a scale of its own; its order is kept as far as ours goes.
        priority: priority.clamp(-bound, bound) as i32,
        start: Start::Now,
        ttl: None,
        timeout: None,
        max_attempts: None,
        budget: crate::run::Budget::NONE,
        on_disconnect: OnDisconnect::Continue,
        thread: None,
        on_busy: None,
        metadata,
        key: Some(Key { route: "ingest", key: format!("{name}:{key}"), fingerprint: [0; 32] }),
        concurrency_key: None,
        correlation_id: None,
        webhook: None,
    }
}

/// Takes messages in until the engine stops; then waits for those under way and lets go of the rest.
pub(super) async fn pump(engine: Engine, name: String, mut source: Box<dyn Source>) {
    let pump = Arc::new(Pump { engine, name, complained: Mutex::default() });
    let (room, tasks) = (Arc::new(Semaphore::new(AT_ONCE)), TaskTracker::new());
    let stop = &pump.engine.life.stop;
    let taking = async {
        let mut failures = 0;
        while let Ok(permit) = Arc::clone(&room).acquire_owned().await {
            if pump.engine.node.shared {
                pump.engine.node.peers.until(true).await;
            }
            match source.next().await {
                Ok(message) => {
                    failures = 0;
                    actix::spawn(tasks.track_future(take_in(Arc::clone(&pump), message, permit)));
                }
                Err(error) if error.kind() == ErrorKind::Closed => {
                    return tracing::error!(ingest = pump.name, %error, "the source has ended");
                }
                Err(error) => {
                    failures += 1;
                    pump.complain(&error);
                    tokio::time::sleep(RETRY.delay(failures, rand::random(), None)).await;
                }
            }
        }
    };
    stop.run_until_cancelled(taking).await;
    tasks.close();
    tasks.wait().await;
    source.close().await;
}

struct Pump {
    engine: Engine,
    name: String,
    /// When trouble was last told.
    complained: Mutex<Option<Instant>>,
}

/// The engine stops: the message stays in its source.
struct Stopped;

/// Makes a run or a dead letter of the message, then removes it. Dropping the message leaves it in its source.
async fn take_in(pump: Arc<Pump>, mut message: Message, permit: OwnedSemaphorePermit) {
    let Ok(outcome) = pump.settle(&message).await else { return };
    pump.engine.node.metrics.ingested(&pump.name, outcome);
    for failures in 1.. {
        let Err(refused) = message.done().await else { break };
        if refused.error.kind() == ErrorKind::Closed || pump.wait(failures, &refused.error).await.is_err() {
            break;
        }
        message = refused.message;
    }
    drop(permit);
}

impl Pump {
    /// Returns what has become of the message, once that is in the store.
    async fn settle(&self, message: &Message) -> Result<&'static str, Stopped> {
        let reason = match self.engine.node.mappings.get(&self.name).map(|mapping| mapping.map(message.payload())) {
            None => "there is no mapping".to_owned(),
            Some(Err(reason)) => reason,
            Some(Ok(wish)) => match self.create(create_run(&self.name, wish)).await? {
                Ok(existed) => return Ok(if existed { "repeated" } else { "run" }),
                Err(refused) => refused.to_string(),
            },
        };
        let letter = DeadLetter {
            id: letter_id(&self.name, message),
            at: self.engine.now(),
            source: self.name.clone(),
            run: None,
            reason,
            payload: message.payload().clone(),
        };
        tracing::warn!(ingest = self.name, letter = %letter.id, reason = letter.reason, "no run can be made of a message");
        for failures in 1.. {
            match self.engine.node.store.bury(letter.clone()).await {
                Ok(()) => break,
                Err(error) => self.wait(failures, &error).await?,
            }
        }
        Ok("dead")
    }

    /// Creates the run, however long that takes; or says why it was refused for good.
    async fn create(&self, wish: CreateRun) -> Result<Result<bool, CreateError>, Stopped> {
        let mut failures = 0;
        loop {
            match self.engine.create(wish.clone()).await {
                Ok((_, existed)) => return Ok(Ok(existed)),
                Err(error) if may_pass(&error) => {
                    failures += 1;
                    self.wait(failures, &error).await?;
                }
                Err(error) => return Ok(Err(error)),
            }
        }
    }

    /// Waits before the next try.
    async fn wait(&self, failures: u32, error: &dyn std::error::Error) -> Result<(), Stopped> {
        self.complain(error);
        let wait = tokio::time::sleep(RETRY.delay(failures, rand::random(), None));
        self.engine.life.stop.run_until_cancelled(wait).await.ok_or(Stopped)
    }

    fn complain(&self, error: &dyn std::error::Error) {
        let mut complained = self.complained.lock();
        if complained.is_none_or(|at| at.elapsed() >= COMPLAINTS) {
            *complained = Some(Instant::now());
            tracing::warn!(ingest = self.name, %error, "cannot take messages in; trying again until it works");
        } else {
            tracing::debug!(ingest = self.name, %error, "cannot take messages in; trying again");
        }
    }
}

/// Whether the same wish may be accepted later, without anybody's changing it.
fn may_pass(error: &CreateError) -> bool {
    match error {
        CreateError::TooManyWaiting { .. }
        | CreateError::TooManyOfTenant { .. }
        | CreateError::RateLimited { .. }
        | CreateError::AgentUnavailable { .. }
        | CreateError::Draining => true,
        // What the store says of the data may be about this message; all else is about the store.
        CreateError::Store(error) => !matches!(error, StoreError::Corrupt(_)),
        CreateError::Invalid { .. }
        | CreateError::UnknownAgent { .. }
        | CreateError::InputTooLarge { .. }
        | CreateError::KeyReused
        | CreateError::NotRetryable(_)
        | CreateError::ThreadMissing
        | CreateError::Refused(_)
        | CreateError::NoWebhookKey(_)
        | CreateError::Missing => false,
    }
}

/// The same for a message whenever it comes, so that it makes one letter.
fn letter_id(name: &str, message: &Message) -> Uuid {
    let digest = Sha256::new()
        .chain_update(name)
        .chain_update([0])
        .chain_update(message.id().unwrap_or_default())
        .chain_update([0])
        .chain_update(message.payload())
        .finalize();
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest[..16]);
    Builder::from_custom_bytes(bytes).into_uuid()
}
