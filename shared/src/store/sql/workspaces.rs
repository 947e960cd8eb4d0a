//! Tenants, their keys, and the store as a whole.

use std::{collections::HashSet, time::Duration};

use std::sync::Arc;

use async_trait::async_trait;
use sqlx::{Row, migrate::MigrateError};
use uuid::Uuid;

use super::{
    Db, KIND, MIGRATIONS, SqlStore,
    rows::{DbRow, get, word},
};
use crate::{
    domain::{
        ids::{KeyId, Millis, WorkspaceId},
        retry::Backoff,
    },
    jitter::jitter,
    store::{ApiKey, NewKey, Result, RunScope, StoreError, Workspaces},
};

/// A database that is just starting, or in the middle of a fail-over, gets this many tries.
const MIGRATE_TRIES: u32 = 3;
/// A table that others keep using gets more: each try waits for it only briefly.
const MIGRATE_LOCK_TRIES: u32 = 60;
const MIGRATE_BACKOFF: Backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(2));

macro_rules! key_columns {
    () => {
        concat!(
            "workspace_id, id, name, role, prefix, digest, last_four, created_at, expires_at, revoked_at, \
             run_id, issued_by, (expires_at is not null and expires_at <= ",
            now!(),
            ") as is_expired"
        )
    };
}

#[async_trait]
impl Workspaces for SqlStore {
    async fn migrate(&self) -> Result<()> {
        let mut tries = 1;
        loop {
            let Err(error) = self.apply_migrations().await else { return Ok(()) };
            let error = migration_error(error);
            let allowed = if error.is_about_locks() { MIGRATE_LOCK_TRIES } else { MIGRATE_TRIES };
            if !error.is_transient() || tries >= allowed {
                return Err(error);
            }
            tracing::warn!(%error, tries, "cannot migrate yet; trying again");
            tokio::time::sleep(MIGRATE_BACKOFF.wait(tries, jitter())).await;
            tries += 1;
        }
    }

    async fn migrations(&self) -> Result<Vec<(i64, String, bool)>> {
        let was_migrated: bool =
            sqlx::query::<Db>(was_migrated!()).fetch_one(self.reader()).await?.try_get(0)?;
        let mut applied = HashSet::new();
        if was_migrated {
            const SQL: &str = "select version from _sqlx_migrations where success";
            for row in sqlx::query::<Db>(SQL).fetch_all(self.reader()).await? {
                applied.insert(get::<i64>(&row, "version")?);
            }
        }
        let known = MIGRATIONS.iter();
        Ok(known.map(|m| (m.version, m.description.to_string(), applied.contains(&m.version))).collect())
    }

    async fn now(&self) -> Result<Millis> {
        const SQL: &str = concat!("select ", now!());
        Ok(sqlx::query::<Db>(SQL).fetch_one(self.reader()).await?.try_get(0)?)
    }

    async fn is_writable(&self) -> Result<bool> {
        Ok(sqlx::query::<Db>(is_writable!()).fetch_one(self.reader()).await?.try_get(0)?)
    }

    async fn server_version(&self) -> Result<String> {
        Ok(sqlx::query::<Db>(server_version!()).fetch_one(self.reader()).await?.try_get(0)?)
    }

    fn patience(&self) -> Duration {
        self.longest_answer()
    }

    fn kind(&self) -> &'static str {
        KIND
    }

    async fn close(&self) {
        self.close_pools().await;
    }

    async fn ensure_workspace(&self, name: &str) -> Result<WorkspaceId> {
        const SQL: &str = "insert into workspaces (id, name) values ($1, $2) on conflict (name) do nothing";
        if let Some(id) = self.workspace(name).await? {
            return Ok(id);
        }
        sqlx::query::<Db>(SQL).bind(WorkspaceId::generate().0).bind(name).execute(self.writer()).await?;
        // Another process may have made it first: its id counts.
        self.workspace(name).await?.ok_or(StoreError::NotFound)
    }

    async fn workspace(&self, name: &str) -> Result<Option<WorkspaceId>> {
        const SQL: &str = "select id from workspaces where name = $1";
        let row = sqlx::query::<Db>(SQL).bind(name).fetch_optional(self.reader()).await?;
        row.map(|row| Ok(get::<Uuid>(&row, "id")?.into())).transpose()
    }

    async fn create_key(&self, key: NewKey<'_>) -> Result<ApiKey> {
        const SQL: &str = concat!(
            "insert into api_keys (workspace_id, id, name, role, prefix, digest, last_four, expires_at, \
             run_id, issued_by) values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) returning ",
            key_columns!()
        );
        let row = sqlx::query::<Db>(SQL)
            .bind(key.workspace_id.0)
            .bind(KeyId::generate().0)
            .bind(key.name)
            .bind(key.role.as_str())
            .bind(key.prefix)
            .bind(key.digest)
            .bind(key.last_four)
            .bind(key.expires_at)
            .bind(key.scope.map(|scope| scope.run_id.0))
            .bind(key.scope.and_then(|scope| scope.issued_by).map(|id| id.0))
            .fetch_one(self.writer())
            .await?;
        api_key(&row)
    }

    async fn find_key(&self, prefix: &str) -> Result<Option<ApiKey>> {
        const SQL: &str = concat!(
            "select ",
            key_columns!(),
            " from api_keys where prefix = $1 and not exists (select 1 from api_keys i \
             where i.workspace_id = api_keys.workspace_id and i.id = api_keys.issued_by \
             and (i.revoked_at is not null or i.expires_at <= ",
            now!(),
            "))"
        );
        let row = sqlx::query::<Db>(SQL).bind(prefix).fetch_optional(self.reader()).await?;
        row.as_ref().map(api_key).transpose()
    }

    async fn list_keys(&self, workspace: WorkspaceId) -> Result<Vec<ApiKey>> {
        const SQL: &str = concat!(
            "select ",
            key_columns!(),
            " from api_keys where workspace_id = $1 and run_id is null order by id"
        );
        let rows = sqlx::query::<Db>(SQL).bind(workspace.0).fetch_all(self.reader()).await?;
        rows.iter().map(api_key).collect()
    }

    async fn revoke_key(&self, workspace: WorkspaceId, key: KeyId) -> Result<()> {
        // The first revocation's time stays.
        const SQL: &str = concat!(
            "update api_keys set revoked_at = coalesce(revoked_at, ",
            now!(),
            ") where workspace_id = $1 and id = $2"
        );
        let done = sqlx::query::<Db>(SQL).bind(workspace.0).bind(key.0).execute(self.writer()).await?;
        if done.rows_affected() == 0 { Err(StoreError::NotFound) } else { Ok(()) }
    }
}

/// Trouble with the connection is told from trouble with a migration.
fn migration_error(error: MigrateError) -> StoreError {
    match error {
        MigrateError::Execute(error) => error.into(),
        // Each migration is a transaction of its own, so that a failed one has left nothing.
        MigrateError::ExecuteMigration(error, version) => match StoreError::from(error) {
            StoreError::Refused(error) => {
                let error = Arc::into_inner(error).expect("it was just made, and nobody else has it");
                StoreError::Migrate(Arc::new(MigrateError::ExecuteMigration(error, version)))
            }
            error => error,
        },
        error => StoreError::Migrate(Arc::new(error)),
    }
}

fn api_key(row: &DbRow) -> Result<ApiKey> {
    let issued_by = get::<Option<Uuid>>(row, "issued_by")?.map(Into::into);
    Ok(ApiKey {
        id: get::<Uuid>(row, "id")?.into(),
        workspace_id: get::<Uuid>(row, "workspace_id")?.into(),
        name: get(row, "name")?,
        role: word(row, "api_keys", "role")?,
        prefix: get(row, "prefix")?,
        digest: get(row, "digest")?,
        last_four: get(row, "last_four")?,
        created_at: get(row, "created_at")?,
        expires_at: get(row, "expires_at")?,
        revoked_at: get(row, "revoked_at")?,
        is_expired: get(row, "is_expired")?,
        scope: get::<Option<Uuid>>(row, "run_id")?
            .map(|run_id| RunScope { run_id: run_id.into(), issued_by }),
    })
}
