create table idempotency (
    workspace_id  uuid   not null references workspaces (id),
    caller        text   not null,
    route         text   not null,
    key           text   not null,
    fingerprint   bytea  not null,          -- SHA-256 of the request's body
    run_id        uuid,
    answer        jsonb,                    -- what the first call was told
    created_at    bigint not null default now_ms(),
    expires_at    bigint not null,
    primary key (workspace_id, caller, route, key),
    foreign key (workspace_id, run_id) references runs (workspace_id, id)
);
create index idempotency_expired on idempotency (expires_at);
