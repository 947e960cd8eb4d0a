//! The storm: for some minutes, under load, everything fails at random. Then everything is healed, all work comes to
//! its end, and every promise is checked against the database, the journal of the clients, the provider's log, the
//! ledger of the tools and the output of the processes.
//!
//! - [`plan`] draws the faults from a seed, [`weather`] does them to what [`install`] started
//! - [`load`] are the clients, [`journal`] is what they know, [`tails`] are their watchers; [`scripts`] is what the models say
//! - [`neighbour`] asks for what is not theirs, [`queue`] looks whether it moves, [`calm`] is what comes afterwards
//! - [`audit`] is a history of the tables, [`history`] what became of each run, [`outages`] what was away when
//! - [`checks`] and [`figures`] judge, [`report`] says it, [`evidence`] is kept if something was found

mod audit;
mod calm;
mod checks;
mod evidence;
mod figures;
mod history;
mod install;
mod journal;
mod load;
mod neighbour;
mod outages;
mod plan;
mod queue;
mod report;
mod scripts;
mod tails;
mod weather;

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use longhaul_tests::invariants;
use longhaul_tests::rows::Rows;
use sqlx::PgPool;
use tokio::time::Instant;

use self::calm::{REST, calm};
use self::figures::{Figures, Identities};
use self::history::History;
use self::install::{Installation, LEASE};
use self::journal::{Journal, Outcome};
use self::load::Load;
use self::queue::Waits;
pub(crate) use self::report::Report;
use self::weather::Incidents;
use crate::clock::Clock;

/// How often somebody comes from next door, per visit from here.
const NEIGHBOURLY: f64 = 0.1;
const HERE: &str = "mark-here";
const NEXT_DOOR: &str = "mark-next-door";
/// Files that a process may have open beyond those of its start: its database connections, and some air.
const MORE_FILES: usize = 40;

#[derive(Args, Debug)]
pub(crate) struct Options {
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// The same seed is the same weather
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Visits of clients per second
    #[arg(long, default_value_t = 3.0)]
    rate: f64,
}

pub(crate) async fn run(options: &Options) -> Result<Report> {
    let length = Duration::from_secs_f64(options.minutes * 60.0);
    // Somebody may commit while it blows.
    let commit = commit();
    let world = Installation::start().await?;
    let files = open_files(&world).await;
    let load = Arc::new(Load::new(world.api_urls(), &world.keys[0], HERE, NEXT_DOOR)?);
    let neighbour = Arc::new(Load::new(world.api_urls(), &world.keys[1], NEXT_DOOR, HERE)?);
    let (incidents, waits, refused) = (Incidents::default(), Waits::default(), AtomicUsize::new(0));

    let begin = Instant::now();
    let plan = plan::draw(options.seed, options.minutes, LEASE);
    eprintln!("a storm of {} faults in {} minutes", plan.len(), options.minutes);
    let supervising = weather::supervise(&world, &incidents);
    let until = begin + length;
    let loading = Arc::clone(&load).run(options.seed, options.rate, until, REST);
    let next_door = Arc::clone(&neighbour).run(!options.seed, options.rate * NEIGHBOURLY, until, REST);
    let prying = neighbour::pry(Arc::clone(&neighbour), Arc::clone(&load), options.seed, &refused);
    let blowing = weather::blow(&world, &load, &incidents, plan, length);
    let mut flaws = Vec::new();
    let work = async {
        let whole = async {
            let (loaded, lived, ()) = tokio::join!(loading, next_door, blowing);
            loaded.err().into_iter().chain(lived.err())
        };
        flaws.extend(tokio::select! {
            late = whole => late,
            never = prying => never,
            never = waits.watch(&world) => never,
        });
        eprintln!("the work was over {:?} after the storm", begin.elapsed().saturating_sub(length));
        flaws.extend(calm(&world, &load, options.seed).await?);
        flaws.extend(calm::reconcile(&world).await?);
        anyhow::Ok(())
    };
    tokio::select! {
        done = work => done?,
        never = supervising => never,
    }

    eprintln!("checking");
    let pool = PgPool::connect(&world.database_url).await?;
    let rows = Rows::Postgres(pool.clone());
    let resources = open_files(&world).await;
    for ((name, before), (_, now)) in files.iter().zip(resources) {
        if now > before + MORE_FILES {
            flaws.push(format!("{name} has {now} files open, {before} at its start"));
        }
    }
    let incidents_done = incidents.all();
    for exit in incidents_done.iter().filter(|incident| incident.fault == weather::EXIT) {
        flaws.push(format!("{:?} ended by itself at {}", exit.slot, exit.from));
    }
    let mut outputs = Vec::new();
    for slot in &world.slots {
        outputs.push((slot.name.clone(), slot.output().await));
    }
    let neighbours = std::mem::take(&mut *neighbour.journal());
    let strangers = neighbours.runs();
    let (answers_read, unreadable) = calm::read_everything(&load, &rows, &strangers).await;
    flaws.extend(unreadable);
    flaws.extend(waits.broken());
    let history = History::read(&pool).await?;
    let (calls, ledger, clock) = (world.provider.calls(), world.tools.ledger(), Clock::read());
    let report = {
        let mut journal = load.journal();
        journal.merge(neighbours);
        let identities =
            Identities::read(outputs.iter().map(|(name, output)| (name.as_str(), output.as_str())));
        flaws.extend(checks::journal(&journal, &history));
        flaws.extend(checks::stops(&journal, &history));
        flaws.extend(checks::tails(&journal, &history));
        flaws.extend(checks::provider(&calls, &history, &incidents_done, &clock));
        flaws.extend(checks::ledger(&ledger, &history, &incidents_done, &clock));
        flaws.extend(checks::zombies(&calls, &ledger, &history, &incidents_done, &identities, &clock));
        let (proofs, false_proofs) = checks::proofs(&outputs, &incidents_done, &identities);
        flaws.extend(false_proofs);
        for (name, output) in &outputs {
            flaws.extend(checks::output(name, output, &world.keys));
        }
        flaws.extend(world.provider.violations());

        let away = identities.until_registered(&incidents_done);
        let (recovery, of_suspects) = figures::recovery(&history, &away, &identities);
        let (upstream, finished) = figures::stops(&history, &calls, &journal.stops, &away, &clock);
        let figures = Figures {
            recovery: recovery.figure(),
            recovery_of_suspects: of_suspects.figure(),
            hand_over: figures::hand_over(&history, &away, &identities).figure(),
            stop_to_upstream_closed: upstream.figure(),
            stop_to_run_finished: finished.figure(),
            tail_lag: figures::tail_lag(&journal, &away).figure(),
        };
        let load = report::Load {
            proofs_of_death: proofs,
            strangers_refused: refused.load(Ordering::Relaxed),
            answers_read,
            ..counted(&journal, &history, calls.len(), ledger.len(), &outputs)
        };
        Report {
            seed: options.seed,
            minutes: options.minutes,
            commit,
            faults: incidents.counts(),
            load,
            figures,
            violations: Vec::new(),
            flaws: Vec::new(),
            evidence: None,
        }
    };
    flaws.extend(audit::broken(&rows).await);
    flaws.extend(invariants::broken(&rows).await);
    let violations = flaws.clone();
    flaws.extend(report.too_little());
    flaws.extend(report.figures.flaws(options.minutes));
    let evidence = if flaws.is_empty() {
        None
    } else {
        Some(evidence::keep(&world, &rows, &incidents_done, &flaws, options.seed).await?)
    };
    Ok(Report { violations, flaws, evidence, ..report })
}

fn counted(
    journal: &Journal,
    history: &History,
    provider_calls: usize,
    tool_requests: usize,
    outputs: &[(String, String)],
) -> report::Load {
    let submissions = || journal.submissions.iter();
    let outcomes = |wanted: fn(&Outcome) -> bool| submissions().filter(|made| wanted(&made.outcome)).count();
    let mut ended = BTreeMap::new();
    for run in history.runs.values() {
        *ended.entry(run.outcome.clone()).or_default() += 1;
    }
    let mut answers = BTreeMap::new();
    for (answer, count) in submissions().flat_map(|made| &made.answers) {
        *answers.entry(answer.clone()).or_default() += count;
    }
    let is_fenced = |line: &&str| line.contains("a write was fenced off");
    let calls = history.runs.values().flat_map(|run| &run.calls);
    report::Load {
        submitted: submissions().count(),
        accepted: outcomes(|outcome| matches!(outcome, Outcome::Accepted { .. })),
        refused_busy: outcomes(|outcome| *outcome == Outcome::Refused),
        given_up: outcomes(|outcome| *outcome == Outcome::GivenUp),
        runs: history.runs.len(),
        as_meant: checks::as_meant(journal, history),
        ended,
        answers,
        retries: journal.retries,
        stops: journal.stops.len(),
        tails: journal.tails.len(),
        reconnects: journal.tails.iter().map(|tail| tail.connections.saturating_sub(1)).sum(),
        provider_calls,
        saved_steps: history.runs.values().map(|run| run.steps.len()).sum(),
        tool_requests,
        takeovers: history.runs.values().map(history::Run::takeovers).sum(),
        fenced_writes: outputs.iter().map(|(_, output)| output.lines().filter(is_fenced).count()).sum(),
        unknown_outcomes: calls.filter(|call| call.state == "unknown").count(),
        proofs_of_death: 0,
        strangers_refused: 0,
        answers_read: 0,
        probes: submissions().filter(|made| made.mark.starts_with("probe-")).count(),
    }
}

/// How many files each API process has open.
async fn open_files(world: &Installation) -> Vec<(String, usize)> {
    let mut counts = Vec::new();
    for slot in world.apis() {
        let id = slot.process.lock().await.id();
        let count = fs::read_dir(format!("/proc/{id}/fd")).map_or(0, Iterator::count);
        counts.push((slot.name.clone(), count));
    }
    counts
}

fn commit() -> Option<String> {
    let output = Command::new("git").args(["rev-parse", "--short", "HEAD"]).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
