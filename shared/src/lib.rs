//! What the API and the workers must agree on.
//!
//! - [`domain`]: values and rules, pure.
//! - [`store`]: what must survive a crash, on Postgres or SQLite.
//! - [`bus`]: hints and live copies between processes; may be lost, never the only copy.
//! - [`admission`]: the one way in for a run, whoever asks.
//! - [`queue`]: who works next: claim, hold, hand back.
//! - [`tail`]: who is watching a run: replay from a cursor, then follow.
//! - [`net_guard`]: outgoing calls reach public addresses only.
//! - [`config`]: every setting, parsed and cross-checked once.
//! - [`backends`]: a configuration in, its store and bus out.
//! - [`api_key`]: keys as they are made, presented and compared.
//! - [`faults`]: how a build for tests dies, freezes and forgets its guards on purpose: [`failpoint`], [`mutant`].
//! - [`jitter`]: the randomness of waits.
//! - [`shutdown`] and [`telemetry`]: how a process ends, and what it tells.

pub mod admission;
pub mod api_key;
pub mod backends;
pub mod bus;
pub mod config;
pub mod domain;
pub mod failpoint;
pub mod faults;
pub mod jitter;
pub mod mutant;
pub mod net_guard;
pub mod queue;
pub mod shutdown;
pub mod store;
pub mod tail;
pub mod telemetry;
mod to_its_end;
