//! What can come between an attempt and its work: every await of it is raced against these.

use std::sync::Arc;

use longhaul_shared::{domain::run::Ending, queue::Orders};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::decide::past_deadline;

/// Why an attempt leaves off.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Exit {
    /// The run is somebody else's: nothing more is written.
    Lost,
    /// The run ends like this.
    Finish(Ending),
    /// The run goes on elsewhere, or here in a moment.
    HandBack,
    /// The log refuses what this attempt had to say: the run ends behind what the log does say.
    Refused,
}

/// The ways in which an attempt is interrupted.
#[derive(Clone)]
pub(super) struct Interrupts {
    pub(super) orders: Arc<Orders>,
    pub(super) deadline: Instant,
    /// The drain time is over.
    pub(super) hard_stop: CancellationToken,
}

impl Interrupts {
    /// Waits for the first of them.
    pub(super) async fn wait(self) -> Exit {
        tokio::select! {
            biased;
            () = self.orders.lost.cancelled() => Exit::Lost,
            () = self.orders.stop.cancelled() => self.stopped(),
            () = self.hard_stop.cancelled() => Exit::HandBack,
            () = sleep_until(self.deadline) => Exit::Finish(past_deadline()),
        }
    }

    fn stopped(&self) -> Exit {
        let reason = self.orders.stop_reason().unwrap_or(longhaul_shared::domain::transition::Reason::Stop);
        Exit::Finish(Ending { reason, error: None })
    }

    /// Does `work` unless an interrupt comes first; then the work is dropped. Not for futures of the database.
    pub(super) async fn race<T>(&self, work: impl Future<Output = T>) -> Result<T, Exit> {
        tokio::select! {
            biased;
            exit = self.clone().wait() => Err(exit),
            done = work => Ok(done),
        }
    }
}
