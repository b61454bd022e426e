-- Webhook endpoints and deliveries. No secret is kept: they are derived.
ALTER TABLE runcast_specs ADD COLUMN webhook text;

CREATE TABLE runcast_webhook_endpoints (
    id             uuid   PRIMARY KEY,
    tenant         text   NOT NULL,
    url            text   NOT NULL,
    events         text[] NOT NULL,
    agent          text,
    enabled        bool   NOT NULL,
    secret_version bigint NOT NULL,
    rotated_at     bigint,
    created_at     bigint NOT NULL
);

CREATE INDEX runcast_webhook_endpoints_by_tenant ON runcast_webhook_endpoints (tenant, id);

-- What is to be told, put here in the transaction in which it happens. due_at is by the clock of the database, all
-- other times are milliseconds since the Unix epoch. Who claims a delivery moves due_at to the end of its lease.
CREATE TABLE runcast_deliveries (
    id          uuid        PRIMARY KEY,
    tenant      text        NOT NULL,
    endpoint_id uuid,
    event       text        NOT NULL,
    run_id      uuid,
    thread_id   text,
    data        text,
    at          bigint      NOT NULL,
    status      text        NOT NULL,
    attempts    bigint      NOT NULL,
    due_at      timestamptz NOT NULL,
    answer      bigint,
    error       text,
    settled_at  bigint,
    claim       bigint      NOT NULL
) WITH (fillfactor = 80);

CREATE INDEX runcast_deliveries_due ON runcast_deliveries (due_at) WHERE status = 'pending';
CREATE INDEX runcast_deliveries_settled ON runcast_deliveries (settled_at) WHERE status <> 'pending';
CREATE INDEX runcast_deliveries_by_tenant ON runcast_deliveries (tenant, at, id);
CREATE INDEX runcast_deliveries_by_endpoint ON runcast_deliveries (endpoint_id, at, id) WHERE endpoint_id IS NOT NULL;
CREATE INDEX runcast_deliveries_by_run ON runcast_deliveries (run_id) WHERE run_id IS NOT NULL;
CREATE INDEX runcast_deliveries_by_thread ON runcast_deliveries (thread_id) WHERE thread_id IS NOT NULL;
