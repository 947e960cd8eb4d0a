//! The store's promises as tests, held against SQLite, Postgres and the store in memory alike.
//!
//! [`conformance!`] makes tests of each function: `sqlite::<name>` on a file of its own, `postgres::<name>` on a database
//! of its own, and `memory::<name>`, unless the name stands behind `sql:` because the test speaks SQL. `harness` says
//! where they come from. [`upheld!`] does the same and then asks the database for everything that `invariants` forbids.

mod admission;
mod chats;
mod endings;
mod fence;
mod fixtures;
mod harness;
mod idempotency;
mod invariants;
mod key_stops;
mod last_chances;
mod late;
mod leases;
mod log;
mod log_read;
mod queue;
mod releases;
mod repairs;
mod requests;
mod runs;
mod schema;
mod stops;
mod storm;
mod supersede;
mod tenants;
mod trouble;
mod workspaces;

/// Makes `async fn name(db: Database)` a test on every back-end, or on those that speak SQL.
macro_rules! conformance {
    ($($name:ident),* $(,)? $(; sql: $($sql:ident),+ $(,)?)?) => {
        conformance!(@on sqlite, on_sqlite, false, $($name,)* $($($sql),+)?);
        conformance!(@on postgres, on_postgres, false, $($name,)* $($($sql),+)?);
        conformance!(@on memory, on_memory, false, $($name),*);
    };
    (@on $back_end:ident, $on:ident, $upheld:literal, $($name:ident),* $(,)?) => {
        mod $back_end {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                crate::store::conformance::harness::$on(async |db| {
                    super::$name(db.clone()).await;
                    if $upheld {
                        db.assert_invariants().await;
                    }
                }).await;
            })*
        }
    };
}
use conformance;

/// Makes `async fn name(db: Database)` a test on Postgres, of what SQLite does not have.
macro_rules! on_postgres {
    ($($name:ident),+ $(,)?) => {
        mod postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                crate::store::conformance::harness::on_postgres(super::$name).await;
            })+
        }
    };
}
use on_postgres;

/// The same, and each test ends with the invariants.
macro_rules! upheld {
    ($($name:ident),* $(,)? $(; sql: $($sql:ident),+ $(,)?)?) => {
        crate::store::conformance::conformance!(@on sqlite, on_sqlite, true, $($name,)* $($($sql),+)?);
        crate::store::conformance::conformance!(@on postgres, on_postgres, true, $($name,)* $($($sql),+)?);
        crate::store::conformance::conformance!(@on memory, on_memory, true, $($name),*);
    };
}
use upheld;
