//! Takes jobs and does them.

pub mod provider;
pub mod redact;
pub mod tools;
