//! Calls that were sent and had not been answered when their run ended. The run does not wait for them; what they come
//! to is written beside their settled state, so that people and the chat's next turn can read it.

use std::time::Duration;

use futures::{StreamExt, stream::FuturesUnordered};
use longhaul_shared::{
    domain::{
        ids::WorkspaceId,
        retry::Backoff,
        tool::{CallState, LateResult, ToolCall},
    },
    jitter::jitter,
    store::{SharedStore, bounded},
};
use tokio::time::sleep;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::tool_calls::Sent;

const RETRY: Backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));

/// The worker's calls of this kind. A drain waits for them until its time is over.
pub struct Late {
    pub store: SharedStore,
    pub tasks: TaskTracker,
    /// The drain time is over.
    pub hard_stop: CancellationToken,
}

impl Late {
    /// Waits for the calls behind the run's back. Each has its own time limit.
    pub(super) fn follow(&self, workspace: WorkspaceId, sent: Vec<Sent>) {
        if sent.is_empty() {
            return;
        }
        let (store, hard_stop) = (self.store.clone(), self.hard_stop.clone());
        self.tasks.spawn(async move {
            let mut under_way: FuturesUnordered<_> = sent.into_iter().collect();
            loop {
                let call = tokio::select! {
                    biased;
                    () = hard_stop.cancelled() => return,
                    call = under_way.next() => call,
                };
                let Some(call) = call else { return };
                record(&store, workspace, &call, &hard_stop).await;
            }
        });
    }
}

async fn record(store: &SharedStore, workspace: WorkspaceId, call: &ToolCall, hard_stop: &CancellationToken) {
    if call.state == CallState::Unknown {
        return;
    }
    let late =
        LateResult { state: call.state, output: call.output.clone(), error: call.error.clone(), at: 0 };
    let mut failures = 0;
    loop {
        let (recording, call_of_it, found) = (store.clone(), call.clone(), late.clone());
        let record = async move { recording.record_late(workspace, &call_of_it, &found).await };
        match bounded(store.patience(), record).await {
            Ok(recorded) => {
                tracing::info!(
                    run.id = %call.run_id,
                    step = call.step,
                    call = call.call,
                    state = %call.state,
                    recorded,
                    "a call was answered after its run had ended"
                );
                return;
            }
            Err(error) if error.is_transient() && !hard_stop.is_cancelled() => {
                failures += 1;
                tracing::warn!(%error, run.id = %call.run_id, "cannot record a late answer; trying again");
                sleep(RETRY.wait(failures, jitter())).await;
            }
            Err(error) => {
                tracing::error!(%error, run.id = %call.run_id, "a late answer is lost");
                return;
            }
        }
    }
}
