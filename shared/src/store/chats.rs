//! Conversations and their messages.

use async_trait::async_trait;
use serde_json::Value;

use super::{Listed, Page, Result, StopOutcome};
use crate::domain::{
    chat::Chat,
    ids::{ChatId, MessageId, WorkspaceId},
    message::{Message, Part},
};

#[derive(Clone, Debug, Default)]
pub struct NewChat {
    pub title: Option<String>,
    pub agent: Option<String>,
    pub context_ref: Option<String>,
    pub metadata: Value,
    pub created_by: Option<String>,
    /// What was said elsewhere before, as the first turn. Nothing: no turn.
    pub imported: Vec<Part>,
}

/// Absent: keep. `Some(None)`: clear.
#[derive(Clone, Debug, Default)]
pub struct ChatPatch {
    pub title: Option<Option<String>>,
    pub agent: Option<Option<String>>,
    pub context_ref: Option<Option<String>>,
    pub metadata: Option<Value>,
}

/// Conversations and their messages. Deleted chats are as good as unknown.
#[async_trait]
pub trait Chats: Send + Sync {
    async fn create_chat(&self, workspace: WorkspaceId, chat: NewChat) -> Result<Chat>;
    async fn chat(&self, workspace: WorkspaceId, chat: ChatId) -> Result<Chat>;
    /// The chat that a client calls so.
    async fn chat_of_client(&self, workspace: WorkspaceId, client_id: &str) -> Result<Chat>;
    /// Newest first, by id.
    async fn list_chats(&self, workspace: WorkspaceId, page: Page<ChatId>) -> Result<Listed<Chat, ChatId>>;
    async fn update_chat(&self, workspace: WorkspaceId, chat: ChatId, patch: ChatPatch) -> Result<Chat>;
    /// Soft delete. In the same transaction every run of the chat that no live worker holds ends with the reason
    /// `chat_deleted`, and the stop of the one that is held is requested. Again is `NotFound`.
    async fn delete_chat(&self, workspace: WorkspaceId, chat: ChatId) -> Result<Vec<StopOutcome>>;
    /// Oldest first, by turn and position. Answers come without parts: [`Runs::records`] has them.
    async fn messages(
        &self,
        workspace: WorkspaceId,
        chat: ChatId,
        page: Page<(i64, i32)>,
    ) -> Result<Listed<Message, (i64, i32)>>;
    /// Newest first, those of turns below `before`. Of deleted chats too: what goes on with them knows them.
    async fn messages_back(
        &self,
        workspace: WorkspaceId,
        chat: ChatId,
        before: i64,
        limit: u32,
    ) -> Result<Vec<Message>>;
    async fn message(&self, workspace: WorkspaceId, message: MessageId) -> Result<Message>;
    /// Adds something that was said elsewhere as the chat's next turn, which no run answers.
    async fn import_message(&self, workspace: WorkspaceId, chat: ChatId, parts: Vec<Part>)
    -> Result<Message>;
}
