//! The bus of a single process: what is published has arrived on return.

use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::broadcast;

use super::{Bus, Live, Signal, Subscription, fanout::Fanout};
use crate::domain::{event::Segment, ids::RunId};

pub struct InProcessBus {
    fanout: Arc<Fanout>,
    alone: bool,
}

impl InProcessBus {
    /// For the only process of an installation: nobody publishes anything elsewhere.
    pub fn new() -> Self {
        Self { fanout: Fanout::new(|_| ()), alone: true }
    }

    /// For one of several processes that have nothing but the database in common: what the others publish never
    /// arrives, so the bus counts as disconnected, and readers look at the log instead.
    pub fn one_of_many() -> Self {
        Self { alone: false, ..Self::new() }
    }
}

impl Default for InProcessBus {
    fn default() -> Self {
        Self::new()
    }
}

#[async_trait]
impl Bus for InProcessBus {
    fn publish(&self, segment: Arc<Segment>) {
        self.fanout.deliver(segment.run_id, Live::Segment(segment));
    }

    async fn subscribe(&self, run: RunId) -> Subscription {
        self.fanout.join(run)
    }

    fn deliver(&self, run: RunId, live: Live) {
        self.fanout.deliver(run, live);
    }

    fn signal(&self, signal: Signal) {
        self.fanout.signal(signal);
    }

    fn signals(&self) -> broadcast::Receiver<Signal> {
        self.fanout.signals()
    }

    fn is_connected(&self) -> bool {
        self.alone
    }
}
