alter table workers add column renewed_at integer;  -- when the worker last said that it lives; null: it runs an older version
alter table workers add column renewal_ms integer;  -- it says so at least as often as this while it lives
