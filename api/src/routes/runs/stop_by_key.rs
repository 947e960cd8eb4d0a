//! `POST /v1/runs/stop`: for a caller that never saw the answer to its submission and has nothing but its key.

use axum::{
    Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use longhaul_shared::{
    admission,
    domain::ids::Millis,
    store::{KeyName, KeyStop},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::stop::{StopRun, answer};
use crate::{
    auth::Operator,
    error::ApiError,
    extract::{JsonBody, Params},
    openapi::Failures,
    routes::submission::{SUBMIT_RUN, check_key},
    state::AppState,
    views::{run::RunView, time::Timestamp},
};

#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct StopByKey {
    /// What the submission to `POST /v1/runs` carries as `Idempotency-Key`.
    #[schema(min_length = 1, max_length = 255)]
    idempotency_key: String,
}

/// Nobody has submitted with this key. A submission that comes is admitted as a run that is over.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = StopNote)]
pub(crate) struct StopNoteView {
    idempotency_key: String,
    stop_requested_at: Timestamp,
    /// Until then.
    expires_at: Timestamp,
}

/// For the document: one of the two.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
#[schema(as = StopByKeyAnswer)]
#[expect(dead_code, reason = "each is answered by itself")]
pub(crate) enum StopByKeyAnswer {
    Run(Box<RunView>),
    Note(StopNoteView),
}

/// Stop a run by its idempotency key
///
/// The key may be known or still be on its way.
#[utoipa::path(
    post,
    path = "/v1/runs/stop",
    tag = "runs",
    params(StopRun),
    request_body = StopByKey,
    responses(
        (status = 202, description = "The stop is recorded, of the run or of what comes with the key", body = StopByKeyAnswer),
        (status = 200, description = "The run was over already, or ended while this call waited", body = RunView),
        Failures,
    )
)]
pub(crate) async fn stop_run_by_key(
    State(state): State<AppState>,
    Operator(caller): Operator,
    Params(query): Params<StopRun>,
    JsonBody { value: body, .. }: JsonBody<StopByKey>,
) -> Result<Response, ApiError> {
    let wait = query.wait()?;
    let key = check_key(&body.idempotency_key).map_err(|detail| ApiError::body("/idempotencyKey", detail))?;
    let identity = caller.identity();
    let name = KeyName { key, caller: &identity, route: SUBMIT_RUN };
    match admission::stop_by_key(&*state.store, &*state.bus, caller.workspace_id, name).await? {
        KeyStop::Known(outcome) => answer(&state, &outcome, wait).await,
        KeyStop::Noted { requested_at, expires_at } => Ok(noted(key, requested_at, expires_at)),
    }
}

fn noted(key: &str, requested_at: Millis, expires_at: Millis) -> Response {
    let note = StopNoteView {
        idempotency_key: key.to_owned(),
        stop_requested_at: Timestamp(requested_at),
        expires_at: Timestamp(expires_at),
    };
    (StatusCode::ACCEPTED, Json(note)).into_response()
}
