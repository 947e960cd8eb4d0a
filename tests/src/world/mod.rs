//! A whole installation for one test: a fresh database, a model provider, a tool server, and the product's processes.
//!
//! A test ends with [`World::finish`], which waits until everything is at rest and then asks the database, the
//! provider, the tool server, the tails and the processes' output whether a promise was broken.

mod config;
mod server;

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tempfile::TempDir;

pub use self::config::{Bus, Setup, Store};
pub use self::server::{FAILPOINTS, Server};
use crate::audit;
use crate::client::Client;
use crate::invariants;
use crate::postgres::Database;
use crate::process::free_port;
use crate::redis::{self, Redis};
use crate::relay::Relay;
use crate::rows::Rows;
use crate::story::Event;
use crate::tail::Tail;
use crate::{Cluster, FakeProvider, Program, ToolServer, asked_by};

/// The running installation.
#[derive(Debug)]
pub struct World {
    // Servers come first: they end before what they use.
    /// API processes; under SQLite the one `dev`.
    pub apis: Vec<Server>,
    /// Worker processes; none under SQLite.
    pub workers: Vec<Server>,
    pub provider: FakeProvider,
    pub tools: ToolServer,
    pub redis: Option<Redis>,
    /// In front of a Redis of this world's own.
    pub redis_cable: Option<Relay>,
    pub rows: Rows,
    /// The secret of an admin of the workspace `default`, where keys are asked for.
    pub key: Option<String>,
    tails: Mutex<Vec<(String, i64, Tail)>>,
    database: Data,
    /// The server of that database, where it is the test's own. It outlives the database.
    pub cluster: Option<Cluster>,
    env: Vec<(&'static str, String)>,
    config: PathBuf,
    setup: Setup,
    dir: TempDir,
}

#[derive(Debug)]
enum Data {
    Postgres(Database),
    File(PathBuf),
}

impl Data {
    fn url(&self) -> String {
        match self {
            Self::Postgres(database) => database.url(),
            Self::File(path) => format!("sqlite:{}", path.display()),
        }
    }
}

impl World {
    pub async fn start(setup: Setup) -> Self {
        let dir = tempfile::tempdir().expect("a folder can be made");
        let (provider, tools) = (FakeProvider::start().await, ToolServer::start().await);
        let (provider, tools) = (provider.expect("a free port"), tools.expect("a free port"));
        let config = dir.path().join("longhaul.toml");
        let prefix = format!("t{}", uuid::Uuid::now_v7().simple());
        std::fs::write(&config, setup.toml(&provider, &tools, &prefix)).expect("the folder is ours");
        let redis = match setup.bus {
            Bus::Own => Some(Redis::start().await.expect("a Redis can be started")),
            Bus::Absent | Bus::Shared => None,
        };
        let (redis_cable, redis_url) = match (setup.bus, &redis) {
            (Bus::Shared, _) => (None, Some(redis::shared_url())),
            (Bus::Own, Some(redis)) => {
                let (cable, url) = Relay::in_front_of(&redis.url()).await.expect("a free port");
                (Some(cable), Some(url))
            }
            _ => (None, None),
        };
        let mut env = setup.env.clone();
        env.extend(redis_url.map(|url| ("LONGHAUL_REDIS_URL", url)));

        let mut apis = Vec::new();
        let cluster = if setup.own_server {
            Some(Cluster::start().await.expect("a Postgres can be started"))
        } else {
            None
        };
        let (database, rows) = match setup.store {
            Store::Postgres => {
                let database = match &cluster {
                    Some(cluster) => Database::create_on(cluster.url()).await,
                    None => Database::create().await,
                };
                let database = database.expect("the test server makes databases");
                let rows = Rows::Postgres(database.connect().await.expect("the database was just made"));
                (Data::Postgres(database), rows)
            }
            Store::Sqlite => {
                let file = dir.path().join("dev.db");
                let dev = Program::dev("dev", dir.path(), free_port(), &file);
                let program = env.iter().fold(dev, |dev, (name, value)| dev.env(name, value));
                apis.push(Server::start(program.args(["--config".as_ref(), config.as_os_str()]), true).await);
                let rows = Rows::of_file(&file).await.expect("the server made the file");
                audit::install(&rows).await;
                (Data::File(file), rows)
            }
        };
        let tails = Mutex::default();
        let mut world = Self {
            apis,
            workers: Vec::new(),
            provider,
            tools,
            redis,
            redis_cable,
            rows,
            key: None,
            tails,
            database,
            cluster,
            env,
            config,
            setup,
            dir,
        };
        world.populate().await;
        world
    }

    async fn populate(&mut self) {
        if self.setup.store == Store::Postgres {
            self.command("migrate").args(["migrate", "up"]).run().await.expect("the binary can be run");
            audit::install(&self.rows).await;
            for _ in 0..self.setup.apis {
                self.start_api().await;
            }
            for _ in 0..self.setup.workers {
                self.start_worker().await;
            }
        }
        if self.setup.store == Store::Postgres || self.setup.asks_for_keys {
            self.key = Some(self.new_key("default", "admin").await);
        }
    }

    /// A command of the product that uses this world's database.
    pub fn command(&self, name: &str) -> Program {
        let program =
            Program::longhaul(name, self.dir.path()).args(["--config".as_ref(), self.config.as_os_str()]);
        program.env("LONGHAUL_DATABASE_URL", self.database.url())
    }

    /// Makes a key of a workspace, which is made too if it is missing.
    pub async fn new_key(&self, workspace: &str, role: &str) -> String {
        let create =
            self.command("keys").args(["keys", "create", "test", "--role", role, "--workspace", workspace]);
        let printed = create.run().await.expect("the binary can be run");
        let key = printed.split_whitespace().find(|word| word.starts_with("lh_"));
        key.unwrap_or_else(|| panic!("no key in {printed:?}")).to_owned()
    }

    /// Starts one more API process.
    pub async fn start_api(&mut self) {
        self.start_api_that("").await;
    }

    /// The same for one that fails at these points.
    pub async fn start_api_that(&mut self, failpoints: &str) {
        self.start_api_at(&self.database.url(), |program| program.env(FAILPOINTS, failpoints)).await;
    }

    /// The same for an API process that reaches the database by a cable of its own.
    pub async fn start_api_on_a_cable(&mut self) -> Relay {
        let (relay, url) = Relay::in_front_of(&self.database.url()).await.expect("a free port");
        self.start_api_at(&url, |program| program).await;
        relay
    }

    async fn start_api_at(&mut self, database_url: &str, change: impl FnOnce(Program) -> Program) {
        let name = format!("api{}", self.apis.len() + 1);
        let program = Program::api(&name, self.dir.path(), free_port(), database_url);
        self.apis.push(Server::start(change(self.configured(program)), true).await);
    }

    /// The address of the database.
    pub fn database_url(&self) -> String {
        self.database.url()
    }

    /// Starts one more worker and waits until it holds a lease.
    pub async fn start_worker(&mut self) {
        self.start_worker_with(|program| program).await;
    }

    /// The same for one that is started otherwise.
    pub async fn start_worker_with(&mut self, change: impl FnOnce(Program) -> Program) {
        self.start_worker_at(&self.database.url(), change).await;
    }

    /// The same for one that fails at these points.
    pub async fn start_worker_that(&mut self, failpoints: &str) {
        self.start_worker_with(|program| program.env(FAILPOINTS, failpoints)).await;
    }

    /// The same for a worker that reaches the database by a cable of its own.
    pub async fn start_worker_on_a_cable(&mut self) -> Relay {
        self.start_victim("").await
    }

    /// The same for one that fails at these points.
    pub async fn start_victim(&mut self, failpoints: &str) -> Relay {
        let (relay, url) = self.cable().await;
        self.start_worker_at(&url, |program| program.env(FAILPOINTS, failpoints)).await;
        relay
    }

    /// A cable to the database, and the URL that leads through it.
    pub async fn cable(&self) -> (Relay, String) {
        Relay::in_front_of(&self.database.url()).await.expect("a free port")
    }

    /// Starts a worker, changed like this, that reaches the database by this URL.
    pub async fn start_worker_at(&mut self, database_url: &str, change: impl FnOnce(Program) -> Program) {
        let before = self.live_workers().await;
        let name = format!("worker{}", self.workers.len() + 1);
        let config = std::fs::read_to_string(&self.config).expect("it was written at the start");
        let config = asked_by(&asked_by(&config, self.provider.addr(), &name), self.tools.addr(), &name);
        let program = Program::worker(&name, self.dir.path(), database_url).config(&config);
        let program = program.expect("the folder is ours");
        let program = self.env.iter().fold(program, |program, (name, value)| program.env(name, value));
        self.workers.push(Server::start(change(program), false).await);
        self.rows.until("the worker registered", WORKERS, |now| now > before).await;
    }

    /// Waits until a process has looked for rows to repair, which each does when it starts; what it finds is in its output.
    /// A worker's row of long ago shows that it did: it is pruned right after that look.
    pub async fn reconciled(&mut self) {
        let id = match self.setup.store {
            Store::Postgres => "gen_random_uuid()",
            Store::Sqlite => "randomblob(16)",
        };
        let canary = "insert into workers (id, host, version, slots, expires_at, started_at)";
        self.rows.change(&format!("{canary} values ({id}, '', '', 1, 0, 0)")).await;
        match self.setup.store {
            Store::Postgres => self.start_worker().await,
            Store::Sqlite => self.apis[0].restart_unharmed().await,
        }
        let left = "select count(*) from workers where expires_at = 0 and slots = 1 and host = ''";
        self.rows.until("a worker looked for rows to repair", left, |left| left == 0).await;
    }

    fn configured(&self, program: Program) -> Program {
        let program = program.args(["--config".as_ref(), self.config.as_os_str()]);
        self.env.iter().fold(program, |program, (name, value)| program.env(name, value))
    }

    /// How many workers ever registered and were not retired.
    async fn live_workers(&self) -> i64 {
        self.rows.number(WORKERS).await
    }

    /// What all processes printed so far.
    pub fn outputs(&self) -> String {
        let servers = self.apis.iter().chain(&self.workers);
        let outputs: Vec<String> =
            servers.map(|server| format!("---- {server}\n{}", server.output())).collect();
        outputs.concat()
    }

    pub fn store(&self) -> Store {
        self.setup.store
    }

    pub fn lease(&self) -> Duration {
        self.setup.lease
    }

    /// The first API process, as the admin sees it.
    pub fn client(&self) -> Client {
        self.client_of(0)
    }

    pub fn client_of(&self, api: usize) -> Client {
        Client::new(self.apis[api].url(), self.key.clone())
    }

    /// The first API process, as the holder of this key sees it.
    pub fn client_with(&self, key: &str) -> Client {
        Client::new(self.apis[0].url(), Some(key.to_owned()))
    }

    /// Watches a run from its beginning, from the first API process on.
    pub fn tail(&self, run: &str) -> Tail {
        self.tail_from(run, 0, 0)
    }

    /// Watches a run behind event `after`, from this API process on; a lost connection goes on at the next one.
    pub fn tail_from(&self, run: &str, after: i64, api: usize) -> Tail {
        let mut servers: Vec<String> = self.apis.iter().map(Server::url).collect();
        servers.rotate_left(api);
        self.tail_at(servers, run, after)
    }

    /// Watches a run at these addresses.
    pub fn tail_at(&self, servers: Vec<String>, run: &str, after: i64) -> Tail {
        let tail = Tail::start(servers, self.key.clone(), run, after);
        let mut tails = self.tails.lock().unwrap_or_else(PoisonError::into_inner);
        tails.push((run.to_owned(), after, tail.clone()));
        tail
    }

    /// Waits until nothing moves any more and checks that no promise was broken.
    pub async fn finish(self) {
        let broken = self.settled().await;
        assert!(broken.is_empty(), "promises were broken: {broken:#?}");
    }

    /// Waits until nothing moves any more and tells, in words, every promise that was broken so far. The tails are let go.
    pub async fn settled(&self) -> Vec<String> {
        let moving = "select count(*) from runs where status in ('queued', 'pending', 'running', 'waiting')";
        self.rows.until("all runs are over", moving, |count| count == 0).await;
        self.rows
            .until("the queue is empty", "select count(*) from jobs where kind = 'run'", |n| n == 0)
            .await;
        let mut broken = invariants::broken(&self.rows).await;
        broken.extend(audit::found(&self.rows).await);
        broken.extend(self.provider.violations());
        let doubled =
            self.tools.ledger().into_iter().filter(|entry| ["charge", "pay"].contains(&entry.tool.as_str()));
        let doubled = doubled.filter(|entry| entry.nth.is_some_and(|nth| nth > 1));
        broken.extend(doubled.map(|entry| format!("charged {} more than once", entry.op)));
        for server in self.apis.iter().chain(&self.workers) {
            let output = server.output();
            // No process may panic or find something to repair, and no secret and no prompt may reach a log.
            let unheard_of = ["panicked", "repaired rows", config::PROVIDER_KEY, config::INSTRUCTIONS]
                .into_iter()
                .chain(self.key.as_deref());
            let unheard_of: Vec<&str> = unheard_of.collect();
            let bad = output.lines().filter(|line| unheard_of.iter().any(|word| line.contains(word)));
            // But for a panic that the test asked for.
            let bad = bad.filter(|line| !line.contains("panicked: failpoint"));
            broken.extend(bad.map(|line| format!("a process says: {line}")));
        }
        let tails = std::mem::take(&mut *self.tails.lock().unwrap_or_else(PoisonError::into_inner));
        for (run, after, tail) in tails {
            let seen: Vec<Event> = tail.ended().await.iter().map(Event::timeless).collect();
            let log: Vec<Event> =
                self.rows.log(&run).await.into_iter().filter(|event| event.seq > after).collect();
            if seen != log {
                broken.push(format!(
                    "a tail of {run} saw {} events that differ from the log's {}",
                    seen.len(),
                    log.len()
                ));
            }
        }
        broken
    }
}

const WORKERS: &str = "select count(*) from workers where host <> ''";
