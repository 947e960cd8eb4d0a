//! The HTTP API: admission, reads, tails. Stateless; it never runs an agent.
//!
//! - `routes`: every path on one screen, one endpoint a file.
//! - `auth`: who calls. `rate_limit`: how often.
//! - `context`: what every call gets: an id, a rendered failure.
//! - `extract`, `page`, `cursor`: requests into values, lists into pages.
//! - `code`, `error`, `dialect`: what a caller is told when a call fails.
//! - `views`: pure encoders of rows and of the log.
//! - `openapi`: the API's description, made from the handlers.
//! - `server`: connections, and how they end. `stall`: readers that stop reading.

mod auth;
mod code;
mod context;
mod cursor;
mod dialect;
mod error;
mod extract;
mod key_cache;
mod openapi;
mod page;
mod rate_limit;
mod routes;
mod server;
mod stall;
mod state;
mod views;

#[cfg(test)]
mod tests;

pub use auth::DEFAULT_WORKSPACE;
pub use openapi::openapi_json;
pub use server::serve;
pub use state::{AppState, Parts, Settings};

use axum::{Router, http::HeaderValue, middleware};
use tower_http::cors::{AllowHeaders, AllowMethods, AllowOrigin, CorsLayer, ExposeHeaders};

use crate::{
    error::{ApiError, Code},
    routes::{foreign, open, v1},
};

/// All calls: what tests mount and `serve` serves.
pub fn router(state: AppState) -> Router {
    let (routes, _) = v1(&state).merge(open()).split_for_parts();
    let routes = routes.merge(foreign(&state));
    let cors = cors(&state.settings.cors_origins);
    routes
        .fallback(|| async { ApiError::from(Code::NotFound) })
        .layer(middleware::from_fn_with_state(state.tasks.clone(), context::wrap))
        .layer(cors)
        .with_state(state)
}

/// Pages from these origins may call with any header and read ours.
fn cors(origins: &[String]) -> CorsLayer {
    if origins.is_empty() {
        return CorsLayer::new();
    }
    let allowed = if origins.iter().any(|origin| origin == "*") {
        AllowOrigin::any()
    } else {
        AllowOrigin::list(origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok()))
    };
    CorsLayer::new()
        .allow_origin(allowed)
        .allow_methods(AllowMethods::mirror_request())
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers(ExposeHeaders::any())
}
