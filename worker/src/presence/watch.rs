//! Looks after the next neighbours, and takes over from those that are gone.
//!
//! The workers stand in a ring in the order of their ids. Each watches the next two that it can reach, so that one dead
//! or frozen watcher leaves nobody unwatched; when one is found dead, it looks again at once, so that the deaths of many
//! are found one after the other without waiting. Since nothing is proven about a worker that was never heard, each also
//! makes itself known to the others, before they become its neighbours.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::{StreamExt, stream::FuturesUnordered};
use longhaul_shared::{
    bus::Bus,
    domain::ids::WorkerId,
    jitter::jitter,
    queue::Holdings,
    store::{Evidence, Peer, SharedStore, StoreError, bounded},
    telemetry::metrics::Proof,
};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::probe::{self, Finding};
use crate::reaper;

/// Between two looks, before the jitter.
const PERIOD: Duration = Duration::from_millis(750);
const JITTER: Duration = Duration::from_millis(500);
/// The same before there is a lease of our own: the first look is not to be late.
const BEFORE_A_LEASE: Duration = Duration::from_millis(50);
const NEIGHBOURS: usize = 2;
/// Others that are looked at in one round because they were never heard.
const INTRODUCTIONS: usize = 8;

/// What one worker needs to watch others.
pub struct Watch {
    pub store: SharedStore,
    pub bus: Arc<dyn Bus>,
    pub holdings: Arc<Holdings>,
    pub place: Option<String>,
    /// As long as there is a lease: a worker that drains still watches.
    pub done: CancellationToken,
}

impl Watch {
    /// Watches until all is done.
    pub async fn run(self) {
        let heard = Mutex::new(HashSet::new());
        loop {
            let mut pause = PERIOD + JITTER.mul_f64(jitter());
            match self.round(&heard).await {
                Ok(true) => continue,
                Ok(false) if self.holdings.worker_id().is_none() => pause = BEFORE_A_LEASE,
                Ok(false) => {}
                Err(error) => tracing::warn!(%error, "cannot look after the other workers"),
            }
            tokio::select! {
                biased;
                () = self.done.cancelled() => return,
                () = sleep(pause) => {}
            }
        }
    }

    /// One look at each neighbour; whether one of them was dead, so that there are others now.
    async fn round(&self, heard: &Mutex<HashSet<WorkerId>>) -> Result<bool, StoreError> {
        let Some(own) = self.holdings.worker_id() else { return Ok(false) };
        let store = Arc::clone(&self.store);
        let peers = bounded(self.store.patience(), async move { store.live_peers().await }).await?;
        let mut neighbours = neighbours(peers, own, self.place.as_deref());
        let mut strangers = neighbours.split_off(NEIGHBOURS.min(neighbours.len()));
        {
            let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
            heard.retain(|id| neighbours.iter().chain(&strangers).any(|peer| peer.id == *id));
            strangers.retain(|peer| !heard.contains(&peer.id));
        }
        // Not always the same ones, should some of them never be heard.
        let first = (jitter() * strangers.len() as f64) as usize;
        strangers.rotate_left(first);
        strangers.truncate(INTRODUCTIONS);
        let mut looks: FuturesUnordered<_> =
            neighbours.iter().chain(&strangers).map(|peer| self.look_after(peer, heard)).collect();
        let mut found = Ok(false);
        // All of them to their end, whatever becomes of one.
        while let Some(one) = looks.next().await {
            found = match (found, one) {
                (Err(error), _) | (_, Err(error)) => Err(error),
                (Ok(before), Ok(now)) => Ok(before || now),
            };
        }
        found
    }

    /// Whether the peer is dead. If so, its runs are handed on.
    async fn look_after(&self, peer: &Peer, heard: &Mutex<HashSet<WorkerId>>) -> Result<bool, StoreError> {
        let heard = || heard.lock().unwrap_or_else(PoisonError::into_inner);
        let was_heard = heard().contains(&peer.id);
        match probe::judge(peer, was_heard, probe::look(peer.presence.address).await) {
            Finding::Unknown => Ok(false),
            Finding::Alive => {
                if heard().insert(peer.id) {
                    tracing::debug!(worker.id = %peer.id, "heard another worker");
                }
                Ok(false)
            }
            Finding::Gone(evidence) => self.take_over(peer.id, evidence).await,
        }
    }

    async fn take_over(&self, peer: WorkerId, evidence: Evidence) -> Result<bool, StoreError> {
        let (store, bus) = (Arc::clone(&self.store), Arc::clone(&self.bus));
        bounded(self.store.patience(), async move {
            if store.expire_worker(peer, evidence).await? {
                tracing::warn!(worker.id = %peer, "a worker's process is gone; its lease is ended");
            } else if evidence == Evidence::Suspicion {
                return Ok(false);
            }
            reaper::take_over(&store, &*bus, Proof::Presence).await?;
            Ok(true)
        })
        .await
    }
}

/// The others that can be reached, in the order in which they stand behind `own` in the ring.
fn neighbours(peers: Vec<Peer>, own: WorkerId, place: Option<&str>) -> Vec<Peer> {
    let reachable = peers.into_iter().filter(|peer| peer.id != own && probe::can_reach(peer, place));
    let (behind, before): (Vec<_>, Vec<_>) = reachable.partition(|peer| peer.id > own);
    [behind, before].concat()
}

#[cfg(test)]
mod tests;
