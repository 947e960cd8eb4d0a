//! Tenants, their keys, and the store as a whole.

use async_trait::async_trait;

use super::{MemoryStore, state::State};
use crate::{
    domain::ids::{KeyId, Millis, WorkspaceId},
    store::{ApiKey, NewKey, Result, StoreError, Workspaces},
};

#[async_trait]
impl Workspaces for MemoryStore {
    async fn migrate(&self) -> Result<()> {
        Ok(())
    }

    async fn migrations(&self) -> Result<Vec<(i64, String, bool)>> {
        Ok(vec![])
    }

    async fn now(&self) -> Result<Millis> {
        self.transact(|state| Ok(state.now))
    }

    async fn is_writable(&self) -> Result<bool> {
        self.transact(|_| Ok(true))
    }

    async fn server_version(&self) -> Result<String> {
        self.transact(|_| Ok(env!("CARGO_PKG_VERSION").to_owned()))
    }

    fn kind(&self) -> &'static str {
        "memory"
    }

    async fn close(&self) {
        self.rows(|state| state.is_closed = true);
    }

    async fn ensure_workspace(&self, name: &str) -> Result<WorkspaceId> {
        self.transact(|state| {
            Ok(state.workspace(name).unwrap_or_else(|| {
                let id = WorkspaceId::generate();
                state.workspaces.insert(id, name.to_owned());
                id
            }))
        })
    }

    async fn workspace(&self, name: &str) -> Result<Option<WorkspaceId>> {
        self.transact(|state| Ok(state.workspace(name)))
    }

    async fn create_key(&self, key: NewKey<'_>) -> Result<ApiKey> {
        self.transact(|state| {
            if !state.workspaces.contains_key(&key.workspace_id) {
                return Err(StoreError::Conflict("api_keys_workspace_id_fkey".to_owned()));
            }
            if state.keys.values().any(|known| known.prefix == key.prefix) {
                return Err(StoreError::Conflict("api_keys_prefix_key".to_owned()));
            }
            let row = ApiKey {
                id: KeyId::generate(),
                workspace_id: key.workspace_id,
                name: key.name.to_owned(),
                role: key.role,
                prefix: key.prefix.to_owned(),
                digest: key.digest.to_owned(),
                last_four: key.last_four.to_owned(),
                created_at: state.now,
                expires_at: key.expires_at,
                revoked_at: None,
                is_expired: false,
                scope: key.scope,
            };
            state.keys.insert(row.id, row.clone());
            Ok(state.key_as_read(&row))
        })
    }

    async fn find_key(&self, prefix: &str) -> Result<Option<ApiKey>> {
        self.transact(|state| {
            let key = state.keys.values().find(|key| key.prefix == prefix);
            Ok(key.map(|key| state.key_as_read(key)).filter(|key| state.issuer_is_in_force(key)))
        })
    }

    async fn list_keys(&self, workspace: WorkspaceId) -> Result<Vec<ApiKey>> {
        self.transact(|state| {
            let keys = state.keys.values().filter(|key| key.workspace_id == workspace && key.scope.is_none());
            Ok(keys.map(|key| state.key_as_read(key)).collect())
        })
    }

    async fn revoke_key(&self, workspace: WorkspaceId, key: KeyId) -> Result<()> {
        self.transact(|state| {
            let now = state.now;
            let key = state.keys.get_mut(&key).filter(|key| key.workspace_id == workspace);
            // The first revocation's time stays.
            key.ok_or(StoreError::NotFound)?.revoked_at.get_or_insert(now);
            Ok(())
        })
    }
}

impl State {
    fn workspace(&self, name: &str) -> Option<WorkspaceId> {
        self.workspaces.iter().find(|(_, known)| *known == name).map(|(id, _)| *id)
    }

    fn issuer_is_in_force(&self, key: &ApiKey) -> bool {
        let issuer = key.scope.and_then(|scope| scope.issued_by).and_then(|id| self.keys.get(&id));
        issuer.is_none_or(|key| key.revoked_at.is_none() && !self.key_as_read(key).is_expired)
    }

    fn key_as_read(&self, key: &ApiKey) -> ApiKey {
        ApiKey { is_expired: key.expires_at.is_some_and(|at| at <= self.now), ..key.clone() }
    }
}
