//! How a list becomes parameters of one statement: as arrays, one for each column.

use sqlx::{Postgres, postgres::PgArguments, query::Query};
use uuid::Uuid;

use crate::{domain::ids::RunId, store::LogCursor};

/// The ids that [`bind_ids`] binds as parameter `$n`.
macro_rules! listed_ids {
    ($n:literal) => {
        concat!("(select unnest($", $n, "::uuid[]))")
    };
}

/// The cursors that [`bind_cursors`] binds from the third parameter on: `workspace_id`, `run_id`, `seen`.
macro_rules! listed_cursors {
    () => {
        "(select * from unnest($3::uuid[], $4::uuid[], $5::bigint[]) as given (workspace_id, run_id, seen))"
    };
}

/// Around a string: whether the run's tags hold it.
pub(super) const HAS_TAG: [&str; 2] = ["r.tags ? ", ""];

type PgQuery<'q> = Query<'q, Postgres, PgArguments>;

pub(super) fn bind_ids<'q>(query: PgQuery<'q>, ids: &[RunId]) -> PgQuery<'q> {
    query.bind(ids.iter().map(|id| id.0).collect::<Vec<Uuid>>())
}

pub(super) fn bind_cursors<'q>(query: PgQuery<'q>, cursors: &[LogCursor]) -> PgQuery<'q> {
    query
        .bind(cursors.iter().map(|cursor| cursor.workspace_id.0).collect::<Vec<Uuid>>())
        .bind(cursors.iter().map(|cursor| cursor.run_id.0).collect::<Vec<Uuid>>())
        .bind(cursors.iter().map(|cursor| cursor.after).collect::<Vec<i64>>())
}
