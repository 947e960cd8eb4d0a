//! `longhaul dev`: API and worker in one process on SQLite. Whatever the last one left unfinished goes on at once.
//!
//! The process is alone on its database file. Beyond loopback it asks for a key, and prints a fresh one.

use std::{
    fmt::Write as _,
    fs::DirBuilder,
    net::SocketAddr,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use longhaul_shared::{
    api_key::{Key, KeyKind},
    backends::{Processes, open, open_lease_store},
    config::{AuthMode, Config, DatabaseUrl, Overrides},
    shutdown::Shutdown,
    store::{KeyRole, SharedStore},
    telemetry,
};
use serde_json::{Value, json};

use crate::{
    Global,
    api::{bind, state},
    exit::{Failure, Outcome},
    keys::{self, DEFAULT_WORKSPACE},
    lock,
    process::Parts,
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The port to listen on [default: 4680]
    #[arg(long)]
    port: Option<u16>,
    /// The address to listen on; beyond loopback a key is asked for [default: 127.0.0.1]
    #[arg(long)]
    host: Option<String>,
    /// The database file [default: ./.longhaul/dev.db]
    #[arg(long, value_name = "PATH")]
    db: Option<PathBuf>,
    /// Forgets everything at the end
    #[arg(long, conflicts_with = "db")]
    ephemeral: bool,
    /// Runs at the same time
    #[arg(long)]
    slots: Option<u32>,
}

/// The name of the keys that are made at the start, which replace each other.
const KEY_NAME: &str = "dev";

pub(crate) async fn run(global: &Global, args: Args) -> Outcome {
    let folder = args.ephemeral.then(TemporaryFolder::make).transpose()?;
    let config = Arc::new(load(global.config.as_deref(), args, folder.as_ref())?);
    let database = database_file(&config)?;
    telemetry::init(&config.log)?;
    let shutdown = Shutdown::new();
    shutdown.listen()?;

    let _lock = lock::exclusive(&database)?;
    let listener = bind(&config).await?;
    let backends = open(&config, Processes::One)?;
    backends.store.migrate().await?;
    // Nobody else can hold anything here, so the leases that a killed process left need not run out first.
    backends.store.retire_all_workers().await?;
    let key = match config.auth.mode {
        AuthMode::Required => Some(fresh_key(&backends.store).await?),
        AuthMode::Loopback => None,
    };
    let start = Start {
        address: listener.local_addr()?,
        database: &database,
        kept: folder.is_none(),
        slots: config.worker.slots,
        has_demo: config.agents.contains_key("demo"),
        key: key.as_ref(),
    };
    let output = global.output();
    if output.is_json() {
        output.one(&start.document(), String::new)?;
    } else {
        output.tell(&start.banner());
    }

    let mut parts = Parts::new(&shutdown);
    parts.serve_metrics(&config)?;
    parts
        .spawn("API", longhaul_api::serve(listener, state(&config, &backends, "dev"), shutdown.soft.clone()));
    let working = longhaul_worker::Parts {
        store: backends.store.clone(),
        leases: open_lease_store(&config, &backends.store)?,
        processes: Processes::One,
        bus: backends.bus.clone(),
        config: config.clone(),
    };
    parts.spawn("worker", longhaul_worker::run(working, shutdown.clone()));
    let outcome = parts.run(&config).await;
    backends.close().await;
    outcome
}

fn load(file: Option<&Path>, args: Args, folder: Option<&TemporaryFolder>) -> Result<Config, Failure> {
    let (flag, path) = match folder {
        Some(folder) => ("--ephemeral", Some(folder.0.join("dev.db"))),
        None => ("--db", args.db),
    };
    let overrides = Overrides::new()
        .set("--port", "server.port", args.port)
        .set("--host", "server.host", args.host)
        .set(flag, "database.url", path.map(|path| DatabaseUrl::sqlite(&path).expose().to_owned()))
        .set("--slots", "worker.slots", args.slots);
    Ok(Config::load_dev(file, overrides)?)
}

fn database_file(config: &Config) -> Result<PathBuf, Failure> {
    config.database.url.sqlite_path().map(Path::to_owned).ok_or_else(|| {
        Failure::error(
            "`longhaul dev` works on a SQLite file that it has for itself, and database.url names Postgres; choose a \
             file with --db, or start `longhaul api` and `longhaul worker`",
        )
    })
}

/// A key for this start. Those of earlier starts end with it.
async fn fresh_key(store: &SharedStore) -> Result<Key, Failure> {
    let workspace = store.ensure_workspace(DEFAULT_WORKSPACE).await?;
    let dev_key = Key::generate(KeyKind::Dev);
    let lead = dev_key.prefix().rsplit_once('_').map_or("", |(lead, _)| lead);
    for key in store.list_keys(workspace).await? {
        if key.name == KEY_NAME && key.prefix.starts_with(lead) && key.revoked_at.is_none() {
            store.revoke_key(workspace, key.id).await?;
        }
    }
    Ok(keys::create(store, workspace, KeyKind::Dev, KEY_NAME, KeyRole::Admin, None).await?.0)
}

/// What there is to say about a start.
struct Start<'a> {
    address: SocketAddr,
    database: &'a Path,
    kept: bool,
    slots: u32,
    has_demo: bool,
    key: Option<&'a Key>,
}

impl Start<'_> {
    fn url(&self) -> String {
        // An address that means "all of them" is no place to go to.
        if self.address.ip().is_unspecified() {
            format!("http://localhost:{}", self.address.port())
        } else {
            format!("http://{}", self.address)
        }
    }

    fn banner(&self) -> String {
        let url = self.url();
        let version = env!("CARGO_PKG_VERSION");
        let kept = if self.kept { "(kept; --ephemeral to forget)" } else { "(forgotten at the end)" };
        let auth = if self.key.is_some() { "API key" } else { "off (loopback only)" };
        let worker = format!("in process, {} slots", self.slots);
        let model = if self.has_demo {
            "demo (scripted, no key). Agents, providers and tools are declared in longhaul.toml"
        } else {
            "as declared in longhaul.toml"
        };
        let agent = if self.has_demo { "demo" } else { "AGENT" };
        let mut text = format!(
            "\n  longhaul {version}   dev server, not for production\n\n\
             \x20 API        {url}/v1        reference /openapi.json\n\
             \x20 Health     /livez  /readyz\n\
             \x20 Store      {}  {kept}\n\
             \x20 Model      {model}\n\
             \x20 Worker     {worker:24}  auth      {auth}\n",
            self.database.display()
        );
        if let Some(key) = self.key {
            let _ = write!(text, "\n  Key        export LONGHAUL_API_KEY={}\n", key.reveal());
        }
        let elsewhere = match self.address.port() {
            4680 => String::new(),
            _ => format!(" --url {url}"),
        };
        text + &format!(
            "\n  Try        longhaul run {agent} \"compare three queues\" --follow{elsewhere}\n\
             \x20 Ctrl-C stops the server. Unfinished runs continue at the next start.\n"
        )
    }

    fn document(&self) -> Value {
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "url": self.url(),
            "database": self.database,
            "kept": self.kept,
            "slots": self.slots,
            "auth": if self.key.is_some() { "required" } else { "loopback" },
            "apiKey": self.key.map(Key::reveal),
        })
    }
}

/// A folder of this process alone, gone when it ends in good order.
struct TemporaryFolder(PathBuf);

impl TemporaryFolder {
    fn make() -> Result<Self, Failure> {
        let path = std::env::temp_dir().join(format!("longhaul-{}", uuid::Uuid::now_v7().simple()));
        DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(|error| Failure::during(&format!("cannot make {}", path.display()), &error))?;
        Ok(Self(path))
    }
}

impl Drop for TemporaryFolder {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!(%error, folder = %self.0.display(), "the temporary database is left behind");
        }
    }
}

#[cfg(test)]
mod tests {
    use longhaul_shared::store::sqlite;

    use super::*;

    fn start<'a>(address: &str, key: Option<&'a Key>) -> Start<'a> {
        Start {
            address: address.parse().unwrap(),
            database: Path::new("./.longhaul/dev.db"),
            kept: true,
            slots: 8,
            has_demo: true,
            key,
        }
    }

    #[test]
    fn the_banner_names_what_is_there() {
        insta::assert_snapshot!(start("127.0.0.1:4680", None).banner().trim_end(), @r#"
          longhaul 0.1.0   dev server, not for production

          API        http://127.0.0.1:4680/v1        reference /openapi.json
          Health     /livez  /readyz
          Store      ./.longhaul/dev.db  (kept; --ephemeral to forget)
          Model      demo (scripted, no key). Agents, providers and tools are declared in longhaul.toml
          Worker     in process, 8 slots       auth      off (loopback only)

          Try        longhaul run demo "compare three queues" --follow
          Ctrl-C stops the server. Unfinished runs continue at the next start.
        "#);
    }

    #[test]
    fn beyond_loopback_the_banner_carries_the_key_and_an_address_to_go_to() {
        let key = Key::generate(KeyKind::Dev);
        let banner = start("0.0.0.0:4700", Some(&key)).banner();
        assert!(banner.contains(key.reveal()) && banner.contains("--url http://localhost:4700"), "{banner}");
        assert_eq!(start("0.0.0.0:4700", Some(&key)).document()["apiKey"], key.reveal());
    }

    #[tokio::test]
    async fn each_start_has_a_key_of_its_own_and_ends_the_last_ones() {
        let folder = tempfile::tempdir().unwrap();
        let options = sqlite::Options::new(folder.path().join("x.db"));
        let store: SharedStore = Arc::new(sqlite::SqlStore::open(&options).unwrap());
        store.migrate().await.unwrap();
        let workspace = store.ensure_workspace(DEFAULT_WORKSPACE).await.unwrap();
        let (own, _) =
            keys::create(&store, workspace, KeyKind::Live, KEY_NAME, KeyRole::Admin, None).await.unwrap();
        let (first, second) = (fresh_key(&store).await.unwrap(), fresh_key(&store).await.unwrap());
        for (key, revoked) in [(&own, false), (&first, true), (&second, false)] {
            let row = store.find_key(key.prefix()).await.unwrap().unwrap();
            assert_eq!(row.revoked_at.is_some(), revoked, "{key:?}");
        }
    }

    #[test]
    fn a_temporary_folder_is_private_and_goes_with_its_owner() {
        use std::os::unix::fs::PermissionsExt;
        let folder = TemporaryFolder::make().unwrap();
        let path = folder.0.clone();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o700);
        std::fs::write(path.join("dev.db"), "x").unwrap();
        drop(folder);
        assert!(!path.exists());
    }
}
