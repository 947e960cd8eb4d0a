//! `GET /v1/runs`: newest first, filtered.

use axum::{
    extract::{OriginalUri, State},
    response::Response,
};
use longhaul_shared::{
    domain::{ids::ChatId, transition::RunStatus},
    store::RunFilter,
};
use serde::Deserialize;
use utoipa::IntoParams;

use crate::{
    auth::Viewer,
    error::ApiError,
    extract::{Params, parse_id},
    openapi::Failures,
    page::{self, Paged},
    state::AppState,
    views::{run::RunView, time::parse_instant},
};

const LIST: &str = "runs";

#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct ListRuns {
    /// One status or several, separated by commas.
    status: Option<String>,
    #[param(value_type = Option<uuid::Uuid>)]
    chat_id: Option<String>,
    agent: Option<String>,
    tag: Option<String>,
    /// RFC 3339, exclusive.
    #[param(format = DateTime)]
    created_after: Option<String>,
    /// RFC 3339, exclusive.
    #[param(format = DateTime)]
    created_before: Option<String>,
    #[param(minimum = 1, maximum = 200, default = 50)]
    limit: Option<u32>,
    /// From the previous page.
    cursor: Option<String>,
}

/// List runs, newest first
#[utoipa::path(
    get,
    path = "/v1/runs",
    tag = "runs",
    params(ListRuns),
    responses((status = 200, description = "A page", body = Paged<RunView>), Failures)
)]
pub(crate) async fn list_runs(
    State(state): State<AppState>,
    Viewer(caller): Viewer,
    OriginalUri(uri): OriginalUri,
    Params(query): Params<ListRuns>,
) -> Result<Response, ApiError> {
    let page = page::requested(LIST, query.limit, query.cursor.as_deref())?;
    let filter = filter(query)?;
    let listed = state.store.list_runs(caller.workspace_id, &filter, page).await?;
    Ok(page::answer(LIST, &uri, listed, RunView::from))
}

fn filter(query: ListRuns) -> Result<RunFilter, ApiError> {
    let instant = |name, text: Option<String>| {
        text.map(|text| parse_instant(&text).map_err(|detail| ApiError::parameter(name, detail))).transpose()
    };
    let statuses = query.status.iter().flat_map(|list| list.split(','));
    Ok(RunFilter {
        status: statuses
            .map(|word| {
                word.trim()
                    .parse::<RunStatus>()
                    .map_err(|error| ApiError::parameter("status", error.to_string()))
            })
            .collect::<Result<_, _>>()?,
        chat_id: query
            .chat_id
            .map(|text| {
                parse_id::<ChatId>(&text).ok_or_else(|| ApiError::parameter("chatId", "must be a UUID"))
            })
            .transpose()?,
        agent: query.agent,
        tag: query.tag,
        created_after: instant("createdAfter", query.created_after)?,
        created_before: instant("createdBefore", query.created_before)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_separated_by_commas_and_known() {
        let query = |status: &str| ListRuns { status: Some(status.into()), ..ListRuns::default() };
        assert_eq!(filter(query("running, queued")).unwrap().status, [RunStatus::Running, RunStatus::Queued]);
        for bad in ["", "running,", "done"] {
            assert_eq!(
                filter(query(bad)).unwrap_err().flaws[0].parameter.as_deref(),
                Some("status"),
                "{bad}"
            );
        }
    }

    #[test]
    fn malformed_filters_are_refused_by_name() {
        let bad_time = ListRuns { created_after: Some("yesterday".into()), ..ListRuns::default() };
        assert_eq!(filter(bad_time).unwrap_err().flaws[0].parameter.as_deref(), Some("createdAfter"));
        let bad_chat = ListRuns { chat_id: Some("x".into()), ..ListRuns::default() };
        assert_eq!(filter(bad_chat).unwrap_err().flaws[0].parameter.as_deref(), Some("chatId"));
    }
}
