//! `POST /v1/chats/{chatId}/messages`: the same way in as for runs, into this chat.

use axum::{extract::State, http::HeaderMap, response::Response};
use longhaul_shared::domain::ids::ChatId;

use crate::{
    auth::Operator,
    error::ApiError,
    extract::{JsonBody, PathId},
    openapi::Failures,
    routes::submission::{Origin, SubmissionAnswer, SubmissionBody, accept},
    state::AppState,
};

/// Submit a message into a chat
#[utoipa::path(
    post,
    path = "/v1/chats/{chatId}/messages",
    tag = "chats",
    params(
        ("chatId" = uuid::Uuid, Path),
        ("Idempotency-Key" = Option<String>, Header, description = "Makes a repeat answer like the first call; at most 255 characters"),
    ),
    request_body = SubmissionBody,
    responses(
        (status = 202, description = "Admitted", body = SubmissionAnswer),
        Failures,
    )
)]
pub(crate) async fn submit_message(
    State(state): State<AppState>,
    Operator(caller): Operator,
    PathId(id): PathId<ChatId>,
    headers: HeaderMap,
    JsonBody { value: body, fingerprint }: JsonBody<SubmissionBody>,
) -> Result<Response, ApiError> {
    if body.chat_id.as_ref().is_some_and(|chat_id| *chat_id != id.to_string()) {
        return Err(ApiError::body("/chatId", "must be absent or the chat in the path"));
    }
    let route = "POST /v1/chats/{chatId}/messages";
    let origin = Origin { caller, headers: &headers, route, chat_id: Some(id), fingerprint };
    accept(&state, origin, body).await
}
