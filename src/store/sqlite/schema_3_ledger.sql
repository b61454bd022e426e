-- What a run may use, what it has cost, and the steps that it has begun: a JSON document.
ALTER TABLE runs ADD COLUMN ledger TEXT;
