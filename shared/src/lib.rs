//! What the API and the workers must agree on.
//!
//! - [`domain`]: values and rules, pure.
//! - [`store`]: what must survive a crash, on Postgres or SQLite.

pub mod domain;
pub mod store;
