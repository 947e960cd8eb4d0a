//! What a tail needs of the store.

use async_trait::async_trait;

use crate::domain::{
    event::Segment,
    ids::{RunId, Seq, WorkspaceId},
};

/// A place in a run's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogCursor {
    pub workspace_id: WorkspaceId,
    pub run_id: RunId,
    /// The last event that is known.
    pub after: Seq,
}

#[async_trait]
pub trait LogReader: Send + Sync {
    /// Segments that hold events behind the cursor, ascending, at most `limit` of them. Fewer than `limit` means
    /// that the log had no more.
    async fn read_log(&self, cursor: LogCursor, limit: u32) -> Result<Vec<Segment>, StoreError>;
    /// The same for many runs with one query, `limit` for all of them together. What is cut off is cut off
    /// from the end of a run's part, so each run's segments follow on its cursor.
    async fn read_logs(&self, cursors: &[LogCursor], limit: u32) -> Result<Vec<Segment>, StoreError>;
}

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("the database is unavailable: {0}")]
    Unavailable(#[source] sqlx::Error),
    #[error("corrupt row in {table}.{column} ({id}): {detail}")]
    Corrupt { table: &'static str, column: &'static str, id: String, detail: String },
}

impl StoreError {
    /// Whether the same call may succeed a moment later.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable(_))
    }
}
