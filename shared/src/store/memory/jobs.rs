//! The queue: who holds what, what is due, and what no path should have left behind.

use std::cmp::Reverse;

use async_trait::async_trait;

use super::{
    MemoryStore,
    state::{JobRow, RunRow, State},
};
use crate::{
    domain::{
        event::{EventData, ReleaseReason, Segment},
        ids::{Millis, RunId, Seq, WorkerId},
        retry::{LAST_CHANCE, PROBATION_MS},
        run::Claim,
        transition::{MessageStatus, RunStatus},
    },
    mutant::{self, Mutant},
    store::{HeldRun, Jobs, Released, Result, StoreError},
};

const DAY_MS: Millis = 24 * 3_600_000;

#[async_trait]
impl Jobs for MemoryStore {
    async fn claim(&self, worker: WorkerId, queues: &[String], limit: u32) -> Result<Vec<(Claim, Segment)>> {
        self.transact(|state| state.claim(worker, queues, limit as usize))
    }

    async fn hand_back(
        &self,
        claim: &Claim,
        last_seq: Seq,
        reason: ReleaseReason,
        delay_ms: i64,
    ) -> Result<Released> {
        self.transact(|state| state.hand_back(claim, last_seq, reason, delay_ms))
    }

    async fn reap(&self, max_crashes: i32, limit: u32) -> Result<Vec<Released>> {
        self.transact(|state| {
            let limit = limit as usize;
            let orphans = state.held().filter(|(_, job)| job.worker_id.is_some_and(|w| !state.is_held_by(w)));
            let orphans: Vec<RunId> = orphans.map(|(row, _)| row.run.id).take(limit).collect();
            let mut released = vec![];
            for run_id in orphans {
                released.push(state.release_from_dead(run_id, max_crashes)?);
            }
            Ok(released)
        })
    }

    async fn carry_out_stops(&self, limit: u32) -> Result<Vec<Released>> {
        self.transact(|state| {
            let overdue = state.now - state.stop_grace_ms;
            let unfollowed = state.held().map(|(row, _)| (row.run.stop_requested_at, row.run.id));
            let mut unfollowed: Vec<_> =
                unfollowed.filter(|(at, _)| at.is_some_and(|at| at <= overdue)).collect();
            unfollowed.sort_unstable();
            unfollowed
                .into_iter()
                .take(limit as usize)
                .map(|(_, run_id)| state.carry_out_stop(run_id))
                .collect()
        })
    }

    async fn promote_due(&self, limit: u32) -> Result<Vec<Released>> {
        self.transact(|state| {
            let is_due = |run: &crate::domain::run::Run| {
                run.status == RunStatus::Scheduled && run.run_at.is_some_and(|at| at <= state.now)
            };
            let due = state.runs.values().filter(|row| is_due(&row.run));
            let mut due: Vec<_> = due.map(|row| (row.run.run_at, row.run.id)).collect();
            due.sort_unstable();
            due.into_iter().take(limit as usize).map(|(_, run_id)| state.promote(run_id)).collect()
        })
    }

    async fn held_by(&self, worker: WorkerId) -> Result<Vec<HeldRun>> {
        self.transact(|state| {
            let held = state.jobs.iter().filter(|(_, job)| job.worker_id == Some(worker));
            let held = held.filter_map(|(run_id, job)| Some((state.runs.get(run_id)?, job)));
            let held = held.map(|(row, job)| HeldRun {
                workspace_id: row.run.workspace_id,
                run_id: row.run.id,
                epoch: job.epoch,
            });
            Ok(held.collect())
        })
    }

    async fn disown(&self, worker: WorkerId, held: HeldRun) -> Result<Option<Released>> {
        self.transact(|state| state.disown(worker, held))
    }

    async fn reconcile(&self) -> Result<u64> {
        self.transact(|state| Ok(state.reconcile()))
    }

    async fn prune(&self) -> Result<u64> {
        self.transact(|state| {
            let before = state.idempotency.len() + state.keys.len() + state.workers.len();
            let now = state.now;
            state.idempotency.retain(|_, key| key.expires_at > now);
            state.keys.retain(|_, key| key.scope.is_none() || key.expires_at.is_none_or(|at| at > now));
            let holds = |worker| state.jobs.values().any(|job| job.worker_id == Some(worker));
            state.workers.retain(|id, lease| lease.expires_at > now - DAY_MS || holds(*id));
            Ok((before - state.idempotency.len() - state.keys.len() - state.workers.len()) as u64)
        })
    }
}

impl State {
    fn claim(&mut self, worker: WorkerId, queues: &[String], limit: usize) -> Result<Vec<(Claim, Segment)>> {
        if !self.workers.get(&worker).is_some_and(|lease| lease.expires_at > self.now && !lease.draining) {
            return Ok(vec![]);
        }
        let is_due = |run_id: &RunId, job: &JobRow| {
            job.worker_id.is_none()
                && job.run_at <= self.now
                && queues.contains(&job.queue)
                && self.runs.get(run_id).is_some_and(|row| row.run.status == RunStatus::Pending)
        };
        let mut due: Vec<_> = self
            .jobs
            .iter()
            .filter(|(run_id, job)| is_due(run_id, job))
            .map(|(run_id, job)| ((Reverse(job.priority), job.run_at, job.id), *run_id))
            .collect();
        due.sort_unstable();
        let is_on_probation = self.held().any(|(row, job)| {
            job.worker_id == Some(worker)
                && job.crashes >= LAST_CHANCE
                && job.crash_step == row.run.step_count
                && job.claimed_at.is_some_and(|at| at > self.now - PROBATION_MS)
        });
        let mut room = usize::from(!is_on_probation);
        due.retain(|(_, run_id)| {
            let is_suspect = self.jobs[run_id].crashes >= LAST_CHANCE;
            !is_suspect || std::mem::take(&mut room) > 0
        });
        due.into_iter().take(limit).map(|(_, run_id)| self.take(worker, run_id)).collect()
    }

    fn take(&mut self, worker: WorkerId, run_id: RunId) -> Result<(Claim, Segment)> {
        let now = self.now;
        let job = self.jobs.get_mut(&run_id).ok_or(StoreError::LeaseLost)?;
        job.worker_id = Some(worker);
        job.epoch += 1;
        job.attempts += 1;
        job.claimed_at = Some(now);
        let (epoch, attempts) = (job.epoch, job.attempts);
        let segment = self.append_one(run_id, epoch, &EventData::RunClaimed { worker_id: worker, epoch });
        let row = self.run_row(run_id)?;
        row.run.status = RunStatus::Running;
        row.run.attempts = attempts;
        row.run.started_at.get_or_insert(now);
        let workspace = row.run.workspace_id;
        let run = self.run(workspace, run_id)?;
        Ok((Claim { run, epoch, worker_id: worker, last_seq: segment.last, now }, segment))
    }

    /// The running runs that somebody holds, with their jobs.
    fn held(&self) -> impl Iterator<Item = (&RunRow, &JobRow)> {
        let held = self.jobs.iter().filter(|(_, job)| job.worker_id.is_some());
        let held = held.filter_map(|(run_id, job)| Some((self.runs.get(run_id)?, job)));
        held.filter(|(row, _)| row.run.status == RunStatus::Running)
    }

    /// Whether the lease of a job's worker holds, as the reaper sees it.
    fn is_held_by(&self, worker: WorkerId) -> bool {
        if mutant::is(Mutant::ReaperBlindToRenewal) {
            return self.workers.get(&worker).is_some_and(|lease| lease.first_expires_at > self.now);
        }
        self.is_alive(worker)
    }

    /// A scheduled run that is due takes the slot or queues up for it.
    fn promote(&mut self, run_id: RunId) -> Result<Released> {
        let row = self.runs.get(&run_id).ok_or(StoreError::NotFound)?;
        let (chat_id, workspace_id) = (row.run.chat_id, row.run.workspace_id);
        let (queue, priority) = (row.queue.clone(), row.priority);
        let is_taken = self.slot_holder(chat_id).is_some();
        let status = if is_taken { RunStatus::Queued } else { RunStatus::Pending };
        self.run_row(run_id)?.run.status = status;
        if !is_taken {
            self.insert_job(run_id, queue.clone(), priority);
        }
        let event = EventData::RunQueued { status, position: None, run_at: None };
        let segments = vec![self.append_one(run_id, 0, &event)];
        let wake = if is_taken { vec![] } else { vec![queue] };
        Ok(Released { run_id, workspace_id, segments, wake, ended: false })
    }

    fn reconcile(&mut self) -> u64 {
        let mut repaired = 0;
        let active = self.runs.values().filter(|row| {
            matches!(row.run.status, RunStatus::Pending | RunStatus::Running)
                && !self.jobs.contains_key(&row.run.id)
        });
        let jobless: Vec<_> = active.cloned().collect();
        for row in jobless {
            let epochs = self.log.get(&row.run.id).into_iter().flatten().map(|row| row.epoch);
            let epoch = epochs.max().unwrap_or(0);
            self.insert_job(row.run.id, row.queue, row.priority);
            if let Some(job) = self.jobs.get_mut(&row.run.id) {
                job.epoch = epoch;
                job.attempts = row.run.attempts;
                // The reaper takes a job of nobody's from there.
                job.worker_id = (row.run.status == RunStatus::Running).then_some(WorkerId(row.run.id.0));
            }
            repaired += 1;
        }
        let runs = &self.runs;
        for (run_id, job) in &mut self.jobs {
            let status = runs.get(run_id).map(|row| row.run.status);
            let holder = match (status, job.worker_id) {
                (Some(RunStatus::Running), None) => Some(WorkerId(run_id.0)),
                // Whoever it is, the next claim fences it off.
                (Some(RunStatus::Pending), Some(_)) => None,
                _ => continue,
            };
            job.worker_id = holder;
            repaired += 1;
        }
        let jobs = self.jobs.len();
        self.jobs.retain(|run_id, _| runs.get(run_id).is_some_and(|row| row.run.status.holds_slot()));
        repaired += (jobs - self.jobs.len()) as u64;
        for message in self.messages.values_mut() {
            let status = message.run_id.and_then(|id| self.runs.get(&id)).map(|row| row.run.status);
            if let (Some(MessageStatus::Streaming), Some(status)) = (message.status, status)
                && status.is_terminal()
            {
                message.status = Some(status.message_status());
                repaired += 1;
            }
        }
        repaired
    }
}
