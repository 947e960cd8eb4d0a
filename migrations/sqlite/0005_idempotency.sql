create table idempotency (
    workspace_id  blob    not null references workspaces (id),
    caller        text    not null,
    route         text    not null,
    key           text    not null,
    fingerprint   blob    not null,          -- SHA-256 of the request's body
    run_id        blob,
    answer        text,                    -- what the first call was told
    created_at    integer not null default (cast(unixepoch('subsec') * 1000 as integer)),
    expires_at    integer not null,
    primary key (workspace_id, caller, route, key),
    foreign key (workspace_id, run_id) references runs (workspace_id, id)
) strict;
create index idempotency_expired on idempotency (expires_at);
