-- Times are milliseconds since the Unix epoch, but for leases, which are by the clock of the database. Statuses are
-- their names. Names are compared byte by byte: their order must not change with the system's library.

CREATE TABLE runcast_schema (
    version integer NOT NULL,
    oldest  integer NOT NULL
);

-- How each run stands: small, since it is rewritten with every commit. Pages keep room for the next version of
-- their rows, so that what changes no index stays on the page; and what is dead is cleared away early, before claims
-- have to pass over it.
CREATE TABLE runcast_runs (
    id                 uuid    NOT NULL PRIMARY KEY,
    tenant             text    COLLATE "C" NOT NULL,
    agent              text    COLLATE "C" NOT NULL,
    agent_version      text    COLLATE "C" NOT NULL,
    priority           bigint  NOT NULL,
    created_at         bigint  NOT NULL,
    node               text,
    lease_until        timestamptz,
    cancel_requested   boolean NOT NULL DEFAULT false,
    status             text    COLLATE "C" NOT NULL,
    attempt            bigint  NOT NULL,
    failures           bigint  NOT NULL,
    crashes            bigint  NOT NULL,
    steps              bigint  NOT NULL,
    timer_due          bigint,
    timer_id           bigint,
    reason             text,
    timers_armed       bigint  NOT NULL,
    started_at         bigint,
    attempt_started_at bigint,
    ran_ms             bigint  NOT NULL,
    finished_at        bigint,
    checkpoint_seq     bigint  NOT NULL,
    last_seq           bigint  NOT NULL,
    input_tokens       bigint  NOT NULL,
    output_tokens      bigint  NOT NULL,
    estimated          boolean NOT NULL,
    outcome            text,
    error_code         text,
    error_message      text,
    reserved_seq       bigint  NOT NULL,
    commit_number      bigint  NOT NULL
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000,
        autovacuum_vacuum_cost_delay = 0);

CREATE INDEX runcast_runs_by_tenant ON runcast_runs (tenant, id);

-- The queue of each agent, in the order of claims.
CREATE INDEX runcast_runs_queued ON runcast_runs (agent, agent_version, priority DESC, id) WHERE status = 'queued';

-- The runs whose owners may be gone.
CREATE INDEX runcast_runs_leased ON runcast_runs (lease_until) WHERE status = 'running';

-- The statuses that few runs have at a time. Most runs are completed in the end, and found by tenant.
CREATE INDEX runcast_runs_by_status ON runcast_runs (status, tenant, id)
    WHERE status IN ('scheduled', 'running', 'waiting', 'failed', 'cancelled', 'expired');

-- What never changes about a run.
CREATE TABLE runcast_specs (
    run_id         uuid   NOT NULL PRIMARY KEY,
    input          text   NOT NULL,
    params         text   NOT NULL,
    metadata       text   NOT NULL,
    ttl_at         bigint,
    timeout_ms     bigint NOT NULL,
    max_attempts   bigint NOT NULL,
    on_disconnect  text   NOT NULL,
    retry_of       uuid,
    correlation_id text
);

CREATE TABLE runcast_results (
    run_id uuid NOT NULL PRIMARY KEY,
    output text NOT NULL
);

-- The logs. A segment of some 3 KB is kept on its page as it is: trying to compress it would cost more than all the
-- rest of its commit.
CREATE TABLE runcast_segments (
    run_id    uuid   NOT NULL,
    last_seq  bigint NOT NULL,
    first_seq bigint NOT NULL,
    marks     bytea  NOT NULL,
    frames    bytea  NOT NULL,
    PRIMARY KEY (run_id, last_seq)
) WITH (toast_tuple_target = 8160);

CREATE TABLE runcast_steps (
    run_id        uuid    NOT NULL,
    step          bigint  NOT NULL,
    kind          text    NOT NULL,
    name          text    NOT NULL,
    input_tokens  bigint  NOT NULL,
    output_tokens bigint  NOT NULL,
    estimated     boolean NOT NULL,
    result        text    NOT NULL,
    PRIMARY KEY (run_id, step)
);

-- kind: 0 is the time-to-live, 1 the end of a delay or backoff.
CREATE TABLE runcast_timers (
    due_at bigint NOT NULL,
    run_id uuid   NOT NULL,
    kind   bigint NOT NULL,
    number bigint NOT NULL,
    PRIMARY KEY (due_at, run_id, kind, number)
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);

CREATE TABLE runcast_idempotency (
    tenant      text   COLLATE "C" NOT NULL,
    route       text   COLLATE "C" NOT NULL,
    key         text   COLLATE "C" NOT NULL,
    fingerprint bytea  NOT NULL,
    run_id      uuid   NOT NULL,
    kept_at     bigint NOT NULL,
    PRIMARY KEY (tenant, route, key)
);

CREATE INDEX runcast_idempotency_by_age ON runcast_idempotency (kept_at);
CREATE INDEX runcast_idempotency_by_run ON runcast_idempotency (run_id);

-- What could not be done and waits for a person: failed runs, and messages that no run could be made of.
CREATE TABLE runcast_dead_letters (
    id      uuid   NOT NULL PRIMARY KEY,
    at      bigint NOT NULL,
    source  text   NOT NULL,
    run_id  uuid,
    reason  text   NOT NULL,
    payload bytea  NOT NULL
);

CREATE INDEX runcast_dead_letters_by_age ON runcast_dead_letters (at, id);

-- What is known of the store as a whole, one row.
CREATE TABLE runcast_stores (
    one       boolean NOT NULL PRIMARY KEY CHECK (one),
    id        uuid    NOT NULL,
    mode      text    NOT NULL,
    namespace text    NOT NULL
);
