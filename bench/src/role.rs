//! The measured processes: `api` and `worker`, as the product starts them.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use longhaul_api::{AppState, Settings};
use longhaul_shared::{
    admission::Agents,
    backends::{Backends, Processes, open, open_lease_store},
    config::{Config, Overrides},
    shutdown::Shutdown,
    tail::Tails,
    telemetry,
};
use tokio::{net::TcpListener, time::timeout};

/// What the product gives a worker and an API to end in.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Api,
    Worker,
}

impl Role {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Api => "api",
            Self::Worker => "worker",
        }
    }
}

/// Is that process until it is told to stop.
pub(crate) async fn play(role: Role, file: &Path) -> Result<()> {
    let config = Config::load(Some(file), Overrides::new())?;
    telemetry::init(&config.log)?;
    let backends = open(&config, Processes::Many)?;
    let Backends { store, bus } = backends.clone();
    let shutdown = Shutdown::new();
    shutdown.listen()?;
    match role {
        Role::Api => {
            let tails = Tails::new(Arc::clone(&store) as _, Arc::clone(&bus));
            let agents = Arc::new(Agents::of(&config));
            let settings = Settings::of(&config, role.name());
            let listener = TcpListener::bind(config.server.address()).await?;
            let state = AppState::new(longhaul_api::Parts { store, bus, tails, agents, settings });
            longhaul_api::serve(listener, state, shutdown.soft.clone()).await?;
        }
        Role::Worker => {
            let leases = open_lease_store(&config, &store)?;
            let parts = longhaul_worker::Parts {
                store,
                leases,
                processes: Processes::Many,
                bus,
                config: Arc::new(config),
            };
            let work = longhaul_worker::run(parts, shutdown.clone());
            tokio::pin!(work);
            tokio::select! {
                ended = &mut work => ended?,
                () = shutdown.soft.cancelled() => timeout(PATIENCE, work).await.context("the worker does not end")??,
            }
        }
    }
    backends.close().await;
    Ok(())
}
