//! What must happen outside once a decision is journaled, and the one place that does it.

use std::sync::Arc;

use bytes::Bytes;
use runcast_broker::Name;
use sha2::{Digest, Sha256};

use super::Node;
use super::mailbox::post;
use super::timers::{Arm, Disarm};
use crate::run::{Effect, Run, RunId, Timer};
use crate::store::{TimerKey, TimerKind};

/// Performs `effects` of a decision about `run`. Starting and stopping the agent is its actor's own.
pub(crate) fn perform(node: &Arc<Node>, run: &Run, effects: Vec<Effect>) {
    node.webhooks.wake(run.status);
    for effect in effects {
        match effect {
            Effect::Wake => wake(node, run),
            // Bounded by the timers that exist; what is lost with the node is found in the store.
            Effect::Arm(timer) => post(&node.timers, Arm(key(run.spec.id, timer))),
            Effect::Disarm(timer) => post(&node.timers, Disarm(key(run.spec.id, timer))),
            Effect::StartAgent | Effect::StopAgent => {}
        }
    }
}

fn key(run: RunId, timer: Timer) -> TimerKey {
    TimerKey { due: timer.due, owner: *run.as_uuid(), kind: TimerKind::Due(timer.id) }
}

/// The queue of the wake-ups for an agent in a version: `pending.<agent>.<version>`, so that no wake-up
/// goes to a worker that could do nothing with it. What is no name for a broker goes by its digest.
pub(crate) fn queue(agent: &str, version: &str) -> Name {
    Name::new(format!("pending.{agent}.{version}")).unwrap_or_else(|_| {
        let digest = Sha256::digest(format!("{}.{agent}.{version}", agent.len()));
        let short = digest.iter().take(16).fold(String::new(), |text, byte| format!("{text}{byte:02x}"));
        Name::new(format!("pending.{short}")).unwrap_or_else(|_| unreachable!("hexadecimal digits are a name"))
    })
}

/// Tells the workers that the queue has work. A wake-up that gets lost is made up for by the sweep.
fn wake(node: &Arc<Node>, run: &Run) {
    let node = Arc::clone(node);
    let queue = queue(&run.spec.agent, &run.spec.agent_version);
    actix::spawn(async move {
        if let Err(error) = node.broker.publish(&queue, Bytes::new()).await {
            node.metrics.lost_wakes.inc();
            tracing::debug!(%error, "cannot wake the workers; the sweep will");
        }
    });
}
