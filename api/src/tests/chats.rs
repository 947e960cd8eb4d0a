//! Chats, their messages, and what a page asks for when it comes back.

use axum::http::Method;
use serde_json::json;

use super::{Api, hello};
use longhaul_shared::store::KeyRole;

#[tokio::test]
async fn a_chat_is_made_read_changed_and_deleted() {
    let api = Api::start().await;
    let made = api.post("/v1/chats", json!({"title": "a", "contextRef": "c", "metadata": {"k": 1}})).await;
    let chat = made.ok(201);
    let path = made.header("location").to_owned();
    assert_eq!(path, format!("/v1/chats/{}", chat["chatId"].as_str().unwrap()));
    assert_eq!(api.get(&path).await.ok(200), chat);

    let patch = json!({"title": "b", "contextRef": null});
    let changed = api.call(&api.key, Method::PATCH, &path, Some(patch)).await.ok(200);
    assert_eq!((&changed["title"], &changed["contextRef"]), (&json!("b"), &json!(null)));
    assert_eq!(changed["metadata"], json!({"k": 1}), "what is absent is kept");

    let admin = api.key("default", KeyRole::Admin).await;
    assert_eq!(api.call(&admin, Method::DELETE, &path, None).await.status, 204);
    api.get(&path).await.refused(404, "NOT_FOUND");
    api.call(&admin, Method::DELETE, &path, None).await.refused(404, "NOT_FOUND");
    api.post(&format!("{path}/messages"), json!({"agent": "helper", "input": "hi"}))
        .await
        .refused(404, "NOT_FOUND");
}

#[tokio::test]
async fn deleting_a_chat_stops_its_run() {
    let api = Api::start().await;
    let (run, chat) = api.submit("hi").await;
    let admin = api.key("default", KeyRole::Admin).await;
    assert_eq!(api.call(&admin, Method::DELETE, &format!("/v1/chats/{chat}"), None).await.status, 204);
    let run = api.get(&format!("/v1/runs/{run}")).await.ok(200);
    assert_eq!((&run["status"], &run["reason"]), (&json!("aborted"), &json!("chat_deleted")));
}

#[tokio::test]
async fn a_malformed_chat_is_refused_with_the_place() {
    let api = Api::start().await;
    for (body, pointer) in [
        (json!({"titel": "a"}), "/titel"),
        (json!({"title": ""}), "/title"),
        (json!({"title": "x".repeat(501)}), "/title"),
        (json!({"metadata": 1}), "/metadata"),
        (json!({"metadata": {"k": "x".repeat(20_000)}}), "/metadata"),
    ] {
        let problem = api.post("/v1/chats", body).await.refused(400, "INVALID_REQUEST");
        assert_eq!(problem["errors"][0]["pointer"], pointer);
    }
    api.post("/v1/chats", json!({"title": "x".repeat(500)})).await.ok(201);
}

#[tokio::test]
async fn messages_show_a_live_answer_with_the_place_to_go_on_from() {
    let api = Api::start().await;
    let (run, chat) = api.submit("hi").await;
    let mut claim = api.claim().await;
    api.say(&mut claim, &hello()).await;

    let page = api.get(&format!("/v1/chats/{chat}/messages")).await.ok(200);
    let (question, answer) = (&page["data"][0], &page["data"][1]);
    assert_eq!((&question["role"], &question["status"]), (&json!("user"), &json!("completed")));
    assert_eq!(question["parts"], json!([{"type": "text", "text": "hi"}]));
    assert_eq!((&answer["role"], &answer["status"]), (&json!("assistant"), &json!("streaming")));
    assert_eq!(answer["parts"], json!([{"type": "step", "step": 1}, {"type": "text", "text": "Hello"}]));
    assert_eq!((&answer["runId"], &answer["inReplyTo"]), (&json!(run), &question["messageId"]));
    assert_eq!(answer["lastSeq"], claim.last_seq);

    let latest = api.get(&format!("/v1/chats/{chat}/run")).await.ok(200);
    assert_eq!((&latest["run"]["runId"], &latest["run"]["status"]), (&json!(run), &json!("running")));
    assert_eq!(&latest["message"], answer);

    api.finish(&mut claim, 3, "Hello").await;
    let over = api.get(&format!("/v1/chats/{chat}/run")).await.ok(200);
    assert_eq!(
        (&over["run"]["status"], &over["message"]["status"]),
        (&json!("succeeded"), &json!("completed"))
    );
    assert_eq!(over["message"]["parts"], answer["parts"], "what was streamed is what is stored");
}

#[tokio::test]
async fn an_answer_at_the_head_of_a_page_still_names_its_question() {
    let api = Api::start().await;
    let chat = api.post("/v1/chats", json!({"agent": "helper"})).await.ok(201);
    let path = format!("/v1/chats/{}/messages", chat["chatId"].as_str().unwrap());
    api.post(&path, json!({"input": "hi", "messageId": "mine"})).await.ok(202);
    let first = api.get(&format!("{path}?limit=1")).await.ok(200);
    assert_eq!(first["data"][0]["messageId"], "mine");
    let second =
        api.get(&format!("{path}?limit=1&cursor={}", first["nextCursor"].as_str().unwrap())).await.ok(200);
    assert_eq!(second["data"][0]["inReplyTo"], "mine");
    assert_eq!(second["hasMore"], false);
}

#[tokio::test]
async fn a_chat_without_a_run_says_so() {
    let api = Api::start().await;
    let made = api.post("/v1/chats", json!({})).await;
    let path = made.header("location").to_owned();
    assert_eq!(api.get(&format!("{path}/run")).await.ok(200), json!({"run": null, "message": null}));
    let problem = api.post(&format!("{path}/messages"), json!({"input": "hi"})).await;
    assert_eq!(problem.refused(400, "INVALID_REQUEST")["errors"][0]["pointer"], "/agent");
    let other = json!({"agent": "helper", "input": "hi", "chatId": uuid::Uuid::now_v7()});
    let problem = api.post(&format!("{path}/messages"), other).await.refused(400, "INVALID_REQUEST");
    assert_eq!(problem["errors"][0]["pointer"], "/chatId");
}
