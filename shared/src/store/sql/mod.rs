//! SQL that both databases understand. This folder is compiled twice, once inside `postgres` and once inside
//! `sqlite`: `Db` is the driver, `now!()` the clock, `for_update!()` the row lock, `lists` the
//! way in for lists.

use super::{Db, KIND, MIGRATIONS, SqlStore, lists};

pub(super) mod admission;
mod chats;
mod jobs;
pub(super) mod log;
mod log_read;
pub(super) mod rows;
mod runs;
mod settle;
mod workers;
mod workspaces;
