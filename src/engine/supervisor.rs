//! Owns the run actors of one core: starts them, hands them what concerns them, and notices their
//! deaths.
//!
//! actix does not restart an actor whose handler has panicked, and its state could not be trusted
//! anyway. So the supervisor gives the attempt up in the store, as recovery does for a whole process
//! that died, and the run goes on from its last finished step as another attempt.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use super::Node;
use super::leases::Lease;
use super::mailbox::post;
use super::recovery::give_up;
use super::run_actor::{RunActor, Stop};
use crate::run::RunId;
use crate::store::Claimed;

/// How long a cancel that came before its run is remembered. The run is on its way by then: it was
/// claimed before the cancel was handed on.
const EARLY_CANCEL: Duration = Duration::from_secs(30);

/// Owns the run actors of one core.
#[derive(Default)]
pub(crate) struct Supervisor {
    node: Option<Arc<Node>>,
    runs: HashMap<RunId, Live>,
    early_cancels: HashMap<RunId, Instant>,
}

struct Live {
    attempt: u32,
    actor: Addr<RunActor>,
}

/// The node is complete. Sent once, before anything else.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct Adopt(pub(crate) Arc<Node>);

/// A run was claimed and is to be executed.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct Start {
    pub(crate) claimed: Claimed,
    pub(crate) lease: Option<Arc<Lease>>,
    pub(crate) permit: OwnedSemaphorePermit,
}

/// A running run is to be cancelled; the wish is in the store.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct Cancel(pub(crate) RunId);

/// An attempt has lost its lease, to another node or (`suspend`) to the time that has passed.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct Lose {
    pub(crate) run: RunId,
    pub(crate) attempt: u32,
    pub(crate) suspend: bool,
}

/// The node shuts down: let every run go.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct ReleaseAll;

/// A run's actor is gone.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct Gone {
    pub(crate) run: RunId,
    pub(crate) attempt: u32,
    /// The run is in other hands, or over.
    pub(crate) foreseen: bool,
}

impl Actor for Supervisor {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Self::Context) {
        // Room for a burst of claims; beyond it the dispatcher waits.
        context.set_mailbox_capacity(1024);
        context.run_interval(EARLY_CANCEL, |supervisor, _| {
            supervisor.early_cancels.retain(|_, came| came.elapsed() < EARLY_CANCEL);
        });
    }
}

impl Handler<Adopt> for Supervisor {
    type Result = ();

    fn handle(&mut self, Adopt(node): Adopt, _: &mut Self::Context) {
        self.node = Some(node);
    }
}

impl Handler<Start> for Supervisor {
    type Result = ();

    fn handle(&mut self, start: Start, context: &mut Self::Context) {
        let Some(node) = &self.node else { return };
        let (run, attempt) = (start.claimed.run.spec.id, start.claimed.run.attempt);
        let actor = RunActor::new(Arc::clone(node), context.address(), start).start();
        if self.early_cancels.remove(&run).is_some() {
            post(&actor, Stop::Cancel);
        }
        self.runs.insert(run, Live { attempt, actor });
    }
}

impl Handler<Cancel> for Supervisor {
    type Result = ();

    fn handle(&mut self, Cancel(run): Cancel, _: &mut Self::Context) {
        match self.runs.get(&run) {
            // Bounded by the requests that wait for it.
            Some(live) => post(&live.actor, Stop::Cancel),
            None => {
                self.early_cancels.insert(run, Instant::now());
            }
        }
    }
}

impl Handler<Lose> for Supervisor {
    type Result = ();

    fn handle(&mut self, lost: Lose, _: &mut Self::Context) {
        if let Some(live) = self.runs.get(&lost.run)
            && live.attempt == lost.attempt
        {
            // One of each kind to each actor.
            post(&live.actor, if lost.suspend { Stop::Suspend } else { Stop::Lost });
        }
    }
}

impl Handler<ReleaseAll> for Supervisor {
    type Result = ();

    fn handle(&mut self, ReleaseAll: ReleaseAll, _: &mut Self::Context) {
        // One to each actor.
        self.runs.values().for_each(|live| post(&live.actor, Stop::Release));
    }
}

impl Handler<Gone> for Supervisor {
    type Result = ();

    fn handle(&mut self, gone: Gone, context: &mut Self::Context) {
        if self.runs.get(&gone.run).is_some_and(|live| live.attempt == gone.attempt) {
            self.runs.remove(&gone.run);
        }
        if let (false, Some(node)) = (gone.foreseen, &self.node) {
            tracing::error!(run = %gone.run, attempt = gone.attempt, "the run's actor is gone; its attempt is given up");
            context.spawn(give_up(Arc::clone(node), gone.run, gone.attempt).into_actor(self));
        }
    }
}
