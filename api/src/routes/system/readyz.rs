//! `GET /readyz`: whether this process can serve: database reachable and writable, migrations current, not draining.
//!
//! A bus that is down makes everything slower and nothing wrong, so it does not count.

use std::time::Duration;

use axum::{
    Json,
    extract::{RawQuery, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use longhaul_shared::store::StoreError;
use serde::Serialize;
use url::form_urlencoded;
use utoipa::ToSchema;

use crate::{error::ApiError, state::AppState};

const TIMEOUT: Duration = Duration::from_secs(3);

#[derive(Serialize, ToSchema)]
pub(crate) struct Readiness {
    /// `ready` or `not ready`.
    status: &'static str,
    /// With `?verbose`, and whenever it is not ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    checks: Option<Vec<Check>>,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct Check {
    name: &'static str,
    ok: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
}

/// Can this process serve?
#[utoipa::path(
    get,
    path = "/readyz",
    tag = "system",
    security(()),
    params(("verbose" = Option<bool>, Query, description = "List the checks")),
    responses(
        (status = 200, description = "It can", body = Readiness),
        (status = 503, description = "It cannot", body = Readiness),
    )
)]
pub(crate) async fn readyz(
    State(state): State<AppState>,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    let verbose = is_verbose(query.as_deref().unwrap_or_default())?;
    let draining = state.draining.is_cancelled();
    let [database, migrations] = database_checks(&state).await;
    let checks = vec![
        database,
        migrations,
        Check { name: "accepting", ok: !draining, detail: draining.then(|| "shutting down".to_owned()) },
    ];
    let ready = checks.iter().all(|check| check.ok);
    let body = Readiness {
        status: if ready { "ready" } else { "not ready" },
        checks: (verbose || !ready).then_some(checks),
    };
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    Ok((status, Json(body)).into_response())
}

/// `?verbose`, with or without a value.
fn is_verbose(query: &str) -> Result<bool, ApiError> {
    let mut verbose = false;
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        match (&*name, &*value) {
            ("verbose", "" | "1" | "true") => verbose = true,
            ("verbose", "0" | "false") => verbose = false,
            ("verbose", _) => return Err(ApiError::parameter("verbose", "must be true or false")),
            (unknown, _) => return Err(ApiError::parameter(unknown, "is not known here")),
        }
    }
    Ok(verbose)
}

async fn database_checks(state: &AppState) -> [Check; 2] {
    let store = state.store.clone();
    // In a task of its own: a query that takes too long is left to end, not dropped in the middle.
    let asked = state.tasks.spawn(async move { Ok((store.is_writable().await?, store.migrations().await?)) });
    let (database, migrations) = match tokio::time::timeout(TIMEOUT, asked).await {
        Ok(Ok(Ok((is_writable, migrations)))) => {
            let missing = migrations.iter().filter(|(_, _, applied)| !applied).count();
            let database = if is_writable { Ok(()) } else { Err("is read-only".to_owned()) };
            (database, if missing == 0 { Ok(()) } else { Err(format!("{missing} to be applied")) })
        }
        Ok(Ok(Err::<_, StoreError>(error))) => {
            tracing::warn!(error = %error, "the readiness check cannot read the database");
            (Err("cannot be read".to_owned()), Err("not known".to_owned()))
        }
        Ok(Err(_)) => (Err("the check failed".to_owned()), Err("not known".to_owned())),
        Err(_) => (Err(format!("no answer within {} s", TIMEOUT.as_secs())), Err("not known".to_owned())),
    };
    let check = |name, result: Result<(), String>| Check { name, ok: result.is_ok(), detail: result.err() };
    [check("database", database), check("migrations", migrations)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verbose_needs_no_value_and_nothing_else_is_known() {
        assert!(!is_verbose("").unwrap());
        assert!(is_verbose("verbose").unwrap() && is_verbose("verbose=1").unwrap());
        assert!(!is_verbose("verbose=false").unwrap());
        assert!(is_verbose("verbose=maybe").is_err());
        assert!(is_verbose("exclude=database").is_err());
    }
}
