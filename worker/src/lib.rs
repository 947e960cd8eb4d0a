//! Takes jobs and does them.

#[cfg(test)]
mod fixture;
pub mod provider;
pub mod redact;
pub mod tools;
