//! Who calls, and what they may touch.
//!
//! A caller without a valid key gets one and the same 401, whether the key is unknown, expired or revoked. Without a
//! key nobody gets in, except from this machine where the server was started for that. A handler states the role that
//! it needs by the extractor that it takes: [`Viewer`], [`Operator`] or [`Admin`].
//!
//! A page in a browser is given a token for its run instead of a key. It reads that run and nothing else, and is the
//! only one that may stand in the address, since an EventSource sends no headers.

use axum::{
    extract::{FromRequestParts, MatchedPath, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, header, request::Parts},
    middleware::Next,
    response::{IntoResponse, Response},
};
use longhaul_shared::{
    api_key::{Key, KeyKind},
    config::AuthMode,
    domain::ids::{KeyId, RunId, WorkspaceId},
    store::{KeyRole, RunScope},
};
use url::form_urlencoded;

use crate::{
    dialect,
    error::{ApiError, Code},
    extract::parse_id,
    state::AppState,
};

/// The workspace of calls without a key, where those are allowed.
pub const DEFAULT_WORKSPACE: &str = "default";

/// The query parameter that may carry a run's token.
pub(crate) const ACCESS_TOKEN: &str = "access_token";
/// What such a token may read.
const OF_A_RUN: [&str; 3] = ["/v1/runs/{runId}", "/v1/runs/{runId}/events", "/v1/runs/{runId}/steps"];

/// A caller who has been let in.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    pub(crate) workspace_id: WorkspaceId,
    /// Absent: a call from this machine without a key.
    pub(crate) key_id: Option<KeyId>,
    pub(crate) name: String,
    pub(crate) role: KeyRole,
    /// It may read one run only.
    pub(crate) scope: Option<RunScope>,
}

impl Caller {
    /// Tells callers apart where one must not meet another's idempotency keys.
    pub(crate) fn identity(&self) -> String {
        self.key_id.map_or_else(|| "loopback".to_owned(), |id| id.to_string())
    }

    /// The key whose rate its calls count against.
    fn charged(&self) -> Option<KeyId> {
        self.scope.map_or(self.key_id, |scope| scope.issued_by)
    }
}

macro_rules! role_extractor {
    ($($(#[$doc:meta])* $name:ident),+) => {$(
        $(#[$doc])*
        pub(crate) struct $name(pub(crate) Caller);

        impl FromRequestParts<AppState> for $name {
            type Rejection = ApiError;

            async fn from_request_parts(parts: &mut Parts, _: &AppState) -> Result<Self, ApiError> {
                let caller = parts.extensions.get::<Caller>().ok_or(Code::Unauthenticated)?;
                if caller.role < KeyRole::$name {
                    let detail = concat!("this call needs the role ", stringify!($name));
                    return Err(ApiError::new(Code::Forbidden, detail.to_ascii_lowercase()));
                }
                Ok(Self(caller.clone()))
            }
        }
    )+};
}

role_extractor! {
    /// May read.
    Viewer,
    /// May also submit, stop and change.
    Operator,
    /// May also delete.
    Admin
}

/// Lets a call in and counts it against its key's rate.
pub(crate) async fn admit(State(state): State<AppState>, mut request: Request, next: Next) -> Response {
    let caller = match identify(&state, request.headers(), request.uri()).await {
        Ok(caller) => caller,
        // A submission that cannot be let in for want of the database is one that could not be begun.
        Err(error) if error.code == Code::Unavailable && is_submission(&request) => {
            return ApiError { code: Code::RunBeginFailed, ..error }.into_response();
        }
        Err(error) => return error.into_response(),
    };
    let verdict = state.rates.check(caller.charged());
    let within_scope = caller.scope.map_or(Ok(()), |scope| check_scope(&request, scope.run_id));
    let mut response = if verdict.is_over() {
        verdict.refusal().into_response()
    } else if let Err(error) = within_scope {
        error.into_response()
    } else {
        request.extensions_mut().insert(caller);
        next.run(request).await
    };
    verdict.describe(response.headers_mut());
    response
}

fn is_submission(request: &Request) -> bool {
    let path = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    request.method() == Method::POST
        && matches!(path, Some("/v1/runs" | "/v1/chats/{chatId}/messages" | dialect::UI | dialect::RESPONSES))
}

/// Whether this reads that run. Another run is answered like one that does not exist.
fn check_scope(request: &Request, run_id: RunId) -> Result<(), ApiError> {
    let matched = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
    if !is_read || !matched.is_some_and(|path| OF_A_RUN.contains(&path)) {
        return Err(ApiError::new(Code::Forbidden, "this token is for reading one run"));
    }
    let named = request.uri().path().split('/').nth(3).and_then(parse_id::<RunId>);
    if named == Some(run_id) { Ok(()) } else { Err(Code::NotFound.into()) }
}

/// The token of a run in the address. A key does not belong there: addresses are logged and shared.
fn token_in(uri: &Uri) -> Option<Result<Key, ApiError>> {
    let (_, token) =
        form_urlencoded::parse(uri.query()?.as_bytes()).find(|(name, _)| name == ACCESS_TOKEN)?;
    let key = Key::parse(&token).filter(|key| key.kind() == KeyKind::Run);
    Some(key.ok_or_else(|| Code::Unauthenticated.into()))
}

async fn identify(state: &AppState, headers: &HeaderMap, uri: &Uri) -> Result<Caller, ApiError> {
    let mut given = headers.get_all(header::AUTHORIZATION).iter();
    let presented = match (given.next(), given.next()) {
        (None, _) => token_in(uri).transpose()?,
        // Some clients do not go without a key. Where none is asked for, theirs is none.
        (Some(value), None) if state.settings.auth == AuthMode::Loopback && !is_ours(value) => None,
        (Some(value), None) => Some(bearer(value).ok_or(Code::Unauthenticated)?),
        _ => return Err(Code::Unauthenticated.into()),
    };
    match (presented, &state.settings.auth) {
        (None, AuthMode::Loopback) => {
            if !comes_from_here(headers, uri, &state.settings.cors_origins) {
                let detail = "calls without a key must name this machine and come from a page that it served";
                return Err(ApiError::new(Code::Forbidden, detail));
            }
            let workspace_id = state.default_workspace().await?;
            let name = "loopback".to_owned();
            Ok(Caller { workspace_id, key_id: None, name, role: KeyRole::Admin, scope: None })
        }
        (Some(key), _) => {
            let found = state.keys.find(&*state.store, &key).await?.ok_or(Code::Unauthenticated)?;
            Ok(Caller {
                workspace_id: found.workspace_id,
                key_id: Some(found.id),
                name: found.name.clone(),
                role: found.role,
                scope: found.scope,
            })
        }
        (None, _) => Err(Code::Unauthenticated.into()),
    }
}

/// Whether it is meant to be a key of this server.
fn is_ours(value: &HeaderValue) -> bool {
    value
        .to_str()
        .is_ok_and(|text| text.split_once(' ').is_some_and(|(_, key)| key.trim().starts_with("lh_")))
}

fn bearer(value: &HeaderValue) -> Option<Key> {
    let (scheme, key) = value.to_str().ok()?.split_once(' ')?;
    if scheme.eq_ignore_ascii_case("bearer") { Key::parse(key.trim()) } else { None }
}

/// Whether a call without a key addresses this machine by a loopback name and, if a page sent it, that page is from
/// there too or is `allowed` to call. Else any web page could reach the server through the browser of whoever runs it,
/// by a form or by a name of its own that resolves to 127.0.0.1.
fn comes_from_here(headers: &HeaderMap, uri: &Uri, allowed: &[String]) -> bool {
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    let host = text(header::HOST).or_else(|| uri.authority().map(axum::http::uri::Authority::as_str));
    let origin = text(header::ORIGIN);
    if !host.is_none_or(is_loopback_authority) {
        return false;
    }
    if origin.is_some_and(|origin| allowed.iter().any(|allowed| allowed == origin)) {
        return true;
    }
    let is_local_page = |origin: &str| {
        origin.split_once("://").is_some_and(|(_, authority)| is_loopback_authority(authority))
    };
    origin.is_none_or(is_local_page) && text(HeaderName::from_static("sec-fetch-site")) != Some("cross-site")
}

fn is_loopback_authority(authority: &str) -> bool {
    let host = match authority.strip_prefix('[') {
        Some(rest) => rest.split_once(']').map_or("", |(host, _)| host),
        None => authority.split_once(':').map_or(authority, |(host, _)| host),
    };
    host.eq_ignore_ascii_case("localhost")
        || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_names_count_as_this_machine() {
        for here in ["localhost", "localhost:4680", "127.0.0.1:1", "127.8.8.8", "[::1]:4680", "LOCALHOST"] {
            assert!(is_loopback_authority(here), "{here}");
        }
        for elsewhere in
            ["example.com", "127.0.0.1.example.com", "10.0.0.1:4680", "[::2]", "", "null", "[::1"]
        {
            assert!(!is_loopback_authority(elsewhere), "{elsewhere}");
        }
    }

    #[test]
    fn a_page_from_elsewhere_cannot_use_the_keyless_door() {
        let call = |pairs: &[(&'static str, &'static str)]| {
            let headers = pairs.iter().map(|(n, v)| (n.parse().unwrap(), v.parse().unwrap())).collect();
            comes_from_here(&headers, &Uri::from_static("/v1/runs"), &["https://console.example".to_owned()])
        };
        assert!(call(&[("host", "localhost:4680")]));
        assert!(call(&[("host", "localhost:4680"), ("origin", "http://localhost:4680")]));
        assert!(call(&[
            ("host", "localhost"),
            ("origin", "https://console.example"),
            ("sec-fetch-site", "cross-site")
        ]));
        assert!(!call(&[("host", "rebound.example:4680")]));
        assert!(!call(&[("host", "localhost:4680"), ("origin", "https://evil.example")]));
        assert!(!call(&[("host", "localhost:4680"), ("origin", "null")]));
        assert!(!call(&[("host", "localhost:4680"), ("sec-fetch-site", "cross-site")]));
    }
}
