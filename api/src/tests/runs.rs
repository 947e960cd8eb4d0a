//! Runs: submit, read, list, stop.

use axum::http::Method;
use longhaul_shared::{domain::run::Ending, store::KeyRole};
use serde_json::json;
use uuid::Uuid;

use super::Api;

#[tokio::test]
async fn a_submission_is_answered_with_everything_that_is_needed_to_come_back() {
    let api = Api::start().await;
    let answer = api
        .post("/v1/runs", json!({"agent": "helper", "input": "hi", "messageId": "m-1", "tags": ["t"], "metadata": {"k": 1}}))
        .await;
    let body = answer.ok(202);
    let run_id = body["runId"].as_str().unwrap();
    assert_eq!(answer.header("location"), format!("/v1/runs/{run_id}"));
    assert_eq!(answer.header("cache-control"), "no-store");
    assert_eq!(body["eventsUrl"], format!("/v1/runs/{run_id}/events"));
    assert_eq!((&body["messageId"], &body["status"]), (&json!("m-1"), &json!("pending")));
    for id in ["runId", "chatId", "assistantMessageId"] {
        assert!(body[id].as_str().unwrap().parse::<Uuid>().is_ok(), "{id}");
    }

    let run = api.get(answer.header("location")).await.ok(200);
    assert_eq!(run["runId"], run_id);
    assert_eq!(run["chatId"], body["chatId"]);
    assert_eq!(
        (&run["agent"], &run["tags"], &run["metadata"]),
        (&json!("helper"), &json!(["t"]), &json!({"k": 1}))
    );
    assert_eq!(
        (&run["stopping"], &run["attempts"], &run["createdBy"]),
        (&json!(false), &json!(0), &json!("tester"))
    );
    assert_eq!(run["blockedBy"], json!({"kind": "no_worker"}));
    assert_eq!(run["limits"]["deadline"], "1h");
    assert!(run["createdAt"].as_str().unwrap().ends_with('Z'));
}

#[tokio::test]
async fn a_trace_context_is_kept_with_the_run_and_nonsense_is_dropped() {
    let api = Api::start().await;
    let context = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    for (given, kept) in [(context, Some(context)), ("nonsense", None)] {
        let headers = [("content-type", "application/json"), ("traceparent", given)];
        let body = r#"{"agent": "helper", "input": "hi"}"#;
        let submitted = api.call_with(Method::POST, "/v1/runs", &headers, body).await.ok(202);
        let workspace = api.store.workspace("default").await.unwrap().unwrap();
        let run =
            api.store.run(workspace, submitted["runId"].as_str().unwrap().parse().unwrap()).await.unwrap();
        assert_eq!(run.traceparent.as_deref(), kept);
    }
}

#[tokio::test]
async fn a_second_run_in_a_busy_chat_is_refused_or_enqueued_as_asked() {
    let api = Api::start().await;
    let (first, chat) = api.submit("one").await;
    let again = |if_busy| json!({"agent": "helper", "input": "two", "chatId": chat, "ifBusy": if_busy});
    let problem = api.post("/v1/runs", again("reject")).await.refused(409, "A_RUN_ALREADY_ACTIVE");
    assert_eq!(problem["activeRunId"], first.as_str());
    let queued = api.post("/v1/runs", again("enqueue")).await.ok(202);
    assert_eq!((&queued["status"], &queued["position"]), (&json!("queued"), &json!(1)));
    let run = api.get(&format!("/v1/runs/{}", queued["runId"].as_str().unwrap())).await.ok(200);
    assert_eq!(run["blockedBy"], json!({"kind": "run", "runId": first}));
}

#[tokio::test]
async fn a_malformed_submission_is_refused_with_the_place_and_stores_nothing() {
    let api = Api::start().await;
    let cases = [
        (json!({"agent": "helper"}), "/input"),
        (json!({"input": "hi"}), "/agent"),
        (json!({"agent": "helper", "input": "hi", "chatID": "x"}), "/chatID"),
        (json!({"agent": "helper", "input": ""}), "/input"),
        (json!({"agent": "helper", "input": [{"type": "image"}]}), "/input/0/type"),
        (json!({"agent": "helper", "input": "hi", "ifBusy": "steer"}), "/ifBusy"),
        (json!({"agent": "helper", "input": "hi", "delay": "soon"}), "/delay"),
        (json!({"agent": "helper", "input": "hi", "delay": "1s", "runAt": "2030-01-01T00:00:00Z"}), "/delay"),
        (json!({"agent": "helper", "input": "hi", "limits": {"maxSteps": 0}}), "/limits/maxSteps"),
        (json!({"agent": "helper", "input": "hi", "limits": {"maxStep": 1}}), "/limits/maxStep"),
        (json!({"agent": "helper", "input": "hi", "metadata": [1]}), "/metadata"),
        (json!({"agent": "helper", "input": "hi", "tags": ["a", ""]}), "/tags/1"),
    ];
    for (body, pointer) in cases {
        let problem = api.post("/v1/runs", body.clone()).await.refused(400, "INVALID_REQUEST");
        assert_eq!(problem["errors"][0]["pointer"], pointer, "{body}");
    }
    api.post("/v1/runs", json!({"agent": "nobody", "input": "hi"})).await.refused(404, "AGENT_NOT_FOUND");
    let unknown = json!({"agent": "helper", "input": "hi", "chatId": Uuid::now_v7()});
    api.post("/v1/runs", unknown).await.refused(404, "NOT_FOUND");
    let malformed = json!({"agent": "helper", "input": "hi", "chatId": "x"});
    api.post("/v1/runs", malformed).await.refused(404, "NOT_FOUND");
    assert_eq!(api.get("/v1/runs").await.ok(200), json!({"data": [], "nextCursor": null, "hasMore": false}));
    assert_eq!(api.get("/v1/chats").await.ok(200)["data"], json!([]));
}

#[tokio::test]
async fn bodies_are_bounded_and_must_be_json() {
    let api = Api::start().await;
    let json = [("content-type", "application/json")];
    let send = |headers, body: String| {
        let api = &api;
        async move { api.call_with(Method::POST, "/v1/runs", headers, &body).await }
    };
    send(&[][..], "{}".into()).await.refused(415, "UNSUPPORTED_MEDIA_TYPE");
    send(&[("content-type", "text/plain")][..], "{}".into()).await.refused(415, "UNSUPPORTED_MEDIA_TYPE");
    send(&json[..], "{".into()).await.refused(400, "MALFORMED_JSON");
    let body = |len: usize| {
        let empty = r#"{"agent":"helper","input":""}"#.len();
        format!(r#"{{"agent":"helper","input":"{}"}}"#, "x".repeat(len - empty))
    };
    send(&json[..], body(1024 * 1024)).await.ok(202);
    send(&json[..], body(1024 * 1024 + 1)).await.refused(413, "PAYLOAD_TOO_LARGE");
}

#[tokio::test]
async fn a_repeat_with_the_same_key_gets_the_first_answer() {
    let api = Api::start().await;
    let send = |key: &'static str, body: &'static str| {
        let api = &api;
        async move {
            let headers = [("content-type", "application/json"), ("idempotency-key", key)];
            api.call_with(Method::POST, "/v1/runs", &headers, body).await
        }
    };
    let first = send("k-1", r#"{"agent":"helper","input":"hi"}"#).await;
    first.ok(202);
    assert!(!first.headers.contains_key("idempotent-replayed"));
    for key in ["k-1", "\"k-1\""] {
        let again = send(key, r#"{ "input": "hi", "agent": "helper" }"#).await;
        assert_eq!(again.status, 202);
        assert_eq!(again.header("idempotent-replayed"), "true");
        assert_eq!(again.body, first.body);
        assert_eq!(again.header("location"), first.header("location"));
    }
    send("k-1", r#"{"agent":"helper","input":"other"}"#).await.refused(422, "IDEMPOTENCY_KEY_REUSED");
    let other = send("k-2", r#"{"agent":"helper","input":"hi"}"#).await.ok(202);
    assert_ne!(other["runId"], first.json()["runId"]);
    assert_eq!(api.get("/v1/runs").await.ok(200)["data"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn a_repeated_message_id_gets_the_first_run() {
    let api = Api::start().await;
    let chat = api.post("/v1/chats", json!({"agent": "helper"})).await.ok(201);
    let path = format!("/v1/chats/{}/messages", chat["chatId"].as_str().unwrap());
    let first = api.post(&path, json!({"input": "hi", "messageId": "m"})).await;
    let again = api.post(&path, json!({"input": "hi", "messageId": "m"})).await;
    assert_eq!(first.ok(202)["runId"], again.ok(202)["runId"]);
    assert_eq!(again.header("idempotent-replayed"), "true");
    api.post(&path, json!({"input": "other", "messageId": "m"})).await.refused(422, "MESSAGE_ID_REUSED");
}

#[tokio::test]
async fn a_delayed_run_says_when_it_is_due() {
    let api = Api::start().await;
    let answer = api.post("/v1/runs", json!({"agent": "helper", "input": "hi", "delay": "1h"})).await.ok(202);
    assert_eq!(answer["status"], "scheduled");
    let run = api.get(&format!("/v1/runs/{}", answer["runId"].as_str().unwrap())).await.ok(200);
    assert_eq!(run["blockedBy"], json!({"kind": "run_at", "runAt": run["runAt"]}));
}

#[tokio::test]
async fn lists_go_page_by_page_and_follow_their_link() {
    let api = Api::start().await;
    let mut made = vec![];
    for n in 0..5 {
        made.push(api.submit(&n.to_string()).await.0);
    }
    made.reverse();
    let (mut path, mut seen) = ("/v1/runs?limit=2".to_owned(), vec![]);
    loop {
        let page = api.get(&path).await;
        let body = page.ok(200);
        seen.extend(
            body["data"].as_array().unwrap().iter().map(|run| run["runId"].as_str().unwrap().to_owned()),
        );
        if body["hasMore"] == false {
            assert!(body["nextCursor"].is_null() && !page.headers.contains_key("link"));
            break;
        }
        assert_eq!(body["data"].as_array().unwrap().len(), 2);
        let link = page.header("link");
        path = link.strip_prefix('<').unwrap().strip_suffix(">; rel=\"next\"").unwrap().to_owned();
        assert!(path.ends_with(body["nextCursor"].as_str().unwrap()));
    }
    assert_eq!(seen, made);
}

#[tokio::test]
async fn lists_are_filtered_and_refuse_what_they_do_not_know() {
    let api = Api::start().await;
    let (done, chat) = api.finished_run().await;
    let (waiting, _) = api.submit("two").await;
    let ids = |answer: serde_json::Value| -> Vec<String> {
        answer["data"]
            .as_array()
            .unwrap()
            .iter()
            .map(|run| run["runId"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(ids(api.get("/v1/runs?status=succeeded").await.ok(200)), [done.as_str()]);
    assert_eq!(ids(api.get("/v1/runs?status=pending,running").await.ok(200)), [waiting.as_str()]);
    assert_eq!(ids(api.get(&format!("/v1/runs?chatId={chat}")).await.ok(200)), [done.as_str()]);
    assert_eq!(ids(api.get("/v1/runs?agent=helper&limit=200").await.ok(200)).len(), 2);
    assert!(ids(api.get("/v1/runs?tag=none").await.ok(200)).is_empty());
    assert!(ids(api.get("/v1/runs?createdAfter=2999-01-01T00:00:00Z").await.ok(200)).is_empty());
    assert_eq!(ids(api.get("/v1/runs?createdBefore=2999-01-01T00:00:00Z").await.ok(200)).len(), 2);

    for (query, parameter) in [
        ("limit=0", "limit"),
        ("limit=201", "limit"),
        ("limit=x", "limit"),
        ("statsu=queued", "statsu"),
        ("status=gone", "status"),
        ("createdAfter=now", "createdAfter"),
        ("chatId=x", "chatId"),
    ] {
        let problem = api.get(&format!("/v1/runs?{query}")).await.refused(400, "INVALID_REQUEST");
        assert_eq!(problem["errors"][0]["parameter"], parameter, "{query}");
    }
    api.get("/v1/runs?cursor=zzz").await.refused(400, "INVALID_CURSOR");
}

#[tokio::test]
async fn a_finished_run_shows_its_steps_usage_and_timings() {
    let api = Api::start().await;
    let (id, _) = api.finished_run().await;
    let run = api.get(&format!("/v1/runs/{id}")).await.ok(200);
    assert_eq!((&run["status"], &run["reason"]), (&json!("succeeded"), &json!("done")));
    assert_eq!((&run["stepCount"], &run["usage"]["inputTokens"]), (&json!(1), &json!(3)));
    assert!(run["queueWaitMs"].is_i64() && run["durationMs"].is_i64() && run["finishedAt"].is_string());
    assert!(run.get("blockedBy").is_none() && run.get("error").is_none());

    let steps = api.get(&format!("/v1/runs/{id}/steps")).await.ok(200);
    assert_eq!(steps["data"][0]["output"], json!([{"type": "text", "text": "Hello"}]));
    assert_eq!((&steps["data"][0]["step"], &steps["data"][0]["finishReason"]), (&json!(1), &json!("stop")));
}

#[tokio::test]
async fn a_stop_may_be_repeated_and_a_finished_run_is_told_so() {
    let api = Api::start().await;
    let (id, _) = api.submit("hi").await;
    let path = format!("/v1/runs/{id}/stop");
    let stopped = api.call(&api.key, Method::POST, &path, None).await.ok(202);
    assert_eq!((&stopped["status"], &stopped["reason"]), (&json!("aborted"), &json!("stop")));
    let again = api.call(&api.key, Method::POST, &path, None).await.ok(200);
    assert_eq!(again["status"], "aborted");
    api.call(&api.key, Method::POST, &format!("{path}?wait=61"), None).await.refused(400, "INVALID_REQUEST");
}

#[tokio::test]
async fn a_stop_that_waits_answers_with_the_end_or_with_what_is_known_by_then() {
    let api = std::sync::Arc::new(Api::start().await);
    let (id, _) = api.submit("hi").await;
    let mut claim = api.claim().await;
    let path = format!("/v1/runs/{id}/stop");
    let held = api.call(&api.key, Method::POST, &format!("{path}?wait=1"), None).await.ok(202);
    assert_eq!((&held["status"], &held["stopping"]), (&json!("running"), &json!(true)));

    let waiting = tokio::spawn({
        let (api, path) = (api.clone(), format!("{path}?wait=30"));
        async move { api.call(&api.key, Method::POST, &path, None).await }
    });
    // The stop appended `run.stopping`, which the holder reads before it goes on.
    claim.last_seq = api.get(&format!("/v1/runs/{id}")).await.ok(200)["lastSeq"].as_i64().unwrap();
    let first = claim.last_seq + 1;
    api.say(&mut claim, &super::hello()).await;
    api.finish_as(Ending::stopped(), &mut claim, first, "Hello").await;
    let ended = waiting.await.unwrap().ok(200);
    assert_eq!((&ended["stopping"], &ended["status"]), (&json!(false), &json!("aborted")));
    assert!(ended["finishedAt"].is_string());
}

#[tokio::test]
async fn a_run_is_stopped_by_the_key_of_its_submission() {
    let api = Api::start().await;
    let submit = async |key: &str| {
        let headers = [("content-type", "application/json"), ("idempotency-key", key)];
        api.call_with(Method::POST, "/v1/runs", &headers, r#"{"agent":"helper","input":"hi"}"#).await
    };
    let stop = async |key: &str| api.post("/v1/runs/stop", json!({"idempotencyKey": key})).await;
    let run = submit("known").await.ok(202);
    let stopped = stop("known").await.ok(202);
    assert_eq!((&stopped["runId"], &stopped["status"]), (&run["runId"], &json!("aborted")));
    assert_eq!(stop("\"known\"").await.ok(200)["status"], "aborted", "it was over already");

    let noted = stop("early").await.ok(202);
    assert_eq!(noted["idempotencyKey"], "early");
    assert!(noted["stopRequestedAt"].is_string() && noted["expiresAt"].is_string(), "{noted}");
    assert_eq!(stop("early").await.ok(202), noted);
    let early = submit("early").await;
    assert_eq!(early.ok(202)["status"], "aborted");
    assert_eq!(submit("early").await.body, early.body);

    let other = api.key("default", KeyRole::Operator).await;
    let foreign =
        api.call(&other, Method::POST, "/v1/runs/stop", Some(json!({"idempotencyKey": "known"}))).await;
    assert_eq!(foreign.ok(202)["idempotencyKey"], "known", "keys are their callers' own");
    let viewer = api.key("default", KeyRole::Viewer).await;
    let refused =
        api.call(&viewer, Method::POST, "/v1/runs/stop", Some(json!({"idempotencyKey": "known"}))).await;
    refused.refused(403, "FORBIDDEN");
    for key in ["", &"k".repeat(256), "\u{e4}"] {
        let problem = stop(key).await.refused(400, "INVALID_REQUEST");
        assert_eq!(problem["errors"][0]["pointer"], "/idempotencyKey");
    }
}
