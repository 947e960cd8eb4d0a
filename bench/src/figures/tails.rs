//! What two thousand watchers of one API process hold in its memory.

use std::time::Duration;

use anyhow::{Context, Result};
use longhaul_shared::domain::ids::RunId;
use serde_json::json;
use tokio::time::{sleep, timeout};

use super::Effort;
use crate::{
    client::Events,
    spent,
    table::{Aim, Figure},
    world::{Agent, World},
};

const PATIENCE: Duration = Duration::from_mins(1);
const RUNS: usize = 100;

pub(super) async fn measure(effort: Effort) -> Result<Vec<Figure>> {
    let tails = effort.of(2_000, 300);
    // Slow enough that most tails wait at any time, as they do while models think.
    let script = json!([{ "tokens": effort.of(120, 40), "rate_per_second": 2 }]);
    let world = World::start(2 * RUNS as u32, &[Agent::Scripted { name: "slow", script }]).await?;
    let mut runs = vec![];
    for _ in 0..RUNS {
        runs.push(world.client.submit("slow").await?);
    }
    world.until_running(RUNS, PATIENCE).await?;
    let pid = world.api.id();
    drop(open(&world, &runs, RUNS).await?);
    sleep(Duration::from_secs(2)).await;

    let before = spent::resident_kib(pid)?;
    let open = open(&world, &runs, tails).await?;
    let reading: Vec<_> = open.into_iter().map(|tail| tokio::spawn(tail.drain())).collect();
    let mut most = 0.0_f64;
    for _ in 0..10 {
        sleep(Duration::from_millis(300)).await;
        most = most.max(spent::resident_kib(pid)?);
    }
    for tail in reading {
        timeout(2 * PATIENCE, tail).await.context("a tail does not end")???;
    }
    let figure =
        Figure::new(format!("memory per tail, {tails} tails"), (most - before) / tails as f64, "KiB");
    Ok(vec![figure.aim(Aim::OrLess(20.0))])
}

/// Opens so many tails, spread over the runs; each has shown its first event.
async fn open(world: &World, runs: &[RunId], tails: usize) -> Result<Vec<Events>> {
    let mut open = vec![];
    for run_id in runs.iter().cycle().take(tails) {
        let mut tail = world.client.tail(*run_id).await?;
        timeout(PATIENCE, tail.next())
            .await
            .context("a tail shows nothing")??
            .context("a tail ended at once")?;
        open.push(tail);
    }
    Ok(open)
}
