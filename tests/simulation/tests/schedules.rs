//! A small campaign in every run of the tests. `cargo xtask simulate` plays as many schedules as one likes.

use std::thread;

use longhaul_shared::{
    domain::{event::EventData, ids::JobId, step::OutputPart, tool::ToolCall, transition::RunStatus},
    store::memory::{JobRow, RunRow, State},
};
use longhaul_simulation::{
    campaign,
    schedule::Schedule,
    simulate::{catch_panics, simulate, simulate_and},
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
        fail_on(&format!("seed {seed}: {violation}\n{trace}"));
    }
    assert_eq!(result.schedules, SCHEDULES);
    let coverage = result.coverage;
    let rare =
        [coverage.takeovers, coverage.fenced_writes, coverage.calls_unknown, coverage.ends_after_a_stop];
    assert!(!rare.contains(&0), "{coverage:?}");
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

type Crime = (&'static str, fn(&mut State));

/// What nobody may do to a run that is over, and the row that it shows in.
const CRIMES: &[Crime] = &[
    ("run", |rows| run(rows).run.attempts += 1),
    ("run", |rows| run(rows).run.usage.output_tokens += 1),
    ("run", |rows| run(rows).run.finished_at = Some(1)),
    ("run", |rows| run(rows).run.stop_requested_at = Some(1)),
    ("run", |rows| run(rows).queue.push('x')),
    ("message", |rows| rows.messages.values_mut().for_each(|message| message.updated_at += 1)),
    ("message", |rows| rows.messages.clear()),
    ("step", |rows| rows.steps.values_mut().flatten().for_each(|step| step.usage.input_tokens += 1)),
    ("step", |rows| {
        let outputs = rows.steps.values_mut().flatten().flat_map(|step| &mut step.output);
        outputs.for_each(|part| match part {
            OutputPart::Text { text } | OutputPart::Reasoning { text } => text.push('!'),
            OutputPart::Call { .. } => {}
        });
    }),
    ("step", |rows| rows.steps.clear()),
    ("call", |rows| calls(rows).for_each(|call| call.arguments.push(' '))),
    ("call", |rows| calls(rows).for_each(|call| call.output = Some("other".to_owned()))),
    ("call", |rows| calls(rows).for_each(|call| call.epoch += 1)),
    ("log row", |rows| rows.log.values_mut().flatten().for_each(|row| row.epoch += 1)),
    ("log row", |rows| rows.log.values_mut().flatten().for_each(|row| row.segment.at += 1)),
    ("log row", |rows| {
        let other = EventData::RunQueued { status: RunStatus::Queued, position: Some(7), run_at: None };
        rows.log.values_mut().flatten().for_each(|row| row.segment.events[0].data = other.of_run().data);
    }),
    ("log row", |rows| rows.log.values_mut().for_each(|log| drop(log.remove(0)))),
    ("job", |rows| {
        let (run_id, queue) = (run(rows).run.id, "default".to_owned());
        rows.jobs.insert(
            run_id,
            JobRow {
                id: JobId::generate(),
                queue,
                priority: 0,
                run_at: i64::MAX,
                epoch: 0,
                worker_id: None,
                attempts: 0,
                crashes: 0,
                crash_step: 0,
                claimed_at: None,
            },
        );
    }),
];

fn run(rows: &mut State) -> &mut RunRow {
    rows.runs.values_mut().next().expect("the schedule has a run")
}

fn calls(rows: &mut State) -> impl Iterator<Item = &mut ToolCall> {
    rows.calls.values_mut().flat_map(|calls| calls.values_mut())
}

#[test]
fn what_changes_behind_the_end_of_a_run_is_seen() {
    catch_panics();
    let schedule = (1..100)
        .map(Schedule::of)
        .find(|schedule| {
            let trace = simulate(schedule, true).trace;
            trace.iter().any(|line| line.contains("tool.finished"))
        })
        .expect("some schedule calls tools");
    let unseen = CRIMES.iter().enumerate().filter_map(|(number, (row, crime))| {
        let violation = simulate_and(&schedule, false, *crime).violation;
        // What is added or lost is seen at the next request already.
        let expected = [format!("its {row} changed behind its end"), "it was over".to_owned()];
        let is_seen = violation.as_ref().is_some_and(|why| expected.iter().any(|part| why.contains(part)));
        (!is_seen).then(|| format!("crime {number} ({row}): {violation:?}"))
    });
    fail_on(&unseen.collect::<Vec<_>>().join("\n"));
}

/// Fails with what is there, aloud: the hook is silent while schedules are played.
fn fail_on(what: &str) {
    if !what.is_empty() {
        drop(std::panic::take_hook());
        panic!("{what}");
    }
}
