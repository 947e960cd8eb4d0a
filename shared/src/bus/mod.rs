//! Hints and live copies between processes. What travels here may be lost, repeated or late, and is never
//! the only copy: the log in the store is the truth, and everyone who listens here also looks there.
//!
//! Nothing on this port fails or delays its caller. [`in_process`] serves one process, [`redis`] many.

use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;

use crate::domain::{event::Segment, ids::RunId};

#[cfg(test)]
pub(crate) mod conformance;
mod fanout;
pub mod in_process;
pub mod redis;

pub use fanout::Subscription;

/// A hint to workers. A lost one costs a poll interval, a repeated one nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Signal {
    /// A job of this queue has become due.
    Wake { queue: String },
    /// A stop was requested for this run.
    Stop { run_id: RunId },
}

/// What a subscriber of a run hears.
#[derive(Clone, Debug)]
pub enum Live {
    /// A segment that is already in the log.
    Segment(Arc<Segment>),
    /// The feed was interrupted, or this subscriber was too slow for it: read the log.
    Resync,
}

/// Why a bus could not be set up. A server that is merely absent is no reason.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    #[error("the Redis URL is not usable")]
    Url(#[source] ::redis::RedisError),
    #[error("the Redis prefix `{0}` is not usable: 1 to 64 letters, digits, `-`, `_`, `.` or `:`")]
    Prefix(String),
}

#[async_trait]
pub trait Bus: Send + Sync + 'static {
    /// Tells every subscriber of the segment's run, in every process. Call it after the commit.
    /// Fire and forget: queued within a bound, dropped beyond it. Segments of one caller keep their order.
    fn publish(&self, segment: Arc<Segment>);

    /// Listens to one run: from the return on, every segment published anywhere arrives, or [`Live::Resync`]
    /// does. While the transport is down it returns at once, and `Resync` follows when the transport is back.
    /// A process holds one subscription of the transport per run, until its last [`Subscription`] is dropped.
    async fn subscribe(&self, run: RunId) -> Subscription;

    /// Tells this process's subscribers of `run`, and no others: for what was read from the log.
    fn deliver(&self, run: RunId, live: Live);

    /// Tells every worker. Fire and forget, like `publish`.
    fn signal(&self, signal: Signal);

    /// Every signal from now on. A receiver that lags should look at the store, as after any loss.
    fn signals(&self) -> broadcast::Receiver<Signal>;

    /// Whether what other processes publish can arrive here at present.
    fn is_connected(&self) -> bool;

    /// Gives what was published a moment to leave this process. For shutdown.
    async fn close(&self) {}
}
