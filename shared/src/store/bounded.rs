//! How long somebody waits for the store who has other things to do.

use std::{future::Future, time::Duration};

use tokio::time::timeout;
use tracing::Instrument as _;

use super::{Result, StoreError};

/// Awaits a call of the store, but not for ever: `TimedOut` after `patience`. The call goes on to its end even then,
/// because a connection must not be dropped in the middle of a conversation; what it does is done, and nobody is told.
pub async fn bounded<T: Send + 'static>(
    patience: Duration,
    call: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    match timeout(patience, tokio::spawn(call.in_current_span())).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is shutting down, and this caller with it.
            Err(_) => std::future::pending().await,
        },
        Err(_) => Err(StoreError::TimedOut),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    };

    use tokio::time::sleep;

    use super::*;

    const PATIENCE: Duration = Duration::from_millis(50);

    #[tokio::test]
    async fn a_call_that_takes_too_long_is_not_waited_for_and_goes_on_to_its_end() {
        let is_done = Arc::new(AtomicBool::new(false));
        let done = Arc::clone(&is_done);
        let late = bounded(PATIENCE, async move {
            sleep(PATIENCE * 4).await;
            done.store(true, Ordering::SeqCst);
            Ok(())
        });
        assert!(matches!(late.await, Err(StoreError::TimedOut)));
        assert!(!is_done.load(Ordering::SeqCst));
        while !is_done.load(Ordering::SeqCst) {
            sleep(PATIENCE / 10).await;
        }
        assert!(matches!(bounded(PATIENCE, async { Ok(7) }).await, Ok(7)));
        assert!(matches!(
            bounded(PATIENCE, async { Err::<(), _>(StoreError::LeaseLost) }).await,
            Err(StoreError::LeaseLost)
        ));
    }
}
