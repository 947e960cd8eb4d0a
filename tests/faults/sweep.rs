//! Each fault at each point of each script: [`case`] is the list, [`trial`] and [`special`] are how a case goes,
//! [`script`] is what must have come of it, [`mutants`] shows that the sweep can see.
//!
//! Several cases go at once, in lanes; the cases of a lane share a world until something is broken in it.

mod case;
pub(crate) mod mutants;
mod report;
mod script;
mod special;
mod trial;

use std::collections::{HashSet, VecDeque};
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use futures::FutureExt;
use longhaul_tests::{Program, Setup, Store, World};

use self::case::{Case, What};
use self::report::{Report, Verdict};
use self::trial::Trial;

/// Cases in one world, before its history makes looking at all of it slow.
const CASES_PER_WORLD: usize = 12;
const MUTANT: &str = "LONGHAUL_MUTANT";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// A fixed choice with each place, each fault and each script
    #[arg(long)]
    quick: bool,
    /// Only cases whose name contains this, such as `row/before_commit` or `/stop`
    #[arg(long, value_name = "PART")]
    only: Vec<String>,
    /// Only cases on this database
    #[arg(long, value_parser = ["postgres", "sqlite"])]
    store: Option<String>,
    /// With one guard of the product taken out
    #[arg(long, value_name = "NAME")]
    mutant: Option<String>,
    /// Cases at the same time
    #[arg(long, default_value_t = 3)]
    jobs: usize,
    /// One JSON object for each case on stdout
    #[arg(long)]
    json: bool,
    /// Only name the cases
    #[arg(long)]
    list: bool,
}

/// `true`: nothing was broken.
pub(crate) async fn run(args: Args) -> bool {
    let cases = if args.quick { case::quick() } else { case::all() };
    let mut report = Report::new(args.json);
    report.complain(uncovered_failpoints(&cases).await);
    let chosen: Vec<Case> = cases
        .into_iter()
        .filter(|case| {
            let name = case.name();
            let named = args.only.is_empty() || args.only.iter().any(|part| name.contains(part));
            named && args.store.as_ref().is_none_or(|store| name.starts_with(store.as_str()))
        })
        .collect();
    if args.list {
        chosen.iter().for_each(|case| println!("{}", case.name()));
        return true;
    }
    if chosen.is_empty() {
        report.complain(vec!["no case has such a name".to_owned()]);
    }
    for verdict in sweep(chosen, args.mutant.as_deref(), args.jobs, &report).await {
        report.keep(verdict);
    }
    report.print()
}

/// Tries the cases, several at a time, each told as soon as it is over.
async fn sweep(cases: Vec<Case>, mutant: Option<&str>, jobs: usize, report: &Report) -> Vec<Verdict> {
    // A broken promise is a panic of the harness or a word of a check; both are reported, neither with a backtrace.
    std::panic::set_hook(Box::new(|_| {}));
    let queue = Arc::new(Mutex::new(cases.into_iter().enumerate().collect::<VecDeque<_>>()));
    let lanes = (0..jobs.max(1)).map(|_| lane(Arc::clone(&queue), mutant, report));
    let mut verdicts: Vec<Verdict> = futures::future::join_all(lanes).await.concat();
    let _ = std::panic::take_hook();
    verdicts.sort_by_key(|verdict| verdict.number);
    verdicts
}

async fn lane(
    queue: Arc<Mutex<VecDeque<(usize, Case)>>>,
    mutant: Option<&str>,
    report: &Report,
) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    let mut shared: Option<(World, usize)> = None;
    loop {
        let next = queue.lock().unwrap().pop_front();
        let Some((number, case)) = next else { return verdicts };
        let begin = Instant::now();
        let mut logs = String::new();
        let flaws = AssertUnwindSafe(try_case(number, case, mutant, &mut shared)).catch_unwind().await;
        let mut flaws = flaws.unwrap_or_else(|panic| vec![words_of(&*panic)]);
        flaws.dedup();
        if !flaws.is_empty()
            && let Some((world, _)) = shared.take()
        {
            // What is broken once would be found again by every case after it.
            logs = world.outputs();
        }
        if shared.as_ref().is_some_and(|(_, cases)| *cases >= CASES_PER_WORLD) {
            shared = None;
        }
        let verdict = Verdict { number, name: case.name(), flaws, took: begin.elapsed(), logs };
        report.tell(&verdict);
        verdicts.push(verdict);
    }
}

async fn try_case(
    number: usize,
    case: Case,
    mutant: Option<&str>,
    shared: &mut Option<(World, usize)>,
) -> Vec<String> {
    let setup = match case.store {
        Store::Postgres => Setup::postgres(),
        Store::Sqlite => Setup::sqlite(),
    };
    let setup = mutant.into_iter().fold(setup, |setup, mutant| setup.env(MUTANT, mutant));
    let What::Grid { script, place, fault } = case.what else {
        let What::Special(special) = case.what else { unreachable!("there are two kinds of cases") };
        return special.run(setup).await;
    };
    let trial = Trial { script, place, fault, id: number };
    if case.store == Store::Sqlite {
        return trial.run(&mut trial::world(setup, &trial).await).await;
    }
    if shared.is_none() {
        *shared = Some((trial::world(setup, &trial).await, 0));
    }
    let (world, cases) = shared.as_mut().unwrap();
    *cases += 1;
    trial.run(world).await
}

/// Failpoints of the product that no case uses.
async fn uncovered_failpoints(cases: &[Case]) -> Vec<String> {
    let used: HashSet<&str> = cases.iter().flat_map(Case::failpoints).collect();
    let known = known("LONGHAUL_FAILPOINTS", "?=kill").await;
    known
        .into_iter()
        // Mutants have a case of their own for it.
        .filter(|name| name != "between_end_and_job" && !used.contains(name.as_str()))
        .map(|name| format!("no case uses the failpoint {name}"))
        .collect()
}

/// The names that the product gives when it is asked for one that it does not know.
async fn known(variable: &str, unknown: &str) -> Vec<String> {
    let dir = tempfile::tempdir().unwrap();
    let program = Program::longhaul("names", dir.path()).args(["version"]).env(variable, unknown);
    let mut process = program.start().expect("the product's binary can be started");
    process.ended().await;
    let output = process.output();
    let names = output.lines().filter_map(|line| line.strip_prefix("  ")?.split_once(':'));
    let names: Vec<String> = names.map(|(name, _)| name.to_owned()).collect();
    assert!(!names.is_empty(), "the product names nothing for {variable}: {output}");
    names
}

fn words_of(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without words").to_owned()
}
