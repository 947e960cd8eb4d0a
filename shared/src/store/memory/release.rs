//! How a run leaves its holder: handed back, disowned, or taken from a dead one. It waits for a worker again, unless
//! its stop was requested meanwhile or too many workers died on it: then it ends here.

use super::state::{JobRow, State};
use crate::{
    domain::{
        event::{EventData, ReleaseReason},
        ids::{RunId, Seq, WorkerId},
        release::{Crashes, end_at_release},
        retry::{MAX_CRASHES, crash_delay_ms},
        run::{Claim, Ending, Run},
        settle::Stop,
        transition::{Reason, RunStatus},
    },
    store::{HeldRun, Released, Result, StoreError},
};

impl State {
    /// The holder itself gives it back, `last_seq` being the last event that it appended.
    pub(super) fn hand_back(
        &mut self,
        claim: &Claim,
        last_seq: Seq,
        reason: ReleaseReason,
        delay_ms: i64,
    ) -> Result<Released> {
        let job = self.jobs.get(&claim.run.id).ok_or(StoreError::LeaseLost)?;
        let is_holder = job.worker_id == Some(claim.worker_id) && job.epoch == claim.epoch;
        let run = self.run(claim.run.workspace_id, claim.run.id)?;
        if !is_holder || run.last_seq != last_seq {
            return Err(StoreError::LeaseLost);
        }
        let crashes = crashes_of(job, &run, reason == ReleaseReason::Broken, MAX_CRASHES);
        self.release(&run, reason, crashes, delay_ms)
    }

    /// The worker holds it without knowing it.
    pub(super) fn disown(&mut self, worker: WorkerId, held: HeldRun) -> Result<Option<Released>> {
        let run = self.run(held.workspace_id, held.run_id)?;
        let is_it = |job: &JobRow| job.worker_id == Some(worker) && job.epoch == held.epoch;
        if !self.jobs.get(&held.run_id).is_some_and(is_it) {
            return Ok(None);
        }
        let crashes = crashes_of(self.job(held.run_id)?, &run, false, MAX_CRASHES);
        self.release(&run, ReleaseReason::Broken, crashes, 0).map(Some)
    }

    /// Its holder is dead.
    pub(super) fn release_from_dead(&mut self, run_id: RunId, max_crashes: i32) -> Result<Released> {
        let workspace = self.run_row(run_id)?.run.workspace_id;
        let run = self.run(workspace, run_id)?;
        let crashes = crashes_of(self.job(run_id)?, &run, true, max_crashes);
        self.release(&run, ReleaseReason::Expired, crashes, crash_delay_ms(crashes.now()))
    }

    /// Its holder has not followed its stop in time, dead or alive.
    pub(super) fn carry_out_stop(&mut self, run_id: RunId) -> Result<Released> {
        let workspace = self.run_row(run_id)?.run.workspace_id;
        let run = self.run(workspace, run_id)?;
        let reason = stop_of(&run).ok_or(StoreError::LeaseLost)?;
        self.end_released(&run, &Ending { reason, error: None })
    }

    /// Ends it if it is not to be taken up again, else it waits for a worker.
    fn release(
        &mut self,
        run: &Run,
        reason: ReleaseReason,
        crashes: Crashes,
        delay_ms: i64,
    ) -> Result<Released> {
        match end_at_release(stop_of(run), crashes) {
            Some(ending) => self.end_released(run, &ending),
            None => self.make_pending(run, reason, crashes.now(), delay_ms),
        }
    }

    fn job(&self, run_id: RunId) -> Result<&JobRow> {
        self.jobs.get(&run_id).ok_or(StoreError::LeaseLost)
    }

    fn end_released(&mut self, run: &Run, ending: &Ending) -> Result<Released> {
        let epoch = self.job(run.id)?.epoch + 1;
        let stop = run.stop_requested_at.filter(|_| stop_of(run) == Some(ending.reason));
        let stop = stop.map(|requested_at| Stop { requested_at, is_delivered: false });
        let ended = self.end_run(run, ending, stop, epoch)?;
        Ok(Released {
            run_id: run.id,
            workspace_id: run.workspace_id,
            segments: [vec![ended.segment], ended.caused].concat(),
            wake: ended.wake,
            ended: true,
        })
    }

    /// It waits for a worker again, with the crashes since its last saved step.
    fn make_pending(
        &mut self,
        run: &Run,
        reason: ReleaseReason,
        crashes: i32,
        delay_ms: i64,
    ) -> Result<Released> {
        if run.status != RunStatus::Running {
            return Err(StoreError::LeaseLost);
        }
        let now = self.now;
        let job = self.jobs.get_mut(&run.id).ok_or(StoreError::LeaseLost)?;
        job.worker_id = None;
        job.run_at = now + delay_ms;
        (job.crashes, job.crash_step) = (crashes, run.step_count);
        let (epoch, wake) = (job.epoch, vec![job.queue.clone()]);
        self.run_row(run.id)?.run.status = RunStatus::Pending;
        let segments = vec![self.append_one(run.id, epoch, &EventData::RunReleased { reason, epoch })];
        Ok(Released { run_id: run.id, workspace_id: run.workspace_id, segments, wake, ended: false })
    }
}

/// The crashes of a run since its last saved step.
fn crashes_of(job: &JobRow, run: &Run, is_one_more: bool, limit: i32) -> Crashes {
    let before = if run.step_count > job.crash_step { 0 } else { job.crashes };
    Crashes { before, is_one_more, limit }
}

/// Why it is to end, if that was requested.
fn stop_of(run: &Run) -> Option<Reason> {
    run.stop_requested_at?;
    Some(run.stop_reason.unwrap_or(Reason::Stop))
}
