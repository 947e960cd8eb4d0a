//! The storm: for some minutes, under load, everything fails at random. Then everything is healed, all work comes to
//! its end, and every promise is checked against the database, the journal of the clients, the provider's log, the
//! ledger of the tools and the output of the processes.
//!
//! - [`plan`] draws the faults from a seed, [`weather`] does them to what [`install`] started
//! - [`load`] are the clients, [`journal`] is what they know, [`tails`] are their watchers; [`scripts`] is what the models say
//! - [`audit`] is a history of the tables, [`history`] what became of each run
//! - [`checks`] and [`figures`] judge, [`report`] says it, [`evidence`] is kept if something was found

mod audit;
mod checks;
mod evidence;
mod figures;
mod history;
mod install;
mod journal;
mod load;
mod plan;
mod report;
mod scripts;
mod tails;
mod weather;

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use longhaul_tests::invariants;
use longhaul_tests::rows::Rows;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use sqlx::PgPool;
use tokio::time::{Instant, sleep};

use self::figures::{Figures, Identities};
use self::history::History;
use self::install::{Installation, LEASE};
use self::journal::{Journal, Outcome};
use self::load::Load;
pub(crate) use self::report::Report;
use self::weather::Incidents;
use crate::clock::Clock;
use crate::percentiles::Sampled;

/// How long after the storm everything has to be over.
const REST: Duration = Duration::from_mins(3);
const PROBES: usize = 200;
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
    let world = Installation::start().await?;
    let files = open_files(&world).await;
    let load = Arc::new(Load::new(world.api_urls(), world.key.clone())?);
    let incidents = Incidents::default();

    let begin = Instant::now();
    let plan = plan::draw(options.seed, options.minutes, LEASE);
    eprintln!("a storm of {} faults in {} minutes", plan.len(), options.minutes);
    let supervising = weather::supervise(&world, &incidents);
    let loading = Arc::clone(&load).run(options.seed, options.rate, begin + length, REST);
    let blowing = weather::blow(&world, &incidents, plan, length);
    let mut flaws = Vec::new();
    let work = async {
        let (loaded, ()) = tokio::join!(loading, blowing);
        flaws.extend(loaded.err());
        eprintln!("the work was over {:?} after the storm", begin.elapsed().saturating_sub(length));
        flaws.extend(calm(&world, &load, options.seed).await?);
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
    let history = History::read(&pool).await?;
    let (calls, ledger, clock) = (world.provider.calls(), world.tools.ledger(), Clock::read());
    let report = {
        let mut journal = load.journal();
        flaws.extend(checks::journal(&journal, &history));
        flaws.extend(checks::tails(&journal, &history));
        flaws.extend(checks::provider(&calls, &history, &incidents_done, &clock));
        flaws.extend(checks::ledger(&ledger, &history, &incidents_done, &clock));
        for (name, output) in &outputs {
            flaws.extend(checks::output(name, output, &world.key));
        }
        flaws.extend(world.provider.violations());

        let identities =
            Identities::read(outputs.iter().map(|(name, output)| (name.as_str(), output.as_str())));
        let (stop_to_upstream, stop_to_end) = figures::stops(&history, &calls, &journal.stops, &clock);
        let mut lag = Sampled::default();
        journal.tails.iter_mut().for_each(|tail| lag.append(&mut tail.lag));
        let figures = Figures {
            recovery: figures::recovery(&history, &incidents_done, &identities).percentiles(),
            hand_over: figures::hand_over(&history, &incidents_done, &identities).percentiles(),
            stop_to_upstream_closed: stop_to_upstream.percentiles(),
            stop_to_run_finished: stop_to_end.percentiles(),
            tail_lag: lag.percentiles(),
        };
        let load = counted(&journal, &history, calls.len(), ledger.len(), &outputs);
        Report {
            seed: options.seed,
            minutes: options.minutes,
            commit: commit(),
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
    flaws.extend(report.load.too_little());
    let evidence = if flaws.is_empty() {
        None
    } else {
        Some(evidence::keep(&world, &rows, &incidents_done, &flaws, options.seed).await?)
    };
    Ok(Report { violations, flaws, evidence, ..report })
}

/// Everything comes to its end, and each chat goes on.
async fn calm(world: &Installation, load: &Arc<Load>, seed: u64) -> Result<Vec<String>> {
    let rows = Rows::Postgres(PgPool::connect(&world.database_url).await?);
    let mut flaws = at_rest(&rows).await;
    world.ready().await;
    let mut chats = load.idle_chats();
    chats.sort();
    let chats: Vec<String> = chats.sample(&mut StdRng::seed_from_u64(seed), PROBES).cloned().collect();
    flaws.extend(load.probe(chats).await.err());
    flaws.extend(at_rest(&rows).await);
    Ok(flaws)
}

/// Waits until nothing is to be done any more.
async fn at_rest(rows: &Rows) -> Vec<String> {
    const MOVING: &[(&str, &str)] = &[
        (
            "runs that are not over",
            "select count(*) from runs where status not in ('succeeded', 'failed', 'aborted')",
        ),
        ("jobs in the queue", "select count(*) from jobs where kind = 'run'"),
        (
            "sessions more than five processes may have",
            "select greatest(count(*) - 60, 0) from pg_stat_activity where backend_type = 'client backend'",
        ),
        (
            "sessions idle in a transaction",
            "select count(*) from pg_stat_activity where state like 'idle in transaction%'",
        ),
    ];
    let begin = Instant::now();
    let mut left = Vec::new();
    for (what, query) in MOVING {
        let mut count = rows.number(query).await;
        while count > 0 && begin.elapsed() < REST {
            sleep(Duration::from_millis(200)).await;
            count = rows.number(query).await;
        }
        if count > 0 {
            left.push(format!("{count} {what}, {} s after the storm", REST.as_secs()));
        }
    }
    left
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
