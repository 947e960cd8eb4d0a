//! `cargo xtask simulate`: plays schedules, and shows the smallest one that breaks a promise. With `--mutants` it shows
//! that it would see one.

use std::{process::ExitCode, thread, time::Duration};

use clap::Parser;
use longhaul_shared::faults;
use longhaul_simulation::{
    campaign::{self, Result},
    mutants::{self, Found},
    schedule::Schedule,
    shrink::shrink,
    simulate::{catch_panics, simulate},
};

const SCHEDULES: u64 = 10_000;

/// From so many schedules on, one that never met a fault that it claims to test proves too little.
const ENOUGH: u64 = 10_000;

#[derive(Parser)]
#[command(about = "Plays random schedules of faults against the engine")]
struct Cli {
    /// How many; each mutant may survive fewer
    #[arg(long)]
    schedules: Option<u64>,
    /// The first seed
    #[arg(long, default_value_t = 1)]
    seed: u64,
    #[arg(long)]
    threads: Option<usize>,
    /// Print what happened in the first schedule
    #[arg(long)]
    trace: bool,
    /// Show a violation as it was found
    #[arg(long)]
    no_shrink: bool,
    /// Play the engine with one guard taken out at a time, each until that is seen
    #[arg(long)]
    mutants: bool,
    /// Print what was found as JSON, and nothing else
    #[arg(long, hide = true)]
    brief: bool,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Err(error) = faults::arm() {
        eprintln!("{error}");
        return ExitCode::FAILURE;
    }
    let threads = cli.threads.or_else(|| thread::available_parallelism().ok().map(Into::into)).unwrap_or(1);
    if cli.mutants {
        return match mutants::run(cli.seed, cli.schedules.unwrap_or(mutants::SCHEDULES), threads) {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::FAILURE,
            Err(error) => {
                eprintln!("{error:#}");
                ExitCode::FAILURE
            }
        };
    }
    catch_panics();
    let schedules = cli.schedules.unwrap_or(SCHEDULES);
    if cli.brief {
        return brief(campaign::run(cli.seed, schedules, threads, |_, _| {}));
    }
    if cli.trace {
        let schedule = Schedule::of(cli.seed);
        print!("{schedule}");
        let outcome = simulate(&schedule, true);
        outcome.trace.iter().for_each(|line| println!("{line}"));
        println!("{}", outcome.violation.as_deref().unwrap_or("no violation"));
    }
    let result = campaign::run(cli.seed, schedules, threads, |played, took| {
        println!("{played} of {schedules} schedules in {} s", took.as_secs());
    });
    print(&result);
    if let Some((seed, violation)) = &result.violation {
        explain(*seed, violation, !cli.no_shrink);
        return ExitCode::FAILURE;
    }
    let missing = result.coverage.missing();
    if result.schedules >= ENOUGH && !missing.is_empty() {
        println!("not green: these schedules never met {}", missing.join(", "));
        return ExitCode::FAILURE;
    }
    println!("no violation");
    ExitCode::SUCCESS
}

fn brief(result: Result) -> ExitCode {
    let found = Found { schedules: result.schedules, violation: result.violation };
    match serde_json::to_string(&found) {
        Ok(found) => {
            println!("{found}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn print(result: &Result) {
    for row in result.coverage.counters().chunks(3) {
        let cells: Vec<_> = row.iter().map(|(name, count)| format!("{name:<28}{count:>11}")).collect();
        println!("{}", cells.join("  "));
    }
    let took = result.took.as_secs_f64().max(0.001);
    let lived = Duration::from_secs(result.lived.as_secs());
    println!(
        "{} schedules in {took:.1} s ({:.0} in a second), {} h of simulated time",
        result.schedules,
        result.schedules as f64 / took,
        lived.as_secs() / 3_600
    );
}

fn explain(seed: u64, violation: &str, shrinks: bool) {
    println!(
        "\nVIOLATION at seed {seed}: {violation}\nreplay: cargo xtask simulate --seed {seed} --schedules 1 --trace\n"
    );
    let schedule = Schedule::of(seed);
    let (schedule, violation) =
        if shrinks { shrink(&schedule, violation) } else { (schedule, violation.to_owned()) };
    println!("the smallest schedule that was found: {violation}\n{schedule}");
    for line in simulate(&schedule, true).trace {
        println!("{line}");
    }
}
