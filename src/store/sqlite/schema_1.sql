-- Ids are 16 bytes, times are milliseconds since the Unix epoch, statuses are their names.

-- How each run stands: small, since it is rewritten with every commit.
CREATE TABLE runs (
    id                 BLOB    NOT NULL PRIMARY KEY,
    tenant             TEXT    NOT NULL,
    agent              TEXT    NOT NULL,
    agent_version      TEXT    NOT NULL,
    priority           INTEGER NOT NULL,
    created_at         INTEGER NOT NULL,
    node               TEXT,
    status             TEXT    NOT NULL,
    attempt            INTEGER NOT NULL,
    failures           INTEGER NOT NULL,
    crashes            INTEGER NOT NULL,
    steps              INTEGER NOT NULL,
    timer_due          INTEGER,
    timer_id           INTEGER,
    reason             TEXT,
    timers_armed       INTEGER NOT NULL,
    started_at         INTEGER,
    attempt_started_at INTEGER,
    ran_ms             INTEGER NOT NULL,
    finished_at        INTEGER,
    checkpoint_seq     INTEGER NOT NULL,
    last_seq           INTEGER NOT NULL,
    input_tokens       INTEGER NOT NULL,
    output_tokens      INTEGER NOT NULL,
    estimated          INTEGER NOT NULL,
    outcome            TEXT,
    error_code         TEXT,
    error_message      TEXT,
    reserved_seq       INTEGER NOT NULL,
    commit_number      INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX runs_by_tenant ON runs (tenant, id);

-- The queue of each agent, in the order of claims.
CREATE INDEX runs_queued ON runs (agent, agent_version, priority DESC, id) WHERE status = 'queued';

-- The statuses that few runs have at a time. Most runs are completed in the end, and found by tenant.
CREATE INDEX runs_by_status ON runs (status, tenant, id)
    WHERE status = 'scheduled' OR status = 'running' OR status = 'waiting'
       OR status = 'failed' OR status = 'cancelled' OR status = 'expired';

-- What never changes about a run.
CREATE TABLE specs (
    run_id         BLOB    NOT NULL PRIMARY KEY,
    input          TEXT    NOT NULL,
    params         TEXT    NOT NULL,
    metadata       TEXT    NOT NULL,
    ttl_at         INTEGER,
    timeout_ms     INTEGER NOT NULL,
    max_attempts   INTEGER NOT NULL,
    on_disconnect  TEXT    NOT NULL,
    retry_of       BLOB,
    correlation_id TEXT
) STRICT;

CREATE TABLE results (
    run_id BLOB NOT NULL PRIMARY KEY,
    output TEXT NOT NULL
) STRICT;

-- The logs. With row numbers, so that they are appended whole in the order in which they come: rows of
-- some 3 KB would spill out of the pages of a table that is ordered by run.
CREATE TABLE segments (
    run_id    BLOB    NOT NULL,
    last_seq  INTEGER NOT NULL,
    first_seq INTEGER NOT NULL,
    marks     BLOB    NOT NULL,
    frames    BLOB    NOT NULL,
    PRIMARY KEY (run_id, last_seq)
) STRICT;

CREATE TABLE steps (
    run_id        BLOB    NOT NULL,
    step          INTEGER NOT NULL,
    kind          TEXT    NOT NULL,
    name          TEXT    NOT NULL,
    input_tokens  INTEGER NOT NULL,
    output_tokens INTEGER NOT NULL,
    estimated     INTEGER NOT NULL,
    result        TEXT    NOT NULL,
    PRIMARY KEY (run_id, step)
) STRICT;

-- kind: 0 is the time-to-live, 1 the end of a delay or backoff.
CREATE TABLE timers (
    due_at INTEGER NOT NULL,
    run_id BLOB    NOT NULL,
    kind   INTEGER NOT NULL,
    number INTEGER NOT NULL,
    PRIMARY KEY (due_at, run_id, kind, number)
) STRICT, WITHOUT ROWID;

-- What a running run's owner is to find.
CREATE TABLE commands (
    run_id     BLOB    NOT NULL,
    kind       TEXT    NOT NULL,
    created_at INTEGER NOT NULL,
    PRIMARY KEY (run_id, kind)
) STRICT, WITHOUT ROWID;

CREATE TABLE idempotency (
    tenant      TEXT    NOT NULL,
    route       TEXT    NOT NULL,
    key         TEXT    NOT NULL,
    fingerprint BLOB    NOT NULL,
    run_id      BLOB    NOT NULL,
    kept_at     INTEGER NOT NULL,
    PRIMARY KEY (tenant, route, key)
) STRICT, WITHOUT ROWID;

CREATE INDEX idempotency_by_age ON idempotency (kept_at);
CREATE INDEX idempotency_by_run ON idempotency (run_id);
