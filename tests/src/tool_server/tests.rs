//! The tool server, asked by a real HTTP client.

use serde_json::{Value, json};

use super::{Answer, ToolServer};
use crate::http_client;

async fn ask(url: &str, op: &str, key: &str) -> reqwest::Result<reqwest::Response> {
    let request = http_client().post(url).header("Idempotency-Key", key).header("X-Longhaul-Run-Id", "r1");
    request.json(&json!({"arguments": {"op": op}})).send().await
}

async fn result(url: &str, op: &str, key: &str) -> Value {
    ask(url, op, key).await.unwrap().json().await.unwrap()
}

#[tokio::test]
async fn a_plain_tool_counts_each_request_as_an_effect() {
    let tools = ToolServer::start().await.unwrap();
    let url = tools.tool_url("charge");
    assert_eq!(result(&url, "x", "k1").await, json!({"ok": true, "op": "x", "n": 1}));
    assert_eq!(result(&url, "x", "k1").await["n"], 2);
    assert_eq!((tools.effects("x"), tools.keys("x").len()), (2, 1));
    assert_eq!(tools.ledger()[0].header("x-longhaul-run-id"), Some("r1"));
}

#[tokio::test]
async fn an_idempotent_tool_gives_a_repetition_the_first_answer() {
    let tools = ToolServer::start().await.unwrap();
    let url = tools.idem_url("put");
    let first = result(&url, "x", "k1").await;
    assert_eq!(result(&url, "x", "k1").await, first);
    assert_eq!(tools.effects("x"), 1);
    assert_eq!(result(&url, "x", "k2").await["n"], 2);
    assert_eq!(tools.ledger().iter().map(|entry| entry.nth).collect::<Vec<_>>(), [Some(1), None, Some(2)]);
}

#[tokio::test]
async fn gates_hold_a_request_before_and_after_its_effect_even_when_the_client_leaves() {
    let tools = ToolServer::start().await.unwrap();
    let (before, after) = (tools.gate_before("charge"), tools.gate_after("charge"));
    let url = tools.tool_url("charge");
    let client = tokio::spawn(async move { ask(&url, "x", "k1").await });
    before.reached().await;
    assert_eq!(tools.effects("x"), 0);
    client.abort();
    before.open();
    after.reached().await;
    assert_eq!(tools.effects("x"), 1);
}

#[tokio::test]
async fn a_tool_answers_as_it_is_told() {
    let tools = ToolServer::start().await.unwrap();
    let url = tools.tool_url("t");
    tools.behave("t", Answer::Status(503, "busy".to_owned()));
    assert_eq!(ask(&url, "x", "k").await.unwrap().status().as_u16(), 503);
    tools.behave("t", Answer::Redirect("http://127.0.0.1:1/".to_owned()));
    assert_eq!(ask(&url, "x", "k").await.unwrap().status().as_u16(), 307);
    assert_eq!(tools.effects("x"), 0);
    tools.behave("t", Answer::Huge(1_000_000));
    assert!(ask(&url, "x", "k").await.unwrap().bytes().await.unwrap().len() > 1_000_000);
    tools.behave("t", Answer::NotJson);
    assert!(ask(&url, "x", "k").await.unwrap().json::<Value>().await.is_err());
    tools.behave("t", Answer::Reset);
    assert!(ask(&url, "x", "k").await.is_err());
    assert_eq!(tools.effects("x"), 3);
}

#[tokio::test]
async fn a_key_that_never_came_is_refused_once_it_was_asked_about() {
    let tools = ToolServer::start().await.unwrap();
    let (url, gate) = (tools.tool_url("pay"), tools.gate_before("pay"));
    let state = async |key: &str| {
        let question = http_client().post(tools.reconcile_url("pay")).json(&json!({"idempotencyKey": key}));
        let answer: Value = question.send().await.unwrap().json().await.unwrap();
        answer
    };
    let begun = tokio::spawn({
        let url = url.clone();
        async move { result(&url, "x", "k1").await }
    });
    gate.reached().await;
    assert_eq!(state("k1").await, json!({"state": "pending"}));
    gate.open();
    let told = begun.await.unwrap();
    assert_eq!(state("k1").await, json!({"state": "succeeded", "output": told}));
    assert_eq!(state("k2").await, json!({"state": "not_received"}));
    assert_eq!(ask(&url, "y", "k2").await.unwrap().status(), 409);
    assert_eq!((tools.effects("x"), tools.effects("y"), tools.questions().len()), (1, 0, 3));
}

#[tokio::test]
async fn a_request_tells_which_process_it_comes_from_if_its_address_does() {
    let tools = ToolServer::start().await.unwrap();
    let config = format!("url = \"{}\"", tools.tool_url("charge"));
    let config = crate::asked_by(&config, tools.addr(), "worker1");
    let url = config.split('"').nth(1).unwrap();
    assert_eq!(result(url, "x", "k1").await["n"], 1);
    assert_eq!(result(&tools.tool_url("charge"), "x", "k2").await["n"], 2);
    let by: Vec<_> = tools.ledger().into_iter().map(|entry| entry.by).collect();
    assert_eq!(by, [Some("worker1".to_owned()), None]);
}
