//! The log on the wire: bytes, positions, ends.

use std::{fmt::Write, sync::Arc, time::Duration};

use axum::{
    body::Body,
    http::{Method, Request},
};
use futures::StreamExt;
use serde_json::json;

use super::{Answer, Api, hello};

const SSE: (&str, &str) = ("accept", "text/event-stream");

async fn stream(api: &Api, path: &str, headers: &[(&str, &str)]) -> Answer {
    let mut all = vec![SSE];
    all.extend(headers);
    api.call_with(Method::GET, path, &all, "").await
}

/// The numbers and names of the events in a stream.
fn events(text: &str) -> Vec<(i64, String)> {
    text.split("\n\n")
        .filter(|block| !block.is_empty())
        .map(|block| {
            let field =
                |name: &str| block.lines().find_map(|line| line.strip_prefix(name)).unwrap().to_owned();
            (field("id: ").parse().unwrap(), field("event: "))
        })
        .collect()
}

#[tokio::test]
async fn an_event_source_that_comes_too_often_is_cut_off_so_that_it_comes_back() {
    let api = Api::with(|config| config.limits.requests_per_minute = 2).await;
    let (id, _) = api.submit("hi").await;
    let path = format!("/v1/runs/{id}/events");
    api.get(&path).await.ok(200);
    api.get(&path).await.refused(429, "RATE_LIMITED");
    let request = Request::builder()
        .uri(&path)
        .header("authorization", format!("Bearer {}", api.key))
        .header(SSE.0, SSE.1)
        .body(Body::empty())
        .unwrap();
    let answer = api.respond(request).await;
    assert_eq!(answer.status(), 200);
    assert!(axum::body::to_bytes(answer.into_body(), usize::MAX).await.is_err(), "it is no clean end");
    // Others ask for the same and read what they are told.
    let accept = [("accept", "application/json, text/event-stream")];
    let answer = api.call_with(Method::GET, &format!("/v1/runs/{id}"), &accept, "").await;
    answer.refused(429, "RATE_LIMITED");
}

#[tokio::test]
async fn a_finished_run_is_replayed_byte_for_byte_and_ends_with_end() {
    let api = Api::start().await;
    let (id, _) = api.finished_run().await;
    let path = format!("/v1/runs/{id}/events");
    let answer = stream(&api, &path, &[]).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("content-type"), "text/event-stream");
    assert_eq!(answer.header("cache-control"), "no-cache, no-transform");
    assert_eq!(answer.header("x-accel-buffering"), "no");
    assert!(answer.headers.contains_key("x-request-id") && !answer.headers.contains_key("content-encoding"));

    let page = api.get(&path).await.ok(200);
    assert_eq!((&page["done"], &page["nextCursor"]), (&json!(true), &json!(7)));
    let mut expected = "retry: 2000\n".to_owned();
    for envelope in page["data"].as_array().unwrap() {
        let kind = envelope["type"].as_str().unwrap();
        let name = if kind == "run.finished" { "end" } else { kind };
        write!(expected, "id: {}\nevent: {name}\ndata: ", envelope["seq"]).unwrap();
        let start =
            answer.text().find(&expected).expect("the stream goes on as the page says") + expected.len();
        let data = answer.text()[start..].lines().next().unwrap();
        assert_eq!(&serde_json::from_str::<serde_json::Value>(data).unwrap(), envelope);
        expected += data;
        expected += "\n\n";
    }
    assert_eq!(answer.text(), expected);
    assert_eq!(
        events(answer.text()).into_iter().map(|(_, name)| name).collect::<Vec<_>>(),
        ["run.queued", "run.claimed", "step.started", "text.delta", "text.delta", "step.finished", "end"]
    );
    assert_eq!(stream(&api, &path, &[]).await.body, answer.body, "a replay is the same");
}

#[tokio::test]
async fn a_reader_goes_on_behind_its_position_and_204_ends_it() {
    let api = Api::start().await;
    let (id, _) = api.finished_run().await;
    let path = format!("/v1/runs/{id}/events");
    let numbers = |answer: Answer| events(answer.text()).into_iter().map(|(seq, _)| seq).collect::<Vec<_>>();
    for after in 0..7_i64 {
        let rest: Vec<_> = (after + 1..=7).collect();
        assert_eq!(numbers(stream(&api, &format!("{path}?after={after}"), &[]).await), rest);
        let header = after.to_string();
        let answer = stream(&api, &format!("{path}?after=2"), &[("last-event-id", &header)]).await;
        assert_eq!(numbers(answer), rest, "the header wins");
    }
    for seen in ["7", "8", "1000"] {
        let answer = stream(&api, &path, &[("last-event-id", seen)]).await;
        assert_eq!(answer.status, 204);
        assert!(answer.body.is_empty());
    }
    assert_eq!(
        api.get(&format!("{path}?after=7")).await.ok(200),
        json!({"data": [], "nextCursor": 7, "done": true})
    );
}

#[tokio::test]
async fn a_position_or_limit_that_makes_no_sense_is_refused() {
    let api = Api::start().await;
    let (id, _) = api.finished_run().await;
    let path = format!("/v1/runs/{id}/events");
    for query in ["after=-1", "after=x", "limit=0", "limit=1001", "aftr=1"] {
        stream(&api, &format!("{path}?{query}"), &[]).await.refused(400, "INVALID_REQUEST");
    }
    let answer = stream(&api, &path, &[("last-event-id", "x")]).await;
    assert_eq!(answer.refused(400, "INVALID_REQUEST")["errors"][0]["header"], "Last-Event-ID");
    stream(&api, &format!("/v1/runs/{}/events", uuid::Uuid::now_v7()), &[]).await.refused(404, "NOT_FOUND");
}

#[tokio::test]
async fn json_pages_go_through_the_log() {
    let api = Api::start().await;
    let (id, _) = api.finished_run().await;
    let (mut after, mut seen) = (0, vec![]);
    loop {
        let page = api.get(&format!("/v1/runs/{id}/events?limit=3&after={after}")).await.ok(200);
        seen.extend(page["data"].as_array().unwrap().iter().map(|event| event["seq"].as_i64().unwrap()));
        after = page["nextCursor"].as_i64().unwrap();
        if page["done"] == true {
            break;
        }
    }
    assert_eq!(seen, [1, 2, 3, 4, 5, 6, 7]);
}

/// An open stream, as a client reads it.
async fn open(api: &Api, path: &str) -> axum::body::BodyDataStream {
    let request = Request::get(path)
        .header("authorization", format!("Bearer {}", api.key))
        .header("accept", "text/event-stream")
        .body(Body::empty())
        .unwrap();
    let response = tower::ServiceExt::oneshot(crate::router(api.state.clone()), request).await.unwrap();
    assert_eq!(response.status(), 200);
    response.into_body().into_data_stream()
}

#[tokio::test]
async fn a_live_tail_carries_tokens_heartbeats_and_the_end() {
    let api = Api::with(|config| config.stream.heartbeat = Duration::from_millis(50)).await;
    let (id, _) = api.submit("hi").await;
    let mut claim = api.claim().await;
    let mut tail = open(&api, &format!("/v1/runs/{id}/events")).await;
    let mut text = String::new();
    for expected in ["run.claimed", ": hb\n: hb\n"] {
        while !text.contains(expected) {
            text.push_str(std::str::from_utf8(&tail.next().await.unwrap().unwrap()).unwrap());
        }
    }
    api.say(&mut claim, &hello()).await;
    api.finish(&mut claim, 3, "Hello").await;
    while let Some(chunk) = tail.next().await {
        text.push_str(std::str::from_utf8(&chunk.unwrap()).unwrap());
    }
    assert!(!text.contains(": hb\n\n"), "a heartbeat is one line");
    let without_comments: String = text.split_inclusive('\n').filter(|line| !line.starts_with(':')).collect();
    let numbers: Vec<_> = events(&without_comments).into_iter().map(|(seq, _)| seq).collect();
    assert_eq!(numbers, [1, 2, 3, 4, 5, 6, 7]);
    assert!(text.trim_end().rsplit("\n\n").next().unwrap().contains("event: end\n"));
}

#[tokio::test]
async fn a_reader_ahead_of_a_live_log_waits_for_what_comes_behind_its_position() {
    let api = Arc::new(Api::start().await);
    let (id, _) = api.submit("hi").await;
    let mut claim = api.claim().await;
    // The last two wait for what the run will never say; its end is told to them even so.
    let mut tails = vec![];
    for after in [6, 7, 1000] {
        let (api, path) = (api.clone(), format!("/v1/runs/{id}/events?after={after}"));
        tails.push(tokio::spawn(async move { stream(&api, &path, &[]).await }));
    }
    while api.state.tails.following() < tails.len() {
        tokio::task::yield_now().await;
    }
    api.say(&mut claim, &hello()).await;
    api.finish(&mut claim, 3, "Hello").await;
    for tail in tails {
        let answer = tail.await.unwrap();
        assert_eq!(events(answer.text()), [(7, "end".to_owned())]);
    }
}

#[tokio::test]
async fn a_tail_that_ends_for_another_reason_breaks_off() {
    let api = Api::start().await;
    let (id, _) = api.submit("hi").await;
    let mut body = open(&api, &format!("/v1/runs/{id}/events")).await;
    assert_eq!(body.next().await.unwrap().unwrap(), "retry: 2000\n");
    assert!(body.next().await.unwrap().unwrap().starts_with(b"id: 1\n"));
    api.state.begin_drain();
    assert!(body.next().await.unwrap().is_err(), "a clean end would mean that the run ended");
    assert!(body.next().await.is_none());
}

#[tokio::test]
async fn a_stream_that_cannot_be_served_breaks_off_so_that_browsers_come_back() {
    let api = Api::start().await;
    let (id, _) = api.finished_run().await;
    api.get("/v1/info").await.ok(200);
    api.store.close().await;
    let path = format!("/v1/runs/{id}/events");
    api.get(&path).await.refused(503, "UNAVAILABLE");
    assert!(open(&api, &path).await.next().await.unwrap().is_err());
}
