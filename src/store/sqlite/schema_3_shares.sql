-- Fair order and limits.

-- The place in its lane, how far one run moves its tenant back (see shares.rs), and what limits go by.
ALTER TABLE runs ADD COLUMN rank INTEGER NOT NULL DEFAULT 0;
ALTER TABLE runs ADD COLUMN stride INTEGER NOT NULL DEFAULT 1048576;
ALTER TABLE runs ADD COLUMN concurrency_key TEXT;

-- The queue of each agent, in the order of claims; with what limits go by, so that passing over runs reads no more.
DROP INDEX runs_queued;
CREATE INDEX runs_queued ON runs (agent, agent_version, priority DESC, rank, id, tenant, concurrency_key)
    WHERE status = 'queued';
