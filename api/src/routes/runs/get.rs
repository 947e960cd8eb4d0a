//! `GET /v1/runs/{runId}`: where it stands, and why it is not moving.

use axum::{Json, extract::State};
use longhaul_shared::domain::ids::RunId;

use crate::{
    auth::Viewer, error::ApiError, extract::PathId, openapi::Failures, state::AppState, views::run::RunView,
};

/// Read a run
#[utoipa::path(
    get,
    path = "/v1/runs/{runId}",
    tag = "runs",
    params(("runId" = uuid::Uuid, Path)),
    responses((status = 200, description = "The run", body = RunView), Failures)
)]
pub(crate) async fn get_run(
    State(state): State<AppState>,
    Viewer(caller): Viewer,
    PathId(id): PathId<RunId>,
) -> Result<Json<RunView>, ApiError> {
    let run = state.store.run(caller.workspace_id, id).await?;
    let blocked_by = state.store.blocked_by(&run).await?;
    Ok(Json(RunView::from(run).blocked_by(blocked_by)))
}
