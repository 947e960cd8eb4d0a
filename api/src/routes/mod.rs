//! Every path on one screen.

pub(crate) mod chats;
mod conversations;
mod input;
mod responses;
pub(crate) mod runs;
pub(crate) mod sse;
mod submission;
pub(crate) mod system;
pub(crate) mod ui;

use axum::{Router, middleware};
use longhaul_shared::store::StoreError;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{auth, error::ApiError, state::AppState};

/// The calls that need a key.
pub(crate) fn v1(state: &AppState) -> OpenApiRouter<AppState> {
    described_v1().route_layer(middleware::from_fn_with_state(state.clone(), auth::admit))
}

/// The calls of clients that nobody here wrote, behind the same guard. Their contracts are described elsewhere.
pub(crate) fn foreign(state: &AppState) -> Router<AppState> {
    // /api/chat, /v1/responses, /v1/conversations
    let routes = ui::routes().merge(responses::routes()).merge(conversations::routes());
    routes.route_layer(middleware::from_fn_with_state(state.clone(), auth::admit))
}

/// The same without their guard, to be described.
pub(crate) fn described_v1() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        // /v1/runs
        .routes(routes!(runs::create::create_run, runs::list::list_runs))
        // /v1/runs/{runId}, …/steps, …/events, …/stop, …/token
        .routes(routes!(runs::get::get_run))
        .routes(routes!(runs::steps::list_steps))
        .routes(routes!(runs::events::stream_events))
        .routes(routes!(runs::stop::stop_run))
        .routes(routes!(runs::token::create_run_token))
        // /v1/runs/stop
        .routes(routes!(runs::stop_by_key::stop_run_by_key))
        // /v1/chats
        .routes(routes!(chats::create::create_chat, chats::list::list_chats))
        // /v1/chats/{chatId}, …/messages, …/run
        .routes(routes!(chats::get::get_chat, chats::update::update_chat, chats::delete::delete_chat))
        .routes(routes!(chats::messages::list_messages, chats::submit::submit_message))
        .routes(routes!(chats::run::get_chat_run))
        // /v1/info
        .routes(routes!(system::info::get_info))
}

/// What is unknown is no failure where it may be.
fn found<T>(result: Result<T, StoreError>) -> Result<Option<T>, ApiError> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(StoreError::NotFound) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The calls that anybody may make.
pub(crate) fn open() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        // /livez, /readyz
        .routes(routes!(system::livez::livez))
        .routes(routes!(system::readyz::readyz))
        // /openapi.json
        .routes(routes!(system::openapi::get_openapi))
}
