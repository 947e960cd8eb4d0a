//! The engine with one guard taken out at a time: schedules are played until one shows it. A mutant is chosen once per
//! process, so each is played in a process of its own, and so is the engine as it is, in which nothing may be seen.

use std::{env::current_exe, process::Command};

use anyhow::{Context, Result, ensure};
use longhaul_shared::mutant::{Mutant, VARIABLE};
use serde::{Deserialize, Serialize};

/// How many schedules a mutant may survive.
pub const SCHEDULES: u64 = 20_000;

/// The names of mutants that no schedule can show, and why.
const NOT_HERE: &[(&str, &str)] =
    &[("tool_sent_without_lease", "that guard stands in the HTTP tool, and there is no HTTP here")];

/// What a process found, as it tells its parent.
#[derive(Debug, Serialize, Deserialize)]
pub struct Found {
    pub schedules: u64,
    /// The seed of a schedule and what it violates.
    pub violation: Option<(u64, String)>,
}

/// Plays each mutant and the engine as it is; whether all mutants were seen, and nothing else.
pub fn run(seed: u64, schedules: u64, threads: usize) -> Result<bool> {
    println!("{:<26}{:>10}{:>11}  violation", "mutant", "schedules", "seed");
    let mut is_good = true;
    for mutant in Mutant::ALL {
        if let Some((_, why)) = NOT_HERE.iter().find(|(not_here, _)| *not_here == mutant.name()) {
            println!("{:<26}not here, see `cargo xtask faults mutants`: {why}", mutant.name());
            continue;
        }
        let found = play(Some(*mutant), seed, schedules, threads)?;
        is_good &= found.violation.is_some();
        print(mutant.name(), &found, "NOT SEEN");
    }
    let control = play(None, seed, schedules, threads)?;
    is_good &= control.violation.is_none();
    print("none", &control, "none, as it must be");
    Ok(is_good)
}

fn print(name: &str, found: &Found, otherwise: &str) {
    let (seed, violation) = match &found.violation {
        Some((seed, violation)) => (seed.to_string(), violation.lines().next().unwrap_or_default()),
        None => (String::new(), otherwise),
    };
    let violation: String = violation.chars().take(160).collect();
    println!("{name:<26}{:>10}{seed:>11}  {violation}", found.schedules);
}

fn play(mutant: Option<Mutant>, seed: u64, schedules: u64, threads: usize) -> Result<Found> {
    let mut child = Command::new(current_exe().context("we do not know where we are")?);
    for (option, value) in [("--seed", seed), ("--schedules", schedules), ("--threads", threads as u64)] {
        child.args([option, &value.to_string()]);
    }
    child.arg("--brief").env_remove(VARIABLE);
    child.envs(mutant.map(|mutant| (VARIABLE, mutant.name())));
    let output = child.output().context("the simulation cannot be started")?;
    ensure!(
        output.status.success(),
        "{}: {}",
        mutant.map_or("no mutant", Mutant::name),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(serde_json::from_slice(&output.stdout)?)
}
