//! `POST /v1/responses/{id}/cancel`. A run that is over stays as it ended, and telling so is no failure: clients repeat a
//! cancel whose answer they lost.

use std::time::Duration;

use axum::{Json, extract::State};
use longhaul_shared::admission::stop;
use serde_json::Value;

use super::{ResponseId, any_response, ended};
use crate::{
    auth::Operator,
    error::ApiError,
    routes::runs::stop::wait_for_end,
    state::AppState,
    views::responses::{Outcome, Status},
};

/// For the worker to follow. Whoever does not in that time is overruled by then.
const PATIENCE: Duration = Duration::from_secs(9);

pub(super) async fn cancel(
    State(state): State<AppState>,
    Operator(caller): Operator,
    ResponseId(id): ResponseId,
) -> Result<Json<Value>, ApiError> {
    let (mut run, head) = any_response(&state, caller.workspace_id, id).await?;
    if !run.status.is_terminal() {
        run = stop(&*state.store, &*state.bus, caller.workspace_id, id).await?.run().clone();
    }
    if !run.status.is_terminal() {
        run = wait_for_end(&state, run, PATIENCE).await?;
    }
    if run.status.is_terminal() {
        return Ok(Json(ended(&state, &run, head).await?));
    }
    Ok(Json(head.response(Status::InProgress, &[], &Outcome::default())))
}
