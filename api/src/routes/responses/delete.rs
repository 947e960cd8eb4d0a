//! `DELETE /v1/responses/{id}`. With a response that has a chat of its own goes the chat, unless somebody has gone on with
//! it; what was said in a conversation stays there.

use axum::{Json, extract::State};
use longhaul_shared::admission::{delete_chat, delete_run};
use serde_json::{Value, json};

use super::{ResponseId, response};
use crate::{auth::Admin, error::ApiError, routes::found, state::AppState, views::responses::response_id};

pub(super) async fn delete(
    State(state): State<AppState>,
    Admin(caller): Admin,
    ResponseId(id): ResponseId,
) -> Result<Json<Value>, ApiError> {
    let (run, head) = response(&state, caller.workspace_id, id).await?;
    let (store, bus) = (&*state.store, &*state.bus);
    let newest = state.store.messages_back(caller.workspace_id, run.chat_id, i64::MAX, 1).await?;
    let is_alone = newest.iter().all(|message| message.turn == run.turn);
    if !head.is_in_conversation() && run.turn == 1 && is_alone {
        found(delete_chat(store, bus, caller.workspace_id, run.chat_id).await)?;
    }
    delete_run(store, bus, caller.workspace_id, id).await?;
    Ok(Json(json!({"id": response_id(id), "object": "response", "deleted": true})))
}
