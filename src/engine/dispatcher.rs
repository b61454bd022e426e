//! Turns deliveries into claims, and claims into live runs.
//!
//! A delivery is a permit, not a run: it says that a queue has work, and the claim takes the first of all
//! queues that this node serves. The dispatcher takes only as many
//! as the node has room for, claims that many runs in one transaction, acknowledges the deliveries once
//! the claim has committed, and hands the runs to the supervisors.

use std::num::NonZeroU16;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::join_all;
use runcast_broker::{Delivery, ErrorKind};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Node;
use super::effects::queue;
use super::recovery::settle;
use super::supervisor::Start;
use crate::store::{Claim, Claimed};

/// The most runs claimed in one transaction.
const BATCH: usize = 128;

/// The wait after the store or the broker has failed.
const PAUSE: Duration = Duration::from_millis(500);

/// A node that has had no room for so long fetches no deliveries.
const FULL: Duration = Duration::from_millis(250);

/// How much longer than a claim that passed over all that limits keep waiting the node rests behind it, and how long at
/// the most: what comes meanwhile is claimed together.
const REST: u32 = 4;
const LONGEST_REST: Duration = Duration::from_millis(250);

/// How often runs are looked for while nobody can be woken.
const UNWOKEN: Duration = Duration::from_secs(1);

/// Runs until `stop` is cancelled. `room` bounds the live runs of the node.
pub(crate) async fn dispatch(node: Arc<Node>, room: Arc<Semaphore>, stop: CancellationToken) {
    if node.executed.is_empty() {
        return;
    }
    while !stop.is_cancelled() {
        let dispatched = async {
            if node.shared {
                node.peers.until(true).await;
            }
            tokio::select! {
                () = consume(&node, &room) => {}
                () = node.peers.until(false), if node.shared => {}
            }
        };
        stop.run_until_cancelled(dispatched).await;
        stop.run_until_cancelled(tokio::time::sleep(PAUSE)).await;
    }
}

/// Runs until the broker has no consumer for us. Dropping it at any await loses nothing: deliveries return
/// to the queue, and a run that was claimed but not handed on is recovered.
async fn consume(node: &Arc<Node>, room: &Arc<Semaphore>) {
    let prefetch = NonZeroU16::new(BATCH as u16).unwrap_or(NonZeroU16::MIN);
    let queues: Vec<_> = node.executed.iter().map(|(agent, version)| queue(agent, version)).collect();
    let mut consumer = None;
    // The last claim has taken all that the limits let begin, for so many deliveries and more.
    let mut drained = false;
    loop {
        let permit = match tokio::time::timeout(FULL, Arc::clone(room).acquire_owned()).await {
            Ok(Ok(permit)) => permit,
            Ok(Err(_)) => return,
            Err(_) => {
                // What it has fetched ahead is for whoever has room.
                drop(consumer.take());
                match Arc::clone(room).acquire_owned().await {
                    Ok(permit) => permit,
                    Err(_) => return,
                }
            }
        };
        let_go_strays(node).await;
        let consumer = match &mut consumer {
            Some(consumer) => consumer,
            none => match node.broker.consume(&queues, prefetch).await {
                Ok(consumer) => none.insert(consumer),
                Err(error) => {
                    tracing::debug!(%error, "cannot consume the queues; trying again");
                    drop(permit);
                    return claim_unwoken(node, room).await;
                }
            },
        };
        let mut permits = vec![permit];
        let mut deliveries = match tokio::time::timeout(node.settings.sweep_interval, consumer.next()).await {
            Ok(Ok(delivery)) => vec![delivery],
            Ok(Err(error)) if matches!(error.kind(), ErrorKind::Closed | ErrorKind::Misconfigured) => {
                return tracing::debug!(%error, "the consumer has ended");
            }
            Ok(Err(error)) => {
                tracing::debug!(%error, "cannot receive a delivery; trying again");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
            Err(_) => {
                drop(permits);
                claim_unwoken(node, room).await;
                continue;
            }
        };
        while deliveries.len() < BATCH {
            let permit = Arc::clone(room).try_acquire_owned().ok();
            if permit.is_none() && !drained {
                break;
            }
            let Some(delivery) = consumer.try_next() else { break };
            permits.extend(permit);
            deliveries.push(delivery);
        }
        let asked = Instant::now();
        drained = take_whole(node, deliveries, permits).await && !node.limits.is_empty();
        if drained {
            // It has looked at everything that limits keep waiting, which may be much.
            tokio::time::sleep((asked.elapsed() * REST).min(LONGEST_REST)).await;
        }
    }
}

/// After a claim that failed, it may have happened all the same, some time later even: such runs are let go
/// for as long as their lease could last. Not while a claim is under way, whose runs are not known yet.
async fn let_go_strays(node: &Arc<Node>) {
    let Some(failed) = *node.unsure.lock() else { return };
    let live = node.leases.live();
    match node.store.let_go_strays(&node.name, &live, node.clock.now(), BATCH).await {
        Ok(let_go) => {
            if !let_go.is_empty() {
                tracing::warn!(runs = let_go.len(), "let go of runs whose claim was not answered");
            }
            let_go.into_iter().for_each(|transition| settle(node, transition));
            if failed.elapsed() > node.settings.lease {
                *node.unsure.lock() = None;
            }
        }
        Err(error) => tracing::debug!(%error, "cannot let go of runs whose claim was not answered"),
    }
}

/// Without a broker nobody is woken: claims what there is, as long as the broker is away.
async fn claim_unwoken(node: &Arc<Node>, room: &Arc<Semaphore>) {
    while node.shared && node.broker.health().await.is_err() {
        let mut permits = Vec::new();
        while permits.len() < BATCH
            && let Ok(permit) = Arc::clone(room).try_acquire_owned()
        {
            permits.push(permit);
        }
        if !permits.is_empty() {
            take_whole(node, Vec::new(), permits).await;
        }
        tokio::time::sleep(UNWOKEN).await;
    }
}

/// Claims and starts; not to be cut off between the claim and its hand-over. Whether there was less than there was room
/// for.
async fn take_whole(node: &Arc<Node>, deliveries: Vec<Delivery>, permits: Vec<OwnedSemaphorePermit>) -> bool {
    actix::spawn(take(Arc::clone(node), deliveries, permits)).await.unwrap_or_else(|_| {
        tracing::error!("a claim panicked; its runs are recovered later");
        false
    })
}

async fn take(node: Arc<Node>, mut deliveries: Vec<Delivery>, permits: Vec<OwnedSemaphorePermit>) -> bool {
    let room = permits.len();
    let claim = Claim {
        node: Arc::clone(&node.name),
        agents: Arc::clone(&node.executed),
        turn: node.turn.load(Ordering::Relaxed),
        limits: Arc::clone(&node.limits),
        room,
        reserve: node.settings.reserve,
        lease: node.settings.lease,
        now: node.clock.now(),
    };
    let asked = Instant::now();
    match node.store.claim(claim).await {
        Ok(claimed) => {
            node.outage.is_over();
            pass_turn(&node, &claimed);
            let drained = claimed.len() < room;
            start(&node, claimed, permits, asked).await;
            // There may be more for those that there was no room for.
            let more = if drained { Vec::new() } else { deliveries.split_off(room.min(deliveries.len())) };
            give_back(more, Duration::ZERO).await;
            // A delivery that is not acknowledged comes again and finds nothing to claim, which is no error.
            for acknowledged in join_all(deliveries.into_iter().map(Delivery::ack)).await {
                if let Err(refused) = acknowledged {
                    tracing::debug!(error = %refused.error, "a delivery was not acknowledged");
                }
            }
            drained
        }
        Err(error) => {
            node.outage.felt("cannot claim runs", &error);
            if node.shared {
                // It may have happened all the same.
                *node.unsure.lock() = Some(Instant::now());
            }
            give_back(deliveries, PAUSE).await;
            tokio::time::sleep(PAUSE).await;
            false
        }
    }
}

async fn give_back(deliveries: Vec<Delivery>, wait: Duration) {
    for returned in join_all(deliveries.into_iter().map(|delivery| delivery.nack(wait))).await {
        if let Err(refused) = returned {
            tracing::debug!(error = %refused.error, "a delivery was not returned");
        }
    }
}

/// The turn goes to the agent behind the one that was served last.
fn pass_turn(node: &Node, claimed: &[Claimed]) {
    if let Some(last) = claimed.last().map(|claimed| &claimed.run.spec)
        && let Some(at) = node.executed.iter().position(|(agent, version)| {
            (agent.as_str(), version.as_str()) == (last.agent.as_str(), last.agent_version.as_str())
        })
    {
        node.turn.store((at + 1) % node.executed.len(), Ordering::Relaxed);
    }
}

async fn start(node: &Arc<Node>, claimed: Vec<Claimed>, permits: Vec<OwnedSemaphorePermit>, asked: Instant) {
    let now = node.clock.now();
    for (claimed, permit) in claimed.into_iter().zip(permits) {
        node.metrics.run_started(&claimed.run, now);
        let (run, attempt) = (claimed.run.spec.id, claimed.run.attempt);
        let lease = node.shared.then(|| node.leases.begin(run, attempt, asked, node.settings.lease));
        if node.supervisor(run).send(Start { claimed, lease, permit }).await.is_err() {
            tracing::error!("a supervisor is gone; its runs are recovered later");
        }
    }
}
