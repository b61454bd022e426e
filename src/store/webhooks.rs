//! The contract of webhooks: endpoints, and the outbox of what is to be told them.

use std::time::Duration;

use async_trait::async_trait;
use serde_json::json;
use uuid::Uuid;

use super::{DeadLetter, IdempotencyKey, StoreError};
use crate::run::{RunId, Tenant, Timestamp, WebhookEvent};
use crate::thread::{self, Happened, Thread};

/// Keeps endpoints, and deliveries to them. All methods are cancellation safe.
///
/// A delivery is put into the outbox in the transaction that changes the status of its run (or the thread): for every
/// enabled endpoint of the tenant that wants the event, and for the run's own webhook. It is removed with its run.
#[async_trait]
pub trait WebhookStore: Send + Sync + 'static {
    /// Keeps a new endpoint, unless its tenant has `most` already. The key's run is the endpoint.
    async fn create_endpoint(
        &self,
        endpoint: Endpoint,
        key: Option<IdempotencyKey>,
        most: u64,
    ) -> Result<EndpointCreated, StoreError>;

    /// The tenant's endpoints, oldest first, at most `limit`, beginning after `after`.
    async fn endpoints(&self, tenant: &Tenant, after: Option<Uuid>, limit: usize) -> Result<Vec<Endpoint>, StoreError>;

    /// The tenant's endpoint `id`.
    async fn endpoint(&self, tenant: &Tenant, id: Uuid) -> Result<Option<Endpoint>, StoreError>;

    /// Changes an endpoint; returns it as it is now. What waits for one that is disabled is not delivered any more.
    /// As many of these as can be given up in a moment are given up at once, the others when they are due.
    async fn patch_endpoint(
        &self,
        tenant: &Tenant,
        id: Uuid,
        patch: EndpointPatch,
        now: Timestamp,
    ) -> Result<Option<Endpoint>, StoreError>;

    /// Raises the version of an endpoint's secret, once for the key.
    async fn rotate_endpoint(
        &self,
        tenant: &Tenant,
        id: Uuid,
        key: Option<IdempotencyKey>,
        now: Timestamp,
    ) -> Result<Rotated, StoreError>;

    /// Removes an endpoint with its deliveries and their dead letters; whether there was one. As many of these as can
    /// be removed in a moment go at once, the others with [`Self::forget_deliveries`].
    async fn delete_endpoint(&self, tenant: &Tenant, id: Uuid) -> Result<bool, StoreError>;

    /// Claims up to `limit` deliveries that are due, earliest first. Nobody else gets them for `lease`; those of a
    /// process that has ended, in a store of one process, are due at once when it is opened again. A store of
    /// many nodes goes by its own clock, and not by `now`.
    async fn claim_deliveries(&self, now: Timestamp, lease: Duration, limit: usize) -> Result<Vec<Due>, StoreError>;

    /// Writes what became of a claimed delivery; `false` if it is no longer that claim's, or gone.
    async fn settle_delivery(&self, settled: Settled, now: Timestamp) -> Result<bool, StoreError>;

    /// The tenant's deliveries that match `filter`, youngest first, at most `limit`.
    async fn deliveries(
        &self,
        tenant: &Tenant,
        filter: DeliveryFilter,
        limit: usize,
    ) -> Result<Vec<Delivery>, StoreError>;

    /// Makes a delivery that has ended due again, with all its attempts, and removes its dead letter. One that has
    /// not ended stays as it is.
    async fn redeliver(&self, tenant: &Tenant, id: Uuid, now: Timestamp) -> Result<Redelivered, StoreError>;

    /// Removes deliveries that ended before `before`, with their dead letters, at most `limit`; returns how many.
    async fn forget_deliveries(&self, before: Timestamp, limit: usize) -> Result<u64, StoreError>;

    /// Puts news of a thread into the outbox, in a transaction of their own. What changes a thread calls the
    /// adapter's function for that within its own transaction.
    async fn announce(&self, news: ThreadNews) -> Result<(), StoreError>;
}

/// Where news of a tenant's runs and threads go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// UUID version 7.
    pub id: Uuid,
    /// Whose.
    pub tenant: Tenant,
    /// Where.
    pub url: String,
    /// Which news, at least one.
    pub events: Vec<WebhookEvent>,
    /// Only those of this agent's runs. News of threads are of no agent.
    pub agent: Option<String>,
    /// Nothing is put into the outbox for one that is not.
    pub enabled: bool,
    /// Which of its secrets is in use, from 1.
    pub secret_version: u32,
    /// When that version came into use, if it is not the first.
    pub rotated_at: Option<Timestamp>,
    /// When it was created.
    pub created_at: Timestamp,
}

/// What became of the creation of an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EndpointCreated {
    /// It is there now.
    New,
    /// The key was used before with the same body: this is the first one's endpoint.
    Existing(Endpoint),
    /// The key was used before with another body, or its endpoint is gone.
    KeyReused,
    /// The tenant has too many already.
    TooMany,
}

/// What became of the rotation of an endpoint's secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rotated {
    /// The endpoint as it is now. It was rotated before if the key was used before with the same body.
    Done(Endpoint),
    /// The key was used before with another body, or for another endpoint.
    KeyReused,
    /// There is no such endpoint, or it is another tenant's.
    Missing,
}

/// What to change about an endpoint; `None` leaves it as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EndpointPatch {
    /// Where.
    pub url: Option<String>,
    /// Which news, at least one.
    pub events: Option<Vec<WebhookEvent>>,
    /// Only those of this agent, or of all.
    pub agent: Option<Option<String>>,
    /// Whether it gets anything.
    pub enabled: Option<bool>,
    /// Changes nothing unless its URL is still this one.
    pub still_at: Option<String>,
}

/// How a delivery stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DeliveryStatus {
    /// It is to be sent, at once or after a wait.
    Pending,
    /// The receiver has answered with a status from 200 to 299.
    Delivered,
    /// It is given up.
    Dead,
}

impl DeliveryStatus {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Pending, Self::Delivered, Self::Dead];

    /// The spelling used everywhere.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Delivered => "delivered",
            Self::Dead => "dead",
        }
    }

    /// The status spelled `text`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.as_str() == text)
    }
}

/// Something to be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// The receiver's key for it: the same for all attempts.
    pub id: Uuid,
    /// Whose.
    pub tenant: Tenant,
    /// To which endpoint; none: to the run's own webhook.
    pub endpoint: Option<Uuid>,
    /// What.
    pub event: WebhookEvent,
    /// The run it is about.
    pub run: Option<RunId>,
    /// The thread it is about.
    pub thread: Option<String>,
    /// What is told of a thread, JSON. What is told of a run is the run, as it stands when it is told.
    pub data: Option<String>,
    /// When it happened.
    pub at: Timestamp,
    /// How it stands.
    pub status: DeliveryStatus,
    /// How often it was sent, without success but for the last time.
    pub attempts: u32,
    /// When it is sent next, or was to be sent last.
    pub due_at: Timestamp,
    /// The status that the receiver has answered last.
    pub answer: Option<u16>,
    /// Why the last attempt has failed.
    pub error: Option<String>,
    /// When it was delivered or given up.
    pub settled_at: Option<Timestamp>,
}

/// A delivery that was claimed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Due {
    /// The delivery.
    pub delivery: Delivery,
    /// Its endpoint; none for the run's own webhook, and when it was deleted just now.
    pub endpoint: Option<Endpoint>,
    /// Tells this claim from all others.
    pub claim: u64,
}

/// What became of a claimed delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settled {
    /// The delivery.
    pub id: Uuid,
    /// The claim that it was sent under.
    pub claim: u64,
    /// What became of it.
    pub settlement: Settlement,
}

/// What becomes of a claimed delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settlement {
    /// The receiver has taken it, with this status.
    Delivered(u16),
    /// It failed, and is due again after a while.
    Retry {
        /// How long from now.
        after: Duration,
        /// The status of the answer, if there was one.
        answer: Option<u16>,
        /// Why.
        error: String,
    },
    /// It was not sent, and is due again after a while. No attempt is charged.
    Postponed(Duration),
    /// It is given up.
    Dead {
        /// Whether an attempt was made.
        sent: bool,
        /// The status of the answer, if there was one.
        answer: Option<u16>,
        /// Why.
        error: String,
        /// For a person to find, in the same transaction.
        letter: Option<Box<DeadLetter>>,
    },
}

/// Which deliveries to list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeliveryFilter {
    /// Only those behind this one: where the page before ended.
    pub after: Option<(Timestamp, Uuid)>,
    /// Only those to this endpoint.
    pub endpoint: Option<Uuid>,
    /// Only those that stand so.
    pub status: Option<DeliveryStatus>,
}

/// What became of a wish to deliver again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Redelivered {
    /// It is to be sent.
    Pending(Box<Delivery>),
    /// Its endpoint is disabled.
    Disabled,
    /// There is no such delivery.
    Missing,
}

/// Something that has happened to a thread.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ThreadNews {
    /// Whose.
    pub tenant: Tenant,
    /// Which thread.
    pub thread: String,
    /// What.
    pub event: WebhookEvent,
    /// What is told of it: a small JSON document.
    pub data: String,
    /// When.
    pub at: Timestamp,
}

impl ThreadNews {
    /// What an entry of a thread's log is told as; none if it is about a run, which tells of itself.
    pub(crate) fn of(thread: &Thread, entry: &thread::Event) -> Option<Self> {
        let event = match entry.happened {
            Happened::Run(_) => return None,
            Happened::HandedOff { .. } => WebhookEvent::ThreadHandedOff,
            Happened::Released => WebhookEvent::ThreadReleased,
            Happened::FollowUp(_) => WebhookEvent::ThreadFollowUp,
        };
        let data = json!({
            "thread_id": thread.id,
            "reason": Some(entry.happened.text()).filter(|reason| !reason.is_empty()),
            "run_id": entry.happened.run(),
        });
        let (tenant, thread) = (thread.tenant.clone(), thread.id.to_string());
        Some(Self { tenant, thread, event, data: data.to_string(), at: entry.at })
    }
}

/// How many deliveries are given up or removed at once with their endpoint. Those beyond are given up when they are due.
pub(crate) const AT_ONCE: u64 = 1_000;

/// Why a delivery to an endpoint that is disabled, or was deleted just now, is given up.
pub(crate) const DISABLED: &str = "the endpoint is disabled";
