//! What an API and a worker hold in memory while nothing happens.

use std::time::Duration;

use anyhow::Result;
use tokio::time::sleep;

use super::Effort;
use crate::{
    spent,
    table::{Aim, Figure},
    world::World,
};

/// After the first heartbeats and looks at the queue.
const SETTLED: Duration = Duration::from_secs(6);

pub(super) async fn measure(_: Effort) -> Result<Vec<Figure>> {
    let world = World::start(64, &[]).await?;
    sleep(SETTLED).await;
    let mib = |pid| Ok::<_, anyhow::Error>(spent::resident_kib(pid)? / 1024.0);
    let (api, worker) = (mib(world.api.id())?, mib(world.worker.id())?);
    Ok(vec![
        Figure::new("resident when idle, API", api, "MiB"),
        Figure::new("resident when idle, worker", worker, "MiB"),
        Figure::new("resident when idle, together", api + worker, "MiB").aim(Aim::OrLess(50.0)),
    ])
}
