//! Processes die and freeze: what was finished stays finished, and somebody goes on.

use std::time::{Duration, Instant};

use longhaul_tests::client::Submitted;
use longhaul_tests::story::{Event, marks_of};
use longhaul_tests::{At, Bus, End, Gate, Script, Setup, Tail, Turn, Way, World};
use serde_json::json;

use crate::{on_both, on_postgres, on_sqlite};

on_both!(
    a_call_that_must_happen_once_is_not_repeated_when_its_outcome_is_lost,
    an_idempotent_call_is_repeated_under_the_same_key,
    calls_that_had_no_effect_yet_are_settled_by_their_kind_and_finished_ones_are_kept,
);
on_postgres!(
    a_run_goes_on_from_its_last_step_when_its_only_worker_is_killed,
    another_worker_takes_over_within_the_lease_and_two_seconds,
    another_worker_takes_over_just_as_soon_without_redis,
    a_tail_whose_api_process_is_killed_goes_on_at_the_other,
    an_answer_that_was_whole_and_not_saved_is_asked_for_once_more_and_counted_once,
    a_frozen_worker_that_wakes_up_changes_nothing,
    a_worker_without_its_database_shows_nothing_that_it_cannot_keep_and_lets_go_in_time,
    a_worker_whose_database_connections_break_off_goes_on_by_itself,
    a_worker_whose_database_connections_fall_silent_for_ever_goes_on_with_others,
    a_worker_whose_first_database_connection_breaks_off_anywhere_starts_all_the_same,
);
on_sqlite!(
    a_killed_dev_server_goes_on_where_it_was_and_the_tail_with_it,
    a_run_whose_server_dies_again_and_again_is_given_up,
);

/// What a takeover may take beyond the lease, and what a busy machine adds.
const BEYOND_THE_LEASE: Duration = Duration::from_secs(2);
const SLACK: Duration = Duration::from_secs(4);

/// A first step with a tool call, and a second one that stands at a gate in its middle.
async fn run_that_stands_in_its_second_step(world: &World) -> (Submitted, Tail, Gate) {
    let first = Turn::marked(3).and_call("charge", &json!({"op": "order 7"}));
    world.provider.script("helper", Script::new([first, Turn::marked(20)]));
    let gate = world.provider.gate_on_turn("helper", 2, At::Token(8));
    let submitted = world.client().submit("helper", "Charge order 7.").await;
    let tail = world.tail(&submitted.run_id);
    gate.reached().await;
    tail.hears("a1.s2.7 ").await;
    (submitted, tail, gate)
}

/// It ended well, step 1 ran once and step 2 is one whole answer of its second attempt.
async fn it_went_on(world: &World, submitted: &Submitted, tail: &Tail) {
    let events = tail.ended().await;
    let client = world.client();
    assert_eq!(client.ended(&submitted.run_id).await.outcome(), "succeeded done");
    let restarts: Vec<_> = events.iter().filter(|event| event.kind == "step.restarted").collect();
    assert_eq!(restarts.iter().map(|event| event.step).collect::<Vec<_>>(), [Some(2)]);
    let story = tail.story();
    assert_eq!(marks_of(&story.steps[&1].text(), 1, 3), Some(1));
    assert_eq!(marks_of(&story.steps[&2].text(), 2, 20), Some(2), "{}", story.steps[&2].text());
    let turns: Vec<_> =
        world.provider.calls_to("helper").iter().map(|call| (call.turn, call.attempt)).collect();
    assert_eq!(turns, [(1, 1), (2, 1), (2, 2)], "a finished step is never repeated");
    assert_eq!(world.tools.effects("order 7"), 1);
    let messages = client.messages(&submitted.chat_id).await;
    assert_eq!(messages[1].text(), story.text());
    assert_eq!(messages[1].status, "completed");
}

async fn a_run_goes_on_from_its_last_step_when_its_only_worker_is_killed(setup: Setup) {
    let mut world = World::start(setup.short_lease()).await;
    let (submitted, tail, gate) = run_that_stands_in_its_second_step(&world).await;
    world.workers[0].kill();
    gate.open();
    world.start_worker().await;
    it_went_on(&world, &submitted, &tail).await;
    assert_eq!(world.client().run(&submitted.run_id).await.attempts, 2);
    world.finish().await;
}

async fn another_worker_takes_over_within_the_lease_and_two_seconds(setup: Setup) {
    let mut world = World::start(setup.short_lease().apis(2)).await;
    take_over(&mut world).await;
    world.finish().await;
}

async fn another_worker_takes_over_just_as_soon_without_redis(setup: Setup) {
    let mut world = World::start(setup.short_lease().apis(2).bus(Bus::Own)).await;
    world.redis.as_mut().unwrap().kill();
    take_over(&mut world).await;
    world.finish().await;
}

async fn take_over(world: &mut World) {
    let (submitted, tail, gate) = run_that_stands_in_its_second_step(world).await;
    let elsewhere = world.tail_from(&submitted.run_id, 0, 1);
    // They come later, so the first one is the owner.
    world.start_worker().await;
    world.start_worker().await;
    gate.open();
    gate.close();
    world.workers[0].kill();
    let killed = Instant::now();
    let run = submitted.run_id.clone();
    tail.until("another worker has it", |events| {
        events.iter().filter(|e| e.kind == "run.claimed").count() == 2
    })
    .await;
    let took = killed.elapsed();
    println!("run {run}: taken over after {took:?} with a lease of {:?}", world.lease());
    assert!(took < world.lease() + BEYOND_THE_LEASE + SLACK, "it took {took:?}");
    gate.open();
    it_went_on(world, &submitted, &tail).await;
    assert_eq!(elsewhere.ended().await, tail.events());
}

async fn a_killed_dev_server_goes_on_where_it_was_and_the_tail_with_it(setup: Setup) {
    let mut world = World::start(setup).await;
    let (submitted, tail, gate) = run_that_stands_in_its_second_step(&world).await;
    world.apis[0].kill();
    gate.open();
    world.apis[0].restart().await;
    it_went_on(&world, &submitted, &tail).await;
    assert_eq!(tail.connections(), 2);
    world.finish().await;
}

async fn a_run_whose_server_dies_again_and_again_is_given_up(setup: Setup) {
    let mut world = World::start(setup).await;
    world.provider.script("helper", Script::new([Turn::marked(5)]));
    let gate = world.provider.gate("helper", At::Token(2));
    let submitted = world.client().submit("helper", "Poison.").await;
    let tail = world.tail(&submitted.run_id);
    for crash in 1..=3 {
        gate.reached_by(crash).await;
        world.apis[0].restart().await;
    }
    tail.ended().await;
    assert_eq!(tail.story().end, Some(("failed".to_owned(), "crash_limit".to_owned())));
    gate.open();
    let client = world.client();
    let messages = client.messages(&submitted.chat_id).await;
    assert_eq!(messages[1].status, "error");
    let next = client.say(&submitted.chat_id, "quick", "And now?").await.submitted();
    assert_eq!(client.ended(&next.run_id).await.outcome(), "succeeded done");
    world.finish().await;
}

/// Kills whoever executes runs, and starts it again.
async fn kill_the_executor(world: &mut World) {
    match world.workers.first_mut() {
        Some(worker) => {
            worker.kill();
            world.start_worker().await;
        }
        None => world.apis[0].restart().await,
    }
}

async fn a_call_that_must_happen_once_is_not_repeated_when_its_outcome_is_lost(setup: Setup) {
    let mut world = World::start(setup.short_lease()).await;
    let calls = Turn::call("charge", &json!({"op": "order 8"})).and_call("look", &json!({"op": "prices"}));
    world.provider.script("helper", Script::new([calls, Turn::marked(3)]));
    let gate = world.tools.gate_after("charge");
    let submitted = world.client().submit("helper", "Charge order 8.").await;
    let tail = world.tail(&submitted.run_id);
    gate.reached().await;
    tail.until("the other call is done", |events| {
        events.iter().any(|event| event.kind == "tool.finished" && event.data["call"] == 2)
    })
    .await;
    kill_the_executor(&mut world).await;
    tail.ended().await;
    gate.open();

    let client = world.client();
    assert_eq!(client.ended(&submitted.run_id).await.outcome(), "succeeded done");
    let steps = client.steps(&submitted.run_id).await;
    let states: Vec<_> = steps[0].tool_calls.iter().map(|call| call.state.as_str()).collect();
    assert_eq!(states, ["unknown", "succeeded"]);
    assert_eq!((world.tools.effects("order 8"), world.tools.effects("prices")), (1, 1));
    // The model was told about both calls, in a conversation that a strict provider takes.
    let calls = world.provider.calls_to("helper");
    let results = calls[1].messages().iter().filter(|message| message["role"] == "tool").count();
    assert_eq!((calls.len(), results), (2, 2));
    let next = client.say(&submitted.chat_id, "quick", "And now?").await.submitted();
    assert_eq!(client.ended(&next.run_id).await.outcome(), "succeeded done");
    world.finish().await;
}

async fn an_idempotent_call_is_repeated_under_the_same_key(setup: Setup) {
    let mut world = World::start(setup.short_lease()).await;
    let call = Turn::call("put", &json!({"op": "address"}));
    world.provider.script("helper", Script::new([call, Turn::marked(3)]));
    let gate = world.tools.gate_after("put");
    let submitted = world.client().submit("helper", "Change the address.").await;
    let tail = world.tail(&submitted.run_id);
    gate.reached().await;
    kill_the_executor(&mut world).await;
    gate.reached_by(2).await;
    gate.open();
    tail.ended().await;

    let client = world.client();
    assert_eq!(client.ended(&submitted.run_id).await.outcome(), "succeeded done");
    let call = &client.steps(&submitted.run_id).await[0].tool_calls[0];
    assert_eq!(call.state, "succeeded");
    assert_eq!(call.idempotency_key, format!("{}:1:1", submitted.run_id));
    assert!(world.tools.keys("address").iter().eq([&call.idempotency_key]), "one key for both");
    assert_eq!((world.tools.effects("address"), world.tools.ledger().len()), (1, 2));
    world.finish().await;
}

async fn calls_that_had_no_effect_yet_are_settled_by_their_kind_and_finished_ones_are_kept(setup: Setup) {
    let mut world = World::start(setup.short_lease()).await;
    let calls = Turn::call("charge", &json!({"op": "order 9"}))
        .and_call("put", &json!({"op": "address"}))
        .and_call("look", &json!({"op": "prices"}))
        .and_call("look", &json!({"op": "stock"}));
    world.provider.script("helper", Script::new([calls, Turn::marked(3)]));
    let (charge, put) = (world.tools.gate_before("charge"), world.tools.gate_before("put"));
    let submitted = world.client().submit("helper", "Do all of it.").await;
    let tail = world.tail(&submitted.run_id);
    charge.reached().await;
    put.reached().await;
    tail.until("the other calls are done", |events| {
        let done = |call: u64| events.iter().any(|e| e.kind == "tool.finished" && e.data["call"] == call);
        done(3) && done(4)
    })
    .await;
    assert_eq!(world.tools.effects("order 9") + world.tools.effects("address"), 0);
    kill_the_executor(&mut world).await;
    put.reached_by(2).await;
    put.open();
    charge.open();
    tail.ended().await;

    let client = world.client();
    assert_eq!(client.ended(&submitted.run_id).await.outcome(), "succeeded done");
    let steps = client.steps(&submitted.run_id).await;
    let states: Vec<_> = steps[0].tool_calls.iter().map(|call| call.state.as_str()).collect();
    assert_eq!(states, ["unknown", "succeeded", "succeeded", "succeeded"]);
    // The first request may still act, as it was asked to; it is not sent again.
    world.tools.until("the lost request acts", |ledger| ledger.iter().any(|one| one.tool == "charge")).await;
    for (op, requests, keys) in [("order 9", 1, 1), ("address", 2, 1), ("prices", 1, 1), ("stock", 1, 1)] {
        world.tools.until(op, |ledger| ledger.iter().filter(|one| one.op == op).count() == requests).await;
        assert_eq!((world.tools.effects(op), world.tools.keys(op).len()), (1, keys), "{op}");
    }
    let calls = world.provider.calls_to("helper");
    let results = calls[1].messages().iter().filter(|message| message["role"] == "tool").count();
    assert_eq!((calls.len(), results), (2, 4));
    world.finish().await;
}

async fn a_tail_whose_api_process_is_killed_goes_on_at_the_other(setup: Setup) {
    let mut world = World::start(setup.apis(2)).await;
    world.provider.script("helper", Script::new([Turn::marked(20)]));
    let gate = world.provider.gate("helper", At::Token(8));
    let submitted = world.client().submit("helper", "Talk.").await;
    let tail = world.tail(&submitted.run_id);
    gate.reached().await;
    tail.hears("a1.s1.7 ").await;
    world.apis[0].kill();
    gate.open();
    tail.ended().await;
    assert_eq!(marks_of(&tail.story().text(), 1, 20), Some(1));
    assert_eq!(world.client_of(1).ended(&submitted.run_id).await.outcome(), "succeeded done");
    world.finish().await;
}

async fn an_answer_that_was_whole_and_not_saved_is_asked_for_once_more_and_counted_once(setup: Setup) {
    let mut world = World::start(setup.short_lease().workers(0)).await;
    world.start_worker_that("after_model_before_persist=kill:2").await;
    let first = Turn::marked(3).and_call("look", &json!({"op": "prices"})).usage(100, 10);
    // Slow enough to be shown in part before it is lost.
    let second = Turn::marked(20).delay(Duration::from_millis(20)).usage(7_000, 300);
    world.provider.script("helper", Script::new([first, second]));
    let submitted = world.client().submit("helper", "Talk.").await;
    let tail = world.tail(&submitted.run_id);
    world
        .provider
        .until("the second answer is whole", |calls| calls.len() == 2 && calls[1].pieces == 20)
        .await;
    world.workers[0].ended().await;
    world.start_worker().await;
    let events = tail.ended().await;

    let client = world.client();
    let run = client.ended(&submitted.run_id).await;
    assert_eq!((run.outcome().as_str(), run.attempts, run.step_count), ("succeeded done", 2, 2));
    let calls = world.provider.calls_to("helper");
    let asked: Vec<_> = calls.iter().map(|call| (call.turn, call.attempt, call.ended())).collect();
    let whole = Some(End::Complete);
    assert_eq!(asked, [(1, 1, whole), (2, 1, whole), (2, 2, whole)]);
    let restarts = events.iter().filter(|event| event.kind == "step.restarted");
    assert_eq!(restarts.map(|event| event.step).collect::<Vec<_>>(), [Some(2)]);
    let story = tail.story();
    assert_eq!(marks_of(&story.steps[&2].text(), 2, 20), Some(2), "nothing of the lost answer is left");
    assert_eq!(client.messages(&submitted.chat_id).await[1].text(), story.text());
    // Each saved answer is paid for once; what the lost one cost only its provider knows.
    assert_eq!((run.usage.input_tokens, run.usage.output_tokens), (7_100, 310));
    let steps = client.steps(&submitted.run_id).await;
    assert_eq!((steps[1].usage.input_tokens, steps[1].usage.output_tokens), (7_000, 300));
    assert_eq!(world.tools.ledger().len(), 1);
    world.finish().await;
}

async fn a_frozen_worker_that_wakes_up_changes_nothing(setup: Setup) {
    let mut world = World::start(setup.short_lease()).await;
    let (submitted, tail, gate) = run_that_stands_in_its_second_step(&world).await;
    world.start_worker().await;
    world.workers[0].freeze();
    // The rest of the first attempt's answer waits in the frozen worker's socket.
    gate.open();
    it_went_on(&world, &submitted, &tail).await;
    let (epoch, log) = (world.rows.epoch(&submitted.run_id).await, world.rows.log(&submitted.run_id).await);
    assert_eq!(epoch, 2);
    let before = world.client().run(&submitted.run_id).await;
    world.workers[0].thaw();
    // It notices, begins anew with a lease of its own, and works.
    world.workers[0].says("the lease is lost").await;
    world.workers[1].kill();
    let next = world.client().say(&submitted.chat_id, "quick", "Awake?").await.submitted();
    assert_eq!(world.client().ended(&next.run_id).await.outcome(), "succeeded done");
    assert_eq!(world.rows.log(&submitted.run_id).await, log);
    assert_eq!(world.client().run(&submitted.run_id).await, before);
    let attempts = world.provider.calls_to("helper");
    assert!(attempts.iter().all(|call| matches!(call.ended(), Some(End::Complete | End::ClientGone))));
    world.finish().await;
}

async fn a_worker_whose_database_connections_break_off_goes_on_by_itself(setup: Setup) {
    let mut world = World::start(setup.workers(0)).await;
    let cable = world.start_worker_on_a_cable().await;
    let slow = Turn::marked(150).delay(Duration::from_millis(20));
    world.provider.script("helper", Script::new([slow]));
    let submitted = world.client().submit("helper", "Talk for a while.").await;
    let tail = world.tail(&submitted.run_id);
    // In the middle of commits: some of them fail, and of some nobody knows whether they did.
    for mark in ["a1.s1.10 ", "a1.s1.40 ", "a1.s1.70 ", "a1.s1.100 "] {
        tail.hears(mark).await;
        cable.down();
        tokio::time::sleep(Duration::from_millis(150)).await;
        cable.pass();
    }
    tail.ended().await;
    let run = world.client().ended(&submitted.run_id).await;
    assert_eq!((run.outcome().as_str(), run.attempts), ("succeeded done", 1));
    assert_eq!(world.provider.calls_to("helper").len(), 1);
    world.finish().await;
}

async fn a_worker_without_its_database_shows_nothing_that_it_cannot_keep_and_lets_go_in_time(setup: Setup) {
    let mut world = World::start(setup.short_lease().workers(0)).await;
    let cable = world.start_worker_on_a_cable().await;
    let end = world.provider.gate_on_turn("helper", 2, At::BeforeEnd);
    let (submitted, tail, gate) = run_that_stands_in_its_second_step(&world).await;
    world.start_worker().await;
    cable.freeze(Way::Both);
    // The rest of the answer comes, and must not be seen before it is kept, which it never will be.
    gate.open();
    end.reached().await;
    world.provider.until("the worker lets go", |calls| calls[1].ended() == Some(End::ClientGone)).await;
    end.open();
    // `finish` compares what the tail saw with the log: nothing of it was ever shown.
    it_went_on(&world, &submitted, &tail).await;
    let calls = world.provider.calls_to("helper");
    assert!(calls[1].end.unwrap().0 < calls[2].begin, "two workers were at it at once");
    world.workers[0].says("the lease is lost").await;
    cable.pass();
    world.finish().await;
}

async fn a_worker_whose_database_connections_fall_silent_for_ever_goes_on_with_others(setup: Setup) {
    let mut world = World::start(setup.short_lease().workers(0)).await;
    let cable = world.start_worker_on_a_cable().await;
    let (submitted, tail, gate) = run_that_stands_in_its_second_step(&world).await;
    cable.forget();
    gate.open();
    tail.ended().await;
    assert_eq!(world.client().ended(&submitted.run_id).await.outcome(), "succeeded done");
    assert_eq!(world.tools.effects("order 7"), 1);
    // New runs are claimed, stops are heard, and nobody waits for what will never be answered.
    gate.close();
    let again = world.client().submit("helper", "Once more.").await;
    let is_claimed = |events: &[Event]| events.iter().any(|event| event.kind == "run.claimed");
    world.tail(&again.run_id).until("it is claimed", is_claimed).await;
    world.client().stop(&again.run_id, 0).await;
    assert_eq!(world.client().ended(&again.run_id).await.outcome(), "aborted stop");
    world.workers[0].terminate();
    assert_eq!(world.workers[0].ended().await.code(), Some(0));
    world.finish().await;
}

async fn a_worker_whose_first_database_connection_breaks_off_anywhere_starts_all_the_same(setup: Setup) {
    let mut world = World::start(setup.workers(0)).await;
    for bytes in (0..1_500).step_by(75) {
        let (cable, url) = world.cable().await;
        cable.cut_after_bytes(Way::Down, bytes);
        world.start_worker_at(&url, |program| program).await;
        assert_eq!(cable.cuts(), 1, "{bytes}");
        world.workers.last_mut().unwrap().kill();
    }
    world.finish().await;
}
