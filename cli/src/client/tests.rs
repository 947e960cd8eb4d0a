//! What is sent again, what is not, and what a request carries.

use serde_json::json;

use super::{
    fake_server::{Answer, FakeServer, answer, client},
    view::{Chat, Run, Submitted},
    *,
};

const RUN: &str = r#"{"runId":"r1","chatId":"c1","status":"pending"}"#;

#[tokio::test]
async fn a_submission_whose_answer_was_lost_is_sent_again_under_the_same_key() {
    let server = FakeServer::start(|n, _| match n {
        0 => Answer::Reset(Vec::new()),
        1 => answer(409, "", r#"{"code":"IDEMPOTENCY_KEY_IN_FLIGHT"}"#),
        2 => answer(503, "retry-after: 0\r\n", r#"{"code":"A_RUN_BEGIN_FAILED"}"#),
        _ => answer(202, "idempotent-replayed: true\r\n", RUN),
    })
    .await;
    let body = json!({"agent": "demo", "input": "hi"});
    let (run, replayed) = server.client().post::<Submitted>(&["v1", "runs"], "key-1", &body).await.unwrap();
    assert_eq!((run.item.run_id.as_str(), replayed), ("r1", true));
    let requests = server.requests();
    assert_eq!(requests.len(), 4);
    for request in requests {
        assert!(request.starts_with("POST /v1/runs HTTP/1.1"), "{request}");
        assert!(request.contains("idempotency-key: key-1"), "{request}");
        assert!(request.ends_with(r#"{"agent":"demo","input":"hi"}"#), "{request}");
    }
}

#[tokio::test]
async fn a_refusal_that_stays_is_not_asked_again() {
    for status in [400, 401, 404, 409, 422, 500] {
        let server = FakeServer::start(move |_, _| answer(status, "", r#"{"code":"NO"}"#)).await;
        let refused = server.client().post::<Submitted>(&["v1", "runs"], "k", &json!({})).await;
        assert!(matches!(refused.unwrap_err(), ClientError::Refused { .. }));
        assert_eq!(server.requests().len(), 1, "{status}");
    }
}

#[tokio::test]
async fn a_server_that_is_not_there_is_named_soon() {
    let server = FakeServer::start(|_, _| Answer::Hang(Vec::new())).await;
    let address = server.address;
    drop(server);
    let begin = Instant::now();
    let error = client(address, None).get::<Run>(&["v1", "runs", "r"], &[]).await.unwrap_err();
    assert!(begin.elapsed() < PATIENCE_UNREACHED + Duration::from_secs(1));
    let message = Failure::from(error).message.unwrap();
    assert!(message.contains(&address.to_string()) && message.contains("longhaul dev"), "{message}");
}

#[tokio::test]
async fn all_pages_of_a_list_are_read_with_their_cursors() {
    let server = FakeServer::start(|n, _| match n {
        0 => answer(200, "", r#"{"data":[{"chatId":"a","x":1}],"nextCursor":"n+1","hasMore":true}"#),
        _ => answer(200, "", r#"{"data":[{"chatId":"b"}],"nextCursor":null,"hasMore":false}"#),
    })
    .await;
    let chats = server.client().list::<Chat>(&["v1", "chats"], Vec::new(), 1, true).await.unwrap();
    let ids: Vec<_> = chats.iter().map(|chat| chat.item.id.as_str()).collect();
    assert_eq!((ids, chats[0].raw["x"].as_i64()), (vec!["a", "b"], Some(1)));
    let requests = server.requests();
    assert!(requests[0].starts_with("GET /v1/chats?limit=1 "), "{}", requests[0]);
    assert!(requests[1].starts_with("GET /v1/chats?limit=1&cursor=n%2B1 "), "{}", requests[1]);
}

#[tokio::test]
async fn the_key_goes_to_the_server_and_nowhere_else() {
    let server = FakeServer::start(|_, _| answer(302, "location: http://127.0.0.1:1/\r\n", "")).await;
    let keyed = client(server.address, Some("lh_live_secret"));
    let error = keyed.get::<Run>(&["v1", "runs", "a/b?c"], &[]).await.unwrap_err();
    assert!(matches!(error, ClientError::Refused { .. }), "a redirect is not followed: {error}");
    let request = &server.requests()[0];
    assert!(request.contains("authorization: Bearer lh_live_secret"), "{request}");
    assert!(request.starts_with("GET /v1/runs/a%2Fb%3Fc "), "{request}");
    assert!(!format!("{keyed:?}").contains("lh_live_secret"));
}

#[test]
fn addresses_that_are_none_and_keys_that_are_none_are_refused() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    assert!(Client::new(Url::parse("mailto:a@b").unwrap(), None).is_err());
    assert!(Client::new(Url::parse("redis://h").unwrap(), None).is_err());
    assert!(Client::new(Url::parse("http://h").unwrap(), Some("a\nb")).is_err());
}
