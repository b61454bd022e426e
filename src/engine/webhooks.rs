//! Webhooks: sends what the outbox of the store holds, and keeps the endpoints.
//!
//! The outbox is the truth. A node that executes runs claims what is due, as much as it has room for, sends it, and
//! writes what became of it. It looks as soon as a run of its own has come to something, and every [`POLL`], so that
//! deliveries of a node that is gone are sent, too. A delivery may be sent twice, when a node dies between the two;
//! its id is the same then.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use reqwest::Url;
use serde_json::value::RawValue;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::create::{CreateError, invalid, stored_key};
use super::places::Places;
use super::{Engine, Key, Node};
use crate::run::{Backoff, Status, Tenant, Timestamp, Webhook, WebhookEvent};
use crate::store::webhooks::DISABLED;
use crate::store::{
    DeadLetter, Delivery, DeliveryFilter, Due, Endpoint, EndpointCreated, EndpointPatch, Redelivered, Rotated, Settled,
    Settlement, StoreError, Stored,
};
use crate::webhook::{Client, KeyError, Keys, MasterKey, Payload, Secret, SendError, delay, headers};

/// The source of the dead letters of deliveries.
pub(crate) const SOURCE: &str = "webhook";

/// For how long after a rotation the secret before it signs, too.
pub const ROTATION: Duration = Duration::from_secs(24 * 3600);

/// How many endpoints a tenant may have: each costs a row for every run that it wants to hear of.
const ENDPOINTS: u64 = 50;

/// The longest URL, and name of an agent, in bytes.
const LONGEST: usize = 2_048;

/// How often the outbox is looked at without being asked.
const POLL: Duration = Duration::from_secs(1);

/// And how often while deliveries wait that were sent away for less than that.
const SOON: Duration = Duration::from_millis(100);

/// How often at the most, when there was nothing the last time.
const PACE: Duration = Duration::from_millis(50);

/// The most deliveries claimed at once.
const BATCH: usize = 64;

/// What a delivery waits for the store: from half of it to one and a half.
const AGAIN: Duration = Duration::from_secs(1);

/// What a delivery waits for the master key.
const KEYLESS: Duration = Duration::from_secs(60);

/// How much longer than a call a claim holds: time to write what became of it.
const LEASE_MARGIN: Duration = Duration::from_secs(15);

/// How often old deliveries are removed, and how many at a time.
const FORGET: Duration = Duration::from_secs(60);
const FORGET_BATCH: usize = 256;

/// How long calls that are under way may go on at a shutdown.
const FINISH: Duration = Duration::from_secs(5);

/// How often it is tried to write what became of a delivery. After that its claim ends, and it is sent again.
const SETTLES: u32 = 8;

const RETRY: Backoff = Backoff { base: Duration::from_millis(100), max: Duration::from_secs(5) };

/// What webhooks are made of.
pub struct WebhookParts {
    /// Where secrets come from.
    pub keys: Keys,
    /// Sends, to where that is allowed.
    pub client: Client,
    /// What is told of a run: the object that the API shows.
    pub render: fn(&Stored) -> Option<Box<RawValue>>,
    /// How often a delivery is tried, at least once.
    pub attempts: u32,
    /// How many calls may be under way at once; an eighth of it to one host, and all but an eighth for one tenant.
    pub concurrency: usize,
    /// How long deliveries are kept that have ended.
    pub keep: Duration,
}

/// The webhooks of a node.
pub(crate) struct Webhooks {
    parts: WebhookParts,
    woken: Notify,
    /// The calls that are under way.
    places: Places,
    /// Until when deliveries come due that were sent away for a moment.
    soon: Mutex<Option<Instant>>,
    stop: CancellationToken,
    cut: CancellationToken,
    tasks: TaskTracker,
}

/// Why a request about webhooks was refused.
#[derive(Debug, Clone, thiserror::Error)]
pub enum WebhookError {
    /// A field does not make sense.
    #[error("{field}: {message}")]
    Invalid {
        /// Which one.
        field: &'static str,
        /// What was expected.
        message: String,
    },
    /// There is no such thing, or it is another tenant's.
    #[error("there is no such {0}")]
    Missing(&'static str),
    /// There is no master key.
    #[error(transparent)]
    NoKey(#[from] KeyError),
    /// The idempotency key was used for another request.
    #[error("the idempotency key was used before, with another body")]
    KeyReused,
    /// The tenant has as many endpoints as it may.
    #[error("there are {ENDPOINTS} endpoints already, the most there may be")]
    TooMany,
    /// The endpoint of the delivery is disabled.
    #[error("{DISABLED}; enable it first")]
    Disabled,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A wish for an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointWish {
    /// Where.
    pub url: String,
    /// Which news.
    pub events: Vec<WebhookEvent>,
    /// Only those of this agent's runs.
    pub agent: Option<String>,
    /// Whether it gets anything.
    pub enabled: bool,
}

impl Webhooks {
    pub(crate) fn new(parts: WebhookParts) -> Self {
        Self {
            places: Places::new(parts.concurrency),
            soon: Mutex::default(),
            parts,
            woken: Notify::new(),
            stop: CancellationToken::new(),
            cut: CancellationToken::new(),
            tasks: TaskTracker::new(),
        }
    }

    /// A run of this node has come to `status`: there may be something to tell.
    pub(crate) fn wake(&self, status: Status) {
        if WebhookEvent::of(status).is_some() {
            self.woken.notify_one();
        }
    }

    /// Something has happened to a thread: there may be something to tell.
    pub(crate) fn wake_for_thread(&self) {
        self.woken.notify_one();
    }

    /// Begins to send.
    pub(crate) fn begin(&self, node: &Arc<Node>) {
        actix::spawn(self.tasks.track_future(deliver(Arc::clone(node))));
    }

    /// Claims nothing more, and lets the calls that are under way end; what does not end in time is sent again by
    /// whoever comes first.
    pub(crate) async fn end(&self) {
        self.stop.cancel();
        self.tasks.close();
        if tokio::time::timeout(FINISH, self.tasks.wait()).await.is_err() {
            self.cut.cancel();
            // To be written.
            tokio::time::timeout(FINISH, self.tasks.wait()).await.unwrap_or_default();
        }
    }

    /// The host of a URL; nothing, if it may not be called.
    fn host(&self, url: &str) -> String {
        let parsed = self.parts.client.guard().check(url);
        parsed.as_ref().ok().and_then(Url::host_str).unwrap_or_default().to_owned()
    }
}

/// Sends what is due, until the webhooks end.
async fn deliver(node: Arc<Node>) {
    let webhooks = &node.webhooks;
    let room = Arc::new(Semaphore::new(webhooks.parts.concurrency.clamp(1, Semaphore::MAX_PERMITS)));
    let mut forgotten: Option<Instant> = None;
    while !webhooks.stop.is_cancelled() {
        if forgotten.is_none_or(|at| at.elapsed() >= FORGET) {
            forget(&node).await;
            forgotten = Some(Instant::now());
        }
        let Some(Ok(permit)) = webhooks.stop.run_until_cancelled(Arc::clone(&room).acquire_owned()).await else {
            return;
        };
        let mut permits = vec![permit];
        while permits.len() < BATCH
            && let Ok(permit) = Arc::clone(&room).try_acquire_owned()
        {
            permits.push(permit);
        }
        if round(&node, permits).await {
            continue;
        }
        let rest = async {
            tokio::time::sleep(PACE).await;
            // Whoever woke it meanwhile is remembered.
            let poll = if webhooks.soon.lock().is_some_and(|until| Instant::now() < until) { SOON } else { POLL };
            tokio::time::timeout(poll, webhooks.woken.notified()).await.unwrap_or_default();
        };
        webhooks.stop.run_until_cancelled(rest).await;
    }
}

/// Claims as many as there are permits, and begins to send them. Whether there may be more. Not to be cut off: what
/// is claimed and not sent has to wait for the end of its lease.
async fn round(node: &Arc<Node>, permits: Vec<OwnedSemaphorePermit>) -> bool {
    let lease = node.webhooks.parts.client.timeout().saturating_add(LEASE_MARGIN);
    match node.store.claim_deliveries(node.clock.now(), lease, permits.len()).await {
        Ok(claimed) => {
            let full = claimed.len() == permits.len();
            for (due, permit) in claimed.into_iter().zip(permits) {
                let send = send(Arc::clone(node), due, permit);
                actix::spawn(node.webhooks.tasks.track_future(send));
            }
            full
        }
        Err(error) => {
            node.outage.felt("cannot look for webhooks", &error);
            false
        }
    }
}

async fn forget(node: &Arc<Node>) {
    let keep = i64::try_from(node.webhooks.parts.keep.as_millis()).unwrap_or(i64::MAX);
    let before = Timestamp::from_millis(node.clock.now().as_millis().saturating_sub(keep));
    while !node.webhooks.stop.is_cancelled() {
        match node.store.forget_deliveries(before, FORGET_BATCH).await {
            Ok(forgotten) if forgotten < FORGET_BATCH as u64 => return,
            Ok(_) => {}
            Err(error) => return tracing::debug!(%error, "cannot remove old webhook deliveries"),
        }
    }
}

/// Sends a delivery and writes what became of it.
async fn send(node: Arc<Node>, due: Due, permit: OwnedSemaphorePermit) {
    let webhooks = &node.webhooks;
    let attempted = webhooks.cut.run_until_cancelled(attempt(&node, &due)).await;
    let Attempt { settlement, gone } = attempted.unwrap_or(Settlement::Postponed(Duration::ZERO).into());
    drop(permit);
    match &settlement {
        Settlement::Delivered(_) => node.metrics.webhook("delivered"),
        Settlement::Retry { .. } => node.metrics.webhook("failed"),
        Settlement::Dead { .. } => node.metrics.webhook("dead"),
        Settlement::Postponed(wait) if *wait < POLL => {
            let until = Instant::now() + *wait + POLL;
            let mut soon = webhooks.soon.lock();
            *soon = Some(soon.map_or(until, |known| known.max(until)));
        }
        Settlement::Postponed(_) => {}
    }
    let settled = Settled { id: due.delivery.id, claim: due.claim, settlement };
    for failures in 1..=SETTLES {
        match node.store.settle_delivery(settled.clone(), node.clock.now()).await {
            Ok(_) => break,
            Err(error) if error.is_transient() && failures < SETTLES => {
                node.outage.felt("cannot write what became of a webhook", &error);
                tokio::time::sleep(RETRY.delay(failures, rand::random::<f64>(), None)).await;
            }
            Err(error) => {
                let what = "what became of a webhook is not written: it is sent again";
                tracing::error!(delivery = %settled.id, %error, "{what}");
                break;
            }
        }
    }
    if let (true, Some(endpoint)) = (gone, due.delivery.endpoint) {
        // Not if somebody has sent it elsewhere meanwhile.
        let still_at = due.endpoint.map(|endpoint| endpoint.url);
        let patch = EndpointPatch { enabled: Some(false), still_at, ..EndpointPatch::default() };
        let now = node.clock.now();
        match node.store.patch_endpoint(&due.delivery.tenant, endpoint, patch, now).await {
            Ok(Some(patched)) if !patched.enabled => {
                tracing::warn!(%endpoint, "a webhook endpoint has answered 410 Gone: it is disabled");
            }
            Ok(_) => {}
            // The next delivery says so again.
            Err(error) => tracing::debug!(%endpoint, %error, "cannot disable a webhook endpoint"),
        }
    }
}

/// What an attempt has come to.
struct Attempt {
    settlement: Settlement,
    /// The receiver has said that there is nobody any more.
    gone: bool,
}

impl From<Settlement> for Attempt {
    fn from(settlement: Settlement) -> Self {
        Self { settlement, gone: false }
    }
}

fn given_up(error: &str) -> Attempt {
    Settlement::Dead { sent: false, answer: None, error: error.to_owned(), letter: None }.into()
}

fn postponed(wait: Duration) -> Attempt {
    Settlement::Postponed(wait.mul_f64(0.5 + rand::random::<f64>())).into()
}

async fn attempt(node: &Node, due: &Due) -> Attempt {
    let Due { delivery, endpoint, .. } = due;
    let webhooks = &node.webhooks;
    if delivery.endpoint.is_some() && endpoint.as_ref().is_none_or(|endpoint| !endpoint.enabled) {
        return given_up(DISABLED);
    }
    // Before anything is read for it: that of an endpoint is known.
    let mut place = None;
    if let Some(endpoint) = endpoint {
        match webhooks.places.enter(&delivery.tenant, &webhooks.host(&endpoint.url)) {
            Ok(found) => place = Some(found),
            Err(wait) => return postponed(wait),
        }
    }
    let stored = match delivery.run {
        None => None,
        Some(run) => match node.store.get(&delivery.tenant, run).await {
            Ok(Some(stored)) => Some(stored),
            Ok(None) => return given_up("the run is gone"),
            Err(error) if error.is_transient() => return postponed(AGAIN),
            Err(error) => return given_up(&error.to_string()),
        },
    };
    let own = stored.as_ref().and_then(|stored| stored.run.spec.webhook.as_ref());
    let Some(url) = endpoint.as_ref().map(|endpoint| &endpoint.url).or(own.map(|own| &own.url)) else {
        return given_up("there is no URL");
    };
    let secrets = match webhooks.parts.keys.get() {
        Ok(key) => secrets(key, endpoint.as_ref(), &delivery.tenant, node.clock.now()),
        Err(error) => {
            tracing::error!(%error, "a webhook cannot be signed");
            return postponed(KEYLESS);
        }
    };
    let data = match &stored {
        Some(stored) => (webhooks.parts.render)(stored),
        None => delivery.data.clone().and_then(|data| RawValue::from_string(data).ok()),
    };
    let body = data.and_then(|data| {
        serde_json::to_vec(&Payload { event: delivery.event, timestamp: delivery.at, data: &data }).ok()
    });
    let Some(body) = body.map(Bytes::from) else { return given_up("what is to be told cannot be written") };

    let place = match place {
        Some(place) => place,
        None => match webhooks.places.enter(&delivery.tenant, &webhooks.host(url)) {
            Ok(place) => place,
            Err(wait) => return postponed(wait),
        },
    };
    let timestamp = node.clock.now().as_millis().div_euclid(1_000);
    let headers = headers(&secrets, &delivery.id.to_string(), timestamp, &body);
    let answered = webhooks.parts.client.post(url, &headers, body).await;
    drop(place);
    judge(delivery, url, answered, webhooks.parts.attempts, node.clock.now())
}

/// What an answer means for a delivery that had `delivery.attempts` attempts before this one.
fn judge(delivery: &Delivery, url: &str, answered: Result<u16, SendError>, most: u32, now: Timestamp) -> Attempt {
    let (answer, error) = match answered {
        Ok(status @ 200..=299) => return Settlement::Delivered(status).into(),
        Ok(status) => (Some(status), format!("the receiver has answered {status}")),
        Err(error) => (None, error.to_string()),
    };
    let (attempts, gone) = (delivery.attempts.saturating_add(1), answer == Some(410));
    if attempts < most && !gone {
        let after = delay(attempts, rand::random());
        return Settlement::Retry { after, answer, error }.into();
    }
    let letter = Some(Box::new(letter(delivery, url, &error, attempts, now)));
    Attempt { settlement: Settlement::Dead { sent: true, answer, error, letter }, gone }
}

/// The letter about a delivery that is given up.
fn letter(delivery: &Delivery, url: &str, error: &str, attempts: u32, now: Timestamp) -> DeadLetter {
    let about = serde_json::json!({
        "delivery_id": delivery.id,
        "event": delivery.event,
        "endpoint_id": delivery.endpoint,
        "run_id": delivery.run,
        "thread_id": delivery.thread,
        "tenant": delivery.tenant,
    });
    DeadLetter {
        id: delivery.id,
        at: now,
        source: SOURCE.to_owned(),
        // It is not the run that has failed.
        run: None,
        reason: format!("{} to {}: {error}, after {attempts} attempts", delivery.event, place(url)),
        payload: Bytes::from(about.to_string()),
    }
}

/// A URL without what may be a secret: user, password, query and fragment.
fn place(url: &str) -> String {
    match Url::parse(url) {
        Ok(url) => {
            let port = url.port().map_or_else(String::new, |port| format!(":{port}"));
            format!("{}://{}{port}{}", url.scheme(), url.host_str().unwrap_or_default(), url.path())
        }
        Err(_) => "its URL".to_owned(),
    }
}

/// What a delivery is signed with: the newest secret first.
fn secrets(key: &MasterKey, endpoint: Option<&Endpoint>, tenant: &Tenant, now: Timestamp) -> Vec<Secret> {
    let Some(endpoint) = endpoint else { return vec![key.of_tenant(tenant)] };
    let mut secrets = vec![key.of_endpoint(endpoint.id, endpoint.secret_version)];
    let rotated = endpoint.rotated_at.is_some_and(|at| now.since(at) < ROTATION);
    if rotated && endpoint.secret_version > 1 {
        secrets.push(key.of_endpoint(endpoint.id, endpoint.secret_version - 1));
    }
    secrets
}

impl Engine {
    /// Checks the webhook that a run names itself.
    pub(super) fn check_webhook(&self, webhook: &Webhook) -> Result<(), CreateError> {
        let parts = &self.node.webhooks.parts;
        self.check_url(&webhook.url).map_err(|message| invalid("webhook.url", message))?;
        if webhook.events.is_empty() || webhook.events.iter().any(|event| !event.is_of_run()) {
            return Err(invalid("webhook.events", "expected at least one event, and only those of runs"));
        }
        parts.keys.get()?;
        Ok(())
    }

    fn check_url(&self, url: &str) -> Result<(), String> {
        if url.len() > LONGEST {
            return Err(format!("expected at most {LONGEST} bytes"));
        }
        self.node.webhooks.parts.client.guard().check(url).map(drop).map_err(|refused| refused.to_string())
    }

    fn check_endpoint(&self, patch: &mut EndpointPatch) -> Result<(), WebhookError> {
        let invalid = |field, message: String| WebhookError::Invalid { field, message };
        if let Some(url) = &patch.url {
            self.check_url(url).map_err(|message| invalid("url", message))?;
        }
        if let Some(events) = &mut patch.events {
            events.sort_unstable();
            events.dedup();
            if events.is_empty() {
                return Err(invalid("events", "expected at least one event".to_owned()));
            }
        }
        match &patch.agent {
            Some(Some(agent)) if agent.is_empty() || agent.len() > LONGEST => {
                Err(invalid("agent", format!("expected 1 to {LONGEST} bytes")))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Creates an endpoint. The flag says whether it was there before, under the same key.
    pub async fn create_endpoint(
        &self,
        tenant: &Tenant,
        wish: EndpointWish,
        key: Option<Key>,
    ) -> Result<(Endpoint, bool), WebhookError> {
        let EndpointWish { url, events, agent, enabled } = wish;
        let (url, events, agent) = (Some(url), Some(events), Some(agent));
        let mut checked = EndpointPatch { url, events, agent, ..EndpointPatch::default() };
        self.check_endpoint(&mut checked)?;
        self.node.webhooks.parts.keys.get()?;
        let now = self.now();
        let endpoint = Endpoint {
            id: Uuid::now_v7(),
            tenant: tenant.clone(),
            url: checked.url.unwrap_or_default(),
            events: checked.events.unwrap_or_default(),
            agent: checked.agent.flatten(),
            enabled,
            secret_version: 1,
            rotated_at: None,
            created_at: now,
        };
        let key = key.map(|key| stored_key(key, now));
        match self.node.store.create_endpoint(endpoint.clone(), key, ENDPOINTS).await? {
            EndpointCreated::New => Ok((endpoint, false)),
            EndpointCreated::Existing(endpoint) => Ok((endpoint, true)),
            EndpointCreated::KeyReused => Err(WebhookError::KeyReused),
            EndpointCreated::TooMany => Err(WebhookError::TooMany),
        }
    }

    /// The tenant's endpoints, oldest first, at most `limit`, beginning after `after`.
    pub async fn endpoints(
        &self,
        tenant: &Tenant,
        after: Option<Uuid>,
        limit: usize,
    ) -> Result<Vec<Endpoint>, WebhookError> {
        Ok(self.node.store.endpoints(tenant, after, limit).await?)
    }

    /// The tenant's endpoint `id`.
    pub async fn endpoint(&self, tenant: &Tenant, id: Uuid) -> Result<Endpoint, WebhookError> {
        self.node.store.endpoint(tenant, id).await?.ok_or(WebhookError::Missing("endpoint"))
    }

    /// Changes an endpoint. What waits for one that is disabled is given up.
    pub async fn patch_endpoint(
        &self,
        tenant: &Tenant,
        id: Uuid,
        mut patch: EndpointPatch,
    ) -> Result<Endpoint, WebhookError> {
        self.check_endpoint(&mut patch)?;
        let patched = self.node.store.patch_endpoint(tenant, id, patch, self.now()).await?;
        patched.ok_or(WebhookError::Missing("endpoint"))
    }

    /// Gives an endpoint a new secret, once for the key; for [`ROTATION`] the one before signs, too. Whoever repeats
    /// the request gets the endpoint as it is then: a secret that verifies, also after another rotation.
    pub async fn rotate_endpoint(&self, tenant: &Tenant, id: Uuid, key: Option<Key>) -> Result<Endpoint, WebhookError> {
        self.node.webhooks.parts.keys.get()?;
        let now = self.now();
        let key = key.map(|key| stored_key(key, now));
        match self.node.store.rotate_endpoint(tenant, id, key, now).await? {
            Rotated::Done(endpoint) => Ok(endpoint),
            Rotated::KeyReused => Err(WebhookError::KeyReused),
            Rotated::Missing => Err(WebhookError::Missing("endpoint")),
        }
    }

    /// Removes an endpoint with its deliveries.
    pub async fn delete_endpoint(&self, tenant: &Tenant, id: Uuid) -> Result<(), WebhookError> {
        let deleted = self.node.store.delete_endpoint(tenant, id).await?;
        deleted.then_some(()).ok_or(WebhookError::Missing("endpoint"))
    }

    /// What verifies the deliveries to an endpoint.
    pub fn endpoint_secret(&self, endpoint: &Endpoint) -> Result<Secret, WebhookError> {
        Ok(self.node.webhooks.parts.keys.get()?.of_endpoint(endpoint.id, endpoint.secret_version))
    }

    /// What verifies the webhooks that a tenant's runs name themselves.
    pub fn tenant_secret(&self, tenant: &Tenant) -> Result<Secret, WebhookError> {
        Ok(self.node.webhooks.parts.keys.get()?.of_tenant(tenant))
    }

    /// The tenant's deliveries that match `filter`, youngest first, at most `limit`.
    pub async fn deliveries(
        &self,
        tenant: &Tenant,
        filter: DeliveryFilter,
        limit: usize,
    ) -> Result<Vec<Delivery>, WebhookError> {
        Ok(self.node.store.deliveries(tenant, filter, limit).await?)
    }

    /// Sends a delivery again that has ended, under the same id. One that has not ended stays as it is.
    pub async fn redeliver(&self, tenant: &Tenant, id: Uuid) -> Result<Delivery, WebhookError> {
        match self.node.store.redeliver(tenant, id, self.now()).await? {
            Redelivered::Pending(delivery) => {
                self.node.webhooks.woken.notify_one();
                Ok(*delivery)
            }
            Redelivered::Disabled => Err(WebhookError::Disabled),
            Redelivered::Missing => Err(WebhookError::Missing("delivery")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::DeliveryStatus;

    fn delivery(attempts: u32) -> Delivery {
        Delivery {
            id: Uuid::from_u128(7),
            tenant: Tenant::default(),
            endpoint: None,
            event: WebhookEvent::RunFailed,
            run: None,
            thread: Some("t".to_owned()),
            data: None,
            at: Timestamp::from_millis(1),
            status: DeliveryStatus::Pending,
            attempts,
            due_at: Timestamp::from_millis(1),
            answer: None,
            error: None,
            settled_at: None,
        }
    }

    const URL: &str = "https://u:hush@h.example:8443/hook?token=hush#hush";

    fn judged(attempts: u32, answered: Result<u16, SendError>) -> Attempt {
        judge(&delivery(attempts), URL, answered, 3, Timestamp::from_millis(9))
    }

    #[test]
    fn a_status_of_success_ends_a_delivery() {
        for status in [200, 204, 299] {
            assert_eq!(judged(2, Ok(status)).settlement, Settlement::Delivered(status));
        }
    }

    #[test]
    fn everything_else_is_tried_again_by_the_schedule() {
        for answered in [Ok(199), Ok(302), Ok(404), Ok(500), Err(SendError::Broken("reset".to_owned()))] {
            let Attempt { settlement: Settlement::Retry { after, answer, error }, gone: false } =
                judged(0, answered.clone())
            else {
                panic!("{answered:?}")
            };
            assert!((5_000..=5_500).contains(&after.as_millis()));
            assert_eq!(answer, answered.clone().ok());
            assert!(error.contains(&answered.map_or("reset".to_owned(), |status| status.to_string())), "{error}");
        }
    }

    #[test]
    fn the_last_attempt_leaves_a_letter_without_secrets() {
        let Attempt { settlement: Settlement::Dead { sent, answer, letter, .. }, gone: false } = judged(2, Ok(503))
        else {
            panic!("it has no attempt left")
        };
        let letter = letter.unwrap();
        assert_eq!((sent, answer, letter.id, letter.run), (true, Some(503), Uuid::from_u128(7), None));
        assert_eq!(
            letter.reason,
            "run.failed to https://h.example:8443/hook: the receiver has answered 503, after 3 attempts"
        );
        assert!(!String::from_utf8_lossy(&letter.payload).contains("hush"));
    }

    #[test]
    fn gone_is_gone_at_once() {
        let attempt = judged(0, Ok(410));
        assert!(attempt.gone && matches!(attempt.settlement, Settlement::Dead { letter: Some(_), .. }));
    }

    #[test]
    fn a_rotated_secret_signs_for_a_day_more() {
        let keys = Keys::given("k".repeat(32).into());
        let key = keys.get().unwrap();
        let day = i64::try_from(ROTATION.as_millis()).unwrap();
        let mut endpoint = Endpoint {
            id: Uuid::from_u128(1),
            tenant: Tenant::default(),
            url: URL.to_owned(),
            events: vec![WebhookEvent::RunFailed],
            agent: None,
            enabled: true,
            secret_version: 1,
            rotated_at: None,
            created_at: Timestamp::from_millis(0),
        };
        let of = |endpoint: &Endpoint, now| secrets(key, Some(endpoint), &endpoint.tenant, Timestamp::from_millis(now));
        let first = of(&endpoint, 0);
        assert_eq!(first.len(), 1);
        (endpoint.secret_version, endpoint.rotated_at) = (2, Some(Timestamp::from_millis(5)));
        let both = of(&endpoint, 5 + day - 1);
        assert_eq!((both.len(), &both[1]), (2, &first[0]));
        assert_eq!(of(&endpoint, 5 + day), both[..1]);
        assert_eq!(secrets(key, None, &endpoint.tenant, Timestamp::from_millis(0)), [key.of_tenant(&endpoint.tenant)]);
    }
}
