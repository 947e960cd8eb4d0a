//! Runs the tests, the fault tests, the simulation and the benchmark, with everything around them that they need.

use std::process::Command;

use anyhow::{Context, Result};

use crate::child::{Interrupt, cargo, run};
use crate::servers::Servers;
use crate::{check, clients, find, generate};

/// Everything; with a filter only the tests that it names, without the checks that come before a complete run.
pub(crate) fn full(filter: &[String], interrupt: &Interrupt) -> Result<()> {
    if filter.is_empty() {
        check::style(interrupt)?;
        generate::run(true, interrupt)?;
    }
    let mut tests = tests(filter, interrupt)?;
    let names = |what| filter.iter().any(|arg: &String| arg.contains(what));
    if filter.is_empty() || names("client") || names("example") {
        tests.envs(clients::all(interrupt)?);
    }
    let servers = Servers::start(interrupt)?;
    run(tests.envs(servers.env()), interrupt)?;
    if filter.is_empty() {
        // The test runner has built it with the scenarios, which lie in the same package.
        let mut sweep = faults_command("dev")?;
        run(sweep.args(["sweep", "--quick"]).envs(servers.env()), interrupt)?;
    }
    Ok(())
}

/// Faults at each place and all at once; see `tests/faults`.
pub(crate) fn faults(profile: &str, args: &[String], interrupt: &Interrupt) -> Result<()> {
    // A debug build can fail on purpose by itself.
    let features = if profile == "dev" { "" } else { "longhaul/faults" };
    let build = ["build", "--profile", profile, "-p", "longhaul", "-p", "longhaul-tests", "--bins"];
    run(Command::new("cargo").args(build).args(["--features", features]), interrupt)?;
    let mut faults = faults_command(profile)?;
    let servers = Servers::start(interrupt)?;
    run(faults.args(args).envs(servers.env()), interrupt)
}

/// Seconds instead of minutes: suites that need a server know this variable and leave themselves out.
pub(crate) fn quick(filter: &[String], interrupt: &Interrupt) -> Result<()> {
    run(tests(filter, interrupt)?.env("LONGHAUL_TEST_QUICK", "1"), interrupt)
}

pub(crate) fn bench(args: &[String], interrupt: &Interrupt) -> Result<()> {
    cargo(["build", "--profile", "bench", "--package", "longhaul-bench"], interrupt)?;
    let servers = Servers::start(interrupt)?;
    let mut bench = Command::new("cargo");
    bench.args(["run", "--quiet", "--profile", "bench", "--package", "longhaul-bench", "--"]).args(args);
    run(bench.envs(servers.env()), interrupt)
}

/// Optimised: what counts is how many schedules there are.
pub(crate) fn simulate(args: &[String], interrupt: &Interrupt) -> Result<()> {
    let mut simulation = Command::new("cargo");
    simulation.args(["run", "--profile", "simulation", "--package", "longhaul-simulation", "--"]);
    run(simulation.args(args), interrupt)
}

/// The command of the fault tests, on what was built.
fn faults_command(profile: &str) -> Result<Command> {
    let ours = std::env::current_exe().context("we do not know where we are")?;
    let target = ours.ancestors().nth(2).context("we lie in target/PROFILE")?;
    let built = target.join(if profile == "dev" { "debug" } else { "release" });
    let mut command = Command::new(built.join("faults"));
    command.env("LONGHAUL_TEST_BINARY", built.join("longhaul"));
    Ok(command)
}

/// The command of the test runner. Builds the binary first, because scenarios start it as a process.
fn tests(filter: &[String], interrupt: &Interrupt) -> Result<Command> {
    cargo(["build", "--package", "longhaul"], interrupt)?;
    let binary = std::env::current_exe().context("we do not know where we are")?.with_file_name("longhaul");

    let mut command = Command::new("cargo");
    if find::in_path("cargo-nextest").is_some() {
        command.args(["nextest", "run"]);
    } else {
        command.args(["test", "--lib", "--bins", "--tests"]);
    }
    if !filter.iter().any(|arg| arg.starts_with("-p") || arg.starts_with("--package")) {
        command.arg("--workspace");
    }
    command.args(filter).env("LONGHAUL_TEST_BINARY", binary);
    Ok(command)
}
