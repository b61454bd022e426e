//! What must happen outside once a decision is journaled, and the one place that does it.

use std::sync::Arc;

use bytes::Bytes;

use super::Node;
use super::mailbox::post;
use super::timers::{Arm, Disarm};
use crate::run::{Effect, Run, RunId, Timer};
use crate::store::{TimerKey, TimerKind};

/// Performs `effects` of a decision about `run`. Starting and stopping the agent is its actor's own.
pub(crate) fn perform(node: &Arc<Node>, run: &Run, effects: Vec<Effect>) {
    for effect in effects {
        match effect {
            Effect::Wake => wake(node),
            // Bounded by the timers that exist; what is lost with the node is found in the store.
            Effect::Arm(timer) => post(&node.timers, Arm(key(run.spec.id, timer))),
            Effect::Disarm(timer) => post(&node.timers, Disarm(key(run.spec.id, timer))),
            Effect::StartAgent | Effect::StopAgent => {}
        }
    }
}

fn key(run: RunId, timer: Timer) -> TimerKey {
    TimerKey { due: timer.due, run, kind: TimerKind::Due(timer.id) }
}

/// Tells the workers that the queue has work. A wake-up that gets lost is made up for by the sweep.
fn wake(node: &Arc<Node>) {
    let node = Arc::clone(node);
    actix::spawn(async move {
        if let Err(error) = node.broker.publish(&node.queue, Bytes::new()).await {
            node.metrics.lost_wakes.inc();
            tracing::warn!(%error, "cannot wake the workers; the sweep will");
        }
    });
}
