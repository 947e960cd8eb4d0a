//! SQL that both databases understand. This folder is compiled twice, once inside `postgres` and once inside
//! `sqlite`: `Db` is the driver, `now!()` the clock, `for_update!()` and `skip_locked!()` the row locks.

use super::{Db, MIGRATIONS, SqlStore};

mod rows;
mod workspaces;
