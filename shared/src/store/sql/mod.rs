//! SQL that both databases understand. This folder is compiled twice, once inside `postgres` and once inside
//! `sqlite`: `Db` is the driver, `now!()` the clock, `for_update!()` and `skip_locked!()` the row locks, `lists` the
//! way in for lists.

use super::{Db, KIND, MIGRATIONS, SqlStore, lists};

mod chats;
mod log_read;
mod rows;
mod runs;
mod stubs;
mod workspaces;

use stubs as settle;
