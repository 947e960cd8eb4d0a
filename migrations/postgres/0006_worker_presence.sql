alter table workers
    add column presence_address text,  -- where a peer may ask whether the process lives; null: nowhere
    add column presence_place   text;  -- the kernel and network namespace in which a loopback address means the same
