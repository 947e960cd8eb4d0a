alter table runs add column request text;            -- what its creator asks of its model calls, where that is more than the agent says
alter table runs add column previous_run_id blob;    -- the run of another chat whose conversation it goes on with
alter table runs add column fingerprint blob;        -- SHA-256 of caller and request: how a client that repeats a lost call is known
alter table runs add column deleted_at integer;
create index runs_by_fingerprint on runs (workspace_id, fingerprint, id) where fingerprint is not null;
