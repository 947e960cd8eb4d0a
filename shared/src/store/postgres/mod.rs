//! The store on Postgres 15 or newer: many processes, one truth.

use std::{str::FromStr, sync::Arc, time::Duration};

use sqlx::{
    Connection,
    migrate::MigrateError,
    postgres::{PgConnectOptions, PgPoolOptions},
};

use self::pool::{Lane, Pool};
use super::{Result, StoreError};

/// What the shared SQL files are compiled for.
type Db = sqlx::Postgres;

const KIND: &str = "postgres";

/// How long a commit of many runs waits for a lock before those that can be written are written without the others.
const LONGEST_SHARED_WAIT: Duration = Duration::from_secs(1);

/// What a question and its answer may take on their way.
const ON_THE_WAY: Duration = Duration::from_secs(1);

/// How long a migration may keep others waiting behind it before it has begun, as Postgres writes it.
const MIGRATION_LOCK_TIMEOUT: &str = "1s";

/// The database's clock, as SQL.
macro_rules! now {
    () => {
        "now_ms()"
    };
}

/// Locks the selected rows against other changes, but not against foreign keys that point at them.
macro_rules! for_update {
    () => {
        " for no key update"
    };
}

/// Whether any migration was ever applied, as SQL.
macro_rules! was_migrated {
    () => {
        "select to_regclass('_sqlx_migrations') is not null"
    };
}

/// Whether a transaction that begins now may write, as SQL.
macro_rules! is_writable {
    () => {
        "select current_setting('transaction_read_only') = 'off'"
    };
}

/// The server's version, as SQL.
macro_rules! server_version {
    () => {
        "select current_setting('server_version')"
    };
}

mod claim;
mod commit;
mod insert_run;
pub(super) mod pool;
#[macro_use]
mod lists;
#[path = "../sql/mod.rs"]
#[expect(clippy::duplicate_mod, reason = "one SQL text, compiled for each database")]
mod sql;

pub(super) static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!("../migrations/postgres");

/// How this process talks to Postgres.
#[derive(Clone, Debug)]
pub struct Options {
    pub url: String,
    pub max_connections: u32,
    /// Further ones that requests cannot use up.
    pub reserved_connections: u32,
    /// How long a caller waits for a free connection.
    pub acquire_timeout: Duration,
    /// Bounds of a statement, of waiting for a lock and of idling in a transaction: below the lease, so that a
    /// frozen owner cannot hold locks past it.
    pub statement_timeout: Duration,
    pub lock_timeout: Duration,
    pub idle_in_transaction_timeout: Duration,
}

impl Options {
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            max_connections: 10,
            reserved_connections: 4,
            acquire_timeout: Duration::from_secs(5),
            statement_timeout: Duration::from_secs(10),
            lock_timeout: Duration::from_secs(5),
            idle_in_transaction_timeout: Duration::from_secs(10),
        }
    }
}

/// See [`super::Store`].
#[derive(Clone, Debug)]
pub struct SqlStore {
    /// Requests and reads.
    pool: Arc<Pool>,
    /// Commits of the recorder, claims, and what else a worker does for others: never starved by requests.
    reserved: Arc<Pool>,
    statement_timeout: Duration,
}

impl SqlStore {
    /// Opens the pools without connecting: a database that is down does not stop a process from starting.
    pub fn open(options: &Options) -> Result<Self> {
        let connect = PgConnectOptions::from_str(&options.url)
            .map_err(StoreError::from)?
            .application_name("longhaul")
            .options([
                ("statement_timeout", millis(options.statement_timeout)),
                ("lock_timeout", millis(options.lock_timeout)),
                ("idle_in_transaction_session_timeout", millis(options.idle_in_transaction_timeout)),
            ]);
        let pool = |connections: u32, connect: PgConnectOptions| {
            let pool = PgPoolOptions::new()
                .max_connections(connections)
                .acquire_timeout(options.acquire_timeout)
                .idle_timeout(Duration::from_mins(1));
            Arc::new(Pool::open(pool, connect, options.statement_timeout + ON_THE_WAY))
        };
        // Whatever these do is tried again, and the runs that share a commit wait for one that somebody has locked.
        let briefly = options.lock_timeout.min(LONGEST_SHARED_WAIT);
        let reserved = connect.clone().options([("lock_timeout", millis(briefly))]);
        Ok(Self {
            pool: pool(options.max_connections, connect),
            reserved: pool(options.reserved_connections, reserved),
            statement_timeout: options.statement_timeout,
        })
    }

    /// Applies the migrations on a connection of its own. Changing a large table takes as long as it takes; waiting for
    /// it does not, because everybody who needs the table waits behind us. An advisory lock lets one process at a time
    /// do it.
    async fn apply_migrations(&self) -> std::result::Result<(), MigrateError> {
        let mut connection = self.pool.get().0.acquire().await?.detach();
        for (setting, value) in [
            ("statement_timeout", "0"),
            ("idle_in_transaction_session_timeout", "0"),
            ("lock_timeout", MIGRATION_LOCK_TIMEOUT),
        ] {
            let set = sqlx::query("select set_config($1, $2, false)").bind(setting).bind(value);
            set.execute(&mut connection).await?;
        }
        MIGRATIONS.run_direct(None, &mut connection, false).await?;
        connection.close().await?;
        Ok(())
    }

    /// A transaction that reads and writes.
    async fn begin(&self) -> Result<sqlx::Transaction<'static, Db>> {
        Ok(self.pool.get().0.begin().await?)
    }

    /// The same on a connection that requests cannot use up.
    async fn begin_reserved(&self) -> Result<sqlx::Transaction<'static, Db>> {
        Ok(self.reserved.get().0.begin().await?)
    }

    /// For single statements that read.
    fn reader(&self) -> Lane {
        self.pool.get()
    }

    /// For single statements that write.
    fn writer(&self) -> Lane {
        self.pool.get()
    }

    /// For single statements that requests must not keep waiting.
    fn reserved(&self) -> Lane {
        self.reserved.get()
    }

    /// The database ends what takes longer, and then somebody else gets the connection.
    fn longest_answer(&self) -> Duration {
        self.statement_timeout + 2 * ON_THE_WAY
    }

    async fn close_pools(&self) {
        tokio::join!(self.pool.close(), self.reserved.close());
    }
}

fn millis(duration: Duration) -> String {
    duration.as_millis().to_string()
}

/// Bounds how long this transaction waits for a lock from here on.
async fn set_lock_timeout(tx: &mut sqlx::Transaction<'static, Db>, ms: u32) -> Result<()> {
    sqlx::query("select set_config('lock_timeout', $1, true)")
        .bind(ms.to_string())
        .execute(&mut **tx)
        .await?;
    Ok(())
}

/// Back to the session's own bound.
async fn reset_lock_timeout(tx: &mut sqlx::Transaction<'static, Db>) -> Result<()> {
    sqlx::query("set local lock_timeout to default").execute(&mut **tx).await?;
    Ok(())
}

fn is_lock_timeout(error: &sqlx::Error) -> bool {
    error.as_database_error().and_then(sqlx::error::DatabaseError::code).is_some_and(|code| code == "55P03")
}
