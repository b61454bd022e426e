-- Webhook endpoints and deliveries. No secret is kept: they are derived.
ALTER TABLE specs ADD COLUMN webhook TEXT;

CREATE TABLE webhook_endpoints (
    id             BLOB    NOT NULL PRIMARY KEY,
    tenant         TEXT    NOT NULL,
    url            TEXT    NOT NULL,
    events         TEXT    NOT NULL,
    agent          TEXT,
    enabled        INTEGER NOT NULL,
    secret_version INTEGER NOT NULL,
    rotated_at     INTEGER,
    created_at     INTEGER NOT NULL
) STRICT;

CREATE INDEX webhook_endpoints_by_tenant ON webhook_endpoints (tenant, id);

-- What is to be told, put here in the transaction in which it happens. claimed: someone sends it, until due_at.
CREATE TABLE deliveries (
    id          BLOB    NOT NULL PRIMARY KEY,
    tenant      TEXT    NOT NULL,
    endpoint_id BLOB,
    event       TEXT    NOT NULL,
    run_id      BLOB,
    thread_id   TEXT,
    data        TEXT,
    at          INTEGER NOT NULL,
    status      TEXT    NOT NULL,
    attempts    INTEGER NOT NULL,
    due_at      INTEGER NOT NULL,
    answer      INTEGER,
    error       TEXT,
    settled_at  INTEGER,
    claim       INTEGER NOT NULL,
    claimed     INTEGER NOT NULL
) STRICT;

CREATE INDEX deliveries_due ON deliveries (due_at) WHERE status = 'pending';
CREATE INDEX deliveries_settled ON deliveries (settled_at) WHERE status <> 'pending';
CREATE INDEX deliveries_by_tenant ON deliveries (tenant, at, id);
CREATE INDEX deliveries_by_endpoint ON deliveries (endpoint_id, at, id) WHERE endpoint_id IS NOT NULL;
CREATE INDEX deliveries_by_run ON deliveries (run_id) WHERE run_id IS NOT NULL;
CREATE INDEX deliveries_by_thread ON deliveries (thread_id) WHERE thread_id IS NOT NULL;
