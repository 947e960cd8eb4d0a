//! `GET /v1/responses/{id}`: the object, or its events from any number on.

use axum::{
    Json,
    extract::State,
    http::{HeaderName, HeaderValue},
    response::{IntoResponse, Response},
};
use serde::Deserialize;

use super::{ResponseId, ended, response, stream};
use crate::{
    auth::Viewer,
    error::ApiError,
    extract::Params,
    state::AppState,
    views::responses::{Outcome, Status},
};

/// When to look again at a response that is not over.
const POLL_AFTER_MS: &str = "1000";

/// Parameters that are of no use here are let through.
#[derive(Debug, Deserialize)]
pub(super) struct Retrieve {
    stream: Option<bool>,
    /// The last event that the client has seen.
    starting_after: Option<u64>,
}

pub(super) async fn retrieve(
    State(state): State<AppState>,
    Viewer(caller): Viewer,
    ResponseId(id): ResponseId,
    Params(query): Params<Retrieve>,
) -> Result<Response, ApiError> {
    let (run, head) = response(&state, caller.workspace_id, id).await?;
    if query.stream == Some(true) {
        let first = query.starting_after.map_or(0, |seen| seen.saturating_add(1));
        return Ok(stream(&state, &run, head, first));
    }
    if run.status.is_terminal() {
        return Ok(Json(ended(&state, &run, head).await?).into_response());
    }
    let status = if run.started_at.is_some() { Status::InProgress } else { Status::Queued };
    let poll = (HeaderName::from_static("openai-poll-after-ms"), HeaderValue::from_static(POLL_AFTER_MS));
    Ok(([poll], Json(head.response(status, &[], &Outcome::default()))).into_response())
}
