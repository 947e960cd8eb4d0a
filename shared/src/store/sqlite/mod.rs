//! The store on SQLite: one node, one file, the same promises.
//!
//! One connection writes and the others read (WAL), so that a transaction never fails for another's lock. A commit is
//! on disk when it returns (`synchronous = FULL`).

use std::{path::PathBuf, time::Duration};

use sqlx::{
    migrate::MigrateError,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};

use super::Result;

/// What the shared SQL files are compiled for.
type Db = sqlx::Sqlite;

const KIND: &str = "sqlite";

/// The database's clock, as SQL.
macro_rules! now {
    () => {
        "(cast(unixepoch('subsec') * 1000 as integer))"
    };
}

/// The one writer needs no row locks.
macro_rules! for_update {
    () => {
        ""
    };
}

/// Whether any migration was ever applied, as SQL.
macro_rules! was_migrated {
    () => {
        "select exists (select 1 from sqlite_schema where name = '_sqlx_migrations')"
    };
}

/// Whether a transaction that begins now may write, as SQL: the file is this process's own.
macro_rules! is_writable {
    () => {
        "select true"
    };
}

/// The library's version, as SQL.
macro_rules! server_version {
    () => {
        "select sqlite_version()"
    };
}

mod claim;
mod commit;
mod insert_run;
#[macro_use]
mod lists;
#[path = "../sql/mod.rs"]
mod sql;

const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
const TURN_TIMEOUT: Duration = Duration::from_secs(30);

pub(super) static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!("../migrations/sqlite");

/// How this process talks to SQLite.
#[derive(Clone, Debug)]
pub struct Options {
    pub path: PathBuf,
    pub readers: u32,
}

impl Options {
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), readers: 4 }
    }
}

/// See [`super::Store`].
#[derive(Clone, Debug)]
pub struct SqlStore {
    readers: sqlx::SqlitePool,
    writer: sqlx::SqlitePool,
}

impl SqlStore {
    /// Opens the file, which is made if it is missing; its folder must exist.
    pub fn open(options: &Options) -> Result<Self> {
        let connect = SqliteConnectOptions::new()
            .filename(&options.path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(BUSY_TIMEOUT);
        let pool = |connections: u32| {
            SqlitePoolOptions::new()
                .max_connections(connections)
                .acquire_timeout(TURN_TIMEOUT)
                .connect_lazy_with(connect.clone())
        };
        Ok(Self { readers: pool(options.readers), writer: pool(1) })
    }

    /// Applies the migrations in one transaction that locks the file first: the one process that comes second finds
    /// nothing left to do.
    async fn apply_migrations(&self) -> std::result::Result<(), MigrateError> {
        let mut transaction = self.writer.begin_with("begin immediate").await?;
        MIGRATIONS.run_direct(None, &mut *transaction, false).await?;
        transaction.commit().await?;
        Ok(())
    }

    /// A transaction that reads and writes: it takes the write lock at once, since one that begins with a read could
    /// not be upgraded behind another writer's commit.
    async fn begin(&self) -> Result<sqlx::Transaction<'static, Db>> {
        Ok(self.writer.begin_with("begin immediate").await?)
    }

    async fn begin_reserved(&self) -> Result<sqlx::Transaction<'static, Db>> {
        self.begin().await
    }

    /// For single statements that read.
    fn reader(&self) -> &sqlx::Pool<Db> {
        &self.readers
    }

    /// For single statements that write.
    fn writer(&self) -> &sqlx::Pool<Db> {
        &self.writer
    }

    fn reserved(&self) -> &sqlx::Pool<Db> {
        &self.writer
    }

    /// The writer may have to wait for its turn, and then for the file's lock.
    #[expect(clippy::unused_self, reason = "Postgres asks its options")]
    fn longest_answer(&self) -> Duration {
        BUSY_TIMEOUT + TURN_TIMEOUT
    }

    async fn close_pools(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }
}

/// The one writer waits for nobody inside its transaction.
async fn set_lock_timeout(_: &mut sqlx::Transaction<'static, Db>, _: u32) -> Result<()> {
    Ok(())
}

async fn reset_lock_timeout(_: &mut sqlx::Transaction<'static, Db>) -> Result<()> {
    Ok(())
}

fn is_lock_timeout(_: &sqlx::Error) -> bool {
    false
}
