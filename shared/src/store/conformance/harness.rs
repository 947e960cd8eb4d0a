//! A database for each test.
//!
//! In memory: one that begins empty. SQLite: a file in a temporary folder. Postgres: a copy of a migrated template on the server that
//! `LONGHAUL_TEST_POSTGRES_URL` names, dropped afterwards. A suite that cannot reach its server fails; only
//! `LONGHAUL_TEST_QUICK=1` leaves the Postgres half out.

use std::{
    env,
    future::Future,
    panic::AssertUnwindSafe,
    str::FromStr,
    sync::{Arc, Once},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures::FutureExt;
use sha2::{Digest, Sha256};
use sqlx::{
    AssertSqlSafe, ConnectOptions, Connection, PgConnection, PgPool, SqlitePool,
    postgres::{PgConnectOptions, PgPoolOptions},
    sqlite::SqliteConnectOptions,
};
use uuid::Uuid;

use crate::{
    faults,
    store::{
        SharedStore, Workspaces,
        memory::{MemoryStore, State},
        postgres, sqlite,
    },
};

/// No test here takes a tenth of this, even on a busy machine.
const LONGEST: Duration = Duration::from_mins(1);
const NO_SQL: &str = "the store in memory speaks no SQL: this test belongs behind `sql:`";

/// A migrated, empty database, and the store on it.
#[derive(Clone)]
pub(super) struct Database {
    pub(super) store: SharedStore,
    /// The same database through connections of its own, as another process has it. SQLite has one process.
    pub(super) second: SharedStore,
    raw: Raw,
}

/// The way around the store, for what it would never do.
#[derive(Clone)]
enum Raw {
    Sqlite(SqlitePool),
    Postgres(PgPool),
    Memory(MemoryStore),
}

impl Database {
    /// Executes SQL that the test wrote itself.
    pub(super) async fn execute(&self, sql: &str) -> Result<u64, sqlx::Error> {
        let sql = AssertSqlSafe(sql.to_owned());
        Ok(match &self.raw {
            Raw::Sqlite(pool) => sqlx::query(sql).execute(pool).await?.rows_affected(),
            Raw::Postgres(pool) => sqlx::query(sql).execute(pool).await?.rows_affected(),
            Raw::Memory(_) => panic!("{NO_SQL}"),
        })
    }

    /// Executes several statements as one, on one connection.
    pub(super) async fn execute_script(&self, sql: &str) {
        let sql = AssertSqlSafe(sql.to_owned());
        match &self.raw {
            Raw::Sqlite(pool) => drop(sqlx::raw_sql(sql).execute(pool).await.unwrap()),
            Raw::Postgres(pool) => drop(sqlx::raw_sql(sql).execute(pool).await.unwrap()),
            Raw::Memory(_) => panic!("{NO_SQL}"),
        }
    }

    /// The first column of the rows, as text.
    pub(super) async fn texts(&self, sql: &str) -> Vec<String> {
        let sql = AssertSqlSafe(sql.to_owned());
        match &self.raw {
            Raw::Sqlite(pool) => sqlx::query_scalar(sql).fetch_all(pool).await,
            Raw::Postgres(pool) => sqlx::query_scalar(sql).fetch_all(pool).await,
            Raw::Memory(_) => panic!("{NO_SQL}"),
        }
        .expect("the test's own SQL is right")
    }

    /// Changes rows as no caller of the store could: by SQL, or by hand.
    pub(super) async fn edit(&self, sql: &str, by_hand: impl FnOnce(&mut State)) {
        match &self.raw {
            Raw::Memory(store) => store.rows(by_hand),
            _ => drop(self.execute(sql).await.expect("the test's own SQL is right")),
        }
    }

    /// Looks at rows: the first column of an answer in SQL, or what a look at them says.
    pub(super) async fn look<T: ToString>(
        &self,
        sql: &str,
        look: impl FnOnce(&State) -> Vec<T>,
    ) -> Vec<String> {
        match &self.raw {
            Raw::Memory(store) => store.rows(|rows| look(rows).iter().map(ToString::to_string).collect()),
            _ => self.texts(sql).await,
        }
    }

    /// The rows themselves, if they are in memory.
    pub(super) fn in_memory(&self) -> Option<&MemoryStore> {
        if let Raw::Memory(store) = &self.raw { Some(store) } else { None }
    }

    pub(super) fn is_postgres(&self) -> bool {
        matches!(self.raw, Raw::Postgres(_))
    }

    /// A connection that does as the test says, and a third store with bounds of its own: what one database has that
    /// the other has not.
    pub(super) fn on_postgres(
        &self,
        bounds: impl FnOnce(&mut postgres::Options),
    ) -> Option<(PgPool, SharedStore)> {
        let Raw::Postgres(pool) = &self.raw else { return None };
        let url = pool.connect_options().to_url_lossy().to_string();
        let mut options = postgres::Options::new(url);
        bounds(&mut options);
        let store = postgres::SqlStore::open(&options).expect("the URL was made from valid options");
        Some((pool.clone(), Arc::new(store)))
    }

    /// An id as an SQL literal.
    pub(super) fn id(&self, id: impl Into<Uuid>) -> String {
        let id = id.into();
        if self.is_postgres() { format!("'{id}'::uuid") } else { format!("x'{}'", id.simple()) }
    }

    async fn close(self) {
        self.store.close().await;
        self.second.close().await;
        match self.raw {
            Raw::Sqlite(pool) => pool.close().await,
            Raw::Postgres(pool) => pool.close().await,
            Raw::Memory(_) => {}
        }
    }
}

pub(super) async fn on_memory<F: Future<Output = ()>>(test: impl FnOnce(Database) -> F) {
    arm();
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64);
    let memory = MemoryStore::new(now);
    let store: SharedStore = Arc::new(memory.clone());
    let db = Database { second: store.clone(), store, raw: Raw::Memory(memory) };
    outcome(test(db)).await.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

/// Also these tests can be run with a mutant, which some of them must see.
fn arm() {
    static ARMED: Once = Once::new();
    ARMED.call_once(|| faults::arm().expect("the environment names a fault that there is"));
}

pub(super) async fn on_sqlite<F: Future<Output = ()>>(test: impl FnOnce(Database) -> F) {
    arm();
    let folder = tempfile::tempdir().expect("the temporary folder can be written to");
    let path = folder.path().join("test.db");
    let store = sqlite::SqlStore::open(&sqlite::Options::new(&path)).expect("the path is valid");
    store.migrate().await.expect("the migrations apply");
    let raw = SqliteConnectOptions::new().filename(&path).foreign_keys(true);
    let raw = SqlitePool::connect_with(raw).await.expect("the file was just made");
    let store: SharedStore = Arc::new(store);
    let db = Database { second: store.clone(), store, raw: Raw::Sqlite(raw) };
    let outcome = outcome(test(db.clone())).await;
    db.close().await;
    outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

pub(super) async fn on_postgres<F: Future<Output = ()>>(test: impl FnOnce(Database) -> F) {
    arm();
    let Some(server) = postgres_server() else { return };
    let mut admin = server.clone().connect().await.expect("Postgres answers at LONGHAUL_TEST_POSTGRES_URL");
    let template = template(&mut admin, &server).await;
    let name = format!("longhaul_test_{}", Uuid::now_v7().simple());
    execute(&mut admin, format!("create database {name} template {template}")).await;

    let here = server.database(&name);
    let (store, second) = (Arc::new(open(&here)), Arc::new(open(&here)));
    let raw = PgPoolOptions::new().max_connections(4).connect_lazy_with(here);
    let db = Database { store, second, raw: Raw::Postgres(raw) };
    let outcome = outcome(test(db.clone())).await;
    db.close().await;
    execute(&mut admin, format!("drop database {name} with (force)")).await;
    admin.close().await.expect("nothing is under way on this connection");
    outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

/// How a test ends: its panic goes on only when the connections are closed and its database is gone. One that hangs
/// fails, so that a list without an end cannot stop the suite.
async fn outcome(test: impl Future<Output = ()>) -> std::thread::Result<()> {
    let test = tokio::time::timeout(LONGEST, test).map(|ended| ended.expect("the test ends within LONGEST"));
    AssertUnwindSafe(test).catch_unwind().await
}

/// Where Postgres is, or `None` if this run leaves it out on purpose.
fn postgres_server() -> Option<PgConnectOptions> {
    if env::var("LONGHAUL_TEST_QUICK").is_ok_and(|value| value == "1") {
        return None;
    }
    let url = env::var("LONGHAUL_TEST_POSTGRES_URL").expect(
        "no Postgres to test on: run `cargo xtask test`, set LONGHAUL_TEST_POSTGRES_URL, or leave it out with \
         LONGHAUL_TEST_QUICK=1",
    );
    Some(PgConnectOptions::from_str(&url).expect("LONGHAUL_TEST_POSTGRES_URL is a URL"))
}

/// The name of the database that all tests copy. It carries the migrations' checksum, so that test processes share
/// it, beside and after one another, until a migration changes.
async fn template(admin: &mut PgConnection, server: &PgConnectOptions) -> String {
    const LOCK: i64 = 0x6c6f_6e67;
    let mut digest = Sha256::new();
    for migration in postgres::MIGRATIONS.iter() {
        digest.update(&migration.checksum);
    }
    let checksum = u64::from_be_bytes(*digest.finalize().first_chunk().expect("SHA-256 has 32 bytes"));
    let name = format!("longhaul_template_{checksum:016x}");

    execute(admin, format!("select pg_advisory_lock({LOCK})")).await;
    let exists: bool = sqlx::query_scalar("select exists (select 1 from pg_database where datname = $1)")
        .bind(&name)
        .fetch_one(&mut *admin)
        .await
        .expect("the catalogue can be read");
    if !exists {
        // Under another name until it is whole: a test process that dies here leaves no half template.
        let draft = format!("{name}_draft");
        execute(admin, format!("drop database if exists {draft} with (force)")).await;
        execute(admin, format!("create database {draft}")).await;
        let store = open(&server.clone().database(&draft));
        store.migrate().await.expect("the migrations apply");
        store.close().await;
        execute(admin, format!("alter database {draft} rename to {name}")).await;
    }
    execute(admin, format!("select pg_advisory_unlock({LOCK})")).await;
    name
}

fn open(database: &PgConnectOptions) -> postgres::SqlStore {
    let url = database.to_url_lossy().to_string();
    postgres::SqlStore::open(&postgres::Options::new(url)).expect("the URL was made from valid options")
}

async fn execute(connection: &mut PgConnection, sql: String) {
    if let Err(error) = sqlx::query(AssertSqlSafe(sql.as_str())).execute(connection).await {
        panic!("{sql}: {error}");
    }
}
