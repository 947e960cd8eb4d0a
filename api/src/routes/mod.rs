//! Every path on one screen.

pub(crate) mod chats;
mod input;
pub(crate) mod runs;
pub(crate) mod sse;
mod submission;
pub(crate) mod system;
pub(crate) mod ui;

use axum::{Router, middleware};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{auth, state::AppState};

/// The calls that need a key.
pub(crate) fn v1(state: &AppState) -> OpenApiRouter<AppState> {
    described_v1().route_layer(middleware::from_fn_with_state(state.clone(), auth::admit))
}

/// The calls of clients that nobody here wrote, behind the same guard. Their contracts are described elsewhere.
pub(crate) fn foreign(state: &AppState) -> Router<AppState> {
    // /api/chat
    ui::routes().route_layer(middleware::from_fn_with_state(state.clone(), auth::admit))
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

/// The calls that anybody may make.
pub(crate) fn open() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        // /livez, /readyz
        .routes(routes!(system::livez::livez))
        .routes(routes!(system::readyz::readyz))
        // /openapi.json
        .routes(routes!(system::openapi::get_openapi))
}
