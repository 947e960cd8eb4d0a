//! `GET /v1/runs/{runId}/steps`: the saved steps with their tool calls.

use axum::{Json, extract::State};
use longhaul_shared::domain::ids::RunId;
use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    auth::Viewer,
    error::ApiError,
    extract::PathId,
    openapi::Failures,
    state::AppState,
    views::step::{self, StepView},
};

/// All saved steps of a run, oldest first.
#[derive(Serialize, ToSchema)]
pub(crate) struct StepList {
    data: Vec<StepView>,
}

/// List a run's steps
#[utoipa::path(
    get,
    path = "/v1/runs/{runId}/steps",
    tag = "runs",
    params(("runId" = uuid::Uuid, Path)),
    responses((status = 200, description = "The steps", body = StepList), Failures)
)]
pub(crate) async fn list_steps(
    State(state): State<AppState>,
    Viewer(caller): Viewer,
    PathId(id): PathId<RunId>,
) -> Result<Json<StepList>, ApiError> {
    state.store.run(caller.workspace_id, id).await?;
    let records = state.store.records(caller.workspace_id, &[id]).await?;
    Ok(Json(StepList { data: records.into_iter().flat_map(step::steps).collect() }))
}
