use longhaul_shared::domain::{ids::WaitId, run::Usage, tool::Effect};

use super::*;

const AT: Millis = 1_795_168_800_123;

fn head() -> Head {
    Head::for_test(longhaul_shared::domain::asked::Asked::default())
}

fn queued() -> Event {
    EventData::RunQueued { status: RunStatus::Pending, position: None, run_at: None }.of_run()
}

fn claimed() -> Event {
    let worker_id = longhaul_shared::domain::ids::WorkerId(uuid::Uuid::nil());
    EventData::RunClaimed { worker_id, epoch: 1 }.of_run()
}

fn started(step: u32, attempt: u32) -> Event {
    EventData::StepStarted { model: "m".into() }.of_step(step, attempt)
}

fn text(step: u32, text: &str) -> Event {
    EventData::TextDelta { text: text.into() }.of_step(step, 1)
}

fn saved(step: u32, finish_reason: FinishReason) -> Event {
    EventData::StepFinished { finish_reason, usage: Usage::default(), tool_calls: 0 }.of_step(step, 1)
}

fn planned(call: u32) -> Event {
    EventData::ToolPlanned {
        call,
        call_id: format!("c{call}"),
        name: "clock".into(),
        arguments: r#"{"zone":"UTC"}"#.into(),
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
    let usage = Usage { input_tokens: 3, output_tokens: 4, ..Usage::default() };
    EventData::RunFinished { status, reason, error, usage, step_count: 1 }.of_run()
}

fn done() -> Event {
    ended(RunStatus::Succeeded, Reason::Done)
}

/// Holds every stream against the rules that the SDKs' strict helpers enforce.
fn stream(log: &[Event]) -> Vec<Value> {
    let (mut encoder, mut frames) = (Encoder::new(head()), Frames::default());
    for event in log {
        encoder.push(AT, event, &mut frames);
    }
    let text = String::from_utf8(frames.take().to_vec()).unwrap();
    let events: Vec<Value> = text.split_terminator("\n\n").map(parsed).collect();
    let mut items: Vec<(String, bool)> = vec![];
    for (number, event) in events.iter().enumerate() {
        assert_eq!(event["sequence_number"], number, "dense from 0");
        let kind = event["type"].as_str().unwrap();
        if let Some(response) = event.get("response") {
            assert_eq!(response["id"], events[0]["response"]["id"]);
        }
        let index = event.get("output_index").map(|index| index.as_u64().unwrap() as usize);
        match (kind, index) {
            ("response.output_item.added", Some(index)) => {
                assert_eq!(index, items.len(), "each index once, in order");
                items.push((event["item"]["id"].as_str().unwrap().to_owned(), false));
            }
            ("response.output_item.done", Some(index)) => {
                assert!(!std::mem::replace(&mut items[index].1, true), "done once");
                assert_eq!(event["item"]["id"], items[index].0);
            }
            (_, Some(index)) => {
                assert_eq!(event["item_id"], items[index].0);
                assert!(!items[index].1, "nothing behind the item's end: {event}");
            }
            (_, None) => {}
        }
    }
    assert_eq!(events[0]["type"], "response.created");
    assert!(items.iter().all(|(_, is_done)| *is_done), "every item is closed");
    assert_eq!(
        events.last().unwrap()["response"],
        encoder.response(),
        "the stored object is the last event's"
    );
    events
}

/// The data of a frame, whose name is its type.
fn parsed(frame: &str) -> Value {
    let (name, data) = frame.split_once('\n').unwrap();
    let event: Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
    assert_eq!(name.strip_prefix("event: "), event["type"].as_str());
    event
}

fn kinds(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["type"].as_str().unwrap().strip_prefix("response.").unwrap()).collect()
}

#[test]
fn a_plain_answer_is_one_message() {
    let events = stream(&[
        queued(),
        claimed(),
        started(1, 1),
        text(1, "Hel"),
        text(1, "lo"),
        saved(1, FinishReason::Stop),
        done(),
    ]);
    assert_eq!(
        kinds(&events),
        [
            "created",
            "queued",
            "in_progress",
            "output_item.added",
            "content_part.added",
            "output_text.delta",
            "output_text.delta",
            "output_text.done",
            "content_part.done",
            "output_item.done",
            "completed",
        ]
    );
    assert_eq!(
        (&events[0]["response"]["status"], &events[0]["response"]["output"]),
        (&json!("queued"), &json!([]))
    );
    assert_eq!(events[2]["response"]["output"], json!([]), "a snapshot is of then");
    assert_eq!(events[3]["item"]["content"], json!([]));
    assert_eq!(
        events[4]["part"],
        json!({"type": "output_text", "text": "", "annotations": [], "logprobs": []})
    );
    let response = &events.last().unwrap()["response"];
    assert_eq!(
        (&response["status"], &response["completed_at"]),
        (&json!("completed"), &json!(1_795_168_800))
    );
    assert_eq!(response["output"][0]["content"][0]["text"], "Hello");
    assert_eq!(response["usage"]["total_tokens"], 7);
    assert_eq!(response["metadata"], json!({"a": "b"}));
}

#[test]
fn reasoning_and_calls_of_the_server_are_items_of_their_own() {
    let events = stream(&[
        queued(),
        claimed(),
        started(1, 1),
        EventData::ReasoningDelta { text: "hm".into() }.of_step(1, 1),
        text(1, "Let me see."),
        planned(1),
        planned(2),
        saved(1, FinishReason::ToolCalls),
        settled(2, CallState::Unknown, None, None),
        settled(1, CallState::Succeeded, Some("noon"), None),
        started(2, 1),
        text(2, "Noon."),
        saved(2, FinishReason::Stop),
        done(),
    ]);
    let output = &events.last().unwrap()["response"]["output"];
    let types: Vec<_> =
        output.as_array().unwrap().iter().map(|item| item["type"].as_str().unwrap()).collect();
    assert_eq!(types, ["reasoning", "message", "mcp_call", "mcp_call", "message"]);
    assert_eq!(output[0]["summary"], json!([{"type": "summary_text", "text": "hm"}]));
    assert_eq!((&output[2]["output"], &output[2]["status"]), (&json!("noon"), &json!("completed")));
    assert_eq!((&output[3]["error"]["message"], &output[3]["status"]), (&json!("unknown"), &json!("failed")));
    let added = events.iter().find(|event| event["item"]["type"] == "mcp_call").unwrap();
    assert_eq!(
        (&added["item"]["arguments"], &added["item"]["server_label"]),
        (&json!(""), &json!("longhaul"))
    );
}

#[test]
fn a_call_that_was_cut_off_is_incomplete() {
    let begun = [queued(), claimed(), started(1, 1), planned(1), saved(1, FinishReason::ToolCalls)];
    let end = [settled(1, CallState::Cancelled, None, None), ended(RunStatus::Aborted, Reason::Stop)];
    let events = stream(&[&begun[..], &end].concat());
    let response = &events.last().unwrap()["response"];
    assert_eq!(
        (&response["status"], &response["output"][0]["status"]),
        (&json!("cancelled"), &json!("incomplete"))
    );
}

#[test]
fn a_step_that_is_done_over_leaves_its_torn_item_out_of_the_output() {
    let events = stream(&[
        queued(),
        claimed(),
        started(1, 1),
        EventData::ReasoningDelta { text: "torn too".into() }.of_step(1, 1),
        text(1, "torn"),
        claimed(),
        EventData::StepRestarted { drop_from: 3, why: "lost".into() }.of_step(1, 2),
        started(1, 2),
        text(1, "whole"),
        saved(1, FinishReason::Stop),
        done(),
    ]);
    assert_eq!(kinds(&events).iter().filter(|kind| **kind == "in_progress").count(), 1);
    let closed: Vec<_> = events.iter().filter(|event| event["type"] == "response.output_item.done").collect();
    assert_eq!(closed[1]["item"]["status"], "incomplete");
    let output = events.last().unwrap()["response"]["output"].as_array().unwrap();
    assert_eq!(output.len(), 1);
    assert_eq!(output[0]["content"][0]["text"], "whole");
}

fn asked(call: u32) -> Event {
    let wait = Wait::Approval {
        call,
        call_id: format!("c{call}"),
        name: "pay".into(),
        arguments: r#"{"amount":5}"#.into(),
        effect: Effect::Once,
    };
    EventData::WaitCreated { wait_id: WaitId(uuid::Uuid::nil()), wait }.of_step(1, 1)
}

/// Also held against the SDKs' own by `tests/clients`.
#[test]
fn a_request_for_approval_ends_the_response() {
    let usage = Usage { input_tokens: 3, output_tokens: 4, ..Usage::default() };
    let log = [
        queued(),
        claimed(),
        started(1, 1),
        text(1, "This costs 5."),
        asked(1),
        saved(1, FinishReason::ToolCalls),
        EventData::RunWaiting { usage }.of_run(),
        EventData::RunResumed {}.of_run(),
        settled(1, CallState::Denied, None, None),
        done(),
    ];
    let events = stream(&log);
    let last = events.last().unwrap();
    assert_eq!(
        (&last["type"], &last["response"]["status"]),
        (&json!("response.completed"), &json!("completed"))
    );
    assert_eq!(last["response"]["usage"]["total_tokens"], 7);
    assert_eq!(
        last["response"]["output"][1],
        json!({"type": "mcp_approval_request", "id": "mcpr_00000000000000000000000000000001_1",
            "server_label": "longhaul", "name": "pay", "arguments": r#"{"amount":5}"#})
    );
    assert_eq!(
        last["response"]["output"].as_array().unwrap().len(),
        2,
        "the rest is told by another response"
    );
    let (mut encoder, mut frames) = (Encoder::new(head()), Frames::default());
    for event in &log {
        encoder.push(AT, event, &mut frames);
    }
    assert_eq!(std::str::from_utf8(&frames.take()).unwrap(), include_str!("approval.sse"));
}

#[test]
fn what_is_no_concern_of_the_client_does_not_end_the_response() {
    let waiting = || EventData::RunWaiting { usage: Usage::default() }.of_run();
    let begun = [queued(), claimed(), started(1, 1)];
    let rest = [
        saved(1, FinishReason::ToolCalls),
        started(2, 1),
        text(2, "x"),
        saved(2, FinishReason::Stop),
        done(),
    ];
    let plain = stream(&[&begun[..], &[waiting()], &rest].concat());
    assert_eq!(plain.last().unwrap()["response"]["output"].as_array().unwrap().len(), 1);
    let answered = [asked(1), settled(1, CallState::Denied, None, None), waiting()];
    let events = stream(&[&begun[..], &answered, &rest].concat());
    let output = &events.last().unwrap()["response"]["output"];
    assert_eq!((&output[0]["type"], &output[1]["type"]), (&json!("mcp_approval_request"), &json!("message")));
}

#[test]
fn every_end_has_its_status_and_its_event() {
    let end = |events: &[Event]| {
        let events = stream(&[&[queued(), claimed(), started(1, 1), text(1, "x")], events].concat());
        let last = events.last().unwrap();
        let response = &last["response"];
        let told = [
            &last["type"],
            &response["status"],
            &response["incomplete_details"]["reason"],
            &response["error"]["message"],
        ];
        told.map(|value| value.as_str().unwrap_or("-").to_owned())
    };
    let stop = saved(1, FinishReason::Stop);
    let table = [
        (vec![stop, done()], ["response.completed", "completed", "-", "-"]),
        (
            vec![saved(1, FinishReason::Length), done()],
            ["response.incomplete", "incomplete", "max_output_tokens", "-"],
        ),
        (
            vec![saved(1, FinishReason::ContentFilter), ended(RunStatus::Failed, Reason::Provider)],
            ["response.incomplete", "incomplete", "content_filter", "-"],
        ),
        (
            vec![ended(RunStatus::Failed, Reason::StepLimit)],
            ["response.incomplete", "incomplete", "max_output_tokens", "-"],
        ),
        (vec![ended(RunStatus::Failed, Reason::Provider)], ["response.failed", "failed", "-", "it broke"]),
        (
            vec![ended(RunStatus::Aborted, Reason::Stop)],
            ["response.incomplete", "cancelled", "cancelled", "-"],
        ),
    ];
    for (events, expected) in table {
        assert_eq!(end(&events), expected);
    }
    let untouched = stream(&[queued(), ended(RunStatus::Aborted, Reason::Stop)]);
    assert_eq!(kinds(&untouched), ["created", "queued", "incomplete"]);
}

/// A change of these bytes changes the replays of all runs: it needs a renderer of its own, chosen by the version that the
/// run has (`runs.renderer`).
#[test]
fn a_log_has_these_bytes_for_ever() {
    let (call_id, name, arguments) = ("c9".to_owned(), "ask".to_owned(), "{\"q\":1}".to_owned());
    let log = [
        queued(),
        claimed(),
        started(1, 1),
        text(1, "torn"),
        EventData::StepRestarted { drop_from: 3, why: "lost".into() }.of_step(1, 2),
        started(1, 2),
        EventData::ReasoningDelta { text: "hm".into() }.of_step(1, 2),
        text(1, "Let me \"see\"\n"),
        planned(1),
        planned(2),
        EventData::ToolRequested { call_id, name, arguments }.of_step(1, 2),
        saved(1, FinishReason::ToolCalls),
        EventData::ToolStarted { call: 1, call_id: "c1".into() }.of_step(1, 2),
        settled(1, CallState::Succeeded, Some("noon"), None),
        settled(2, CallState::Failed, None, Some("no")),
        started(2, 1),
        text(2, "ünï 😀"),
        ended(RunStatus::Aborted, Reason::Stop),
    ];
    let (mut encoder, mut frames) = (Encoder::new(head()), Frames::default());
    for event in &log {
        encoder.push(AT, event, &mut frames);
    }
    let bytes = frames.take();
    assert_eq!(std::str::from_utf8(&bytes).unwrap(), include_str!("golden.sse"));
}
