//! Making way for a submission: whoever holds its chat is superseded, and the slot is raced for, within a bound.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::{SubmitError, announce_stop};
use crate::{
    bus::Bus,
    domain::{
        ids::{RunId, WorkspaceId},
        retry::Backoff,
    },
    jitter::jitter,
    store::{AdmitError, Admitted, NewRun, Store, StoreError},
};

/// How long it may take to supersede whoever holds a chat.
const SETTLE_LIMIT: Duration = Duration::from_secs(10);
/// Between two looks at a run that is to end, and between two goes at a slot that somebody else got.
const PAUSE: Backoff = Backoff::new(Duration::from_millis(20), Duration::from_millis(250));

/// Supersedes whoever holds the chat until the run is admitted. Always admission comes first: only it knows a repeated
/// call, and only the index decides who gets the slot that has become free.
pub(super) async fn interrupt(
    store: &dyn Store,
    bus: &dyn Bus,
    new: &NewRun,
    expected: Option<RunId>,
) -> Result<Admitted, SubmitError> {
    require_of_this_chat(store, new, expected).await?;
    let deadline = Instant::now() + SETTLE_LIMIT;
    let mut tries = 0;
    loop {
        let active = match store.admit(new.clone()).await {
            Err(AdmitError::RunAlreadyActive { active_run_id }) => active_run_id,
            answer => return Ok(answer?),
        };
        let is_too_late = Instant::now() >= deadline;
        match active {
            Some(active) if expected.is_some_and(|expected| expected != active) => {
                return Err(SubmitError::SupersedeMismatch { active_run_id: active });
            }
            Some(active) if is_too_late => {
                return Err(SubmitError::SupersedeTimeout { active_run_id: active });
            }
            None if is_too_late => return Err(SubmitError::RunAlreadyActive { active_run_id: None }),
            _ => {}
        }
        // Whoever took the slot meanwhile, or ended before its name could be read, was in a race with this one.
        if tries > 0 || active.is_none() {
            pause(tries.max(1), deadline).await;
        }
        tries += 1;
        let Some(active) = active else { continue };
        for outcome in store.supersede(new.workspace_id, active).await.map_err(SubmitError::BeginFailed)? {
            announce_stop(bus, outcome);
        }
        wait_for_end(store, new.workspace_id, active, deadline).await?;
    }
}

async fn wait_for_end(
    store: &dyn Store,
    workspace: WorkspaceId,
    run_id: RunId,
    deadline: Instant,
) -> Result<(), SubmitError> {
    let mut looks = 0;
    loop {
        match store.run(workspace, run_id).await {
            Ok(run) if run.status.is_terminal() => return Ok(()),
            // One that was deleted ends like any other; the slot says when.
            Ok(_) => {}
            Err(StoreError::NotFound) => return Ok(()),
            Err(error) if error.is_transient() => {
                tracing::debug!(%error, "cannot see whether a run has ended");
            }
            Err(error) => return Err(SubmitError::BeginFailed(error)),
        }
        if Instant::now() >= deadline {
            return Err(SubmitError::SupersedeTimeout { active_run_id: run_id });
        }
        looks += 1;
        pause(looks, deadline).await;
    }
}

async fn pause(tries: u32, deadline: Instant) {
    sleep_until(deadline.min(Instant::now() + PAUSE.wait(tries, jitter()))).await;
}

async fn require_of_this_chat(
    store: &dyn Store,
    new: &NewRun,
    expected: Option<RunId>,
) -> Result<(), SubmitError> {
    let Some(expected) = expected else { return Ok(()) };
    match store.run(new.workspace_id, expected).await {
        Ok(run) if Some(run.chat_id) == new.chat_id => Ok(()),
        Ok(_) | Err(StoreError::NotFound) => Err(SubmitError::SupersedeInvalid),
        Err(error) => Err(SubmitError::BeginFailed(error)),
    }
}
