//! Stop: wherever the run is, it ends soon, costs nothing more, and its chat goes on.

use std::time::{Duration, Instant};

use longhaul_tests::client::Run;
use longhaul_tests::story::marks_of;
use longhaul_tests::{At, Client, End, Fault, Script, Setup, Turn, World};
use serde_json::json;

use crate::{on_both, on_postgres};

/// What a stop promises for the provider's connection, and what a busy machine adds.
const AT_ONCE: Duration = Duration::from_secs(1);
const SLACK: Duration = Duration::from_secs(2);

on_both!(
    a_stop_in_mid_stream_closes_the_providers_connection_and_keeps_what_was_said,
    a_stop_before_the_first_token_closes_the_providers_connection,
    a_stop_in_a_tool_call_does_not_wait_for_the_tool,
    a_stop_may_be_repeated_and_comes_too_late_after_the_end,
    a_stop_in_a_queue_lets_the_next_one_pass,
    a_deleted_chat_stops_its_run,
);
on_postgres!(a_run_that_no_worker_ever_saw_can_be_stopped, a_stop_takes_effect_although_the_owner_is_frozen,);

async fn next_message_works(client: &Client, chat: &str) {
    let next = client.say(chat, "quick", "And now?").await.submitted();
    assert_eq!(client.ended(&next.run_id).await.outcome(), "succeeded done");
}

async fn a_stop_in_mid_stream_closes_the_providers_connection_and_keeps_what_was_said(setup: Setup) {
    let world = World::start(setup).await;
    world.provider.script("helper", Script::new([Turn::marked(20)]));
    let gate = world.provider.gate("helper", At::Token(5));
    let client = world.client();
    let submitted = client.submit("helper", "Talk.").await;
    gate.reached().await;
    let tail = world.tail(&submitted.run_id);
    tail.hears("a1.s1.4 ").await;

    let asked = Instant::now();
    let stopped: Run = client.stop(&submitted.run_id, 10).await.read(200);
    assert_eq!(stopped.outcome(), "aborted stop");
    world.provider.until("the connection is closed", |calls| calls[0].ended() == Some(End::ClientGone)).await;
    let (closed, _) = world.provider.calls()[0].end.unwrap();
    assert!(
        closed.saturating_duration_since(asked) < AT_ONCE + SLACK,
        "{:?}",
        closed.saturating_duration_since(asked)
    );
    let events = tail.ended().await;
    assert_eq!(events.iter().filter(|event| event.kind == "run.stopping").count(), 1);
    let messages = client.messages(&submitted.chat_id).await;
    assert_eq!(messages[1].status, "aborted");
    assert_eq!(marks_of(&messages[1].text(), 1, 5), Some(1), "what was said is kept: {}", messages[1].text());
    next_message_works(&client, &submitted.chat_id).await;
    world.finish().await;
}

async fn a_stop_before_the_first_token_closes_the_providers_connection(setup: Setup) {
    let world = World::start(setup).await;
    // While the provider thinks, and while it asked for patience.
    let patience = Fault::status_retry_after(429, "2");
    world.provider.script("helper", Script::new([Turn::marked(20).fault(patience, 1)]));
    let gate = world.provider.gate("helper", At::BeforeHead);
    let client = world.client();
    let thinks = client.submit("helper", "Think.").await;
    gate.reached().await;
    assert_eq!(client.stop(&thinks.run_id, 10).await.read::<Run>(200).outcome(), "aborted stop");
    world.provider.until("the connection is closed", |calls| calls[0].ended() == Some(End::ClientGone)).await;

    gate.open();
    let waits = client.submit("helper", "Wait.").await;
    world.provider.until("it asked for patience", |calls| calls.len() == 2 && calls[1].end.is_some()).await;
    let asked = Instant::now();
    assert_eq!(client.stop(&waits.run_id, 10).await.read::<Run>(200).outcome(), "aborted stop");
    assert!(asked.elapsed() < AT_ONCE + SLACK, "it took {:?}", asked.elapsed());
    next_message_works(&client, &waits.chat_id).await;
    assert_eq!(world.provider.calls_to("helper").len(), 2, "it is not asked again");
    world.finish().await;
}

async fn a_stop_in_a_tool_call_does_not_wait_for_the_tool(setup: Setup) {
    let world = World::start(setup).await;
    let calls = Turn::call("charge", &json!({"op": "slow"})).and_call("look", &json!({"op": "also slow"}));
    world.provider.script("helper", Script::new([calls]));
    let (charge, look) = (world.tools.gate_before("charge"), world.tools.gate_before("look"));
    let client = world.client();
    let submitted = client.submit("helper", "Charge it.").await;
    charge.reached().await;
    look.reached().await;

    let asked = Instant::now();
    let stopped: Run = client.stop(&submitted.run_id, 10).await.read(200);
    assert!(asked.elapsed() < AT_ONCE + SLACK, "it took {:?}", asked.elapsed());
    assert_eq!(stopped.outcome(), "aborted stop");
    let steps = client.steps(&submitted.run_id).await;
    let states: Vec<_> = steps[0].tool_calls.iter().map(|call| call.state.as_str()).collect();
    // Whether the customer was charged, nobody knows.
    assert_eq!(states, ["unknown", "cancelled"]);
    charge.open();
    look.open();
    world.tools.until("the late effect", |entries| entries.iter().any(|entry| entry.op == "slow")).await;
    next_message_works(&client, &submitted.chat_id).await;
    assert_eq!(world.provider.calls_to("helper").len(), 1);
    world.finish().await;
}

async fn a_stop_may_be_repeated_and_comes_too_late_after_the_end(setup: Setup) {
    let world = World::start(setup).await;
    world.provider.script("helper", Script::new([Turn::marked(9)]));
    let gate = world.provider.gate("helper", At::Token(3));
    let client = world.client();
    let submitted = client.submit("helper", "Talk.").await;
    gate.reached().await;
    let tail = world.tail(&submitted.run_id);
    let stops = (0..20).map(|_| client.stop(&submitted.run_id, 0));
    for answer in futures::future::join_all(stops).await {
        assert!([200, 202].contains(&answer.status), "{answer:?}");
    }
    let events = tail.ended().await;
    assert_eq!(events.iter().filter(|event| event.kind == "run.stopping").count(), 1);
    let again: Run = client.stop(&submitted.run_id, 5).await.read(200);
    assert_eq!(again.outcome(), "aborted stop");

    let done = client.submit("quick", "Be quick.").await;
    client.ended(&done.run_id).await;
    let late: Run = client.stop(&done.run_id, 0).await.read(200);
    assert_eq!(late.outcome(), "succeeded done");
    let nobody = uuid::Uuid::now_v7();
    client.stop(&nobody.to_string(), 0).await.refused(404, "NOT_FOUND");
    world.finish().await;
}

async fn a_stop_in_a_queue_lets_the_next_one_pass(setup: Setup) {
    let world = World::start(setup).await;
    world.provider.script("helper", Script::new([Turn::marked(4)]));
    let gate = world.provider.gate("helper", At::Token(1));
    let client = world.client();
    let first = client.submit("helper", "First").await;
    gate.reached().await;
    let path = format!("/v1/chats/{}/messages", first.chat_id);
    let enqueue = |text: &str| json!({"agent": "quick", "input": text, "ifBusy": "enqueue"});
    let second = client.post(&path, &enqueue("Second")).await.submitted();
    let third = client.post(&path, &enqueue("Third")).await.submitted();
    assert_eq!((second.status.as_str(), second.position, third.position), ("queued", Some(1), Some(2)));
    let tail = world.tail(&second.run_id);
    let stopped: Run = client.stop(&second.run_id, 5).await.read(200);
    assert_eq!(stopped.outcome(), "aborted stop");
    tail.ended().await;
    gate.open();
    assert_eq!(client.ended(&first.run_id).await.outcome(), "succeeded done");
    assert_eq!(client.ended(&third.run_id).await.outcome(), "succeeded done");
    assert_eq!(world.provider.calls_to("tokens-2").len(), 1, "the stopped run cost nothing");
    world.finish().await;
}

async fn a_deleted_chat_stops_its_run(setup: Setup) {
    let world = World::start(setup).await;
    world.provider.script("helper", Script::new([Turn::marked(4)]));
    let gate = world.provider.gate("helper", At::Token(1));
    let client = world.client();
    let submitted = client.submit("helper", "Talk.").await;
    gate.reached().await;
    let tail = world.tail(&submitted.run_id);
    let asked = Instant::now();
    client.delete(&format!("/v1/chats/{}", submitted.chat_id)).await.expect(204);
    tail.ended().await;
    assert!(asked.elapsed() < AT_ONCE + SLACK, "it took {:?}", asked.elapsed());
    assert_eq!(tail.story().end, Some(("aborted".to_owned(), "chat_deleted".to_owned())));
    client.say(&submitted.chat_id, "quick", "Still there?").await.refused(404, "NOT_FOUND");
    world.finish().await;
}

async fn a_run_that_no_worker_ever_saw_can_be_stopped(setup: Setup) {
    let mut world = World::start(setup.workers(0)).await;
    let client = world.client();
    let submitted = client.submit("quick", "Anybody there?").await;
    let run = client.run(&submitted.run_id).await;
    assert_eq!(run.status, "pending");
    assert_eq!(run.blocked_by.unwrap()["kind"], "no_worker");
    let tail = world.tail(&submitted.run_id);
    let stopped: Run = client.stop(&submitted.run_id, 5).await.read(200);
    assert_eq!(stopped.outcome(), "aborted stop");
    tail.ended().await;
    assert_eq!(world.provider.calls().len(), 0);
    world.start_worker().await;
    next_message_works(&client, &submitted.chat_id).await;
    world.finish().await;
}

async fn a_stop_takes_effect_although_the_owner_is_frozen(setup: Setup) {
    let mut world = World::start(setup.short_lease()).await;
    world.provider.script("helper", Script::new([Turn::marked(20)]));
    let gate = world.provider.gate("helper", At::Token(5));
    let client = world.client();
    let submitted = client.submit("helper", "Talk.").await;
    let tail = world.tail(&submitted.run_id);
    gate.reached().await;
    tail.hears("a1.s1.4 ").await;
    world.start_worker().await;
    world.workers[0].freeze();
    let stopped: Run = client.stop(&submitted.run_id, 30).await.read(200);
    assert_eq!(stopped.outcome(), "aborted stop");
    tail.ended().await;
    next_message_works(&client, &submitted.chat_id).await;
    let log = world.rows.log(&submitted.run_id).await;
    gate.open();
    world.workers[0].thaw();
    world.workers[0].says("the lease is lost").await;
    assert_eq!(world.rows.log(&submitted.run_id).await, log);
    assert_eq!(world.provider.calls_to("helper").len(), 1);
    world.finish().await;
}
