//! What the API and the workers must agree on.
//!
//! - [`domain`]: values and rules, pure.
//! - [`net_guard`]: outgoing calls reach public addresses only.

pub mod domain;
pub mod net_guard;
