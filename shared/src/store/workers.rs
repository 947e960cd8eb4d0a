//! Leases: the rows of workers.

use std::net::SocketAddr;

use async_trait::async_trait;

use super::{Result, StopRequest};
use crate::domain::ids::{Millis, WorkerId};

#[derive(Clone, Debug)]
pub struct NewWorker {
    pub id: WorkerId,
    pub host: String,
    pub version: String,
    pub slots: u32,
    pub lease_ms: i64,
    /// While it lives, it renews its row at least as often as this.
    pub renewal_ms: i64,
    /// Where its peers may ask whether it lives.
    pub presence: Option<Presence>,
}

/// Where a worker's process can be asked whether it lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Presence {
    pub address: SocketAddr,
    /// The kernel and network namespace that it runs in, if they can be told: a loopback address means the same process
    /// only to those in the same place.
    pub place: Option<String>,
}

/// A worker whose lease is alive, and where to ask whether its process is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    pub id: WorkerId,
    pub presence: Presence,
}

#[derive(Clone, Debug)]
pub struct WorkerRow {
    pub id: WorkerId,
    pub host: String,
    pub version: String,
    pub slots: u32,
    pub draining: bool,
    pub expires_at: Millis,
    pub started_at: Millis,
    pub is_alive: bool,
    pub held: u32,
}

/// How sure it is that a worker's process is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evidence {
    /// It is.
    Proof,
    /// It looks like it, which a row that was renewed meanwhile refutes.
    Suspicion,
}

/// Leases: a worker's row is its lease on everything it holds.
#[async_trait]
pub trait Workers: Send + Sync {
    async fn register_worker(&self, worker: &NewWorker) -> Result<()>;
    /// Extends the lease. `LeaseLost` when it had run out: an expired lease is never revived. It reads and writes the
    /// worker's row and nothing else, so that no other trouble looks like a lost lease.
    async fn heartbeat(&self, worker: WorkerId, lease_ms: i64, draining: bool) -> Result<()>;
    /// Which of the worker's runs are to stop.
    async fn stop_requests(&self, worker: WorkerId) -> Result<Vec<StopRequest>>;
    /// Ends the lease at once. What the worker still holds is for the reaper.
    async fn retire_worker(&self, worker: WorkerId) -> Result<()>;
    /// Ends the lease of a worker whose process is gone. False when there was none any more, or when a suspicion is
    /// refuted by the row: it was renewed within [`NewWorker::renewal_ms`]. Then nothing changes.
    async fn expire_worker(&self, worker: WorkerId, evidence: Evidence) -> Result<bool>;
    /// Every worker with a lease that can be asked whether it lives, in the order of their ids.
    async fn live_peers(&self) -> Result<Vec<Peer>>;
    /// Ends all leases: for the one process that holds its database file for itself.
    async fn retire_all_workers(&self) -> Result<u64>;
    async fn list_workers(&self) -> Result<Vec<WorkerRow>>;
}
