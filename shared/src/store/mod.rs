//! What must survive a crash, as small traits in domain words.
//!
//! Postgres and SQLite keep the same promises. Most SQL is one text for both (`sql/`, compiled once for each);
//! what only one of them can say well stands in `postgres/` and `sqlite/`. `conformance` holds both to these pages.
//!
//! Lock order, for every transaction that takes more than one: chat → job → worker → log → run → message; batches
//! sorted by id. Whoever takes or frees a chat's slot first locks the chat's row.

pub mod admission;
mod bounded;
mod chats;
mod error;
mod jobs;
mod log;
#[cfg(any(test, feature = "memory"))]
pub mod memory;
mod page;
pub mod postgres;
mod runs;
pub mod sqlite;
mod stops;
mod workers;
mod workspaces;

#[cfg(test)]
mod conformance;

use std::sync::Arc;

pub use admission::{Admission, AdmitError, Admitted, IfBusy, KeyName, NewRun, Request};
pub use bounded::bounded;
pub use chats::{ChatPatch, Chats, NewChat};
pub use error::StoreError;
pub use jobs::{HeldRun, Jobs, Released};
pub use log::{Append, Committed, Locks, Log, LogCursor, LogReader};
pub use page::{Listed, Page};
pub use runs::{Ancestor, Fresh, KeyedRun, RunFilter, RunInput, RunRecord, Runs};
pub use stops::{KeyStop, STOP_GRACE_MS, StopOutcome, StopRequest};
pub use workers::{Evidence, NewWorker, Peer, Presence, WorkerRow, Workers};
pub use workspaces::{ApiKey, KeyRole, NewKey, RunScope, Workspaces};

pub type Result<T> = std::result::Result<T, StoreError>;

/// The truth, chosen by configuration at start.
pub trait Store: Workspaces + Chats + Runs + Admission + Log + Jobs + Workers {}
impl<S: Workspaces + Chats + Runs + Admission + Log + Jobs + Workers> Store for S {}

/// How processes hold it.
pub type SharedStore = Arc<dyn Store>;
