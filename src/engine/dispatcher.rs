//! Turns deliveries into claims, and claims into live runs.
//!
//! A delivery is a permit, not a run: it says that the queue has work. The dispatcher takes only as many
//! as the node has room for, claims that many runs in one transaction, acknowledges the deliveries once
//! the claim has committed, and hands the runs to the supervisors.

use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use runcast_broker::{Consumer, Delivery, ErrorKind};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::Node;
use super::supervisor::Start;
use crate::store::{Claim, Claimed};

/// The most runs claimed in one transaction.
const BATCH: usize = 128;

/// The wait after the store or the broker has failed.
const PAUSE: Duration = Duration::from_millis(500);

/// Runs until `stop` is cancelled. `room` bounds the live runs of the node.
pub(crate) async fn dispatch(node: Arc<Node>, room: Arc<Semaphore>, stop: CancellationToken) {
    while !stop.is_cancelled() {
        let prefetch = NonZeroU16::new(BATCH as u16).unwrap_or(NonZeroU16::MIN);
        match node.broker.consume(std::slice::from_ref(&node.queue), prefetch).await {
            Ok(consumer) => {
                let consumed = consume(&node, &room, consumer);
                if stop.run_until_cancelled(consumed).await.is_none() {
                    return;
                }
            }
            Err(error) => tracing::warn!(%error, "cannot consume the queue; trying again"),
        }
        stop.run_until_cancelled(tokio::time::sleep(PAUSE)).await;
    }
}

/// Runs until the consumer fails for good. Dropping it at any await loses nothing: deliveries return to
/// the queue, and a run that was claimed but not handed on is given up at recovery.
async fn consume(node: &Arc<Node>, room: &Arc<Semaphore>, mut consumer: Box<dyn Consumer>) {
    loop {
        let Ok(permit) = Arc::clone(room).acquire_owned().await else { return };
        let mut permits = vec![permit];
        let mut deliveries = match consumer.next().await {
            Ok(delivery) => vec![delivery],
            Err(error) if matches!(error.kind(), ErrorKind::Closed | ErrorKind::Misconfigured) => {
                return tracing::debug!(%error, "the consumer has ended");
            }
            Err(error) => {
                tracing::warn!(%error, "cannot receive a delivery; trying again");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        while deliveries.len() < BATCH {
            let Ok(permit) = Arc::clone(room).try_acquire_owned() else { break };
            let Some(delivery) = consumer.try_next() else { break };
            permits.push(permit);
            deliveries.push(delivery);
        }
        // Not to be cut off between the claim and its hand-over.
        let taken = actix::spawn(take(Arc::clone(node), deliveries, permits));
        if taken.await.is_err() {
            tracing::error!("a claim panicked; its runs are recovered at the next start");
        }
    }
}

async fn take(node: Arc<Node>, deliveries: Vec<Delivery>, permits: Vec<OwnedSemaphorePermit>) {
    let claim = Claim {
        node: Arc::clone(&node.name),
        agents: Arc::clone(&node.agent_versions),
        room: deliveries.len(),
        reserve: node.settings.reserve,
        lease: node.settings.lease,
        now: node.clock.now(),
    };
    match node.store.claim(claim).await {
        Ok(claimed) => {
            start(&node, claimed, permits).await;
            // A delivery that is not acknowledged comes again and finds nothing to claim, which is no error.
            for acknowledged in join_all(deliveries.into_iter().map(Delivery::ack)).await {
                if let Err(refused) = acknowledged {
                    tracing::debug!(error = %refused.error, "a delivery was not acknowledged");
                }
            }
        }
        Err(error) => {
            tracing::warn!(%error, "cannot claim runs; trying again");
            for returned in join_all(deliveries.into_iter().map(|delivery| delivery.nack(PAUSE))).await {
                if let Err(refused) = returned {
                    tracing::debug!(error = %refused.error, "a delivery was not returned");
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

async fn start(node: &Arc<Node>, claimed: Vec<Claimed>, permits: Vec<OwnedSemaphorePermit>) {
    let now = node.clock.now();
    for (claimed, permit) in claimed.into_iter().zip(permits) {
        node.metrics.run_started(&claimed.run, now);
        let supervisor = &node.supervisors[claimed.run.spec.id.spread() % node.supervisors.len()];
        if supervisor.send(Start(claimed, permit)).await.is_err() {
            tracing::error!("a supervisor is gone; its runs are recovered at the next start");
        }
    }
}
