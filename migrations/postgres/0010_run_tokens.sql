-- A key for one run, such as a page in a browser holds: it reads that run for a while.
alter table api_keys
    add column run_id    uuid,              -- null: a key of the workspace
    add column issued_by uuid;              -- the key that asked for it, without which it is worth nothing; null: nobody's
create index api_keys_of_runs on api_keys (expires_at) where run_id is not null;
