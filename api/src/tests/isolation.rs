//! A tenant sees its own: every route with an id, taken from the API document, answers another workspace's key as if
//! the thing did not exist.

use axum::http::Method;
use longhaul_shared::store::KeyRole;
use serde_json::{Value, json};
use uuid::Uuid;

use super::Api;
use crate::openapi_json;

/// A body that the route accepts.
fn body_for(method: &Method, path: &str) -> Option<Value> {
    match (method.as_str(), path) {
        ("PATCH", _) => Some(json!({"title": "mine now"})),
        ("POST", path) if path.ends_with("/messages") => Some(json!({"agent": "helper", "input": "hi"})),
        _ => None,
    }
}

#[tokio::test]
async fn every_route_answers_foreign_and_unknown_ids_alike() {
    let api = Api::start().await;
    let (run, chat) = api.finished_run().await;
    let stranger = api.key("other", KeyRole::Admin).await;
    let owner = api.key("default", KeyRole::Admin).await;

    let document: Value = serde_json::from_str(&openapi_json()).unwrap();
    let mut tried = 0;
    for (template, item) in document["paths"].as_object().unwrap() {
        if !template.contains('{') {
            continue;
        }
        for method in item.as_object().unwrap().keys() {
            let method: Method = method.to_uppercase().parse().unwrap();
            let body = body_for(&method, template);
            let problem = |run: String, chat: String| {
                let (api, stranger, method, body) = (&api, &stranger, method.clone(), body.clone());
                let path = template.replace("{runId}", &run).replace("{chatId}", &chat);
                assert!(!path.contains('{'), "{template} has an id that this test does not know");
                async move {
                    let answer = api.call(stranger, method, &path, body).await;
                    let mut problem = answer.refused(404, "NOT_FOUND");
                    let fields = problem.as_object_mut().unwrap();
                    fields.remove("requestId");
                    assert_eq!(fields.remove("instance").unwrap(), path);
                    problem
                }
            };
            let foreign = problem(run.clone(), chat.clone()).await;
            let unknown = problem(Uuid::now_v7().to_string(), Uuid::now_v7().to_string()).await;
            let malformed = problem("x".into(), "x".into()).await;
            assert_eq!(foreign, unknown, "{method} {template}");
            assert_eq!(foreign, malformed, "{method} {template}");
            tried += 1;
        }
    }
    assert!(tried >= 10, "only {tried} routes with an id");

    for list in ["/v1/runs", "/v1/chats"] {
        let page = api.call(&stranger, Method::GET, list, None).await.ok(200);
        assert_eq!(page["data"], json!([]), "{list}");
    }
    let filtered = api.call(&stranger, Method::GET, &format!("/v1/runs?chatId={chat}"), None).await.ok(200);
    assert_eq!(filtered["data"], json!([]));
    let into = json!({"agent": "helper", "input": "hi", "chatId": chat});
    api.call(&stranger, Method::POST, "/v1/runs", Some(into)).await.refused(404, "NOT_FOUND");
    let kept = api.call(&owner, Method::GET, &format!("/v1/chats/{chat}"), None).await.ok(200);
    assert_eq!(kept["title"], Value::Null, "nothing was changed from outside");
}

#[tokio::test]
async fn two_keys_may_use_the_same_idempotency_key() {
    let api = Api::start().await;
    let mut runs = vec![];
    for key in [
        api.key.clone(),
        api.key("default", KeyRole::Operator).await,
        api.key("other", KeyRole::Operator).await,
    ] {
        let headers = [("content-type", "application/json"), ("idempotency-key", "k")];
        let mut request =
            axum::http::Request::post("/v1/runs").header("authorization", format!("Bearer {key}"));
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let body = axum::body::Body::from(r#"{"agent":"helper","input":"hi"}"#);
        let answer = api.send(request.body(body).unwrap()).await;
        assert!(!answer.headers.contains_key("idempotent-replayed"));
        runs.push(answer.ok(202)["runId"].clone());
    }
    assert!(runs[0] != runs[1] && runs[1] != runs[2] && runs[0] != runs[2]);
}
