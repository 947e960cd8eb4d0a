//! The claim loop: free slots first, then as many claims as there are slots, then sleep until a wake-up, a slot or
//! the poll behind a lost wake-up.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use futures::task::AtomicWaker;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, broadcast::error::RecvError},
    time::sleep,
};
use tokio_util::sync::CancellationToken;

use super::{Holdings, Leased};
use crate::{
    bus::{Bus, Signal},
    domain::{ids::WorkerId, retry::Backoff},
    jitter::jitter,
    store::{SharedStore, StoreError, bounded},
};

/// The most that one query claims: a batch is one transaction.
const BATCH: usize = 64;
const RETRY: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));

/// What a claim loop needs.
pub struct Claimer {
    pub store: SharedStore,
    pub bus: Arc<dyn Bus>,
    pub holdings: Arc<Holdings>,
    pub queues: Vec<String>,
    pub slots: u32,
    pub poll: Duration,
    /// An answer that comes later is not believed: what it tells of may have been disowned and claimed again by then.
    pub patience: Duration,
    /// Ends the loop: nothing is claimed any more.
    pub stop: CancellationToken,
}

/// Claims that wait for the worker framework to ask for them.
#[derive(Default)]
pub(super) struct Ready {
    pub(super) waker: AtomicWaker,
    queue: Mutex<VecDeque<Leased>>,
}

impl Ready {
    fn lock(&self) -> MutexGuard<'_, VecDeque<Leased>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn pop(&self) -> Option<Leased> {
        self.lock().pop_front()
    }

    fn push(&self, leased: Leased) {
        self.lock().push_back(leased);
        self.waker.wake();
    }
}

impl Claimer {
    pub(super) async fn run(self, ready: Arc<Ready>) {
        let slots = Arc::new(Semaphore::new(self.slots as usize));
        let mut signals = self.bus.signals();
        let mut failures = 0;
        loop {
            let (permits, worker_id) = tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                both = async { (free_slots(&slots).await, self.holdings.lease_held().await) } => both,
            };
            let wanted = permits.len();
            let pause = match self.claim(worker_id, permits, &ready).await {
                Ok(claimed) => {
                    failures = 0;
                    if claimed == wanted {
                        continue;
                    }
                    // Not in step with the other workers, and never later than promised.
                    self.poll.mul_f64(0.5 + jitter() / 2.0)
                }
                Err(error) => {
                    failures += 1;
                    tracing::warn!(%error, "cannot claim");
                    RETRY.wait(failures, jitter())
                }
            };
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                () = sleep(pause) => {}
                () = woken(&mut signals, &self.queues) => {}
            }
        }
    }

    /// Claims up to one run for each permit. A lost answer leaves runs that this worker holds without knowing it; the
    /// worker finds and disowns them.
    async fn claim(
        &self,
        worker_id: WorkerId,
        mut permits: Vec<OwnedSemaphorePermit>,
        ready: &Ready,
    ) -> Result<usize, StoreError> {
        let (store, queues, limit) = (Arc::clone(&self.store), self.queues.clone(), permits.len() as u32);
        let claims = async move { store.claim(worker_id, &queues, limit).await };
        let claims = bounded(self.patience, claims).await?;
        let claimed = claims.len();
        for (claim, segment) in claims {
            let Some(permit) = permits.pop() else { break };
            self.bus.publish(Arc::new(segment));
            ready.push(self.holdings.add(claim, permit));
        }
        Ok(claimed)
    }
}

/// Waits for a free slot and takes along the others that are free.
async fn free_slots(slots: &Arc<Semaphore>) -> Vec<OwnedSemaphorePermit> {
    let first = Arc::clone(slots).acquire_owned().await.expect("this semaphore is never closed");
    let more = std::iter::from_fn(|| Arc::clone(slots).try_acquire_owned().ok());
    std::iter::once(first).chain(more.take(BATCH - 1)).collect()
}

async fn woken(signals: &mut tokio::sync::broadcast::Receiver<Signal>, queues: &[String]) {
    loop {
        match signals.recv().await {
            Ok(Signal::Wake { queue }) if !queues.contains(&queue) => {}
            Ok(Signal::Wake { .. }) | Err(RecvError::Lagged(_)) => return,
            Ok(Signal::Stop { .. }) => {}
            Err(RecvError::Closed) => std::future::pending().await,
        }
    }
}
