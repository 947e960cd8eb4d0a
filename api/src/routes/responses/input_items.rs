//! `GET /v1/responses/{id}/input_items`: what the response was asked with.

use axum::{Json, extract::State};
use serde::Deserialize;
use serde_json::Value;

use super::{ResponseId, list as page, response};
use crate::{
    auth::Viewer, error::ApiError, extract::Params, page::check_limit, state::AppState,
    views::responses::input_items,
};

const DEFAULT_LIMIT: u32 = 20;
const MAX_LIMIT: u32 = 100;

/// Which items, in which order. Parameters that are of no use here are let through.
#[derive(Debug, Deserialize)]
pub(crate) struct ListItems {
    limit: Option<u32>,
    #[serde(default)]
    pub(crate) order: Order,
    /// The last item that the client has seen.
    pub(crate) after: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Order {
    Asc,
    #[default]
    Desc,
}

impl ListItems {
    pub(crate) fn limit(&self) -> Result<usize, ApiError> {
        check_limit(self.limit, DEFAULT_LIMIT, MAX_LIMIT).map(|limit| limit as usize)
    }
}

pub(super) async fn list(
    State(state): State<AppState>,
    Viewer(caller): Viewer,
    ResponseId(id): ResponseId,
    Params(query): Params<ListItems>,
) -> Result<Json<Value>, ApiError> {
    let limit = query.limit()?;
    let (run, _) = response(&state, caller.workspace_id, id).await?;
    let input = state.store.input(caller.workspace_id, id).await?;
    let mut items = input_items(run.user_message_id, &input.parts);
    if query.order == Order::Desc {
        items.reverse();
    }
    if let Some(after) = &query.after {
        let seen = items.iter().position(|item| item["id"] == **after);
        let seen = seen.ok_or_else(|| ApiError::parameter("after", "names no item of this list"))?;
        items.drain(..=seen);
    }
    let has_more = items.len() > limit;
    items.truncate(limit);
    Ok(page(&items, has_more))
}
