//! A small campaign in every run of the tests. `cargo xtask simulate` plays as many schedules as one likes.

use std::thread;

use longhaul_simulation::{
    campaign,
    schedule::Schedule,
    simulate::{catch_panics, simulate},
};

/// What a debug build plays in less than a minute.
const SCHEDULES: u64 = 1_500;

#[test]
fn no_schedule_breaks_a_promise() {
    catch_panics();
    let threads = thread::available_parallelism().map_or(1, Into::into);
    let result = campaign::run(1, SCHEDULES, threads, |_, _| {});
    if let Some((seed, violation)) = result.violation {
        let trace = simulate(&Schedule::of(seed), true).trace.join("\n");
        // The hook is silent while schedules are played.
        drop(std::panic::take_hook());
        panic!("seed {seed}: {violation}\n{trace}");
    }
    assert_eq!(result.schedules, SCHEDULES);
    let coverage = result.coverage;
    assert!(
        coverage.takeovers > 0 && coverage.fenced_writes > 0 && coverage.calls_unknown > 0,
        "{coverage:?}"
    );
}

#[test]
fn a_schedule_is_the_same_every_time() {
    catch_panics();
    for seed in 1..=50 {
        let schedule = Schedule::of(seed);
        let traces = [simulate(&schedule, true).trace, simulate(&schedule, true).trace];
        assert!(traces[0].len() > 10);
        assert_eq!(traces[0], traces[1], "seed {seed}");
    }
}
