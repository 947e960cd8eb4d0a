//! `POST /v1/runs/{runId}/stop`: the wish to stop is a durable fact when this answers.

use std::{pin::pin, time::Duration};

use axum::{
    Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use futures::StreamExt;
use longhaul_shared::{
    admission::stop,
    domain::{ids::RunId, run::Run},
    store::{LogCursor, StopOutcome},
};
use serde::Deserialize;
use utoipa::IntoParams;

use crate::{
    auth::Operator,
    error::ApiError,
    extract::{Params, PathId},
    openapi::Failures,
    state::AppState,
    views::run::RunView,
};

const MAX_WAIT_SECONDS: u64 = 60;
pub(crate) const MAX_WAIT: Duration = Duration::from_secs(MAX_WAIT_SECONDS);

#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct StopRun {
    /// Seconds to wait for the end.
    #[param(minimum = 0, maximum = 60, default = 0)]
    wait: Option<u64>,
}

impl StopRun {
    pub(super) fn wait(&self) -> Result<Duration, ApiError> {
        let seconds = self.wait.unwrap_or(0);
        if seconds > MAX_WAIT_SECONDS {
            return Err(ApiError::parameter("wait", format!("must be at most {MAX_WAIT_SECONDS}")));
        }
        Ok(Duration::from_secs(seconds))
    }
}

/// Stop a run
///
/// May be repeated. Finished steps are kept.
#[utoipa::path(
    post,
    path = "/v1/runs/{runId}/stop",
    tag = "runs",
    params(("runId" = uuid::Uuid, Path), StopRun),
    responses(
        (status = 202, description = "The stop is recorded", body = RunView),
        (status = 200, description = "The run was over already, or ended while this call waited", body = RunView),
        Failures,
    )
)]
pub(crate) async fn stop_run(
    State(state): State<AppState>,
    Operator(caller): Operator,
    PathId(id): PathId<RunId>,
    Params(query): Params<StopRun>,
) -> Result<Response, ApiError> {
    let wait = query.wait()?;
    let before = state.store.run(caller.workspace_id, id).await?;
    if before.status.is_terminal() {
        return Ok((StatusCode::OK, Json(RunView::from(before))).into_response());
    }
    let outcome = stop(&*state.store, &*state.bus, caller.workspace_id, id).await?;
    answer(&state, &outcome, wait).await
}

/// The run as it is after the stop, or at its end if that comes in time.
pub(super) async fn answer(
    state: &AppState,
    outcome: &StopOutcome,
    wait: Duration,
) -> Result<Response, ApiError> {
    let was_over = matches!(outcome, StopOutcome::AlreadyOver(_));
    let mut run = outcome.run().clone();
    if !wait.is_zero() && !run.status.is_terminal() {
        run = wait_for_end(state, run, wait).await?;
    }
    let is_ok = was_over || (!wait.is_zero() && run.status.is_terminal());
    let status = if is_ok { StatusCode::OK } else { StatusCode::ACCEPTED };
    Ok((status, Json(RunView::from(run))).into_response())
}

/// The run when it is over, or as it is when the time is up or this process ends.
pub(crate) async fn wait_for_end(state: &AppState, run: Run, time: Duration) -> Result<Run, ApiError> {
    let cursor = LogCursor { workspace_id: run.workspace_id, run_id: run.id, after: run.last_seq };
    {
        let mut tail = pin!(state.tails.follow(cursor));
        let end = async { while let Some(Ok(_)) = tail.next().await {} };
        tokio::select! {
            () = end => {}
            () = tokio::time::sleep(time) => {}
            () = state.draining.cancelled() => {}
        }
    }
    Ok(state.store.run(run.workspace_id, run.id).await?)
}
