//! Presence: which nodes have said lately that they are there.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use runcast_broker::{Name, NodePresence};
use tokio::time::Instant;

use crate::deadline;

/// Payload and end of each entry. Entries that have ended are swept whenever somebody writes or
/// reads, so they never outnumber the nodes that were there since.
#[derive(Default)]
pub(crate) struct Nodes(BTreeMap<Name, (Bytes, Instant)>);

impl Nodes {
    pub(crate) fn set(&mut self, node: &Name, payload: Bytes, ttl: Duration) {
        self.0.insert(node.clone(), (payload, deadline(ttl)));
        // an entry with a zero ttl has ended already
        self.sweep();
    }

    pub(crate) fn list(&mut self) -> Vec<NodePresence> {
        self.sweep();
        let presence = |(node, (payload, _)): (&Name, &(Bytes, Instant))| NodePresence {
            node: node.clone(),
            payload: payload.clone(),
        };
        self.0.iter().map(presence).collect()
    }

    fn sweep(&mut self) {
        let now = Instant::now();
        self.0.retain(|_, (_, end)| *end > now);
    }
}
