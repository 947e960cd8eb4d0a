//! `DELETE /v1/responses/{id}`.

use axum::{Json, extract::State};
use longhaul_shared::admission::delete_run;
use serde_json::{Value, json};

use super::{ResponseId, response};
use crate::{auth::Admin, error::ApiError, state::AppState, views::responses::response_id};

pub(super) async fn delete(
    State(state): State<AppState>,
    Admin(caller): Admin,
    ResponseId(id): ResponseId,
) -> Result<Json<Value>, ApiError> {
    response(&state, caller.workspace_id, id).await?;
    delete_run(&*state.store, &*state.bus, caller.workspace_id, id).await?;
    Ok(Json(json!({"id": response_id(id), "object": "response", "deleted": true})))
}
