//! `GET /v1/chats/{chatId}/run`: what a page asks first when it comes back.

use axum::{Json, extract::State};
use longhaul_shared::domain::ids::ChatId;
use serde::Serialize;
use utoipa::ToSchema;

use super::messages::render;
use crate::{
    auth::Viewer,
    error::ApiError,
    extract::PathId,
    openapi::Failures,
    state::AppState,
    views::{message::MessageView, run::RunView},
};

/// The chat's latest run, active or over, with its answer. Both are null in a chat without a run.
#[derive(Serialize, ToSchema)]
pub(crate) struct ChatRun {
    run: Option<RunView>,
    message: Option<MessageView>,
}

/// Read a chat's latest run with its answer
///
/// To go on live, follow `run.eventsUrl` after `message.lastSeq`.
#[utoipa::path(
    get,
    path = "/v1/chats/{chatId}/run",
    tag = "chats",
    params(("chatId" = uuid::Uuid, Path)),
    responses((status = 200, description = "The latest run", body = ChatRun), Failures)
)]
pub(crate) async fn get_chat_run(
    State(state): State<AppState>,
    Viewer(caller): Viewer,
    PathId(id): PathId<ChatId>,
) -> Result<Json<ChatRun>, ApiError> {
    state.store.chat(caller.workspace_id, id).await?;
    let Some(run) = state.store.latest_run(caller.workspace_id, id).await? else {
        return Ok(Json(ChatRun { run: None, message: None }));
    };
    let blocked_by = state.store.blocked_by(&run).await?;
    let answer = state.store.message(caller.workspace_id, run.assistant_message_id).await?;
    let message = render(&state, caller.workspace_id, vec![answer]).await?.pop();
    Ok(Json(ChatRun { run: Some(RunView::from(run).blocked_by(blocked_by)), message }))
}
