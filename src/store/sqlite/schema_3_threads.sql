-- Threads and their messages.
ALTER TABLE runs ADD COLUMN thread_id BLOB;
ALTER TABLE specs ADD COLUMN latest_due INTEGER;

CREATE INDEX runs_by_thread ON runs (thread_id, id) WHERE thread_id IS NOT NULL;

-- The runs of a thread that have not ended.
CREATE INDEX runs_open_by_thread ON runs (thread_id, id) WHERE thread_id IS NOT NULL AND finished_at IS NULL;

-- At most one run of a thread is active, whatever the program thinks.
CREATE UNIQUE INDEX runs_active ON runs (thread_id)
    WHERE thread_id IS NOT NULL AND (status = 'running' OR status = 'waiting');

CREATE TABLE threads (
    id              BLOB    NOT NULL PRIMARY KEY,
    tenant          TEXT    NOT NULL,
    metadata        TEXT    NOT NULL,
    state           TEXT    NOT NULL,
    created_at      INTEGER NOT NULL,
    active_at       INTEGER NOT NULL,
    handed_at       INTEGER,
    handed_reason   TEXT,
    handed_by       BLOB,
    holder          BLOB,
    dropping        INTEGER NOT NULL,
    turns           INTEGER NOT NULL,
    last_message    INTEGER NOT NULL,
    last_event      INTEGER NOT NULL,
    follow_up_due   INTEGER,
    follow_up_timer INTEGER,
    follow_up_agent TEXT,
    rule            INTEGER NOT NULL,
    sent            INTEGER NOT NULL,
    timers_armed    INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX threads_by_tenant ON threads (tenant, id);
CREATE INDEX threads_by_activity ON threads (active_at) WHERE holder IS NULL AND follow_up_due IS NULL;

-- turn is empty until the run of the message gets the thread.
CREATE TABLE messages (
    thread_id  BLOB    NOT NULL,
    seq        INTEGER NOT NULL,
    id         BLOB    NOT NULL,
    role       TEXT    NOT NULL,
    content    TEXT    NOT NULL,
    run_id     BLOB,
    turn       INTEGER,
    unread     INTEGER NOT NULL,
    after_step INTEGER,
    at         INTEGER NOT NULL,
    PRIMARY KEY (thread_id, seq)
) STRICT;

CREATE INDEX messages_by_turn ON messages (thread_id, turn, seq);
CREATE INDEX messages_by_run ON messages (run_id) WHERE run_id IS NOT NULL;
CREATE UNIQUE INDEX messages_by_id ON messages (id);

CREATE TABLE thread_events (
    thread_id BLOB    NOT NULL,
    seq       INTEGER NOT NULL,
    at        INTEGER NOT NULL,
    kind      TEXT    NOT NULL,
    run_id    BLOB,
    text      TEXT    NOT NULL,
    PRIMARY KEY (thread_id, seq)
) STRICT, WITHOUT ROWID;
