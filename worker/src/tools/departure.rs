//! Whether what a call has to say may leave this process: asked right before it does, and answered in one place.
//!
//! Nothing leaves while the run may be somebody else's, and nothing leaves any more once the run was stopped or lost
//! or its attempt is over. Whether anything has left is known for certain: [`Departure::leave`] and
//! [`Departure::close`] exclude each other.

use std::{
    error::Error,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use longhaul_shared::{
    mutant::{self, Mutant},
    queue::Orders,
};
use tokio_util::sync::CancellationToken;

/// It may not leave, and it did not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the run was interrupted before this could be sent")]
pub struct Barred;

impl Barred {
    /// Whether that is what an error of the HTTP client comes from.
    pub fn is_cause_of(error: &(dyn Error + 'static)) -> bool {
        std::iter::successors(Some(error), |&error| error.source()).any(<dyn Error>::is::<Self>)
    }
}

/// One call's permission. Clones share it.
#[derive(Clone, Debug)]
pub struct Departure {
    orders: Arc<Orders>,
    /// The attempt's calls are over.
    over: CancellationToken,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    is_closed: bool,
    has_left: bool,
}

impl Departure {
    pub fn new(orders: Arc<Orders>, over: CancellationToken) -> Self {
        Self { orders, over, state: Arc::default() }
    }

    /// The same permission for something else, of which nothing has left.
    #[must_use]
    pub fn anew(&self) -> Self {
        Self::new(Arc::clone(&self.orders), self.over.clone())
    }

    /// Waits until something may leave; it may have to wait for the lease to be confirmed.
    pub async fn open(&self) -> Result<(), Barred> {
        tokio::select! {
            biased;
            () = self.over.cancelled() => Err(Barred),
            () = self.orders.lost.cancelled() => Err(Barred),
            () = self.orders.stop.cancelled() => Err(Barred),
            () = self.lease_held() => if self.state().is_closed { Err(Barred) } else { Ok(()) },
        }
    }

    /// The last thing before the first byte. Refused also when the lease ran out since [`Self::open`].
    pub fn leave(&self) -> Result<(), Barred> {
        let mut state = self.state();
        let is_interrupted =
            self.over.is_cancelled() || self.orders.lost.is_cancelled() || self.orders.stop.is_cancelled();
        if state.is_closed || is_interrupted || !self.is_lease_held() {
            return Err(Barred);
        }
        state.has_left = true;
        Ok(())
    }

    /// Leaves as soon as it may.
    pub async fn depart(&self) -> Result<(), Barred> {
        loop {
            self.open().await?;
            if self.leave().is_ok() {
                return Ok(());
            }
        }
    }

    pub fn has_left(&self) -> bool {
        self.state().has_left
    }

    /// Nothing leaves from now on. Whether anything has.
    pub fn close(&self) -> bool {
        let mut state = self.state();
        state.is_closed = true;
        state.has_left
    }

    async fn lease_held(&self) {
        if !mutant::is(Mutant::ToolSentWithoutLease) {
            self.orders.validity.held().await;
        }
    }

    fn is_lease_held(&self) -> bool {
        self.orders.validity.holds() || mutant::is(Mutant::ToolSentWithoutLease)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use longhaul_shared::{
        domain::{ids::RunId, transition::Reason},
        store::StopRequest,
    };
    use tokio::time::{Instant, timeout};

    use super::*;

    fn departure() -> Departure {
        let orders = Arc::new(Orders::default());
        orders.validity.extend(Instant::now() + Duration::from_mins(1));
        Departure::new(orders, CancellationToken::new())
    }

    #[tokio::test]
    async fn whatever_interrupts_a_run_bars_its_calls() {
        let stop = StopRequest { run_id: RunId::generate(), reason: Reason::Stop, requested_at: 1 };
        let interrupts: [&dyn Fn(&Departure); 4] = [
            &|departure| departure.over.cancel(),
            &|departure| departure.orders.lost.cancel(),
            &|departure| departure.orders.request_stop(stop),
            &|departure| _ = departure.close(),
        ];
        for interrupt in interrupts {
            let departure = departure();
            assert_eq!((departure.depart().await, departure.leave()), (Ok(()), Ok(())));
            interrupt(&departure);
            assert_eq!((departure.open().await, departure.leave()), (Err(Barred), Err(Barred)));
            assert!(departure.close(), "what has left has left");
            let departure = departure.anew();
            assert!(!departure.close(), "nothing of this one has");
        }
    }

    #[tokio::test]
    async fn a_lease_in_doubt_is_waited_for() {
        let departure = departure();
        departure.orders.validity.extend(Instant::now());
        assert_eq!(departure.leave(), Err(Barred));
        assert!(timeout(Duration::from_millis(50), departure.depart()).await.is_err());
        departure.orders.validity.extend(Instant::now() + Duration::from_mins(1));
        assert_eq!(departure.depart().await, Ok(()));
    }
}
