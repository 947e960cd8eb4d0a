//! `POST /v1/runs`: the way in.

use axum::{extract::State, http::HeaderMap, response::Response};
use longhaul_shared::domain::ids::ChatId;

use crate::{
    auth::Operator,
    error::{ApiError, Code},
    extract::{JsonBody, parse_id},
    openapi::Failures,
    routes::submission::{Origin, SUBMIT_RUN, SubmissionAnswer, SubmissionBody, accept},
    state::AppState,
};

/// Submit a run
///
/// After 202 the run reaches exactly one end, whatever happens to the caller or to a server.
#[utoipa::path(
    post,
    path = "/v1/runs",
    tag = "runs",
    params(("Idempotency-Key" = Option<String>, Header, description = "Makes a repeat answer like the first call; at most 255 characters")),
    request_body = SubmissionBody,
    responses((status = 202, description = "Admitted", body = SubmissionAnswer), Failures)
)]
pub(crate) async fn create_run(
    State(state): State<AppState>,
    Operator(caller): Operator,
    headers: HeaderMap,
    JsonBody { value: body, fingerprint }: JsonBody<SubmissionBody>,
) -> Result<Response, ApiError> {
    // A chat that cannot exist is answered like one that does not.
    let chat_id =
        body.chat_id.as_deref().map(|text| parse_id::<ChatId>(text).ok_or(Code::NotFound)).transpose()?;
    let origin = Origin { caller, headers: &headers, route: SUBMIT_RUN, chat_id, fingerprint };
    accept(&state, origin, body).await
}
