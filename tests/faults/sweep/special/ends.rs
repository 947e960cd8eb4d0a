//! Ends of runs that nobody hears of, that somebody made by hand, or that are only half made.

use std::time::Duration;

use longhaul_tests::story::marks_of;
use longhaul_tests::{At, Bus, End, PATIENCE, Script, Setup, Turn, World, audit};
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::super::trial::struck;
use super::{LOOK_EVERY, at_rest, executor, successor, world_that};

/// How soon a process dies whose failpoint is between the end of a run and what comes next.
const STRUCK_WITHIN: Duration = Duration::from_secs(3);
/// How soon after a stop nothing is paid for any more.
const UPSTREAM_CLOSED_WITHIN: Duration = Duration::from_secs(1);

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
    at_rest(&mut world).await
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
    // What ends a run in one transaction never comes to that point.
    let begin = Instant::now();
    let is_over = "select count(*) from runs where finished_at is not null";
    while executor(&mut world).is_alive()
        && (world.rows.number(is_over).await == 0 || begin.elapsed() < STRUCK_WITHIN)
    {
        assert!(begin.elapsed() < PATIENCE, "the run does not end");
        sleep(LOOK_EVERY).await;
    }
    successor(&mut world).await;
    world.client().ended(&submitted.run_id).await;
    at_rest(&mut world).await
}

/// The provider's stream of a run that is stopped is closed, long before somebody would end the run in its holder's place.
pub(super) async fn stop_closes_upstream(setup: Setup) -> Vec<String> {
    let mut world = World::start(setup).await;
    world.provider.script("helper", Script::new([Turn::marked(9)]));
    let gate = world.provider.gate("helper", At::Token(3));
    let submitted = world.client().submit("helper", "Go.").await;
    gate.reached().await;
    let asked = std::time::Instant::now();
    world.client().stop(&submitted.run_id, 0).await;
    world.provider.until("the stream ends", |calls| calls[0].end.is_some()).await;
    let mut flaws = Vec::new();
    let (closed, end) = world.provider.calls()[0].end.expect("it was waited for");
    let took = closed.saturating_duration_since(asked);
    if end != End::ClientGone || took > UPSTREAM_CLOSED_WITHIN {
        flaws.push(format!("the upstream was open for {took:?} after the stop"));
    }
    let outcome = world.client().ended(&submitted.run_id).await.outcome();
    if outcome != "aborted stop" {
        flaws.push(format!("a run that was stopped ended {outcome}"));
    }
    gate.open();
    flaws.extend(at_rest(&mut world).await);
    flaws
}

/// Whoever stops a run and is not told that it is over sees it stopped, although its answer was whole by then.
pub(super) async fn stop_before_end(setup: Setup) -> Vec<String> {
    let mut world = world_that(setup, "before_finalize=stop").await;
    world.provider.script("helper", Script::new([Turn::marked(9)]));
    let submitted = world.client().submit("helper", "Go.").await;
    let tail = world.tail(&submitted.run_id);
    struck(&mut world.workers[0], "before_finalize").await;
    let taken = world.client().stop(&submitted.run_id, 0).await;
    world.workers[0].thaw();
    tail.ended().await;
    let run = world.client().ended(&submitted.run_id).await;
    let mut flaws = Vec::new();
    if run.outcome() != "aborted stop" {
        flaws.push(format!("a run that was asked to stop ended {}", run.outcome()));
    }
    if (taken.status, &taken.body["stopping"]) != (202, &json!(true)) {
        flaws.push(format!("the stop met no run under way: {}", taken.body));
    }
    let steps = world.client().steps(&submitted.run_id).await;
    let kept: Vec<_> = steps.iter().map(|step| step.finish_reason.as_str()).collect();
    if kept != ["stop"] || marks_of(&tail.story().steps[&1].text(), 1, 9) != Some(1) {
        flaws.push(format!("its answer was whole and is not kept: {kept:?}"));
    }
    flaws.extend(at_rest(&mut world).await);
    flaws
}
