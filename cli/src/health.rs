//! `longhaul health`: one question to a server and an exit code, for container health checks.

use clap::ValueEnum;

use crate::{
    Global,
    exit::{Exit, Outcome},
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What to ask
    #[arg(value_enum)]
    probe: Probe,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Probe {
    /// Whether it is alive
    Livez,
    /// Whether it can serve
    Readyz,
}

pub(crate) async fn run(global: &Global, args: Args) -> Outcome {
    let path = match args.probe {
        Probe::Livez => "livez",
        Probe::Readyz => "readyz",
    };
    let status = global.client()?.probe(path).await?;
    if status.is_success() {
        global.output().note(&format!("{path}: ok"));
        Ok(Exit::Ok)
    } else {
        global.output().tell(&format!("{path}: {status}"));
        Ok(Exit::Error)
    }
}
