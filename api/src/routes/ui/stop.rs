//! `POST /api/chat/{id}/stop`: the page's stop button. Closing a connection stops nothing.

use axum::{
    Json,
    extract::{Path, State},
};
use longhaul_shared::admission;
use serde_json::{Value, json};

use super::{Named, named};
use crate::{
    auth::Operator,
    error::{ApiError, Code},
    state::AppState,
};

pub(super) async fn stop(
    State(state): State<AppState>,
    Operator(caller): Operator,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let run_id = match named(&state, caller.workspace_id, id).await? {
        Named::Run(run) => Some(run.id).filter(|_| !run.status.is_terminal()),
        Named::Chat(chat) => chat.active_run_id,
        Named::Nothing => return Err(Code::NotFound.into()),
    };
    if let Some(run_id) = run_id {
        admission::stop(&*state.store, &*state.bus, caller.workspace_id, run_id).await?;
    }
    Ok(Json(json!({"success": true})))
}
