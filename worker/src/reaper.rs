//! Dead workers' jobs: handed on, or given up. Also what else is due without anybody asking for it: stops that nobody
//! follows, scheduled runs, and the repair of what no path should produce.
//!
//! Every worker does this; each change is conditional, so it does not matter who comes first.

use std::{sync::Arc, time::Duration};

use longhaul_shared::{
    admission::announce,
    bus::Bus,
    domain::retry::MAX_CRASHES,
    failpoint::{Point, hit_if},
    jitter::jitter,
    store::{Released, SharedStore, StoreError, bounded},
    telemetry::metrics::{self, Proof},
};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

/// Between two looks, before the jitter that keeps workers from looking all at once.
const PERIOD: Duration = Duration::from_millis(900);
const JITTER: Duration = Duration::from_millis(200);
const RECONCILE_PERIOD: Duration = Duration::from_mins(2);
const BATCH: u32 = 100;

/// Runs until stopped.
pub async fn reap(store: SharedStore, bus: Arc<dyn Bus>, stop: CancellationToken) {
    let mut reconciled: Option<Instant> = None;
    loop {
        let patience = store.patience();
        let (reaping, telling) = (Arc::clone(&store), Arc::clone(&bus));
        let round = async move {
            round(&reaping, &*telling).await;
            Ok(())
        };
        if let Err(error) = bounded(patience, round).await {
            tracing::warn!(%error, "does not wait for a round of reaping");
        }
        if reconciled.is_none_or(|at| at.elapsed() >= RECONCILE_PERIOD) {
            reconciled = Some(Instant::now());
            let repairing = Arc::clone(&store);
            let repair = async move {
                reconcile(&repairing).await;
                repairing.prune().await
            };
            if let Err(error) = bounded(patience, repair).await {
                tracing::warn!(%error, "cannot prune");
            }
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = sleep(PERIOD + JITTER.mul_f64(jitter())) => {}
        }
    }
}

/// Each of these is tried, whatever becomes of the others.
async fn round(store: &SharedStore, bus: &dyn Bus) {
    if let Err(error) = take_over(store, bus, Proof::Lease).await {
        tracing::warn!(%error, "cannot look after dead workers");
    }
    if let Err(error) = carry_out_stops(store, bus).await {
        tracing::warn!(%error, "cannot look after stops that nobody follows");
    }
    if let Err(error) = promote_due(store, bus).await {
        tracing::warn!(%error, "cannot look after due runs");
    }
}

/// Everything that dead workers hold waits for others again, or has ended. `proof` is how this round came to be: runs of
/// a worker whose lease ran out just now may be among those of one that was proven dead.
pub async fn take_over(store: &SharedStore, bus: &dyn Bus, proof: Proof) -> Result<(), StoreError> {
    loop {
        let released = store.reap(MAX_CRASHES, BATCH).await?;
        hit_if(Point::AfterReap, || !released.is_empty());
        let is_all = released.len() < BATCH as usize;
        for released in released {
            metrics::took_over(proof);
            tracing::warn!(
                run.id = %released.run_id,
                ended = released.ended,
                proof = proof.as_str(),
                "took a run from a dead worker"
            );
            tell(bus, released);
        }
        if is_all {
            return Ok(());
        }
    }
}

/// Ends the runs whose holders do not follow their stops. What is left after a batch is the next round's.
async fn carry_out_stops(store: &SharedStore, bus: &dyn Bus) -> Result<(), StoreError> {
    for released in store.carry_out_stops(BATCH).await? {
        metrics::stop_carried_out();
        tracing::warn!(run.id = %released.run_id, "carried out a stop that the run's holder did not follow");
        tell(bus, released);
    }
    Ok(())
}

async fn promote_due(store: &SharedStore, bus: &dyn Bus) -> Result<(), StoreError> {
    for released in store.promote_due(BATCH).await? {
        tell(bus, released);
    }
    Ok(())
}

fn tell(bus: &dyn Bus, released: Released) {
    announce(bus, released.segments, released.wake);
}

async fn reconcile(store: &SharedStore) {
    match store.reconcile().await {
        Ok(0) => {}
        Ok(repaired) => {
            metrics::reconciled(repaired);
            tracing::error!(repaired, "repaired rows that no path should produce");
        }
        Err(error) => tracing::warn!(%error, "cannot reconcile"),
    }
}

#[cfg(test)]
mod tests;
