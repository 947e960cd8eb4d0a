//! The fake provider, asked by a real HTTP client.

use std::time::Duration;

use serde_json::{Value, json};

use super::{At, End, FakeProvider, Fault, Script, Turn};
use crate::http_client;

async fn ask(provider: &FakeProvider, model: &str) -> reqwest::Result<reqwest::Response> {
    let messages = json!([{"role": "user", "content": "hello"}]);
    let request = json!({"model": model, "messages": messages, "stream": true, "stream_options": {"include_usage": true}});
    http_client().post(format!("{}/chat/completions", provider.url())).json(&request).send().await
}

/// The chunks of a whole stream.
async fn chunks(response: reqwest::Response) -> Vec<Value> {
    let body = response.text().await.unwrap();
    let lines = body.lines().filter_map(|line| line.strip_prefix("data: ")).filter(|line| *line != "[DONE]");
    lines.map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn text(chunks: &[Value]) -> String {
    chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str()).collect()
}

#[tokio::test]
async fn an_answer_streams_its_marks_calls_finish_reason_and_usage() {
    let provider = FakeProvider::start().await.unwrap();
    let turn = Turn::marked(2).reasoning(["hm"]).and_raw_call("charge", r#"{"op":"x"}"#, 2);
    provider.script("m", Script::new([turn.usage(5, 7)]));
    let chunks = chunks(ask(&provider, "m").await.unwrap()).await;
    assert_eq!(chunks[0]["choices"][0]["delta"], json!({"role": "assistant", "reasoning_content": "hm"}));
    assert_eq!(text(&chunks), "a1.s1.0 a1.s1.1 ");
    assert_eq!(chunks[5]["choices"][0]["finish_reason"], "tool_calls");
    assert_eq!(chunks[6]["usage"]["total_tokens"], 12);
    let calls = provider.calls();
    assert_eq!((calls[0].ended(), calls[0].pieces, calls[0].turn), (Some(End::Complete), 5, 1));
    assert_eq!(provider.violations(), Vec::<String>::new());
}

#[tokio::test]
async fn a_gate_holds_the_stream_and_a_client_that_leaves_is_noticed() {
    let provider = FakeProvider::start().await.unwrap();
    provider.script("m", Script::new([Turn::marked(3)]));
    let gate = provider.gate("m", At::Token(2));
    let mut response = ask(&provider, "m").await.unwrap();
    gate.reached().await;
    assert_eq!(provider.calls()[0].pieces, 2);
    let mut seen = String::new();
    while !seen.contains("a1.s1.1") {
        seen.push_str(std::str::from_utf8(&response.chunk().await.unwrap().unwrap()).unwrap());
    }
    drop(response);
    provider.until("the client is gone", |calls| calls[0].ended() == Some(End::ClientGone)).await;
    assert_eq!(gate.waiting(), 0);

    gate.open();
    assert_eq!(text(&chunks(ask(&provider, "m").await.unwrap()).await), "a2.s1.0 a2.s1.1 a2.s1.2 ");
}

#[tokio::test]
async fn faults_spoil_as_many_attempts_as_they_should() {
    let provider = FakeProvider::start().await.unwrap();
    let turn = Turn::marked(3)
        .fault(Fault::status_retry_after(429, "1"), 1)
        .fault(Fault::Reset(At::BeforeHead), 1)
        .fault(Fault::Reset(At::Token(1)), 1)
        .fault(Fault::Cut(At::Token(1)), 1)
        .fault(Fault::CleanEnd { after: 2 }, 1)
        .fault(Fault::ErrorEvent { after: 1, error: json!({"code": 500}) }, 1)
        .fault(Fault::Redirect("http://127.0.0.1:1/".to_owned()), 1);
    provider.script("m", Script::new([turn]));

    let limited = ask(&provider, "m").await.unwrap();
    assert_eq!((limited.status().as_u16(), &limited.headers()["retry-after"]), (429, &"1".parse().unwrap()));
    assert!(ask(&provider, "m").await.is_err());
    assert!(ask(&provider, "m").await.unwrap().text().await.is_err());
    assert!(ask(&provider, "m").await.unwrap().text().await.is_err());
    let clean = chunks(ask(&provider, "m").await.unwrap()).await;
    assert_eq!((text(&clean).as_str(), clean.len()), ("a5.s1.0 a5.s1.1 ", 2));
    let error = chunks(ask(&provider, "m").await.unwrap()).await;
    assert_eq!(error.last().unwrap()["error"]["code"], 500);
    assert_eq!(ask(&provider, "m").await.unwrap().status().as_u16(), 307);
    assert_eq!(text(&chunks(ask(&provider, "m").await.unwrap()).await), "a8.s1.0 a8.s1.1 a8.s1.2 ");
    let ends: Vec<_> = provider.calls().iter().map(|call| call.ended().unwrap()).collect();
    assert_eq!(ends, [vec![End::Fault; 7], vec![End::Complete]].concat());
}

#[tokio::test]
async fn text_that_no_library_would_write_goes_out_as_it_is() {
    let provider = FakeProvider::start().await.unwrap();
    provider.script("m", Script::new([Turn::default().and_nul().and_lone_surrogate()]));
    let body = ask(&provider, "m").await.unwrap().text().await.unwrap();
    assert!(body.contains(r"nul \u0000 here") && body.contains(r"lone \ud83d here"));
}

#[tokio::test]
async fn a_delay_paces_the_pieces() {
    let provider = FakeProvider::start().await.unwrap();
    let begin = std::time::Instant::now();
    ask(&provider, "tokens-10-10ms").await.unwrap().text().await.unwrap();
    assert!(begin.elapsed() >= Duration::from_millis(100));
}

#[tokio::test]
async fn a_call_beyond_the_script_is_refused_and_written_down() {
    let provider = FakeProvider::start().await.unwrap();
    provider.script("m", Script::new([]));
    assert_eq!(ask(&provider, "m").await.unwrap().status().as_u16(), 500);
    assert_eq!(ask(&provider, "unknown").await.unwrap().status().as_u16(), 404);
    assert_eq!(provider.violations().len(), 1);
    assert!(provider.calls().iter().all(|call| call.ended() == Some(End::Unscripted)));
}
