//! Until when a lease is known to hold: looked at before something is done that cannot be taken back.
//!
//! The heartbeat cancels what is lost, but only once its task runs; a process that was frozen may wake up in the middle
//! of anything else. This is a plain reading of the clock and depends on nobody.

use std::sync::Arc;

use tokio::sync::watch;

use super::Moment;

/// Cheap to clone; all clones follow the same lease. Until it is first confirmed nothing is known to hold.
#[derive(Clone, Debug)]
pub struct Validity(Arc<watch::Sender<Option<Moment>>>);

impl Default for Validity {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(None)))
    }
}

impl Validity {
    pub fn extend(&self, until: impl Into<Moment>) {
        self.0.send_replace(Some(until.into()));
    }

    pub fn holds(&self) -> bool {
        self.0.borrow().is_some_and(|until| !until.is_past())
    }

    /// Returns at once while the lease holds, else when it is confirmed again. Whoever lost it is dropped here.
    pub async fn held(&self) {
        let mut until = self.0.subscribe();
        let now_held = until.wait_for(|until| until.is_some_and(|until| !until.is_past()));
        now_held.await.expect("this value holds the sender");
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::{Instant, timeout};

    use super::{super::moment::tests::SLEPT, *};

    #[tokio::test]
    async fn a_lease_that_ran_out_is_waited_for_until_it_is_confirmed() {
        let validity = Validity::default();
        assert!(!validity.holds(), "nothing is known yet");
        validity.extend(Instant::now() + Duration::from_mins(1));
        assert!(validity.holds());
        validity.held().await;

        validity.extend(Instant::now());
        let holder = validity.clone();
        let mut waiting = tokio::spawn(async move { holder.held().await });
        assert!(timeout(Duration::from_millis(50), &mut waiting).await.is_err());
        validity.extend(Instant::now() + Duration::from_mins(1));
        waiting.await.unwrap();
    }

    #[test]
    fn a_lease_runs_out_while_the_machine_is_suspended() {
        let validity = Validity::default();
        validity.extend(Moment::now() + Duration::from_mins(1));
        SLEPT.set(Duration::from_secs(59));
        assert!(validity.holds());
        SLEPT.set(Duration::from_mins(2));
        assert!(!validity.holds());
        // An answer to what was asked before says nothing about now; one to what is asked now does.
        validity.extend(Moment::now() + Duration::from_mins(1));
        assert!(validity.holds());
    }
}
