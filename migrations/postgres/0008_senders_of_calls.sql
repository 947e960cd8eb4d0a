-- The claim under which a call was last sent, as opposed to the one that wrote the row last: only its sender knows what
-- became of it. Null where it was never marked as sent.
alter table tool_calls add column dispatched_epoch bigint;
