//! The model's side fails: what is worth another try gets one, the rest ends with a reason that a person can read.

use std::time::{Duration, Instant};

use longhaul_tests::story::marks_of;
use longhaul_tests::{At, Fault, Script, Setup, Turn, World};
use serde_json::json;

use crate::{on_both, on_sqlite};

on_both!(
    a_provider_that_asks_for_patience_is_asked_again_after_it,
    a_torn_answer_is_done_over_and_only_the_whole_one_is_kept,
);
on_sqlite!(
    a_refused_key_fails_the_run_in_one_line_without_the_key,
    calls_that_make_no_sense_become_error_results,
    a_web_page_in_place_of_an_answer_fails_the_run,
    a_provider_that_is_never_well_again_fails_the_run,
);

async fn a_provider_that_asks_for_patience_is_asked_again_after_it(setup: Setup) {
    let world = World::start(setup).await;
    let turn = Turn::marked(5).fault(Fault::status_retry_after(429, "1"), 1).fault(Fault::status(503), 1);
    world.provider.script("helper", Script::new([turn]));
    let client = world.client();
    let begin = Instant::now();
    let submitted = client.submit("helper", "Hello").await;
    let tail = world.tail(&submitted.run_id);
    tail.ended().await;
    assert!(begin.elapsed() >= Duration::from_secs(1), "Retry-After is honoured");
    assert_eq!(client.ended(&submitted.run_id).await.outcome(), "succeeded done");
    assert_eq!(marks_of(&tail.story().text(), 1, 5), Some(3));
    assert!(tail.events().iter().all(|event| event.kind != "step.restarted"), "nobody had seen anything");
    world.finish().await;
}

async fn a_torn_answer_is_done_over_and_only_the_whole_one_is_kept(setup: Setup) {
    let world = World::start(setup).await;
    let turn = Turn::marked(12)
        .fault(Fault::Cut(At::Token(6)), 1)
        .fault(Fault::CleanEnd { after: 12 }, 1)
        .fault(Fault::Reset(At::Token(2)), 1);
    world.provider.script("helper", Script::new([turn]));
    let client = world.client();
    let submitted = client.submit("helper", "Hello").await;
    let tail = world.tail(&submitted.run_id);
    let events = tail.ended().await;
    assert_eq!(client.ended(&submitted.run_id).await.outcome(), "succeeded done");
    assert_eq!(events.iter().filter(|event| event.kind == "step.restarted").count(), 3);
    assert_eq!(marks_of(&tail.story().text(), 1, 12), Some(4));
    let messages = client.messages(&submitted.chat_id).await;
    assert_eq!(marks_of(&messages[1].text(), 1, 12), Some(4));
    assert_eq!(client.steps(&submitted.run_id).await.len(), 1);
    world.finish().await;
}

/// Submits and returns what the failed run says.
async fn failure(world: &World) -> String {
    let client = world.client();
    let submitted = client.submit("helper", "Hello").await;
    world.tail(&submitted.run_id).ended().await;
    let run = client.ended(&submitted.run_id).await;
    assert_eq!(run.outcome(), "failed provider");
    let messages = client.messages(&submitted.chat_id).await;
    assert_eq!(messages[1].status, "error");
    let error = run.error.expect("a failed run says why");
    assert!(!error.message.is_empty() && !error.message.contains('\n'), "{error:?}");
    let next = client.say(&submitted.chat_id, "quick", "And now?").await.submitted();
    assert_eq!(client.ended(&next.run_id).await.outcome(), "succeeded done");
    error.message
}

async fn a_refused_key_fails_the_run_in_one_line_without_the_key(setup: Setup) {
    let world = World::start(setup).await;
    let echo = "Incorrect API key provided:\nsk-canary-0123456789".to_owned();
    let fault =
        Fault::Status { code: 401, body: json!({"error": {"message": echo}}).to_string(), retry_after: None };
    world.provider.script("helper", Script::new([Turn::marked(1).always(fault)]));
    let message = failure(&world).await;
    assert!(message.contains("401") && message.contains("Incorrect API key"), "{message}");
    assert!(!message.contains("canary"), "{message}");
    assert_eq!(world.provider.calls_to("helper").len(), 1, "a refusal is not tried again");
    world.finish().await;
}

async fn a_web_page_in_place_of_an_answer_fails_the_run(setup: Setup) {
    let world = World::start(setup).await;
    world.provider.script("helper", Script::new([Turn::marked(1).always(Fault::Html)]));
    let message = failure(&world).await;
    assert!(message.len() < 600, "{message}");
    world.finish().await;
}

async fn a_provider_that_is_never_well_again_fails_the_run(setup: Setup) {
    let world = World::start(setup).await;
    world.provider.script("helper", Script::new([Turn::marked(1).always(Fault::status(500))]));
    let message = failure(&world).await;
    assert!(message.contains("500"), "{message}");
    assert_eq!(world.provider.calls_to("helper").len(), 5, "four tries more");
    world.finish().await;
}

async fn calls_that_make_no_sense_become_error_results(setup: Setup) {
    let world = World::start(setup).await;
    let calls = Turn::default()
        .and_raw_call("charge", r#"{"op": "#, 1)
        .and_raw_call("charge", r#"["op"]"#, 1)
        .and_call("charge", &json!({"amount": 7}))
        .and_call("launch_missiles", &json!({"op": "now"}))
        .and_call("look", &json!({"op": "fine"}));
    world.provider.script("helper", Script::new([calls, Turn::marked(2)]));
    let client = world.client();
    let submitted = client.submit("helper", "Try things.").await;
    world.tail(&submitted.run_id).ended().await;
    assert_eq!(client.ended(&submitted.run_id).await.outcome(), "succeeded done");
    let calls = client.steps(&submitted.run_id).await.remove(0).tool_calls;
    let states: Vec<_> = calls.iter().map(|call| call.state.as_str()).collect();
    assert_eq!(states, ["failed", "failed", "failed", "failed", "succeeded"]);
    assert!(calls[..4].iter().all(|call| call.error.as_ref().is_some_and(|error| !error.is_empty())));
    let asked: Vec<_> = world.tools.ledger().into_iter().map(|entry| entry.tool).collect();
    assert_eq!(asked, ["look"], "nothing else was ever sent");
    world.finish().await;
}
