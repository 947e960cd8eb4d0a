//! What OpenAI's SDKs call a conversation: a chat.

mod items;

use axum::{
    Json, Router,
    extract::{FromRequestParts, Path, State},
    http::request::Parts,
    routing::get,
};
use longhaul_shared::{
    admission::delete_chat,
    domain::{
        chat::Chat,
        ids::{ChatId, WorkspaceId},
        message::Part,
    },
    store::{ChatPatch, NewChat},
};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{
    found,
    responses::{Sent, check_metadata, read_items},
};
use crate::{
    auth::{Admin, Operator, Viewer},
    dialect::CONVERSATIONS,
    error::{ApiError, Code},
    extract::JsonBody,
    state::AppState,
    views::responses::{chat_of, conversation_id, seconds},
};

/// As many as OpenAI takes at once.
const MAX_ITEMS: usize = 20;

pub(crate) fn routes() -> Router<AppState> {
    Router::new()
        .route(CONVERSATIONS, axum::routing::post(create))
        .route("/v1/conversations/{id}", get(retrieve).post(update).delete(delete))
        .route("/v1/conversations/{id}/items", get(items::list).post(items::create))
        .route("/v1/conversations/{id}/items/{item}", get(items::retrieve))
}

/// The chat that a path names as a conversation.
struct ConversationId(ChatId);

impl FromRequestParts<AppState> for ConversationId {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, ApiError> {
        named(parts, state, "id").await.as_deref().and_then(chat_of).map(Self).ok_or_else(not_found)
    }
}

/// The item that a path names.
struct ItemId(String);

impl FromRequestParts<AppState> for ItemId {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, ApiError> {
        named(parts, state, "item").await.map(Self).ok_or_else(not_found)
    }
}

/// The text that stands in the path under that name, if it is text.
async fn named(parts: &mut Parts, state: &AppState, name: &str) -> Option<String> {
    let Path(path) = Path::<Vec<(String, String)>>::from_request_parts(parts, state).await.ok()?;
    path.into_iter().find(|(known, _)| known == name).map(|(_, value)| value)
}

fn not_found() -> ApiError {
    ApiError::new(Code::NotFound, "there is no such conversation")
}

async fn conversation(state: &AppState, workspace: WorkspaceId, id: ChatId) -> Result<Chat, ApiError> {
    found(state.store.chat(workspace, id).await)?.ok_or_else(not_found)
}

fn view(chat: &Chat) -> Json<Value> {
    Json(json!({
        "id": conversation_id(chat.id),
        "object": "conversation",
        "created_at": seconds(chat.created_at),
        "metadata": chat.metadata,
    }))
}

/// Fields that are not known are let through.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Sketch {
    items: Option<Value>,
    metadata: Option<Map<String, Value>>,
}

async fn create(
    State(state): State<AppState>,
    Operator(caller): Operator,
    JsonBody { value: sketch, .. }: JsonBody<Sketch>,
) -> Result<Json<Value>, ApiError> {
    let metadata = check_metadata(sketch.metadata.unwrap_or_default())?;
    let imported = match sketch.items {
        None | Some(Value::Null) => vec![],
        Some(Value::Array(items)) if items.is_empty() => vec![],
        Some(items) => read_parts(items)?,
    };
    let new = NewChat { metadata, created_by: Some(caller.name), imported, ..NewChat::default() };
    Ok(view(&state.store.create_chat(caller.workspace_id, new).await?))
}

/// Items that stand for themselves.
fn read_parts(items: Value) -> Result<Vec<Part>, ApiError> {
    match &items {
        Value::Array(list) if list.len() <= MAX_ITEMS => {}
        _ => return Err(ApiError::body("/items", format!("must be a list of at most {MAX_ITEMS} items"))),
    }
    let items = read_items("/items", items)?.into_iter();
    let part = |item: Sent| match item {
        Sent::Part(part) => Ok(part),
        Sent::Reference(_) => Err(ApiError::body("/items", "references are not taken here")),
    };
    items.map(part).collect()
}

async fn retrieve(
    State(state): State<AppState>,
    Viewer(caller): Viewer,
    ConversationId(id): ConversationId,
) -> Result<Json<Value>, ApiError> {
    Ok(view(&conversation(&state, caller.workspace_id, id).await?))
}

async fn update(
    State(state): State<AppState>,
    Operator(caller): Operator,
    ConversationId(id): ConversationId,
    JsonBody { value: sketch, .. }: JsonBody<Sketch>,
) -> Result<Json<Value>, ApiError> {
    let metadata = sketch.metadata.map(check_metadata).transpose()?;
    let patch = ChatPatch { metadata, ..ChatPatch::default() };
    let chat = found(state.store.update_chat(caller.workspace_id, id, patch).await)?;
    Ok(view(&chat.ok_or_else(not_found)?))
}

async fn delete(
    State(state): State<AppState>,
    Admin(caller): Admin,
    ConversationId(id): ConversationId,
) -> Result<Json<Value>, ApiError> {
    found(delete_chat(&*state.store, &*state.bus, caller.workspace_id, id).await)?.ok_or_else(not_found)?;
    Ok(Json(json!({"id": conversation_id(id), "object": "conversation.deleted", "deleted": true})))
}
