//! What the API and the workers must agree on.
//!
//! - [`api_key`]: the form of API keys, made and checked.
//! - [`domain`]: values and rules, pure.

pub mod api_key;
pub mod domain;
pub mod store;
