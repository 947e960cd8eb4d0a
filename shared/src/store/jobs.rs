//! The queue: claims, and how runs leave their holders.

use async_trait::async_trait;

use super::Result;
use crate::domain::{
    event::{ReleaseReason, Segment},
    ids::{Epoch, RunId, Seq, WorkerId, WorkspaceId},
    run::Claim,
};

/// A run, and the claim by which it is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HeldRun {
    pub workspace_id: WorkspaceId,
    pub run_id: RunId,
    pub epoch: Epoch,
}

impl From<&Claim> for HeldRun {
    fn from(claim: &Claim) -> Self {
        Self { workspace_id: claim.run.workspace_id, run_id: claim.run.id, epoch: claim.epoch }
    }
}

/// A job that changed hands without its holder.
#[derive(Clone, Debug)]
pub struct Released {
    pub run_id: RunId,
    pub workspace_id: WorkspaceId,
    pub segments: Vec<Segment>,
    pub wake: Vec<String>,
    /// The run was given up instead of handed on.
    pub ended: bool,
}

/// The queue: claimable work. Rows are deleted when done.
#[async_trait]
pub trait Jobs: Send + Sync {
    /// Takes up to `limit` due jobs for a worker whose lease is alive: job to worker, epoch + 1, run to running,
    /// `run.claimed` appended. Highest priority first, then oldest. Of runs at their last chance it takes one, and none
    /// while it holds one that it took less than [`PROBATION_MS`] ago and that has saved no step.
    ///
    /// [`PROBATION_MS`]: crate::domain::retry::PROBATION_MS
    async fn claim(&self, worker: WorkerId, queues: &[String], limit: u32) -> Result<Vec<(Claim, Segment)>>;
    /// The holder gives a run back: it is pending again, due after `delay_ms`. Not counted as a crash unless
    /// `reason` is `broken`; too many of those end the run. `last_seq` is the last event that the holder appended. A run whose stop is requested ends
    /// instead.
    async fn hand_back(
        &self,
        claim: &Claim,
        last_seq: Seq,
        reason: ReleaseReason,
        delay_ms: i64,
    ) -> Result<Released>;
    /// Jobs whose worker's lease ran out go back to pending with `run.released` appended and their crash counted;
    /// with crash number `max_crashes` without progress the run fails with `crash_limit`. A run whose stop is requested
    /// ends. Up to `limit`; the expiry is checked again under the job's lock. A run that cannot be released now does not
    /// keep the others waiting: an error is told only when nothing was released.
    async fn reap(&self, max_crashes: i32, limit: u32) -> Result<Vec<Released>>;
    /// Runs whose holder, dead or alive, has not followed its stop within [`STOP_GRACE_MS`] end, the longest overdue
    /// first, up to `limit`. Errors are told like those of [`reap`](Self::reap).
    async fn carry_out_stops(&self, limit: u32) -> Result<Vec<Released>>;
    /// Scheduled runs that are due take the chat's slot or queue up for it.
    async fn promote_due(&self, limit: u32) -> Result<Vec<Released>>;
    /// The claims that the worker holds according to the database.
    async fn held_by(&self, worker: WorkerId) -> Result<Vec<HeldRun>>;
    /// Gives back a run that the worker holds by this claim without knowing it: the answer to the claim was lost. A run
    /// whose stop is requested ends instead.
    async fn disown(&self, worker: WorkerId, held: HeldRun) -> Result<Option<Released>>;
    /// Repairs what no path should produce: active runs without a job or held by nobody, waiting ones that are held,
    /// streaming messages of finished runs. The
    /// count is that of repaired rows; above zero is a bug.
    async fn reconcile(&self) -> Result<u64>;
    /// Forgets what nobody can ask for any more: idempotency keys that have expired, and workers that ended a day ago
    /// and hold nothing. The count is that of deleted rows.
    async fn prune(&self) -> Result<u64>;
}
