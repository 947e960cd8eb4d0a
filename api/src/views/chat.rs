//! A chat as callers read it.

use longhaul_shared::domain::{
    chat::Chat,
    ids::{ChatId, RunId},
};
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::time::Timestamp;

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Chat)]
pub(crate) struct ChatView {
    #[schema(value_type = uuid::Uuid)]
    chat_id: ChatId,
    title: Option<String>,
    /// The agent that answers when a submission names none.
    agent: Option<String>,
    /// An external thing that the conversation is about.
    context_ref: Option<String>,
    metadata: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    created_by: Option<String>,
    /// The run that holds the chat.
    #[schema(value_type = Option<uuid::Uuid>)]
    active_run_id: Option<RunId>,
    created_at: Timestamp,
    updated_at: Timestamp,
}

impl From<Chat> for ChatView {
    fn from(chat: Chat) -> Self {
        Self {
            chat_id: chat.id,
            title: chat.title,
            agent: chat.agent,
            context_ref: chat.context_ref,
            metadata: chat.metadata,
            created_by: chat.created_by,
            active_run_id: chat.active_run_id,
            created_at: Timestamp(chat.created_at),
            updated_at: Timestamp(chat.updated_at),
        }
    }
}
