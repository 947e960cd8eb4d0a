create table run_events (
    workspace_id  blob    not null,
    run_id        blob    not null,
    first_seq     integer not null check (first_seq >= 1),
    last_seq      integer not null check (last_seq >= first_seq),
    epoch         integer not null,
    events        text    not null,          -- JSON array of last_seq - first_seq + 1 events
    created_at    integer not null default (cast(unixepoch('subsec') * 1000 as integer)), -- the time of all its events
    primary key (run_id, first_seq),        -- the fence: a position is taken once
    foreign key (workspace_id, run_id) references runs (workspace_id, id)
) strict;

create table steps (
    workspace_id         blob    not null,
    run_id               blob    not null,
    step                 integer not null check (step >= 1),
    attempt              integer not null check (attempt >= 1),
    epoch                integer not null,
    model                text    not null,
    output               text    not null,   -- what the model wrote, in order; its calls are in tool_calls
    finish_reason        text    not null,
    input_tokens         integer not null,
    output_tokens        integer not null,
    reasoning_tokens     integer not null,
    cached_input_tokens  integer not null,
    first_seq            integer not null,
    last_seq             integer not null,
    started_at           integer not null,
    finished_at          integer not null default (cast(unixepoch('subsec') * 1000 as integer)),
    primary key (workspace_id, run_id, step),
    foreign key (workspace_id, run_id) references runs (workspace_id, id)
) strict;

create table tool_calls (
    workspace_id     blob    not null,
    run_id           blob    not null,
    step             integer not null,
    call             integer not null check (call >= 1),
    call_id          text    not null,
    name             text    not null,
    arguments        text    not null,       -- as the model wrote them
    effect           text    not null check (effect in ('read', 'idempotent', 'once')),
    state            text    not null check (state in
                         ('awaiting_approval', 'planned', 'dispatched', 'succeeded', 'failed', 'unknown', 'denied', 'cancelled')),
    idempotency_key  text    not null,       -- the same on every repeat
    epoch            integer not null,       -- of the holder that wrote it last
    output           text,
    error            text,
    planned_at       integer not null default (cast(unixepoch('subsec') * 1000 as integer)),
    dispatched_at    integer,
    settled_at       integer,
    primary key (run_id, step, call),
    foreign key (workspace_id, run_id, step) references steps (workspace_id, run_id, step)
) strict;
create index tool_calls_unsettled on tool_calls (run_id) where state in ('awaiting_approval', 'planned', 'dispatched');
