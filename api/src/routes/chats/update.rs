//! `PATCH /v1/chats/{chatId}`: absent keeps, null clears, a value replaces.

#![expect(clippy::option_option, reason = "a field may be absent, null or a value")]

use axum::{Json, extract::State};
use longhaul_shared::{domain::ids::ChatId, store::ChatPatch};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::{check_metadata, check_text};
use crate::{
    auth::Operator,
    error::ApiError,
    extract::{JsonBody, PathId},
    openapi::Failures,
    state::AppState,
    views::chat::ChatView,
};

/// Changes of a chat: absent keeps, null clears, a value replaces.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct UpdateChatBody {
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Option<String>)]
    title: Option<Option<String>>,
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Option<String>)]
    agent: Option<Option<String>>,
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Option<String>)]
    context_ref: Option<Option<String>>,
    /// Replaces the whole object.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Option<std::collections::BTreeMap<String, Value>>)]
    metadata: Option<Option<Map<String, Value>>>,
}

/// Tells a field that is null from one that is absent.
fn present<'de, T: Deserialize<'de>, D: Deserializer<'de>>(input: D) -> Result<Option<Option<T>>, D::Error> {
    Option::<T>::deserialize(input).map(Some)
}

/// Change a chat
#[utoipa::path(
    patch,
    path = "/v1/chats/{chatId}",
    tag = "chats",
    params(("chatId" = uuid::Uuid, Path)),
    request_body = UpdateChatBody,
    responses((status = 200, description = "The changed chat", body = ChatView), Failures)
)]
pub(crate) async fn update_chat(
    State(state): State<AppState>,
    Operator(caller): Operator,
    PathId(id): PathId<ChatId>,
    JsonBody { value: body, .. }: JsonBody<UpdateChatBody>,
) -> Result<Json<ChatView>, ApiError> {
    check_text("/title", body.title.iter().flatten().next())?;
    check_text("/agent", body.agent.iter().flatten().next())?;
    check_text("/contextRef", body.context_ref.iter().flatten().next())?;
    let patch = ChatPatch {
        title: body.title,
        agent: body.agent,
        context_ref: body.context_ref,
        metadata: body.metadata.map(check_metadata).transpose()?,
    };
    let chat = state.store.update_chat(caller.workspace_id, id, patch).await?;
    Ok(Json(chat.into()))
}
