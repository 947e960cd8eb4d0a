-- When the job was claimed last.
alter table jobs add column claimed_at integer;

-- Runs at their last chance that wait, in the order of the claim, which takes one of them at a time.
create index jobs_at_last_chance on jobs (priority desc, run_at, id) where worker_id is null and crashes >= 2;

alter table workers add column renewed_at integer;  -- when the worker last said that it lives; null: it runs an older version
alter table workers add column renewal_ms integer;  -- it says so at least as often as this while it lives
