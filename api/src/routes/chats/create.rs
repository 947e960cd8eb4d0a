//! `POST /v1/chats`.

use axum::{
    Json,
    extract::State,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use longhaul_shared::store::NewChat;
use serde::Deserialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::{check_metadata, check_text};
use crate::{
    auth::Operator, error::ApiError, extract::JsonBody, openapi::Failures, state::AppState,
    views::chat::ChatView,
};

/// A new chat. Everything may be left out.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct CreateChatBody {
    title: Option<String>,
    /// The agent that answers when a submission names none.
    agent: Option<String>,
    /// An external thing that the conversation is about.
    context_ref: Option<String>,
    /// An object, stored as it is.
    #[schema(value_type = Option<std::collections::BTreeMap<String, Value>>)]
    metadata: Option<Map<String, Value>>,
}

/// Create a chat
#[utoipa::path(
    post,
    path = "/v1/chats",
    tag = "chats",
    request_body = CreateChatBody,
    responses((status = 201, description = "Created", body = ChatView), Failures)
)]
pub(crate) async fn create_chat(
    State(state): State<AppState>,
    Operator(caller): Operator,
    JsonBody { value: body, .. }: JsonBody<CreateChatBody>,
) -> Result<Response, ApiError> {
    check_text("/title", body.title.as_ref())?;
    check_text("/agent", body.agent.as_ref())?;
    check_text("/contextRef", body.context_ref.as_ref())?;
    let new = NewChat {
        title: body.title,
        agent: body.agent,
        context_ref: body.context_ref,
        metadata: check_metadata(body.metadata)?,
        created_by: Some(caller.name),
        imported: vec![],
    };
    let chat = state.store.create_chat(caller.workspace_id, new).await?;
    let location = HeaderValue::from_str(&format!("/v1/chats/{}", chat.id)).expect("an id is ASCII");
    Ok((StatusCode::CREATED, [(header::LOCATION, location)], Json(ChatView::from(chat))).into_response())
}
