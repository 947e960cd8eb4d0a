//! What every call gets: an id, a rendered failure, and headers that keep run data out of caches.
//!
//! A handler that panics answers 500 and disturbs nobody else. One that the database leaves waiting is left to wait, and
//! its caller is told.

use std::{
    any::Any,
    time::{Duration, Instant},
};

use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use tokio::task::JoinError;
use tokio_util::task::TaskTracker;
use tracing::Instrument;
use uuid::Uuid;

use crate::{
    error::{ApiError, Code},
    extract::BODY_TIMEOUT,
    routes::{
        runs::{events::wants_event_stream, stop::MAX_WAIT},
        sse::reset,
    },
};

/// How long a call may take, beyond what its client asks for: longer than a connection and a statement may take, so that
/// only a database that has gone silent gets there.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);

pub(crate) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The id under which a call is found in the log.
#[derive(Clone, Debug)]
pub(crate) struct RequestId(pub(crate) HeaderValue);

impl RequestId {
    /// The caller's, if it is fit for a log line, else a new one.
    fn of(headers: &HeaderMap) -> Self {
        let given = headers.get(X_REQUEST_ID).filter(|value| {
            let bytes = value.as_bytes();
            (1..=128).contains(&bytes.len())
                && bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"-_.:/=+".contains(b))
        });
        Self(given.cloned().unwrap_or_else(|| {
            HeaderValue::from_str(&Uuid::now_v7().to_string()).expect("a UUID is a header value")
        }))
    }

    fn as_str(&self) -> &str {
        self.0.to_str().expect("ids are ASCII: given ones are checked, our own are UUIDs")
    }
}

pub(crate) async fn wrap(State(tasks): State<TaskTracker>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let id = RequestId::of(request.headers());
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let is_event_source = method == Method::GET && is_events(&path) && wants_event_stream(request.headers());

    let response = answer(&tasks, limit(&method, &path), next.run(request).in_current_span()).await;
    let mut response = finish(response, &id, &path);
    // An EventSource gives up for good on a status other than 200 and comes back after a broken connection.
    let status = response.status();
    let may_pass = matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
    if is_event_source && may_pass {
        response = reset();
    }
    let headers = response.headers_mut();
    headers.insert(X_REQUEST_ID, id.0.clone());
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    tracing::debug!(
        request.id = id.as_str(),
        http.method = %method,
        http.path = path,
        http.status = status.as_u16(),
        duration_ms = started.elapsed().as_millis() as u64,
        "a call was answered"
    );
    response
}

/// What an EventSource is pointed at.
fn is_events(path: &str) -> bool {
    path.strip_prefix("/v1/runs/")
        .and_then(|rest| rest.split_once('/'))
        .is_some_and(|(_, rest)| rest == "events")
}

/// What the handler answers within the limit. It has a task of its own, because what it asks of the database must not be
/// dropped in the middle. What it shares with others is behind locks that survive a panic, or in the database.
async fn answer(
    tasks: &TaskTracker,
    limit: Duration,
    handler: impl Future<Output = Response> + Send + 'static,
) -> Response {
    match tokio::time::timeout(limit, tasks.spawn(handler)).await {
        Ok(Ok(response)) => response,
        Ok(Err(broken)) => ApiError::internal(describe(broken)).into_response(),
        Err(_) => ApiError {
            cause: Some(format!("no answer within {} s", limit.as_secs())),
            ..ApiError::outcome_unknown()
        }
        .into_response(),
    }
}

/// Renders a failure, keeping the headers that inner layers have set.
fn finish(mut response: Response, id: &RequestId, path: &str) -> Response {
    let error = match response.extensions_mut().remove::<ApiError>() {
        Some(error) => error,
        // The router answers a wrong method by itself.
        None if response.status() == StatusCode::METHOD_NOT_ALLOWED => Code::MethodNotAllowed.into(),
        None => return response,
    };
    if let Some(cause) = &error.cause {
        if error.code.status().is_server_error() {
            tracing::error!(
                request.id = id.as_str(),
                http.path = path,
                code = error.code.as_str(),
                cause,
                "a call failed"
            );
        } else {
            tracing::debug!(
                request.id = id.as_str(),
                http.path = path,
                code = error.code.as_str(),
                cause,
                "a call was refused"
            );
        }
    }
    let mut rendered = error.render(id.as_str(), path);
    for (name, value) in response.headers() {
        if name != header::CONTENT_LENGTH && !rendered.headers().contains_key(name) {
            rendered.headers_mut().append(name.clone(), value.clone());
        }
    }
    rendered
}

/// A body may take its time, and a stop may be asked to wait.
fn limit(method: &Method, path: &str) -> Duration {
    match *method {
        Method::GET | Method::HEAD | Method::DELETE => ANSWER_LIMIT,
        _ if path.ends_with("/stop") => ANSWER_LIMIT + BODY_TIMEOUT + MAX_WAIT,
        _ => ANSWER_LIMIT + BODY_TIMEOUT,
    }
}

fn describe(broken: JoinError) -> String {
    let Ok(panic) = broken.try_into_panic() else { return "the server is ending".to_owned() };
    let panic: &(dyn Any + Send) = &*panic;
    let message = panic.downcast_ref::<&str>().copied();
    let message = message.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("the handler panicked: {}", message.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_callers_id_is_kept_unless_it_could_spoil_a_log_line() {
        let id = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(X_REQUEST_ID, HeaderValue::from_static(text));
            RequestId::of(&headers).as_str().to_owned()
        };
        assert_eq!(id("abc-1.2:3"), "abc-1.2:3");
        for bad in ["", "a b", "a\"b", "{}", "a\tb"] {
            assert_ne!(id(bad), bad);
        }
        assert!(RequestId::of(&HeaderMap::new()).as_str().parse::<Uuid>().is_ok());
    }

    #[tokio::test]
    async fn a_panic_is_a_problem_like_any_other_and_its_message_stays_here() {
        async fn broken() {
            panic!("the secret cause");
        }
        let router = axum::Router::new()
            .route("/broken", axum::routing::get(broken))
            .layer(axum::middleware::from_fn_with_state(TaskTracker::new(), wrap));
        let request = Request::get("/broken").body(axum::body::Body::empty()).unwrap();
        let response = tower::ServiceExt::oneshot(router, request).await.unwrap();
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        let body = axum::body::to_bytes(response.into_body(), 10_000).await.unwrap();
        let body = std::str::from_utf8(&body).unwrap();
        assert!(body.contains("\"INTERNAL\"") && !body.contains("secret"), "{body}");
    }

    #[tokio::test]
    async fn a_call_that_the_database_leaves_waiting_is_answered_and_goes_on() {
        let tasks = TaskTracker::new();
        let (go_on, wait) = tokio::sync::oneshot::channel::<()>();
        let (done, is_done) = tokio::sync::oneshot::channel();
        let handler = async move {
            wait.await.unwrap();
            done.send(()).unwrap();
            StatusCode::OK.into_response()
        };
        let mut response = answer(&tasks, Duration::from_millis(20), handler).await;
        let error = response.extensions_mut().remove::<ApiError>().unwrap();
        assert_eq!((error.code, error.retry_after.is_some()), (Code::Unavailable, true));
        assert_eq!(tasks.len(), 1, "what was begun is not dropped");
        go_on.send(()).unwrap();
        is_done.await.unwrap();
    }

    #[test]
    fn a_call_gets_the_time_that_its_client_may_take() {
        let of = |method, path| limit(&method, path).as_secs();
        assert_eq!((of(Method::GET, "/v1/runs"), of(Method::POST, "/v1/runs")), (20, 50));
        assert_eq!(of(Method::POST, "/v1/runs/x/stop"), 110);
    }
}
