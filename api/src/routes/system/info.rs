//! `GET /v1/info`.

use axum::{Json, extract::State};
use longhaul_shared::config::AuthMode;
use serde::Serialize;
use utoipa::ToSchema;

use crate::{auth::Viewer, error::ApiError, openapi::Failures, state::AppState};

/// What is running here.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Info {
    version: &'static str,
    /// How it was started, such as `dev` or `api`.
    mode: &'static str,
    /// `postgres` or `sqlite`.
    store: &'static str,
    /// Hints travel at once; else readers fall back to asking the database.
    bus_connected: bool,
    /// `required`, or `loopback` where calls from this machine need no key.
    auth: &'static str,
    agents: Vec<String>,
}

/// Read what is running here
#[utoipa::path(
    get,
    path = "/v1/info",
    tag = "system",
    responses((status = 200, description = "About this server", body = Info), Failures)
)]
pub(crate) async fn get_info(State(state): State<AppState>, _: Viewer) -> Result<Json<Info>, ApiError> {
    Ok(Json(Info {
        version: state.settings.version,
        mode: state.settings.mode,
        store: state.store.kind(),
        bus_connected: state.bus.is_connected(),
        auth: match state.settings.auth {
            AuthMode::Required => "required",
            AuthMode::Loopback => "loopback",
        },
        agents: state.agents.names().map(ToOwned::to_owned).collect(),
    }))
}
