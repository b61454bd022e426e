//! What is asked of runs that nobody executes: cancels, and timers that have come due, many in one transaction.
//!
//! A hundred runs whose timers are due at the same moment would otherwise be a hundred transactions, one behind the
//! other on the few connections that there are, and the last would find no time left.

use std::collections::HashMap;

use async_trait::async_trait;
use futures_util::future::try_join3;
use uuid::Uuid;

use super::conn::{Conn, Params};
use super::error::Failure;
use super::lane::{Answers, Item};
use super::link::{Link, Share};
use super::rows::{Columns, Found, LOAD};
use super::transition::{self, Looked};
use crate::run::{Command, RunId, Tenant, Timestamp};
use crate::store::Transition;

/// Locks runs in the order in which they are given, but for those of threads: the lock of a thread comes first.
const LOCK: &str = "SELECT 1 FROM unnest($1::uuid[]) AS wanted(id) CROSS JOIN LATERAL \
     (SELECT 1 FROM runcast_runs WHERE id = wanted.id AND thread_id IS NULL FOR UPDATE) r";

/// A command for a run that belongs to no thread.
pub(super) struct Asked {
    /// Whose run it has to be.
    pub(super) tenant: Option<Tenant>,
    pub(super) run: RunId,
    /// Anything but an answer that the run waits for, which is more than its own row.
    pub(super) command: Command,
    pub(super) now: Timestamp,
}

#[async_trait]
impl Item for Asked {
    /// `None`: the run belongs to a thread, and nothing was done.
    type Answer = Option<Transition>;
    type Memory = ();

    fn run(&self) -> RunId {
        self.run
    }

    /// What is read of the run, which nobody knows before: a guess that lets the largest inputs get through.
    fn bytes(&self) -> usize {
        64 << 10
    }

    async fn write(link: &Link, items: &[&Self], (): &mut ()) -> Result<Answers<Self>, Failure> {
        link.run(Share::Batches, |conn| async move { write(&conn, items).await }).await
    }
}

async fn write(conn: &Conn, items: &[&Asked]) -> Result<Answers<Asked>, Failure> {
    let ids: Vec<Uuid> = items.iter().map(|item| *item.run.as_uuid()).collect();
    let (client, params): (_, Params<'_>) = (conn.client(), &[&ids]);
    let (lock, load) = (conn.prepare(LOCK).await?, conn.prepare(LOAD).await?);
    let (lock, load) = (client.query(&lock, params), client.query(&load, params));
    let rows = try_join3(client.batch_execute("BEGIN"), lock, load).await?.2;
    let mut found = HashMap::with_capacity(rows.len());
    for row in &rows {
        found.insert(Columns::of(row).id()?, Found::read(row));
    }
    let mut answers: Answers<Asked> = Vec::with_capacity(items.len());
    let (mut handed, mut next) = (Vec::new(), Vec::new());
    for item in items {
        let answer = match found.remove(&item.run) {
            None => Ok(Some(Transition::Missing)),
            Some(Err(error)) => Err(error),
            Some(Ok(found)) if found.run.spec.thread.is_some() => Ok(None),
            Some(Ok(found)) => match transition::look(found, item.tenant.as_ref(), &item.command, item.now, false) {
                Looked::Answered(answer) => answer.map(Some),
                Looked::Handed(found) => {
                    handed.push(*item.run.as_uuid());
                    found.into_stored().map(|stored| Some(Transition::Handed(Box::new(stored))))
                }
                Looked::Next(decided) => {
                    next.push(*decided);
                    answers.push(None);
                    continue;
                }
            },
        };
        answers.push(Some(answer));
    }
    if !handed.is_empty() {
        transition::keep_cancels(conn, &handed).await?;
    }
    if next.is_empty() {
        client.batch_execute("COMMIT").await?;
    } else {
        transition::write(conn, &next, None).await?;
    }
    let unanswered = answers.iter_mut().filter(|answer| answer.is_none());
    for (answer, next) in unanswered.zip(next) {
        *answer = Some(next.done(None).map(Some));
    }
    Ok(answers)
}

/// Whether a command for a run can be one of many.
pub(super) fn is_of_many(command: &Command) -> bool {
    !matches!(command, Command::Resume { .. })
}
