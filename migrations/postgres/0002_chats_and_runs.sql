create table chats (
    workspace_id  uuid   not null references workspaces (id),
    id            uuid   not null,
    title         text,
    agent         text,                     -- answers when a submission names none
    context_ref   text,                     -- an external thing that the conversation is about
    metadata      jsonb  not null default '{}',
    created_by    text,
    last_turn     bigint not null default 0, -- turns are given out under this row's lock
    created_at    bigint not null default now_ms(),
    updated_at    bigint not null default now_ms(),
    deleted_at    bigint,
    primary key (workspace_id, id)
) with (fillfactor = 80);
create index chats_live on chats (workspace_id, id) where deleted_at is null;

create table runs (
    workspace_id          uuid   not null,
    id                    uuid   not null,
    chat_id               uuid   not null,
    turn                  bigint not null,
    agent                 text   not null,
    status                text   not null check (status in
                              ('scheduled', 'queued', 'pending', 'running', 'waiting', 'succeeded', 'failed', 'aborted')),
    reason                text   check ((reason is not null) = (status in ('succeeded', 'failed', 'aborted'))),
    trigger               text   not null,
    created_by            text,
    user_message_id       uuid   not null,
    assistant_message_id  uuid   not null,
    queue                 text   not null,
    priority              int    not null,
    limits                jsonb  not null,
    step_count            int    not null default 0,
    input_tokens          bigint not null default 0,
    output_tokens         bigint not null default 0,
    reasoning_tokens      bigint not null default 0,
    cached_input_tokens   bigint not null default 0,
    error_code            text,
    error_message         text,
    tags                  jsonb  not null default '[]',
    metadata              jsonb  not null default '{}',
    traceparent           text,
    renderer              int    not null default 1, -- version of the views that render its log
    attempts              int    not null default 0, -- how often a worker took it up
    run_at                bigint,
    stop_requested_at     bigint,
    stop_reason           text,             -- the reason that a requested stop ends the run with
    created_at            bigint not null default now_ms(),
    updated_at            bigint not null default now_ms(),
    started_at            bigint,
    finished_at           bigint,
    primary key (workspace_id, id),
    foreign key (workspace_id, chat_id) references chats (workspace_id, id)
) with (fillfactor = 80);

-- The only gate to a chat's slot.
create unique index runs_one_active_per_chat on runs (chat_id) where status in ('pending', 'running', 'waiting');
create unique index runs_by_turn on runs (chat_id, turn);
create index runs_queued on runs (chat_id, turn) where status = 'queued';
create index runs_scheduled on runs (run_at) where status = 'scheduled';
create index runs_unfinished on runs (workspace_id, id) where status not in ('succeeded', 'failed', 'aborted');

create table messages (
    workspace_id  uuid   not null,
    id            uuid   not null,
    chat_id       uuid   not null,
    turn          bigint not null,
    position      int    not null,          -- 0 the user's message, 1 the answer
    role          text   not null check (role in ('user', 'assistant')),
    status        text   check (status in ('streaming', 'completed', 'error', 'aborted')), -- null: imported
    client_id     text,                     -- the client's name for it, and its idempotency key in the chat
    in_reply_to   uuid,
    run_id        uuid,
    parts         jsonb  not null default '[]', -- of a user's message; an answer is rebuilt from its run's steps
    created_at    bigint not null default now_ms(),
    updated_at    bigint not null default now_ms(),
    primary key (workspace_id, id),
    unique (chat_id, turn, position),
    foreign key (workspace_id, chat_id) references chats (workspace_id, id),
    foreign key (workspace_id, run_id) references runs (workspace_id, id),
    foreign key (workspace_id, in_reply_to) references messages (workspace_id, id)
) with (fillfactor = 80);
create unique index messages_by_client_id on messages (chat_id, client_id) where client_id is not null;
create index messages_streaming on messages (workspace_id, id) where status = 'streaming';

-- Runs and messages name each other; the run is written first.
alter table runs
    add foreign key (workspace_id, user_message_id) references messages (workspace_id, id) deferrable initially deferred,
    add foreign key (workspace_id, assistant_message_id) references messages (workspace_id, id) deferrable initially deferred;
