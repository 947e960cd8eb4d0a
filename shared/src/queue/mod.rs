//! Who works next: claim, hold, hand back.
//!
//! [`Holdings`] is what one worker holds, and [`Validity`] until when it may be sure of that; the [`claim`] loop adds to
//! it and never claims more than there are free slots; the [`backend`] hands each claim to the worker framework. A
//! claim's tokens tell its attempt that the run is to stop or that it was lost; both are hints, the log is the fence.

pub mod backend;
pub mod claim;
mod moment;
mod validity;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use tokio::sync::{Notify, OwnedSemaphorePermit};
use tokio_util::sync::CancellationToken;

pub use moment::Moment;
pub use validity::Validity;

use crate::{
    domain::{
        ids::{Epoch, RunId, WorkerId},
        run::Claim,
        transition::Reason,
    },
    mutant::{self, Mutant},
    store::StopRequest,
    telemetry::metrics,
};

/// What the holder of a run is told from outside.
#[derive(Debug, Default)]
pub struct Orders {
    /// The run is somebody else's now, or may be: stop at once and write nothing more.
    pub lost: CancellationToken,
    /// The run is to end.
    pub stop: CancellationToken,
    /// Until when the run is surely held.
    pub validity: Validity,
    wish: OnceLock<StopRequest>,
}

impl Orders {
    pub fn request_stop(&self, wish: StopRequest) {
        self.wish.get_or_init(|| wish);
        self.stop.cancel();
    }

    /// The wish that the run ends, once there is one.
    pub fn stop_request(&self) -> Option<StopRequest> {
        self.wish.get().copied()
    }

    /// Why the run is to end, once it is.
    pub fn stop_reason(&self) -> Option<Reason> {
        self.stop_request().map(|wish| wish.reason)
    }
}

/// A run in the hands of this worker. Dropping it frees the slot.
#[derive(Debug)]
pub struct Leased {
    pub claim: Claim,
    pub orders: Arc<Orders>,
    holdings: Arc<Holdings>,
    _slot: OwnedSemaphorePermit,
}

impl Drop for Leased {
    fn drop(&mut self) {
        self.holdings.remove(&self.claim);
        metrics::slot_freed();
    }
}

/// All that this worker holds, under the lease that it holds it by.
#[derive(Debug, Default)]
pub struct Holdings {
    inner: Mutex<Inner>,
    validity: Validity,
    begun: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    /// Absent while there is no lease: nothing may be claimed then.
    worker_id: Option<WorkerId>,
    held: BTreeMap<RunId, (Epoch, Arc<Orders>)>,
}

impl Holdings {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A lease is held under this id from now on.
    pub fn begin(&self, worker_id: WorkerId) {
        self.lock().worker_id = Some(worker_id);
        self.begun.notify_waiters();
    }

    /// The lease is confirmed to hold until then, by this machine's own clock.
    pub fn confirm(&self, valid_until: Moment) {
        self.validity.extend(valid_until);
    }

    /// Waits until there is a lease to claim by.
    pub async fn lease_held(&self) -> WorkerId {
        loop {
            let begun = self.begun.notified();
            if let Some(worker_id) = self.worker_id() {
                return worker_id;
            }
            begun.await;
        }
    }

    /// The lease is gone, or cannot be known to hold: everything held by it is lost.
    pub fn lose_all(&self) {
        let mut inner = self.lock();
        inner.worker_id = None;
        for (_, orders) in inner.held.values() {
            orders.lost.cancel();
        }
    }

    /// By which lease new claims are held.
    pub fn worker_id(&self) -> Option<WorkerId> {
        self.lock().worker_id
    }

    pub fn len(&self) -> usize {
        self.lock().held.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The runs that are held now, each with the claim it is held by.
    pub fn held(&self) -> Vec<(RunId, Epoch)> {
        self.lock().held.iter().map(|(run_id, (epoch, _))| (*run_id, *epoch)).collect()
    }

    /// Somebody has ended the run or taken it, which its attempt would only learn when it has something to write.
    pub fn lose(&self, run_id: RunId, epoch: Epoch) {
        if let Some((_, orders)) = self.lock().held.get(&run_id).filter(|(held, _)| *held == epoch) {
            orders.lost.cancel();
        }
    }

    pub fn holds(&self, run_id: RunId) -> bool {
        self.lock().held.contains_key(&run_id)
    }

    /// Whether it is held by that very claim.
    pub fn holds_by(&self, run_id: RunId, epoch: Epoch) -> bool {
        self.lock().held.get(&run_id).is_some_and(|(held, _)| *held == epoch)
    }

    /// Passes stops on to the attempts.
    pub fn deliver_stops(&self, requests: &[StopRequest]) {
        if mutant::is(Mutant::StopNotDelivered) {
            return;
        }
        let inner = self.lock();
        for request in requests {
            if let Some((_, orders)) = inner.held.get(&request.run_id) {
                orders.request_stop(*request);
            }
        }
    }

    /// Takes a claim into the books. If the lease it was made by is gone already, it begins as lost.
    pub fn add(self: &Arc<Self>, claim: Claim, slot: OwnedSemaphorePermit) -> Leased {
        let orders = Arc::new(Orders { validity: self.validity.clone(), ..Orders::default() });
        if let Some(wish) = StopRequest::of(&claim.run) {
            orders.request_stop(wish);
        }
        let mut inner = self.lock();
        if inner.worker_id != Some(claim.worker_id) {
            orders.lost.cancel();
        }
        inner.held.insert(claim.run.id, (claim.epoch, Arc::clone(&orders)));
        drop(inner);
        metrics::slot_taken();
        Leased { claim, orders, holdings: Arc::clone(self), _slot: slot }
    }

    fn remove(&self, claim: &Claim) {
        let mut inner = self.lock();
        // The same run may be held again, by a newer claim than the one that is let go.
        if inner.held.get(&claim.run.id).is_some_and(|(epoch, _)| *epoch == claim.epoch) {
            inner.held.remove(&claim.run.id);
        }
    }
}
