create table workspaces (
    id          blob    not null primary key,
    name        text    not null unique,
    created_at  integer not null default (cast(unixepoch('subsec') * 1000 as integer))
) strict;

create table api_keys (
    workspace_id  blob    not null references workspaces (id),
    id            blob    not null,
    name          text    not null,
    role          text    not null check (role in ('viewer', 'operator', 'admin')),
    prefix        text    not null unique,   -- public part, by which the row is found
    digest        blob    not null,          -- SHA-256 of the whole key; the key itself is shown once and not kept
    last_four     text    not null,
    created_at    integer not null default (cast(unixepoch('subsec') * 1000 as integer)),
    expires_at    integer,
    revoked_at    integer,
    primary key (workspace_id, id)
) strict;
