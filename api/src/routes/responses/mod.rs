//! What OpenAI's SDKs call: a response is a run, and its stream is a view of the run's log.

mod cancel;
mod create;
mod delete;
mod history;
mod input;
mod input_items;
mod references;
mod retrieve;
mod wish;

use axum::{
    Json, Router,
    body::Body,
    extract::FromRequestParts,
    http::{header, request::Parts},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use bytes::Bytes;
use futures::StreamExt;
use longhaul_shared::{
    domain::{
        ids::{RunId, WorkspaceId},
        run::Run,
    },
    store::LogCursor,
    tail::Slice,
};
use serde_json::Value;

use super::{
    found,
    sse::{self, UNBUFFERED, View},
};
use crate::{
    dialect::RESPONSES,
    error::{ApiError, Code},
    state::AppState,
    views::responses::{DONE, Encoder, Frames, Head, Item, run_of},
};

pub(super) use input::{Sent, read_items};
pub(super) use input_items::{ListItems, Order};
pub(super) use wish::check_metadata;

pub(crate) fn routes() -> Router<AppState> {
    Router::new()
        .route(RESPONSES, post(create::create))
        .route("/v1/responses/{id}", get(retrieve::retrieve).delete(delete::delete))
        .route("/v1/responses/{id}/cancel", post(cancel::cancel))
        .route("/v1/responses/{id}/input_items", get(input_items::list))
}

/// The run that a path names as a response.
pub(super) struct ResponseId(RunId);

impl FromRequestParts<AppState> for ResponseId {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, ApiError> {
        let path = axum::extract::Path::<String>::from_request_parts(parts, state).await;
        let id = path.map(|path| path.0).unwrap_or_default();
        run_of(&id).map(Self).ok_or_else(not_found)
    }
}

fn not_found() -> ApiError {
    ApiError::new(Code::NotFound, "there is no such response")
}

/// The response, whatever its creator wants to be found after its end.
async fn any_response(
    state: &AppState,
    workspace: WorkspaceId,
    run_id: RunId,
) -> Result<(Run, Head), ApiError> {
    let run = found(state.store.run(workspace, run_id).await)?.ok_or_else(not_found)?;
    let head = head_of(state, &run).await?;
    Ok((run, head))
}

/// The response, unless its creator did not want it to be found after its end.
async fn response(state: &AppState, workspace: WorkspaceId, run_id: RunId) -> Result<(Run, Head), ApiError> {
    let (run, head) = any_response(state, workspace, run_id).await?;
    if run.status.is_terminal() && !head.is_kept() {
        return Err(not_found());
    }
    Ok((run, head))
}

async fn head_of(state: &AppState, run: &Run) -> Result<Head, ApiError> {
    let asked = state.store.input(run.workspace_id, run.id).await?.asked;
    Ok(Head::new(run, asked.unwrap_or_default()))
}

/// The object as the log of a run that is over has it.
async fn ended(state: &AppState, run: &Run, head: Head) -> Result<Value, ApiError> {
    Ok(encoded(state, run.workspace_id, run.id, head).await?.response())
}

/// The whole log of a run that is over.
async fn encoded(
    state: &AppState,
    workspace_id: WorkspaceId,
    run_id: RunId,
    head: Head,
) -> Result<Encoder, ApiError> {
    let cursor = LogCursor { workspace_id, run_id, after: 0 };
    let mut log = Box::pin(state.tails.replay(cursor));
    let mut encoder = Encoder::new(head);
    while let Some(slice) = log.next().await {
        encoder.push_all(&slice?, &mut Frames::none());
    }
    Ok(encoder)
}

/// The output of a run that is over, even of a deleted one.
pub(super) async fn outputs_of(
    state: &AppState,
    workspace: WorkspaceId,
    run_id: RunId,
) -> Result<Vec<Item>, ApiError> {
    Ok(encoded(state, workspace, run_id, Head::bare(run_id)).await?.output().cloned().collect())
}

/// The events of one response.
struct Events {
    encoder: Encoder,
    frames: Frames,
}

impl View for Events {
    const OPENING: &'static str = "";
    const CLOSING: &'static str = DONE;

    fn render(&mut self, slice: &Slice) -> Bytes {
        self.encoder.push_all(slice, &mut self.frames);
        self.frames.take()
    }
}

/// The events of the response from number `first` on.
fn stream(state: &AppState, run: &Run, head: Head, first: u64) -> Response {
    sse::respond(state, run, 0, Events { encoder: Encoder::new(head), frames: Frames::from(first) })
}

/// The finished object, and white space until then, so that nobody takes a long run for a dead connection.
struct Finished(Encoder);

impl View for Finished {
    const OPENING: &'static str = "";
    const CLOSING: &'static str = "";
    const SIGN_OF_LIFE: &'static str = "\n";

    fn render(&mut self, slice: &Slice) -> Bytes {
        self.0.push_all(slice, &mut Frames::none());
        if slice.is_end() { Bytes::from(self.0.response().to_string()) } else { Bytes::new() }
    }
}

/// The response when it is over.
fn wait(state: &AppState, run: &Run, head: Head) -> Response {
    let body: Body = sse::body(state, run, 0, Finished(Encoder::new(head)));
    ([(header::CONTENT_TYPE, "application/json")], UNBUFFERED, body).into_response()
}

/// A list as OpenAI's SDKs page through it.
pub(super) fn list(data: &[Value], has_more: bool) -> Json<Value> {
    let id = |item: Option<&Value>| item.map_or(Value::Null, |item| item["id"].clone());
    Json(serde_json::json!({
        "object": "list",
        "first_id": id(data.first()),
        "last_id": id(data.last()),
        "data": data,
        "has_more": has_more,
    }))
}
