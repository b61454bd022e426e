-- Fair order and limits.

-- The place in its lane, how far one run moves its tenant back (see shares.rs), and what limits go by. Nodes of the
-- version before know nothing of them: their runs go first.
ALTER TABLE runcast_runs ADD COLUMN rank bigint NOT NULL DEFAULT 0;
ALTER TABLE runcast_runs ADD COLUMN stride bigint NOT NULL DEFAULT 1048576;
ALTER TABLE runcast_runs ADD COLUMN concurrency_key text COLLATE "C";

-- The queue of each agent, in the order of claims. Nodes of the version before find their runs by its beginning.
DROP INDEX runcast_runs_queued;
CREATE INDEX runcast_runs_queued ON runcast_runs (agent, agent_version, priority DESC, rank, id)
    WHERE status = 'queued';

-- The last rank of each tenant, and how many runs it has queued.
CREATE INDEX runcast_runs_shares ON runcast_runs (tenant, agent, agent_version, priority, rank)
    WHERE status = 'queued';

-- How far each lane has come, and how many runs of an agent are running.
CREATE INDEX runcast_runs_running ON runcast_runs (agent, agent_version, priority, rank) WHERE status = 'running';
