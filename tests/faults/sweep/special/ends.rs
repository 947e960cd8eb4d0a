//! Ends of runs that nobody hears of, that somebody made by hand, or that are only half made.

use std::time::Duration;

use longhaul_tests::{At, Bus, Script, Setup, Turn, World, audit};
use tokio::time::{Instant, sleep};

use super::super::trial::struck;
use super::{LOOK_EVERY, executor, successor, world_that};

pub(super) async fn redis_gone(setup: Setup) -> Vec<String> {
    let mut world = World::start(setup.bus(Bus::Own).apis(2)).await;
    world.provider.script("helper", Script::new([Turn::marked(20)]));
    let gate = world.provider.gate("helper", At::Token(8));
    let submitted = world.client().submit("helper", "Go.").await;
    let tails = [world.tail(&submitted.run_id), world.tail_from(&submitted.run_id, 0, 1)];
    for tail in &tails {
        tail.hears("a1.s1.7 ").await;
    }
    gate.reached().await;
    world.redis.as_mut().unwrap().kill();
    gate.open();
    for tail in &tails {
        tail.ended().await;
    }
    world.settled().await
}

/// As an operator with a database shell, or a version of the product that knows no log, would.
pub(super) async fn ended_by_hand(setup: Setup) -> Vec<String> {
    let world = World::start(setup).await;
    world.provider.script("helper", Script::new([Turn::marked(9)]));
    let gate = world.provider.gate("helper", At::Token(3));
    let submitted = world.client().submit("helper", "Go.").await;
    let tail = world.tail(&submitted.run_id);
    gate.reached().await;
    tail.hears("a1.s1.2 ").await;
    let run = world.rows.id(&submitted.run_id);
    world
        .rows
        .change(&format!(
            "update runs set status = 'aborted', reason = 'stop', finished_at = updated_at where id = {run}"
        ))
        .await;
    world
        .rows
        .change(&format!("update messages set status = 'aborted' where run_id = {run} and position = 1"))
        .await;
    gate.open();
    // Its answer is refused and so is its end: it gives the run up.
    let begin = Instant::now();
    let mut flaws = Vec::new();
    while flaws.is_empty() && begin.elapsed() < Duration::from_secs(3) {
        flaws = audit::found(&world.rows).await;
        sleep(LOOK_EVERY).await;
    }
    let now = world.client().run(&submitted.run_id).await;
    if (now.outcome().as_str(), now.step_count) != ("aborted stop", 0) {
        flaws.push(format!("it became {} with {} steps", now.outcome(), now.step_count));
    }
    flaws
}

pub(super) async fn job_left_behind(setup: Setup) -> Vec<String> {
    let mut world = world_that(setup, "between_end_and_job=kill").await;
    let submitted = world.client().submit("quick", "Go.").await;
    struck(executor(&mut world), "between_end_and_job").await;
    successor(&mut world).await;
    world.client().ended(&submitted.run_id).await;
    world.settled().await
}
