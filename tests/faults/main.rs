//! `cargo xtask faults`: what a test suite is too short for.
//!
//! - [`sweep`] tries each fault at each place of each script, and [`sweep::mutants`] whether that sees missing guards

#![expect(clippy::unwrap_used, reason = "all of this is test code")]

mod sweep;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
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
    };
    Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
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
