//! `cargo xtask`: every command that a person or CI types, on any machine with a Rust toolchain.
//!
//! - [`suite`] runs the tests, the benchmark and the faults, with throw-away servers around them
//! - [`check`] is formatting, lints and dependency rules
//! - [`generate`] writes the files that the binary can print about itself
//! - [`migration`] names the next migration
//! - [`find`] looks for PostgreSQL and Redis and installs them where it may, [`servers`] starts and stops them
//! - [`child`] keeps every process that we start on a leash

mod check;
mod child;
mod clients;
mod find;
mod generate;
mod migration;
mod servers;
mod suite;

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

use crate::child::Interrupt;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Every command that a person or CI types")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Formatting, lints and, where cargo-deny is installed, the rules for dependencies
    Check,
    /// All tests, on throw-away Postgres and Redis servers
    Test {
        /// SQLite and in-process only: no server is started, and nothing but tests runs
        #[arg(long)]
        quick: bool,
        /// Names of tests, or options such as `-p NAME`, for the test runner; without any, everything runs
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        filter: Vec<String>,
    },
    /// Start the servers that tests need and keep them until Ctrl-C
    Servers,
    /// The benchmark, on throw-away servers
    Bench {
        /// Passed to the benchmark as they are
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// The simulation: random schedules of faults, played without servers and without waiting
    Simulate {
        /// Passed to the simulation as they are: `--schedules N`, `--seed S`, `--threads T`, `--trace`, `--mutants`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Faults at each place, at random and all at once, on throw-away servers: `sweep`, `mutants`, `storm`, `recover`, `charge`
    Faults {
        /// How the product is built: `dev`, or `bench`, which is nearly as fast as a release
        #[arg(long, default_value = "dev", value_parser = ["dev", "bench"])]
        profile: String,
        /// Passed on as they are; `--help` tells them
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Write the generated files: API document, configuration reference, example environment
    Gen {
        /// Write nothing; fail when a file is stale
        #[arg(long)]
        check: bool,
    },
    /// Create the next migration for both databases
    NewMigration {
        /// What it does, in words: `add run tags`
        #[arg(required = true)]
        words: Vec<String>,
    },
    /// What CI runs
    Ci,
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask lies in the workspace")?;
    std::env::set_current_dir(root).with_context(|| format!("cannot enter {}", root.display()))?;
    let interrupt = Interrupt::listen()?;
    match command {
        Command::Check => check::everything(&interrupt),
        Command::Test { quick: true, filter } => suite::quick(&filter, &interrupt),
        Command::Test { quick: false, filter } => suite::full(&filter, &interrupt),
        Command::Servers => servers::keep(&interrupt),
        Command::Bench { args } => suite::bench(&args, &interrupt),
        Command::Simulate { args } => suite::simulate(&args, &interrupt),
        Command::Faults { profile, args } => suite::faults(&profile, &args, &interrupt),
        Command::Gen { check } => generate::run(check, &interrupt),
        Command::NewMigration { words } => migration::create(&words),
        Command::Ci => suite::full(&[], &interrupt),
    }
}
