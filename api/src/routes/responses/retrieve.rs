//! `GET /v1/responses/{id}`: the object, or its events from any number on.

use axum::{
    Json,
    extract::State,
    http::{HeaderName, HeaderValue},
    response::{IntoResponse, Response},
};
use longhaul_shared::domain::{
    ids::{RunId, WorkspaceId},
    run::Run,
};
use serde::Deserialize;

use super::{ResponseId, any_response, ended, not_found, response, stream};
use crate::{
    auth::Viewer,
    error::ApiError,
    extract::Params,
    state::AppState,
    views::responses::{Head, Outcome, Status},
};

/// When to look again at a response that is not over.
const POLL_AFTER_MS: &str = "1000";
/// How long the stream of a response that is not kept can be read behind its end.
const RESUMED_WITHIN_MS: i64 = 600_000;

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
    if query.stream == Some(true) {
        let (run, head) = streamed(&state, caller.workspace_id, id).await?;
        let first = query.starting_after.map_or(0, |seen| seen.saturating_add(1));
        return Ok(stream(&state, &run, head, first));
    }
    let (run, head) = response(&state, caller.workspace_id, id).await?;
    if run.status.is_terminal() {
        return Ok(Json(ended(&state, &run, head).await?).into_response());
    }
    let status = if run.started_at.is_some() { Status::InProgress } else { Status::Queued };
    let poll = (HeaderName::from_static("openai-poll-after-ms"), HeaderValue::from_static(POLL_AFTER_MS));
    Ok(([poll], Json(head.response(status, &[], &Outcome::default()))).into_response())
}

/// The response, and for a while behind its end also one that is not kept: a client that was cut off reads on.
async fn streamed(state: &AppState, workspace: WorkspaceId, id: RunId) -> Result<(Run, Head), ApiError> {
    let (run, head) = any_response(state, workspace, id).await?;
    if let Some(over) = run.finished_at.filter(|_| !head.is_kept())
        && state.store.now().await? > over + RESUMED_WITHIN_MS
    {
        return Err(not_found());
    }
    Ok((run, head))
}
