//! Leases: a worker's row is its lease on everything it holds.

use async_trait::async_trait;

use super::{
    MemoryStore,
    state::{LeaseRow, State},
};
use crate::{
    domain::ids::WorkerId,
    store::{Evidence, NewWorker, Peer, Result, StopRequest, StoreError, WorkerRow, Workers},
};

#[async_trait]
impl Workers for MemoryStore {
    async fn register_worker(&self, worker: &NewWorker) -> Result<()> {
        self.transact(|state| {
            if state.workers.contains_key(&worker.id) {
                return Err(StoreError::Conflict("workers_pkey".to_owned()));
            }
            let expires_at = state.now + worker.lease_ms;
            let lease = LeaseRow {
                host: worker.host.clone(),
                version: worker.version.clone(),
                slots: worker.slots,
                draining: false,
                started_at: state.now,
                expires_at,
                first_expires_at: expires_at,
                renewed_at: state.now,
                renewal_ms: worker.renewal_ms,
                presence: worker.presence.clone(),
            };
            state.workers.insert(worker.id, lease);
            Ok(())
        })
    }

    async fn heartbeat(&self, worker: WorkerId, lease_ms: i64, draining: bool) -> Result<()> {
        self.transact(|state| {
            let now = state.now;
            let lease = state.workers.get_mut(&worker).filter(|lease| lease.expires_at > now);
            let lease = lease.ok_or(StoreError::LeaseLost)?;
            (lease.expires_at, lease.renewed_at) = (now + lease_ms, now);
            lease.draining = draining;
            Ok(())
        })
    }

    async fn stop_requests(&self, worker: WorkerId) -> Result<Vec<StopRequest>> {
        self.transact(|state| Ok(state.stop_requests(worker)))
    }

    async fn retire_worker(&self, worker: WorkerId) -> Result<()> {
        self.expire_worker(worker, Evidence::Proof).await.map(drop)
    }

    async fn expire_worker(&self, worker: WorkerId, evidence: Evidence) -> Result<bool> {
        self.transact(|state| {
            let now = state.now;
            let lease = state.workers.get_mut(&worker).filter(|lease| {
                let is_overdue = lease.renewed_at + lease.renewal_ms < now;
                lease.expires_at > now && (evidence == Evidence::Proof || is_overdue)
            });
            Ok(lease.map(|lease| (lease.expires_at, lease.draining) = (now, true)).is_some())
        })
    }

    async fn live_peers(&self) -> Result<Vec<Peer>> {
        self.transact(|state| {
            let alive = state.workers.iter().filter(|(_, lease)| lease.expires_at > state.now);
            let peer = |(id, lease): (&WorkerId, &LeaseRow)| {
                Some(Peer { id: *id, presence: lease.presence.clone()? })
            };
            Ok(alive.filter_map(peer).collect())
        })
    }

    async fn retire_all_workers(&self) -> Result<u64> {
        self.transact(|state| {
            let now = state.now;
            let alive = state.workers.values_mut().filter(|lease| lease.expires_at > now);
            Ok(alive.map(|lease| lease.expires_at = now).count() as u64)
        })
    }

    async fn list_workers(&self) -> Result<Vec<WorkerRow>> {
        self.transact(|state| {
            let held = |id| state.jobs.values().filter(|job| job.worker_id == Some(id)).count() as u32;
            let rows = state.workers.iter().rev().take(1_000).map(|(id, lease)| WorkerRow {
                id: *id,
                host: lease.host.clone(),
                version: lease.version.clone(),
                slots: lease.slots,
                draining: lease.draining,
                expires_at: lease.expires_at,
                started_at: lease.started_at,
                is_alive: lease.expires_at > state.now,
                held: held(*id),
            });
            Ok(rows.collect())
        })
    }
}

impl State {
    fn stop_requests(&self, worker: WorkerId) -> Vec<StopRequest> {
        let held = self.jobs.iter().filter(|(_, job)| job.worker_id == Some(worker));
        held.filter_map(|(run_id, _)| self.runs.get(run_id))
            .filter_map(|row| StopRequest::of(&row.run))
            .collect()
    }
}
