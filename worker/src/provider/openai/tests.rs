use std::sync::Arc;

use futures::StreamExt;
use longhaul_shared::domain::{replay::ModelMessage, run::Usage, step::FinishReason};
use serde_json::{Value, json};

use super::*;
use crate::fixture::{Act, Fixture, answer, open_head};

const KEY: &str = "sk-test-0123456789";

fn model(fixture: &Fixture, adjust: impl FnOnce(&mut OpenAiOptions)) -> OpenAi {
    let mut options = OpenAiOptions::new(fixture.url.clone(), Some(KEY.into()), fixture.client());
    options.backoff = Backoff::new(Duration::from_millis(1), Duration::from_millis(5));
    options.random = || 0.5;
    adjust(&mut options);
    OpenAi::new(options)
}

fn request() -> ModelRequest {
    ModelRequest {
        model: "m".into(),
        messages: Arc::new(vec![ModelMessage::User("hi".into())]),
        tools: vec![],
        client_tools: vec![],
        options: crate::provider::ModelOptions::default(),
        run_id: RunId::generate(),
        step: 3,
        attempt: 1,
    }
}

fn event(data: &str) -> Act {
    Act::Send(format!("data: {data}\n\n").into_bytes())
}

fn token(text: &str) -> Act {
    event(&json!({"choices": [{"index": 0, "delta": {"content": text}}]}).to_string())
}

fn finish() -> Act {
    event(r#"{"choices":[{"delta":{},"finish_reason":"stop"}]}"#)
}

fn usage() -> Act {
    event(r#"{"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":2}}"#)
}

fn done() -> Act {
    event("[DONE]")
}

/// A stream with this in it, which then ends with its connection.
fn stream_of(acts: Vec<Act>) -> Vec<Act> {
    let mut play = vec![open_head("text/event-stream")];
    play.extend(acts);
    play.push(Act::Close);
    play
}

fn whole() -> Vec<Act> {
    chunked(&[token("Hel"), token("lo"), finish(), usage(), done()])
}

/// A keep-alive answer in chunks.
fn chunked(acts: &[Act]) -> Vec<Act> {
    let mut play = vec![Act::Send(
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n".to_vec(),
    )];
    for act in acts {
        if let Act::Send(bytes) = act {
            let mut framed = format!("{:x}\r\n", bytes.len()).into_bytes();
            framed.extend_from_slice(bytes);
            framed.extend_from_slice(b"\r\n");
            play.push(Act::Send(framed));
        }
    }
    play.push(Act::Send(b"0\r\n\r\n".to_vec()));
    play
}

/// All events, and the error that ended them.
async fn collect(model: &OpenAi) -> (Vec<ModelEvent>, Option<ModelError>) {
    let mut stream = match model.stream(request()).await {
        Ok(stream) => stream,
        Err(error) => return (vec![], Some(error)),
    };
    let mut events = vec![];
    while let Some(item) = stream.next().await {
        match item {
            Ok(event) => events.push(event),
            Err(error) => return (events, Some(error)),
        }
    }
    (events, None)
}

async fn play(acts: Vec<Act>) -> (Vec<ModelEvent>, Option<ModelError>) {
    let fixture = Fixture::start(vec![acts]).await;
    collect(&model(&fixture, |_| {})).await
}

fn text(events: &[ModelEvent]) -> String {
    let of = |event: &ModelEvent| match event {
        ModelEvent::Text(text) => Some(text.clone()),
        _ => None,
    };
    events.iter().filter_map(of).collect()
}

#[tokio::test]
async fn an_answer_streams_with_usage_and_finish_last_and_its_connection_is_used_again() {
    let fixture = Fixture::start(vec![whole()]).await;
    let model = model(&fixture, |_| {});
    for _ in 0..3 {
        let (events, error) = collect(&model).await;
        assert_eq!(error, None);
        assert_eq!(
            events,
            [
                ModelEvent::Text("Hel".into()),
                ModelEvent::Text("lo".into()),
                ModelEvent::Usage(Usage { input_tokens: 5, output_tokens: 2, ..Usage::default() }),
                ModelEvent::Finish(FinishReason::Stop),
            ]
        );
    }
    let seen = fixture.seen();
    assert_eq!((seen.len(), fixture.connections()), (3, 1));
    assert!(seen[0].head.starts_with("POST /v1/chat/completions HTTP/1.1"));
    assert_eq!(seen[0].header("authorization"), Some(format!("Bearer {KEY}").as_str()));
    assert_eq!(seen[0].header("x-longhaul-step"), Some("3"));
    assert_eq!(seen[0].header("x-longhaul-attempt"), Some("1"));
    assert!(seen[0].header("x-longhaul-run-id").unwrap().parse::<RunId>().is_ok());
    assert_eq!(serde_json::from_str::<Value>(&seen[0].body).unwrap()["stream"], json!(true));
}

#[tokio::test]
async fn passing_failures_are_retried_before_the_answer_and_counted() {
    let fixture = Fixture::start(vec![
        answer("429 Too Many Requests", &[("retry-after", "0")], ""),
        answer("503 Service Unavailable", &[], "busy"),
        vec![Act::Reset],
        stream_of(vec![event(r#"{"error":{"message":"slow down","type":"rate_limit_error"}}"#)]),
        whole(),
    ])
    .await;
    let (events, error) = collect(&model(&fixture, |_| {})).await;
    assert_eq!((text(&events).as_str(), error), ("Hello", None));
    assert_eq!(fixture.seen().len(), 5);

    let fixture = Fixture::start(vec![answer("500 Oops", &[], "no")]).await;
    let (_, error) = collect(&model(&fixture, |_| {})).await;
    assert_eq!(error, Some(ModelError::Status { status: 500, message: "no".into(), retry_after: None }));
    assert_eq!(fixture.seen().len(), 5, "one request and four retries");
}

#[tokio::test]
async fn retry_after_is_waited_for_up_to_the_cap() {
    for (asked, cap, least, most) in [("1", 60_000, 1000, 3000), ("864000", 200, 200, 2000)] {
        let fixture = Fixture::start(vec![answer("429 Slow", &[("retry-after", asked)], ""), whole()]).await;
        let model = model(&fixture, |options| options.retry_after_cap = Duration::from_millis(cap));
        assert_eq!(collect(&model).await.1, None);
        let seen = fixture.seen();
        let waited = (seen[1].at - seen[0].at).as_millis();
        assert!((least..most).contains(&waited), "{asked}: {waited} ms");
    }
}

#[tokio::test]
async fn an_error_in_mid_stream_counts_as_its_status() {
    for (error, torn, asked) in [
        (json!({"message": "no such key", "code": 401}), false, None),
        (json!({"message": "too long", "code": "context_length_exceeded"}), false, None),
        (json!({"message": "slow down", "code": 429, "retry_after": 3}), true, Some(3)),
        (json!({"message": "slow down", "code": 429, "retry_after": 864_000}), true, Some(60)),
    ] {
        let acts = vec![token("a"), event(&json!({ "error": error }).to_string())];
        let fixture = Fixture::start(vec![stream_of(acts)]).await;
        let (events, told) = collect(&model(&fixture, |_| {})).await;
        let told = told.unwrap();
        assert_eq!(
            (text(&events).as_str(), told.code(), told.is_torn()),
            ("a", "provider_status", torn),
            "{told}"
        );
        assert_eq!(told.retry_after(), asked.map(Duration::from_secs));
        assert_eq!(fixture.seen().len(), 1);
    }
}

#[tokio::test]
async fn a_provider_in_trouble_is_not_asked_twice_for_everything() {
    let fixture = Fixture::start(vec![answer("503 Busy", &[], "")]).await;
    let model = model(&fixture, |options| options.retry_after_cap = Duration::from_millis(1));
    for _ in 0..50 {
        assert!(collect(&model).await.1.is_some());
    }
    // Fifty, ten and two for each five; a few more may have trickled in meanwhile.
    assert!((80..=83).contains(&fixture.seen().len()), "{}", fixture.seen().len());
}

#[tokio::test]
async fn final_statuses_are_not_retried_and_their_text_is_one_line_without_the_key() {
    let long = format!("bad\nkey {KEY} {}", "x".repeat(1000));
    for status in ["400 Bad Request", "401 Unauthorized", "403 Forbidden", "404 Not Found"] {
        let fixture = Fixture::start(vec![answer(status, &[], &long)]).await;
        let (_, error) = collect(&model(&fixture, |_| {})).await;
        let line = error.unwrap().to_string();
        assert!(line.contains(&status[..3]) && line.contains("bad key [redacted] xx"), "{line}");
        let refused = status.starts_with("401") || status.starts_with("403");
        assert_eq!(line.contains(&format!("key {}: ", fingerprint(KEY))), refused, "{line}");
        assert!(!line.contains(KEY) && !line.contains('\n') && line.chars().count() < 400, "{line}");
        assert_eq!(fixture.seen().len(), 1);
    }
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let target = Fixture::start(vec![whole()]).await;
    let fixture =
        Fixture::start(vec![answer("307 Temporary Redirect", &[("location", target.url.as_str())], "")])
            .await;
    let (_, error) = collect(&model(&fixture, |_| {})).await;
    assert!(error.unwrap().to_string().contains("redirects are not followed"));
    assert_eq!((fixture.seen().len(), target.seen().len()), (1, 0));
}

#[tokio::test]
async fn an_address_that_is_not_public_is_refused_before_anything_is_sent() {
    let fixture = Fixture::start(vec![whole()]).await;
    let model = model(&fixture, |options| options.base_url.set_port(Some(1)).unwrap());
    let (_, error) = collect(&model).await;
    assert!(matches!(error, Some(ModelError::Refused(_))));
}

#[tokio::test]
async fn each_phase_has_its_own_patience() {
    let patience = |options: &mut OpenAiOptions| {
        options.first_byte_timeout = Duration::from_millis(100);
        options.silence_timeout = Duration::from_millis(200);
        options.max_retries = 1;
    };
    // No head; a head and no byte.
    for acts in [vec![Act::Hang], vec![open_head("text/event-stream"), Act::Hang]] {
        let fixture = Fixture::start(vec![acts]).await;
        let (_, error) = collect(&model(&fixture, patience)).await;
        assert_eq!(error, Some(ModelError::FirstByteTimeout(Duration::from_millis(100))));
        assert_eq!(fixture.seen().len(), 2);
    }
    // Nothing but comments, empty deltas or half a line is silence too.
    for noise in [": ping\n\n", "data: {\"choices\":[{\"delta\":{\"content\":\"\"}}]}\n\n", "x"] {
        let acts = vec![token("a"), Act::Repeat(noise.into())];
        let fixture = Fixture::start(vec![stream_of(acts)]).await;
        let (events, error) = collect(&model(&fixture, patience)).await;
        assert_eq!(
            (text(&events).as_str(), error.as_ref().map(ModelError::code)),
            ("a", Some("provider_silent"))
        );
        assert!(error.unwrap().is_torn());
        fixture.closed().await;
    }
    // Slow tokens are not silence.
    let mut acts = vec![];
    for _ in 0..5 {
        acts.extend([token("a"), Act::Sleep(Duration::from_millis(90))]);
    }
    acts.extend([finish(), done()]);
    let fixture = Fixture::start(vec![stream_of(acts)]).await;
    let (events, error) = collect(&model(&fixture, patience)).await;
    assert_eq!((text(&events).as_str(), error), ("aaaaa", None));
}

#[tokio::test]
async fn a_provider_that_hangs_after_its_answer_does_not_delay_it() {
    for (acts, most) in [
        (vec![token("a"), finish(), usage(), Act::Hang], 500),
        (vec![token("a"), finish(), done(), Act::Hang], 500),
        (vec![token("a"), finish(), Act::Hang], 2500),
        (vec![token("a"), finish(), Act::Repeat(": ping\n\n".into())], 2500),
    ] {
        let begun = Instant::now();
        let (events, error) = play(stream_of(acts)).await;
        assert_eq!((text(&events).as_str(), error), ("a", None));
        assert_eq!(events.last(), Some(&ModelEvent::Finish(FinishReason::Stop)));
        assert!(begun.elapsed() < Duration::from_millis(most), "{:?}", begun.elapsed());
    }
}

#[tokio::test]
async fn of_several_counts_the_last_one_holds() {
    let count = |prompt: u32, completion: u32| {
        event(
            &json!({"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": completion}})
                .to_string(),
        )
    };
    for acts in [
        vec![count(5, 0), token("a"), finish(), count(5, 2), done()],
        vec![count(5, 0), token("a"), count(5, 2), finish(), done()],
        vec![count(9, 9), token("a"), finish(), count(5, 2), Act::Hang],
    ] {
        let (events, error) = play(stream_of(acts)).await;
        assert_eq!(error, None);
        let usage = Usage { input_tokens: 5, output_tokens: 2, ..Usage::default() };
        assert_eq!(events[1..], [ModelEvent::Usage(usage), ModelEvent::Finish(FinishReason::Stop)]);
    }
}

#[tokio::test]
async fn every_way_to_break_off_is_an_incomplete_answer() {
    let half = || Act::Send(b"data: {\"choices\":[{\"delta\":{\"con".to_vec());
    for (acts, code) in [
        (vec![token("a")], "provider_truncated"),
        (vec![token("a"), done()], "provider_truncated"),
        (vec![token("a"), half()], "provider_truncated"),
        (vec![token("a"), Act::Sleep(Duration::from_millis(50)), Act::Reset], "provider_truncated"),
        (vec![], "provider_truncated"),
        (vec![half()], "provider_truncated"),
        (vec![token("a"), event("{\"choices\": ["), finish(), done()], "provider_malformed"),
        (vec![Act::Send(b"\xff\x00 garbage \x01\n\n\n".to_vec())], "provider_malformed"),
        (vec![token("a"), event(r#"{"error":{"message":"x","code":500}}"#)], "provider_status"),
    ] {
        let fixture = Fixture::start(vec![stream_of(acts)]).await;
        let (_, error) = collect(&model(&fixture, |_| {})).await;
        let error = error.expect("not a success");
        assert_eq!(fixture.seen().len(), 1, "a torn answer is the step's to do over: {error}");
        assert_eq!(error.code(), code, "{error}");
        assert!(error.is_torn(), "{error}");
    }
}

#[tokio::test]
async fn a_page_instead_of_a_stream_is_an_error_with_a_sample() {
    let page = format!("<html>\n<body>Sign in with {KEY}</body></html>");
    let (_, error) = play(answer("200 OK", &[("content-type", "text/html")], &page)).await;
    assert_eq!(
        error,
        Some(ModelError::Malformed { sample: "<html> <body>Sign in with [redacted]</body></html>".into() })
    );
    let body = r#"{"error":{"message":"no such model","code":404}}"#;
    let (_, error) = play(answer("200 OK", &[("content-type", "application/json")], body)).await;
    assert_eq!(
        error,
        Some(ModelError::Status { status: 404, message: "no such model".into(), retry_after: None })
    );
}

#[tokio::test]
async fn output_beyond_the_limits_ends_the_answer() {
    let small = |options: &mut OpenAiOptions| options.max_output_bytes = 1000;
    let many: Vec<_> = (0..200)
        .map(|n| event(&json!({"choices": [{"delta": {"tool_calls": [{"index": n, "id": n, "function": {"name": "f"}}]}}]}).to_string()))
        .collect();
    for acts in [
        vec![token(&"x".repeat(1001))],
        vec![Act::Repeat(
            b"data: {\"choices\":[{\"delta\":{\"content\":\"xxxxxxxxxxxxxxxxxxxx\"}}]}\n\n".to_vec(),
        )],
        vec![token("a"), Act::Repeat(vec![b'x'; 16 << 10])],
        vec![token("a"), Act::Repeat([b": ping\n\n".as_slice(); 4096].concat())],
        many,
    ] {
        let fixture = Fixture::start(vec![stream_of(acts)]).await;
        let (_, error) = collect(&model(&fixture, small)).await;
        let error = error.unwrap();
        assert!(["output_too_large", "too_many_calls"].contains(&error.code()), "{error}");
        assert!(!error.is_torn());
        fixture.closed().await;
    }
}

#[tokio::test]
async fn all_quirks_at_once_give_the_same_text_as_none() {
    let quirky = [
        "\u{feff}: hello\r\n\r\n",
        "event: message\r\ndata:{\"created\":1.5,\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":null}}],\"usage\":null,\"error\":null}\r\n\r\n",
        "data: {\"choices\":[{\"delta\":\ndata: {\"content\":[{\"type\":\"text\",\"text\":\"Hel\"}]},\"finish_reason\":\"\"}],\"usage\":{\"completion_tokens\":1}}\n\n",
        "data: {\"choices\":[{\"index\":1,\"delta\":{\"content\":\"other\"}}]}\n\n",
        "data: {\"choices\":[{\"delta\":{\"content\":\"lo\\u0000\\ud800\"},\"finish_reason\":\"end_turn\"}],\"usage\":{\"completion_tokens\":2}}\n\n",
    ];
    let (events, error) =
        play(stream_of(quirky.iter().map(|frame| Act::Send(frame.as_bytes().to_vec())).collect())).await;
    assert_eq!((text(&events).as_str(), error), ("Hello\u{fffd}\u{fffd}", None));
    assert_eq!(events[events.len() - 2], ModelEvent::Usage(Usage { output_tokens: 2, ..Usage::default() }));
    assert_eq!(events.last(), Some(&ModelEvent::Finish(FinishReason::Stop)));
}

#[tokio::test]
async fn reasoning_and_calls_are_told_apart_and_calls_decide_the_finish() {
    let acts = vec![
        event(r#"{"choices":[{"delta":{"reasoning_content":"hm","reasoning":"hm"}}]}"#),
        event(r#"{"choices":[{"delta":{"reasoning":"mm"}}]}"#),
        event(
            r#"{"choices":[{"delta":{"tool_calls":[{"index":0,"id":"c","function":{"name":"clock","arguments":""}}]}}]}"#,
        ),
        event(r#"{"choices":[{"delta":{"tool_calls":[{"index":0,"function":{"arguments":"{}"}}]}}]}"#),
        finish(),
        done(),
    ];
    let (events, error) = play(stream_of(acts)).await;
    assert_eq!(error, None);
    let call = |id: Option<&str>, name: Option<&str>, arguments: &str| {
        ModelEvent::ToolCall(crate::provider::CallDelta {
            index: 0,
            id: id.map(Into::into),
            name: name.map(Into::into),
            arguments: arguments.into(),
        })
    };
    assert_eq!(
        events,
        [
            ModelEvent::Reasoning("hm".into()),
            ModelEvent::Reasoning("mm".into()),
            call(Some("c"), Some("clock"), ""),
            call(None, None, "{}"),
            ModelEvent::Finish(FinishReason::ToolCalls),
        ]
    );
}

#[tokio::test]
async fn dropping_the_stream_or_the_request_closes_the_connection() {
    let fixture = Fixture::start(vec![stream_of(vec![token("a"), Act::Hang])]).await;
    let mut stream = model(&fixture, |_| {}).stream(request()).await.unwrap();
    assert_eq!(stream.next().await, Some(Ok(ModelEvent::Text("a".into()))));
    let begun = Instant::now();
    drop(stream);
    fixture.closed().await;
    assert!(begun.elapsed() < Duration::from_millis(500));

    let fixture = Fixture::start(vec![vec![Act::Hang]]).await;
    let model = model(&fixture, |_| {});
    assert!(timeout(Duration::from_millis(100), model.stream(request())).await.is_err());
    fixture.closed().await;
}

#[tokio::test]
async fn a_slow_reader_holds_the_provider_back() {
    let line = format!("data: {}\n\n", json!({"choices": [{"delta": {"content": "x".repeat(1000)}}]}));
    let burst = line.repeat(40_000);
    let sent = burst.len();
    let fixture =
        Fixture::start(vec![stream_of(vec![Act::Send(burst.into_bytes()), finish(), done()])]).await;
    let model = model(&fixture, |options| options.max_output_bytes = 64 << 20);
    let mut stream = model.stream(request()).await.unwrap();
    stream.next().await.unwrap().unwrap();
    let before = resident();
    sleep(Duration::from_millis(300)).await;
    let grown = resident().saturating_sub(before);
    assert!(grown < sent / 2, "{grown} bytes were read ahead");
    let mut events = 1;
    while let Some(event) = stream.next().await {
        event.unwrap();
        events += 1;
    }
    assert_eq!(events, 40_001);
}

/// Resident bytes of this process.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}
