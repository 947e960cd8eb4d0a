//! Faults on purpose, by the hundred: [`sweep`] tries each fault at each point, [`storm`] many at once for a while.

#![expect(clippy::unwrap_used, reason = "all of this is test code")]

mod storm;
mod sweep;

use std::process::ExitCode;

use clap::Parser;

#[derive(Parser)]
#[command(name = "faults", about = "Faults on purpose, by the hundred")]
enum Cli {
    /// Each fault at each point of each script
    Sweep(sweep::Args),
    /// The product with one guard taken out at a time: the sweep must see each
    Mutants(sweep::mutants::Args),
    /// Load, and everything that can go wrong at once
    Storm(storm::Args),
}

#[tokio::main]
async fn main() -> ExitCode {
    let good = match Cli::parse() {
        Cli::Sweep(args) => sweep::run(args).await,
        Cli::Mutants(args) => sweep::mutants::run(args).await,
        Cli::Storm(args) => storm::run(args).await,
    };
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
