//! The database as commands meet it: there or not, migrated or not.

use std::time::Duration;

use longhaul_shared::{
    backends::open_store,
    config::Config,
    domain::retry::Backoff,
    store::{SharedStore, StoreError},
};
use tokio::time::{Instant, sleep};

use crate::exit::Failure;

/// How long a server that starts waits for a database that is not up yet.
const PATIENCE: Duration = Duration::from_mins(1);
const RETRY: Backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(2));

/// Opens the store without making a SQLite file by accident.
pub(crate) fn open_existing(config: &Config) -> Result<SharedStore, Failure> {
    if let Some(path) = missing_file(config) {
        return Err(Failure::error(format!("{path} does not exist; `longhaul migrate up` makes it")));
    }
    Ok(open_store(config)?)
}

/// The configured SQLite file, if it is not there.
pub(crate) fn missing_file(config: &Config) -> Option<String> {
    let path = config.database.url.sqlite_path()?;
    (!path.exists()).then(|| path.display().to_string())
}

/// Refuses a database that lacks migrations.
pub(crate) async fn require_migrated(store: &SharedStore) -> Result<(), Failure> {
    refuse_missing(&store.migrations().await?)
}

fn refuse_missing(known: &[(i64, String, bool)]) -> Result<(), Failure> {
    let missing: Vec<&str> =
        known.iter().filter(|(_, _, applied)| !applied).map(|(_, name, _)| name.as_str()).collect();
    match missing.as_slice() {
        [] => Ok(()),
        [first, ..] => Err(Failure::error(format!(
            "the database lacks {} of {} migrations, the first is \"{first}\"; apply them with `longhaul migrate up`",
            missing.len(),
            known.len()
        ))),
    }
}

/// The same for a server, which may come up before its database does.
pub(crate) async fn wait_until_migrated(store: &SharedStore) -> Result<(), Failure> {
    let begin = Instant::now();
    let mut tries = 0;
    loop {
        match store.migrations().await {
            Ok(known) => return refuse_missing(&known),
            Err(error @ StoreError::Unavailable(_))
                if !error.is_about_access() && begin.elapsed() < PATIENCE =>
            {
                tries += 1;
                tracing::warn!(%error, "the database cannot be reached; trying again");
                sleep(RETRY.wait(tries, 1.0)).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}
