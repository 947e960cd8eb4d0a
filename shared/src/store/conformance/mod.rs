//! The store's promises as tests, held against SQLite and Postgres alike.
//!
//! [`conformance!`] makes two tests of each function: `sqlite::<name>` on a file of its own and `postgres::<name>` on
//! a database of its own. `harness` says where they come from. [`upheld!`] does the same and then asks the database
//! for everything that `invariants` forbids.

mod admission;
mod chats;
mod endings;
mod fence;
mod fixtures;
mod harness;
mod idempotency;
mod invariants;
mod key_stops;
mod late;
mod log;
mod log_read;
mod queue;
mod releases;
mod runs;
mod schema;
mod stops;
mod storm;
mod supersede;
mod tenants;
mod trouble;
mod workspaces;

/// Makes `async fn name(db: Database)` a test on either back-end.
macro_rules! conformance {
    ($($name:ident),+ $(,)?) => {
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                crate::store::conformance::harness::on_sqlite(super::$name).await;
            })+
        }
        mod postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                crate::store::conformance::harness::on_postgres(super::$name).await;
            })+
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

/// Makes `async fn name(db: Database)` a test on either back-end that ends with the invariants.
macro_rules! upheld {
    ($($name:ident),+ $(,)?) => {
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                crate::store::conformance::harness::on_sqlite(async |db| {
                    super::$name(db.clone()).await;
                    db.assert_invariants().await;
                }).await;
            })+
        }
        mod postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                crate::store::conformance::harness::on_postgres(async |db| {
                    super::$name(db.clone()).await;
                    db.assert_invariants().await;
                }).await;
            })+
        }
    };
}
use upheld;
