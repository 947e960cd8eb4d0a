//! Reading the log: one run from a cursor, or many at once.

use async_trait::async_trait;

use super::{Db, SqlStore, lists::bind_cursors, rows};
use crate::{
    domain::event::Segment,
    store::{LogCursor, LogReader, Result},
};

/// Behind every event, and far enough from the largest number to be added to.
const FURTHEST: i64 = i64::MAX / 4;

/// How far one run may get in one read of many, in events, however many runs share the limit.
const LEAST_SHARE: i64 = 64;

#[async_trait]
impl LogReader for SqlStore {
    async fn read_log(&self, cursor: LogCursor, limit: u32) -> Result<Vec<Segment>> {
        // Segments do not overlap, so the last one that begins at or before the cursor is the first that can reach
        // behind it: the index leads there, and nothing older is looked at.
        const SQL: &str = "select run_id, first_seq, last_seq, events, created_at from run_events \
             where workspace_id = $1 and run_id = $2 and last_seq > $3 and first_seq >= coalesce( \
             (select max(first_seq) from run_events where run_id = $2 and first_seq <= $3), 1) \
             order by first_seq limit $4";
        let rows = sqlx::query::<Db>(SQL)
            .bind(cursor.workspace_id.0)
            .bind(cursor.run_id.0)
            .bind(cursor.after)
            .bind(i64::from(limit))
            .fetch_all(self.reader())
            .await?;
        rows.iter().map(rows::segment).collect()
    }

    async fn read_logs(&self, cursors: &[LogCursor], limit: u32) -> Result<Vec<Segment>> {
        let limit = i64::from(limit);
        let share = (limit / cursors.len().max(1) as i64).max(LEAST_SHARE);
        log_behind(self, cursors, share, limit).await
    }
}

/// Segments behind the cursors, of each run ascending: none that begins more than `share` events behind its cursor,
/// which bounds the work without a row limit for each run, and `limit` in all. The nearest to its cursor comes first.
pub(super) async fn log_behind(
    store: &SqlStore,
    cursors: &[LogCursor],
    share: i64,
    limit: i64,
) -> Result<Vec<Segment>> {
    const SQL: &str = concat!(
        "with cursors as materialized (select c.workspace_id, c.run_id, c.seen, coalesce( \
         (select max(e.first_seq) from run_events e where e.run_id = c.run_id and e.first_seq <= c.seen), 1) as low, \
         c.seen + $1 as high from ",
        listed_cursors!(),
        " as c) select e.run_id, e.first_seq, e.last_seq, e.events, e.created_at \
         from cursors c join run_events e on e.run_id = c.run_id and e.workspace_id = c.workspace_id \
         and e.first_seq between c.low and c.high and e.last_seq > c.seen \
         order by e.first_seq - c.seen, e.run_id limit $2"
    );
    if cursors.is_empty() {
        return Ok(vec![]);
    }
    // A cursor comes from a client: no sum of it may overflow.
    let cursors: Vec<_> = cursors
        .iter()
        .map(|cursor| LogCursor { after: cursor.after.clamp(0, FURTHEST), ..*cursor })
        .collect();
    let query = bind_cursors(sqlx::query::<Db>(SQL).bind(share.min(FURTHEST)).bind(limit), &cursors);
    query.fetch_all(store.reader()).await?.iter().map(rows::segment).collect()
}
