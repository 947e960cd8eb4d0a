//! How a run leaves its holder: handed back, disowned, or taken from a dead one. It waits for a worker again, unless
//! its stop was requested meanwhile or too many workers died on it: then it ends here.

use super::state::{JobRow, State};
use crate::{
    domain::{
        event::{EventData, ReleaseReason},
        ids::{RunId, Seq, WorkerId, WorkspaceId},
        retry::{MAX_CRASHES, crash_delay_ms},
        run::{Claim, Ending, Run, RunError},
        settle::Stop,
        transition::{Reason, RunStatus},
    },
    store::{Released, Result, StoreError},
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
        let crashes = crashes_so_far(job, &run) + i32::from(reason == ReleaseReason::Broken);
        let given_up = (crashes > MAX_CRASHES).then(|| crash_limit(crashes));
        match stopped(&run).or(given_up) {
            Some(ending) => self.end_released(&run, &ending),
            None => self.make_pending(&run, reason, crashes, delay_ms),
        }
    }

    /// The worker holds it without knowing it.
    pub(super) fn disown(
        &mut self,
        worker: WorkerId,
        workspace: WorkspaceId,
        run_id: RunId,
    ) -> Result<Option<Released>> {
        let run = self.run(workspace, run_id)?;
        if run.worker_id != Some(worker) {
            return Ok(None);
        }
        let released = if let Some(ending) = stopped(&run) {
            self.end_released(&run, &ending)?
        } else {
            let crashes = crashes_so_far(self.job(run_id)?, &run);
            self.make_pending(&run, ReleaseReason::Broken, crashes, 0)?
        };
        Ok(Some(released))
    }

    /// Its holder is dead.
    pub(super) fn release_from_dead(&mut self, run_id: RunId, max_crashes: i32) -> Result<Released> {
        let workspace = self.run_row(run_id)?.run.workspace_id;
        let run = self.run(workspace, run_id)?;
        let crashes = crashes_so_far(self.job(run_id)?, &run) + 1;
        match stopped(&run).or_else(|| (crashes > max_crashes).then(|| crash_limit(crashes))) {
            Some(ending) => self.end_released(&run, &ending),
            None => self.make_pending(&run, ReleaseReason::Expired, crashes, crash_delay_ms(crashes)),
        }
    }

    /// Its holder has not followed its stop in time, dead or alive.
    pub(super) fn carry_out_stop(&mut self, run_id: RunId) -> Result<Released> {
        let workspace = self.run_row(run_id)?.run.workspace_id;
        let run = self.run(workspace, run_id)?;
        let ending = stopped(&run).ok_or(StoreError::LeaseLost)?;
        self.end_released(&run, &ending)
    }

    fn job(&self, run_id: RunId) -> Result<&JobRow> {
        self.jobs.get(&run_id).ok_or(StoreError::LeaseLost)
    }

    fn end_released(&mut self, run: &Run, ending: &Ending) -> Result<Released> {
        let epoch = self.job(run.id)?.epoch + 1;
        let stop = run.stop_requested_at.filter(|_| ending.reason.is_ordered());
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
fn crashes_so_far(job: &JobRow, run: &Run) -> i32 {
    if run.step_count > job.crash_step { 0 } else { job.crashes }
}

/// The end of a run whose stop was requested: nobody is to take it up again only to stop it.
fn stopped(run: &Run) -> Option<Ending> {
    run.stop_requested_at?;
    Some(Ending { reason: run.stop_reason.unwrap_or(Reason::Stop), error: None })
}

fn crash_limit(crashes: i32) -> Ending {
    let message =
        format!("{crashes} attempts at this run broke or lost their worker, with no saved step between them");
    Ending::failed(Reason::CrashLimit, RunError::new("crash_limit", message))
}
