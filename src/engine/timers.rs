//! The timers of the runs that wait and of schedules: one ordered structure, fed by rows of the store.
//!
//! The rows are the truth. What is due within the horizon is kept in memory, ordered by due time, and
//! read again from the store every half horizon: so memory holds what fires soon and no more, and a
//! timer whose node died fires elsewhere. Where there are other nodes, each fires what was armed there, and
//! what it has only read a little later: if the other is alive, it has fired by then. Due times are wall
//! clock; a jump of the clock is noticed within [`LONGEST_SLEEP`].

use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use futures_util::{StreamExt, stream};

use super::recovery::settle;
use super::threads::follow_up;
use super::timetable::Timetable;
use super::{Engine, Node, schedules};
use crate::run::{Command, RunId, Timestamp};
use crate::store::{TimerKey, TimerKind, Transition};

/// How far ahead timers are kept in memory.
const HORIZON: Duration = Duration::from_secs(60);

/// The same where there are other nodes: half of it is the longest that a timer of a dead node, which was
/// to fire soon, is late.
const SHARED_HORIZON: Duration = Duration::from_secs(4);

/// The actor looks at the clock at least so often.
const LONGEST_SLEEP: Duration = Duration::from_secs(1);

/// The wait before a timer is fired again that the store could not be told of.
const RETRY: Duration = Duration::from_secs(1);

/// How many timers are read from the store at a time.
const PAGE: usize = 4096;

/// How many timers fire at once.
const FIRING: usize = 256;

/// Keeps the timers that are due soon and fires them.
#[derive(Default)]
pub(crate) struct Timers {
    engine: Option<Engine>,
    table: Timetable,
    wake: Option<(Timestamp, SpawnHandle)>,
    firing: bool,
}

/// The node is complete, and its runs are recovered. Sent once.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct Begin(pub(crate) Engine);

/// A timer is in the store.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct Arm(pub(crate) TimerKey);

/// A timer is no longer in the store.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct Disarm(pub(crate) TimerKey);

/// Fires nothing any more.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct Halt;

impl Timers {
    fn node(&self) -> Option<Arc<Node>> {
        Some(Arc::clone(&self.engine.as_ref()?.node))
    }

    /// Reads what the horizon has come to hold.
    fn read_store(&mut self, context: &mut Context<Self>) {
        let Some(node) = self.node() else { return };
        let courtesy = if node.shared { Timetable::COURTESY } else { Duration::ZERO };
        let read = async move {
            let until = node.clock.now().after(horizon(&node));
            let mut timers: Vec<TimerKey> = Vec::new();
            loop {
                match node.store.timers(until, timers.last().copied(), PAGE).await {
                    Ok(page) => {
                        let last = page.len() < PAGE;
                        timers.extend(page);
                        if last {
                            return timers;
                        }
                    }
                    Err(error) => {
                        node.outage.felt("cannot read the timers", &error);
                        return timers;
                    }
                }
            }
        };
        context.spawn(read.into_actor(self).map(move |timers, actor, context| {
            timers.into_iter().for_each(|timer| actor.table.learn(timer, courtesy));
            actor.look(context);
        }));
    }

    /// Fires what is due, or sleeps until something is.
    fn look(&mut self, context: &mut Context<Self>) {
        let Some(engine) = self.engine.clone() else { return };
        if self.firing {
            return;
        }
        let now = engine.now();
        let due = self.table.take_due(now, FIRING);
        if due.is_empty() {
            return self.sleep(now, context);
        }
        self.firing = true;
        let fire = stream::iter(due)
            .map(move |timer| fire(engine.clone(), timer))
            .buffer_unordered(FIRING)
            .filter_map(std::future::ready)
            .collect::<Vec<_>>();
        context.spawn(fire.into_actor(self).map(|failed, actor, context| {
            actor.firing = false;
            if !failed.is_empty() {
                context.run_later(RETRY, |actor, context| {
                    for timer in failed {
                        actor.table.arm(timer);
                    }
                    actor.look(context);
                });
            }
            actor.look(context);
        }));
    }

    fn sleep(&mut self, now: Timestamp, context: &mut Context<Self>) {
        let Some(first) = self.table.first() else { return };
        let until = now.after(LONGEST_SLEEP).min(first);
        match self.wake {
            Some((earlier, _)) if earlier <= until && earlier > now => return,
            Some((_, later)) => drop(context.cancel_future(later)),
            None => {}
        }
        let handle = context.run_later(until.since(now), |actor, context| {
            actor.wake = None;
            actor.look(context);
        });
        self.wake = Some((until, handle));
    }
}

fn horizon(node: &Node) -> Duration {
    if node.shared { SHARED_HORIZON } else { HORIZON }
}

/// Tells the machine that `timer` is due. Hands it back when the store could not be told.
async fn fire(engine: Engine, timer: TimerKey) -> Option<TimerKey> {
    match timer.kind {
        TimerKind::Ttl => fire_run(&engine.node, timer, Command::Expire).await,
        TimerKind::Due(number) => fire_run(&engine.node, timer, Command::Fire { timer: number }).await,
        TimerKind::FollowUp(number) => follow_up(&engine, timer, number).await,
        TimerKind::Schedule(number) => schedules::fire(&engine, timer, number).await,
    }
}

async fn fire_run(node: &Arc<Node>, timer: TimerKey, command: Command) -> Option<TimerKey> {
    // It was due when it was taken, whatever has become of the clock since.
    let now = node.clock.now().max(timer.due);
    match node.store.transition(None, RunId::from_uuid(timer.owner), command, now).await {
        Ok(Transition::Rejected(..) | Transition::Missing | Transition::Handed(_)) => {
            node.metrics.stale_timers.inc();
            if let Err(error) = node.store.drop_timer(timer).await {
                node.outage.felt("cannot drop a stale timer", &error);
            }
        }
        Ok(transition @ (Transition::Done(_) | Transition::Followed(..))) => {
            node.metrics.timer_lateness.observe(now.since(timer.due).as_secs_f64());
            settle(node, transition);
        }
        Err(error) => {
            node.outage.felt("cannot fire a timer", &error);
            return Some(timer);
        }
    }
    None
}

impl Actor for Timers {
    type Context = Context<Self>;
}

impl Handler<Begin> for Timers {
    type Result = ();

    fn handle(&mut self, Begin(engine): Begin, context: &mut Self::Context) {
        let every = horizon(&engine.node) / 2;
        self.engine = Some(engine);
        self.read_store(context);
        context.run_interval(every, |actor, context| actor.read_store(context));
    }
}

impl Handler<Arm> for Timers {
    type Result = ();

    fn handle(&mut self, Arm(timer): Arm, context: &mut Self::Context) {
        // What is armed before the actor begins is found in the store.
        let Some(engine) = &self.engine else { return };
        if timer.due <= engine.now().after(horizon(&engine.node)) && self.table.arm(timer) {
            self.look(context);
        }
    }
}

impl Handler<Disarm> for Timers {
    type Result = ();

    fn handle(&mut self, Disarm(timer): Disarm, _: &mut Self::Context) {
        self.table.disarm(timer);
    }
}

impl Handler<Halt> for Timers {
    type Result = ();

    fn handle(&mut self, Halt: Halt, context: &mut Self::Context) {
        self.engine = None;
        context.stop();
    }
}
