//! Creating runs, and what a repeated request finds.
//!
//! A batch is one statement. It takes the idempotency keys first: the key of a concurrent creation, of this node
//! or another, is waited for, and whose key it was creates the run. What was not created is looked up afterwards.
//!
//! **How many wait.** An exact count at each creation would cost more than the creation, the more so the longer
//! the queue is. So a count holds for a second, and as long as the bound is far enough away: what this node has
//! created since is taken [`NODES`] times, for the other nodes may have created as much. Near the bound each batch
//! counts, which keeps one node exactly within the bound, and several within a batch each. The bounds of tenants are
//! kept in the same way.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::try_join3;
use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::batch::{BEGIN_BY_INDEX, BY_INDEX, BY_INDEX_NO_MORE, Batch, batch_arrays, batch_columns, insert_log};
use super::conn::Conn;
use super::error::Failure;
use super::lane::{Answers, Item};
use super::link::{Link, Share};
use super::rows::{self, Columns, Found, limit, plain};
use crate::run::{Run, RunId, Segment, Tenant, Timestamp};
use crate::store::shares::stride;
use crate::store::spelling::{integer, json, on_disconnect_text, unsigned};
use crate::store::{self, Admitted, Created, IdempotencyKey, NewRun, StoreError};

/// Takes the keys, and inserts the runs whose keys could be taken and whose steps are still there to be copied, but
/// for those that are there already.
const WRITE: &str = concat!(
    "WITH possible AS MATERIALIZED (SELECT * FROM unnest(",
    batch_arrays!(),
    ", $32::text[], $33::text[], $34::text[], $35::bigint[], $36::bigint[], $37::text[], $38::text[], $39::text[], \
     $40::bigint[], $41::bigint[], $42::bigint[], $43::text[], $44::uuid[], $45::text[], $46::text[], $47::text[], \
     $48::bytea[], $49::bigint[], $50::bigint[], $51::bigint[], $52::text[], $53::text[], $54::uuid[], $55::bigint[]) AS i(",
    batch_columns!(),
    ", tenant, agent, agent_version, priority, created_at, input, params, metadata, ttl_at, timeout_ms, max_attempts, \
     on_disconnect, retry_of, correlation_id, route, key, fingerprint, valid_after, expires_at, stride, \
     concurrency_key, webhook, thread_id, latest_due) \
     WHERE i.retry_of IS NULL OR i.steps = 0 OR EXISTS \
     (SELECT FROM runcast_steps c WHERE c.run_id = i.retry_of AND c.step = i.steps)), \
     keys AS (INSERT INTO runcast_idempotency AS k (tenant, route, key, fingerprint, run_id, kept_at) \
     SELECT tenant, route, key, fingerprint, id, created_at FROM possible WHERE key IS NOT NULL ORDER BY 1, 2, 3 \
     ON CONFLICT (tenant, route, key) DO UPDATE SET fingerprint = EXCLUDED.fingerprint, run_id = EXCLUDED.run_id, \
     kept_at = EXCLUDED.kept_at WHERE k.kept_at < (SELECT valid_after FROM possible WHERE id = EXCLUDED.run_id) \
     RETURNING run_id), \
     wanted AS MATERIALIZED (SELECT * FROM possible WHERE key IS NULL OR id IN (SELECT run_id FROM keys)), \
     based AS (SELECT n.*, CASE WHEN n.status = 'queued' AND row_number() OVER (PARTITION BY n.tenant, n.agent, \
     n.agent_version, n.priority, n.status ORDER BY n.id) = 1 THEN ",
    super::shares::reached!("n"),
    " END AS base FROM wanted n), \
     runs AS (INSERT INTO runcast_runs (rank, stride, concurrency_key, id, tenant, agent, agent_version, priority, created_at, status, attempt, \
     failures, crashes, steps, timer_due, timer_id, reason, timers_armed, started_at, attempt_started_at, ran_ms, \
     finished_at, checkpoint_seq, last_seq, input_tokens, output_tokens, estimated, outcome, error_code, \
     error_message, reserved_seq, commit_number, ledger, thread_id) SELECT CASE WHEN status = 'queued' \
     THEN (max(base) OVER lane + sum(stride) OVER (lane ORDER BY id))::bigint ELSE 0 END, stride, concurrency_key, id, tenant, agent, agent_version, priority, created_at, \
     status, attempt, failures, crashes, steps, timer_due, timer_id, reason, timers_armed, started_at, \
     attempt_started_at, ran_ms, finished_at, checkpoint_seq, last_seq, input_tokens, output_tokens, estimated, \
     outcome, error_code, error_message, reserved_seq, commit_number, ledger, thread_id FROM based \
     WINDOW lane AS (PARTITION BY tenant, agent, agent_version, priority, status) \
     ON CONFLICT (id) DO NOTHING RETURNING id), \
     new AS MATERIALIZED (SELECT * FROM wanted WHERE id IN (SELECT id FROM runs)), \
     specs AS (INSERT INTO runcast_specs (run_id, input, params, metadata, ttl_at, timeout_ms, max_attempts, \
     on_disconnect, retry_of, correlation_id, webhook, latest_due) SELECT id, input, params, metadata, ttl_at, timeout_ms, \
     max_attempts, on_disconnect, retry_of, correlation_id, webhook, latest_due FROM new), ",
    insert_log!("new"),
    ", armed AS (INSERT INTO runcast_timers (due_at, run_id, kind, number) \
     SELECT timer_due, id, 1, timer_id FROM new WHERE timer_due IS NOT NULL \
     UNION ALL SELECT expires_at, id, 0, 0 FROM new WHERE expires_at IS NOT NULL), \
     copied AS (INSERT INTO runcast_steps \
     (run_id, step, kind, name, input_tokens, output_tokens, estimated, result) \
     SELECT n.id, c.step, c.kind, c.name, c.input_tokens, c.output_tokens, c.estimated, c.result \
     FROM new n JOIN runcast_steps c ON c.run_id = n.retry_of AND c.step <= n.steps WHERE n.steps > 0) \
     SELECT id FROM new"
);

/// What the keys were used for, unless that is forgotten.
const USED: &str = "SELECT wanted.at, k.fingerprint, k.run_id \
     FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[]) WITH ORDINALITY \
     AS wanted(tenant, route, key, valid_after, at) \
     CROSS JOIN LATERAL (SELECT * FROM runcast_idempotency WHERE tenant = wanted.tenant AND route = wanted.route \
     AND key = wanted.key AND kept_at >= wanted.valid_after OFFSET 0) k";

const COUNT: &str = "SELECT \
     (SELECT count(*) FROM (SELECT FROM runcast_runs WHERE status = 'queued' LIMIT $1) queued) + \
     (SELECT count(*) FROM (SELECT FROM runcast_runs WHERE status = 'scheduled' LIMIT $1) scheduled)";

const COUNT_OF_TENANTS: &str = "SELECT t.at, (SELECT count(*) FROM (SELECT FROM runcast_runs r \
     WHERE r.status = 'queued' AND r.tenant = t.tenant LIMIT t.most) queued) + \
     (SELECT count(*) FROM (SELECT FROM runcast_runs r \
     WHERE r.status = 'scheduled' AND r.tenant = t.tenant LIMIT t.most) scheduled) \
     FROM unnest($1::text[], $2::bigint[]) WITH ORDINALITY AS t(tenant, most, at)";

/// How many nodes may create runs at the same pace before the bound is overrun.
const NODES: u64 = 8;

/// How long a count holds.
const COUNT_HOLDS: Duration = Duration::from_secs(1);

/// A run, ready to be created: what costs time is encoded by the caller.
pub(super) struct Creation {
    new: NewRun,
    input: String,
    params: String,
    metadata: String,
    webhook: Option<String>,
}

impl Creation {
    pub(super) fn new(new: NewRun) -> Result<Self, StoreError> {
        let spec = &new.run.spec;
        let (input, params, metadata) = (json(&spec.input)?, json(&spec.params)?, rows::metadata(&spec.metadata)?);
        let webhook = spec.webhook.as_ref().map(json).transpose()?;
        Ok(Self { new, input, params, metadata, webhook })
    }

    fn key(&self) -> Option<(&str, &IdempotencyKey)> {
        self.new.key.as_ref().map(|key| (self.new.run.spec.tenant.as_str(), key))
    }
}

/// How many runs wait, as far as this node knows.
#[derive(Default)]
struct Counted {
    counted: Option<(u64, Instant)>,
    created_since: u64,
}

impl Counted {
    fn now(waiting: u64) -> Self {
        Self { counted: Some((waiting, Instant::now())), created_since: 0 }
    }

    /// How many there may be at most; none if nobody knows.
    fn at_most(&self) -> Option<u64> {
        let (counted, at) = self.counted?;
        (at.elapsed() < COUNT_HOLDS).then(|| counted.saturating_add(self.created_since.saturating_mul(NODES)))
    }

    /// Whether so many more may come near the bound.
    fn is_near(&self, bound: u64, more: usize) -> bool {
        self.at_most().is_none_or(|most| most.saturating_add(more as u64) >= bound)
    }
}

/// How many runs wait, of all tenants and of those that have bounds.
#[derive(Default)]
pub(super) struct Waiting {
    all: Counted,
    tenants: HashMap<Tenant, Counted>,
}

impl Waiting {
    /// Why one more run of `tenant` is not let in; none if it is, and is created. Those that come at the same moment
    /// are counted together: near a bound they may be as many too many.
    pub(super) async fn refuses(
        memory: &Mutex<Self>,
        conn: &Conn,
        bound: u64,
        tenant: &Tenant,
        of_tenant: Option<u64>,
    ) -> Result<Option<Admitted>, Failure> {
        if bound == 0 {
            // Nothing is let in, whatever waits: there is nothing to count.
            return Ok(Some(Admitted::TooManyWaiting));
        }
        let (all_near, tenant_near) = {
            let waiting = memory.lock();
            let counted = waiting.tenants.get(tenant);
            let near = |most| counted.is_none_or(|counted: &Counted| counted.is_near(most, 1));
            (i64::try_from(bound).is_ok() && waiting.all.is_near(bound, 1), of_tenant.filter(|most| near(*most)))
        };
        if all_near {
            let counted = conn.query(COUNT, &[&integer(bound)]).await?;
            let counted = counted.first().map_or(Ok(0), |row| row.try_get(0)).map(unsigned)?;
            memory.lock().all = Counted::now(counted);
            if counted >= bound {
                return Ok(Some(Admitted::TooManyWaiting));
            }
        }
        if let Some(most) = tenant_near {
            let (names, bounds) = (vec![plain(tenant.as_str())], vec![integer(most)]);
            let counted = conn.query(COUNT_OF_TENANTS, &[&names, &bounds]).await?;
            let counted = counted.first().map_or(Ok(0), |row| row.try_get(1)).map(unsigned)?;
            memory.lock().tenants.insert(tenant.clone(), Counted::now(counted));
            if counted >= most {
                return Ok(Some(Admitted::TooManyOfTenant));
            }
        }
        memory.lock().created(std::iter::once(tenant));
        Ok(None)
    }

    /// What becomes of those of `items` that the bounds do not let in; none for the others.
    async fn admit(&mut self, conn: &Conn, items: &[&Creation]) -> Result<Vec<Option<Created>>, Failure> {
        let mut refused = vec![None; items.len()];
        self.admit_all(conn, items, &mut refused).await?;
        self.admit_tenants(conn, items, &mut refused).await?;
        Ok(refused)
    }

    async fn admit_all(
        &mut self,
        conn: &Conn,
        items: &[&Creation],
        refused: &mut [Option<Created>],
    ) -> Result<(), Failure> {
        let unbounded = u64::try_from(i64::MAX).unwrap_or(u64::MAX);
        // Where nothing is let in, whatever waits, there is nothing to count.
        for (item, refused) in items.iter().zip(&mut *refused) {
            *refused = (item.new.max_waiting == 0).then_some(Created::TooManyWaiting);
        }
        let bounds = || items.iter().map(|item| item.new.max_waiting).filter(|bound| (1..unbounded).contains(bound));
        let (Some(lowest), Some(highest)) = (bounds().min(), bounds().max()) else { return Ok(()) };
        if !self.all.is_near(lowest, items.len()) {
            return Ok(());
        }
        let counted = conn.query(COUNT, &[&integer(highest)]).await?;
        let mut waiting = counted.first().map_or(Ok(0), |row| row.try_get(0)).map(unsigned)?;
        self.all = Counted::now(waiting);
        for (item, refused) in items.iter().zip(refused).filter(|(_, refused)| refused.is_none()) {
            let room = waiting < item.new.max_waiting;
            waiting += u64::from(room);
            *refused = (!room).then_some(Created::TooManyWaiting);
        }
        Ok(())
    }

    async fn admit_tenants(
        &mut self,
        conn: &Conn,
        items: &[&Creation],
        refused: &mut [Option<Created>],
    ) -> Result<(), Failure> {
        // The lowest and the highest bound of each tenant, which differ only while nodes are configured anew.
        let mut bounds: HashMap<&Tenant, (u64, u64)> = HashMap::new();
        for item in items {
            if let Some(bound) = item.new.share.max_waiting {
                let (lowest, highest) = bounds.entry(&item.new.run.spec.tenant).or_insert((bound, bound));
                (*lowest, *highest) = (bound.min(*lowest), bound.max(*highest));
            }
        }
        let none = Counted::default();
        bounds.retain(|tenant, (lowest, _)| self.tenants.get(*tenant).unwrap_or(&none).is_near(*lowest, items.len()));
        if bounds.is_empty() {
            return Ok(());
        }
        let (tenants, most): (Vec<&Tenant>, Vec<i64>) =
            bounds.into_iter().map(|(tenant, (_, highest))| (tenant, integer(highest))).unzip();
        let names: Vec<_> = tenants.iter().map(|tenant| plain(tenant.as_str())).collect();
        self.tenants.retain(|_, counted| counted.at_most().is_some());
        for row in conn.query(COUNT_OF_TENANTS, &[&names, &most]).await? {
            let (at, mut waiting) = (row.try_get::<_, i64>(0)?, row.try_get(1).map(unsigned)?);
            let Some(tenant) = usize::try_from(at - 1).ok().and_then(|at| tenants.get(at)) else { continue };
            self.tenants.insert(Tenant::clone(tenant), Counted::now(waiting));
            for (item, refused) in items.iter().zip(&mut *refused) {
                if let Some(bound) = item.new.share.max_waiting
                    && item.new.run.spec.tenant == **tenant
                    && refused.is_none()
                {
                    let room = waiting < bound;
                    waiting += u64::from(room);
                    *refused = (!room).then_some(Created::TooManyOfTenant);
                }
            }
        }
        Ok(())
    }

    /// So many runs were created, whose tenants may have bounds.
    fn created<'a>(&mut self, tenants: impl Iterator<Item = &'a Tenant>) {
        for tenant in tenants {
            self.all.created_since += 1;
            if let Some(counted) = self.tenants.get_mut(tenant) {
                counted.created_since += 1;
            }
        }
    }
}

#[async_trait]
impl Item for Creation {
    type Answer = Created;
    type Memory = Waiting;

    fn run(&self) -> RunId {
        self.new.run.spec.id
    }

    fn bytes(&self) -> usize {
        self.input.len() + self.params.len() + self.metadata.len()
    }

    async fn write(link: &Link, items: &[&Self], waiting: &mut Waiting) -> Result<Answers<Self>, Failure> {
        link.run(Share::Batches, |conn| async move { write(&conn, items, waiting).await }).await
    }
}

async fn write(conn: &Conn, items: &[&Creation], waiting: &mut Waiting) -> Result<Answers<Creation>, Failure> {
    let refused = waiting.admit(conn, items).await?;
    let mut keys = HashSet::new();
    // Of those with the same key, one is tried at a time.
    let keyed = items.iter().map(|item| item.key());
    let first: Vec<bool> =
        keyed.map(|key| key.is_none_or(|(tenant, key)| keys.insert((tenant, key.route, key.key.as_str())))).collect();
    let together: Vec<&Creation> =
        (0..items.len()).filter(|at| refused[*at].is_none() && first[*at]).map(|at| items[at]).collect();
    let created = if together.is_empty() {
        HashSet::new()
    } else {
        insert_between(conn, &together, [BEGIN_BY_INDEX, "COMMIT"]).await?
    };
    let new = together.iter().map(|item| &item.new.run.spec);
    waiting.created(new.filter(|spec| created.contains(spec.id.as_uuid())).map(|spec| &spec.tenant));

    let missed: Vec<usize> =
        (0..items.len()).filter(|at| !created.contains(items[*at].new.run.spec.id.as_uuid())).collect();
    let mut existing = found(conn, &missed.iter().map(|at| items[*at]).collect::<Vec<_>>()).await?;
    let all_taken = created.len() == refused.iter().filter(|refused| refused.is_none()).count();
    let answer = |at: usize| {
        let item = items[at];
        if created.contains(item.new.run.spec.id.as_uuid()) {
            return Some(Ok(Created::New));
        }
        if let Some(existing) = existing.remove(&item.new.run.spec.id) {
            return Some(existing);
        }
        if let Some(refused) = &refused[at] {
            // Unless one that was let in did not need its room.
            return all_taken.then(|| Ok(refused.clone()));
        }
        match item.new.run.spec.retry_of {
            // Deleted since the caller has looked at it; it will find so when it looks again.
            Some(from) if first[at] && item.new.run.steps > 0 => {
                Some(Err(StoreError::Unavailable(format!("the finished steps of run {from} are gone"))))
            }
            // The key was another's and is free again, or the run that had it first has not been created.
            Some(_) | None => None,
        }
    };
    Ok((0..items.len()).map(answer).collect())
}

/// Creates a run, whatever its key and the bound say, within a transaction that has begun.
pub(super) async fn insert(conn: &Conn, run: &Run, segment: &Segment, share: store::Share) -> Result<(), Failure> {
    let new = NewRun { run: run.clone(), segment: segment.clone(), key: None, max_waiting: u64::MAX, share };
    let created = insert_between(conn, &[&Creation::new(new)?], [BY_INDEX, BY_INDEX_NO_MORE]).await?;
    match (created.is_empty(), run.spec.retry_of) {
        (false, _) => Ok(()),
        // Deleted since the caller has looked at it; it will find so when it looks again.
        (true, Some(from)) => Err(StoreError::Unavailable(format!("the finished steps of run {from} are gone")).into()),
        (true, None) => Err(StoreError::Corrupt(format!("run {} was not created", run.spec.id)).into()),
    }
}

/// Inserts what can be, between two other statements; returns which.
async fn insert_between(
    conn: &Conn,
    items: &[&Creation],
    [before, behind]: [&str; 2],
) -> Result<HashSet<Uuid>, Failure> {
    let mut batch = Batch::default();
    for item in items {
        let run = &item.new.run;
        batch.push(run, run.last_seq, 0, Some(&item.new.segment));
    }
    let specs = || items.iter().map(|item| &*item.new.run.spec);
    let keys = || items.iter().map(|item| item.new.key.as_ref());
    let millis = |time: Option<Timestamp>| time.map(Timestamp::as_millis);
    let tenants: Vec<_> = specs().map(|spec| plain(spec.tenant.as_str())).collect();
    let agents: Vec<_> = specs().map(|spec| plain(&spec.agent)).collect();
    let versions: Vec<_> = specs().map(|spec| plain(&spec.agent_version)).collect();
    let priorities: Vec<_> = specs().map(|spec| i64::from(spec.priority)).collect();
    let created: Vec<_> = specs().map(|spec| spec.created_at.as_millis()).collect();
    let inputs: Vec<_> = items.iter().map(|item| item.input.as_str()).collect();
    let parameters: Vec<_> = items.iter().map(|item| item.params.as_str()).collect();
    let metadata: Vec<_> = items.iter().map(|item| item.metadata.as_str()).collect();
    let ttls: Vec<_> = specs().map(|spec| millis(spec.ttl_at)).collect();
    let timeouts: Vec<_> = specs().map(|spec| integer(spec.timeout_ms)).collect();
    let attempts: Vec<_> = specs().map(|spec| i64::from(spec.max_attempts)).collect();
    let disconnects: Vec<_> = specs().map(|spec| on_disconnect_text(spec.on_disconnect)).collect();
    let retries: Vec<_> = specs().map(|spec| spec.retry_of.map(|run| *run.as_uuid())).collect();
    let correlations: Vec<_> = specs().map(|spec| spec.correlation_id.as_deref().map(plain)).collect();
    let routes: Vec<_> = keys().map(|key| key.map(|key| plain(key.route))).collect();
    let names: Vec<_> = keys().map(|key| key.map(|key| plain(&key.key))).collect();
    let fingerprints: Vec<_> = keys().map(|key| key.map(|key| &key.fingerprint[..])).collect();
    let valid: Vec<_> = keys().map(|key| millis(key.map(|key| key.valid_after))).collect();
    let expire: Vec<_> = items.iter().map(|item| millis(item.new.run.expires_at())).collect();
    let strides: Vec<_> = items.iter().map(|item| stride(item.new.share.weight)).collect();
    let concurrency: Vec<_> = specs().map(|spec| spec.concurrency_key.as_deref().map(plain)).collect();
    let webhooks: Vec<_> = items.iter().map(|item| item.webhook.as_deref()).collect();
    let threads: Vec<_> = specs().map(|spec| spec.thread.map(|thread| *thread.as_uuid())).collect();
    let latest: Vec<_> = specs().map(|spec| millis(spec.latest_due)).collect();
    let more: [&(dyn ToSql + Sync); 24] = [
        &tenants,
        &agents,
        &versions,
        &priorities,
        &created,
        &inputs,
        &parameters,
        &metadata,
        &ttls,
        &timeouts,
        &attempts,
        &disconnects,
        &retries,
        &correlations,
        &routes,
        &names,
        &fingerprints,
        &valid,
        &expire,
        &strides,
        &concurrency,
        &webhooks,
        &threads,
        &latest,
    ];
    let mut params = batch.params();
    params.extend(more);
    let (client, statement) = (conn.client(), conn.prepare(WRITE).await?);
    let written = client.query(&statement, &params);
    let rows = try_join3(client.batch_execute(before), written, client.batch_execute(behind)).await?.1;
    Ok(rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?)
}

/// What the keys of `items` were used for before, or else their runs, if they were created before.
async fn found(conn: &Conn, items: &[&Creation]) -> Result<HashMap<RunId, Result<Created, StoreError>>, Failure> {
    if items.is_empty() {
        return Ok(HashMap::new());
    }
    let keyed: Vec<_> = items.iter().filter_map(|item| Some((item.run(), item.key()?))).collect();
    let tenants: Vec<_> = keyed.iter().map(|(_, (tenant, _))| plain(tenant)).collect();
    let routes: Vec<_> = keyed.iter().map(|(_, (_, key))| plain(key.route)).collect();
    let names: Vec<_> = keyed.iter().map(|(_, (_, key))| plain(&key.key)).collect();
    let valid: Vec<_> = keyed.iter().map(|(_, (_, key))| key.valid_after.as_millis()).collect();
    let (mut found, mut wanted) = (HashMap::new(), Vec::new());
    let used =
        if keyed.is_empty() { Vec::new() } else { conn.query(USED, &[&tenants, &routes, &names, &valid]).await? };
    for row in used {
        let (at, fingerprint, run): (i64, &[u8], Uuid) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
        let (id, (_, key)) = keyed[usize::try_from(at - 1).unwrap_or(0)];
        if fingerprint == key.fingerprint {
            wanted.push((id, run));
        } else {
            found.insert(id, Ok(Created::KeyReused));
        }
    }
    let unsaid = items.iter().map(|item| item.run()).filter(|id| !found.contains_key(id));
    let unsaid = unsaid.filter(|id| !wanted.iter().any(|(of_key, _)| of_key == id)).collect::<Vec<_>>();
    wanted.extend(unsaid.into_iter().map(|id| (id, *id.as_uuid())));
    let mut runs = HashMap::new();
    if !wanted.is_empty() {
        let ids: HashSet<Uuid> = wanted.iter().map(|(_, run)| *run).collect();
        for row in rows::find(conn, &ids.into_iter().collect::<Vec<_>>()).await? {
            let stored = Found::read(&row).and_then(Found::into_stored);
            runs.insert(Columns::of(&row).take::<Uuid>()?, stored);
        }
    }
    for (id, run) in wanted {
        // A run that was deleted just now has taken its key along.
        if let Some(stored) = runs.get(&run) {
            found.insert(id, stored.clone().map(|stored| Created::Existing(Box::new(stored))));
        }
    }
    Ok(found)
}

/// The fingerprint and what the key was used for, unless that is forgotten.
pub(super) async fn used(
    conn: &Conn,
    tenant: &Tenant,
    key: &IdempotencyKey,
) -> Result<Option<(Vec<u8>, Uuid)>, Failure> {
    let sql = "SELECT fingerprint, run_id FROM runcast_idempotency \
         WHERE tenant = $1 AND route = $2 AND key = $3 AND kept_at >= $4";
    let (tenant, route, name) = (plain(tenant.as_str()), plain(key.route), plain(&key.key));
    let rows = conn.query(sql, &[&tenant, &route, &name, &key.valid_after.as_millis()]).await?;
    let found = rows.first().map(|row| Ok((row.try_get(0)?, row.try_get(1)?)));
    found.transpose()
}

/// Keeps a key, which was used at `now` to make what is called `subject`. False: someone else was first.
pub(super) async fn keep(
    conn: &Conn,
    tenant: &Tenant,
    key: &IdempotencyKey,
    subject: Uuid,
    now: Timestamp,
) -> Result<bool, Failure> {
    let sql = "INSERT INTO runcast_idempotency AS k (tenant, route, key, fingerprint, run_id, kept_at) \
         VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (tenant, route, key) DO UPDATE \
         SET fingerprint = EXCLUDED.fingerprint, run_id = EXCLUDED.run_id, kept_at = EXCLUDED.kept_at \
         WHERE k.kept_at < $7";
    let (tenant, route, name) = (plain(tenant.as_str()), plain(key.route), plain(&key.key));
    let (fingerprint, kept, valid) = (&key.fingerprint[..], now.as_millis(), key.valid_after.as_millis());
    let params: super::conn::Params<'_> = &[&tenant, &route, &name, &fingerprint, &subject, &kept, &valid];
    Ok(conn.execute(sql, params).await? > 0)
}

/// Removes keys kept since before `before`.
pub(super) async fn forget_keys(conn: &Conn, before: Timestamp, most: usize) -> Result<u64, Failure> {
    let sql = "DELETE FROM runcast_idempotency WHERE (tenant, route, key) IN (SELECT tenant, route, key \
         FROM runcast_idempotency WHERE kept_at < $1 ORDER BY kept_at LIMIT $2 FOR UPDATE SKIP LOCKED)";
    conn.execute(sql, &[&before.as_millis(), &limit(most)]).await
}
