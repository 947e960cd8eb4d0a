//! What the API and the workers must agree on.
//!
//! - [`domain`]: values and rules, pure.
//! - [`config`]: what a process was told at its start, checked as a whole.
//! - [`telemetry`], [`shutdown`]: how a process logs and how it ends.

pub mod config;
pub mod domain;
pub mod shutdown;
pub mod telemetry;
