create table run_events (
    workspace_id  uuid   not null,
    run_id        uuid   not null,
    first_seq     bigint not null check (first_seq >= 1),
    last_seq      bigint not null check (last_seq >= first_seq),
    epoch         bigint not null,
    events        text   not null,          -- JSON array of last_seq - first_seq + 1 events
    created_at    bigint not null default now_ms(), -- the time of all its events
    primary key (run_id, first_seq),        -- the fence: a position is taken once
    foreign key (workspace_id, run_id) references runs (workspace_id, id)
);
comment on table run_events is 'The log of a run: segments, dense from 1, appended with an expected position.';

create table steps (
    workspace_id         uuid   not null,
    run_id               uuid   not null,
    step                 int    not null check (step >= 1),
    attempt              int    not null check (attempt >= 1),
    epoch                bigint not null,
    model                text   not null,
    output               jsonb  not null,   -- what the model wrote, in order; its calls are in tool_calls
    finish_reason        text   not null,
    input_tokens         bigint not null,
    output_tokens        bigint not null,
    reasoning_tokens     bigint not null,
    cached_input_tokens  bigint not null,
    first_seq            bigint not null,
    last_seq             bigint not null,
    started_at           bigint not null,
    finished_at          bigint not null default now_ms(),
    primary key (workspace_id, run_id, step),
    foreign key (workspace_id, run_id) references runs (workspace_id, id)
);

create table tool_calls (
    workspace_id     uuid   not null,
    run_id           uuid   not null,
    step             int    not null,
    call             int    not null check (call >= 1),
    call_id          text   not null,
    name             text   not null,
    arguments        text   not null,       -- as the model wrote them
    effect           text   not null check (effect in ('read', 'idempotent', 'once')),
    state            text   not null check (state in
                         ('awaiting_approval', 'planned', 'dispatched', 'succeeded', 'failed', 'unknown', 'denied', 'cancelled')),
    idempotency_key  text   not null,       -- the same on every repeat
    epoch            bigint not null,       -- of the holder that wrote it last
    output           text,
    error            text,
    planned_at       bigint not null default now_ms(),
    dispatched_at    bigint,
    settled_at       bigint,
    primary key (run_id, step, call),
    foreign key (workspace_id, run_id, step) references steps (workspace_id, run_id, step)
) with (fillfactor = 70);
create index tool_calls_unsettled on tool_calls (run_id) where state in ('awaiting_approval', 'planned', 'dispatched');
