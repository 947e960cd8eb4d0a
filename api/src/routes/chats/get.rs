//! `GET /v1/chats/{chatId}`.

use axum::{Json, extract::State};
use longhaul_shared::domain::ids::ChatId;

use crate::{
    auth::Viewer, error::ApiError, extract::PathId, openapi::Failures, state::AppState, views::chat::ChatView,
};

/// Read a chat
#[utoipa::path(
    get,
    path = "/v1/chats/{chatId}",
    tag = "chats",
    params(("chatId" = uuid::Uuid, Path)),
    responses((status = 200, description = "The chat", body = ChatView), Failures)
)]
pub(crate) async fn get_chat(
    State(state): State<AppState>,
    Viewer(caller): Viewer,
    PathId(id): PathId<ChatId>,
) -> Result<Json<ChatView>, ApiError> {
    let chat = state.store.chat(caller.workspace_id, id).await?;
    Ok(Json(chat.into()))
}
