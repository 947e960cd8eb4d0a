//! A Postgres database for one test, made on the test server and gone with the test.

use std::env;
use std::thread;

use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, PgPool};
use uuid::Uuid;

const SERVER_URL: &str = "LONGHAUL_TEST_POSTGRES_URL";

/// The server for tests.
///
/// # Panics
/// When nobody started one: a suite that needs it must fail, not leave itself out.
pub fn server_url() -> String {
    env::var(SERVER_URL).unwrap_or_else(|_| {
        panic!(
            "{SERVER_URL} is not set: run the tests by `cargo xtask test`, or start servers for single tests by \
             `cargo xtask servers`"
        )
    })
}

/// An empty database. Dropping this value drops it, with whoever is still connected.
#[derive(Debug)]
pub struct Database {
    server_url: String,
    name: String,
}

impl Database {
    pub async fn create() -> sqlx::Result<Self> {
        Self::create_on(server_url()).await
    }

    /// The same on another server than that of all tests.
    pub async fn create_on(server_url: String) -> sqlx::Result<Self> {
        let name = format!("lh_{}", Uuid::now_v7().simple());
        let mut server = PgConnection::connect(&server_url).await?;
        // The name is ours: letters and digits.
        server.execute(AssertSqlSafe(format!("create database {name}"))).await?;
        server.close().await?;
        Ok(Self { server_url, name })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// What to configure as `LONGHAUL_DATABASE_URL`.
    pub fn url(&self) -> String {
        with_database(&self.server_url, &self.name)
    }

    /// Connections of the test itself, to look at what the product wrote.
    pub async fn connect(&self) -> sqlx::Result<PgPool> {
        PgPool::connect(&self.url()).await
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let (server_url, name) = (self.server_url.clone(), self.name.clone());
        // The test's own runtime may be ending, and must not be blocked by what runs on it.
        let dropped = thread::spawn(move || drop_database(&server_url, &name)).join();
        if !matches!(dropped, Ok(Ok(()))) {
            eprintln!("the database {} was left behind: {dropped:?}", self.name);
        }
    }
}

fn drop_database(server_url: &str, name: &str) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut server = PgConnection::connect(server_url).await?;
        server.execute(AssertSqlSafe(format!("drop database {name} with (force)"))).await?;
        Ok(server.close().await?)
    })
}

/// The same URL with another database: the path between the authority and the query.
fn with_database(url: &str, name: &str) -> String {
    let (base, query) = url.split_once('?').map_or((url, None), |(base, query)| (base, Some(query)));
    let authority = base.find("://").map_or(0, |at| at + 3);
    let server = base[authority..].find('/').map_or(base, |at| &base[..authority + at]);
    query.map_or_else(|| format!("{server}/{name}"), |query| format!("{server}/{name}?{query}"))
}

#[cfg(test)]
mod tests {
    use sqlx::Connection;

    use super::{Database, PgConnection, server_url, with_database};
    use crate::quick;

    #[test]
    fn only_the_database_of_a_url_changes() {
        assert_eq!(with_database("postgres://u@h:1/postgres", "x"), "postgres://u@h:1/x");
        assert_eq!(with_database("postgres://u@h:1", "x"), "postgres://u@h:1/x");
        assert_eq!(
            with_database("postgres://u@h:1/a?sslmode=disable", "x"),
            "postgres://u@h:1/x?sslmode=disable"
        );
    }

    #[tokio::test]
    async fn a_database_is_made_and_goes_even_while_somebody_uses_it() {
        if quick() {
            return;
        }
        let database = Database::create().await.unwrap();
        let pool = database.connect().await.unwrap();
        let name: String = sqlx::query_scalar("select current_database()").fetch_one(&pool).await.unwrap();
        assert_eq!(name, database.name());
        drop(database);

        let mut server = PgConnection::connect(&server_url()).await.unwrap();
        let left = sqlx::query("select from pg_database where datname = $1").bind(name);
        assert!(left.fetch_optional(&mut server).await.unwrap().is_none());
    }
}
