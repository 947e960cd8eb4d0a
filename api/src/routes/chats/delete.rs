//! `DELETE /v1/chats/{chatId}`: gone for readers at once, and its active run is stopped.

use axum::{extract::State, http::StatusCode};
use longhaul_shared::{admission::delete_chat as delete, domain::ids::ChatId};

use crate::{auth::Admin, error::ApiError, extract::PathId, openapi::Failures, state::AppState};

/// Delete a chat
#[utoipa::path(
    delete,
    path = "/v1/chats/{chatId}",
    tag = "chats",
    params(("chatId" = uuid::Uuid, Path)),
    responses((status = 204, description = "Deleted"), Failures)
)]
pub(crate) async fn delete_chat(
    State(state): State<AppState>,
    Admin(caller): Admin,
    PathId(id): PathId<ChatId>,
) -> Result<StatusCode, ApiError> {
    delete(&*state.store, &*state.bus, caller.workspace_id, id).await?;
    Ok(StatusCode::NO_CONTENT)
}
