//! Models and tools say what nobody expects: bytes, numbers and shapes that no store and no reader may stumble over.

use longhaul_tests::{Answer, Fault, Script, Setup, Turn, World};
use serde_json::{Value, json};

use crate::{on_both, on_sqlite};

on_both!(what_no_database_can_store_is_stored_readably, absurd_counts_of_tokens_add_up,);
on_sqlite!(
    all_quirks_of_a_provider_at_once_change_nothing,
    a_field_that_nobody_knows_may_be_nested_beyond_reason,
    an_error_in_mid_stream_counts_as_its_status,
);

/// Name, arguments and number of results of each tool call in a request.
fn paired(messages: &[Value]) -> Vec<(String, String, usize)> {
    let results = |id: &Value| messages.iter().filter(|message| message["tool_call_id"] == *id).count();
    let calls = messages.iter().filter_map(|message| message["tool_calls"].as_array()).flatten();
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    calls
        .map(|call| {
            (text(&call["function"]["name"]), text(&call["function"]["arguments"]), results(&call["id"]))
        })
        .collect()
}

async fn all_quirks_of_a_provider_at_once_change_nothing(setup: Setup) {
    let world = World::start(setup.agent("odd", "odd")).await;
    let script = |quirky: bool| {
        let calls = [("look", "first"), ("put", "second"), ("look", "third"), ("put", "fourth")];
        let first = calls.iter().fold(Turn::marked(3).reasoning(["Hm", "."]), |turn, (tool, op)| {
            turn.and_raw_call(tool, &json!({"op": op, "say": "a \"}{\" b"}).to_string(), 5)
        });
        let turns = [first.usage(7, 9), Turn::marked(4).usage(20, 4)];
        Script::new(turns.map(|turn| if quirky { turn.quirky() } else { turn }))
    };
    let client = world.client();
    let mut seen = Vec::new();
    for (model, agent, quirky) in [("helper", "helper", false), ("odd", "odd", true)] {
        world.provider.script(model, script(quirky));
        let submitted = client.submit(agent, "Hello").await;
        let tail = world.tail(&submitted.run_id);
        tail.ended().await;
        let run = client.ended(&submitted.run_id).await;
        assert_eq!(run.outcome(), "succeeded done");
        let calls = world.provider.calls_to(model);
        let pairs = paired(calls[1].messages());
        assert_eq!((calls.len(), pairs.len()), (2, 4));
        assert!(pairs.iter().all(|(.., results)| *results == 1), "{pairs:?}");
        let outputs: Vec<_> = tail.story().steps.values().map(longhaul_tests::story::Told::output).collect();
        seen.push((pairs, outputs, run.usage));
    }
    assert_eq!(seen[0], seen[1]);
    assert_eq!((seen[1].2.input_tokens, seen[1].2.output_tokens), (27, 13));
    world.tools.ledger().iter().for_each(|entry| assert_eq!(entry.arguments["say"], "a \"}{\" b"));
    assert_eq!(world.tools.effects("fourth"), 2, "once for each run");
    world.finish().await;
}

async fn what_no_database_can_store_is_stored_readably(setup: Setup) {
    let world = World::start(setup).await;
    let deep = format!("{{\"op\":{}1{}}}", "[".repeat(10_000), "]".repeat(10_000));
    let bombs = format!("{{\"op\":\"x\",\"n\":[{}0]}}", "1e131071,".repeat(1000));
    let calls = Turn::text(["plain "])
        .and_nul()
        .and_lone_surrogate()
        .and_text(["\u{7}\u{1b}[31m\u{202e} controls"])
        .reasoning(["nul \u{0} too"])
        .and_call("cha\u{0}rge", &json!({"op": "never"}))
        .and_raw_call("look", "{\"op\":\"nul \\u0000 escaped\"}", 3)
        .and_raw_call("look", "{\"op\":\"raw nul \u{0}\"}", 1)
        .and_raw_call("look", r#"{"op":"\ud800"}"#, 1)
        .and_raw_call("charge", &deep, 9)
        .and_raw_call("charge", &bombs, 2)
        .and_raw_call("charge", r#"{"op":"x","amount":18446744073709551616}"#, 1)
        .and_call("put", &json!({"op": "fine"}));
    world.provider.script("helper", Script::new([calls, Turn::marked(2)]));
    world.tools.behave("put", Answer::Raw(vec![("content-type", "text/plain")], b"a\0b \xff\xfe c".to_vec()));
    let client = world.client();
    let submitted = client.submit("helper", "Say odd things.").await;
    let tail = world.tail(&submitted.run_id);
    tail.ended().await;
    assert_eq!(client.ended(&submitted.run_id).await.outcome(), "succeeded done");
    let text = tail.story().text();
    assert!(text.contains("nul \u{fffd} here") && text.contains("lone \u{fffd} here"), "{text:?}");
    let calls = client.steps(&submitted.run_id).await.remove(0).tool_calls;
    let states: Vec<_> = calls.iter().map(|call| call.state.as_str()).collect();
    let expected = ["failed", "succeeded", "succeeded", "failed", "failed", "failed", "failed", "succeeded"];
    assert_eq!(states, expected, "{calls:#?}");
    assert_eq!(calls[7].output.as_deref(), Some("a\u{fffd}b \u{fffd}\u{fffd} c"));
    assert!(calls[6].error.as_ref().unwrap().contains("too large to be passed on exactly"), "{calls:#?}");
    assert_eq!(world.tools.effects("nul \u{fffd} escaped"), 1);
    assert!(world.tools.ledger().iter().all(|entry| entry.tool != "charge"), "none of those was sent");

    let messages = client.messages(&submitted.chat_id).await;
    assert!(messages[1].text().starts_with(&text[..20]));
    // What the model wrote as an escape is kept as it was written.
    let parts = serde_json::to_string(&messages[1].parts).unwrap().replace(r"\\u0000", "");
    assert!(!parts.contains(r"\u0000"), "{parts}");
    client.events(&submitted.run_id, 1000).await;
    // All of it is part of the next request.
    let next = client.say(&submitted.chat_id, "quick", "And now?").await.submitted();
    assert_eq!(client.ended(&next.run_id).await.outcome(), "succeeded done");
    world.finish().await;
}

async fn absurd_counts_of_tokens_add_up(setup: Setup) {
    let world = World::start(setup).await;
    let absurd = |turn: Turn| turn.usage(u64::MAX, i64::MAX as u64);
    let call = Turn::call("look", &json!({"op": "x"}));
    world.provider.script("helper", Script::new([absurd(call), absurd(Turn::marked(2))]));
    let client = world.client();
    let submitted = client.submit("helper", "Count.").await;
    world.tail(&submitted.run_id).ended().await;
    let run = client.ended(&submitted.run_id).await;
    assert_eq!((run.outcome().as_str(), run.step_count), ("succeeded done", 2));
    let steps = client.steps(&submitted.run_id).await;
    let of_steps = |of: fn(&longhaul_tests::client::Step) -> i64| steps.iter().map(of).sum::<i64>();
    assert_eq!(run.usage.input_tokens, of_steps(|step| step.usage.input_tokens));
    assert_eq!(run.usage.output_tokens, of_steps(|step| step.usage.output_tokens));
    assert!(run.usage.input_tokens > 0);
    world.finish().await;
}

async fn a_field_that_nobody_knows_may_be_nested_beyond_reason(setup: Setup) {
    let world = World::start(setup).await;
    let turn = Turn::text(["not ", "very "]).and_deep(100_000);
    world.provider.script("helper", Script::new([turn]));
    let client = world.client();
    let submitted = client.submit("helper", "Hello").await;
    let tail = world.tail(&submitted.run_id);
    tail.ended().await;
    assert_eq!(client.ended(&submitted.run_id).await.outcome(), "succeeded done");
    assert_eq!(tail.story().text(), "not very deep ");
    let next = client.say(&submitted.chat_id, "quick", "And now?").await.submitted();
    assert_eq!(client.ended(&next.run_id).await.outcome(), "succeeded done");
    world.finish().await;
}

async fn an_error_in_mid_stream_counts_as_its_status(setup: Setup) {
    let world = World::start(setup.agent("refused", "refused")).await;
    let event = |error: Value| Fault::ErrorEvent { after: 2, error };
    let refused = event(json!({"message": "no such key", "code": 401}));
    world.provider.script("refused", Script::new([Turn::marked(4).always(refused)]));
    let busy = event(json!({"message": "slow down", "code": 429, "retry_after": 1}));
    world.provider.script("helper", Script::new([Turn::marked(4).fault(busy, 1)]));
    let client = world.client();
    for (agent, outcome, requests) in [("refused", "failed provider", 1), ("helper", "succeeded done", 2)] {
        let submitted = client.submit(agent, "Hello").await;
        world.tail(&submitted.run_id).ended().await;
        assert_eq!(client.ended(&submitted.run_id).await.outcome(), outcome);
        assert_eq!(world.provider.calls_to(agent).len(), requests);
    }
    let calls = world.provider.calls_to("helper");
    let waited = calls[1].begin - calls[0].end.expect("it ended").0;
    assert!(waited >= std::time::Duration::from_secs(1), "{waited:?}");
    world.finish().await;
}
