//! `POST /v1/runs`: the way in.

use axum::{extract::State, http::HeaderMap, response::Response};
use longhaul_shared::domain::ids::ChatId;
use serde::Deserialize;
use utoipa::ToSchema;

use crate::{
    auth::Operator,
    error::{ApiError, Code},
    extract::{JsonBody, parse_id},
    openapi::Failures,
    routes::submission::{InputSchema, LimitsBody, Origin, SubmissionAnswer, SubmissionBody, accept},
    state::AppState,
};
use longhaul_shared::store::IfBusy;
use serde_json::{Map, Value};

/// What to run, and where.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct CreateRunBody {
    /// Who answers. May be left out where the chat has an agent of its own.
    agent: Option<String>,
    #[schema(value_type = InputSchema)]
    input: Value,
    /// The chat to go on with. Absent: a new one.
    #[schema(value_type = Option<uuid::Uuid>)]
    chat_id: Option<String>,
    /// A name for the message, unique in its chat. A repeat gets the first one's run.
    message_id: Option<String>,
    /// What to do while another run holds the chat: `reject` (default) or `enqueue`.
    #[schema(schema_with = crate::routes::submission::if_busy)]
    if_busy: Option<IfBusy>,
    /// Start at this time (RFC 3339). Not together with `delay`.
    #[schema(format = DateTime)]
    run_at: Option<String>,
    /// Start after this duration, such as "30s".
    delay: Option<String>,
    limits: Option<LimitsBody>,
    #[serde(default)]
    tags: Vec<String>,
    /// An object, stored as it is.
    #[schema(value_type = Option<std::collections::BTreeMap<String, Value>>)]
    metadata: Option<Map<String, Value>>,
}

/// Submit a run
///
/// After 202 the run reaches exactly one end, whatever happens to the caller or to a server.
#[utoipa::path(
    post,
    path = "/v1/runs",
    tag = "runs",
    request_body = CreateRunBody,
    params(("Idempotency-Key" = Option<String>, Header, description = "Makes a repeat answer like the first call; at most 255 characters")),
    responses(
        (status = 202, description = "Admitted", body = SubmissionAnswer),
        Failures,
    )
)]
pub(crate) async fn create_run(
    State(state): State<AppState>,
    Operator(caller): Operator,
    headers: HeaderMap,
    JsonBody { value: body, fingerprint }: JsonBody<CreateRunBody>,
) -> Result<Response, ApiError> {
    // A chat that cannot exist is answered like one that does not.
    let chat_id =
        body.chat_id.as_deref().map(|text| parse_id::<ChatId>(text).ok_or(Code::NotFound)).transpose()?;
    let origin = Origin { caller, headers: &headers, route: "POST /v1/runs", chat_id, fingerprint };
    let submission = SubmissionBody {
        agent: body.agent,
        input: body.input,
        message_id: body.message_id,
        if_busy: body.if_busy,
        run_at: body.run_at,
        delay: body.delay,
        limits: body.limits,
        tags: body.tags,
        metadata: body.metadata,
    };
    accept(&state, origin, submission).await
}
