//! `GET /v1/chats/{chatId}/messages`: oldest first, a live answer included.

use std::collections::HashMap;

use axum::{
    extract::{OriginalUri, State},
    response::Response,
};
use longhaul_shared::{
    domain::{
        ids::{ChatId, MessageId, RunId, WorkspaceId},
        message::{Message, Role},
    },
    store::{Listed, StoreError},
};
use serde::Deserialize;
use utoipa::IntoParams;

use crate::{
    auth::Viewer,
    error::ApiError,
    extract::{Params, PathId},
    openapi::Failures,
    page::{self, Paged},
    state::AppState,
    views::message::MessageView,
};

const LIST: &str = "messages";

#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct ListMessages {
    #[param(minimum = 1, maximum = 200, default = 50)]
    limit: Option<u32>,
    /// From the previous page.
    cursor: Option<String>,
}

/// List a chat's messages, oldest first
#[utoipa::path(
    get,
    path = "/v1/chats/{chatId}/messages",
    tag = "chats",
    params(("chatId" = uuid::Uuid, Path), ListMessages),
    responses((status = 200, description = "A page", body = Paged<MessageView>), Failures)
)]
pub(crate) async fn list_messages(
    State(state): State<AppState>,
    Viewer(caller): Viewer,
    PathId(id): PathId<ChatId>,
    OriginalUri(uri): OriginalUri,
    Params(query): Params<ListMessages>,
) -> Result<Response, ApiError> {
    let page = page::requested(LIST, query.limit, query.cursor.as_deref())?;
    state.store.chat(caller.workspace_id, id).await?;
    let Listed { items, next } = state.store.messages(caller.workspace_id, id, page).await?;
    let items = render(&state, caller.workspace_id, items).await?;
    Ok(page::answer(LIST, &uri, Listed { items, next }, |view| view))
}

/// The messages with the parts of their answers, for all of them with one read.
pub(super) async fn render(
    state: &AppState,
    workspace: WorkspaceId,
    messages: Vec<Message>,
) -> Result<Vec<MessageView>, StoreError> {
    let runs: Vec<RunId> = messages
        .iter()
        .filter(|message| message.role == Role::Assistant)
        .filter_map(|message| message.run_id)
        .collect();
    let mut records = HashMap::new();
    if !runs.is_empty() {
        let read = state.store.records(workspace, &runs).await?;
        records.extend(read.into_iter().map(|record| (record.run_id, record)));
    }
    let names: HashMap<MessageId, String> =
        messages.iter().map(|message| (message.id, message.public_id())).collect();
    let mut views = Vec::with_capacity(messages.len());
    for message in messages {
        let in_reply_to = match message.in_reply_to {
            None => None,
            Some(id) => Some(match names.get(&id) {
                Some(name) => name.clone(),
                // Where a page begins with an answer: at most once.
                None => state.store.message(workspace, id).await?.public_id(),
            }),
        };
        let record =
            message.run_id.filter(|_| message.role == Role::Assistant).and_then(|run| records.remove(&run));
        views.push(MessageView::new(message, record, in_reply_to));
    }
    Ok(views)
}
