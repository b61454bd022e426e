-- Schedules, and what the removal of old runs needs.
CREATE TABLE runcast_schedules (
    id         uuid    NOT NULL PRIMARY KEY,
    tenant     text    COLLATE "C" NOT NULL,
    cron       text    NOT NULL,
    timezone   text    NOT NULL,
    request    text    NOT NULL,
    missed     text    NOT NULL,
    enabled    boolean NOT NULL,
    next_at    bigint,
    number     bigint  NOT NULL,
    last_at    bigint,
    last_run   uuid,
    last_error text,
    created_at bigint  NOT NULL
);

CREATE INDEX runcast_schedules_by_tenant ON runcast_schedules (tenant, id);

-- The runs that have ended, in the order in which they are removed.
CREATE INDEX runcast_runs_by_end ON runcast_runs (finished_at) WHERE finished_at IS NOT NULL;
