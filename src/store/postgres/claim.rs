//! Claiming runs.
//!
//! The candidates are read first, without a lock: each agent and version has its own queue within the index, so
//! that no claim passes over what waits for an agent that nobody here has. Then as many as there is room for are
//! locked, in their order, and those that another claim has are skipped. If that leaves room, the next look goes
//! further ahead.
//!
//! **Limits.** A claim that limits may concern does all that behind a lock that only such claims take, in its own
//! transaction: what it counts as running is what those before it have left, so limits hold exactly, whichever nodes
//! claim. A run that ends meanwhile is counted still; whoever ended it wakes the workers again. Other claims take
//! no such lock.

use std::borrow::Cow;
use std::collections::{HashMap, VecDeque};

use futures_util::future::{try_join, try_join3};
use tokio_postgres::Row;
use uuid::Uuid;

use super::conn::Conn;
use super::error::Failure;
use super::rows::{self, Columns, Found, limit, plain, run_columns};
use super::transition::{self, Next};
use crate::run::{Command, RunId, Status, StepRecord};
use crate::store::shares::{First, Running, Subject, pick};
use crate::store::{Claim, Claimed, StoreError};

const CANDIDATES: &str = "SELECT q.id FROM unnest($1::text[], $2::text[], $4::bigint[]) AS a(agent, version, turn) \
     CROSS JOIN LATERAL (SELECT id, priority, rank FROM runcast_runs \
     WHERE status = 'queued' AND agent = a.agent AND agent_version = a.version \
     ORDER BY priority DESC, rank, id LIMIT $3) q ORDER BY q.priority DESC, \
     row_number() OVER (PARTITION BY a.turn, q.priority ORDER BY q.rank, q.id), a.turn LIMIT $3";

/// The first runs of each lane, but for those of tenants ($5) and keys ($6, $7) that are at their limit, and for some
/// ($8).
const CANDIDATES_WITHIN: &str = "SELECT a.turn, q.priority, q.id, q.tenant, q.concurrency_key \
     FROM unnest($1::text[], $2::text[], $4::bigint[]) AS a(agent, version, turn) \
     CROSS JOIN LATERAL (SELECT id, priority, rank, tenant, concurrency_key FROM runcast_runs r \
     WHERE status = 'queued' AND agent = a.agent AND agent_version = a.version AND tenant <> ALL ($5::text[]) \
     AND (concurrency_key IS NULL OR NOT EXISTS (SELECT FROM unnest($6::text[], $7::text[]) AS b(agent, key) \
     WHERE b.agent = r.agent AND b.key = r.concurrency_key)) AND id <> ALL ($8::uuid[]) \
     ORDER BY priority DESC, rank, id LIMIT $3) q ORDER BY a.turn, q.priority DESC, q.rank, q.id";

const LOCK_LIMITS: &str = "SELECT pg_advisory_xact_lock(hashtextextended('runcast limits ' || current_schema(), 0))";

/// The runs that are running, of tenants, of agents, and of the keys of agents.
const RUNNING: &str = "SELECT 0::bigint, tenant, NULL::text, count(*) FROM runcast_runs \
     WHERE status = 'running' AND tenant = ANY ($1::text[]) GROUP BY tenant \
     UNION ALL SELECT 1, agent, NULL, count(*) FROM runcast_runs \
     WHERE status = 'running' AND agent = ANY ($2::text[]) GROUP BY agent \
     UNION ALL SELECT 2, agent, concurrency_key, count(*) FROM runcast_runs \
     WHERE status = 'running' AND agent = ANY ($3::text[]) AND concurrency_key IS NOT NULL \
     GROUP BY agent, concurrency_key";

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

/// The agents and versions of a claim as arrays, with their turns.
struct Lanes<'a> {
    names: Vec<Cow<'a, str>>,
    versions: Vec<Cow<'a, str>>,
    turns: Vec<i64>,
}

impl<'a> Lanes<'a> {
    /// Those of `claim` that `wanted` takes.
    fn of(claim: &'a Claim, wanted: impl Fn(&str) -> bool) -> Self {
        let mut lanes = Self { names: Vec::new(), versions: Vec::new(), turns: Vec::new() };
        for (turn, agent, version) in claim.lanes().filter(|(_, agent, _)| wanted(agent)) {
            lanes.names.push(plain(agent));
            lanes.versions.push(plain(version));
            lanes.turns.push(limit(turn));
        }
        lanes
    }
}

/// The rows of the runs to claim, locked in a transaction that has begun unless there are none.
async fn in_order(conn: &Conn, claim: &Claim) -> Result<Vec<Row>, Failure> {
    let Lanes { names, versions, turns } = Lanes::of(claim, |_| true);
    let (room, queued, client) = (limit(claim.room), Status::Queued.as_str(), conn.client());
    let (mut ahead, mut begun) = (room.saturating_mul(2).saturating_add(16), false);
    loop {
        let candidates = conn.query(CANDIDATES, &[&names, &versions, &ahead, &turns]).await?;
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
            if rows.is_empty() {
                client.batch_execute("COMMIT").await?;
            }
            return Ok(rows);
        }
        ahead = ahead.saturating_mul(8);
    }
}

/// As [`in_order`], but passing over the runs that the limits keep waiting.
async fn within_limits(conn: &Conn, claim: &Claim) -> Result<Vec<Row>, Failure> {
    let all = Lanes::of(claim, |_| true);
    // Where nothing waits, nobody is to wait for the lock.
    if conn.query(CANDIDATES, &[&all.names, &all.versions, &1_i64, &all.turns]).await?.is_empty() {
        return Ok(Vec::new());
    }
    let client = conn.client();
    let (limits, names) = (&claim.limits, |names: &mut dyn Iterator<Item = &String>| -> Vec<String> {
        names.map(|name| plain(name).into_owned()).collect()
    });
    let (tenants, agents) = (names(&mut limits.tenants.keys()), names(&mut limits.agents.keys()));
    let keyed = names(&mut limits.keys.keys());
    let (lock, count) = (conn.prepare(LOCK_LIMITS).await?, conn.prepare(RUNNING).await?);
    // The time limit of statements bounds the wait for the lock, as it does all else.
    let begin = client.batch_execute("BEGIN; SET LOCAL lock_timeout = 0");
    let params: super::conn::Params<'_> = &[&tenants, &agents, &keyed];
    let counted = try_join3(begin, client.query(&lock, &[]), client.query(&count, params)).await?.2;
    let mut running = Running::default();
    for row in counted {
        let mut columns = Columns::of(&row);
        let (what, name): (i64, String) = (columns.take()?, columns.take()?);
        let (key, runs): (Option<String>, u64) = (columns.take()?, columns.number()?);
        match (what, key) {
            (0, _) => running.add_tenant(&name, runs),
            (1, _) => running.add_agent(&name, runs),
            (_, Some(key)) => running.add_key(&name, &key, runs),
            (_, None) => {}
        }
    }
    let ids = admitted(conn, claim, &mut running).await?;
    let rows = if ids.is_empty() {
        Vec::new()
    } else {
        let take = conn.prepare(TAKE).await?;
        client.query(&take, &[&ids, &Status::Queued.as_str(), &limit(claim.room)]).await?
    };
    if rows.is_empty() {
        client.batch_execute("COMMIT").await?;
    }
    Ok(rows)
}

/// The runs that the limits admit besides those that are running, in order. Looks further ahead as long as there is
/// more, and room.
async fn admitted(conn: &Conn, claim: &Claim, running: &mut Running) -> Result<Vec<Uuid>, Failure> {
    let limits = &claim.limits;
    let mut ids: Vec<Uuid> = Vec::new();
    let mut ahead = limit(claim.room).saturating_add(16);
    loop {
        let lanes =
            Lanes::of(claim, |agent| limits.agents.get(agent).is_none_or(|most| running.of_agent(agent) < *most));
        let tenants: Vec<_> = limits
            .tenants
            .iter()
            .filter(|(name, most)| running.of_tenant(name) >= **most)
            .map(|(name, _)| name)
            .collect();
        let keys = running.keys().filter(|(agent, _, runs)| limits.keys.get(*agent).is_some_and(|most| runs >= most));
        let (of_agents, keys): (Vec<_>, Vec<_>) = keys.map(|(agent, key, _)| (agent, key)).unzip();
        let params: super::conn::Params<'_> =
            &[&lanes.names, &lanes.versions, &ahead, &lanes.turns, &tenants, &of_agents, &keys, &ids];
        let mut queues: Vec<VecDeque<First>> = vec![VecDeque::new(); claim.agents.len()];
        for row in conn.query(CANDIDATES_WITHIN, params).await? {
            let mut columns = Columns::of(&row);
            let (turn, priority) = (columns.number()?, columns.small("priority")?);
            let (id, tenant, key) = (columns.id()?, columns.take()?, columns.take()?);
            let turn = usize::try_from(turn).unwrap_or(usize::MAX);
            if let Some((_, agent, _)) = claim.lanes().find(|(lane, ..)| *lane == turn)
                && let Some(queue) = queues.get_mut(turn)
            {
                queue.push_back(First::new(priority, id, Subject { tenant, agent, key }));
            }
        }
        let more = queues.iter().any(|queue| limit(queue.len()) >= ahead);
        let mut lanes: Vec<_> =
            queues.iter_mut().map(|queue| |_: &Running| Ok::<_, StoreError>(queue.pop_front())).collect();
        let picked = pick(&mut lanes, limits, running, claim.room - ids.len())?;
        ids.extend(picked.iter().map(|id| *id.as_uuid()));
        if !more || ids.len() >= claim.room {
            return Ok(ids);
        }
        ahead = ahead.saturating_mul(8);
    }
}

/// The runs to claim, as they will be. Their rows are locked, in a transaction that has begun unless there are none.
async fn next(conn: &Conn, claim: &Claim) -> Result<Vec<Next>, Failure> {
    let client = conn.client();
    let limited = claim.limits.concern_any(claim.agents.iter().map(|(agent, _)| agent.as_str()));
    let rows = if limited { within_limits(conn, claim).await? } else { in_order(conn, claim).await? };
    if rows.is_empty() {
        return Ok(Vec::new());
    }
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
