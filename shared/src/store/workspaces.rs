//! Tenants and their keys, and the store as a whole.

use std::{fmt, str::FromStr, time::Duration};

use async_trait::async_trait;

use super::Result;
use crate::domain::{
    ids::{KeyId, Millis, RunId, WorkspaceId},
    transition::stored_words,
};

/// What the holder of a key may do; each includes the ones before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeyRole {
    Viewer,
    Operator,
    Admin,
}

stored_words!(KeyRole, "key role", { Viewer => "viewer", Operator => "operator", Admin => "admin" });

/// A stored API key. The key itself is not in it, nor anywhere.
#[derive(Clone, Debug)]
pub struct ApiKey {
    pub id: KeyId,
    pub workspace_id: WorkspaceId,
    pub name: String,
    pub role: KeyRole,
    /// The public part, by which the row is found.
    pub prefix: String,
    /// SHA-256 of the whole key.
    pub digest: Vec<u8>,
    pub last_four: String,
    pub created_at: Millis,
    pub expires_at: Option<Millis>,
    pub revoked_at: Option<Millis>,
    /// By the database's clock, when the row was read.
    pub is_expired: bool,
    /// Absent: a key of the whole workspace.
    pub scope: Option<RunScope>,
}

/// What a key for one run is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunScope {
    pub run_id: RunId,
    /// The key that asked for it, without which it is worth nothing. Absent: a caller without a key.
    pub issued_by: Option<KeyId>,
}

pub struct NewKey<'a> {
    pub workspace_id: WorkspaceId,
    pub name: &'a str,
    pub role: KeyRole,
    pub prefix: &'a str,
    pub digest: &'a [u8],
    pub last_four: &'a str,
    pub expires_at: Option<Millis>,
    pub scope: Option<RunScope>,
}

/// Tenants and their keys, and the store as a whole.
#[async_trait]
pub trait Workspaces: Send + Sync {
    /// Applies the migrations that are missing. Safe to call from many processes at once.
    async fn migrate(&self) -> Result<()>;
    /// Versions and names of the migrations, and whether each is applied.
    async fn migrations(&self) -> Result<Vec<(i64, String, bool)>>;
    /// The database's clock.
    async fn now(&self) -> Result<Millis>;
    /// Whether the database takes writes; one that is read-only, as a replica is, cannot serve.
    async fn is_writable(&self) -> Result<bool>;
    /// The version of the database itself, such as `17.2`.
    async fn server_version(&self) -> Result<String>;
    /// `postgres` or `sqlite`.
    fn kind(&self) -> &'static str;
    /// For how long an answer is worth waiting for: longer than the database itself lets anything last.
    fn patience(&self) -> Duration {
        Duration::from_secs(12)
    }
    /// Waits a moment for what is under way and closes all connections.
    async fn close(&self);

    /// The workspace of that name, made if it is missing.
    async fn ensure_workspace(&self, name: &str) -> Result<WorkspaceId>;
    async fn workspace(&self, name: &str) -> Result<Option<WorkspaceId>>;
    async fn create_key(&self, key: NewKey<'_>) -> Result<ApiKey>;
    /// The key with that public part, revoked and expired ones included: the caller compares and decides. One whose
    /// issuer is revoked or expired is as good as unknown.
    async fn find_key(&self, prefix: &str) -> Result<Option<ApiKey>>;
    /// The keys of the workspace itself, not those for single runs.
    async fn list_keys(&self, workspace: WorkspaceId) -> Result<Vec<ApiKey>>;
    /// Revokes; again is fine. `NotFound` for a key of another workspace.
    async fn revoke_key(&self, workspace: WorkspaceId, key: KeyId) -> Result<()>;
}
