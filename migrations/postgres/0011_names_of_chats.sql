-- The client's own name for a chat, where it has one.
alter table chats add column client_id text;
create unique index chats_by_client_id on chats (workspace_id, client_id) where client_id is not null;
