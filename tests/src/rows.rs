//! The product's tables as a test reads them, in SQL that both databases understand.
//!
//! Two words are translated: `id_text(x)` is an id as text, `events_json` the events of a log row as JSON.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};
use sqlx::{AssertSqlSafe, PgPool, SqlitePool};
use tokio::time::{Instant, sleep};

use crate::PATIENCE;
use crate::story::Event;

const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A look at the database of one world.
#[derive(Clone, Debug)]
pub enum Rows {
    Postgres(PgPool),
    Sqlite(SqlitePool),
}

impl Rows {
    /// A file that a running server uses.
    pub async fn of_file(path: &Path) -> sqlx::Result<Self> {
        let options = SqliteConnectOptions::new().filename(path).busy_timeout(PATIENCE);
        Ok(Self::Sqlite(SqlitePoolOptions::new().max_connections(1).connect_with(options).await?))
    }

    fn translated(&self, sql: &str) -> String {
        match self {
            Self::Postgres(_) => sql.replace("id_text(", "text(").replace("events_json", "events::json"),
            Self::Sqlite(_) => sql.replace("id_text(", "hex(").replace("events_json", "events"),
        }
    }

    /// An id as it is written in SQL.
    pub fn id(&self, id: &str) -> String {
        match self {
            Self::Postgres(_) => format!("'{id}'"),
            Self::Sqlite(_) => format!("x'{}'", id.replace('-', "")),
        }
    }

    /// The first column of each row, which must be text.
    pub async fn texts(&self, sql: &str) -> Vec<String> {
        // Made by tests, out of their own words and the server's ids.
        let query = AssertSqlSafe(self.translated(sql));
        let rows = match self {
            Self::Postgres(pool) => sqlx::query_scalar(query).fetch_all(pool).await,
            Self::Sqlite(pool) => sqlx::query_scalar(query).fetch_all(pool).await,
        };
        rows.unwrap_or_else(|error| panic!("{error}: {sql}"))
    }

    /// The one number that this asks for.
    pub async fn number(&self, sql: &str) -> i64 {
        let query = AssertSqlSafe(self.translated(sql));
        let number = match self {
            Self::Postgres(pool) => sqlx::query_scalar(query).fetch_one(pool).await,
            Self::Sqlite(pool) => sqlx::query_scalar(query).fetch_one(pool).await,
        };
        number.unwrap_or_else(|error| panic!("{error}: {sql}"))
    }

    /// Changes rows as somebody would who does not know the product's rules.
    pub async fn change(&self, sql: &str) {
        let query = AssertSqlSafe(self.translated(sql));
        let done = match self {
            Self::Postgres(pool) => sqlx::query(query).execute(pool).await.map(drop),
            Self::Sqlite(pool) => sqlx::query(query).execute(pool).await.map(drop),
        };
        done.unwrap_or_else(|error| panic!("{error}: {sql}"));
    }

    /// Waits until the number that this asks for is what it should be.
    pub async fn until(&self, what: &str, sql: &str, holds: impl Fn(i64) -> bool) {
        let begin = Instant::now();
        loop {
            let number = self.number(sql).await;
            if holds(number) {
                return;
            }
            assert!(begin.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}; it was {number}");
            sleep(LOOK_EVERY).await;
        }
    }

    /// How often the run changed hands.
    pub async fn epoch(&self, run: &str) -> i64 {
        let run = self.id(run);
        self.number(&format!(
            "select cast(coalesce(max(epoch), 0) as bigint) from run_events where run_id = {run}"
        ))
        .await
    }

    /// The run's log.
    pub async fn log(&self, run: &str) -> Vec<Event> {
        let run = self.id(run);
        let segments = self
            .texts(&format!("select events from run_events where run_id = {run} order by first_seq"))
            .await;
        let events = segments.iter().flat_map(|segment| {
            let events: Vec<Value> = serde_json::from_str(segment).expect("a stored segment is a JSON array");
            events
        });
        let numbered = (1_i64..).zip(events).map(|(seq, mut event)| {
            event["seq"] = seq.into();
            serde_json::from_value(event).expect("a stored event has a type and data")
        });
        numbered.collect()
    }

    /// The saved output of each step, in order.
    pub async fn outputs(&self, run: &str) -> Vec<Value> {
        let run = self.id(run);
        let sql = format!("select cast(output as text) from steps where run_id = {run} order by step");
        let outputs = self.texts(&sql).await;
        outputs.iter().map(|output| serde_json::from_str(output).expect("stored output is JSON")).collect()
    }
}
