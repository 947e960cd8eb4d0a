//! The store in memory: the same promises by plain functions over one state, with a clock that its maker moves.
//!
//! For the simulation and for tests: nothing outlives the process. Each call is one transaction: it checks everything,
//! then writes, so that a refused call has changed nothing.

mod admission;
mod chats;
mod invariants;
mod jobs;
mod log;
mod log_read;
mod release;
mod runs;
mod settle;
mod state;
mod workers;
mod workspaces;

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use super::{STOP_GRACE_MS, StoreError};
use crate::domain::ids::Millis;
pub use state::{Answer, ChatRow, JobRow, KeyRow, LeaseRow, LogRow, RunRow, State};

/// See [`super::Store`]. Clones are the same store.
#[derive(Clone)]
pub struct MemoryStore {
    state: Arc<Mutex<State>>,
    clock: Arc<dyn Fn() -> Millis + Send + Sync>,
}

impl MemoryStore {
    /// An empty store whose time is what `clock` says; it is not allowed to go back.
    pub fn new(clock: impl Fn() -> Millis + Send + Sync + 'static) -> Self {
        let state = State { stop_grace_ms: STOP_GRACE_MS, ..State::default() };
        Self { state: Arc::new(Mutex::new(state)), clock: Arc::new(clock) }
    }

    /// Looks at the rows, or changes them as no caller of the store could.
    pub fn rows<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        look(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn transact<T, E: From<StoreError>>(
        &self,
        transaction: impl FnOnce(&mut State) -> std::result::Result<T, E>,
    ) -> std::result::Result<T, E> {
        self.rows(|state| {
            if state.is_closed {
                return Err(unavailable().into());
            }
            state.now = state.now.max((self.clock)());
            transaction(state)
        })
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore").finish_non_exhaustive()
    }
}

/// What a database that cannot be reached answers.
pub fn unavailable() -> StoreError {
    StoreError::Unavailable(Arc::new(sqlx::Error::PoolClosed))
}
