//! `longhaul-bench`: every figure beside its floor, taken in the same run on the same machine.
//!
//! Alone it measures and prints one table. With `--role` it is one of the processes that are measured: the API or a
//! worker, made of the same libraries as the product, so that their memory and CPU time are their own.

mod client;
mod figures;
mod floor;
mod lane;
mod provider;
mod role;
mod sampled;
mod spent;
mod table;
mod world;

use std::{fs, path::PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Parser, ValueEnum};

use crate::{
    figures::{ALL, Effort},
    role::Role,
    table::Table,
};

/// Measures Longhaul: needs LONGHAUL_TEST_POSTGRES_URL and LONGHAUL_TEST_REDIS_URL, as `cargo xtask bench` sets them.
#[derive(Parser)]
#[command(name = "longhaul-bench")]
struct Args {
    /// Measure only these
    #[arg(long, num_args = 1.., value_name = "NAME", conflicts_with = "role")]
    only: Vec<String>,
    /// Less of everything: to see that it works, not to compare
    #[arg(long)]
    quick: bool,
    /// Write the figures to this file too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Be one of the measured processes
    #[arg(long, hide = true, requires = "config")]
    role: Option<Role>,
    #[arg(long, hide = true)]
    config: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        bail!("another TLS provider was installed before ours");
    }
    match (args.role, args.config) {
        (Some(role), Some(config)) => role::play(role, &config).await,
        _ => measure(&args.only, args.quick, args.json).await,
    }
}

async fn measure(only: &[String], quick: bool, json: Option<PathBuf>) -> Result<()> {
    if let Some(unknown) = only.iter().find(|name| ALL.iter().all(|(known, _)| known != name)) {
        let known: Vec<_> = ALL.iter().map(|(name, _)| *name).collect();
        bail!("there is no figure `{unknown}`; there are {}", known.join(", "));
    }
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let cores = std::thread::available_parallelism()?;
    eprintln!("{cores} cores, shared with Postgres and Redis; load before: {}", load.trim());
    let effort = Effort { quick };
    let mut table = Table::default();
    for (name, measure) in ALL {
        if !only.is_empty() && !only.iter().any(|wanted| wanted == name) {
            continue;
        }
        eprintln!("measuring {name} …");
        let measured = measure(effort).await.with_context(|| format!("cannot measure {name}"))?;
        table.extend(measured);
    }
    println!("{table}");
    if cfg!(debug_assertions) {
        eprintln!("a debug build: these figures say nothing about the product; use `cargo xtask bench`");
    }
    if let Some(file) = json {
        let text = serde_json::to_string_pretty(&table)?;
        fs::write(&file, text + "\n").with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(())
}

impl ValueEnum for Role {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Api, Self::Worker]
    }

    fn to_possible_value(&self) -> Option<clap::builder::PossibleValue> {
        Some(self.name().into())
    }
}
