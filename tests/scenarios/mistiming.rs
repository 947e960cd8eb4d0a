//! Clocks are wrong: what counts is the database's time, and within a process time that only goes forward.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use longhaul_tests::story::marks_of;
use longhaul_tests::wrong_clock::WrongClock;
use longhaul_tests::{At, Script, Setup, Turn, World};
use serde_json::json;

use crate::on_postgres;

on_postgres!(
    workers_whose_clocks_are_an_hour_off_and_jump_lose_nothing_and_write_the_databases_time,
    a_frozen_worker_is_relieved_by_one_whose_clock_is_an_hour_off,
);

const HOUR: i64 = 3_600;
/// What a takeover may take beyond the lease, and what a busy machine adds.
const BEYOND_THE_LEASE: Duration = Duration::from_secs(2);
const SLACK: Duration = Duration::from_secs(4);

/// A clock that is ahead and one that is behind, each worn by a worker.
async fn two_workers(world: &mut World, dir: &tempfile::TempDir) -> [WrongClock; 2] {
    let clock = |name, seconds| WrongClock::new(dir.path(), name, seconds).expect("a C compiler is needed");
    let clocks = [clock("ahead", HOUR), clock("behind", -HOUR)];
    for clock in &clocks {
        world.start_worker_with(|program| clock.worn_by(program)).await;
        assert!(clock.asked() > 0, "the worker does not ask this clock");
    }
    clocks
}

/// Times in the tables that are not of the last minutes, nor of the next.
async fn times_that_are_off(world: &World) -> Vec<String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is after 1970").as_millis();
    let mut off = Vec::new();
    for (table, columns) in [
        ("runs", &["created_at", "started_at", "finished_at"][..]),
        ("messages", &["created_at", "updated_at"]),
        ("run_events", &["created_at"]),
        ("steps", &["started_at", "finished_at"]),
        ("tool_calls", &["planned_at", "dispatched_at", "settled_at"]),
        ("workers", &["started_at", "expires_at"]),
    ] {
        for column in columns {
            let count = format!("select count(*) from {table} where abs({column} - {now}) > 600000");
            let count = world.rows.number(&count).await;
            if count > 0 {
                off.push(format!("{count} rows: {table}.{column}"));
            }
        }
    }
    off
}

async fn workers_whose_clocks_are_an_hour_off_and_jump_lose_nothing_and_write_the_databases_time(
    setup: Setup,
) {
    let dir = tempfile::tempdir().unwrap();
    let mut world = World::start(setup.short_lease().workers(0).slots(3)).await;
    let clocks = two_workers(&mut world, &dir).await;
    // Two leases long, so that each is renewed under a wrong clock and again after its jump.
    let slow = Turn::marked(60).delay(Duration::from_millis(100)).and_call("charge", &json!({"op": "{run}"}));
    world.provider.script("helper", Script::new([slow, Turn::marked(3)]));
    let client = world.client();
    let later = json!({"agent": "quick", "input": "Later.", "delay": "2s"});
    let later = client.post("/v1/runs", &later).await.submitted();
    let mut watched = Vec::new();
    for number in 0..6 {
        let run = client.submit("helper", &format!("Talk {number}.")).await;
        watched.push((world.tail(&run.run_id), run));
    }
    for (tail, _) in &watched {
        tail.hears("a1.s1.20 ").await;
    }
    let holders = "select count(distinct worker_id) from jobs where worker_id is not null";
    assert_eq!(world.rows.number(holders).await, 2, "both work");
    clocks[0].set(-HOUR);
    clocks[1].set(HOUR);
    for (tail, run) in &watched {
        tail.ended().await;
        let run = client.ended(&run.run_id).await;
        assert_eq!((run.outcome().as_str(), run.attempts), ("succeeded done", 1));
        assert_eq!(marks_of(&tail.story().steps[&1].text(), 1, 60), Some(1));
        assert_eq!(world.tools.effects(&run.run_id), 1);
    }
    assert_eq!(world.provider.calls_to("helper").len(), 12, "each step was asked for once");
    let later = client.ended(&later.run_id).await;
    assert_eq!(later.outcome(), "succeeded done");
    let early = "select count(*) from runs where started_at < run_at";
    assert_eq!(world.rows.number(early).await, 0, "nothing begins before it is due");
    assert_eq!(times_that_are_off(&world).await, Vec::<String>::new());
    world.finish().await;
}

async fn a_frozen_worker_is_relieved_by_one_whose_clock_is_an_hour_off(setup: Setup) {
    for frozen in 0..2 {
        let dir = tempfile::tempdir().unwrap();
        let mut world = World::start(setup.clone().short_lease().workers(0).slots(1)).await;
        let _clocks = two_workers(&mut world, &dir).await;
        world.provider.script("helper", Script::new([Turn::marked(20)]));
        let gate = world.provider.gate("helper", At::Token(8));
        let client = world.client();
        // One for each of them: whichever freezes holds one.
        let runs = [client.submit("helper", "One.").await, client.submit("helper", "Two.").await];
        let tails = runs.each_ref().map(|run| world.tail(&run.run_id));
        gate.reached_by(2).await;
        for tail in &tails {
            tail.hears("a1.s1.7 ").await;
        }
        world.workers[frozen].freeze();
        let begin = Instant::now();
        // The other one has no slot until its own run is over.
        let released = "select count(*) from runs where status = 'pending'";
        world.rows.until("the run is taken from it", released, |count| count == 1).await;
        let took = begin.elapsed();
        println!("taken from worker {frozen} after {took:?} with a lease of {:?}", world.lease());
        assert!(took < world.lease() + BEYOND_THE_LEASE + SLACK, "it took {took:?}");
        gate.open();
        let mut attempts = Vec::new();
        for (run, tail) in runs.iter().zip(&tails) {
            tail.ended().await;
            let run = client.ended(&run.run_id).await;
            assert_eq!(run.outcome(), "succeeded done");
            assert_eq!(marks_of(&tail.story().text(), 1, 20), Some(run.attempts));
            attempts.push(run.attempts);
        }
        attempts.sort_unstable();
        assert_eq!(attempts, [1, 2], "the one that was awake kept its run");
        world.workers[frozen].thaw();
        world.workers[frozen].says("the lease is lost").await;
        assert_eq!(times_that_are_off(&world).await, Vec::<String>::new());
        world.finish().await;
    }
}
