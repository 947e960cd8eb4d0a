//! `GET /v1/chats`: newest first.

use axum::{
    extract::{OriginalUri, State},
    response::Response,
};
use serde::Deserialize;
use utoipa::IntoParams;

use crate::{
    auth::Viewer,
    error::ApiError,
    extract::Params,
    openapi::Failures,
    page::{self, Paged},
    state::AppState,
    views::chat::ChatView,
};

const LIST: &str = "chats";

#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct ListChats {
    #[param(minimum = 1, maximum = 200, default = 50)]
    limit: Option<u32>,
    /// From the previous page.
    cursor: Option<String>,
}

/// List chats, newest first
#[utoipa::path(
    get,
    path = "/v1/chats",
    tag = "chats",
    params(ListChats),
    responses((status = 200, description = "A page", body = Paged<ChatView>), Failures)
)]
pub(crate) async fn list_chats(
    State(state): State<AppState>,
    Viewer(caller): Viewer,
    OriginalUri(uri): OriginalUri,
    Params(query): Params<ListChats>,
) -> Result<Response, ApiError> {
    let page = page::requested(LIST, query.limit, query.cursor.as_deref())?;
    let listed = state.store.list_chats(caller.workspace_id, page).await?;
    Ok(page::answer(LIST, &uri, listed, ChatView::from))
}
