//! Stop: wherever the run is, it ends soon, costs nothing more, and its chat goes on.

use std::time::{Duration, Instant};

use longhaul_tests::client::{Run, Submitted};
use longhaul_tests::story::{Event, marks_of};
use longhaul_tests::{At, Bus, Client, End, Fault, Gate, Script, Setup, Tail, Turn, World};
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
    an_answer_that_comes_after_the_stop_is_told_in_the_next_turn,
    a_run_is_stopped_by_its_key_before_and_after_it_comes,
);
on_postgres!(
    a_run_that_no_worker_ever_saw_can_be_stopped,
    a_stop_takes_effect_although_the_owner_is_frozen,
    a_stop_does_not_wait_for_the_lease_of_a_frozen_owner,
    a_stop_does_not_wait_for_the_lease_of_a_dead_owner,
    a_stop_without_redis_closes_the_providers_connection_as_well,
);

/// What a stop may take whose owner does not follow: its grace, a round of the reaper, and what a busy machine adds.
const WITHOUT_ITS_OWNER: Duration = Duration::from_secs(5);

fn stages(events: &[Event]) -> Vec<&str> {
    let stages = events.iter().filter(|event| event.kind == "run.stopping");
    stages.map(|event| event.data["stage"].as_str().unwrap()).collect()
}

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
    assert_eq!(stages(&events), ["requested", "delivered"]);
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
    assert_eq!(stages(&events), ["requested", "delivered"]);
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
    let live = "select count(*) from workers where expires_at > now_ms()";
    world.rows.until("the lease of the frozen one is over", live, |live| live == 1).await;
    gate.open();
    world.workers[0].thaw();
    world.workers[0].says("the lease is lost").await;
    assert_eq!(world.rows.log(&submitted.run_id).await, log);
    assert_eq!(world.provider.calls_to("helper").len(), 1);
    world.finish().await;
}

/// A run of the first worker that stands in the middle of its answer while another worker is there.
async fn run_beside_an_idle_worker(world: &mut World) -> (Submitted, Tail, Gate) {
    world.provider.script("helper", Script::new([Turn::marked(20)]));
    let gate = world.provider.gate("helper", At::Token(5));
    let submitted = world.client().submit("helper", "Talk.").await;
    let tail = world.tail(&submitted.run_id);
    gate.reached().await;
    tail.hears("a1.s1.4 ").await;
    world.start_worker().await;
    (submitted, tail, gate)
}

/// Stops the run, whose owner cannot hear it, and goes on in its chat.
async fn the_chat_is_soon_free(world: &World, submitted: &Submitted, tail: &Tail) {
    let client = world.client();
    let asked = Instant::now();
    let stopped: Run = client.stop(&submitted.run_id, 30).await.read(200);
    let took = asked.elapsed();
    println!("run {}: free after {took:?} with a lease of {:?}", submitted.run_id, world.lease());
    assert_eq!(stopped.outcome(), "aborted stop");
    assert!(took < WITHOUT_ITS_OWNER + SLACK && took < world.lease(), "it took {took:?}");
    assert_eq!(stages(&tail.ended().await), ["requested"], "nobody heard of it");
    let messages = client.messages(&submitted.chat_id).await;
    assert_eq!(marks_of(&messages[1].text(), 1, 5), Some(1), "what was said is kept");
    next_message_works(&client, &submitted.chat_id).await;
}

async fn a_stop_does_not_wait_for_the_lease_of_a_frozen_owner(setup: Setup) {
    let mut world = World::start(setup).await;
    let (submitted, tail, gate) = run_beside_an_idle_worker(&mut world).await;
    world.workers[0].freeze();
    the_chat_is_soon_free(&world, &submitted, &tail).await;
    let log = world.rows.log(&submitted.run_id).await;
    world.workers[0].thaw();
    // Its lease still holds and its provider says nothing: it finds out by itself.
    world.provider.until("the connection is closed", |calls| calls[0].ended() == Some(End::ClientGone)).await;
    gate.open();
    assert_eq!(world.rows.log(&submitted.run_id).await, log);
    assert_eq!(world.provider.calls_to("helper").len(), 1);
    world.finish().await;
}

async fn a_stop_does_not_wait_for_the_lease_of_a_dead_owner(setup: Setup) {
    let mut world = World::start(setup).await;
    let (submitted, tail, gate) = run_beside_an_idle_worker(&mut world).await;
    world.workers[0].kill();
    the_chat_is_soon_free(&world, &submitted, &tail).await;
    gate.open();
    assert_eq!(world.provider.calls_to("helper").len(), 1);
    world.finish().await;
}

async fn a_stop_without_redis_closes_the_providers_connection_as_well(setup: Setup) {
    a_stop_in_mid_stream_closes_the_providers_connection_and_keeps_what_was_said(setup.bus(Bus::Absent))
        .await;
}

async fn an_answer_that_comes_after_the_stop_is_told_in_the_next_turn(setup: Setup) {
    let world = World::start(setup).await;
    let calls = Turn::call("charge", &json!({"op": "order 9"})).and_call("put", &json!({"op": "address"}));
    world.provider.script("helper", Script::new([calls]));
    let (charge, put) = (world.tools.gate_after("charge"), world.tools.gate_after("put"));
    let client = world.client();
    let submitted = client.submit("helper", "Charge it.").await;
    charge.reached().await;
    put.reached().await;
    let stopped: Run = client.stop(&submitted.run_id, 10).await.read(200);
    assert_eq!(stopped.outcome(), "aborted stop");
    let log = world.rows.log(&submitted.run_id).await;
    let calls = client.steps(&submitted.run_id).await.remove(0).tool_calls;
    assert!(calls.iter().all(|call| call.late.is_none()), "{calls:?}");

    charge.open();
    put.open();
    let late = "select count(*) from tool_calls where late_at is not null";
    world.rows.until("both answers came late", late, |count| count == 2).await;
    let calls = client.steps(&submitted.run_id).await.remove(0).tool_calls;
    for (call, state) in calls.iter().zip(["unknown", "cancelled"]) {
        assert_eq!(call.state, state);
        let late = call.late.as_ref().unwrap();
        assert_eq!(late["state"], "succeeded");
        assert!(late["output"].as_str().unwrap().contains("\"ok\":true"), "{late}");
    }
    assert_eq!(world.rows.log(&submitted.run_id).await, log, "a run that is over says nothing more");
    next_message_works(&client, &submitted.chat_id).await;
    let next = &world.provider.calls_to("tokens-2")[0];
    let told: Vec<_> = next.messages().iter().filter(|message| message["role"] == "tool").cloned().collect();
    assert_eq!(told.len(), 2);
    for result in told {
        let text = result["content"].as_str().unwrap();
        assert!(text.contains("came later") && text.contains("\"ok\":true"), "{text}");
    }
    assert_eq!((world.tools.effects("order 9"), world.tools.effects("address")), (1, 1));
    world.finish().await;
}

async fn a_run_is_stopped_by_its_key_before_and_after_it_comes(setup: Setup) {
    let world = World::start(setup).await;
    world.provider.script("helper", Script::new([Turn::marked(9)]));
    let gate = world.provider.gate("helper", At::Token(3));
    let client = world.client();
    let body = json!({"agent": "helper", "input": "Talk."});
    let known = client.post_with_key("/v1/runs", "known", &body).await.submitted();
    gate.reached().await;
    let stopped = client.post("/v1/runs/stop?wait=10", &json!({"idempotencyKey": "known"})).await;
    let stopped: Run = stopped.read(200);
    assert_eq!((stopped.run_id.as_str(), stopped.outcome().as_str()), (&*known.run_id, "aborted stop"));

    let noted = client.post("/v1/runs/stop", &json!({"idempotencyKey": "early"})).await.expect(202);
    assert_eq!(noted["idempotencyKey"], "early");
    let tail = {
        let early = client.post_with_key("/v1/runs", "early", &body).await.submitted();
        assert_eq!(early.status, "aborted");
        let again = client.post_with_key("/v1/runs", "early", &body).await;
        assert_eq!(again.submitted(), early);
        assert_eq!(client.run(&early.run_id).await.outcome(), "aborted stop");
        next_message_works(&client, &early.chat_id).await;
        world.tail(&early.run_id)
    };
    assert_eq!(stages(&tail.ended().await), ["requested"]);
    assert_eq!(world.provider.calls_to("helper").len(), 1, "the run that was stopped early cost nothing");
    world.finish().await;
}
