//! One fault, again and again on a quiet machine: how long it takes to get over it, and that nothing is done twice.

pub(crate) mod charge;
pub(crate) mod recover;

use anyhow::{Context, Result};
use longhaul_tests::World;

use crate::workers::identities;

/// Which of the processes has the run now.
async fn owner(world: &World, run: &str) -> Result<usize> {
    let log = world.rows.log(run).await;
    let claimed =
        log.iter().rev().find(|event| event.kind == "run.claimed").context("it was never claimed")?;
    let worker = claimed.data["workerId"].as_str().unwrap_or_default();
    let is_it = |output: String| identities(&output).iter().any(|(_, id)| id == worker);
    let owner = world.workers.iter().position(|process| is_it(process.output()));
    owner.with_context(|| format!("no process says that it is worker {worker}"))
}

/// Starts a process again that has ended, and waits until it holds a lease.
async fn bring_back(world: &mut World, worker: usize) {
    let process = &mut world.workers[worker];
    let before = identities(&process.output()).len();
    process.restart().await;
    while identities(&process.output()).len() == before {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

/// When the first segment with such an event was written under this epoch; waits for it.
async fn written(world: &World, run: &str, kind: &str, epoch: i64) -> i64 {
    let sql = format!(
        "select coalesce(min(created_at), 0) from run_events where run_id = {} and epoch = {epoch}
         and events like '%\"{kind}\"%'",
        world.rows.id(run)
    );
    world.rows.until(&format!("{kind} in epoch {epoch}"), &sql, |at| at > 0).await;
    world.rows.number(&sql).await
}
