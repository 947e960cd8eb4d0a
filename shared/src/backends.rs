//! Configuration in, store and bus out: the only place that names back-ends.
//!
//! Nothing here waits for a server. A database or a Redis that is down shows at the first call, or as slower tails.

use std::{io, path::PathBuf, sync::Arc};

use crate::{
    bus::{Bus, BusError, in_process::InProcessBus, redis::RedisBus},
    config::Config,
    store::{SharedStore, StoreError, postgres, sqlite},
};

/// How many processes share the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Processes {
    /// This one alone: API and worker in one, as in `longhaul dev`.
    One,
    Many,
}

/// The truth, and the hints about it.
#[derive(Clone)]
pub struct Backends {
    pub store: SharedStore,
    pub bus: Arc<dyn Bus>,
}

#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    #[error("cannot make the database's folder {}: {source}", path.display())]
    Folder { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Bus(#[from] BusError),
}

/// Opens what the configuration names. Call it inside a Tokio runtime; for `rediss://` the process has installed its
/// rustls provider before.
pub fn open(config: &Config, processes: Processes) -> Result<Backends, BackendError> {
    let store = open_store(config)?;
    let bus: Arc<dyn Bus> = match (&config.redis.url, processes) {
        (Some(url), _) => Arc::new(RedisBus::start(url.expose(), &config.redis.prefix)?),
        (None, Processes::One) => Arc::new(InProcessBus::new()),
        (None, Processes::Many) => Arc::new(InProcessBus::one_of_many()),
    };
    Ok(Backends { store, bus })
}

/// The store alone, for commands that run nothing and watch nothing.
pub fn open_store(config: &Config) -> Result<SharedStore, BackendError> {
    let database = &config.database;
    if let Some(path) = database.url.sqlite_path() {
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            std::fs::create_dir_all(folder)
                .map_err(|source| BackendError::Folder { path: folder.to_owned(), source })?;
        }
        return Ok(Arc::new(sqlite::SqlStore::open(&sqlite::Options::new(path))?));
    }
    Ok(Arc::new(postgres::SqlStore::open(&postgres_options(config))?))
}

/// Where a worker's lease is kept alive: connections of its own, which no other work can use up. On SQLite, where all
/// writers share one connection anyway, it is the store itself.
pub fn open_lease_store(config: &Config, store: &SharedStore) -> Result<SharedStore, BackendError> {
    if config.database.url.sqlite_path().is_some() {
        return Ok(Arc::clone(store));
    }
    // One for a heartbeat that hangs, one for the next.
    let options =
        postgres::Options { max_connections: 1, reserved_connections: 2, ..postgres_options(config) };
    Ok(Arc::new(postgres::SqlStore::open(&options)?))
}

fn postgres_options(config: &Config) -> postgres::Options {
    let database = &config.database;
    // A frozen owner must not hold locks past its lease, so all bounds of a session stay below it.
    let bound = config.statement_timeout();
    postgres::Options {
        max_connections: database.max_connections,
        acquire_timeout: database.acquire_timeout,
        statement_timeout: bound,
        lock_timeout: bound / 2,
        idle_in_transaction_timeout: bound,
        ..postgres::Options::new(database.url.expose())
    }
}

impl Backends {
    /// Lets what was published leave, and waits for what the store has under way.
    pub async fn close(&self) {
        self.bus.close().await;
        self.store.close().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Environment, Overrides, Profile, Sources};

    fn config(url: &str) -> Config {
        Sources {
            profile: Profile::Plain,
            file: None,
            environment: Environment::from_iter([("LONGHAUL_DATABASE_URL", url)]),
            overrides: Overrides::new(),
        }
        .load()
        .unwrap()
    }

    #[tokio::test]
    async fn a_sqlite_file_gets_its_folder_and_works() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a/b/dev.db");
        let backends = open(&config(&format!("sqlite:{}", file.display())), Processes::One).unwrap();
        assert!(backends.store.migrations().await.unwrap().iter().all(|(_, _, applied)| !applied));
        backends.store.migrate().await.unwrap();
        assert_eq!(backends.store.kind(), "sqlite");
        assert!(backends.store.server_version().await.unwrap().starts_with("3."));
        assert!(file.is_file() && backends.bus.is_connected());
        backends.close().await;
    }

    #[tokio::test]
    async fn without_redis_one_of_many_processes_knows_that_it_hears_nobody() {
        let backends = open(&config("postgres://nobody@127.0.0.1:1/none"), Processes::Many).unwrap();
        assert_eq!(backends.store.kind(), "postgres");
        assert!(!backends.bus.is_connected());
    }
}
