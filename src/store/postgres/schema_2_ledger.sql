-- What a run may use, what it has cost, and the steps that it has begun: a JSON document.
ALTER TABLE runcast_runs ADD COLUMN ledger text;
