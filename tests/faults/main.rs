//! `cargo xtask faults`: what a test suite is too short for.
//!
//! - [`sweep`] tries each fault at each place of each script, and [`sweep::mutants`] whether that sees missing guards
//! - [`storm`] lets everything fail at random, for minutes, under load, and then asks whether a promise was broken
//! - [`rounds`] repeats one fault often enough to say how long recovery takes

#![expect(clippy::unwrap_used, reason = "all of this is test code")]

mod clock;
mod percentiles;
mod rounds;
mod storm;
mod sweep;
mod workers;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};

#[derive(Parser)]
#[command(name = "cargo xtask faults", about = "What a test suite is too short for")]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Write the report to this file too
    #[arg(long, global = true)]
    json: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Command {
    /// Each fault at each place of each script
    Sweep(sweep::Options),
    /// The product with one guard taken out at a time: the sweep must see each
    Mutants(sweep::mutants::Options),
    /// Everything fails at random, under load
    Storm(storm::Options),
    /// How long a takeover, a hand-over and a stop take on a quiet machine
    Recover(rounds::recover::Options),
    /// Kill the owner while a call with an effect is under way
    Charge(rounds::charge::Options),
}

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let cli = Cli::parse();
    tokio::select! {
        outcome = run(cli) => outcome,
        // Whatever was started ends with the future that held it.
        () = interrupted()? => Ok(ExitCode::FAILURE),
    }
}

async fn run(cli: Cli) -> Result<ExitCode> {
    let json = cli.json.as_deref();
    let is_good = match cli.command {
        Command::Sweep(options) => sweep::run(&options, json).await?,
        Command::Mutants(options) => sweep::mutants::run(&options, json).await?,
        Command::Storm(options) => print(&Box::pin(storm::run(&options)).await?, json)?,
        Command::Recover(options) => print(&rounds::recover::run(&options).await?, json)?,
        Command::Charge(options) => print(&rounds::charge::run(&options).await?, json)?,
    };
    Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What a run of faults found.
trait Verdict: Serialize {
    /// Why it does not count as a success; empty if it does.
    fn flaws(&self) -> &[String];
}

/// Prints the report, and says whether it is a success.
fn print(report: &impl Verdict, file: Option<&Path>) -> Result<bool> {
    let json = serde_json::to_string_pretty(report)?;
    println!("{json}");
    if let Some(file) = file {
        std::fs::write(file, json)?;
    }
    for flaw in report.flaws() {
        eprintln!("flaw: {flaw}");
    }
    Ok(report.flaws().is_empty())
}

fn interrupted() -> Result<impl Future<Output = ()>> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}
