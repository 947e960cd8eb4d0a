//! Tokens of runs: what a page in a browser may read with one, for how long, and what it may not.

use axum::{
    body::Body,
    http::{Method, Request},
};
use longhaul_shared::{
    config::AuthMode,
    domain::ids::RunId,
    store::{KeyRole, NewKey, RunScope},
};
use serde_json::{Value, json};

use super::{Answer, Api};

/// A call without a header that says who calls.
async fn bare(api: &Api, method: Method, path: &str) -> Answer {
    let request = Request::builder().method(method).uri(path).header("accept", "text/event-stream");
    api.send(request.body(Body::empty()).unwrap()).await
}

async fn token_of(api: &Api, run: &str) -> (Value, String) {
    let made = api.post(&format!("/v1/runs/{run}/token"), Value::Null).await.ok(201);
    let token = made["token"].as_str().unwrap().to_owned();
    (made, token)
}

#[tokio::test]
async fn a_token_reads_its_run_from_the_address_or_the_header() {
    let api = Api::start().await;
    let (run, _) = api.finished_run().await;
    let (made, token) = token_of(&api, &run).await;
    assert!(token.starts_with("lh_run_"), "{made}");
    assert_eq!(made["runId"], run);
    let watched = bare(&api, Method::GET, made["eventsUrl"].as_str().unwrap()).await;
    assert_eq!((watched.status.as_u16(), watched.header("content-type")), (200, "text/event-stream"));
    assert!(watched.text().contains("event: end"), "{watched:?}");
    let on = bare(&api, Method::GET, &format!("/v1/runs/{run}/events?after=6&access_token={token}")).await;
    assert_eq!(on.text().matches("id: ").count(), 1, "the other parameters still count");
    for path in ["", "/steps", "/events"] {
        api.call(&token, Method::GET, &format!("/v1/runs/{run}{path}"), None).await.ok(200);
    }
}

#[tokio::test]
async fn a_token_reads_nothing_else_and_changes_nothing() {
    let api = Api::start().await;
    let (run, chat) = api.finished_run().await;
    let (other, _) = api.submit("another").await;
    let (_, token) = token_of(&api, &run).await;
    for path in [format!("/v1/runs/{other}"), format!("/v1/runs/{other}/events")] {
        api.call(&token, Method::GET, &path, None).await.refused(404, "NOT_FOUND");
    }
    let refused = [
        (Method::GET, "/v1/runs".to_owned()),
        (Method::GET, "/v1/info".to_owned()),
        (Method::GET, format!("/v1/chats/{chat}")),
        (Method::GET, format!("/v1/chats/{chat}/messages")),
        (Method::POST, "/v1/runs".to_owned()),
        (Method::POST, format!("/v1/runs/{run}/stop")),
        (Method::POST, format!("/v1/runs/{run}/token")),
        (Method::DELETE, format!("/v1/chats/{chat}")),
    ];
    for (method, path) in refused {
        api.call(&token, method, &path, Some(json!({}))).await.refused(403, "FORBIDDEN");
    }
}

#[tokio::test]
async fn a_key_does_not_belong_into_an_address() {
    let api = Api::start().await;
    let (run, _) = api.finished_run().await;
    for secret in [api.key.as_str(), "lh_run_nonsense", ""] {
        let path = format!("/v1/runs/{run}?access_token={secret}");
        bare(&api, Method::GET, &path).await.refused(401, "UNAUTHENTICATED");
    }
}

#[tokio::test]
async fn a_token_that_is_bad_does_not_open_the_keyless_door() {
    let api = Api::with(|config| config.auth.mode = AuthMode::Loopback).await;
    let (run, _) = api.finished_run().await;
    bare(&api, Method::GET, &format!("/v1/runs/{run}?access_token=x")).await.refused(401, "UNAUTHENTICATED");
    let made = bare(&api, Method::POST, &format!("/v1/runs/{run}/token")).await.ok(201);
    let token = made["token"].as_str().unwrap();
    bare(&api, Method::GET, &format!("/v1/runs/{run}?access_token={token}")).await.ok(200);
    bare(&api, Method::GET, &format!("/v1/info?access_token={token}")).await.refused(403, "FORBIDDEN");
}

#[tokio::test]
async fn a_token_dies_in_time_and_with_the_key_that_asked_for_it() {
    let api = Api::start().await;
    let (run, _) = api.finished_run().await;
    let workspace = api.store.ensure_workspace("default").await.unwrap();
    let scope = RunScope { run_id: RunId(run.parse().unwrap()), issued_by: None };
    let expired = longhaul_shared::api_key::Key::generate(longhaul_shared::api_key::KeyKind::Run);
    let new = NewKey {
        workspace_id: workspace,
        name: "k",
        role: KeyRole::Viewer,
        prefix: expired.prefix(),
        digest: &expired.digest(),
        last_four: expired.last_four(),
        expires_at: Some(1),
        scope: Some(scope),
    };
    api.store.create_key(new).await.unwrap();
    let path = format!("/v1/runs/{run}");
    api.call(expired.reveal(), Method::GET, &path, None).await.refused(401, "UNAUTHENTICATED");

    let viewer = api.key("default", KeyRole::Viewer).await;
    let made = api.call(&viewer, Method::POST, &format!("{path}/token"), None).await.ok(201);
    let token = made["token"].as_str().unwrap();
    let keys = api.store.list_keys(workspace).await.unwrap();
    assert!(keys.iter().all(|key| key.scope.is_none()), "{keys:?}");
    let issuer = keys.iter().find(|key| viewer.starts_with(&key.prefix)).unwrap();
    api.store.revoke_key(workspace, issuer.id).await.unwrap();
    api.call(token, Method::GET, &path, None).await.refused(401, "UNAUTHENTICATED");
}

#[tokio::test]
async fn a_token_lives_as_long_as_was_asked_for() {
    let api = Api::start().await;
    let (run, _) = api.finished_run().await;
    let made = async |query: &str| api.post(&format!("/v1/runs/{run}/token{query}"), Value::Null).await;
    for (query, seconds) in [("", 3600), ("?expiresIn=30s", 30), ("?expiresIn=24h", 86_400)] {
        let before = api.store.now().await.unwrap();
        let view = made(query).await.ok(201);
        let expires = chrono::DateTime::parse_from_rfc3339(view["expiresAt"].as_str().unwrap()).unwrap();
        let life = expires.timestamp_millis() - before;
        assert!((seconds * 1000..seconds * 1000 + 10_000).contains(&life), "{query}: {life}");
    }
    for query in ["?expiresIn=0s", "?expiresIn=25h", "?expiresIn=soon", "?expires=1h"] {
        made(query).await.refused(400, "INVALID_REQUEST");
    }
}

#[tokio::test]
async fn a_tokens_calls_count_against_the_key_that_asked_for_it() {
    let api = Api::with(|config| config.limits.requests_per_minute = 3).await;
    let (run, _) = api.submit("hi").await;
    let (_, token) = token_of(&api, &run).await;
    let path = format!("/v1/runs/{run}");
    api.call(&token, Method::GET, &path, None).await.ok(200);
    api.call(&token, Method::GET, &path, None).await.refused(429, "RATE_LIMITED");
    api.get(&path).await.refused(429, "RATE_LIMITED");
}
