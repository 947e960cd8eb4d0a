//! The bus of one process: what is published goes through a network that loses, repeats and reorders.

use std::sync::Arc;

use async_trait::async_trait;
use longhaul_shared::{
    bus::{Bus, Live, Signal, Subscription, in_process::InProcessBus},
    domain::{event::Segment, ids::RunId},
};
use tokio::sync::broadcast;

use crate::world::with;

pub struct Hints {
    pub process: usize,
    /// What has arrived here.
    pub here: Arc<InProcessBus>,
}

#[async_trait]
impl Bus for Hints {
    fn publish(&self, segment: Arc<Segment>) {
        with(|world| world.publish(self.process, &segment));
    }

    async fn subscribe(&self, run: RunId) -> Subscription {
        self.here.subscribe(run).await
    }

    fn deliver(&self, run: RunId, live: Live) {
        self.here.deliver(run, live);
    }

    fn signal(&self, signal: Signal) {
        with(|world| world.signal(self.process, &signal));
    }

    fn signals(&self) -> broadcast::Receiver<Signal> {
        self.here.signals()
    }

    fn is_connected(&self) -> bool {
        with(|world| world.now >= world.hints_away_until)
    }
}
