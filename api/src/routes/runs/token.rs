//! `POST /v1/runs/{runId}/token`: lets a page in a browser watch one run, without a key.

use axum::{
    Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use longhaul_shared::{
    api_key::{Key, KeyKind},
    domain::ids::{Millis, RunId},
    store::{KeyRole, NewKey, RunScope},
};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::{
    auth::{ACCESS_TOKEN, Viewer},
    error::ApiError,
    extract::{Params, PathId},
    openapi::Failures,
    state::AppState,
    views::{
        run::events_url,
        time::{Timestamp, parse_duration},
    },
};

const DEFAULT_LIFE: Millis = 60 * 60 * 1000;
const MAX_LIFE: Millis = 24 * DEFAULT_LIFE;

#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct CreateToken {
    /// How long connections may be begun with it, such as "10m"; at most 24 hours.
    #[param(default = "1h")]
    expires_in: Option<String>,
}

/// A token that reads one run. It is shown once, and dies with the key that asked for it.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = RunToken)]
pub(crate) struct RunTokenView {
    token: String,
    #[schema(value_type = uuid::Uuid)]
    run_id: RunId,
    expires_at: Timestamp,
    /// Where an EventSource watches the run, the token included.
    events_url: String,
}

/// Make a token for a browser
///
/// It reads this run, its steps and its events, as `Authorization: Bearer` or as `?access_token=`.
#[utoipa::path(
    post,
    path = "/v1/runs/{runId}/token",
    tag = "runs",
    params(("runId" = uuid::Uuid, Path), CreateToken),
    responses((status = 201, description = "Made", body = RunTokenView), Failures)
)]
pub(crate) async fn create_run_token(
    State(state): State<AppState>,
    Viewer(caller): Viewer,
    PathId(run_id): PathId<RunId>,
    Params(query): Params<CreateToken>,
) -> Result<Response, ApiError> {
    let life = life(query.expires_in.as_deref())?;
    state.store.run(caller.workspace_id, run_id).await?;
    let key = Key::generate(KeyKind::Run);
    let expires_at = state.store.now().await? + life;
    let new = NewKey {
        workspace_id: caller.workspace_id,
        name: &caller.name,
        role: KeyRole::Viewer,
        prefix: key.prefix(),
        digest: &key.digest(),
        last_four: key.last_four(),
        expires_at: Some(expires_at),
        scope: Some(RunScope { run_id, issued_by: caller.key_id }),
    };
    state.store.create_key(new).await?;
    let token = key.reveal().to_owned();
    let events_url = format!("{}?{ACCESS_TOKEN}={token}", events_url(run_id));
    let view = RunTokenView { token, run_id, expires_at: Timestamp(expires_at), events_url };
    Ok((StatusCode::CREATED, Json(view)).into_response())
}

fn life(text: Option<&str>) -> Result<Millis, ApiError> {
    let Some(text) = text else { return Ok(DEFAULT_LIFE) };
    let life = parse_duration(text).map_err(|detail| ApiError::parameter("expiresIn", detail))?;
    if (1_000..=MAX_LIFE).contains(&life) {
        Ok(life)
    } else {
        Err(ApiError::parameter("expiresIn", "must be between 1s and 24h"))
    }
}
