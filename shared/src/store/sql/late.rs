//! What a call came to when nobody waited for it any more: kept beside its settled state, once.

use super::SqlStore;
use crate::{
    domain::{
        ids::WorkspaceId,
        tool::{LateResult, ToolCall},
    },
    store::Result,
};

/// Only whoever sent it last knows what became of a call, however many have held the run since: `call.epoch` is the
/// claim that it was sent under.
pub(super) async fn record_late(
    store: &SqlStore,
    workspace: WorkspaceId,
    call: &ToolCall,
    late: &LateResult,
) -> Result<bool> {
    let done = sqlx::query(concat!(
        "update tool_calls set late_state = $6, late_output = $7, late_error = $8, late_at = ",
        now!(),
        " where workspace_id = $1 and run_id = $2 and step = $3 and call = $4 and dispatched_epoch = $5 \
         and state in ('unknown', 'cancelled') and late_at is null"
    ))
    .bind(workspace.0)
    .bind(call.run_id.0)
    .bind(call.step as i32)
    .bind(call.call as i32)
    .bind(call.epoch)
    .bind(late.state.as_str())
    .bind(&late.output)
    .bind(&late.error)
    .execute(store.reserved())
    .await?;
    Ok(done.rows_affected() == 1)
}
