//! What many tests begin with.

use serde_json::json;

use super::harness::Database;
use crate::{
    domain::{
        chat::Chat,
        ids::{RunId, WorkspaceId},
    },
    store::{ApiKey, KeyRole, NewChat, NewKey, Page},
};

impl Database {
    /// A workspace of that name.
    pub(super) async fn workspace(&self, name: &str) -> WorkspaceId {
        self.store.ensure_workspace(name).await.unwrap()
    }

    /// A chat with nothing in it.
    pub(super) async fn chat(&self, workspace: WorkspaceId, title: &str) -> Chat {
        let chat = NewChat {
            title: Some(title.to_owned()),
            agent: Some("helper".to_owned()),
            context_ref: None,
            metadata: json!({ "of": title }),
            created_by: Some("tester".to_owned()),
        };
        self.store.create_chat(workspace, chat).await.unwrap()
    }

    /// An operator's key with that public part.
    pub(super) async fn key(&self, workspace: WorkspaceId, prefix: &str) -> ApiKey {
        let key = NewKey {
            workspace_id: workspace,
            name: "a key",
            role: KeyRole::Operator,
            prefix,
            digest: &[7; 32],
            last_four: "abcd",
            expires_at: None,
        };
        self.store.create_key(key).await.unwrap()
    }
}

/// The first page, of that size.
pub(super) fn first<K>(limit: u32) -> Page<K> {
    Page { limit, after: None }
}

/// The page behind `after`, of that size.
pub(super) fn behind<K>(after: K, limit: u32) -> Page<K> {
    Page { limit, after: Some(after) }
}

/// An id that nothing has.
pub(super) fn nobody() -> RunId {
    RunId::generate()
}
