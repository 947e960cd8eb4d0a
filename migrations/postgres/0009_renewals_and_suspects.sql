-- Without an index: each heartbeat changes these, in place.
alter table workers
    add column renewed_at bigint,  -- when the worker last said that it lives; null: it runs an older version
    add column renewal_ms bigint;  -- it says so at least as often as this while it lives
