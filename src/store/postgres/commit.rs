//! What the owner of a running run has decided.
//!
//! One UPDATE decides: it takes the row if the run is still this attempt's and this is its next commit; and, for a
//! commit that lets the run go, if no cancel waits. All that is to be inserted comes from the rows that it returned.
//!
//! **No cancel is lost.** The wish is a column of the run's own row, `cancel_requested`, and not a row beside it.
//! Both the cancel and the commit that lets the run go are updates of that row, so one waits for the other:
//!
//! - The cancel came first: the commit's UPDATE waits for it, and PostgreSQL then evaluates the whole condition
//!   again on the newest version of the row (READ COMMITTED, "EvalPlanQual"), where `cancel_requested` is true. A row in
//!   a table of commands would not do: everything but the row that was waited for is still read as it was when the
//!   statement began, so the commit would not see it.
//! - The commit came first: the cancel, which locks the row before it looks (see `transition`), finds a run
//!   that is not running any more, and the machine decides about it as it stands.
//!
//! The end of a run that belongs to a thread is written by itself, under the lock of the thread (see `threads`).
//!
//! What the UPDATE did not take is looked at afterwards: it may have been written by an earlier try whose answer
//! got lost.

use std::collections::HashMap;

use async_trait::async_trait;
use futures_util::future::try_join3;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::batch::{self, Batch, batch_arrays, batch_columns, insert_log, set_state};
use super::conn::Conn;
use super::error::Failure;
use super::lane::{Answers, Item};
use super::link::{Link, Share};
use super::rows::{Columns, plain};
use super::transition::Held;
use super::webhooks::{News, insert_deliveries};
use super::{messages, threads, transition};
use crate::run::{RunId, Status};
use crate::store::spelling::{integer, json, step_kind_text};
use crate::store::{Commit, Committed, StoreError};

const WRITE: &str = concat!(
    "WITH changed AS (UPDATE runcast_runs r SET ",
    set_state!(),
    ", lease_until = CASE WHEN i.status = $40 THEN r.lease_until END, \
     cancel_requested = r.cancel_requested AND i.status = $40 FROM unnest(",
    batch_arrays!(),
    ", $32::bigint[], $33::text[], $34::text[], $35::bigint[], $36::bigint[], $37::bool[], $38::text[], $39::text[]) \
     AS i(",
    batch_columns!(),
    ", step, kind, name, step_input, step_output, step_estimated, result, output) \
     WHERE r.id = i.id AND r.status = $40 AND r.attempt = i.attempt AND r.commit_number = i.commit_number - 1 \
     AND (NOT r.cancel_requested OR i.status = $40 OR i.status = $41) RETURNING i.*), ",
    insert_log!("changed"),
    ", kept AS (INSERT INTO runcast_steps (run_id, step, kind, name, input_tokens, output_tokens, estimated, result) \
     SELECT id, step, kind, name, step_input, step_output, step_estimated, result FROM changed \
     WHERE step IS NOT NULL), \
     results AS (INSERT INTO runcast_results (run_id, output) SELECT id, output FROM changed \
     WHERE output IS NOT NULL), \
     armed AS (INSERT INTO runcast_timers (due_at, run_id, kind, number) \
     SELECT timer_due, id, 1, timer_id FROM changed WHERE timer_due IS NOT NULL), ",
    insert_deliveries!("$42", "$43", "$44", "$45", "$46", "$47"),
    " SELECT id FROM changed"
);

/// Who has the runs that were not taken.
const OWNERS: &str = "SELECT r.id, r.attempt, r.commit_number, r.status, r.cancel_requested \
     FROM unnest($1::uuid[]) AS wanted(id) \
     CROSS JOIN LATERAL (SELECT * FROM runcast_runs WHERE id = wanted.id OFFSET 0) r";

/// A commit, ready to be written: what costs time is encoded by the caller.
pub(super) struct Decided {
    commit: Commit,
    result: Option<String>,
    output: Option<String>,
}

impl Decided {
    pub(super) fn new(commit: Commit) -> Result<Self, StoreError> {
        let result = commit.step.as_ref().map(|step| json(&step.result)).transpose()?;
        let output = commit.run.output.as_ref().filter(|_| leaves(&commit)).map(json).transpose()?;
        Ok(Self { commit, result, output })
    }

    /// It ends a run that belongs to a thread: more than the run's own row is to be written.
    pub(super) fn is_farewell(&self) -> bool {
        self.commit.farewell.is_some()
    }
}

fn leaves(commit: &Commit) -> bool {
    commit.run.status != Status::Running
}

#[async_trait]
impl Item for Decided {
    type Answer = Committed;
    type Memory = ();

    fn run(&self) -> RunId {
        self.commit.run.spec.id
    }

    fn bytes(&self) -> usize {
        let document = |document: &Option<String>| document.as_ref().map_or(0, String::len);
        let frames = self.commit.segment.as_ref().map_or(0, |segment| segment.bytes().len());
        frames + document(&self.result) + document(&self.output)
    }

    async fn write(link: &Link, items: &[&Self], (): &mut ()) -> Result<Answers<Self>, Failure> {
        link.run(Share::Batches, |conn| async move { write(&conn, items).await }).await
    }
}

async fn write(conn: &Conn, items: &[&Decided]) -> Result<Answers<Decided>, Failure> {
    let done = write_between(conn, items, [batch::BEGIN, "COMMIT"]).await?;
    let mut answers: HashMap<Uuid, _> = done.into_iter().map(|id| (id, Ok(Committed::Done))).collect();
    let ids: Vec<Uuid> = items.iter().map(|item| *item.run().as_uuid()).collect();
    let missed: Vec<Uuid> = ids.iter().filter(|id| !answers.contains_key(*id)).copied().collect();
    let mut owners = HashMap::new();
    if !missed.is_empty() {
        for row in conn.query(OWNERS, &[&missed]).await? {
            let mut columns = Columns::of(&row);
            owners.insert(*columns.id()?.as_uuid(), Owner::read(&mut columns)?);
        }
    }
    for (item, id) in items.iter().zip(&ids) {
        answers.entry(*id).or_insert_with(|| Owner::answer(owners.get(id), &item.commit));
    }
    Ok(ids.iter().map(|id| answers.remove(id)).collect())
}

/// Writes what is still the items' to write, between two other statements; returns for which runs.
async fn write_between(conn: &Conn, items: &[&Decided], [before, behind]: [&str; 2]) -> Result<Vec<Uuid>, Failure> {
    let (mut batch, mut news) = (Batch::default(), News::default());
    for Decided { commit, .. } in items {
        news.push(&commit.run, Status::Running, commit.segment.as_ref());
        // What was reserved beyond the last event of a run that is let go will not be used.
        let reserved = if leaves(commit) { commit.run.last_seq } else { commit.reserved_seq };
        batch.push(&commit.run, reserved, commit.number, commit.segment.as_ref());
    }
    let step = || items.iter().map(|item| item.commit.step.as_ref());
    let numbers: Vec<_> = step().map(|step| step.map(|step| i64::from(step.step))).collect();
    let kinds: Vec<_> = step().map(|step| step.map(|step| step_kind_text(step.kind))).collect();
    let names: Vec<_> = step().map(|step| step.map(|step| plain(&step.name))).collect();
    let inputs: Vec<_> = step().map(|step| step.map(|step| integer(step.usage.input_tokens))).collect();
    let outputs: Vec<_> = step().map(|step| step.map(|step| integer(step.usage.output_tokens))).collect();
    let estimated: Vec<_> = step().map(|step| step.map(|step| step.usage.estimated)).collect();
    let results: Vec<_> = items.iter().map(|item| item.result.as_deref()).collect();
    let documents: Vec<_> = items.iter().map(|item| item.output.as_deref()).collect();
    let (running, cancelled) = (Status::Running.as_str(), Status::Cancelled.as_str());
    let steps: [&(dyn ToSql + Sync); 8] =
        [&numbers, &kinds, &names, &inputs, &outputs, &estimated, &results, &documents];
    let mut params = batch.params();
    params.extend(steps);
    params.extend([&running as &(dyn ToSql + Sync), &cancelled]);
    params.extend(news.params());

    let (client, statement) = (conn.client(), conn.prepare(WRITE).await?);
    let written = client.query(&statement, &params);
    let done = try_join3(client.batch_execute(before), written, client.batch_execute(behind)).await?.1;
    Ok(done.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?)
}

/// Writes the end of a run that belongs to a thread, and what follows from it for the thread. The lock of the thread
/// comes before that of the run, so nothing can be handed to the run meanwhile.
pub(super) async fn finish(conn: &Conn, decided: &Decided) -> Result<Committed, Failure> {
    let commit = &decided.commit;
    let Some(Held { found, thread }) = transition::lock(conn, conn.begin_patiently(), None, decided.run()).await?
    else {
        return Ok(Committed::Fenced);
    };
    let owner = Owner {
        attempt: found.run.attempt.into(),
        number: found.commit_number,
        running: found.run.status == Status::Running,
        cancel_requested: found.cancel_requested,
    };
    let mut refused = owner.refusal(commit);
    if refused.is_none() && commit.run.status == Status::Completed && messages::has_unread(conn, decided.run()).await? {
        refused = Some(Committed::SteerWaits);
    }
    if let Some(refused) = refused {
        conn.client().batch_execute("COMMIT").await?;
        return Ok(refused);
    }
    if write_between(conn, &[decided], [batch::BY_CONDITION, batch::AS_EVER]).await?.is_empty() {
        // Its row is locked, and it is as it was found.
        return Err(StoreError::Corrupt(format!("the end of run {} was not written", decided.run())).into());
    }
    let followed = match (thread, &commit.farewell) {
        (Some(thread), Some(farewell)) => {
            threads::follow(conn, thread, &commit.run, Some(farewell), farewell.now).await?
        }
        (None, _) | (_, None) => None,
    };
    conn.client().batch_execute("COMMIT").await?;
    Ok(followed.map_or(Committed::Done, Committed::Followed))
}

/// How a run stands that was not taken.
struct Owner {
    attempt: u64,
    number: u64,
    running: bool,
    cancel_requested: bool,
}

impl Owner {
    fn read(columns: &mut Columns<'_>) -> Result<Self, StoreError> {
        let (attempt, number) = (columns.number()?, columns.number()?);
        let running = columns.text(|status| Some(status == Status::Running.as_str()))?;
        Ok(Self { attempt, number, running, cancel_requested: columns.take()? })
    }

    fn answer(owner: Option<&Self>, commit: &Commit) -> Result<Committed, StoreError> {
        let Some(owner) = owner else { return Ok(Committed::Fenced) };
        // Nothing of the kind is known to happen; another try will tell.
        let changed = || StoreError::Unavailable("the run changed while it was written".to_owned());
        owner.refusal(commit).ok_or_else(changed)
    }

    /// What keeps the commit from being written, if anything does.
    fn refusal(&self, commit: &Commit) -> Option<Committed> {
        if self.attempt != u64::from(commit.run.attempt) {
            return Some(Committed::Fenced);
        }
        if self.number == commit.number {
            return Some(Committed::Done);
        }
        if !self.running || self.number + 1 != commit.number {
            return Some(Committed::Fenced);
        }
        let stopped = self.cancel_requested && leaves(commit) && commit.run.status != Status::Cancelled;
        stopped.then_some(Committed::CancelWaits)
    }
}
