//! The server about itself, and what every answer has in common.

use axum::{
    body::Body,
    http::{Method, Request},
};
use longhaul_shared::store::KeyRole;
use serde_json::json;

use super::Api;

#[tokio::test]
async fn probes_need_no_key_and_tell_a_live_process_from_a_ready_one() {
    let api = Api::start().await;
    let probe = |path: &'static str| {
        let request = Request::get(path).body(Body::empty()).unwrap();
        api.send(request)
    };
    assert_eq!(probe("/livez").await.ok(200), json!({"status": "alive"}));
    assert_eq!(probe("/readyz").await.ok(200), json!({"status": "ready"}));
    let verbose = probe("/readyz?verbose").await.ok(200);
    let names: Vec<_> =
        verbose["checks"].as_array().unwrap().iter().map(|check| check["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["database", "migrations", "accepting"]);

    api.state.begin_drain();
    let draining = probe("/readyz").await.ok(503);
    assert_eq!(draining["checks"][2], json!({"name": "accepting", "ok": false, "detail": "shutting down"}));
    probe("/livez").await.ok(200);

    api.store.close().await;
    let closed = probe("/readyz").await.ok(503);
    assert_eq!(closed["checks"][0]["ok"], false);
    probe("/livez").await.ok(200);
}

#[tokio::test]
async fn a_submission_without_a_database_fails_to_begin_and_may_be_repeated() {
    let api = Api::start().await;
    let unknown = api.key("default", KeyRole::Operator).await;
    // From now on the first key is known without the database.
    api.get("/v1/info").await.ok(200);
    api.store.close().await;
    for key in [&api.key, &unknown] {
        let body = json!({"agent": "helper", "input": "hi"});
        let answer = api.call(key, Method::POST, "/v1/runs", Some(body)).await;
        assert_eq!(answer.refused(503, "A_RUN_BEGIN_FAILED")["retryable"], true);
        assert!(answer.header("retry-after").parse::<u64>().is_ok());
    }
    let chat = format!("/v1/chats/{}/messages", uuid::Uuid::now_v7());
    api.post(&chat, json!({"input": "hi"})).await.refused(503, "A_RUN_BEGIN_FAILED");
    let answer = api.get("/v1/runs").await;
    answer.refused(503, "UNAVAILABLE");
    assert!(answer.headers.contains_key("retry-after"));
}

#[tokio::test]
async fn the_document_is_served_as_it_is_committed() {
    let api = Api::start().await;
    let answer = api.send(Request::get("/openapi.json").body(Body::empty()).unwrap()).await;
    assert_eq!(answer.header("content-type"), "application/json");
    assert_eq!(answer.text(), crate::openapi_json());
}

#[tokio::test]
async fn info_says_what_is_running() {
    let api = Api::start().await;
    let info = api.get("/v1/info").await.ok(200);
    assert_eq!(
        (&info["mode"], &info["store"], &info["auth"]),
        (&json!("test"), &json!("sqlite"), &json!("required"))
    );
    assert_eq!(info["agents"], json!(["helper"]));
}

#[tokio::test]
async fn unknown_paths_and_wrong_methods_are_problems_too() {
    let api = Api::start().await;
    let problem = api.get("/v1/rnus").await.refused(404, "NOT_FOUND");
    assert_eq!(problem["instance"], "/v1/rnus");
    let answer = api.call(&api.key, Method::PUT, "/v1/runs", None).await;
    answer.refused(405, "METHOD_NOT_ALLOWED");
    assert!(answer.header("allow").contains("POST"));
    let answer = api.call_with(Method::GET, "/v1/rnus", &[("x-request-id", "mine-7")], "").await;
    assert_eq!(answer.refused(404, "NOT_FOUND")["requestId"], "mine-7");
}
