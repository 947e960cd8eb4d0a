//! What a caller is told when a call fails: a problem document, or what its client reads instead. Each failure of the store and of admission is
//! translated here and nowhere else.
//!
//! A handler returns an [`ApiError`]; [`crate::context`] turns it into the document, since only there the request's id
//! and path are known. The cause of a failure goes to the log, never to the caller.

use axum::{
    Json,
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use longhaul_shared::{admission::SubmitError, domain::ids::RunId, store::StoreError, tail::TailError};
use serde::Serialize;
use serde_json::json;
use utoipa::ToSchema;

pub(crate) use crate::code::Code;
use crate::dialect::Dialect;

/// Seconds after which a call that met an unavailable database may be repeated.
const RETRY_AFTER_SECONDS: u64 = 2;

/// One thing that is wrong with a request, and where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct Flaw {
    /// JSON Pointer into the body.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) pointer: Option<String>,
    /// Name of a query parameter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) parameter: Option<String>,
    /// Name of a header.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) header: Option<String>,
    pub(crate) detail: String,
}

impl Flaw {
    /// Where it is, as OpenAI writes it: `input[0].content`.
    fn param(&self) -> Option<String> {
        let Some(pointer) = &self.pointer else { return self.parameter.clone().or(self.header.clone()) };
        let mut param = String::new();
        for part in pointer.split('/').skip(1) {
            let part = part.replace("~1", "/").replace("~0", "~");
            if part.bytes().all(|byte| byte.is_ascii_digit()) {
                param = format!("{param}[{part}]");
            } else {
                param = if param.is_empty() { part } else { format!("{param}.{part}") };
            }
        }
        Some(param).filter(|param| !param.is_empty())
    }
}

/// A failure that a caller is told about.
#[derive(Clone, Debug)]
pub(crate) struct ApiError {
    pub(crate) code: Code,
    pub(crate) detail: Option<String>,
    pub(crate) flaws: Vec<Flaw>,
    pub(crate) active_run_id: Option<RunId>,
    pub(crate) retry_after: Option<u64>,
    /// For the log only.
    pub(crate) cause: Option<String>,
}

impl From<Code> for ApiError {
    fn from(code: Code) -> Self {
        Self { code, detail: None, flaws: vec![], active_run_id: None, retry_after: None, cause: None }
    }
}

impl ApiError {
    pub(crate) fn new(code: Code, detail: impl Into<String>) -> Self {
        Self { detail: Some(detail.into()), ..code.into() }
    }

    /// The body is wrong at `pointer`.
    pub(crate) fn body(pointer: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::flawed(Flaw {
            pointer: Some(pointer.into()),
            parameter: None,
            header: None,
            detail: detail.into(),
        })
    }

    /// A query parameter is wrong.
    pub(crate) fn parameter(name: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::flawed(Flaw {
            pointer: None,
            parameter: Some(name.into()),
            header: None,
            detail: detail.into(),
        })
    }

    /// A header is wrong.
    pub(crate) fn header(name: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::flawed(Flaw {
            pointer: None,
            parameter: None,
            header: Some(name.into()),
            detail: detail.into(),
        })
    }

    fn flawed(flaw: Flaw) -> Self {
        let place = flaw.pointer.as_ref().or(flaw.parameter.as_ref()).or(flaw.header.as_ref());
        let detail = match place.map(String::as_str) {
            None | Some("") => flaw.detail.clone(),
            Some(place) => format!("{place}: {}", flaw.detail),
        };
        Self { detail: Some(detail), flaws: vec![flaw], ..Code::InvalidRequest.into() }
    }

    /// The database did not answer: what was asked for may have happened or may happen yet.
    pub(crate) fn outcome_unknown() -> Self {
        Self {
            retry_after: Some(RETRY_AFTER_SECONDS),
            ..Self::new(
                Code::Unavailable,
                "whether the call took effect is not known; a submission is repeated safely with its Idempotency-Key",
            )
        }
    }

    /// A failure of ours: the caller learns nothing but that.
    pub(crate) fn internal(cause: impl std::fmt::Display) -> Self {
        Self { cause: Some(cause.to_string()), ..Code::Internal.into() }
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::NotFound => Code::NotFound.into(),
            // The name of a constraint means nothing to a caller.
            StoreError::Conflict(_) => Self { cause: Some(error.to_string()), ..Code::Conflict.into() },
            StoreError::TimedOut => Self::outcome_unknown(),
            StoreError::Unavailable(_) | StoreError::Locked => Self {
                retry_after: Some(RETRY_AFTER_SECONDS),
                cause: Some(error.to_string()),
                ..Code::Unavailable.into()
            },
            StoreError::LeaseLost
            | StoreError::Stopping(_)
            | StoreError::Panicked
            | StoreError::Refused(_)
            | StoreError::Corrupt { .. }
            | StoreError::Migrate(_) => Self::internal(error),
        }
    }
}

impl From<TailError> for ApiError {
    fn from(error: TailError) -> Self {
        Self {
            retry_after: Some(RETRY_AFTER_SECONDS),
            cause: Some(error.to_string()),
            ..Code::Unavailable.into()
        }
    }
}

impl From<SubmitError> for ApiError {
    fn from(error: SubmitError) -> Self {
        match error {
            SubmitError::UnknownAgent { name } => Self {
                code: Code::AgentNotFound,
                ..Self::body("/agent", format!("there is no agent `{name}`"))
            },
            SubmitError::NoAgent => Self::body("/agent", "is required: the chat has no agent of its own"),
            SubmitError::Invalid { pointer, detail } => Self::body(pointer, detail),
            SubmitError::RunAlreadyActive { active_run_id } => {
                Self { active_run_id, ..Code::RunAlreadyActive.into() }
            }
            SubmitError::ChatNotFound => Code::NotFound.into(),
            SubmitError::KeyReused => Code::IdempotencyKeyReused.into(),
            SubmitError::KeyInFlight => Self { retry_after: Some(1), ..Code::IdempotencyKeyInFlight.into() },
            SubmitError::MessageIdReused => Code::MessageIdReused.into(),
            SubmitError::SupersedeInvalid => Self {
                code: Code::SupersedeInvalid,
                ..Self::body("/expectRunId", "names no run of this chat")
            },
            SubmitError::SupersedeMismatch { active_run_id } => {
                Self { active_run_id: Some(active_run_id), ..Code::SupersedeMismatch.into() }
            }
            SubmitError::SupersedeTimeout { active_run_id } => Self {
                active_run_id: Some(active_run_id),
                retry_after: Some(1),
                ..Code::SupersedeTimeout.into()
            },
            SubmitError::BeginFailed(StoreError::TimedOut) => Self::outcome_unknown(),
            SubmitError::BeginFailed(cause) => Self {
                retry_after: Some(RETRY_AFTER_SECONDS),
                cause: Some(cause.to_string()),
                ..Code::RunBeginFailed.into()
            },
        }
    }
}

/// The document that a caller gets.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Problem<'a> {
    /// Names the kind of problem; the same for every occurrence of a code.
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) title: &'a str,
    pub(crate) status: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) detail: Option<&'a str>,
    /// The path of the failed call.
    pub(crate) instance: &'a str,
    /// Stable word for programs.
    #[schema(schema_with = crate::openapi::problem_codes)]
    pub(crate) code: &'static str,
    pub(crate) request_id: &'a str,
    #[serde(skip_serializing_if = "<[Flaw]>::is_empty")]
    pub(crate) errors: &'a [Flaw],
    /// Whether the same call may succeed later.
    pub(crate) retryable: bool,
    /// With `A_RUN_ALREADY_ACTIVE`, `SUPERSEDE_TARGET_MISMATCH` and `SUPERSEDE_TIMEOUT`: the run that holds the chat.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<uuid::Uuid>)]
    pub(crate) active_run_id: Option<RunId>,
}

impl ApiError {
    /// The finished answer to the call with that id and path.
    pub(crate) fn render(&self, request_id: &str, path: &str) -> Response {
        let mut response = match Dialect::of(path) {
            Dialect::Problem => self.as_problem(request_id, path),
            Dialect::Text => self.as_text(),
            Dialect::OpenAi => self.as_openai(),
        };
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.code == Code::Unauthenticated {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"longhaul\""));
        }
        response
    }

    /// For pages, which show it as it is.
    fn as_text(&self) -> Response {
        (self.code.status(), self.detail.clone().unwrap_or_else(|| self.code.title().to_owned()))
            .into_response()
    }

    fn as_openai(&self) -> Response {
        let kind = match self.code.status().as_u16() {
            401 => "authentication_error",
            403 => "permission_error",
            429 => "rate_limit_error",
            500.. => "server_error",
            _ => "invalid_request_error",
        };
        let body = json!({"error": {
            "message": self.detail.as_deref().unwrap_or_else(|| self.code.title()),
            "type": kind,
            "param": self.flaws.first().and_then(Flaw::param),
            "code": self.code.as_openai(),
        }});
        // Its clients repeat a conflict and every failure of a server unless they are told not to.
        let is_worth_it = self.code.is_retryable() && self.code.status() != StatusCode::CONFLICT;
        let should_retry = HeaderValue::from_static(if is_worth_it { "true" } else { "false" });
        let should_retry = [(HeaderName::from_static("x-should-retry"), should_retry)];
        (self.code.status(), should_retry, Json(body)).into_response()
    }

    fn as_problem(&self, request_id: &str, path: &str) -> Response {
        let code = self.code;
        let problem = Problem {
            kind: format!("urn:longhaul:problem:{}", code.as_str().to_ascii_lowercase().replace('_', "-")),
            title: code.title(),
            status: code.status().as_u16(),
            detail: self.detail.as_deref(),
            instance: path,
            code: code.as_str(),
            request_id,
            errors: &self.flaws,
            retryable: code.is_retryable(),
            active_run_id: self.active_run_id,
        };
        let body = serde_json::to_vec(&problem).expect("a problem has string keys only");
        let mut response = (code.status(), body).into_response();
        let kind = HeaderValue::from_static("application/problem+json");
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        response
    }
}

/// An answer without a body yet: [`crate::context`] renders it.
impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = self.code.status().into_response();
        response.extensions_mut().insert(self);
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_failure_has_its_documented_status_and_code() {
        let busy = RunId::generate();
        let table: Vec<(ApiError, u16, &str)> = vec![
            (StoreError::NotFound.into(), 404, "NOT_FOUND"),
            (StoreError::Conflict("c".into()).into(), 409, "CONFLICT"),
            (StoreError::LeaseLost.into(), 500, "INTERNAL"),
            (SubmitError::UnknownAgent { name: "x".into() }.into(), 404, "AGENT_NOT_FOUND"),
            (SubmitError::NoAgent.into(), 400, "INVALID_REQUEST"),
            (
                SubmitError::Invalid { pointer: "/tags".into(), detail: "d".into() }.into(),
                400,
                "INVALID_REQUEST",
            ),
            (SubmitError::RunAlreadyActive { active_run_id: Some(busy) }.into(), 409, "A_RUN_ALREADY_ACTIVE"),
            (SubmitError::ChatNotFound.into(), 404, "NOT_FOUND"),
            (SubmitError::KeyReused.into(), 422, "IDEMPOTENCY_KEY_REUSED"),
            (SubmitError::KeyInFlight.into(), 409, "IDEMPOTENCY_KEY_IN_FLIGHT"),
            (SubmitError::MessageIdReused.into(), 422, "MESSAGE_ID_REUSED"),
            (SubmitError::SupersedeInvalid.into(), 400, "SUPERSEDE_INVALID"),
            (SubmitError::SupersedeMismatch { active_run_id: busy }.into(), 409, "SUPERSEDE_TARGET_MISMATCH"),
            (SubmitError::SupersedeTimeout { active_run_id: busy }.into(), 409, "SUPERSEDE_TIMEOUT"),
            (SubmitError::BeginFailed(StoreError::TimedOut).into(), 503, "UNAVAILABLE"),
            (SubmitError::BeginFailed(StoreError::NotFound).into(), 503, "A_RUN_BEGIN_FAILED"),
        ];
        for (error, status, code) in table {
            assert_eq!((error.code.status().as_u16(), error.code.as_str()), (status, code));
        }
    }

    #[tokio::test]
    async fn a_problem_document_has_all_its_members() {
        let error = ApiError::body("/limits/maxSteps", "must be at least 1");
        let response = error.render("req-1", "/v1/runs");
        assert_eq!(response.headers()[header::CONTENT_TYPE], "application/problem+json");
        let body = axum::body::to_bytes(response.into_body(), 10_000).await.unwrap();
        assert_eq!(
            std::str::from_utf8(&body).unwrap(),
            r#"{"type":"urn:longhaul:problem:invalid-request","title":"The request is not valid","status":400,"detail":"/limits/maxSteps: must be at least 1","instance":"/v1/runs","code":"INVALID_REQUEST","requestId":"req-1","errors":[{"pointer":"/limits/maxSteps","detail":"must be at least 1"}],"retryable":false}"#
        );
    }

    #[tokio::test]
    async fn an_openai_client_gets_all_four_keys_and_is_told_whether_to_try_again() {
        let table = [
            (ApiError::body("/input/0/content", "must be text"), "false", json!("input[0].content")),
            (ApiError::parameter("starting_after", "must be a number"), "false", json!("starting_after")),
            (Code::RunAlreadyActive.into(), "false", json!(null)),
            (Code::Unavailable.into(), "true", json!(null)),
        ];
        for (error, should_retry, param) in table {
            let response = error.render("req-1", "/v1/responses");
            assert_eq!(response.headers()["x-should-retry"], should_retry);
            assert_eq!(response.headers()[header::CONTENT_TYPE], "application/json");
            let body = axum::body::to_bytes(response.into_body(), 10_000).await.unwrap();
            let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
            let told = body["error"].as_object().unwrap();
            let keys: Vec<_> = told.keys().map(String::as_str).collect();
            assert_eq!(keys, ["code", "message", "param", "type"]);
            assert_eq!(told["param"], param);
        }
    }

    #[test]
    fn a_cause_never_reaches_the_caller() {
        let error = ApiError::internal("password=hunter2");
        assert!(error.detail.is_none() && error.flaws.is_empty());
        assert_eq!(error.cause.as_deref(), Some("password=hunter2"));
    }
}
