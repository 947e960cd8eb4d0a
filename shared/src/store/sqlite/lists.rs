//! How a list becomes parameters of one statement: as JSON, ids in hexadecimal.

use sqlx::{Sqlite, query::Query, sqlite::SqliteArguments, types::Json};

use crate::{domain::ids::RunId, store::LogCursor};

/// The ids that [`bind_ids`] binds as parameter `$n`.
macro_rules! listed_ids {
    ($n:literal) => {
        concat!("(select unhex(value) from json_each($", $n, "))")
    };
}

/// The cursors that [`bind_cursors`] binds as the third parameter: `workspace_id`, `run_id`, `seen`.
macro_rules! listed_cursors {
    () => {
        "(select unhex(value ->> 0) as workspace_id, unhex(value ->> 1) as run_id, value ->> 2 as seen \
          from json_each($3))"
    };
}

/// Around a string: whether the run's tags hold it.
pub(super) const HAS_TAG: [&str; 2] =
    ["exists (select 1 from json_each(r.tags) as tag where tag.value = ", ")"];

type SqliteQuery<'q> = Query<'q, Sqlite, SqliteArguments>;

pub(super) fn bind_ids<'q>(query: SqliteQuery<'q>, ids: &[RunId]) -> SqliteQuery<'q> {
    query.bind(Json(ids.iter().map(|id| id.0.simple().to_string()).collect::<Vec<_>>()))
}

pub(super) fn bind_cursors<'q>(query: SqliteQuery<'q>, cursors: &[LogCursor]) -> SqliteQuery<'q> {
    let rows: Vec<_> = cursors
        .iter()
        .map(|cursor| {
            (cursor.workspace_id.0.simple().to_string(), cursor.run_id.0.simple().to_string(), cursor.after)
        })
        .collect();
    query.bind(Json(rows))
}
