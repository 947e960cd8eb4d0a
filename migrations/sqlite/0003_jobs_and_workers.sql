create table workers (
    id          blob    not null primary key,        -- one row per process start, never reused
    host        text    not null,
    version     text    not null,
    slots       integer not null,
    draining    integer not null default 0,
    started_at  integer not null default (cast(unixepoch('subsec') * 1000 as integer)),
    expires_at  integer not null            -- the lease on everything it holds
) strict;

create table jobs (
    workspace_id  blob    not null references workspaces (id),
    id            blob    not null primary key,
    kind          text    not null,
    run_id        blob,
    queue         text    not null,
    priority      integer not null,
    run_at        integer not null,
    epoch         integer not null default 0, -- how often it changed hands
    worker_id     blob,                      -- null: pending. Workers' rows may go before their jobs are reaped
    attempts      integer not null default 0,
    crashes       integer not null default 0, -- since the step in crash_step was saved
    crash_step    integer not null default 0, -- the run's steps when a crash was last counted
    payload       text,
    created_at    integer not null default (cast(unixepoch('subsec') * 1000 as integer)),
    foreign key (workspace_id, run_id) references runs (workspace_id, id)
) strict;
create unique index jobs_one_per_run on jobs (run_id) where kind = 'run';
-- In the order of the claim, whatever the queues: it reads as many entries as it takes, however long the backlog.
create index jobs_pending on jobs (priority desc, run_at, id) where worker_id is null;
create index jobs_held on jobs (worker_id) where worker_id is not null;
