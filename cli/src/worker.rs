//! `longhaul worker`: executes runs until it is told to stop, then hands them over.

use std::{sync::Arc, time::Duration};

use longhaul_shared::{
    backends::{Processes, open, open_lease_store},
    config::{Config, Overrides},
    shutdown::Shutdown,
    telemetry,
};

use crate::{
    Global,
    api::refuse_missing_file,
    database::wait_until_migrated,
    exit::{Exit, Outcome},
    lock,
    process::Parts,
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Runs at the same time
    #[arg(long)]
    slots: Option<u32>,
    /// The queues to take jobs from, with commas
    #[arg(long, value_delimiter = ',')]
    queues: Option<Vec<String>>,
    /// How long to wait for the current steps when stopping
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    drain_timeout: Option<Duration>,
}

pub(crate) async fn run(global: &Global, args: Args) -> Outcome {
    let drain = args.drain_timeout.map(|span| humantime::format_duration(span).to_string());
    let overrides = Overrides::new()
        .set("--slots", "worker.slots", args.slots)
        .set("--queues", "worker.queues", args.queues)
        .set("--drain-timeout", "worker.drain_timeout", drain);
    let config = Arc::new(Config::load(global.config.as_deref(), overrides)?);
    telemetry::init(&config.log)?;
    let shutdown = Shutdown::new();
    shutdown.listen()?;
    let _lock = lock::shared(&config)?;
    refuse_missing_file(&config)?;
    let backends = open(&config, Processes::Many)?;
    tokio::select! {
        ready = wait_until_migrated(&backends.store) => ready?,
        () = shutdown.soft.cancelled() => return Ok(Exit::Ok),
    }
    let mut parts = Parts::new(&shutdown);
    parts.serve_metrics(&config)?;
    let working = longhaul_worker::Parts {
        store: backends.store.clone(),
        leases: open_lease_store(&config, &backends.store)?,
        processes: Processes::Many,
        bus: backends.bus.clone(),
        config: config.clone(),
    };
    parts.spawn("worker", longhaul_worker::run(working, shutdown.clone()));
    let outcome = parts.run(&config).await;
    backends.close().await;
    outcome
}
