//! A database of its own, a provider, and the processes to be measured.

use std::{
    fmt::Write,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use longhaul_shared::{
    domain::ids::WorkspaceId,
    store::{SharedStore, postgres},
};
use longhaul_tests::{Process, Program, postgres::Database, process::free_port, redis::shared_url};
use serde_json::{Value, json};
use sqlx::{PgPool, Row};
use tempfile::TempDir;
use tokio::time::sleep;

use crate::{client::Client, provider::Provider, role::Role};

const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Who answers, and how.
pub(crate) enum Agent {
    /// By a script that the worker plays itself.
    Scripted { name: &'static str, script: Value },
    /// By the provider of this world, over HTTP.
    Asking { name: &'static str, model: String },
}

/// What is measured. Everything in it ends when it is dropped.
pub(crate) struct World {
    // Processes before the database that they use.
    pub(crate) api: Process,
    pub(crate) worker: Process,
    pub(crate) client: Client,
    pub(crate) provider: Provider,
    pub(crate) pool: PgPool,
    database: Database,
    _dir: TempDir,
}

impl World {
    /// One API and one worker with so many slots, ready to work.
    pub(crate) async fn start(slots: u32, agents: &[Agent]) -> Result<Self> {
        let (database, store, _) = new_database(2).await?;
        store.close().await;
        let dir = tempfile::tempdir()?;
        let provider = Provider::start().await?;
        let port = free_port();
        let config = config(&database, dir.path(), &provider, port, slots, agents)?;
        let start = |role: Role| -> Result<Process> {
            let program = Program::other(std::env::current_exe()?, role.name(), dir.path());
            Ok(program.args(["--role", role.name()]).config(&config)?.port(port).start()?)
        };
        let mut api = start(Role::Api)?;
        api.ready().await;
        let worker = start(Role::Worker)?;
        let pool = database.connect().await?;
        let client = Client::new(api.url());
        let world = Self { api, worker, client, provider, pool, database, _dir: dir };
        world.until(Duration::from_secs(20), "a worker is alive", || world.count_alive_workers()).await?;
        Ok(world)
    }

    async fn count_alive_workers(&self) -> Result<bool> {
        let alive = "select count(*) > 0 as alive from workers where expires_at > now_ms()";
        Ok(sqlx::query(alive).fetch_one(&self.pool).await?.try_get("alive")?)
    }

    /// A store on its database.
    pub(crate) fn store(&self) -> Result<SharedStore> {
        open(&self.database, 2)
    }

    /// Submits so many runs over so many connections.
    pub(crate) async fn submit_many(
        &self,
        agent: &'static str,
        runs: usize,
        connections: usize,
    ) -> Result<()> {
        let tasks: Vec<_> = (0..connections)
            .map(|place| {
                let client = self.client.clone();
                let share = runs / connections + usize::from(place < runs % connections);
                tokio::spawn(async move {
                    for _ in 0..share {
                        client.submit(agent).await?;
                    }
                    Ok::<_, anyhow::Error>(())
                })
            })
            .collect();
        for task in tasks {
            task.await??;
        }
        Ok(())
    }

    /// Waits until no run is under way, and fails if one did not succeed.
    pub(crate) async fn until_all_over(&self, patience: Duration) -> Result<()> {
        self.until(patience, "all runs are over", || async { Ok(self.count("not in", "").await? == 0) })
            .await?;
        match self.count("in", " and status <> 'succeeded'").await? {
            0 => Ok(()),
            failed => bail!("{failed} runs did not succeed; the worker said\n{}", self.worker.output()),
        }
    }

    /// How many runs are (`in`) or are not (`not in`) over.
    async fn count(&self, is_over: &'static str, and: &'static str) -> Result<i64> {
        let query = format!(
            "select count(*) as n from runs where status {is_over} ('succeeded', 'failed', 'aborted'){and}"
        );
        Ok(sqlx::query(sqlx::AssertSqlSafe(query)).fetch_one(&self.pool).await?.try_get("n")?)
    }

    /// Waits until that many runs are being worked on.
    pub(crate) async fn until_running(&self, runs: usize, patience: Duration) -> Result<()> {
        let query = "select count(*) as n from runs where status = 'running'";
        let holds = || async {
            let n: i64 = sqlx::query(query).fetch_one(&self.pool).await?.try_get("n")?;
            Ok(n >= runs as i64)
        };
        self.until(patience, "the runs have begun", holds).await
    }

    async fn until<F: Future<Output = Result<bool>>>(
        &self,
        patience: Duration,
        what: &str,
        holds: impl Fn() -> F,
    ) -> Result<()> {
        let begun = Instant::now();
        while !holds().await? {
            if begun.elapsed() > patience {
                bail!("not within {patience:?}: {what}; the worker said\n{}", self.worker.output());
            }
            sleep(LOOK_EVERY).await;
        }
        Ok(())
    }
}

/// A migrated database, a store on it and the workspace of calls without a key.
pub(crate) async fn new_database(connections: u32) -> Result<(Database, SharedStore, WorkspaceId)> {
    let database = Database::create().await.context("cannot make a database")?;
    let store = open(&database, connections)?;
    store.migrate().await?;
    let workspace = store.ensure_workspace(longhaul_api::DEFAULT_WORKSPACE).await?;
    Ok((database, store, workspace))
}

pub(crate) fn open(database: &Database, connections: u32) -> Result<SharedStore> {
    let options =
        postgres::Options { max_connections: connections, ..postgres::Options::new(database.url()) };
    Ok(Arc::new(postgres::SqlStore::open(&options)?))
}

/// Everything that is not set here is as it is installed.
fn config(
    database: &Database,
    dir: &Path,
    provider: &Provider,
    port: u16,
    slots: u32,
    agents: &[Agent],
) -> Result<String> {
    let mut config = format!(
        "[database]\nurl = \"{}\"\n[redis]\nurl = \"{}\"\nprefix = \"{}\"\n[server]\nport = {port}\n\
         [worker]\nslots = {slots}\n[auth]\nmode = \"loopback\"\n\
         [limits]\nrequests_per_minute = 0\nmax_steps = 100000\n[net]\nallow = [\"{}\"]\n\
         [providers.http]\nkind = \"openai\"\nbase_url = \"{}\"\n",
        database.url(),
        shared_url(),
        database.name(),
        provider.host_port(),
        provider.url(),
    );
    for agent in agents {
        let (name, provider, model) = match agent {
            Agent::Asking { name, model } => (name, "http", model.as_str()),
            Agent::Scripted { name, script } => {
                let file = dir.join(format!("{name}.json"));
                std::fs::write(&file, json!({ "steps": script }).to_string())?;
                let file = file.display();
                write!(config, "[providers.{name}]\nkind = \"scripted\"\nscript = \"{file}\"\n")?;
                (name, *name, "script")
            }
        };
        write!(
            config,
            "[agents.{name}]\nprovider = \"{provider}\"\nmodel = \"{model}\"\ntools = [\"clock\"]\n"
        )?;
    }
    Ok(config)
}
