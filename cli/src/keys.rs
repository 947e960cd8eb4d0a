//! `longhaul keys`: makes keys, which are shown once, lists what is known of them, and revokes them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::{Subcommand, builder::TypedValueParser};
use comfy_table::Cell;
use longhaul_shared::{
    api_key::{Key, KeyKind},
    config::{Config, Overrides},
    domain::ids::{KeyId, Millis, WorkspaceId},
    store::{ApiKey, KeyRole, NewKey, SharedStore},
};
use serde_json::{Value, json};

use crate::{
    Global,
    database::{open_existing, require_migrated},
    exit::{Exit, Failure, Outcome},
    output::{Output, status},
};

/// The workspace of an installation that has only one.
pub(crate) const DEFAULT_WORKSPACE: &str = "default";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Makes a key and prints it, once
    Create {
        /// What the key is for
        name: String,
        /// viewer: reads; operator: also submits and stops runs; admin: everything
        #[arg(long, value_parser = roles())]
        role: KeyRole,
        /// The workspace that it belongs to; made if it is missing
        #[arg(long, default_value = DEFAULT_WORKSPACE, value_name = "NAME")]
        workspace: String,
        /// For how long it is valid, such as 90d
        #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
        expires: Option<Duration>,
    },
    /// Lists the keys of a workspace
    List {
        #[arg(long, default_value = DEFAULT_WORKSPACE, value_name = "NAME")]
        workspace: String,
    },
    /// Revokes a key, from the next request on
    Revoke {
        /// The key's id or its public prefix, as `keys list` shows them
        key: String,
        #[arg(long, default_value = DEFAULT_WORKSPACE, value_name = "NAME")]
        workspace: String,
    },
}

fn roles() -> impl TypedValueParser<Value = KeyRole> {
    let names = KeyRole::ALL.iter().map(|role| role.as_str());
    clap::builder::PossibleValuesParser::new(names).try_map(|name| name.parse::<KeyRole>())
}

pub(crate) async fn run(global: &Global, command: Command) -> Outcome {
    let config = Config::load(global.config.as_deref(), Overrides::new())?;
    let store = open_existing(&config)?;
    require_migrated(&store).await?;
    let outcome = act(&store, command, global.output()).await;
    store.close().await;
    outcome
}

async fn act(store: &SharedStore, command: Command, output: Output) -> Outcome {
    match command {
        Command::Create { name, role, workspace, expires } => {
            let id = store.ensure_workspace(&workspace).await?;
            let (key, row) = create(store, id, KeyKind::Live, &name, role, expires).await?;
            output.note(&format!("{role} key \"{name}\" of {workspace}; it is not shown again"));
            let mut document = public(&row);
            document["key"] = key.reveal().into();
            output.one(&document, || format!("{}\n", key.reveal()))
        }
        Command::List { workspace } => {
            let keys = store.list_keys(find(store, &workspace).await?).await?;
            output.list(&["id", "name", "role", "key", "created", "status"], &keys, public, row)
        }
        Command::Revoke { key, workspace } => {
            let workspace = find(store, &workspace).await?;
            let id = match key.parse::<KeyId>() {
                Ok(id) => id,
                Err(_) => by_prefix(store, workspace, &key).await?,
            };
            store.revoke_key(workspace, id).await?;
            output.note(&format!("revoked {key}"));
            Ok(Exit::Ok)
        }
    }
}

/// Makes a key of this kind. The second value is all that is stored of it.
pub(crate) async fn create(
    store: &SharedStore,
    workspace_id: WorkspaceId,
    kind: KeyKind,
    name: &str,
    role: KeyRole,
    expires: Option<Duration>,
) -> Result<(Key, ApiKey), Failure> {
    let key = Key::generate(kind);
    let expires_at = match expires {
        None => None,
        Some(span) => {
            let span = Millis::try_from(span.as_millis()).unwrap_or(Millis::MAX);
            Some(store.now().await?.saturating_add(span))
        }
    };
    let row = store
        .create_key(NewKey {
            workspace_id,
            name,
            role,
            prefix: key.prefix(),
            digest: &key.digest(),
            last_four: key.last_four(),
            expires_at,
            scope: None,
        })
        .await?;
    Ok((key, row))
}

async fn find(store: &SharedStore, workspace: &str) -> Result<WorkspaceId, Failure> {
    let found = store.workspace(workspace).await?;
    found.ok_or_else(|| Failure::new(Exit::NotFound, format!("there is no workspace `{workspace}`")))
}

async fn by_prefix(store: &SharedStore, workspace: WorkspaceId, prefix: &str) -> Result<KeyId, Failure> {
    let found = store.find_key(prefix).await?.filter(|key| key.workspace_id == workspace);
    found.map(|key| key.id).ok_or_else(|| {
        Failure::new(Exit::NotFound, "there is no such key; `longhaul keys list` shows ids and prefixes")
    })
}

fn state(key: &ApiKey) -> &'static str {
    match key {
        ApiKey { revoked_at: Some(_), .. } => "revoked",
        ApiKey { is_expired: true, .. } => "expired",
        _ => "ok",
    }
}

fn instant(at: Millis) -> String {
    let at = UNIX_EPOCH
        .checked_add(Duration::from_millis(at.max(0).unsigned_abs()))
        .unwrap_or(SystemTime::UNIX_EPOCH);
    humantime::format_rfc3339_millis(at).to_string()
}

fn public(key: &ApiKey) -> Value {
    json!({
        "id": key.id,
        "name": key.name,
        "role": key.role,
        "prefix": key.prefix,
        "lastFour": key.last_four,
        "status": state(key),
        "createdAt": instant(key.created_at),
        "expiresAt": key.expires_at.map(instant),
        "revokedAt": key.revoked_at.map(instant),
    })
}

fn row(key: &ApiKey) -> Vec<Cell> {
    vec![
        Cell::new(key.id),
        Cell::new(&key.name),
        Cell::new(key.role),
        Cell::new(format!("{}…{}", key.prefix, key.last_four)),
        Cell::new(instant(key.created_at)),
        status(state(key)),
    ]
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use longhaul_shared::store::sqlite;

    use super::*;
    use crate::output::Format;

    async fn store(folder: &tempfile::TempDir) -> SharedStore {
        let options = sqlite::Options::new(folder.path().join("x.db"));
        let store: SharedStore = Arc::new(sqlite::SqlStore::open(&options).unwrap());
        store.migrate().await.unwrap();
        store
    }

    fn quiet() -> Output {
        Output::new(Format::Jsonl, true)
    }

    #[tokio::test]
    async fn a_created_key_is_found_by_its_prefix_and_refused_once_revoked() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder).await;
        let workspace = store.ensure_workspace("acme").await.unwrap();
        let (key, row) =
            create(&store, workspace, KeyKind::Live, "ci", KeyRole::Operator, None).await.unwrap();
        let found = store.find_key(key.prefix()).await.unwrap().unwrap();
        assert!(key.matches(&found.digest) && found.id == row.id);
        assert_eq!((found.role, state(&found)), (KeyRole::Operator, "ok"));
        assert!(!public(&found).to_string().contains(key.reveal()));

        for name in [key.prefix().to_owned(), row.id.to_string()] {
            let revoke = Command::Revoke { key: name, workspace: "acme".into() };
            assert_eq!(act(&store, revoke, quiet()).await.unwrap(), Exit::Ok);
        }
        assert_eq!(state(&store.find_key(key.prefix()).await.unwrap().unwrap()), "revoked");
    }

    #[tokio::test]
    async fn a_key_of_another_workspace_cannot_be_revoked() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder).await;
        let one = store.ensure_workspace("one").await.unwrap();
        store.ensure_workspace("two").await.unwrap();
        let (key, row) = create(&store, one, KeyKind::Live, "k", KeyRole::Viewer, None).await.unwrap();
        for (name, workspace) in
            [(key.prefix().to_owned(), "two"), (row.id.to_string(), "two"), (row.id.to_string(), "none")]
        {
            let revoke = Command::Revoke { key: name, workspace: workspace.into() };
            assert_eq!(act(&store, revoke, quiet()).await.unwrap_err().exit, Exit::NotFound);
        }
        assert_eq!(state(&store.find_key(key.prefix()).await.unwrap().unwrap()), "ok");
    }

    #[tokio::test]
    async fn a_workspace_that_is_missing_is_made_and_a_key_may_expire() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder).await;
        let new = |expires| Command::Create {
            name: "k".into(),
            role: KeyRole::Admin,
            workspace: "fresh".into(),
            expires,
        };
        act(&store, new(None), quiet()).await.unwrap();
        act(&store, new(Some(Duration::ZERO)), quiet()).await.unwrap();
        let workspace = find(&store, "fresh").await.unwrap();
        let states: Vec<_> = store.list_keys(workspace).await.unwrap().iter().map(state).collect();
        assert_eq!(states, ["ok", "expired"]);
    }
}
