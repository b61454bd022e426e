//! Which nodes there are, and whether they agree.
//!
//! Each node publishes a card: who it is, what it can run, and the fingerprint of what all must agree on.
//! It compares itself with what the store has recorded, and with the cards of older nodes: whoever came
//! later stands down. A worker that does not agree takes no runs. Agents are no part of it: they only
//! decide what a worker claims, so that a rolling deploy with a new one stops nobody.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::RwLock;
use runcast_broker::Name;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{Node, Role};
use crate::run::Timestamp;
use crate::store::{Agreement, Proposal};

/// How often a node publishes its card and reads those of the others.
const HEARTBEAT: Duration = Duration::from_secs(2);

/// A card that is not renewed for so long is gone.
const TTL: Duration = Duration::from_secs(10);

/// How long store and broker may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a node says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeCard {
    /// The node's id.
    pub id: String,
    /// What it does.
    pub role: Role,
    /// The program's version.
    pub version: String,
    /// When it started.
    #[schema(value_type = String)]
    pub started_at: Timestamp,
    /// When it published this.
    #[schema(value_type = String)]
    pub heartbeat_at: Timestamp,
    /// What all nodes must agree on; absent while the store is away.
    pub fingerprint: Option<Fingerprint>,
    /// What it can execute.
    pub agents: Vec<Offer>,
    /// How many runs it may execute at once.
    pub concurrency: usize,
    /// How many are live.
    pub live: usize,
    /// It shuts down.
    pub draining: bool,
    /// Where it does not agree; empty if it does.
    pub disagreements: Vec<String>,
}

/// What all nodes must agree on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Fingerprint {
    /// `local` or `production`.
    pub mode: String,
    /// Which store it uses.
    #[schema(value_type = String)]
    pub store: Uuid,
    /// The oldest schema version that it can work with.
    pub oldest_schema: u32,
    /// The newest.
    pub newest_schema: u32,
    /// The broker namespace.
    pub namespace: String,
}

/// An agent that a worker has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Offer {
    /// Its name.
    pub agent: String,
    /// Its version.
    pub version: String,
    /// What it lacks to work, such as a provider's key; it is not executed there then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lacks: Option<String>,
}

/// What a node knows of itself and the others.
pub(crate) struct Peers {
    started_at: Timestamp,
    proposal: Proposal,
    known: RwLock<Known>,
    agrees: watch::Sender<bool>,
}

#[derive(Default)]
struct Known {
    agreement: Option<Agreement>,
    others: Vec<NodeCard>,
    disagreements: Vec<String>,
}

impl Peers {
    pub(crate) fn new(proposal: Proposal, started_at: Timestamp) -> Self {
        Self { started_at, proposal, known: RwLock::default(), agrees: watch::channel(false).0 }
    }

    /// Where this node does not agree.
    pub(crate) fn disagreements(&self) -> Vec<String> {
        self.known.read().disagreements.clone()
    }

    /// Ends when the node agrees with the store and the others (or does not any more).
    pub(crate) async fn until(&self, agrees: bool) {
        // The sender lives as long as this.
        self.agrees.subscribe().wait_for(|known| *known == agrees).await.map(drop).unwrap_or_default();
    }

    /// What every worker lacks that has `agent`, if there is such a worker and none that could run it.
    pub(crate) fn lacks(&self, agent: &str, version: &str) -> Option<String> {
        let known = self.known.read();
        let mut missing = None;
        let workers = known.others.iter().filter(|card| card.role.executes() && card.disagreements.is_empty());
        for offer in workers.flat_map(|card| &card.agents) {
            if offer.agent == agent && offer.version == version {
                missing = Some(offer.lacks.as_ref()?.clone());
            }
        }
        missing
    }

    /// Some other live node has an agent of this name, as far as is known.
    pub(crate) fn have(&self, agent: &str) -> bool {
        let known = self.known.read();
        known.others.iter().flat_map(|card| &card.agents).any(|offer| offer.agent == agent)
    }

    /// How many living nodes accept runs, this one among them.
    pub(crate) fn serving(&self) -> u32 {
        let known = self.known.read();
        let others =
            known.others.iter().filter(|card| card.role.serves() && !card.draining && card.disagreements.is_empty());
        u32::try_from(others.count()).unwrap_or(u32::MAX).saturating_add(1)
    }

    /// Some live worker has the agent, as far as is known.
    pub(crate) fn offered(&self, agent: &str, version: &str) -> bool {
        let known = self.known.read();
        let offers = known.others.iter().filter(|card| card.role.executes()).flat_map(|card| &card.agents);
        let mut of_it = offers.filter(|offer| offer.agent == agent && offer.version == version);
        of_it.any(|offer| offer.lacks.is_none())
    }
}

impl Node {
    /// Another node has an agent of this name, or may have: one that has just begun knows nobody yet, and whoever has
    /// it may be being restarted since `at`.
    pub(crate) fn may_be_elsewhere(&self, agent: &str, at: Timestamp, now: Timestamp) -> bool {
        let known_by = at.max(self.peers.started_at).after(self.settings.schedule_grace);
        self.peers.have(agent) || (self.shared && now < known_by)
    }

    /// This node's card.
    pub(crate) fn card(&self) -> NodeCard {
        let known = self.peers.known.read();
        let fingerprint = known.agreement.as_ref().map(|agreement| Fingerprint {
            mode: self.peers.proposal.mode.clone(),
            store: agreement.store,
            oldest_schema: agreement.known_schema.saturating_sub(1),
            newest_schema: agreement.known_schema,
            namespace: self.peers.proposal.namespace.clone(),
        });
        let offer = |(agent, version): &(String, String)| Offer {
            agent: agent.clone(),
            version: version.clone(),
            lacks: self.lacking.get(agent).cloned(),
        };
        let executes = self.role.executes();
        NodeCard {
            id: self.name.to_string(),
            role: self.role,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_at: self.peers.started_at,
            heartbeat_at: self.clock.now(),
            fingerprint,
            agents: if executes { self.all_agents().map(|agent| offer(&agent)).collect() } else { Vec::new() },
            concurrency: if executes { self.settings.concurrency } else { 0 },
            live: usize::try_from(self.metrics.live_runs.get()).unwrap_or(0),
            draining: self.draining.load(std::sync::atomic::Ordering::Acquire),
            disagreements: known.disagreements.clone(),
        }
    }

    /// The agents and versions that this node or a living worker has, each once.
    pub(crate) fn offered(&self) -> BTreeSet<(String, String)> {
        let known = self.peers.known.read();
        let offers = known.others.iter().filter(|card| card.role.executes()).flat_map(|card| &card.agents);
        let others = offers.map(|offer| (offer.agent.clone(), offer.version.clone()));
        others.chain(self.all_agents()).collect()
    }

    /// The cards of all nodes, ordered by id; this node's own is among them.
    pub(crate) fn cards(&self) -> Vec<NodeCard> {
        let mut cards = vec![self.card()];
        cards.extend(self.peers.known.read().others.iter().cloned());
        cards.sort_by(|a, b| a.id.cmp(&b.id));
        cards
    }

    async fn look(&self) {
        match tokio::time::timeout(PATIENCE, self.store.agree(&self.peers.proposal, false)).await {
            Ok(Ok(agreement)) => self.peers.known.write().agreement = Some(agreement),
            Ok(Err(error)) => tracing::debug!(%error, "cannot ask the store what the nodes have agreed on"),
            Err(_) => tracing::debug!("the store does not say what the nodes have agreed on"),
        }
        if self.shared {
            match tokio::time::timeout(PATIENCE, self.broker.nodes()).await {
                Ok(Ok(nodes)) => {
                    let cards = nodes.iter().filter_map(|node| serde_json::from_slice(&node.payload).ok());
                    let others = cards.filter(|card: &NodeCard| card.id != *self.name).collect();
                    self.peers.known.write().others = others;
                }
                Ok(Err(error)) => tracing::debug!(%error, "cannot read the other nodes' cards"),
                Err(_) => tracing::debug!("the broker does not say which nodes there are"),
            }
        }
        self.compare();
    }

    /// Compares this node with the store's record and with older nodes.
    fn compare(&self) {
        let card = self.card();
        let mut known = self.peers.known.write();
        let mut disagreements = Vec::new();
        if let Some(agreement) = &known.agreement {
            let (ours, theirs) = (&self.peers.proposal, &agreement.agreed);
            for (field, ours, theirs) in
                [("mode", &ours.mode, &theirs.mode), ("namespace", &ours.namespace, &theirs.namespace)]
            {
                if ours != theirs {
                    disagreements.push(format!("{field}: this node has {ours}, the store was set up with {theirs}"));
                }
            }
        }
        // One that stands down itself is no measure for others.
        let older = |other: &&NodeCard| {
            other.disagreements.is_empty() && (other.started_at, &other.id) < (card.started_at, &card.id)
        };
        for other in known.others.iter().filter(older) {
            if let (Some(ours), Some(theirs)) = (&card.fingerprint, &other.fingerprint) {
                disagreements.extend(ours.differences(theirs, &other.id));
            }
        }
        disagreements.sort();
        disagreements.dedup();
        let agrees = known.agreement.is_some() && disagreements.is_empty();
        if known.disagreements != disagreements {
            match disagreements.is_empty() {
                true => tracing::info!("this node agrees with the others again"),
                false => {
                    let consequence = if self.role.executes() { "it takes no runs" } else { "it is not ready" };
                    tracing::error!(
                        disagreements = disagreements.join("; "),
                        "this node does not agree: {consequence}"
                    );
                }
            }
        }
        known.disagreements = disagreements;
        drop(known);
        self.peers.agrees.send_if_modified(|known| std::mem::replace(known, agrees) != agrees);
    }

    /// Publishes this node's card; `ttl` zero takes it back.
    async fn publish_card(&self, ttl: Duration) {
        let (Ok(name), Ok(payload)) = (Name::new(&self.name), serde_json::to_vec(&self.card())) else { return };
        match tokio::time::timeout(PATIENCE, self.broker.presence(&name, Bytes::from(payload), ttl)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "cannot publish this node's card"),
            Err(_) => tracing::debug!("publishing this node's card takes too long"),
        }
    }
}

impl Fingerprint {
    /// Where this and that of an older node do not go together.
    fn differences(&self, older: &Self, id: &str) -> Vec<String> {
        let mut differences = Vec::new();
        let mut differ = |field: &str, ours: &dyn std::fmt::Display, theirs: &dyn std::fmt::Display| {
            differences.push(format!("{field}: this node has {ours}, node {id} has {theirs}"));
        };
        if self.mode != older.mode {
            differ("mode", &self.mode, &older.mode);
        }
        if self.store != older.store {
            differ("store", &self.store, &older.store);
        }
        if self.namespace != older.namespace {
            differ("namespace", &self.namespace, &older.namespace);
        }
        if self.oldest_schema > older.newest_schema || older.oldest_schema > self.newest_schema {
            let range = |print: &Self| format!("{} to {}", print.oldest_schema, print.newest_schema);
            differ("schema", &range(self), &range(older));
        }
        differences
    }
}

/// Publishes this node's card and looks at the others', until `stop` is cancelled.
pub(crate) async fn keep(node: Arc<Node>, stop: CancellationToken) {
    while !stop.is_cancelled() {
        node.look().await;
        if node.shared {
            node.publish_card(TTL).await;
        }
        stop.run_until_cancelled(tokio::time::sleep(HEARTBEAT)).await;
    }
}

/// Takes this node's card back: it is gone.
pub(crate) async fn leave(node: &Node) {
    if node.shared {
        node.publish_card(Duration::ZERO).await;
    }
}
