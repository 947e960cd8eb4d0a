//! A planned restart: work is handed over at a saved point, nothing is done twice, nobody is cut off for good.

use std::time::{Duration, Instant};

use longhaul_tests::story::marks_of;
use longhaul_tests::{At, Bus, Script, Setup, Turn, World};
use serde_json::json;

use crate::{on_both, on_postgres};

on_postgres!(
    a_stopping_worker_hands_its_runs_over_without_doing_anything_twice,
    a_stopping_api_process_resets_its_tails_which_go_on_at_the_other,
    every_process_is_replaced_under_load_and_nothing_is_done_twice,
    every_process_is_replaced_under_load_without_redis,
);
on_both!(a_server_that_is_stopped_in_mid_run_ends_well_and_finishes_the_run_after_its_restart);

/// What a hand-over may take, and what a busy machine adds.
const HAND_OVER: Duration = Duration::from_secs(2);
const SLACK: Duration = Duration::from_secs(4);

async fn a_stopping_worker_hands_its_runs_over_without_doing_anything_twice(setup: Setup) {
    const RUNS: usize = 12;
    let setup = (0..RUNS).fold(setup, |setup, n| setup.agent(&format!("agent{n}"), &format!("m{n}")));
    let mut world = World::start(setup).await;
    let charge = |turn: Turn, op: &str| turn.and_call("charge", &json!({"op": op}));
    let mut runs = Vec::new();
    let mut gates = Vec::new();
    let client = world.client();
    for number in 0..RUNS {
        let (model, op) = (format!("m{number}"), format!("order {number}"));
        world.provider.script(&model, Script::new([charge(Turn::marked(4), &op), Turn::marked(4)]));
        // Some stand before their tool, some in mid-stream, some in the second step.
        let (turn, at) = [(1, At::Token(2)), (1, At::BeforeEnd), (2, At::Token(1))][number % 3];
        gates.push(world.provider.gate_on_turn(&model, turn, at));
        let submitted = client.submit(&format!("agent{number}"), "Charge it.").await;
        runs.push((model, op, submitted.run_id.clone(), world.tail(&submitted.run_id)));
    }
    for gate in &gates {
        gate.reached().await;
    }
    world.start_worker().await;
    world.workers[0].terminate();
    gates.iter().for_each(longhaul_tests::Gate::open);
    let status = world.workers[0].ended().await;
    let stopped = Instant::now();
    assert_eq!(status.code(), Some(0), "{status}");
    for (.., tail) in &runs {
        tail.ended().await;
    }
    println!("all runs ended {:?} after the owner", stopped.elapsed());
    assert!(stopped.elapsed() < HAND_OVER + SLACK, "it took {:?}", stopped.elapsed());
    for (model, op, run, tail) in &runs {
        assert_eq!(client.ended(run).await.outcome(), "succeeded done");
        let story = tail.story();
        assert!(tail.events().iter().all(|event| event.kind != "step.restarted"), "no step was torn");
        assert_eq!(marks_of(&story.steps[&1].text(), 1, 4), Some(1));
        assert_eq!(marks_of(&story.steps[&2].text(), 2, 4), Some(1));
        assert_eq!((world.provider.calls_to(model).len(), world.tools.effects(op)), (2, 1));
    }
    let handed_over = runs.iter().filter(|(.., tail)| {
        tail.events().iter().any(|event| event.kind == "run.released" && event.data["reason"] == "hand_back")
    });
    assert!(handed_over.count() > 0, "something was handed over");
    world.finish().await;
}

/// From each hand-back to the claim behind it, in milliseconds by the database's clock.
const HAND_OVERS: &str = "select cast(c.created_at - r.created_at as text) from run_events r
    join run_events c on c.run_id = r.run_id and c.first_seq = r.last_seq + 1
    where text(r.events) like '%run.released%' and text(c.events) like '%run.claimed%'";

async fn every_process_is_replaced_under_load_without_redis(setup: Setup) {
    every_process_is_replaced_under_load_and_nothing_is_done_twice(setup.bus(Bus::Absent)).await;
}

async fn every_process_is_replaced_under_load_and_nothing_is_done_twice(setup: Setup) {
    const RUNS: usize = 30;
    const WORKERS: usize = 3;
    let setup = (0..RUNS).fold(setup, |setup, n| setup.agent(&format!("agent{n}"), &format!("m{n}")));
    let mut world = World::start(setup.apis(2).workers(WORKERS)).await;
    let client = world.client_of(1);
    let mut runs = Vec::new();
    for number in 0..RUNS {
        let (model, op) = (format!("m{number}"), format!("order {number}"));
        let turn = || Turn::marked(12).delay(Duration::from_millis(100));
        let charge = |step: usize| turn().and_call("charge", &json!({"op": format!("{op}.{step}")}));
        // Every third one only talks, in one long step.
        let turns: Vec<Turn> = match number % 3 {
            0 => vec![Turn::marked(60).delay(Duration::from_millis(100))],
            _ => (1..=7).map(charge).chain([turn()]).collect(),
        };
        let steps = turns.len();
        world.provider.script(&model, Script::new(turns));
        let submitted = client.submit(&format!("agent{number}"), "Go on.").await;
        runs.push((model, op, steps, submitted.run_id.clone(), world.tail(&submitted.run_id)));
    }
    for (.., tail) in &runs {
        tail.sees("step.started").await;
    }
    for number in 0..WORKERS {
        world.start_worker().await;
        world.workers[number].terminate();
        let status = world.workers[number].ended().await;
        assert_eq!(status.code(), Some(0), "{status}");
    }
    world.apis[0].terminate();
    assert_eq!(world.apis[0].ended().await.code(), Some(0));
    for (model, op, steps, run, tail) in &runs {
        // A tail that was closed instead of reset complains.
        let events = tail.ended().await;
        assert_eq!(client.ended(run).await.outcome(), "succeeded done");
        assert!(events.iter().all(|event| event.kind != "step.restarted"), "no step was torn");
        assert_eq!(world.provider.calls_to(model).len(), *steps, "no step was repeated");
        for step in 1..*steps {
            assert_eq!(world.tools.effects(&format!("{op}.{step}")), 1);
        }
    }
    let mut took: Vec<u64> =
        world.rows.texts(HAND_OVERS).await.iter().map(|ms| ms.parse().unwrap()).collect();
    took.sort_unstable();
    let at = |share: usize| took[(took.len() * share).div_ceil(100).max(1) - 1];
    println!("{} hand-overs: p50 {} ms, p99 {} ms", took.len(), at(50), at(99));
    assert!(took.len() >= WORKERS, "something was handed over");
    assert!(u128::from(at(99)) < (HAND_OVER + SLACK).as_millis(), "{took:?}");
    world.finish().await;
}

async fn a_stopping_api_process_resets_its_tails_which_go_on_at_the_other(setup: Setup) {
    let mut world = World::start(setup.apis(2)).await;
    world.provider.script("helper", Script::new([Turn::marked(20)]));
    let gate = world.provider.gate("helper", At::Token(8));
    let submitted = world.client().submit("helper", "Talk.").await;
    gate.reached().await;
    let tails: Vec<_> = (0..20).map(|_| world.tail(&submitted.run_id)).collect();
    for tail in &tails {
        tail.hears("a1.s1.7 ").await;
    }
    world.apis[0].terminate();
    let status = world.apis[0].ended().await;
    assert_eq!(status.code(), Some(0), "{status}");
    gate.open();
    for tail in &tails {
        // A tail that was closed instead of reset complains.
        tail.ended().await;
        assert_eq!(marks_of(&tail.story().text(), 1, 20), Some(1));
        assert_eq!(tail.connections(), 2);
    }
    world.finish().await;
}

async fn a_server_that_is_stopped_in_mid_run_ends_well_and_finishes_the_run_after_its_restart(setup: Setup) {
    let mut world = World::start(setup).await;
    let first = Turn::marked(4).and_call("charge", &json!({"op": "order 1"}));
    world.provider.script("helper", Script::new([first, Turn::marked(4)]));
    let gate = world.provider.gate_on_turn("helper", 1, At::Token(2));
    let submitted = world.client().submit("helper", "Charge it.").await;
    let tail = world.tail(&submitted.run_id);
    gate.reached().await;
    let server = if world.workers.is_empty() { &mut world.apis[0] } else { &mut world.workers[0] };
    server.terminate();
    gate.open();
    let status = server.ended().await;
    assert_eq!(status.code(), Some(0), "{status}");
    server.restart().await;
    tail.ended().await;
    assert!(tail.events().iter().all(|event| event.kind != "step.restarted"), "no step was torn");
    assert_eq!(world.client().ended(&submitted.run_id).await.outcome(), "succeeded done");
    assert_eq!((world.provider.calls_to("helper").len(), world.tools.effects("order 1")), (2, 1));
    world.finish().await;
}
