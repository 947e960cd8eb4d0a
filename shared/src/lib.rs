//! What the API and the workers must agree on.
//!
//! - [`domain`]: values and rules, pure.
//! - [`store`]: what must survive a crash, on Postgres or SQLite.
//! - [`config`]: every setting, parsed and cross-checked once.
//! - [`shutdown`] and [`telemetry`]: how a process ends, and what it tells.

pub mod config;
pub mod domain;
pub mod shutdown;
pub mod store;
pub mod telemetry;
