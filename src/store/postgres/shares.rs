//! The ranks of runs, as `crate::store::shares` has them, computed by the database: each by three probes of indexes, and
//! without a row that all would have to wait for. Creations at the same moment, by different nodes, may end up with the
//! same rank, which does no harm.

use uuid::Uuid;

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

const ASSIGN: &str = concat!(
    "UPDATE runcast_runs r SET rank = CASE WHEN r.attempt = 0 THEN ",
    reached!("r"),
    " + r.stride ELSE LEAST(r.rank, ",
    virtual_time!("r"),
    ") END WHERE r.id = ANY ($1::uuid[])"
);

/// Gives runs that are about to become queued their ranks: those that were never attempted stand behind their
/// tenant's others, those that were go first. Their rows are locked, and their statuses are written behind it in
/// the same transaction. What goes from running to queued needs none: it keeps its rank, which its lane has gone
/// beyond.
pub(super) async fn assign(conn: &Conn, runs: &[Uuid]) -> Result<(), Failure> {
    conn.execute(ASSIGN, &[&runs]).await.map(drop)
}
