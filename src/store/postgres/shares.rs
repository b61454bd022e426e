//! The ranks of runs, as `crate::store::shares` has them, computed by the database: each by three probes of indexes, and
//! without a row that all would have to wait for. Creations at the same moment, by different nodes, may end up with the
//! same rank, which does no harm.

use futures_util::future::try_join3;
use uuid::Uuid;

use super::batch::{BY_INDEX, BY_INDEX_NO_MORE};
use super::conn::Conn;
use super::error::Failure;

/// The virtual time of the lane of a row `$of`: the highest rank that is running, or where the run with the lowest that
/// waits comes from.
macro_rules! virtual_time {
    ($of:literal) => {
        concat!(
            "GREATEST(0, (SELECT l.rank FROM runcast_runs l WHERE l.status = 'running' AND l.agent = ",
            $of,
            ".agent AND l.agent_version = ",
            $of,
            ".agent_version AND l.priority = ",
            $of,
            ".priority ORDER BY l.rank DESC LIMIT 1), \
             (SELECT l.rank - l.stride FROM runcast_runs l WHERE l.status = 'queued' AND l.agent = ",
            $of,
            ".agent AND l.agent_version = ",
            $of,
            ".agent_version AND l.priority = ",
            $of,
            ".priority ORDER BY l.rank LIMIT 1))"
        )
    };
}
pub(super) use virtual_time;

/// The rank that the tenant of a row `$of` has come to in its lane; a stride more is that of its next run.
macro_rules! reached {
    ($of:literal) => {
        concat!(
            "GREATEST(",
            super::shares::virtual_time!($of),
            ", (SELECT l.rank FROM runcast_runs l WHERE l.status = 'queued' AND l.tenant = ",
            $of,
            ".tenant AND l.agent = ",
            $of,
            ".agent AND l.agent_version = ",
            $of,
            ".agent_version AND l.priority = ",
            $of,
            ".priority ORDER BY l.rank DESC LIMIT 1))"
        )
    };
}
pub(super) use reached;

/// The runs that were never attempted are counted on from what the first of them, in its tenant's lane, finds.
const ASSIGN: &str = concat!(
    "WITH wanted AS MATERIALIZED (SELECT r.* FROM unnest($1::uuid[]) AS i(id) \
     CROSS JOIN LATERAL (SELECT id, tenant, agent, agent_version, priority, stride, rank, attempt = 0 AS is_new \
     FROM runcast_runs WHERE id = i.id OFFSET 0) r), \
     based AS (SELECT w.*, CASE WHEN NOT is_new THEN LEAST(w.rank, ",
    virtual_time!("w"),
    ") WHEN row_number() OVER (PARTITION BY w.tenant, w.agent, w.agent_version, w.priority, is_new ORDER BY w.id) = 1 \
     THEN ",
    reached!("w"),
    " END AS base FROM wanted w), \
     ranked AS (SELECT id, CASE WHEN is_new THEN (max(base) OVER lane + sum(stride) OVER (lane ORDER BY id))::bigint \
     ELSE base END AS rank FROM based WINDOW lane AS (PARTITION BY tenant, agent, agent_version, priority, is_new)) \
     UPDATE runcast_runs r SET rank = k.rank FROM ranked k WHERE r.id = k.id"
);

/// Gives runs that are about to become queued their ranks: those that were never attempted stand behind their
/// tenant's others, those that were go first. Their rows are locked, and their statuses are written behind it in
/// the same transaction. What goes from running to queued needs none: it keeps its rank, which its lane has gone
/// beyond.
pub(super) async fn assign(conn: &Conn, runs: &[Uuid]) -> Result<(), Failure> {
    let (client, assign) = (conn.client(), conn.prepare(ASSIGN).await?);
    let params: super::conn::Params<'_> = &[&runs];
    let assigned = client.execute(&assign, params);
    let (before, behind) = (client.batch_execute(BY_INDEX), client.batch_execute(BY_INDEX_NO_MORE));
    try_join3(before, assigned, behind).await.map(drop).map_err(Failure::from)
}
