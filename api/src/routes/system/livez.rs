//! `GET /livez`: the process turns. It asks nobody else.

use axum::Json;
use serde::Serialize;
use utoipa::ToSchema;

#[derive(Serialize, ToSchema)]
pub(crate) struct Liveness {
    /// Always `alive`.
    status: &'static str,
}

/// Does the process turn?
#[utoipa::path(
    get,
    path = "/livez",
    tag = "system",
    security(()),
    responses((status = 200, description = "It does", body = Liveness))
)]
pub(crate) async fn livez() -> Json<Liveness> {
    Json(Liveness { status: "alive" })
}
