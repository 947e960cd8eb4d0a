alter table runs
    add column request         jsonb,  -- what its creator asks of its model calls, where that is more than the agent says
    add column previous_run_id uuid,   -- the run of another chat whose conversation it goes on with
    add column fingerprint     bytea,  -- SHA-256 of caller and request: how a client that repeats a lost call is known
    add column deleted_at      bigint;
create index runs_by_fingerprint on runs (workspace_id, fingerprint, id) where fingerprint is not null;
