//! What the AI SDK's transports are answered: submit, resume, stop, load.

use std::time::Duration;

use axum::{
    body::Body,
    http::{Method, Request},
};
use futures::StreamExt;
use longhaul_shared::{domain::event::EventData, store::KeyRole};
use serde_json::{Value, json};

use super::{Answer, Api, hello};

fn body(chat: &str, message: &str, text: &str) -> Value {
    json!({"id": chat, "messages": [{"id": message, "role": "user", "parts": [{"type": "text", "text": text}]}],
        "trigger": "submit-message"})
}

/// The chunks of a stream, without what is said at its end.
fn chunks(text: &str) -> Vec<Value> {
    let mut lines: Vec<_> = text
        .split("\n\n")
        .filter_map(|block| block.lines().find_map(|line| line.strip_prefix("data: ")))
        .collect();
    assert_eq!(lines.pop(), Some("[DONE]"), "{text}");
    lines.into_iter().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn kinds(chunks: &[Value]) -> Vec<&str> {
    chunks.iter().map(|chunk| chunk["type"].as_str().unwrap()).collect()
}

const HELLO: [&str; 8] =
    ["start", "start-step", "text-start", "text-delta", "text-delta", "text-end", "finish-step", "finish"];

/// Submits and answers "Hello" while the page watches.
async fn talk(api: &Api, body: &Value) -> Answer {
    talk_as(api, "application/json", body).await
}

async fn talk_as(api: &Api, kind: &str, body: &Value) -> Answer {
    let (headers, text) = ([("content-type", kind)], body.to_string());
    let (answer, ()) = tokio::join!(api.call_with(Method::POST, "/api/chat", &headers, &text), async {
        let mut claim = api.claim_soon().await;
        api.say(&mut claim, &hello()).await;
        api.finish(&mut claim, 3, "Hello").await;
    });
    answer
}

#[tokio::test]
async fn a_chat_goes_on_under_each_of_its_names() {
    let api = Api::start().await;
    let (run_id, chat_id) = api.finished_run().await;
    let (response, conversation) =
        (format!("resp_{}", run_id.replace('-', "")), format!("conv_{}", chat_id.replace('-', "")));
    for (number, name) in [&chat_id, &run_id, &response, &conversation].into_iter().enumerate() {
        let seen = chunks(talk(&api, &body(name, &format!("m{number}"), "more")).await.text());
        let run = seen[0]["messageMetadata"]["runId"].as_str().unwrap();
        let run = api.get(&format!("/v1/runs/{run}")).await.ok(200);
        assert_eq!(run["chatId"], chat_id, "{name}");
        let loaded = api.get(&format!("/api/chat/{name}")).await.ok(200);
        assert_eq!(loaded["messages"].as_array().unwrap().len(), 2 * (number + 2), "{name}");
    }
}

#[tokio::test]
async fn a_message_without_a_chat_that_is_sent_again_joins_its_run_while_that_is_under_way() {
    let api = std::sync::Arc::new(Api::start().await);
    let operator = api.key("default", KeyRole::Operator).await;
    let post = |key: &str, text: &str| {
        let message = json!({"id": "m1", "role": "user", "parts": [{"type": "text", "text": text}]});
        let request = Request::builder()
            .method(Method::POST)
            .uri("/api/chat")
            .header("authorization", format!("Bearer {key}"))
            .header("content-type", "text/plain")
            .body(Body::from(json!({"messages": [message]}).to_string()))
            .unwrap();
        let api = api.clone();
        // The head comes at once, the answer with the run.
        async move { api.respond(request).await.headers()["x-workflow-run-id"].clone() }
    };
    let first = post(&api.key, "hi").await;
    assert_eq!(post(&api.key, "hi").await, first);
    assert_ne!(post(&api.key, "ho").await, first, "another message");
    assert_ne!(post(&operator, "hi").await, first, "another caller");
    for _ in 0..3 {
        let mut claim = api.claim().await;
        api.say(&mut claim, &hello()).await;
        api.finish(&mut claim, 3, "Hello").await;
    }
    assert_ne!(post(&api.key, "hi").await, first, "it is over");
}

#[tokio::test]
async fn a_chat_that_was_deleted_is_not_begun_again_under_its_id() {
    let api = Api::start().await;
    let (_, chat_id) = api.finished_run().await;
    let admin = api.key("default", KeyRole::Admin).await;
    let conversation = format!("conv_{}", chat_id.replace('-', ""));
    api.call(&admin, Method::DELETE, &format!("/v1/conversations/{conversation}"), None).await.ok(200);
    let again = api.post("/api/chat", body(&conversation, "m1", "more")).await;
    assert_eq!((again.status.as_u16(), again.text()), (404, "this chat was deleted"));
}

#[tokio::test]
async fn a_question_that_waits_is_not_shown_before_the_answer_that_it_waits_for() {
    let api = Api::start().await;
    let (run_id, chat_id) = api.submit("first").await;
    let queued = json!({"agent": "helper", "input": "second", "ifBusy": "enqueue"});
    api.post(&format!("/v1/chats/{chat_id}/messages"), queued).await.ok(202);
    let shown = async || {
        let loaded = api.get(&format!("/api/chat/{chat_id}")).await.ok(200);
        let texts = loaded["messages"].as_array().unwrap().iter().map(|message| message["parts"].clone());
        (loaded["activeRunId"].clone(), texts.count())
    };
    assert_eq!(shown().await, (json!(run_id), 1));
    let mut claim = api.claim().await;
    api.say(&mut claim, &hello()).await;
    api.finish(&mut claim, 3, "Hello").await;
    let (active, count) = shown().await;
    assert!(active != json!(run_id) && count == 3, "{active}: {count}");
}

#[tokio::test]
async fn a_page_submits_and_sees_the_answer_and_a_reload_shows_the_same() {
    let api = Api::start().await;
    let answer = talk(&api, &body("my chat", "m1", "hi")).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("content-type"), "text/event-stream");
    assert_eq!(answer.header("x-vercel-ai-ui-message-stream"), "v1");
    assert_eq!(answer.header("cache-control"), "no-cache, no-transform");
    let seen = chunks(answer.text());
    assert_eq!(kinds(&seen), HELLO);
    assert_eq!(seen[0]["messageMetadata"]["runId"], answer.header("x-workflow-run-id"));

    let loaded = api.get("/api/chat/my%20chat").await.ok(200);
    assert_eq!((&loaded["id"], &loaded["activeRunId"]), (&json!("my chat"), &Value::Null));
    let messages = loaded["messages"].as_array().unwrap();
    assert_eq!(messages.len(), 2);
    assert_eq!((&messages[0]["id"], &messages[0]["parts"][0]["text"]), (&json!("m1"), &json!("hi")));
    assert_eq!(messages[1]["id"], seen[0]["messageId"]);
    let parts = json!([{"type": "step-start"}, {"type": "text", "text": "Hello", "state": "done"}]);
    assert_eq!(messages[1]["parts"], parts);

    let second = talk(&api, &body("my chat", "m2", "and?")).await;
    assert_eq!(kinds(&chunks(second.text())), HELLO);
    assert_eq!(api.get("/api/chat/my%20chat").await.ok(200)["messages"].as_array().unwrap().len(), 4);
}

#[tokio::test]
async fn a_repeated_submit_joins_its_run_and_another_one_is_refused_in_words() {
    let api = Api::start().await;
    let first = open(&api, &body("c", "m1", "hi")).await;
    let again = open(&api, &body("c", "m1", "hi")).await;
    assert_eq!(first.headers["x-workflow-run-id"], again.headers["x-workflow-run-id"]);
    let busy = api.post("/api/chat", body("c", "m2", "and?")).await;
    assert_eq!((busy.status.as_u16(), busy.text()), (409, "A run is already active in this chat"));
    assert_eq!(api.get("/v1/runs").await.ok(200)["data"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn racing_submits_of_one_message_in_a_new_chat_make_one_run() {
    let api = Api::start().await;
    for round in 0..50 {
        let chat = format!("c{round}");
        let racers = (0..4).map(|_| open_owned(&api, body(&chat, "m", "hi")));
        let runs: Vec<_> = futures::future::join_all(racers).await;
        assert!(runs.iter().all(|run| *run == runs[0]), "{runs:?}");
    }
    assert_eq!(api.get("/v1/runs?limit=200").await.ok(200)["data"].as_array().unwrap().len(), 50);
}

async fn open_owned(api: &Api, body: Value) -> String {
    let opened = open(api, &body).await;
    opened.headers["x-workflow-run-id"].to_str().unwrap().to_owned()
}

/// The head of an answer whose stream goes on.
struct Open {
    headers: axum::http::HeaderMap,
    _body: Body,
}

async fn open(api: &Api, body: &Value) -> Open {
    let request = Request::post("/api/chat").header("authorization", format!("Bearer {}", api.key));
    let response = api.respond(request.body(Body::from(body.to_string())).unwrap()).await;
    let (parts, body) = response.into_parts();
    assert_eq!(parts.status, 200, "{parts:?}");
    Open { headers: parts.headers, _body: body }
}

#[tokio::test]
async fn a_body_may_say_that_it_is_text_and_name_no_chat() {
    let api = Api::start().await;
    let body = json!({"messages": [{"id": "m", "role": "user", "parts": [{"type": "text", "text": "hi"}]}]});
    let answer = talk_as(&api, "text/plain", &body).await;
    assert_eq!(kinds(&chunks(answer.text())), HELLO);
    for (bad, status, words) in [
        ("{", 400, "EOF"),
        (r#"{"messages":[]}"#, 400, "/messages: must not be empty"),
        (r#"{"messages":[{"role":"user","content":"  "}]}"#, 400, "must not be empty"),
        (
            r#"{"agent":"nobody","messages":[{"role":"user","content":"x"}]}"#,
            404,
            "there is no agent `nobody`",
        ),
    ] {
        let refused = api.call_with(Method::POST, "/api/chat", &[("content-type", "text/plain")], bad).await;
        assert_eq!(refused.status, status, "{refused:?}");
        assert!(refused.text().contains(words), "{refused:?}");
        assert!(refused.header("content-type").starts_with("text/plain"));
    }
}

#[tokio::test]
async fn what_is_idle_over_or_unknown_has_nothing_to_resume() {
    let api = Api::start().await;
    talk(&api, &body("c", "m1", "hi")).await;
    let nothing = uuid::Uuid::now_v7().to_string();
    for id in ["c", "never%20seen", &nothing, "%F0%9F%98%80%2F.."] {
        assert_eq!(api.get(&format!("/api/chat/{id}/stream")).await.status, 204, "{id}");
    }
    let fresh = api.get("/api/chat/fresh").await.ok(200);
    assert_eq!(fresh, json!({"id": "fresh", "messages": [], "activeRunId": null, "before": null}));
}

#[tokio::test]
async fn a_resume_is_the_whole_run_from_its_start_and_the_load_leaves_it_out() {
    let api = Api::start().await;
    let opened = open(&api, &body("c", "m1", "hi")).await;
    let run = opened.headers["x-workflow-run-id"].to_str().unwrap().to_owned();
    let mut claim = api.claim().await;
    api.say(&mut claim, &hello()).await;
    let loaded = api.get("/api/chat/c").await.ok(200);
    assert_eq!((&loaded["activeRunId"], loaded["messages"].as_array().unwrap().len()), (&json!(run), 1));
    let request = Request::get("/api/chat/c/stream").header("authorization", format!("Bearer {}", api.key));
    let resumed = api.respond(request.body(Body::empty()).unwrap()).await;
    api.finish(&mut claim, 3, "Hello").await;
    let bytes = axum::body::to_bytes(resumed.into_body(), usize::MAX).await.unwrap();
    assert_eq!(kinds(&chunks(std::str::from_utf8(&bytes).unwrap())), HELLO);
}

#[tokio::test]
async fn a_tail_to_which_nothing_is_sent_beats_though_its_run_goes_on() {
    let api = Api::with(|config| config.stream.heartbeat = Duration::from_millis(20)).await;
    let opened = open(&api, &body("c", "m1", "hi")).await;
    let run = opened.headers["x-workflow-run-id"].to_str().unwrap();
    let mut claim = api.claim().await;
    let path = format!("/api/chat/{run}/stream?startIndex=9999");
    let request = Request::get(path).header("authorization", format!("Bearer {}", api.key));
    let response = api.respond(request.body(Body::empty()).unwrap()).await;
    let mut stream = response.into_body().into_data_stream();
    let talking = async {
        loop {
            api.say(&mut claim, &[EventData::TextDelta { text: "x".into() }]).await;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        beat = tokio::time::timeout(Duration::from_secs(10), stream.next()) => {
            assert_eq!(&beat.expect("a heartbeat").unwrap().unwrap()[..], b": hb\n");
        }
        () = talking => {}
    }
}

#[tokio::test]
async fn a_page_may_name_its_chat_by_the_last_answer_and_any_chat_by_its_id() {
    let api = Api::start().await;
    let nameless = |messages: Value| json!({"messages": messages});
    let hi = json!({"id": "m1", "role": "user", "content": "hi"});
    let first = talk(&api, &nameless(json!([hi]))).await;
    let seen = chunks(first.text());
    let told = json!({"id": seen[0]["messageId"], "role": "assistant", "parts": []});
    let second = talk(&api, &nameless(json!([hi, told, {"role": "user", "content": "and?"}]))).await;
    let run = second.header("x-workflow-run-id");
    let loaded = api.get(&format!("/api/chat/{run}")).await.ok(200);
    assert_eq!(loaded["messages"].as_array().unwrap().len(), 4, "one conversation");
    let chat = api.get(&format!("/v1/runs/{run}")).await.ok(200)["chatId"].as_str().unwrap().to_owned();
    assert_eq!(api.get(&format!("/api/chat/{chat}")).await.ok(200)["messages"], loaded["messages"]);

    let stranger = api.key("other", KeyRole::Admin).await;
    let theft = nameless(json!([told, {"role": "user", "content": "and?"}]));
    let request = Request::post("/api/chat").header("authorization", format!("Bearer {stranger}"));
    let own = api.respond(request.body(Body::from(theft.to_string())).unwrap()).await;
    assert_eq!(own.status(), 200, "in a chat of its own");
    assert_eq!(api.get(&format!("/api/chat/{chat}")).await.ok(200)["messages"], loaded["messages"]);
}

#[tokio::test]
async fn a_long_chat_is_loaded_in_pieces() {
    let api = Api::start().await;
    for turn in 1..=5 {
        talk(&api, &body("c", &format!("m{turn}"), "hi")).await;
    }
    let ids = |loaded: &Value| {
        let messages = loaded["messages"].as_array().unwrap().iter();
        messages
            .filter(|m| m["role"] == "user")
            .map(|m| m["id"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    let newest = api.get("/api/chat/c?turns=2").await.ok(200);
    assert_eq!((ids(&newest), &newest["before"]), (vec!["m4".to_owned(), "m5".to_owned()], &json!(4)));
    let older = api.get("/api/chat/c?turns=2&before=4").await.ok(200);
    assert_eq!((ids(&older), &older["before"]), (vec!["m2".to_owned(), "m3".to_owned()], &json!(2)));
    let oldest = api.get("/api/chat/c?turns=2&before=2").await.ok(200);
    assert_eq!((ids(&oldest), &oldest["before"]), (vec!["m1".to_owned()], &Value::Null));
    assert_eq!(ids(&api.get("/api/chat/c").await.ok(200)).len(), 5);
    assert_eq!(api.get("/api/chat/c?turns=101").await.status, 400);
}

#[tokio::test]
async fn a_deleted_chat_takes_nothing_and_says_why() {
    let api = Api::start().await;
    let answer = talk(&api, &body("c", "m1", "hi")).await;
    let run = api.get(&format!("/v1/runs/{}", answer.header("x-workflow-run-id"))).await.ok(200);
    let admin = api.key("default", KeyRole::Admin).await;
    let chat = format!("/v1/chats/{}", run["chatId"].as_str().unwrap());
    assert!(api.call(&admin, Method::DELETE, &chat, None).await.status.is_success());
    let refused = api.post("/api/chat", body("c", "m2", "and?")).await;
    assert_eq!((refused.status.as_u16(), refused.text()), (404, "this chat was deleted"));
    assert_eq!(api.get("/api/chat/c/stream").await.status, 204);
}

#[tokio::test]
async fn a_run_is_read_from_any_chunk_on_also_after_its_end() {
    let api = Api::start().await;
    let whole = talk(&api, &body("c", "m1", "hi")).await;
    let run = whole.header("x-workflow-run-id").to_owned();
    let all = chunks(whole.text());
    for start in 0..=all.len() + 1 {
        let answer = api.get(&format!("/api/chat/{run}/stream?startIndex={start}")).await;
        assert_eq!(chunks(answer.text()), all[start.min(all.len())..]);
        assert!(!answer.headers.contains_key("x-workflow-stream-tail-index"));
    }
    for (back, from) in [(1, 7), (3, 5), (8, 0), (9, 0)] {
        let answer = api.get(&format!("/api/chat/{run}/stream?startIndex=-{back}")).await;
        assert_eq!(chunks(answer.text()), all[from..]);
        assert_eq!(answer.header("x-workflow-stream-tail-index"), "7");
    }
    assert_eq!(api.get(&format!("/api/chat/{run}/stream")).await.body, whole.body, "the same bytes");
}

#[tokio::test]
async fn the_stop_button_ends_the_run_and_its_stream_finishes() {
    let api = Api::start().await;
    let request = Request::post("/api/chat").header("authorization", format!("Bearer {}", api.key));
    let response = api.respond(request.body(Body::from(body("c", "m1", "hi").to_string())).unwrap()).await;
    for _ in 0..2 {
        assert_eq!(api.post("/api/chat/c/stop", json!({})).await.ok(200), json!({"success": true}));
    }
    let mut text = String::new();
    let mut stream = response.into_body().into_data_stream();
    while let Some(bytes) = stream.next().await {
        text.push_str(std::str::from_utf8(&bytes.unwrap()).unwrap());
    }
    assert_eq!(kinds(&chunks(&text)), ["start", "abort", "finish"]);
    assert_eq!(api.post("/api/chat/unknown/stop", json!({})).await.status, 404);
}

#[tokio::test]
async fn another_workspace_sees_nothing_of_a_chat_and_may_use_its_name() {
    let api = Api::start().await;
    let whole = talk(&api, &body("c", "m1", "hi")).await;
    let run = whole.header("x-workflow-run-id");
    let stranger = api.key("other", KeyRole::Admin).await;
    for path in ["/api/chat/c/stream".to_owned(), format!("/api/chat/{run}/stream?startIndex=0")] {
        assert_eq!(api.call(&stranger, Method::GET, &path, None).await.status, 204, "{path}");
    }
    let seen = api.call(&stranger, Method::GET, "/api/chat/c", None).await.ok(200);
    assert_eq!(seen["messages"], json!([]));
    for id in ["c", run] {
        let path = format!("/api/chat/{id}/stop");
        assert_eq!(api.call(&stranger, Method::POST, &path, None).await.status, 404);
    }
    let request = Request::post("/api/chat").header("authorization", format!("Bearer {stranger}"));
    let own = api.respond(request.body(Body::from(body("c", "m1", "mine").to_string())).unwrap()).await;
    assert_eq!(own.status(), 200);
    let viewer = api.key("default", KeyRole::Viewer).await;
    assert_eq!(api.call(&viewer, Method::POST, "/api/chat", Some(body("v", "m", "hi"))).await.status, 403);
}
