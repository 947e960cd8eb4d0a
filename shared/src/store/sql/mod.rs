//! SQL that both databases understand. This folder is compiled twice, once inside `postgres` and once inside
//! `sqlite`: `Db` is the driver, `now!()` the clock, `for_update!()` the row lock, `lists` the
//! way in for lists.

use super::{Db, KIND, MIGRATIONS, SqlStore, lists};
// The driver loses track of a connection that is dropped while a transaction begins: it would go back to the pool inside
// it. So transactions of requests, whose clients hang up, are brought to their end.
use crate::to_its_end::to_its_end;

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

/// What a claim has read. One row that makes no sense must not keep the others from being worked on: its run is claimed
/// and known to nobody, and is given back until somebody can read it.
pub(super) fn readable<T>(row: crate::store::Result<T>) -> Option<T> {
    row.inspect_err(|error| tracing::error!(%error, "a claimed run cannot be read")).ok()
}
