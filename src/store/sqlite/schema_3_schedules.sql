-- Schedules, and what the removal of old runs needs.
CREATE TABLE schedules (
    id         BLOB    NOT NULL PRIMARY KEY,
    tenant     TEXT    NOT NULL,
    cron       TEXT    NOT NULL,
    timezone   TEXT    NOT NULL,
    request    TEXT    NOT NULL,
    missed     TEXT    NOT NULL,
    enabled    INTEGER NOT NULL,
    next_at    INTEGER,
    number     INTEGER NOT NULL,
    last_at    INTEGER,
    last_run   BLOB,
    last_error TEXT,
    created_at INTEGER NOT NULL
) STRICT;

CREATE INDEX schedules_by_tenant ON schedules (tenant, id);

-- The runs that have ended, in the order in which they are removed.
CREATE INDEX runs_by_end ON runs (finished_at) WHERE finished_at IS NOT NULL;
