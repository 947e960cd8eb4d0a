//! The store's promises as tests, held against SQLite and Postgres alike.
//!
//! [`conformance!`] makes two tests of each function: `sqlite::<name>` on a file of its own and `postgres::<name>` on
//! a database of its own. `harness` says where they come from.

mod chats;
mod fixtures;
mod harness;
mod log_read;
mod runs;
mod schema;
mod tenants;
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
