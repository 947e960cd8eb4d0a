//! A stop by the key of a submission whose answer its sender never saw. If nobody has submitted with the key, the wish is
//! kept in the key's own row, where the submission finds it.

use sqlx::Row;
use uuid::Uuid;

use super::{SqlStore, idempotency::IDEMPOTENCY_KEPT_MS, rows::get, settle::stop_run, to_its_end};
use crate::{
    domain::ids::{Millis, WorkspaceId},
    store::{KeyName, KeyStop, Result, StoreError},
};

/// A submission under way holds the row: this waits until it is decided. One that comes later finds the note.
const NOTE: &str = concat!(
    "insert into idempotency as known (workspace_id, caller, route, key, fingerprint, stop_requested_at, expires_at) \
     values ($1, $2, $3, $4, $5, ",
    now!(),
    ", ",
    now!(),
    " + $6) on conflict (workspace_id, caller, route, key) do update \
     set stop_requested_at = coalesce(known.stop_requested_at, excluded.stop_requested_at) \
     where known.expires_at > ",
    now!(),
    " returning run_id, stop_requested_at, expires_at"
);
/// An expired key is as good as none.
const NOTE_ANEW: &str = concat!(
    "update idempotency set fingerprint = $5, run_id = null, answer = null, stop_requested_at = ",
    now!(),
    ", expires_at = ",
    now!(),
    " + $6 where workspace_id = $1 and caller = $2 and route = $3 and key = $4 and expires_at <= ",
    now!(),
    " returning run_id, stop_requested_at, expires_at"
);

pub(super) async fn stop_by_key(
    store: &SqlStore,
    workspace: WorkspaceId,
    key: KeyName<'_>,
) -> Result<KeyStop> {
    let [caller, route, key] = [key.caller, key.route, key.key].map(ToOwned::to_owned);
    let store = store.clone();
    to_its_end(async move {
        for sql in [NOTE, NOTE_ANEW, NOTE] {
            let row = sqlx::query(sql)
                .bind(workspace.0)
                .bind(&caller)
                .bind(&route)
                .bind(&key)
                .bind(Vec::<u8>::new())
                .bind(IDEMPOTENCY_KEPT_MS)
                .fetch_optional(store.writer())
                .await?;
            let Some(row) = row else { continue };
            let run: Option<Uuid> = row.try_get("run_id")?;
            if let Some(run) = run {
                return stop_run(&store, workspace, run.into()).await.map(KeyStop::Known);
            }
            let requested_at: Millis = get(&row, "stop_requested_at")?;
            return Ok(KeyStop::Noted { requested_at, expires_at: get(&row, "expires_at")? });
        }
        Err(StoreError::Conflict("idempotency".to_owned()))
    })
    .await
}
