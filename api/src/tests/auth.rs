//! Who is let in, what they may do, and how often.

use axum::{
    body::Body,
    http::{Method, Request},
};
use longhaul_shared::{
    api_key::{Key, KeyKind},
    config::AuthMode,
    store::{KeyRole, NewKey},
};
use serde_json::{Value, json};

use super::{Answer, Api};

async fn with_authorization(api: &Api, value: Option<&str>) -> Answer {
    let mut request = Request::get("/v1/runs");
    if let Some(value) = value {
        request = request.header("authorization", value);
    }
    api.send(request.body(Body::empty()).unwrap()).await
}

/// The problem without what differs from call to call.
fn comparable(problem: Value) -> Value {
    let mut problem = problem;
    problem.as_object_mut().unwrap().remove("requestId");
    problem
}

#[tokio::test]
async fn every_bad_key_gets_the_same_401() {
    let api = Api::start().await;
    let workspace = api.store.ensure_workspace("default").await.unwrap();
    let stored = |expires_at| {
        let (store, key) = (api.store.clone(), Key::generate(KeyKind::Live));
        async move {
            let new = NewKey {
                workspace_id: workspace,
                name: "k",
                role: KeyRole::Admin,
                prefix: key.prefix(),
                digest: &key.digest(),
                last_four: key.last_four(),
                expires_at,
                scope: None,
            };
            let id = store.create_key(new).await.unwrap().id;
            (id, key.reveal().to_owned())
        }
    };
    let (_, expired) = stored(Some(1)).await;
    let (revoked_id, revoked) = stored(None).await;
    api.store.revoke_key(workspace, revoked_id).await.unwrap();
    let unknown = Key::generate(KeyKind::Live).reveal().to_owned();
    let mut forged = api.key.clone();
    forged.replace_range(20..21, if &forged[20..21] == "a" { "b" } else { "a" });

    let expected = comparable(with_authorization(&api, None).await.refused(401, "UNAUTHENTICATED"));
    for bad in [&expired, &revoked, &unknown, &forged, "", "x"] {
        let answer = with_authorization(&api, Some(&format!("Bearer {bad}"))).await;
        assert_eq!(answer.header("www-authenticate"), "Bearer realm=\"longhaul\"");
        assert_eq!(comparable(answer.refused(401, "UNAUTHENTICATED")), expected, "{bad}");
    }
    with_authorization(&api, Some(&format!("Basic {}", api.key))).await.refused(401, "UNAUTHENTICATED");
    with_authorization(&api, Some(&format!("bearer {}", api.key))).await.ok(200);
}

#[tokio::test]
async fn a_role_that_is_too_low_is_refused_before_anything_is_looked_up() {
    let api = Api::start().await;
    let viewer = api.key("default", KeyRole::Viewer).await;
    let id = uuid::Uuid::now_v7();
    let calls = [
        (Method::POST, "/v1/runs".to_owned(), Some(json!({"nonsense": 1}))),
        (Method::POST, format!("/v1/runs/{id}/stop"), None),
        (Method::POST, "/v1/chats".to_owned(), Some(json!({}))),
        (Method::PATCH, format!("/v1/chats/{id}"), Some(json!({}))),
        (Method::POST, format!("/v1/chats/{id}/messages"), Some(json!({}))),
        (Method::DELETE, format!("/v1/chats/{id}"), None),
    ];
    for (method, path, body) in calls {
        api.call(&viewer, method, &path, body).await.refused(403, "FORBIDDEN");
    }
    api.call(&viewer, Method::GET, "/v1/runs", None).await.ok(200);
    api.call(&api.key, Method::DELETE, &format!("/v1/chats/{id}"), None).await.refused(403, "FORBIDDEN");
}

#[tokio::test]
async fn loopback_needs_no_key_but_refuses_a_wrong_one_and_foreign_pages() {
    let api = Api::with(|config| config.auth.mode = AuthMode::Loopback).await;
    with_authorization(&api, None).await.ok(200);
    for none_of_ours in ["Bearer sk-proj-1234", "Bearer none", "Basic YTpi"] {
        with_authorization(&api, Some(none_of_ours)).await.ok(200);
    }
    for wrong in ["Bearer lh_dev_wrong", "bearer lh_", &format!("Bearer {}x", api.key)] {
        with_authorization(&api, Some(wrong)).await.refused(401, "UNAUTHENTICATED");
    }
    with_authorization(&api, Some(&format!("Bearer {}", api.key))).await.ok(200);
    let foreign = Request::get("/v1/runs")
        .header("origin", "https://evil.example")
        .header("authorization", "Bearer none")
        .body(Body::empty())
        .unwrap();
    api.send(foreign).await.refused(403, "FORBIDDEN");
    let foreign =
        Request::get("/v1/runs").header("origin", "https://evil.example").body(Body::empty()).unwrap();
    api.send(foreign).await.refused(403, "FORBIDDEN");
    // The keyless caller works in the workspace `default`, where the operator's key sees the same.
    let submitted = Request::post("/v1/runs")
        .header("content-type", "application/json")
        .body(Body::from(r#"{"agent":"helper","input":"hi"}"#))
        .unwrap();
    let run = api.send(submitted).await.ok(202);
    api.get(&format!("/v1/runs/{}", run["runId"].as_str().unwrap())).await.ok(200);
}

#[tokio::test]
async fn a_key_is_limited_and_every_answer_says_how_far() {
    let api = Api::with(|config| config.limits.requests_per_minute = 3).await;
    let other = api.key("default", KeyRole::Viewer).await;
    for remaining in [2, 1, 0] {
        let answer = api.get("/v1/nothing-here-and-yet-counted").await;
        // Unknown paths are not behind the guard; known ones are.
        assert_eq!(answer.status, 404);
        let answer = api.get(&format!("/v1/runs/{}", uuid::Uuid::now_v7())).await;
        answer.refused(404, "NOT_FOUND");
        assert_eq!(answer.header("ratelimit-policy"), "\"default\";q=3;w=60");
        assert!(answer.header("ratelimit").starts_with(&format!("\"default\";r={remaining};t=")));
    }
    let answer = api.get("/v1/runs").await;
    assert_eq!(answer.refused(429, "RATE_LIMITED")["retryable"], true);
    assert!(answer.header("retry-after").parse::<u64>().unwrap() >= 1);
    assert!(answer.header("ratelimit").starts_with("\"default\";r=0;t="));
    api.call(&other, Method::GET, "/v1/runs", None).await.ok(200);
    api.get("/livez").await.ok(200);
}

#[tokio::test]
async fn only_pages_of_known_origins_may_call() {
    let api = Api::with(|config| config.server.cors_origins = vec!["https://console.example".into()]).await;
    let preflight = |origin: &'static str| {
        let request = Request::builder()
            .method(Method::OPTIONS)
            .uri("/v1/runs")
            .header("origin", origin)
            .header("access-control-request-method", "POST")
            .header("access-control-request-headers", "authorization,content-type")
            .body(Body::empty())
            .unwrap();
        api.send(request)
    };
    let known = preflight("https://console.example").await;
    assert_eq!(known.status, 200);
    assert_eq!(known.header("access-control-allow-origin"), "https://console.example");
    assert_eq!(known.header("access-control-allow-headers"), "authorization,content-type");
    let stranger = preflight("https://evil.example").await;
    assert!(!stranger.headers.contains_key("access-control-allow-origin"));
}

#[tokio::test]
async fn a_star_lets_pages_of_every_origin_call_with_a_key() {
    let api = Api::with(|config| config.server.cors_origins = vec!["*".into()]).await;
    let origin = [("origin", "https://anywhere.example")];
    let answer = api.call_with(Method::GET, "/v1/runs", &origin, "").await;
    answer.ok(200);
    assert_eq!(answer.header("access-control-allow-origin"), "*");
}
