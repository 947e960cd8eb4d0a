//! How runs and steps are asked for and shown.

use clap::Parser;
use serde_json::json;

use super::*;
use crate::{
    client::fake_server::{FakeServer, answer},
    output::{Format, table},
};

fn a_run() -> Seen<Run> {
    let raw = json!({
        "runId": "0197a5c0", "chatId": "c1", "agent": "demo", "status": "running", "stopping": true,
        "reason": null, "error": null, "usage": {"inputTokens": 10, "outputTokens": 2}, "stepCount": 1,
        "attempts": 2, "blockedBy": {"kind": "run", "runId": "r0"}, "tags": ["a"],
        "createdAt": "2026-11-20T10:00:00.100Z", "startedAt": "2026-11-20T10:00:01.000Z",
        "finishedAt": "2026-11-20T10:00:03.500Z",
    });
    Seen::new(raw).unwrap()
}

#[test]
fn a_run_is_a_line_of_the_list() {
    insta::assert_snapshot!(table(HEAD, [row(&a_run().item)].into_iter(), false), @r"
    RUN       STATUS    AGENT  STEPS  CREATED               TOOK  REASON
    0197a5c0  stopping  demo   1      2026-11-20T10:00:00Z  2.5s
    ");
}

#[test]
fn a_run_is_shown_with_why_it_does_not_move() {
    insta::assert_snapshot!(detail(&a_run().item), @r"
    run         0197a5c0
    status      stopping
    blocked by  run r0 of the same chat
    agent       demo
    chat        c1
    steps       1
    attempts    2
    tokens      10 in, 2 out
    tags        a
    created     2026-11-20T10:00:00Z
    started     2026-11-20T10:00:01Z
    finished    2026-11-20T10:00:03Z
    took        2.5s
    ");
    for (by, words) in [
        (json!({"kind": "no_worker"}), "no worker is there for its queue"),
        (json!({"kind": "run_at", "runAt": "2026-11-20T10:00:00Z"}), "its time, 2026-11-20T10:00:00Z"),
        (json!({"kind": "paused_queue"}), "paused queue"),
    ] {
        assert_eq!(blocked(&by), words);
    }
}

#[test]
fn a_step_is_shown_with_its_tools() {
    let raw = json!({"step": 1, "attempt": 2, "model": "demo", "finishReason": "tool_calls",
        "usage": {"inputTokens": 5, "outputTokens": 6},
        "toolCalls": [{"name": "clock", "state": "succeeded"}, {"name": "charge", "state": "unknown"}]});
    let step: Seen<Step> = Seen::new(raw).unwrap();
    insta::assert_snapshot!(table(STEP_HEAD, [step_row(&step.item)].into_iter(), false), @r"
    STEP  ATTEMPT  MODEL  FINISH      TOKENS IN  OUT  TOOK  TOOLS
    1     2        demo   tool_calls  5          6          clock, charge (unknown)
    ");
}

#[test]
fn filters_become_the_apis_parameters() {
    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        list: List,
    }
    let line = "list --status running --status failed --chat c --agent a --tag t --since 1h";
    let query = Line::parse_from(line.split_whitespace()).list.query();
    let names: Vec<_> = query.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, ["status", "chatId", "agent", "tag", "createdAfter"]);
    assert_eq!(query[0].1, "running,failed");
    assert!(humantime::parse_rfc3339(&query[4].1).unwrap() < SystemTime::now());
}

#[tokio::test]
async fn stopping_succeeds_however_the_run_ended() {
    let server = FakeServer::start(|_, request| {
        if request.contains("/events") {
            answer(204, "", "")
        } else {
            answer(200, "", r#"{"runId":"r","status":"aborted"}"#)
        }
    })
    .await;
    let output = Output::new(Format::Jsonl, true);
    for wait in [false, true] {
        assert_eq!(stop(&server.client(), "r", wait, output).await.unwrap(), Exit::Ok);
    }
    let requests = server.requests();
    assert!(requests[0].starts_with("POST /v1/runs/r/stop HTTP/1.1"), "{}", requests[0]);
}

#[tokio::test]
async fn a_key_stops_its_run_or_leaves_a_note() {
    let output = Output::new(Format::Jsonl, true);
    for (answered, paths) in [
        (r#"{"runId":"r","status":"aborted"}"#, &["/v1/runs/stop", "/v1/runs/r/stop"][..]),
        (r#"{"idempotencyKey":"k"}"#, &["/v1/runs/stop"]),
    ] {
        let server = FakeServer::start(move |_, _| answer(202, "", answered)).await;
        assert_eq!(stop_by_key(&server.client(), "k", false, output).await.unwrap(), Exit::Ok);
        let requests = server.requests();
        assert_eq!(requests.len(), paths.len());
        for (request, path) in requests.iter().zip(paths) {
            assert!(request.starts_with(&format!("POST {path} HTTP/1.1")), "{request}");
        }
        assert!(requests[0].contains(r#"{"idempotencyKey":"k"}"#), "{}", requests[0]);
    }
}

#[tokio::test]
async fn stopping_an_unknown_run_is_not_found() {
    let server = FakeServer::start(|_, _| answer(404, "", r#"{"title":"Not found"}"#)).await;
    let failure = stop(&server.client(), "r", false, Output::new(Format::Table, true)).await.unwrap_err();
    assert_eq!(failure.exit, Exit::NotFound);
}
