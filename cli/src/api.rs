//! `longhaul api`: serves the HTTP API on a migrated database, and only to callers with keys.

use std::{path::Path, sync::Arc};

use longhaul_api::{AppState, Settings};
use longhaul_shared::{
    admission::Agents,
    backends::{Backends, Processes, open},
    config::{AuthMode, Config, Overrides},
    shutdown::Shutdown,
    store::LogReader,
    tail::Tails,
    telemetry,
};
use tokio::net::TcpListener;

use crate::{
    Global,
    database::{missing_file, wait_until_migrated},
    exit::{Exit, Failure, Outcome},
    lock,
    process::Parts,
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The address to listen on
    #[arg(long)]
    host: Option<String>,
    /// The port to listen on
    #[arg(long)]
    port: Option<u16>,
}

pub(crate) async fn run(global: &Global, args: Args) -> Outcome {
    let config = Arc::new(load(global.config.as_deref(), args)?);
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
    let listener = bind(&config).await?;
    tracing::info!(address = %listener.local_addr()?, "the API listens");
    let mut parts = Parts::new(&shutdown);
    parts.serve_metrics(&config)?;
    parts
        .spawn("API", longhaul_api::serve(listener, state(&config, &backends, "api"), shutdown.soft.clone()));
    let outcome = parts.run(&config).await;
    backends.close().await;
    outcome
}

/// The API's state; `mode` is how it tells what it was started as.
pub(crate) fn state(config: &Config, backends: &Backends, mode: &'static str) -> AppState {
    let log: Arc<dyn LogReader> = backends.store.clone();
    AppState::new(longhaul_api::Parts {
        store: backends.store.clone(),
        bus: backends.bus.clone(),
        tails: Tails::new(log, backends.bus.clone()),
        agents: Arc::new(Agents::of(config)),
        settings: Settings::of(config, mode),
    })
}

fn load(file: Option<&Path>, args: Args) -> Result<Config, Failure> {
    let overrides =
        Overrides::new().set("--host", "server.host", args.host).set("--port", "server.port", args.port);
    let config = Config::load(file, overrides)?;
    require_keys(&config)?;
    Ok(config)
}

/// Only `longhaul dev` may work without keys.
fn require_keys(config: &Config) -> Result<(), Failure> {
    match config.auth.mode {
        AuthMode::Required => Ok(()),
        AuthMode::Loopback => Err(Failure::error(
            "auth.mode = \"loopback\" is for `longhaul dev` only; remove it, and make keys with `longhaul keys create`",
        )),
    }
}

pub(crate) fn refuse_missing_file(config: &Config) -> Result<(), Failure> {
    match missing_file(config) {
        Some(path) => Err(Failure::error(format!("{path} does not exist; `longhaul migrate up` makes it"))),
        None => Ok(()),
    }
}

pub(crate) async fn bind(config: &Config) -> Result<TcpListener, Failure> {
    let address = config.server.address();
    let bound = TcpListener::bind(&address).await;
    bound.map_err(|error| Failure::during(&format!("cannot listen on {address}"), &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_api_never_works_without_keys_not_even_on_loopback() {
        let mut config = Config::default();
        require_keys(&config).unwrap();
        config.auth.mode = AuthMode::Loopback;
        let failure = require_keys(&config).unwrap_err();
        assert!(failure.message.unwrap().contains("keys create"));
    }

    #[tokio::test]
    async fn a_taken_port_is_named() {
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut config = Config::default();
        config.server.port = taken.local_addr().unwrap().port();
        let message = bind(&config).await.unwrap_err().message.unwrap();
        assert!(message.contains(&config.server.address()), "{message}");
    }
}
