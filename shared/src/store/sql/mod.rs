//! SQL that both databases understand. This folder is compiled twice, once inside `postgres` and once inside
//! `sqlite`: `Db` is the driver, `now!()` the clock, `for_update!()` the row lock, `lists` the
//! way in for lists.

use std::future::Future;

use tracing::Instrument as _;

use super::{Db, KIND, MIGRATIONS, SqlStore, lists};

pub(super) mod admission;
mod again;
mod chats;
mod facts;
mod idempotency;
mod jobs;
mod late;
pub(super) mod log;
mod log_read;
mod release;
pub(super) mod rows;
mod runs;
mod settle;
mod stop_by_key;
mod supersede;
mod workers;
mod workspaces;

/// Brings a transaction to its end even if its caller goes away, as requests do when their clients hang up. The driver
/// loses track of a connection that is dropped while a transaction begins: it would go back to the pool inside it.
async fn to_its_end<T: Send + 'static>(transaction: impl Future<Output = T> + Send + 'static) -> T {
    match tokio::spawn(transaction.in_current_span()).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is shutting down, and this caller with it.
            Err(_) => std::future::pending().await,
        },
    }
}

/// What a claim has read. One row that makes no sense must not keep the others from being worked on: its run is claimed
/// and known to nobody, and is given back until somebody can read it.
pub(super) fn readable<T>(row: crate::store::Result<T>) -> Option<T> {
    row.inspect_err(|error| tracing::error!(%error, "a claimed run cannot be read")).ok()
}
