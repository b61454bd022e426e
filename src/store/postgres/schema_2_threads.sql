-- Threads and their messages.
ALTER TABLE runcast_runs ADD COLUMN thread_id uuid;
ALTER TABLE runcast_specs ADD COLUMN latest_due bigint;

-- The runs of a thread; those that have not ended lie together.
CREATE INDEX runcast_runs_by_thread ON runcast_runs (thread_id, finished_at, id) WHERE thread_id IS NOT NULL;

-- At most one run of a thread is active, whatever the program thinks.
CREATE UNIQUE INDEX runcast_runs_active ON runcast_runs (thread_id)
    WHERE thread_id IS NOT NULL AND status IN ('running', 'waiting');

CREATE TABLE runcast_threads (
    id              uuid    NOT NULL PRIMARY KEY,
    tenant          text    COLLATE "C" NOT NULL,
    metadata        text    NOT NULL,
    state           text    NOT NULL,
    created_at      bigint  NOT NULL,
    active_at       bigint  NOT NULL,
    handed_at       bigint,
    handed_reason   text,
    handed_by       uuid,
    holder          uuid,
    dropping        boolean NOT NULL,
    turns           bigint  NOT NULL,
    last_message    bigint  NOT NULL,
    last_event      bigint  NOT NULL,
    follow_up_due   bigint,
    follow_up_timer bigint,
    follow_up_agent text,
    rule            bigint  NOT NULL,
    sent            bigint  NOT NULL,
    timers_armed    bigint  NOT NULL
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);

CREATE INDEX runcast_threads_by_tenant ON runcast_threads (tenant, id);
CREATE INDEX runcast_threads_by_activity ON runcast_threads (active_at)
    WHERE holder IS NULL AND follow_up_due IS NULL;

-- turn is empty until the run of the message gets the thread.
CREATE TABLE runcast_messages (
    thread_id  uuid    NOT NULL,
    seq        bigint  NOT NULL,
    id         uuid    NOT NULL,
    role       text    NOT NULL,
    content    text    NOT NULL,
    run_id     uuid,
    turn       bigint,
    unread     boolean NOT NULL,
    after_step bigint,
    at         bigint  NOT NULL,
    PRIMARY KEY (thread_id, seq)
);

CREATE INDEX runcast_messages_by_turn ON runcast_messages (thread_id, turn, seq);
CREATE INDEX runcast_messages_by_run ON runcast_messages (run_id) WHERE run_id IS NOT NULL;
CREATE UNIQUE INDEX runcast_messages_by_id ON runcast_messages (id);

CREATE TABLE runcast_thread_events (
    thread_id uuid   NOT NULL,
    seq       bigint NOT NULL,
    at        bigint NOT NULL,
    kind      text   NOT NULL,
    run_id    uuid,
    text      text   NOT NULL,
    PRIMARY KEY (thread_id, seq)
);
