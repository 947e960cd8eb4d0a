//! Runs on their way from one worker to another: given back by one that drains, taken by one that reaps.

use std::time::Duration;

use longhaul_tests::{At, Script, Setup, Turn, World};
use serde_json::json;
use tokio::time::sleep;

use super::super::trial::{struck, taken_over_or_over};
use super::super::zombie::Zombie;
use super::{at_rest, world_that};

/// Longer than a request takes to leave.
const HEART_STANDS_STILL: Duration = Duration::from_millis(700);

pub(super) async fn hand_back(setup: Setup, failpoint: &str, action: &str) -> Vec<String> {
    let mut world = world_that(setup, &format!("{failpoint}={action}")).await;
    let first = Turn::marked(5).and_call("charge", &json!({"op": "once"}));
    world.provider.script("helper", Script::new([first, Turn::marked(5)]));
    let gate = world.provider.gate_on_turn("helper", 1, At::Token(3));
    let submitted = world.client().submit("helper", "Go.").await;
    let tail = world.tail(&submitted.run_id);
    gate.reached().await;
    world.workers[0].terminate();
    // The soft stop is heard before the step is over; then the run is given back behind it.
    world.workers[0].says("a second signal stops at once").await;
    gate.open();
    struck(&mut world.workers[0], failpoint).await;
    let epoch = world.rows.epoch(&submitted.run_id).await;
    world.start_worker().await;
    taken_over_or_over(&world, &submitted.run_id, epoch).await;
    world.workers[0].thaw();
    tail.ended().await;
    let mut flaws = Vec::new();
    let run = world.client().ended(&submitted.run_id).await;
    if (run.outcome().as_str(), run.attempts) != ("succeeded done", 2) {
        flaws.push(format!("the run ended {} after {} attempts", run.outcome(), run.attempts));
    }
    let turns: Vec<_> = world.provider.calls_to("helper").iter().map(|call| call.turn).collect();
    if turns != [1, 2] || world.tools.effects("once") != 1 {
        flaws.push(format!("a saved step was repeated: answers {turns:?}"));
    }
    flaws.extend(at_rest(&mut world).await);
    flaws
}

pub(super) async fn reaper_late(setup: Setup) -> Vec<String> {
    let mut world = World::start(setup.apis(1).workers(1)).await;
    world.provider.script("helper", Script::new([Turn::marked(9)]));
    let gate = world.provider.gate("helper", At::Token(3));
    let submitted = world.client().submit("helper", "Go.").await;
    let tail = world.tail(&submitted.run_id);
    gate.reached().await;
    world.start_worker_that("reaper_after_scan=stop").await;
    world.workers[0].kill();
    struck(&mut world.workers[1], "reaper_after_scan").await;
    // It has seen the run as an orphan. Now somebody else takes it.
    world.start_worker().await;
    gate.reached_by(2).await;
    // All that it says before the gate is written: the late one is to find the run at rest, not a log that grows.
    tail.hears("a2.s1.2 ").await;
    world.workers[1].thaw();
    // It goes on with what it saw, and renews its lease while it does.
    for _ in 0..2 {
        let leases = "select cast(sum(expires_at) as bigint) from workers";
        let before = world.rows.number(leases).await;
        world.rows.until("leases are renewed", leases, |now| now > before + 1_500).await;
    }
    gate.open();
    tail.ended().await;
    let run = world.client().ended(&submitted.run_id).await;
    let mut flaws = Vec::new();
    if (run.outcome().as_str(), run.attempts) != ("succeeded done", 2) {
        flaws.push(format!("one crash cost {} attempts; it ended {}", run.attempts, run.outcome()));
    }
    let asked = world.provider.calls_to("helper").len();
    if asked != 2 {
        flaws.push(format!("the model was asked {asked} times"));
    }
    flaws.extend(at_rest(&mut world).await);
    flaws
}

pub(super) async fn reaper_untold(setup: Setup) -> Vec<String> {
    let mut world = World::start(setup.workers(1)).await;
    world.provider.script("helper", Script::new([Turn::marked(9)]));
    let gate = world.provider.gate("helper", At::Token(3));
    let submitted = world.client().submit("helper", "Go.").await;
    let tail = world.tail(&submitted.run_id);
    gate.reached().await;
    world.start_worker_that("after_reap=kill").await;
    world.workers[0].kill();
    gate.open();
    struck(&mut world.workers[1], "after_reap").await;
    world.start_worker().await;
    tail.ended().await;
    let run = world.client().ended(&submitted.run_id).await;
    let mut flaws = Vec::new();
    // Its own claim loop may have been quicker than its death.
    if run.outcome() != "succeeded done" || run.attempts > 3 {
        flaws.push(format!("the run ended {} after {} attempts", run.outcome(), run.attempts));
    }
    flaws.extend(at_rest(&mut world).await);
    flaws
}

/// The thread that keeps the lease stands still while all others go on: what they ask before a tool call is all that is
/// left to stop it.
pub(super) async fn heart_stands_still(setup: Setup) -> Vec<String> {
    let failpoint = "after_tool_record_before_send";
    let mut world = world_that(setup, &format!("{failpoint}=stop")).await;
    let first = Turn::marked(3).and_call("put", &json!({"op": "once"}));
    world.provider.script("helper", Script::new([first, Turn::marked(3)]));
    let submitted = world.client().submit("helper", "Go.").await;
    let tail = world.tail(&submitted.run_id);
    struck(&mut world.workers[0], failpoint).await;
    let epoch = world.rows.epoch(&submitted.run_id).await;
    world.start_worker().await;
    tail.ended().await;
    let heart = world.workers[0].process().hold_thread("longhaul-lease");
    let heart = heart.unwrap_or_else(|error| panic!("a thread cannot be held: {error}"));
    let zombie = Zombie::wakes(world.workers[0].to_string(), &submitted.run_id, epoch);
    world.workers[0].thaw();
    sleep(HEART_STANDS_STILL).await;
    drop(heart);
    world.workers[0].says("the lease is lost").await;
    let mut flaws = zombie.flaws(&world).await;
    flaws.extend(at_rest(&mut world).await);
    flaws
}
