//! Hands what arrived in this process to its subscribers: one small ring per run, shared by all who
//! listen to it. Delivering never waits; who falls a ring behind hears [`Live::Resync`].

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::broadcast::{self, error::RecvError};

use super::{Live, Signal};
use crate::domain::ids::RunId;

/// Segments kept per run for subscribers that are about to read them: more than a second of a fast run.
const RING: usize = 32;
const SIGNALS: usize = 256;

pub(super) struct Fanout {
    runs: Mutex<HashMap<RunId, Feed>>,
    signals: broadcast::Sender<Signal>,
    /// Called when a run has lost its last subscriber. It may have a new one by then.
    emptied: Box<dyn Fn(RunId) + Send + Sync>,
}

struct Feed {
    ring: broadcast::Sender<Live>,
    subscribers: usize,
}

/// One subscriber's place in the feed of one run.
pub struct Subscription {
    ring: broadcast::Receiver<Live>,
    run: RunId,
    fanout: Arc<Fanout>,
}

impl Fanout {
    pub(super) fn new(emptied: impl Fn(RunId) + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self {
            runs: Mutex::default(),
            signals: broadcast::Sender::new(SIGNALS),
            emptied: Box::new(emptied),
        })
    }

    pub(super) fn join(self: &Arc<Self>, run: RunId) -> Subscription {
        let mut runs = self.runs();
        let feed =
            runs.entry(run).or_insert_with(|| Feed { ring: broadcast::Sender::new(RING), subscribers: 0 });
        feed.subscribers += 1;
        Subscription { ring: feed.ring.subscribe(), run, fanout: Arc::clone(self) }
    }

    pub(super) fn has(&self, run: RunId) -> bool {
        self.runs().contains_key(&run)
    }

    /// Every run that somebody here listens to.
    pub(super) fn all(&self) -> Vec<RunId> {
        self.runs().keys().copied().collect()
    }

    pub(super) fn deliver(&self, run: RunId, live: Live) {
        // Sent outside the lock: waking thousands of subscribers of one run must not hold up the others.
        let ring = self.runs().get(&run).map(|feed| feed.ring.clone());
        if let Some(ring) = ring {
            // Fails only when the last subscriber has just left.
            let _ = ring.send(live);
        }
    }

    pub(super) fn resync_all(&self) {
        let rings: Vec<_> = self.runs().values().map(|feed| feed.ring.clone()).collect();
        for ring in rings {
            let _ = ring.send(Live::Resync);
        }
    }

    pub(super) fn signal(&self, signal: Signal) {
        // Fails only while nobody listens, and then nobody needs the hint.
        let _ = self.signals.send(signal);
    }

    pub(super) fn signals(&self) -> broadcast::Receiver<Signal> {
        self.signals.subscribe()
    }

    fn leave(&self, run: RunId) {
        let mut runs = self.runs();
        let Some(feed) = runs.get_mut(&run) else { return };
        feed.subscribers -= 1;
        if feed.subscribers == 0 {
            runs.remove(&run);
            drop(runs);
            (self.emptied)(run);
        }
    }

    fn runs(&self) -> MutexGuard<'_, HashMap<RunId, Feed>> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Subscription {
    /// The next thing heard. Cancel-safe.
    pub async fn recv(&mut self) -> Live {
        match self.ring.recv().await {
            Ok(live) => live,
            Err(RecvError::Lagged(_)) => {
                // What is left in the ring is older than the log that the subscriber reads now.
                self.ring = self.ring.resubscribe();
                Live::Resync
            }
            Err(RecvError::Closed) => unreachable!("the fan-out keeps a run's ring while it has subscribers"),
        }
    }

    pub fn run(&self) -> RunId {
        self.run
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.fanout.leave(self.run);
    }
}
