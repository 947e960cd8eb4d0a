//! Tenants, their keys, and the store as a whole.

use async_trait::async_trait;
use uuid::Uuid;

use super::{
    Db, MIGRATIONS, SqlStore,
    rows::{DbRow, get},
};
use crate::{
    domain::ids::{KeyId, Millis, WorkspaceId},
    store::{ApiKey, KeyRole, NewKey, Result, StoreError, Workspaces},
};

const KEY_COLUMNS: &str = concat!(
    "select workspace_id, id, name, role, prefix, digest, last_four, created_at, expires_at, revoked_at, \
     (expires_at is not null and expires_at <= ",
    now!(),
    ") as is_expired from api_keys "
);
