//! Reading the log: one run from a cursor, or many at once.

use async_trait::async_trait;

use super::{
    MemoryStore,
    state::{LogRow, State},
};
use crate::{
    domain::event::Segment,
    store::{LogCursor, LogReader, Result},
};

/// How far one run may get in one read of many, in events, however many runs share the limit.
const LEAST_SHARE: i64 = 64;

#[async_trait]
impl LogReader for MemoryStore {
    async fn read_log(&self, cursor: LogCursor, limit: u32) -> Result<Vec<Segment>> {
        self.transact(|state| {
            let rows = state.behind(cursor).take(limit as usize);
            Ok(rows.map(|row| row.segment.clone()).collect())
        })
    }

    async fn read_logs(&self, cursors: &[LogCursor], limit: u32) -> Result<Vec<Segment>> {
        let share = (i64::from(limit) / cursors.len().max(1) as i64).max(LEAST_SHARE);
        self.transact(|state| {
            let mut found = vec![];
            for cursor in cursors {
                let seen = cursor.after.max(0);
                let near =
                    state.behind(*cursor).filter(|row| row.segment.first <= seen.saturating_add(share));
                found.extend(near.map(|row| (row.segment.first.saturating_sub(seen), &row.segment)));
            }
            found.sort_by_key(|(distance, segment)| (*distance, segment.run_id));
            Ok(found.into_iter().take(limit as usize).map(|(_, segment)| segment.clone()).collect())
        })
    }
}

impl State {
    /// The rows of the log that reach behind the cursor, ascending.
    pub(super) fn behind(&self, cursor: LogCursor) -> impl Iterator<Item = &LogRow> {
        let run = self.runs.get(&cursor.run_id).filter(|row| row.run.workspace_id == cursor.workspace_id);
        let rows = run.and_then(|_| self.log.get(&cursor.run_id)).map_or(&[][..], |rows| &rows[..]);
        let from = rows.partition_point(|row| row.segment.last <= cursor.after);
        rows[from..].iter()
    }
}
