//! Conversations and their messages.

use async_trait::async_trait;
use serde_json::{Map, Value};

use super::{
    MemoryStore,
    state::{ChatRow, State},
};
use crate::{
    domain::{
        chat::Chat,
        ids::{ChatId, MessageId, WorkspaceId},
        message::{Message, Part, Role},
    },
    store::{ChatPatch, Chats, Listed, NewChat, Page, Result, StopOutcome, StoreError},
};

#[async_trait]
impl Chats for MemoryStore {
    async fn create_chat(&self, workspace: WorkspaceId, chat: NewChat) -> Result<Chat> {
        self.transact(|state| {
            let imported = chat.imported.clone();
            let chat = state.insert_chat(workspace, chat)?;
            if !imported.is_empty() {
                state.import(workspace, chat.id, imported)?;
            }
            Ok(chat)
        })
    }

    async fn chat(&self, workspace: WorkspaceId, chat: ChatId) -> Result<Chat> {
        self.transact(|state| state.live_chat(workspace, chat).map(|row| state.chat_as_read(row)))
    }

    async fn chat_of_client(&self, workspace: WorkspaceId, client_id: &str) -> Result<Chat> {
        self.transact(|state| {
            let id = state.chat_named(workspace, client_id).ok_or(StoreError::NotFound)?;
            state.live_chat(workspace, id).map(|row| state.chat_as_read(row))
        })
    }

    async fn list_chats(&self, workspace: WorkspaceId, page: Page<ChatId>) -> Result<Listed<Chat, ChatId>> {
        self.transact(|state| {
            let chats = state.chats.values().rev().filter(|row| {
                row.chat.workspace_id == workspace
                    && !row.is_deleted
                    && page.after.is_none_or(|after| row.chat.id < after)
            });
            let chats = chats.take(page.fetch() as usize).map(|row| state.chat_as_read(row)).collect();
            Ok(Listed::cut(chats, &page, |chat| chat.id))
        })
    }

    async fn update_chat(&self, workspace: WorkspaceId, id: ChatId, patch: ChatPatch) -> Result<Chat> {
        self.transact(|state| {
            state.live_chat(workspace, id)?;
            let now = state.now;
            let chat = &mut state.chats.get_mut(&id).ok_or(StoreError::NotFound)?.chat;
            if let Some(title) = patch.title {
                chat.title = title;
            }
            if let Some(agent) = patch.agent {
                chat.agent = agent;
            }
            if let Some(context_ref) = patch.context_ref {
                chat.context_ref = context_ref;
            }
            if let Some(metadata) = patch.metadata {
                chat.metadata = object(metadata);
            }
            chat.updated_at = now;
            state.live_chat(workspace, id).map(|row| state.chat_as_read(row))
        })
    }

    async fn delete_chat(&self, workspace: WorkspaceId, chat: ChatId) -> Result<Vec<StopOutcome>> {
        self.transact(|state| state.delete_chat(workspace, chat))
    }

    async fn messages(
        &self,
        workspace: WorkspaceId,
        chat: ChatId,
        page: Page<(i64, i32)>,
    ) -> Result<Listed<Message, (i64, i32)>> {
        self.transact(|state| {
            state.live_chat(workspace, chat)?;
            let place = |message: &Message| (message.turn, message.position);
            let behind = |message: &&Message| {
                message.chat_id == chat && page.after.is_none_or(|after| place(message) > after)
            };
            let mut messages: Vec<_> = state.messages.values().filter(behind).cloned().collect();
            messages.sort_by_key(place);
            messages.truncate(page.fetch() as usize);
            Ok(Listed::cut(messages, &page, place))
        })
    }

    async fn messages_back(
        &self,
        workspace: WorkspaceId,
        chat: ChatId,
        before: i64,
        limit: u32,
    ) -> Result<Vec<Message>> {
        self.transact(|state| {
            let is_wanted = |message: &&Message| {
                message.workspace_id == workspace && message.chat_id == chat && message.turn < before
            };
            let mut messages: Vec<_> = state.messages.values().filter(is_wanted).cloned().collect();
            messages.sort_by_key(|message| std::cmp::Reverse((message.turn, message.position)));
            messages.truncate(limit as usize);
            Ok(messages)
        })
    }

    async fn message(&self, workspace: WorkspaceId, message: MessageId) -> Result<Message> {
        self.transact(|state| {
            let found = state.messages.get(&message).ok_or(StoreError::NotFound)?;
            state.live_chat(workspace, found.chat_id)?;
            Ok(found.clone())
        })
    }

    async fn import_message(
        &self,
        workspace: WorkspaceId,
        chat: ChatId,
        parts: Vec<Part>,
    ) -> Result<Message> {
        self.transact(|state| state.import(workspace, chat, parts))
    }
}

impl State {
    /// The chat's next turn, which is a message alone.
    fn import(&mut self, workspace: WorkspaceId, chat: ChatId, parts: Vec<Part>) -> Result<Message> {
        self.live_chat(workspace, chat)?;
        let now = self.now;
        let row = self.chats.get_mut(&chat).ok_or(StoreError::NotFound)?;
        row.last_turn += 1;
        row.chat.updated_at = now;
        let message = Message {
            id: MessageId::generate(),
            workspace_id: workspace,
            chat_id: chat,
            turn: row.last_turn,
            position: 0,
            role: Role::User,
            status: None,
            client_id: None,
            in_reply_to: None,
            replaces_turn: None,
            run_id: None,
            parts,
            created_at: now,
            updated_at: now,
        };
        self.messages.insert(message.id, message.clone());
        Ok(message)
    }

    pub(super) fn insert_chat(&mut self, workspace: WorkspaceId, new: NewChat) -> Result<Chat> {
        if !self.workspaces.contains_key(&workspace) {
            return Err(StoreError::Conflict("chats_workspace_id_fkey".to_owned()));
        }
        let chat = Chat {
            id: ChatId::generate(),
            workspace_id: workspace,
            client_id: None,
            title: new.title,
            agent: new.agent,
            context_ref: new.context_ref,
            metadata: object(new.metadata),
            created_by: new.created_by,
            created_at: self.now,
            updated_at: self.now,
            active_run_id: None,
        };
        self.chats.insert(chat.id, ChatRow { chat: chat.clone(), last_turn: 0, is_deleted: false });
        Ok(chat)
    }

    /// Deleted ones too: a name is given once.
    pub(super) fn chat_named(&self, workspace: WorkspaceId, client_id: &str) -> Option<ChatId> {
        let named =
            |chat: &Chat| chat.workspace_id == workspace && chat.client_id.as_deref() == Some(client_id);
        self.chats.values().find(|row| named(&row.chat)).map(|row| row.chat.id)
    }

    fn chat_as_read(&self, row: &ChatRow) -> Chat {
        Chat { active_run_id: self.slot_holder(row.chat.id), ..row.chat.clone() }
    }
}

/// Metadata is an object; none is an empty one.
fn object(metadata: Value) -> Value {
    if metadata.is_null() { Value::Object(Map::new()) } else { metadata }
}
