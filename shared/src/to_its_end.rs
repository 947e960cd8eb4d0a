//! Work that is done even if nobody waits for it any more, as when a client hangs up.

use std::future::Future;

use tracing::Instrument as _;

/// Dropping the future that this returns does not drop the work.
pub(crate) async fn to_its_end<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> T {
    match tokio::spawn(work.in_current_span()).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is shutting down, and this caller with it.
            Err(_) => std::future::pending().await,
        },
    }
}
