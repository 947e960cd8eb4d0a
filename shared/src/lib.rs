//! What the API and the workers must agree on.
//!
//! - [`domain`]: values and rules, pure.

pub mod domain;
