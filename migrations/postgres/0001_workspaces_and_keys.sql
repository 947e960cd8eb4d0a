-- The database's clock in Unix milliseconds. It moves within a transaction, unlike now().
create function now_ms() returns bigint language sql volatile parallel safe
    return (extract(epoch from clock_timestamp()) * 1000)::bigint;

-- Makes a statement fail as a whole when the writer turns out not to hold what it writes to.
create function fence(holds boolean) returns boolean language plpgsql as $$
begin
    if holds is distinct from true then
        raise exception 'the lease is lost' using errcode = 'LH001';
    end if;
    return true;
end
$$;

create table workspaces (
    id          uuid   primary key,
    name        text   not null unique,
    created_at  bigint not null default now_ms()
);
comment on table workspaces is 'Tenants. Every other row belongs to exactly one.';

create table api_keys (
    workspace_id  uuid   not null references workspaces (id),
    id            uuid   not null,
    name          text   not null,
    role          text   not null check (role in ('viewer', 'operator', 'admin')),
    prefix        text   not null unique,   -- public part, by which the row is found
    digest        bytea  not null,          -- SHA-256 of the whole key; the key itself is shown once and not kept
    last_four     text   not null,
    created_at    bigint not null default now_ms(),
    expires_at    bigint,
    revoked_at    bigint,
    primary key (workspace_id, id)
);
