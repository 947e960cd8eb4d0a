//! Each fault at each point of each script: [`case`] is the list, [`trial`] and [`special`] are how a case goes,
//! [`zombie`] is who wakes up in it, [`script`] is what must have come of it, [`mutants`] shows that the sweep can see.
//!
//! Several cases go at once, each in a [`lane`].

mod case;
mod lane;
pub(crate) mod mutants;
mod report;
mod script;
mod special;
mod trial;
mod zombie;

use std::collections::HashSet;
use std::path::Path;
use std::sync::Mutex;

use anyhow::Result;
use longhaul_tests::Program;

use self::case::Case;
use self::lane::Lane;
use self::report::{Report, Verdict};

#[derive(clap::Args)]
pub(crate) struct Options {
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
    /// Only name the cases
    #[arg(long)]
    list: bool,
}

/// `true`: nothing was broken.
pub(crate) async fn run(options: &Options, json: Option<&Path>) -> Result<bool> {
    let cases = if options.quick { case::quick() } else { case::all() };
    let mut report = Report::new(json)?;
    report.complain(uncovered_failpoints(&cases).await);
    let chosen: Vec<Case> = cases
        .into_iter()
        .filter(|case| {
            let name = case.name();
            let named = options.only.is_empty() || options.only.iter().any(|part| name.contains(part));
            named && options.store.as_ref().is_none_or(|store| name.starts_with(store.as_str()))
        })
        .collect();
    if options.list {
        for case in &chosen {
            println!("{}", case.name());
        }
        return Ok(true);
    }
    if chosen.is_empty() {
        report.complain(vec!["no case has such a name".to_owned()]);
    }
    for verdict in sweep(chosen, options.mutant.as_deref(), options.jobs, &report).await {
        report.keep(verdict);
    }
    Ok(report.print())
}

/// Tries the cases, several at a time, each told as soon as it is over.
async fn sweep(cases: Vec<Case>, mutant: Option<&str>, jobs: usize, report: &Report) -> Vec<Verdict> {
    // A broken promise is a panic of the harness or a word of a check; both are reported, neither with a backtrace.
    std::panic::set_hook(Box::new(|_| {}));
    let queue = Mutex::new(cases.into_iter().enumerate().collect());
    let lanes = (0..jobs.max(1)).map(|_| Lane::new(mutant).run(&queue, report));
    let mut verdicts: Vec<Verdict> = futures::future::join_all(lanes).await.concat();
    let _ = std::panic::take_hook();
    verdicts.sort_by_key(|verdict| verdict.number);
    verdicts
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
