//! What the API and the workers must agree on.
//!
//! - [`domain`]: values and rules, pure.
//! - [`bus`]: hints and live copies between processes; may be lost, never the only copy.
//! - [`tail`]: who is watching a run: replay from a cursor, then follow.

pub mod bus;
pub mod domain;
pub mod tail;
