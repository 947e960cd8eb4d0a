//! A transaction that lost against another one is done again: it changed nothing, and its caller need not know.

use std::{future::Future, time::Duration};

use crate::{
    domain::retry::Backoff,
    jitter::jitter,
    store::{AdmitError, StoreError},
};

/// How often one is tried in all.
const TRIES: u32 = 6;
/// With jitter, so that two that stand in each other's way do not meet again.
const PAUSE: Backoff = Backoff::new(Duration::from_millis(4), Duration::from_millis(200));

/// Tries until the result is final.
pub(super) async fn again<T, E, F: Future<Output = Result<T, E>>>(
    attempt: impl Fn() -> F,
    is_lost: impl Fn(&E) -> bool,
) -> Result<T, E> {
    let mut tries = 1;
    loop {
        match attempt().await {
            Err(error) if tries < TRIES && is_lost(&error) => {
                tokio::time::sleep(PAUSE.wait(tries, jitter())).await;
                tries += 1;
            }
            result => return result,
        }
    }
}

/// Somebody appended to the log meanwhile, or the database decided for another transaction.
pub(super) fn lost_to_another(error: &StoreError) -> bool {
    matches!(error, StoreError::LeaseLost) || error.is_rolled_back()
}

/// The same for an admission, which appends to no log but its own.
pub(super) fn lost_admission(error: &AdmitError) -> bool {
    matches!(error, AdmitError::Store(error) if error.is_rolled_back())
}
