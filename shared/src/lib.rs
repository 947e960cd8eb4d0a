//! What the API and the workers must agree on.

pub mod config;
pub mod shutdown;
pub mod telemetry;
