//! What every call gets: an id, a rendered failure, and headers that keep run data out of caches.
//!
//! A handler that panics answers 500 and disturbs nobody else.

use std::{any::Any, panic::AssertUnwindSafe, time::Instant};

use axum::{
    extract::Request,
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use futures::FutureExt;
use uuid::Uuid;

use crate::{
    error::{ApiError, Code},
    routes::runs::events::{reset, wants_event_stream},
};

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

pub(crate) async fn wrap(request: Request, next: Next) -> Response {
    let started = Instant::now();
    let id = RequestId::of(request.headers());
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let wants_stream = method == Method::GET && wants_event_stream(request.headers());

    // What a handler shares with others is behind locks that survive a panic, or in the database.
    let handled = AssertUnwindSafe(next.run(request)).catch_unwind().await;
    let response = handled.unwrap_or_else(|panic| ApiError::internal(describe(&*panic)).into_response());
    let mut response = finish(response, &id, &path);
    // An EventSource gives up for good on a status other than 200 and comes back after a broken connection.
    if wants_stream && response.status() == StatusCode::SERVICE_UNAVAILABLE {
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
        http.status = response.status().as_u16(),
        duration_ms = started.elapsed().as_millis() as u64,
        "a call was answered"
    );
    response
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

fn describe(panic: &(dyn Any + Send)) -> String {
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
            .layer(axum::middleware::from_fn(wrap));
        let request = Request::get("/broken").body(axum::body::Body::empty()).unwrap();
        let response = tower::ServiceExt::oneshot(router, request).await.unwrap();
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        let body = axum::body::to_bytes(response.into_body(), 10_000).await.unwrap();
        let body = std::str::from_utf8(&body).unwrap();
        assert!(body.contains("\"INTERNAL\"") && !body.contains("secret"), "{body}");
    }
}
