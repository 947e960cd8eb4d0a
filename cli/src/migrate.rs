//! `longhaul migrate`: applies the migrations that are missing, or says which are.

use clap::Subcommand;
use comfy_table::Cell;
use longhaul_shared::{
    backends::open_store,
    config::{Config, Overrides},
    store::SharedStore,
};
use serde_json::json;

use crate::{
    Global,
    database::open_existing,
    exit::{Exit, Outcome},
    output::{Output, status},
};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Applies what is missing; safe while servers run, and from many places at once
    Up,
    /// Lists the migrations; exits with 1 while some are missing
    Status,
}

pub(crate) async fn run(global: &Global, command: Command) -> Outcome {
    let config = Config::load(global.config.as_deref(), Overrides::new())?;
    let output = global.output();
    match command {
        Command::Up => up(&open_store(&config)?, output).await,
        Command::Status => show(&open_existing(&config)?, output).await,
    }
}

async fn up(store: &SharedStore, output: Output) -> Outcome {
    let count = |known: Vec<(i64, String, bool)>| known.iter().filter(|(_, _, applied)| !applied).count();
    // A database that is just starting is waited for inside `migrate`, so a failure to count is not one to migrate.
    let missing = store.migrations().await.map(count).ok();
    store.migrate().await?;
    match missing {
        Some(0) => output.note("nothing to do: the database is up to date"),
        Some(missing) => output.note(&format!("applied {missing} migrations")),
        None => output.note("the database is up to date"),
    }
    store.close().await;
    Ok(Exit::Ok)
}

async fn show(store: &SharedStore, output: Output) -> Outcome {
    let known = store.migrations().await?;
    store.close().await;
    output.list(
        &["version", "name", "status"],
        &known,
        |(version, name, applied)| json!({"version": version, "name": name, "applied": applied}),
        |(version, name, applied)| {
            vec![
                Cell::new(format!("{version:04}")),
                Cell::new(name),
                status(if *applied { "ok" } else { "missing" }),
            ]
        },
    )?;
    Ok(if known.iter().all(|(_, _, applied)| *applied) { Exit::Ok } else { Exit::Error })
}

#[cfg(test)]
mod tests {
    use longhaul_shared::store::sqlite;
    use std::sync::Arc;

    use super::*;
    use crate::{database::require_migrated, output::Format};

    #[tokio::test]
    async fn status_fails_until_up_has_run_and_up_may_run_again() {
        let folder = tempfile::tempdir().unwrap();
        let open = || -> SharedStore {
            let options = sqlite::Options::new(folder.path().join("x.db"));
            Arc::new(sqlite::SqlStore::open(&options).unwrap())
        };
        let output = Output::new(Format::Jsonl, true);
        assert_eq!(show(&open(), output).await.unwrap(), Exit::Error);
        let refused = require_migrated(&open()).await.unwrap_err().message.unwrap();
        assert!(refused.contains("longhaul migrate up"), "{refused}");
        for _ in 0..2 {
            assert_eq!(up(&open(), output).await.unwrap(), Exit::Ok);
        }
        assert_eq!(show(&open(), output).await.unwrap(), Exit::Ok);
        require_migrated(&open()).await.unwrap();
    }
}
