create table chats (
    workspace_id  blob    not null references workspaces (id),
    id            blob    not null,
    title         text,
    agent         text,                     -- answers when a submission names none
    context_ref   text,                     -- an external thing that the conversation is about
    metadata      text    not null default '{}',
    created_by    text,
    last_turn     integer not null default 0, -- turns are given out under this row's lock
    created_at    integer not null default (cast(unixepoch('subsec') * 1000 as integer)),
    updated_at    integer not null default (cast(unixepoch('subsec') * 1000 as integer)),
    deleted_at    integer,
    primary key (workspace_id, id)
) strict;
create index chats_live on chats (workspace_id, id) where deleted_at is null;

create table runs (
    workspace_id          blob    not null,
    id                    blob    not null,
    chat_id               blob    not null,
    turn                  integer not null,
    agent                 text    not null,
    status                text    not null check (status in
                              ('scheduled', 'queued', 'pending', 'running', 'waiting', 'succeeded', 'failed', 'aborted')),
    reason                text    check ((reason is not null) = (status in ('succeeded', 'failed', 'aborted'))),
    trigger               text    not null,
    created_by            text,
    user_message_id       blob    not null,
    assistant_message_id  blob    not null,
    queue                 text    not null,
    priority              integer not null,
    limits                text    not null,
    step_count            integer not null default 0,
    input_tokens          integer not null default 0,
    output_tokens         integer not null default 0,
    reasoning_tokens      integer not null default 0,
    cached_input_tokens   integer not null default 0,
    error_code            text,
    error_message         text,
    tags                  text    not null default '[]',
    metadata              text    not null default '{}',
    traceparent           text,
    renderer              integer not null default 1, -- version of the views that render its log
    attempts              integer not null default 0, -- how often a worker took it up
    run_at                integer,
    stop_requested_at     integer,
    stop_reason           text,             -- the reason that a requested stop ends the run with
    created_at            integer not null default (cast(unixepoch('subsec') * 1000 as integer)),
    updated_at            integer not null default (cast(unixepoch('subsec') * 1000 as integer)),
    started_at            integer,
    finished_at           integer,
    primary key (workspace_id, id),
    foreign key (workspace_id, chat_id) references chats (workspace_id, id),
    -- Runs and messages name each other; the run is written first.
    foreign key (workspace_id, user_message_id) references messages (workspace_id, id) deferrable initially deferred,
    foreign key (workspace_id, assistant_message_id) references messages (workspace_id, id) deferrable initially deferred
) strict;

-- The only gate to a chat's slot.
create unique index runs_one_active_per_chat on runs (chat_id) where status in ('pending', 'running', 'waiting');
create unique index runs_by_turn on runs (chat_id, turn);
create index runs_queued on runs (chat_id, turn) where status = 'queued';
create index runs_scheduled on runs (run_at) where status = 'scheduled';
create index runs_unfinished on runs (workspace_id, id) where status not in ('succeeded', 'failed', 'aborted');

create table messages (
    workspace_id  blob    not null,
    id            blob    not null,
    chat_id       blob    not null,
    turn          integer not null,
    position      integer not null,          -- 0 the user's message, 1 the answer
    role          text    not null check (role in ('user', 'assistant')),
    status        text    check (status in ('streaming', 'completed', 'error', 'aborted')), -- null: imported
    client_id     text,                     -- the client's name for it, and its idempotency key in the chat
    in_reply_to   blob,
    run_id        blob,
    parts         text    not null default '[]', -- of a user's message; an answer is rebuilt from its run's steps
    created_at    integer not null default (cast(unixepoch('subsec') * 1000 as integer)),
    updated_at    integer not null default (cast(unixepoch('subsec') * 1000 as integer)),
    primary key (workspace_id, id),
    unique (chat_id, turn, position),
    foreign key (workspace_id, chat_id) references chats (workspace_id, id),
    foreign key (workspace_id, run_id) references runs (workspace_id, id),
    foreign key (workspace_id, in_reply_to) references messages (workspace_id, id)
) strict;
create unique index messages_by_client_id on messages (chat_id, client_id) where client_id is not null;
create index messages_streaming on messages (workspace_id, id) where status = 'streaming';
