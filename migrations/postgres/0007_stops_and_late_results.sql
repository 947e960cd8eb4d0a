-- A stop that came before the submission whose idempotency key it names: the run ends when it is admitted.
alter table idempotency add column stop_requested_at bigint;

-- What a call came to whose run was over by then.
alter table tool_calls add column late_state text check (late_state in ('succeeded', 'failed'));
alter table tool_calls add column late_output text;
alter table tool_calls add column late_error text;
alter table tool_calls add column late_at bigint;

-- Held runs that are to stop: the reaper looks for those whose holder does not follow.
create index runs_stopping on runs (stop_requested_at) where status = 'running' and stop_requested_at is not null;
