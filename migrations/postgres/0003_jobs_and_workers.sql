create table workers (
    id          uuid    primary key,        -- one row per process start, never reused
    host        text    not null,
    version     text    not null,
    slots       int     not null,
    draining    boolean not null default false,
    started_at  bigint  not null default now_ms(),
    expires_at  bigint  not null            -- the lease on everything it holds
) with (fillfactor = 50);

create table jobs (
    workspace_id  uuid   not null references workspaces (id),
    id            uuid   primary key,
    kind          text   not null,
    run_id        uuid,
    queue         text   not null,
    priority      int    not null,
    run_at        bigint not null,
    epoch         bigint not null default 0, -- how often it changed hands
    worker_id     uuid,                      -- null: pending. Workers' rows may go before their jobs are reaped
    attempts      int    not null default 0,
    crashes       int    not null default 0, -- since the step in crash_step was saved
    crash_step    int    not null default 0, -- the run's steps when a crash was last counted
    payload       jsonb,
    created_at    bigint not null default now_ms(),
    foreign key (workspace_id, run_id) references runs (workspace_id, id)
) with (fillfactor = 70);
comment on table jobs is 'The queue: small and hot, a row is deleted when its work is done.';
create unique index jobs_one_per_run on jobs (run_id) where kind = 'run';
-- In the order of the claim, whatever the queues: it reads as many entries as it takes, however long the backlog.
create index jobs_pending on jobs (priority desc, run_at, id) where worker_id is null;
create index jobs_held on jobs (worker_id) where worker_id is not null;
