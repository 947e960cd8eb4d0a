//! `GET /api/chat/{id}/stream`: the run that is under way in a chat, from its first chunk, or a run from any chunk on.

use axum::{
    extract::{Path, State},
    http::{HeaderName, HeaderValue, StatusCode},
    response::{IntoResponse, Response},
};
use futures::StreamExt;
use longhaul_shared::{domain::run::Run, store::LogCursor};
use serde::Deserialize;

use super::{Chunks, Named, named, stream};
use crate::{auth::Viewer, error::ApiError, extract::Params, routes::found, state::AppState};

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Resume {
    /// The first chunk that is wanted, from 0; below 0 it counts from the end.
    start_index: Option<i64>,
}

pub(super) async fn resume(
    State(state): State<AppState>,
    Viewer(caller): Viewer,
    Path(id): Path<String>,
    Params(query): Params<Resume>,
) -> Result<Response, ApiError> {
    let run = match named(&state, caller.workspace_id, id).await? {
        Named::Run(run) => Some(*run),
        Named::Chat(chat) => match chat.active_run_id {
            Some(run_id) => found(state.store.run(caller.workspace_id, run_id).await)?,
            None => None,
        },
        Named::Nothing => None,
    };
    // A page that has nothing to resume is not to be told of a failure.
    let Some(run) = run else { return Ok(StatusCode::NO_CONTENT.into_response()) };
    match query.start_index {
        None => Ok(stream(&state, &run, 0)),
        Some(start) if start >= 0 => Ok(stream(&state, &run, start as usize)),
        Some(back) => {
            let count = count(&state, &run).await?;
            let back = usize::try_from(back.unsigned_abs()).unwrap_or(usize::MAX);
            let mut response = stream(&state, &run, count.saturating_sub(back));
            // -1: there is none yet.
            let last = HeaderValue::from(count as i64 - 1);
            response.headers_mut().insert(HeaderName::from_static("x-workflow-stream-tail-index"), last);
            Ok(response)
        }
    }
}

/// How many chunks the run has by now.
async fn count(state: &AppState, run: &Run) -> Result<usize, ApiError> {
    let cursor = LogCursor { workspace_id: run.workspace_id, run_id: run.id, after: 0 };
    let mut log = Box::pin(state.tails.replay(cursor));
    let (mut chunks, mut count) = (Chunks::new(run, 0), 0);
    while let Some(slice) = log.next().await {
        for (_, event) in slice?.events() {
            chunks.encoder.push(event, &mut chunks.new);
        }
        count += chunks.new.len();
        chunks.new.clear();
    }
    Ok(count)
}
