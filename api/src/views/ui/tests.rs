use longhaul_shared::domain::{
    event::ReleaseReason,
    ids::WaitId,
    run::{RunError, Usage},
    tool::Effect,
    transition::Reason,
};
use serde_json::json;

use super::*;

fn ids() -> (RunId, MessageId) {
    (RunId(uuid::Uuid::from_u128(1)), MessageId(uuid::Uuid::from_u128(2)))
}

fn queued() -> Event {
    EventData::RunQueued { status: RunStatus::Pending, position: None, run_at: None }.of_run()
}

fn started(step: u32, attempt: u32) -> Event {
    EventData::StepStarted { model: "m".into() }.of_step(step, attempt)
}

fn text(step: u32, text: &str) -> Event {
    EventData::TextDelta { text: text.into() }.of_step(step, 1)
}

fn saved(step: u32, finish_reason: FinishReason, tool_calls: u32) -> Event {
    EventData::StepFinished { finish_reason, usage: Usage::default(), tool_calls }.of_step(step, 1)
}

fn planned(call: u32, arguments: &str) -> Event {
    EventData::ToolPlanned {
        call,
        call_id: format!("c{call}"),
        name: "clock".into(),
        arguments: arguments.into(),
        effect: Effect::Read,
    }
    .of_step(1, 1)
}

fn settled(call: u32, state: CallState, output: Option<&str>, error: Option<&str>) -> Event {
    let (output, error) = (output.map(Into::into), error.map(Into::into));
    EventData::ToolFinished { call, call_id: format!("c{call}"), state, output, error }.of_step(1, 1)
}

fn ended(status: RunStatus, reason: Reason) -> Event {
    let error = (status == RunStatus::Failed).then(|| RunError::new("code", "it broke"));
    EventData::RunFinished { status, reason, error, usage: Usage::default(), step_count: 1 }.of_run()
}

fn chunks(events: &[Event]) -> Vec<Chunk> {
    rendered(events, PORTABLE)
}

fn rendered(events: &[Event], renderer: i32) -> Vec<Chunk> {
    let (run_id, message_id) = ids();
    let (mut encoder, mut chunks) = (Encoder::new(run_id, message_id, renderer), vec![]);
    for event in events {
        encoder.push(event, &mut chunks);
    }
    chunks
}

/// The chunks as the SDK reads them, without the first and the last one.
fn middle(events: &[Event]) -> Vec<Value> {
    let all = [&[queued()], events, &[ended(RunStatus::Succeeded, Reason::Done)]].concat();
    let mut values: Vec<_> = chunks(&all).iter().map(|chunk| serde_json::to_value(chunk).unwrap()).collect();
    let last = values.pop().unwrap();
    assert_eq!((&values[0]["type"], &last["type"]), (&json!("start"), &json!("finish")));
    values.remove(0);
    values
}

fn message(events: &[Event]) -> Value {
    let mut message = UiMessage::answer(ids().1.to_string());
    for chunk in chunks(events) {
        message.apply(&chunk);
    }
    serde_json::to_value(message).unwrap()
}

#[test]
fn a_plain_answer_has_exactly_these_bytes() {
    let events = [
        queued(),
        started(1, 1),
        text(1, "Hel"),
        text(1, "lo"),
        saved(1, FinishReason::Stop, 0),
        ended(RunStatus::Succeeded, Reason::Done),
    ];
    let mut frames = vec![];
    for chunk in chunks(&events) {
        chunk.write_frame(&mut frames);
    }
    let frames = String::from_utf8(frames).unwrap();
    let usage = r#"{"inputTokens":0,"outputTokens":0,"reasoningTokens":0,"cachedInputTokens":0}"#;
    let expected = [
        r#"{"type":"start","messageId":"00000000-0000-0000-0000-000000000002","messageMetadata":{"runId":"00000000-0000-0000-0000-000000000001"}}"#,
        r#"{"type":"start-step"}"#,
        r#"{"type":"text-start","id":"t1"}"#,
        r#"{"type":"text-delta","id":"t1","delta":"Hel"}"#,
        r#"{"type":"text-delta","id":"t1","delta":"lo"}"#,
        r#"{"type":"text-end","id":"t1"}"#,
        r#"{"type":"finish-step"}"#,
        &format!(
            r#"{{"type":"finish","finishReason":"stop","messageMetadata":{{"status":"succeeded","reason":"done","usage":{usage}}}}}"#
        ),
    ];
    assert_eq!(frames, expected.map(|chunk| format!("data: {chunk}\n\n")).concat());
}

#[test]
fn a_step_is_finished_when_the_last_of_its_calls_is_settled() {
    let seen = middle(&[
        started(1, 1),
        text(1, "Let me see."),
        planned(1, r#"{"zone":"UTC"}"#),
        planned(2, "{"),
        saved(1, FinishReason::ToolCalls, 2),
        settled(2, CallState::Failed, None, Some("no such arguments")),
        settled(1, CallState::Succeeded, Some("noon"), None),
        started(2, 1),
        text(2, "Noon."),
        saved(2, FinishReason::Stop, 0),
    ]);
    let kinds: Vec<_> = seen.iter().map(|chunk| chunk["type"].as_str().unwrap()).collect();
    assert_eq!(
        kinds,
        [
            "start-step",
            "text-start",
            "text-delta",
            "text-end",
            "tool-input-available",
            "tool-input-error",
            "tool-output-error",
            "tool-output-available",
            "finish-step",
            "start-step",
            "text-start",
            "text-delta",
            "text-end",
            "finish-step",
        ]
    );
    let call = json!({"type": "tool-input-available", "toolCallId": "c1", "toolName": "clock",
        "input": {"zone": "UTC"}, "dynamic": true, "providerExecuted": true});
    assert_eq!(seen[4], call);
    assert_eq!((&seen[5]["input"], seen[5]["errorText"].is_string()), (&json!("{"), true));
    let output = json!({"type": "tool-output-available", "toolCallId": "c1", "output": "noon",
        "dynamic": true, "providerExecuted": true});
    assert_eq!(seen[7], output);
}

#[test]
fn a_renderer_of_its_own_takes_back_what_a_torn_step_said() {
    let log = [
        queued(),
        started(1, 1),
        text(1, "kept"),
        saved(1, FinishReason::ToolCalls, 0),
        started(2, 1),
        text(2, "torn"),
        EventData::StepRestarted { drop_from: 5, why: "lost".into() }.of_step(2, 2),
        started(2, 2),
        text(2, "whole"),
        saved(2, FinishReason::Stop, 0),
        ended(RunStatus::Succeeded, Reason::Done),
    ];
    let chunks = rendered(&log, RESETTING);
    let kinds: Vec<Value> = chunks.iter().map(|chunk| json!(chunk)["type"].clone()).collect();
    let torn = kinds.iter().position(|kind| kind == "reset-step").unwrap();
    assert_eq!(kinds[torn - 1..=torn + 2], ["text-delta", "reset-step", "start-step", "text-start"]);
    assert_eq!(kinds.iter().filter(|kind| *kind == "finish-step").count(), 2);
    let mut message = UiMessage::answer("m".into());
    for chunk in &chunks {
        message.apply(chunk);
    }
    let texts: Vec<Value> = json!(message)["parts"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|part| part["type"] == "text")
        .map(|part| part["text"].clone())
        .collect();
    assert_eq!(texts, ["kept", "whole"]);
}

#[test]
fn a_step_that_is_done_over_closes_the_torn_text_and_begins_a_new_part() {
    let seen = middle(&[
        started(1, 1),
        text(1, "torn"),
        EventData::RunReleased { reason: ReleaseReason::Expired, epoch: 1 }.of_run(),
        EventData::StepRestarted { drop_from: 2, why: "lost".into() }.of_step(1, 2),
        started(1, 2),
        text(1, "whole"),
        saved(1, FinishReason::Stop, 0),
    ]);
    let told: Vec<_> =
        seen.iter().map(|c| (c["type"].as_str().unwrap(), c["id"].as_str().unwrap_or("-"))).collect();
    assert_eq!(
        told,
        [
            ("start-step", "-"),
            ("text-start", "t1"),
            ("text-delta", "t1"),
            ("text-end", "t1"),
            ("finish-step", "-"),
            ("start-step", "-"),
            ("text-start", "t2"),
            ("text-delta", "t2"),
            ("text-end", "t2"),
            ("finish-step", "-"),
        ]
    );
}

#[test]
fn every_end_has_its_words_and_finish_is_the_last() {
    let end = |events: &[Event], status, reason| {
        let all = [&[queued(), started(1, 1), text(1, "x")], events, &[ended(status, reason)]].concat();
        let seen = chunks(&all).into_iter().rev().take(2).collect::<Vec<_>>();
        let Chunk::Finish { finish_reason, .. } = seen[0] else { panic!("{seen:?}") };
        (serde_json::to_value(&seen[1]).unwrap()["type"].as_str().unwrap().to_owned(), finish_reason)
    };
    let table = [
        (
            end(&[saved(1, FinishReason::Stop, 0)], RunStatus::Succeeded, Reason::Done),
            "finish-step",
            ChunkFinish::Stop,
        ),
        (
            end(&[saved(1, FinishReason::Length, 0)], RunStatus::Succeeded, Reason::Done),
            "finish-step",
            ChunkFinish::Length,
        ),
        (
            end(&[saved(1, FinishReason::ContentFilter, 0)], RunStatus::Succeeded, Reason::Done),
            "finish-step",
            ChunkFinish::ContentFilter,
        ),
        (end(&[], RunStatus::Failed, Reason::StepLimit), "finish-step", ChunkFinish::Length),
        (end(&[], RunStatus::Failed, Reason::Provider), "error", ChunkFinish::Error),
        (end(&[], RunStatus::Failed, Reason::CrashLimit), "error", ChunkFinish::Error),
        (end(&[], RunStatus::Aborted, Reason::Stop), "abort", ChunkFinish::Other),
    ];
    for ((before, finish), expected_before, expected) in table {
        assert_eq!((before.as_str(), finish), (expected_before, expected));
    }
    let untouched = chunks(&[queued(), ended(RunStatus::Aborted, Reason::Stop)]);
    assert_eq!(untouched.len(), 3, "start, abort, finish: {untouched:?}");
}

#[test]
fn the_stored_message_is_what_a_page_makes_of_the_chunks() {
    let stored = message(&[
        queued(),
        started(1, 1),
        EventData::ReasoningDelta { text: "hm".into() }.of_step(1, 1),
        text(1, "Let me "),
        text(1, "see."),
        planned(1, "{}"),
        planned(2, "{}"),
        saved(1, FinishReason::ToolCalls, 2),
        settled(1, CallState::Succeeded, Some("noon"), None),
        settled(2, CallState::Unknown, None, None),
        ended(RunStatus::Aborted, Reason::Stop),
    ]);
    let tool = |id: &str, state: &str| {
        json!({"type": "dynamic-tool", "toolName": "clock", "toolCallId": id, "state": state, "input": {},
            "providerExecuted": true})
    };
    let mut answered = tool("c1", "output-available");
    answered["output"] = json!("noon");
    let mut unknown = tool("c2", "output-error");
    unknown["errorText"] = json!("It was sent and no answer was seen. It may or may not have taken effect.");
    assert_eq!(
        stored["parts"],
        json!([
            {"type": "step-start"},
            {"type": "reasoning", "id": "r1", "text": "hm", "state": "done"},
            {"type": "text", "text": "Let me see.", "state": "done"},
            answered,
            unknown,
        ])
    );
    assert_eq!((&stored["role"], &stored["metadata"]["status"]), (&json!("assistant"), &json!("aborted")));
    assert_eq!(stored["metadata"]["runId"], ids().0.to_string());
}

#[test]
fn a_failure_is_told_in_words_behind_its_metadata_and_the_page_reads_no_further() {
    let log = [queued(), started(1, 1), text(1, "x"), ended(RunStatus::Failed, Reason::Provider)];
    let seen: Vec<_> =
        chunks(&log).iter().rev().take(3).map(|chunk| serde_json::to_value(chunk).unwrap()).collect();
    assert_eq!(seen[0], json!({"type": "finish", "finishReason": "error"}));
    assert_eq!(seen[1], json!({"type": "error", "errorText": "it broke"}));
    assert_eq!(seen[2]["messageMetadata"]["status"], "failed");
    let stored = message(&log);
    assert_eq!(stored["metadata"]["reason"], "provider");
}

/// A call that the page is asked about: what is said until then, and what is said when the run goes on.
fn approval(decided: &[Event]) -> [Vec<Event>; 2] {
    let wait = Wait::Approval {
        call: 1,
        call_id: "c1".into(),
        name: "pay".into(),
        arguments: r#"{"amount":5}"#.into(),
        effect: Effect::Once,
    };
    let wait_id = WaitId(uuid::Uuid::from_u128(3));
    let asked = vec![
        queued(),
        started(1, 1),
        text(1, "This costs 5."),
        EventData::WaitCreated { wait_id, wait }.of_step(1, 1),
        saved(1, FinishReason::ToolCalls, 1),
        EventData::RunWaiting { usage: Usage::default() }.of_run(),
    ];
    let end = [started(2, 1), text(2, "Well."), saved(2, FinishReason::Stop, 0)];
    let done = [ended(RunStatus::Succeeded, Reason::Done)];
    [asked, [&[EventData::RunResumed {}.of_run()], decided, &end, &done].concat()]
}

/// The chunks and the message are held against the SDK's own by `tests/clients`.
#[test]
fn an_approval_ends_the_answer_and_the_word_on_it_goes_on_with_the_message() {
    let planned = EventData::ToolPlanned {
        call: 1,
        call_id: "c1".into(),
        name: "pay".into(),
        arguments: r#"{"amount":5}"#.into(),
        effect: Effect::Once,
    };
    let approved = [planned.of_step(1, 1), settled(1, CallState::Succeeded, Some("paid"), None)];
    let denied = [settled(1, CallState::Denied, None, None)];
    let mut told = Map::new();
    for (name, decided) in [("approved", &approved[..]), ("denied", &denied)] {
        let legs = approval(decided);
        let (run_id, message_id) = ids();
        let mut encoder = Encoder::new(run_id, message_id, PORTABLE);
        let mut seen = UiMessage::answer(message_id.to_string());
        let legs = legs.map(|leg| {
            let mut chunks = vec![];
            for event in &leg {
                encoder.push(event, &mut chunks);
            }
            for chunk in &chunks {
                seen.apply(chunk);
            }
            json!({"chunks": chunks, "message": seen})
        });
        told.insert(name.to_owned(), json!(legs));
    }
    let golden: Value = serde_json::from_str(include_str!("approvals.json")).unwrap();
    assert_eq!(Value::Object(told.clone()), golden, "{}", serde_json::to_string_pretty(&told).unwrap());
}

#[test]
fn a_run_that_is_stopped_while_it_waits_for_the_page_ends_its_message() {
    let [mut log, _] = approval(&[]);
    log.extend([settled(1, CallState::Cancelled, None, None), ended(RunStatus::Aborted, Reason::Stop)]);
    let kinds: Vec<Value> = chunks(&log).iter().map(|chunk| json!(chunk)["type"].clone()).collect();
    let paused = kinds.iter().position(|kind| kind == "finish").unwrap();
    assert_eq!(kinds[paused + 1..], ["start", "tool-output-error", "abort", "finish"]);
    let timer = [
        queued(),
        started(1, 1),
        saved(1, FinishReason::ToolCalls, 0),
        EventData::RunWaiting { usage: Usage::default() }.of_run(),
        EventData::RunResumed {}.of_run(),
    ];
    let kinds: Vec<Value> = chunks(&timer).iter().map(|chunk| json!(chunk)["type"].clone()).collect();
    assert_eq!(kinds, ["start", "start-step", "finish-step"], "what is no concern of the page is not told");
}

/// What was rendered once is rendered for ever.
#[test]
fn every_form_has_exactly_these_bytes() {
    let forms = [
        planned(1, r#"{"n":9007199254740993,"f":1.50}"#),
        planned(2, ""),
        planned(3, "[1]"),
        settled(1, CallState::Succeeded, Some("12"), None),
        settled(2, CallState::Cancelled, None, None),
        settled(3, CallState::Failed, None, Some("no")),
    ];
    let mut frames = vec![];
    for chunk in chunks(&forms).iter().skip(1) {
        chunk.write_frame(&mut frames);
    }
    let frames = String::from_utf8(frames).unwrap();
    let tail = r#""dynamic":true,"providerExecuted":true}"#;
    let expected = [
        r#"{"type":"tool-input-available","toolCallId":"c1","toolName":"clock","input":{"f":1.5,"n":9007199254740993},"#,
        r#"{"type":"tool-input-available","toolCallId":"c2","toolName":"clock","input":{},"#,
        r#"{"type":"tool-input-error","toolCallId":"c3","toolName":"clock","input":"[1]","errorText":"The arguments are not a JSON object.","#,
        r#"{"type":"tool-output-available","toolCallId":"c1","output":"12","#,
        r#"{"type":"tool-output-error","toolCallId":"c2","errorText":"It was cancelled.","#,
        r#"{"type":"tool-output-error","toolCallId":"c3","errorText":"no","#,
    ];
    assert_eq!(frames, expected.map(|chunk| format!("data: {chunk}{tail}\n\n")).concat());
}
