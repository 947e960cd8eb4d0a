//! The conversation that a run belongs to.

use serde_json::Value;

use super::ids::{ChatId, Millis, RunId, WorkspaceId};

#[derive(Clone, Debug, PartialEq)]
pub struct Chat {
    pub id: ChatId,
    pub workspace_id: WorkspaceId,
    /// The client's own name for it, unique in its workspace.
    pub client_id: Option<String>,
    pub title: Option<String>,
    /// The agent that answers when a submission names none.
    pub agent: Option<String>,
    /// An external thing that the conversation is about.
    pub context_ref: Option<String>,
    pub metadata: Value,
    pub created_by: Option<String>,
    pub created_at: Millis,
    pub updated_at: Millis,
    /// The run that holds the chat's slot.
    pub active_run_id: Option<RunId>,
}
