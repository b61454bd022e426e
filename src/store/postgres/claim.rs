//! Claiming runs.
//!
//! The candidates are read first, without a lock: each agent and version has its own queue within the index, so
//! that no claim passes over what waits for an agent that nobody here has. Then as many as there is room for are
//! locked, in their order, and those that another claim has are skipped. If that leaves room, the next look goes
//! further ahead.

use std::collections::{BTreeSet, HashMap};

use futures_util::future::try_join;
use uuid::Uuid;

use super::conn::Conn;
use super::error::Failure;
use super::rows::{self, Found, limit, plain, run_columns};
use super::transition::{self, Next};
use crate::run::{Command, RunId, Status, StepRecord};
use crate::store::{Claim, Claimed, StoreError};

const CANDIDATES: &str = "SELECT q.id FROM unnest($1::text[], $2::text[]) AS a(agent, version) \
     CROSS JOIN LATERAL (SELECT id, priority FROM runcast_runs \
     WHERE status = 'queued' AND agent = a.agent AND agent_version = a.version \
     ORDER BY priority DESC, id LIMIT $3) q ORDER BY q.priority DESC, q.id LIMIT $3";

/// Locks what is still queued, one row after the other in the order that is given, until there are enough.
const TAKE: &str = concat!(
    "SELECT ",
    run_columns!(),
    " FROM unnest($1::uuid[]) AS wanted(id) \
     CROSS JOIN LATERAL (SELECT * FROM runcast_runs WHERE id = wanted.id AND status = $2 FOR UPDATE SKIP LOCKED) r \
     CROSS JOIN LATERAL (SELECT * FROM runcast_specs WHERE run_id = r.id OFFSET 0) s LIMIT $3"
);

const STEPS: &str = "SELECT c.run_id, c.step, c.kind, c.name, c.input_tokens, c.output_tokens, c.estimated, c.result \
     FROM unnest($1::uuid[]) AS wanted(id) \
     CROSS JOIN LATERAL (SELECT * FROM runcast_steps WHERE run_id = wanted.id ORDER BY step OFFSET 0) c";

/// What was claimed, and the runs among it that cannot be executed, since they cannot be read, with their attempts.
pub(super) struct Taken {
    pub(super) claimed: Vec<Claimed>,
    pub(super) unreadable: Vec<(RunId, u32, StoreError)>,
}

/// Claims the next runs.
pub(super) async fn claim(conn: &Conn, claim: &Claim) -> Result<Taken, Failure> {
    let mut taken = Taken { claimed: Vec::new(), unreadable: Vec::new() };
    let next = next(conn, claim).await?;
    if next.is_empty() {
        return Ok(taken);
    }
    let with_steps: Vec<Uuid> =
        next.iter().filter(|next| next.run.steps > 0).map(|next| *next.run.spec.id.as_uuid()).collect();
    let mut steps = steps(conn, &with_steps).await?;
    let lease = i64::try_from(claim.lease.as_millis()).unwrap_or(i64::MAX);
    transition::write(conn, &next, Some((&plain(&claim.node), lease))).await?;
    for next in next {
        let (id, attempt, reserved_seq) = (next.run.spec.id, next.run.attempt, next.reserved_seq());
        let steps = steps.remove(&id).unwrap_or(Ok(Vec::new()));
        let claimed = next
            .documents
            .complete(next.run)
            .and_then(|run| Ok(Claimed { run, segment: next.segment, reserved_seq, steps: steps? }));
        match claimed {
            Ok(claimed) => taken.claimed.push(claimed),
            Err(error) => taken.unreadable.push((id, attempt, error)),
        }
    }
    Ok(taken)
}

/// The runs to claim, as they will be. Their rows are locked, in a transaction that has begun unless there are none.
async fn next(conn: &Conn, claim: &Claim) -> Result<Vec<Next>, Failure> {
    let agents: BTreeSet<_> = claim.agents.iter().map(|(agent, version)| (plain(agent), plain(version))).collect();
    let (names, versions): (Vec<_>, Vec<_>) = agents.into_iter().unzip();
    let (room, queued, client) = (limit(claim.room), Status::Queued.as_str(), conn.client());
    let (mut ahead, mut begun) = (room.saturating_mul(2).saturating_add(16), false);
    let rows = loop {
        let candidates = conn.query(CANDIDATES, &[&names, &versions, &ahead]).await?;
        let ids: Vec<Uuid> = candidates.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?;
        if ids.is_empty() && !begun {
            return Ok(Vec::new());
        }
        let take = conn.prepare(TAKE).await?;
        let params: super::conn::Params<'_> = &[&ids, &queued, &room];
        let rows = if begun {
            client.query(&take, params).await?
        } else {
            try_join(client.batch_execute("BEGIN"), client.query(&take, params)).await?.1
        };
        begun = true;
        // What is locked already is found again.
        if rows.len() >= claim.room || ids.len() < usize::try_from(ahead).unwrap_or(usize::MAX) {
            break rows;
        }
        ahead = ahead.saturating_mul(8);
    };
    let mut next = Vec::with_capacity(rows.len());
    let command = Command::Claim { node: claim.node.to_string() };
    for row in &rows {
        // One run that cannot be read must not keep all others from being claimed.
        match Found::read(row) {
            Ok(found) => {
                let decided = transition::decide(found, &command, claim.now, false);
                next.extend(decided.ok().map(|next| next.owned(claim.reserve)));
            }
            Err(error) => tracing::error!(%error, "a queued run cannot be read"),
        }
    }
    if next.is_empty() {
        client.batch_execute("COMMIT").await?;
    }
    Ok(next)
}

/// The finished steps of `runs`, in order.
async fn steps(conn: &Conn, runs: &[Uuid]) -> Result<HashMap<RunId, Result<Vec<StepRecord>, StoreError>>, Failure> {
    let mut steps = HashMap::new();
    if runs.is_empty() {
        return Ok(steps);
    }
    for row in conn.query(STEPS, &[&runs]).await? {
        let run = rows::Columns::of(&row).id()?;
        let kept = steps.entry(run).or_insert_with(|| Ok(Vec::new()));
        match (rows::step(&row), &mut *kept) {
            (Ok((_, step)), Ok(steps)) => steps.push(step),
            (Err(error), _) => *kept = Err(error),
            (Ok(_), Err(_)) => {}
        }
    }
    Ok(steps)
}
